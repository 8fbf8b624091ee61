"""Studies: questions that no single run answers. Each is a grid of runs in a folder of its own, and a table."""

from pathlib import Path

from mllmu_nb import paths
from mllmu_nb.errors import KitError


def folder_of(name: str) -> Path:
    """The folder of a study: the user's own if it has runs, else the one that comes with the kit. Raises KitError, with
    the command that makes the study, if there is none."""
    for folder in (paths.study(name), paths.reference() / "studies" / name):
        if any(paths.runs(folder).glob("*/")):
            return folder
    raise KitError(f"there is no study yet: make it with `python -m mllmu_nb study {name}`")
