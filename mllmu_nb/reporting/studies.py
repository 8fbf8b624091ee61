"""What the studies have in common when they are read: where they are found, and answers summed by person."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mllmu_nb import paths
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import CLOZE, EXACT, GROUP, LETTER, LIKELIHOOD, ROUGE_L, Run, all_items, gates, read_run, tables
from mllmu_nb.stages import RECORD, read_json

MEASURES = {"likelihood": LIKELIHOOD, "letter": LETTER, "rougeL": ROUGE_L, "exact": EXACT, "cloze": CLOZE}
REFERENCES = ("vanilla", "oracle")  # what a gate is made of


def found(study: str, scale: str = "miniature") -> Path:
    """The folder of one's own study, else that of the one that came with the project. KitError without both."""
    for folder in (paths.study(scale, study), paths.committed_study(scale, study)):
        if (folder / RECORD).is_file():
            return folder
    command = f"python -m mllmu_nb study {study}"
    raise KitError(f"the study {study} is not there at scale {scale}: `{command}` makes it on the miniature")


def line(folder: Path) -> str:
    """Whose study it is that is shown: one's own, or the one that came with the project."""
    committed = paths.committed_study(folder.parent.name, folder.name)
    whose = "the study that comes with the project" if folder == committed else "your own study"
    return f"{whose}, forget draws {read_json(folder / RECORD)['forget_draws']}"


def gates_of(folder: Path) -> pd.DataFrame:
    """The memorisation gates (:mod:`~mllmu_nb.reporting.gates`) of the scores in a study, which itself has no oracle.

    They are those of the runs of vanilla and the oracle about the same people, with the study's base model, protocol,
    forget ratio and training seed: one's own, else those that came with the project. No row where there are none.
    """
    record, scale = read_json(folder / RECORD), folder.parent.name
    for root in (paths.runs(scale), paths.committed_runs(scale)):
        finished = sorted(path.parent for name in REFERENCES for path in root.glob(f"*-{name}-*/items.parquet"))
        found = [run for run in map(read_run, finished) if _is_of(run, record)]
        if {run["method"] for run in found} == set(REFERENCES):
            return gates.of(tables.differences(all_items(found), MEASURES.values()))
    return pd.DataFrame(columns=[*gates.AT, "gate"])


def _is_of(run: Run, record: dict) -> bool:
    """Whether a run's people and vanilla are those of a study."""
    given = record["parameters"]
    alike = all(str(run[name]) == str(given[name]) for name in (*GROUP, "train_seed"))
    return alike and run.data.get("data_hash") == record["data_hash"]


def by_person(items: pd.DataFrame) -> pd.DataFrame:
    """Answers summed by person: a row a set, view, measure (:data:`MEASURES`) and profile, ``score`` the sum of its
    ``items`` scores. Intervals need no more, and the answers of hundreds of models become a small file."""
    parts = []
    for name, measure in MEASURES.items():
        asked = items[(items["task"] == measure.task) & (items["scoring"] == measure.scoring)]
        scores = asked[measure.column].astype(float)
        summed = asked.assign(score=scores, items=scores.notna()).groupby(["set", "view", "profile"], sort=False)
        parts.append(summed[["score", "items"]].sum().reset_index().assign(measure=name))
    found = pd.concat(parts, ignore_index=True)[["set", "view", "measure", "profile", "score", "items"]]
    return found.astype({"score": float, "items": int})
