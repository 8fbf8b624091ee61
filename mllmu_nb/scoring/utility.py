"""Utility: what a model can do that needs no facts about people (docs/scoring.md, "Utility")."""

import pandas as pd

from mllmu_nb.scoring.choice import letters
from mllmu_nb.scoring.registry import metric

UTILITY_KEY = ("classification", "utility", "accuracy")
PANELS = {  # scale → set → heading
    "miniature": {"reading": "Reading", "seeing": "Seeing", "instructed": "Instructed"},
    "paper": {"mmmu": "MMMU", "llava_bench": "LLaVA-Bench"},
}
ABOUT = {
    "miniature": "Utility is about nobody: facts in the prompt, unseen faces, and both under a harmless system prompt.",
    "paper": "Utility is lmms-eval's: right answers in MMMU (val), the judge's grade in tenths in LLaVA-Bench.",
}


@metric(
    UTILITY_KEY[2], label="Utility %", task=UTILITY_KEY[0], scoring=UTILITY_KEY[1], column="useful", margin=0.1,
    table="", optional=True, sets=tuple(name for panels in PANELS.values() for name in panels),
)  # fmt: skip
def useful(items: pd.DataFrame) -> pd.Series:
    """1 if the answer gives the right letter, else 0; if lmms-eval scored the answer, its score."""
    right = (letters(items) == items["answer_true"]).astype(float)
    return items["score"].fillna(right) if "score" in items else right
