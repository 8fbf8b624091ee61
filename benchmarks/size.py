"""How seconds and memory grow with people and parameters.

    python benchmarks/size.py [--people N ..] [--widths N ..] [--share N]

For each number of people, one process makes them, trains a few steps, evaluates one person in fifty of each set (one in
``--share``; 1: all), scores four models and writes their tables. The same follows with the fewest people and bases of
several widths (multiples of the shipped one). Seconds are processor time in one thread. Memory is the peak of a part
beyond what was held before, so the people count once; only Linux reports it. An exponent is the slope in log-log scale,
over all sizes and over the last two, because at small sizes much of the time is loading. Status 1 means that an
exponent of the seconds of the last two sizes is above ``BAR``.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd

from mllmu_nb import inputs, paths, pipeline, provenance, stages
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import MODALITIES, training_conversations
from mllmu_nb.reporting import tables
from mllmu_nb.reporting.runs import Scores, read_runs

BAR = 1.1
STEPS = 8
MODELS = {"vanilla": "none", "oracle": "none", "ga": "multimodal"}  # copies of the base's answers get these names


def memory(line: str) -> float:
    """VmRSS or VmHWM of this process, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) / 1024


@contextmanager
def part(rows: list[dict], **named) -> Iterator[None]:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    held, began = memory("VmRSS"), time.process_time()
    yield
    rows.append(named | {"seconds": time.process_time() - began, "MiB": memory("VmHWM") - held})


def widened(folder: Path, times: int) -> int:
    """Write the shipped base with random weights and ``times`` its width; return its number of parameters."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    shipped = Path(inputs.base_source(Config()))
    shape = AutoConfig.from_pretrained(shipped)
    for tower in (shape.text_config, shape.vision_config):
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
            if hasattr(tower, name):
                setattr(tower, name, times * getattr(tower, name))
    shutil.copytree(shipped, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model = AutoModelForImageTextToText.from_config(shape)
    model.save_pretrained(folder)
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    stages.write_json(folder / "recipe.json", {"sha256": sha256})
    return model.num_parameters()


def measured(people: int, times: int, share: int) -> list[dict]:
    from mllmu_nb.models import load
    from mllmu_nb.training import finetune

    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as place, mock.patch.dict(os.environ, {paths.OUT: place}):
        base = Path(place) / "base"
        size = {"people": people, "parameters": widened(base, times)}
        config = Config(method="base", base_path=str(base), people=people)
        with part(rows, part="data", **size):
            known = inputs.population(config)
            inputs.write_people(config, paths.people(paths.results("miniature")))
        with part(rows, part="training", **size):
            model, processor = load.load_base(*inputs.base_of(config))
            conversations = [
                one
                for modality in MODALITIES
                for one in training_conversations(inputs.taught(known, "vanilla"), modality)
            ]
            recipe = replace(config.training, steps=STEPS)
            finetune(load.unfreeze(model), processor, conversations, recipe, 0, progress=False)
            del model, conversations
        with part(rows, part="evaluation", **size):
            run = pipeline.answered(config, limit=max(1, people // share)).get()
        for method, modality in MODELS.items():
            other = shutil.copytree(run, run.with_name(method))
            record = stages.read_json(run / stages.RECORD)
            record["parameters"] |= {"method": method, "modality": modality}
            stages.write_json(other / stages.RECORD, record | {"run": method})
        with part(rows, part="tables", **size):
            scores = Scores.of(read_runs(paths.results("miniature")))
            scores.run_scores()
            tables.write_tables(scores, Path(place) / "tables", "made up")
    return rows


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(costs, 1e-3)), 1)[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, nargs="+", default=[50, 500, 5000])
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--share", type=int, default=50)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{provenance.machine()['cpu']}, one thread", flush=True)
    arms = {
        "people": [(n, 1) for n in options.people],
        "parameters": [(min(options.people), w) for w in options.widths],
    }
    missed, pool = False, ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1)
    for axis, arm in arms.items():
        table = pd.DataFrame([row for size in arm for row in pool.submit(measured, *size, options.share).result()])
        print(f"\n| part | seconds and MiB, by {axis} | exponent: of all | of the last two | their memory's |")
        print("|---|---|---:|---:|---:|")
        for name, rows in table.groupby("part", sort=False):
            sizes, ends = rows[axis].tolist(), rows[-2:]
            last = exponent(ends[axis], ends["seconds"])
            measures = [f"{size:,}: {s:.1f}, {m:.0f}" for size, s, m in rows[[axis, "seconds", "MiB"]].to_numpy()]
            fitted = f"{exponent(sizes, rows['seconds']):.2f} | {last:.2f} | {exponent(ends[axis], ends['MiB']):.2f}"
            print(f"| {name} | {'; '.join(measures)} | {fitted} |", flush=True)
            missed |= last > BAR
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
