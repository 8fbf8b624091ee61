"""Where people in the published layout come from: a local folder, or repositories of the Hugging Face hub.

``data_source`` names a folder or a data set such as ``MLLMMU/MLLMU-Bench``; after a comma may follow the repository (or
folder) of the training splits, ``MLLMMU/baseline_train_split``. ``data_revision`` pins commits, branches or tags in the
same order; the population's notes record the commits. Downloads are kept in the hub's own cache (``HF_HOME``), so a
pinned commit that is there needs no network.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mllmu_nb.data import official
from mllmu_nb.data.layout import EVALUATION_REPOSITORY, TRAINING_REPOSITORY
from mllmu_nb.data.schema import Population
from mllmu_nb.errors import KitError

KINDS = {"dataset": "data set", "model": "model repository"}  # of the hub: evaluation data, training splits


class Source(NamedTuple):
    """A folder to read, what reports call it, and the hub's commit that it holds ("" for a local folder)."""

    folder: Path
    name: str
    commit: str = ""


def read(data_source: str, data_revision: str, ratio: int) -> Population:
    """The people of ``data_source`` with the forget ids at ``ratio`` per cent; the notes hold the commits.

    Raises KitError when a source cannot be found, downloaded or read, with a report of all that is wrong in it.
    """
    folders, names, commits = zip(*_sources(data_source, data_revision, ratio), strict=True)
    population = official.read_layout(folders[0], ratio, *folders[1:], names=names)
    revisions = {name: commit for name, commit in zip(names, commits, strict=True) if commit}
    return replace(population, notes={**population.notes, "revisions": revisions})


def _sources(data_source: str, data_revision: str, ratio: int) -> list[Source]:
    """The evaluation data and, where they are named, the training splits; downloaded if need be."""
    names = [data_source] if os.path.exists(data_source) else [name.strip() for name in data_source.split(",")]
    if len(names) > 2 or not all(names):
        form = f"a folder or {EVALUATION_REPOSITORY}, then after a comma {TRAINING_REPOSITORY} or nothing"
        raise KitError(f"data_source must be {form}, not {data_source!r}")
    if names[0] == TRAINING_REPOSITORY or names[1:] == [EVALUATION_REPOSITORY]:
        raise KitError(
            f"data_source: evaluation needs the data set {EVALUATION_REPOSITORY}, and only the training splits, named "
            f"after it, come from {TRAINING_REPOSITORY}: this is {data_source}"
        )
    revisions = [revision.strip() for revision in data_revision.split(",")]
    if data_revision and len(revisions) > len(names):
        raise KitError(f"data_revision names {len(revisions)} revisions, but data_source {len(names)}: one each")
    splits = [f"forget_{ratio}", f"retain_{100 - ratio}"]
    configs = [["Full_Set", "Test_Set", "Retain_Set", "ft_Data", "forget_*", splits[1]], splits]
    return [_source(*each) for each in zip(names, KINDS, [*revisions, ""], configs, strict=False)]


def _source(name: str, kind: str, revision: str, configs: list[str]) -> Source:
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):  # False, where Path raises, for a name that no path can have
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

    server = constants.ENDPOINT
    causes = [error, error.__cause__]
    status = next((each.response.status_code for each in causes if getattr(each, "response", None) is not None), 0)
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no revision {revision!r} at {server}: take a commit, branch or tag that its page shows"
    if isinstance(error, errors.LocalEntryNotFoundError) and constants.is_offline_mode():
        return "it is not (or not wholly) in the cache, and HF_HUB_OFFLINE forbids to download it: unset that"
    token = "is refused" if os.environ.get("HF_TOKEN") else "is not set"
    known = {
        401: f"it does not exist at {server}, or needs a token (401; the environment variable HF_TOKEN {token})",
        403: "access has to be granted on its page first: then set HF_TOKEN to a token of that account",
        404: f"there is no such repository, and no such folder here ({server} says 404): check the spelling",
        429: f"{server} has had too many requests (429): wait some minutes, or set HF_TOKEN, which allows more",
    }
    if status:
        return known.get(status, f"{server} answers {status}, and the cache does not hold all of it: try again later")
    name = type(error.__cause__ or error).__name__
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{server} cannot be reached ({name}), and the cache does not hold all of it: try again later"
    detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return f"the download failed ({name}: {detail}): try again, what has arrived is kept"
