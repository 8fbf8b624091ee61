"""Prints where the time of a finished sweep went, from what its runs and its executed notebooks recorded.

    python benchmarks/reproduce.py [configs/miniature.yaml]

Seconds are of the clock, and several notebooks ran at once: their sum is longer than the sweep. "Training" is the loop
alone. "Along the path" are the points of a path, and loading the model before. "Asking" are the questions of the four
sets, "other scores" sentences, fluency, utility and loading. "Notebook" is the rest: starting, tables and figures. A
model that two runs need is counted in the run that made it. The report at the end is not in the table.
"""

from __future__ import annotations

import sys

import nbformat
import pandas as pd

from mllmu_nb import inputs, pipeline
from mllmu_nb.commands import sweep
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.stages import RECORD, read_json


def spent(config: Config) -> dict[str, float]:
    """Return the seconds of one run, by what they were spent on."""
    folder = inputs.run_folder(config)
    executed = sweep.Job(config, sweep.notebook_for(config)).executed
    if not folder.is_dir() or not executed.is_file():
        raise KitError(f"there is no finished run {config.run_id} with its notebook: sweep the grid first")
    whole = nbformat.read(executed, as_version=4).metadata.papermill.duration
    run, log, stage = read_json(folder / RECORD)["seconds"], read_json(folder / "train.json"), pipeline.trained(config)
    made = read_json(stage.folder / RECORD)["seconds"] if stage else 0.0
    parts = {"training": log["seconds"], "along the path": made - log["seconds"], "asking": log["evaluation_seconds"]}
    return parts | {"other scores": run - sum(parts.values()), "notebook": whole - run}


def main(grid: str) -> None:
    table = pd.DataFrame({config.run_id: spent(config) for config in sweep.cells(sweep.read(grid))}).T
    table["together"] = table.sum(axis=1)
    table.loc["all runs"] = table.sum()
    table.loc["per cent"] = 100 * table.loc["all runs"] / table.loc["all runs", "together"]
    print(table.to_string(float_format="{:.1f}".format))


if __name__ == "__main__":
    main(*sys.argv[1:] or ["configs/miniature.yaml"])
