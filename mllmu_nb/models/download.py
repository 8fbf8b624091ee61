"""Models of the hub, fetched whole and held against the hub's hashes before hours go into them.

``huggingface_hub`` does the work: it goes on where a connection was cut, keeps the files that are whole for the next
try, and heeds HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and HF_HOME.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

from mllmu_nb.errors import KitError, few
from mllmu_nb.stages import Stage, write_json

FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


def fetch(source: str, revision: str = "") -> str:
    """The commit of the hub's model ``source`` at ``revision`` ("": the newest), whose files are in the hub's cache
    afterwards. The sha256 of each is checked once for a commit, not offline. Raises KitError where that cannot be."""
    from huggingface_hub import constants, snapshot_download

    with _explained(source):
        folder = Path(snapshot_download(source, revision=revision or None, allow_patterns=FILES))
    if not constants.HF_HUB_OFFLINE:
        Stage("checked", {"source": source, "commit": folder.name}, lambda place: _check(source, folder, place)).get()
    return folder.name


def _check(source: str, folder: Path, place: Path) -> None:
    """Notes in ``place`` how many files are the hub's. One that is not is removed, for the next try to fetch."""
    from huggingface_hub import HfApi

    with _explained(source):
        found = HfApi().verify_repo_checksums(source, revision=folder.name)
    for wrong in found.mismatches:
        file = folder / wrong["path"]
        file.resolve().unlink()
        file.unlink(missing_ok=True)
    if names := [wrong["path"] for wrong in found.mismatches]:
        raise KitError(
            f"model {source}: {few(names)} does not have the hub's hash and was removed: run the same command again"
        )
    write_json(place / "checked.json", {"source": source, "commit": folder.name, "files": found.checked_count})


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Inside, whatever hinders a download is one line; none of the errors holds the token."""
    try:
        yield
    except Exception as error:  # the hub's own errors, those of its HTTP library, and the disk's
        reason = shorten(str(error), 300, placeholder=" ..") or type(error).__name__
        raise KitError(
            f"model {source} cannot be downloaded ({reason}): check the name, its revision, the network and the token "
            "in HF_TOKEN; the same command goes on where this one stopped"
        ) from error
