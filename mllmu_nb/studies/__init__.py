"""Studies: questions that no single run answers. Each is a grid of runs in a folder of its own, and a table."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mllmu_nb import inputs, paths
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.stages import Stage


def make(name: str, configs: Sequence[Config], stage_of: Callable[[Config, Path], Stage]) -> None:
    """Make the missing runs of a study; ``stage_of`` gives the stage of a run in a folder. A study that was stopped
    continues from there. A training that diverges has no run."""
    from mllmu_nb.training import TrainingDiverged

    folder = paths.study(name)
    inputs.write_people(configs[0], paths.people(folder))
    for number, config in enumerate(configs, start=1):
        print(f"[{number}/{len(configs)}] {config.run_id}", flush=True)
        try:
            stage_of(config, paths.runs(folder) / config.run_id).get()
        except TrainingDiverged as reason:
            print(f"    {reason}")


def folder_of(name: str) -> Path:
    """The folder of a study: the user's own if it has runs, else the one that comes with the kit. Raises KitError, with
    the command that makes the study, if there is none."""
    for folder in (paths.study(name), paths.reference() / "studies" / name):
        if any(paths.runs(folder).glob("*/")):
            return folder
    raise KitError(f"there is no study yet: make it with `python -m mllmu_nb study {name}`")
