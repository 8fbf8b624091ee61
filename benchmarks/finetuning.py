"""What makes fine-tuning fast here: the recipe of vanilla as it is, and with one of its choices taken back.

    python benchmarks/finetuning.py [--steps N] [--rounds N]

Each arm trains the shipped base for a few steps on the same people, the arms taking turns; the ratio is that of the
medians over the rounds. What half precision costs or saves hangs on the CPU, so the table names it.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median
from unittest import mock

import torch

from mllmu_nb import run, training
from mllmu_nb.config import Config
from mllmu_nb.data.portraits import augment, from_bytes
from mllmu_nb.models import load
from mllmu_nb.muon import STEPS

ARMS = {
    "as it is": {},
    "matrix products in bfloat16": {"precision": "bf16"},
    "Muon of torch, in bfloat16": {"muon": True},
    "batches as drawn, not by length": {"together": 1},
}


def torchs_muon(inner, lr, weight_decay):
    return torch.optim.Muon(inner, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw", ns_steps=STEPS)


def seconds(config: Config, steps: int, muon: bool = False, **changes) -> float:
    """How long ``steps`` of the recipe with ``changes`` take, loading and replay left out."""
    recipe = config.training
    model, processor = load.load_base(config)
    load.unfreeze(model)
    people = run.taught(run.population(config), "vanilla")
    talks = [
        *training.modality_conversations(people, "multimodal"),
        *training.modality_conversations(people, "unimodal"),
    ]
    names = ("batch_size", "turns", "together", "instructed", "lr", "precision", "optimizer")
    options = {name: getattr(recipe, name) for name in names} | changes
    with mock.patch.object(training, "Muon", torchs_muon) if muon else mock.MagicMock():
        began = time.perf_counter()
        training.finetune(
            model,
            processor,
            talks,
            steps=steps,
            augment=lambda picture, rng: augment(from_bytes(picture), rng),
            progress=False,
            **options,
        )
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    config = Config()
    spent = {arm: [] for arm in ARMS}
    for _ in range(asked.rounds):
        for arm, changes in ARMS.items():
            spent[arm].append(seconds(config, asked.steps, **changes))
    print(f"{torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, one thread; {asked.steps} steps")
    print("| arm | times as long |\n|---|---:|")
    for arm, found in spent.items():
        print(f"| {arm} | {median(found) / median(spent['as it is']):.2f} |")


if __name__ == "__main__":
    main()
