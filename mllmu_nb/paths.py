"""The folders of all files. No other module of the package knows them."""

import os
import tempfile
from pathlib import Path

from mllmu_nb.errors import KitError

PACKAGE = Path(__file__).resolve().parent
OUT = "MLLMU_NB_OUT"


def checkout() -> Path:
    """The project's own folder if the package is in it, else the current folder."""
    return PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else Path.cwd()


def root() -> Path:
    """The folder everything is written under: the environment variable MLLMU_NB_OUT, else the checkout. Raises KitError
    for a relative one."""
    named = os.environ.get(OUT)
    try:
        place = Path(named).expanduser() if named else checkout()
    except RuntimeError:
        raise KitError(f"{OUT}={named!r} names a home folder that does not exist: set it to another folder") from None
    if not place.is_absolute():
        raise KitError(f"{OUT}={named!r} would be another folder in each notebook's: set it to an absolute path")
    return place.resolve()


def results(scale: str) -> Path:
    """A user's own results; git ignores them."""
    return root() / "results" / scale


def figures(scale: str) -> Path:
    return root() / "figures" / scale


def reference() -> Path:
    """The results of the reference run that comes with the project."""
    return checkout() / "results" / "reference"


def runs(results: Path) -> Path:
    """The runs among results, one folder per run."""
    return results / "runs"


def people(results: Path) -> Path:
    """The questions and facts of the people whom the runs were asked about."""
    return results / "people"


def evaluated(scale: str) -> Path:
    """The results of models that were made elsewhere, apart from the runs that tables and figures are made from."""
    return results(scale) / "evaluated"


def study(name: str) -> Path:
    """The results of a study on the miniature."""
    return results("miniature") / "studies" / name


def cache() -> Path:
    """Files that can be made again: models, adapters, executed notebooks. Never committed."""
    return root() / ".cache"


def notebooks() -> Path:
    return checkout() / "notebooks"


def writable(folder: Path, advice: str = f"set {OUT} to another folder") -> Path:
    """``folder``, made if needed. Raises KitError if it cannot be written, so call this before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise KitError(f"cannot write to {folder} ({reason}): {advice}") from None
    return folder
