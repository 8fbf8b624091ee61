"""Where people in the published layout come from: a local folder, or repositories of the Hugging Face hub.

``data_source`` names a folder or a data set such as ``MLLMMU/MLLMU-Bench``; after a comma may follow the repository (or
folder) of the training splits, ``MLLMMU/baseline_train_split``. ``data_revision`` pins commits, branches or tags in the
same order. What was read is the commit, whatever was asked for. Downloads are kept in the hub's own cache
(``HF_HOME``), so a pinned commit that is there needs no network.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mllmu_nb.data import official
from mllmu_nb.data.layout import EVALUATION_REPOSITORY, TRAINING_REPOSITORY, Problem
from mllmu_nb.data.schema import Population
from mllmu_nb.errors import KitError

KINDS = {"dataset": "data set", "model": "model repository"}  # of the hub: evaluation data, training splits


@dataclass(frozen=True)
class Source:
    """A folder to read, what reports call it, and the hub's commit that it holds ("" for a local folder)."""

    folder: Path
    name: str
    commit: str = ""


def read(data_source: str, data_revision: str, ratio: int) -> Population:
    """The people of ``data_source`` with the forget ids at ``ratio`` per cent; the notes hold the commits.

    Raises KitError when a source cannot be found, downloaded or read, with a report of all that is wrong in it.
    """
    found = find(data_source, data_revision, ratio)
    population = official.read_layout(*_folders(found, ratio), **_names(found))
    revisions = {source.name: source.commit for source in found if source.commit}
    return Population(population.profiles, population.forget_ids, {**population.notes, "revisions": revisions})


def problems(data_source: str, data_revision: str, ratio: int) -> list[Problem]:
    """All that is wrong in ``data_source``. Raises KitError only when there is nothing to look at."""
    found = find(data_source, data_revision, ratio)
    return official.problems(*_folders(found, ratio), **_names(found))


def find(data_source: str, data_revision: str, ratio: int) -> list[Source]:
    """The folder of the evaluation data and, where it is named, that of the training splits; downloaded if need be.

    Raises KitError, in one line, for a name that is neither a folder nor on the hub, for a missing revision, and for a
    download that fails.
    """
    names, revisions = parts(data_source), data_revision.split(",")
    if data_revision and len(revisions) > len(names):
        raise KitError(f"data_revision names {len(revisions)} revisions, but data_source {len(names)}: one each")
    revisions += [""] * (len(names) - len(revisions))
    splits = [f"forget_{ratio}", f"retain_{100 - ratio}"]
    wanted = [["Full_Set", "Test_Set", "Retain_Set", "ft_Data", "forget_*", splits[1]], splits]
    return [
        _find(name, kind, revision.strip(), configs)
        for name, kind, revision, configs in zip(names, KINDS, revisions, wanted, strict=False)
    ]


def parts(data_source: str) -> list[str]:
    """The one or two sources that ``data_source`` names. Raises KitError for a name in the other's place."""
    names = [data_source] if Path(data_source).exists() else [name.strip() for name in data_source.split(",")]
    if len(names) > 2 or not all(names):
        form = f"a folder or {EVALUATION_REPOSITORY}, then after a comma {TRAINING_REPOSITORY} or nothing"
        raise KitError(f"data_source must be {form}, not {data_source!r}")
    if names[0] == TRAINING_REPOSITORY or names[1:] == [EVALUATION_REPOSITORY]:
        raise KitError(
            f"data_source: evaluation needs the data set {EVALUATION_REPOSITORY}, and only the training splits, named "
            f"after it, come from {TRAINING_REPOSITORY}: this is {data_source}"
        )
    return names


def is_local(name: str) -> bool:
    """Whether a source is a folder of this machine; else it is looked for on the hub."""
    return Path(name).is_dir()


def _folders(found: list[Source], ratio: int) -> tuple[Path | int, ...]:
    return (found[0].folder, ratio, *(source.folder for source in found[1:]))


def _names(found: list[Source]) -> dict[str, str]:
    return dict(zip(("name", "training_name"), (source.name for source in found), strict=False))


def _find(name: str, kind: str, revision: str, configs: list[str]) -> Source:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision:
            raise KitError(f"data_revision {revision!r} is for the hub, but {name} is a folder: leave it empty")
        return Source(folder, folder.resolve().name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise KitError(
            f"data_source {name!r} is neither a folder nor a name on the hub, such as {EVALUATION_REPOSITORY}"
        )
    from huggingface_hub import snapshot_download

    patterns = [*(f"{config}/train-*.parquet" for config in configs), official.PEOPLE_FILE]
    try:
        snapshot = snapshot_download(name, repo_type=kind, revision=revision or None, allow_patterns=patterns)
    except Exception as error:  # the hub's own errors, those of its HTTP library, and the disk's
        raise KitError(f"{KINDS[kind]} {name}: {_reason(error, revision)}") from error
    return Source(Path(snapshot), name, Path(snapshot).name)


def _reason(error: Exception, revision: str) -> str:
    """Why a download failed and what to do, in one line that holds no token."""
    from huggingface_hub import constants, errors

    where = constants.ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no revision {revision!r} at {where}: take a commit, branch or tag that its page shows"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return "access has to be granted on its page first: then set HF_TOKEN to a token of that account"
    if status == 401:
        token = "HF_TOKEN is refused" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
        return f"it does not exist at {where}, or needs a token (401; the environment variable {token})"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, and no such folder here ({where} says 404): check the spelling"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.is_offline_mode():
            return "it is not (or not wholly) in the cache, and HF_HUB_OFFLINE forbids to download it: unset that"
        cause = error.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        why = f"it answers {status}" if status else type(cause or error).__name__
        return f"{where} cannot be reached ({why}) and the cache does not hold all of it: try again later"
    if status is not None:
        return f"{where} answers {status}: try again later"
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return f"the download failed ({type(error).__name__}: {reason}): try again, what has arrived is kept"
