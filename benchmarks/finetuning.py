"""What makes fine-tuning fast here: the recipe of vanilla as it is, and with one of its choices undone at a time.

    python benchmarks/finetuning.py [--steps N] [--rounds N]

Each arm trains the shipped base for a few steps on the same people, in a process of its own; the arms take turns. The
ratio divides the medians over the rounds. The effect of half precision depends on the CPU, so the output names the CPU.
Half precision is measured with unpinned bits, because bfloat16 is refused if the bits are pinned.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import get_context
from statistics import median
from unittest import mock

from mllmu_nb import inputs, pinning, pipeline, provenance
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import MODALITIES, training_conversations

# Arm → whether it uses the CPU's own kernels, whether it uses torch's Muon, changes of the recipe.
ARMS = {
    "as it is": (False, False, {}),
    "the CPU's own kernels, bits not pinned": (True, False, {}),
    "the same, matrix products in bfloat16": (True, False, {"precision": "bf16"}),
    "Muon of torch, in bfloat16": (True, True, {}),
    "batches as drawn, not by length": (False, False, {"together": 1}),
}


def measured(arm: str, steps: int) -> float:
    """Return the seconds that ``steps`` of the recipe take, without loading and replay."""
    import torch

    from mllmu_nb import optimizers, training
    from mllmu_nb.models import load

    def torchs_muon(inner, lr, weight_decay):
        how = {"adjust_lr_fn": "match_rms_adamw", "ns_steps": optimizers.NEWTON_STEPS}
        return torch.optim.Muon(inner, lr=lr, weight_decay=weight_decay, **how)

    _, foreign, changes = ARMS[arm]
    config = Config(method="base")
    model, processor = pipeline.model(config)
    load.unfreeze(model)
    people = inputs.taught(inputs.population(config), "vanilla")
    conversations = [c for modality in MODALITIES for c in training_conversations(people, modality)]
    recipe = replace(config.training, steps=steps, **changes)
    with mock.patch.object(optimizers, "Muon", torchs_muon) if foreign else nullcontext():
        began = time.perf_counter()
        training.finetune(model, processor, conversations, recipe, config.train_seed, progress=False)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds, pinned = defaultdict(list), pinning.settings()
    others = {name: value for name, value in os.environ.items() if name not in (*pinned, pinning.UNPINNED)}
    for _ in range(options.rounds):
        for arm, (unpinned, *_) in ARMS.items():
            environment = others | ({pinning.UNPINNED: "1"} if unpinned else pinned)  # a new process starts with it
            with mock.patch.dict(os.environ, environment, clear=True):
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    seconds[arm].append(pool.submit(measured, arm, options.steps).result())
    machine = provenance.machine()
    print(f"{machine['cpu']}, {os.cpu_count()} cores, one thread; {options.steps} steps")
    print("| arm | times as long |\n|---|---:|")
    for arm, spent in seconds.items():
        print(f"| {arm} | {median(spent) / median(seconds['as it is']):.2f} |")


if __name__ == "__main__":
    main()
