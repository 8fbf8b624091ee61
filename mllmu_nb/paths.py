"""Where things lie. The one file that knows the folders."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from mllmu_nb.errors import KitError

PACKAGE = Path(__file__).resolve().parent


def checkout() -> Path:
    """The project's own folder where the package lies in it; else the current folder."""
    return PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else Path.cwd()


def root() -> Path:
    """The folder everything is written under: the environment variable MLLMU_NB_OUT, else the checkout."""
    named = os.environ.get("MLLMU_NB_OUT")
    return Path(named).expanduser().resolve() if named else checkout()


def results(scale: str) -> Path:
    return root() / "results" / scale


def runs(scale: str) -> Path:
    return results(scale) / "runs"


def evaluated(scale: str) -> Path:
    """Of models that were made elsewhere: apart from the runs, which tables and figures are made of."""
    return results(scale) / "evaluated"


def study(scale: str, name: str) -> Path:
    """What a study has measured: answers of models that are no run, and what is told of them."""
    return results(scale) / name


def figures(scale: str) -> Path:
    return root() / "figures" / scale


def cache() -> Path:
    """What can be made again: models, adapters, executed notebooks. Never committed."""
    return root() / ".cache"


def committed_runs(scale: str) -> Path:
    """The reference run that comes with the project, wherever one's own results go."""
    return checkout() / "results" / scale / "runs"


def committed_study(scale: str, name: str) -> Path:
    """The study that comes with the project."""
    return committed_runs(scale).parent / name


def notebooks() -> Path:
    return checkout() / "notebooks"


def writable(folder: Path) -> Path:
    """``folder``, made if need be. Raises KitError when nothing can be written there, so call it before any work."""
    probe = folder / f".probe-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise KitError(f"cannot write to {folder} ({reason}): set MLLMU_NB_OUT to another folder") from None
    return folder
