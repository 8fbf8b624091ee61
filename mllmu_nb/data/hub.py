"""Where people in the published layout come from: a local folder, or repositories of the Hugging Face hub.

``docs/data.md`` has the form of ``data_source`` and ``data_revision``. Downloads are kept in the hub's own cache.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from mllmu_nb.data import official
from mllmu_nb.data.layout import EVALUATION_REPOSITORY, TRAINING_REPOSITORY
from mllmu_nb.data.schema import Population
from mllmu_nb.errors import KitError

KINDS = ("dataset", "model")  # of the hub: evaluation data, training splits


def read(data_source: str, data_revision: str, ratio: int) -> Population:
    """The people of ``data_source`` with the forget ids at ``ratio`` per cent; the notes hold the hub's commits. Raises
    KitError when a source does not exist, cannot be downloaded or is faulty."""
    names = [data_source] if os.path.exists(data_source) else [name.strip() for name in data_source.split(",")]
    revisions = [revision.strip() for revision in data_revision.split(",")]
    if len(names) > 2 or len(revisions) > len(names):
        form = f"a folder or {EVALUATION_REPOSITORY}, then after a comma {TRAINING_REPOSITORY} or nothing"
        raise KitError(f"data_source must be {form}, and data_revision have no more parts: this is {data_source}")
    splits = [f"forget_{ratio}", f"retain_{100 - ratio}"]
    configs = [["Full_Set", "Test_Set", "Retain_Set", "ft_Data", "forget_*", splits[1]], splits]
    sources = [_source(*each) for each in zip(names, KINDS, [*revisions, ""], configs, strict=False)]
    folders, labels, commits = zip(*sources, strict=True)
    population = official.read_layout(folders[0], ratio, *folders[1:], names=labels)
    revisions = {label: commit for label, commit in zip(labels, commits, strict=True) if commit}
    return replace(population, notes={**population.notes, "revisions": revisions})


def _source(name: str, kind: str, revision: str, configs: list[str]) -> tuple[Path, str, str]:
    """Folder, name and commit ("" for a local folder) of the evaluation data or the training splits."""
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):  # False, where Path raises, for a name that no path can have
        if revision:
            raise KitError(f"data_revision {revision!r} is for the hub, but {name} is a folder: leave it empty")
        return folder, folder.resolve().name, ""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise KitError(f"data_source {name!r} is neither a folder nor a name on the hub, as {EVALUATION_REPOSITORY} is")
    from huggingface_hub import snapshot_download

    patterns = [*(f"{config}/train-*.parquet" for config in configs), official.PEOPLE_FILE]
    try:
        snapshot = snapshot_download(name, repo_type=kind, revision=revision or None, allow_patterns=patterns)
    except Exception as error:  # the hub's own errors, those of its HTTP library, and the disk's; none holds the token
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        advice = "check the name, data_revision, the network and the token in HF_TOKEN"
        raise KitError(f"{kind} {name} cannot be downloaded ({reason}): {advice}") from error
    return Path(snapshot), name, Path(snapshot).name
