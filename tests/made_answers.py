"""Answers in the form that runs store, with scores known by hand, for tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from mllmu_nb.scoring.frames import SEEDS, VIEWS
from mllmu_nb.scoring.score import item_scores

FACTS = 2  # numbers 0 and 1, both asked in each view
Right = Callable[[int, str, int], bool]  # (person, view, number) → whether the answer is right
ORACLE, VANILLA, GA, NPO = ("oracle", "none"), ("vanilla", "none"), ("ga", "multimodal"), ("npo", "multimodal")


def run(method: str, modality: str = "none", draw: int = 0, **more) -> dict:
    """Return the columns of a run."""
    names = {"run": f"{method}-{modality}-{draw}", "scale": "miniature", "base_model": "llava", "forget_ratio": 10}
    names |= {"replicate": draw, "method": method, "protocol": "clean", "variant": "canonical", "modality": modality}
    return names | {"after": "", "taught": "", **dict.fromkeys(SEEDS, 0)} | more


def choices(right: Right, draw: int = 0, sets: Iterable[str] = ("forget",), **columns) -> pd.DataFrame:
    """Return choices of ten people of one forget draw (three draws: numbers 0 to 29), two facts each, in both scorings.

    The right option is always A; it has the highest likelihood if the answer is ``right``.
    """
    rows = []
    for set_name in sets:
        for person in range(10 * draw, 10 * draw + 10):
            for view, number in ((view, number) for view in VIEWS for number in range(FACTS)):
                row = {"set": set_name, "task": "classification", "view": view, "profile": f"{person:03d}", "order": 0}
                row |= {"question_id": f"{person:03d}/classification/{view}/{number}", "answer_true": "A"}
                row |= {"value": f"fact {number}", "attribute": "job", "shots": 0, "tokens": 2, "rivals": ()}
                knows = bool(right(person, view, number))
                rows.append(row | {"scoring": "letter", "answer": "A" if knows else "C."})
                likelihoods = {"option_A": -1.0 if knows else -3.0} | {f"option_{x}": -2.0 for x in "BCD"}
                rows.append(row | {"scoring": "likelihood", "answer": ""} | likelihoods)
    return pd.DataFrame(rows).assign(**columns)


def free(answers: Iterable[str], value: str = "Turin, Italy", set_name: str = "retain", **columns) -> pd.DataFrame:
    """Return free answers about ten people, with alternating views."""
    rows = []
    for number, answer in enumerate(answers):
        row = {"set": set_name, "task": "generation", "view": ("image_text", "text")[number % 2], "scoring": ""}
        row |= {"profile": f"{number // 2 % 10:03d}", "question_id": f"g{number}", "order": 0, "answer": answer}
        row |= {"answer_true": f"Amara Urban lives in {value}.", "value": value, "attribute": "residence"}
        rows.append(row | {"rivals": ("Oslo, Norway",), "shots": 0, "tokens": 9})
    return pd.DataFrame(rows).assign(**columns)


def scored(models: dict[tuple[str, str], Right], draws: int = 3, sets: Iterable[str] = ("forget",)) -> pd.DataFrame:
    """Score choices on ``draws`` disjoint forget sets. ``models``: (method, modality) → which answers are right."""
    runs = [(model, right, draw) for model, right in models.items() for draw in range(draws)]
    return item_scores(pd.concat([choices(right, draw, sets, **run(*model, draw)) for model, right, draw in runs]))


def cell(cells: pd.DataFrame, method: str, against: str = "", **where) -> dict:
    """Return one cell of a method: likelihood accuracy on the forget set, views pooled, unless ``where`` differs."""
    usual = {"after": "", "set": "forget", "view": "both", "scoring": "likelihood", "metric": "accuracy"}
    at = {"method": method, "against": against} | usual | where
    [row] = cells[np.all([cells[column] == value for column, value in at.items()], axis=0)].to_dict("records")
    return row
