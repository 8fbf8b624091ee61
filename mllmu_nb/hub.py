"""Fetches models and people from the Hugging Face hub and compares their files with the hub's hashes.

``huggingface_hub`` does the work. It continues an interrupted download, keeps complete files for the next try, and
reads HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and HF_HOME.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from textwrap import shorten

from mllmu_nb.data import official
from mllmu_nb.data.official import EVALUATION_REPOSITORY, TRAINING_REPOSITORY
from mllmu_nb.data.schema import Population
from mllmu_nb.errors import KitError, few
from mllmu_nb.stages import Stage, state, write_json

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")


def fetch(source: str, revision: str = "", kind: str = "model", files: Sequence[str] = MODEL_FILES) -> Path:
    """Fetch the ``files`` (patterns) of ``source`` at ``revision`` ("": the newest). Returns their folder in the
    hub's cache; its name is the commit. Compares every file with the hub's hash, again only if a file has changed, and
    never offline. Raises KitError if this fails."""
    from huggingface_hub import HfApi, constants, snapshot_download

    with _explained(f"{kind} {source}"):
        wanted = {"repo_type": kind, "revision": revision or None, "allow_patterns": list(files)}
        folder = Path(snapshot_download(source, **wanted))

    def check(place: Path) -> None:
        with _explained(f"{kind} {source}"):
            checked = HfApi().verify_repo_checksums(source, repo_type=kind, revision=folder.name)
        wrong = [mismatch["path"] for mismatch in checked.mismatches]
        for file in (folder / name for name in wrong):  # the next try fetches it
            file.resolve().unlink(missing_ok=True)  # two files may share one
            file.unlink(missing_ok=True)
        if wrong:
            text = f"{few(wrong)} does not have the hub's hash and was removed: run the same command again"
            raise KitError(f"{kind} {source}: {text}")
        write_json(place / "checked.json", {"source": source, "commit": folder.name, "files": checked.checked_count})

    if not constants.HF_HUB_OFFLINE:
        there = {str(file): state(file) for file in sorted(folder.rglob("*")) if file.is_file()}
        Stage("checked", {"source": source, "commit": folder.name, "kind": kind, "files": there}, check).get()
    return folder


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Raise any error of a download inside the context as a KitError of one line. No such error contains the token,
    and none the password of a mirror."""
    try:
        yield
    except Exception as error:  # the hub's own errors, those of its HTTP library, and the disk's
        first = error.__cause__ or error  # the library says only that a file cannot be reached
        said = without_password(str(first))
        reason = shorten(said, 300, placeholder=" ..") or type(first).__name__
        raise KitError(
            f"{name} cannot be downloaded ({reason}): check the name, its revision, the network and the token in "
            "HF_TOKEN; the same command continues where this one stopped"
        ) from (error if said == str(first) else None)


def without_password(text: str) -> str:
    """``text`` without the user and password that an address in it may have, such as that of a mirror."""
    return re.sub(r"//[^/@\s]+@", "//", text)


def read_people(data_source: str, data_revision: str, ratio: int) -> Population:
    """The people of ``data_source`` with the forget ids at ``ratio`` per cent; the notes have the hub's commits.
    ``docs/data.md`` explains ``data_source`` and ``data_revision``. Raises KitError if a source does not exist, cannot
    be downloaded or is faulty."""
    forget, retain = f"forget_{ratio}", f"retain_{100 - ratio}"
    configs = ["Full_Set", "Test_Set", "Retain_Set", "ft_Data", "forget_*", retain], [forget, retain]
    places = [_people_folder(*one, of) for one, of in zip(sources(data_source, data_revision), configs, strict=False)]
    folders, labels, commits = zip(*places, strict=True)
    population = official.read_layout(folders[0], ratio, *folders[1:], names=labels)
    read = {label: commit for label, commit in zip(labels, commits, strict=True) if commit}
    return replace(population, notes={**population.notes, "revisions": read})


def parts(data_source: str) -> list[str]:
    """The parts of ``data_source``: one if it is a path that exists, which may contain commas."""
    if os.path.exists(os.path.expanduser(data_source)):
        return [data_source]
    return [part.strip() for part in data_source.split(",") if part.strip()]


def sources(data_source: str, data_revision: str) -> list[tuple[str, str, str]]:
    """Name, kind on the hub and revision of the evaluation data and, if they are named, of the training splits, which
    are a repository of the kind model. Raises KitError if one of the two repositories stands in the other's place."""
    names = parts(data_source) or [""]
    revisions = [revision.strip() for revision in data_revision.split(",")]
    exchanged = names[0] == TRAINING_REPOSITORY or EVALUATION_REPOSITORY in names[1:]
    if len(names) > 2 or len(revisions) > len(names) or exchanged:
        form = f"a folder or {EVALUATION_REPOSITORY}, then after a comma {TRAINING_REPOSITORY} or nothing"
        raise KitError(f"data_source must be {form}, and data_revision have no more parts: this is {data_source}")
    return list(zip(names, ("dataset", "model"), [*revisions, ""], strict=False))


def _people_folder(name: str, kind: str, revision: str, configs: list[str]) -> tuple[Path, str, str]:
    """Folder, name and commit ("" for a local folder) of the evaluation data or the training splits."""
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):  # False for an impossible path, for which Path raises
        if revision:
            raise KitError(f"data_revision {revision!r} is for the hub, but {name} is a folder: leave it empty")
        return folder, folder.resolve().name, ""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise KitError(f"data_source {name!r} is neither a folder nor a name on the hub, as {EVALUATION_REPOSITORY} is")
    files = [*(f"{config}/train-*.parquet" for config in configs), official.PEOPLE_FILE]
    snapshot = fetch(name, revision, kind, files)
    return snapshot, name, snapshot.name
