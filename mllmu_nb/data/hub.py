"""Where people in the published layout come from: a local folder, or repositories of the Hugging Face hub.

``docs/data.md`` has the form of ``data_source`` and ``data_revision``. Downloads are kept in the hub's own cache.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from mllmu_nb.data import official
from mllmu_nb.data.layout import EVALUATION, EVALUATION_REPOSITORY, TRAINING_REPOSITORY
from mllmu_nb.data.schema import Population
from mllmu_nb.errors import KitError

KINDS = {"dataset": "data set", "model": "model repository"}  # of the hub: evaluation data, training splits


def read(data_source: str, data_revision: str, ratio: int) -> Population:
    """The people of ``data_source`` with the forget ids at ``ratio`` per cent; the notes hold the hub's commits.

    Raises KitError when a source does not exist, cannot be downloaded or is faulty, with a report of all its faults.
    """
    folders, names, commits = zip(*_sources(data_source, data_revision, ratio), strict=True)
    population = official.read_layout(folders[0], ratio, *folders[1:], names=names)
    revisions = {name: commit for name, commit in zip(names, commits, strict=True) if commit}
    return replace(population, notes={**population.notes, "revisions": revisions})


def _sources(data_source: str, data_revision: str, ratio: int) -> list[tuple[Path, str, str]]:
    """Folder, name and commit ("" for a local folder) of the evaluation data and, where named, the training splits."""
    names = [data_source] if os.path.exists(data_source) else [name.strip() for name in data_source.split(",")]
    if len(names) > 2 or not all(names):
        form = f"a folder or {EVALUATION_REPOSITORY}, then after a comma {TRAINING_REPOSITORY} or nothing"
        raise KitError(f"data_source must be {form}, not {data_source!r}")
    if names[0] == TRAINING_REPOSITORY or names[1:] == [EVALUATION_REPOSITORY]:
        text = f"{EVALUATION}, and only the training splits, named after it, come from {TRAINING_REPOSITORY}"
        raise KitError(f"data_source: {text}: this is {data_source}")
    revisions = [revision.strip() for revision in data_revision.split(",")]
    if data_revision and len(revisions) > len(names):
        raise KitError(f"data_revision names {len(revisions)} revisions, but data_source {len(names)}: one each")
    splits = [f"forget_{ratio}", f"retain_{100 - ratio}"]
    configs = [["Full_Set", "Test_Set", "Retain_Set", "ft_Data", "forget_*", splits[1]], splits]
    return [_source(*each) for each in zip(names, KINDS, [*revisions, ""], configs, strict=False)]


def _source(name: str, kind: str, revision: str, configs: list[str]) -> tuple[Path, str, str]:
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):  # False, where Path raises, for a name that no path can have
        if revision:
            raise KitError(f"data_revision {revision!r} is for the hub, but {name} is a folder: leave it empty")
        return folder, folder.resolve().name, ""
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
    return Path(snapshot), name, Path(snapshot).name


def _reason(error: Exception, revision: str) -> str:
    """Why a download failed and what to do, in one line that holds no token."""
    from huggingface_hub import constants, errors

    server, cause = constants.ENDPOINT, error.__cause__
    response = next((r for r in (getattr(e, "response", None) for e in (error, cause)) if r is not None), None)
    status, name = getattr(response, "status_code", 0), type(cause or error).__name__
    token = "is refused" if os.environ.get("HF_TOKEN") else "is not set"
    detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    uncached = "and the cache does not hold all of it: try again later"
    reasons = {
        "revision": f"there is no revision {revision!r} at {server}: take a commit, branch or tag that its page shows",
        "offline": "it is not (or not wholly) in the cache, and HF_HUB_OFFLINE forbids to download it: unset that",
        401: f"it does not exist at {server}, or needs a token (401; the environment variable HF_TOKEN {token})",
        403: "access has to be granted on its page first: then set HF_TOKEN to a token of that account",
        404: f"there is no such repository, and no such folder here ({server} says 404): check the spelling",
        429: f"{server} has had too many requests (429): wait some minutes, or set HF_TOKEN, which allows more",
        "unreachable": f"{server} cannot be reached ({name}), {uncached}",
        0: f"the download failed ({name}: {detail}): try again, what has arrived is kept",
    }
    key = status
    if isinstance(error, errors.RevisionNotFoundError):
        key = "revision"
    elif isinstance(error, errors.LocalEntryNotFoundError) and (constants.is_offline_mode() or not status):
        key = "offline" if constants.is_offline_mode() else "unreachable"
    return reasons.get(key, f"{server} answers {status}, {uncached}")
