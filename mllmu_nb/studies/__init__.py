"""Studies: methods with other pieces of code beside the canonical ones, compared at equal forgetting.

A study is a grid of runs in a folder of its own, which has the path and the training's record of each run. Its oracles
are those of a sweep.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mllmu_nb import inputs, paths, pipeline
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting.runs import Run, read_run
from mllmu_nb.scoring import path
from mllmu_nb.stages import RECORD, Stage, read_json

MEASURES = {path.KEPT: "Kept, %", "free": "Free answers, %"}


def make(name: str, configs: Sequence[Config], train: Callable[[Config], Stage] = pipeline.unlearned) -> None:
    """Make the missing runs of a study; ``train`` gives the stage that trains one. A study that was stopped continues
    from there. A training that diverges has no run."""
    from mllmu_nb.training import TrainingDiverged

    folder = paths.study(name)
    inputs.write_people(configs[0], paths.people(folder))
    for number, config in enumerate(configs, start=1):
        print(f"[{number}/{len(configs)}] {config.run_id}", flush=True)
        try:
            stored(config, train(config), paths.runs(folder) / config.run_id).get()
        except TrainingDiverged as reason:
            print(f"    {reason}")


def stored(config: Config, trained: Stage, at: Path) -> Stage:
    """The stage that copies the path and the record of a training, without its adapter."""

    def copy(folder: Path) -> None:
        for name in ("path.parquet", "train.json"):
            shutil.copyfile(trained.get() / name, folder / name)

    source = {"unlearned": trained.key}
    return Stage("path", source, copy, record=lambda: {"run": config.run_id, **inputs.record_of(config)}, at=at)


def read(name: str) -> list[Run]:
    """The runs of the user's own study, else of the one that comes with the kit. Raises KitError, with the command that
    makes the study, if there is none."""
    for folder in (paths.study(name), paths.reference() / "studies" / name):
        if runs := sorted(one.parent for one in paths.runs(folder).glob(f"*/{RECORD}")):
            return [Run(one, read_json(one / RECORD), read_json(one / "train.json")) for one in runs]
    raise KitError(f"there is no study yet: make it with `python -m mllmu_nb study {name}`")


def oracles(replicates: Iterable[int], own: bool = True) -> list[Run]:
    """The oracles of these replicates, as :func:`swept`."""
    return swept([Config(method="oracle", replicate=replicate) for replicate in sorted(replicates)], own)


def swept(configs: Iterable[Config], own: bool = True) -> list[Run]:
    """The runs that a sweep has made: the user's ``own`` or those of the reference run. Raises KitError, with the
    command that makes them, if one does not exist."""
    runs = []
    for config in configs:
        if not (folder := pipeline.reference(config, own)):
            name = f"{config.method} of replicate {config.replicate}"
            raise KitError(f"there is no {name}: `mllmu-nb sweep` of its replicate makes it")
        runs.append(read_run(folder))
    return runs
