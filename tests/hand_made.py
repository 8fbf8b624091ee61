"""Answers whose scores are known by hand, for the tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from mllmu_nb.reporting import LETTER, LIKELIHOOD, VIEWS, Run, all_items, gates, health, tables

FACTS = 2  # numbers 0 and 1, each asked in both views


def run(method: str, modality: str, right: Callable[[int, str, int], bool], draw: int = 0, sets=("forget",)) -> Run:
    """Ten people of one forget draw (30 of three draws have the numbers 0 to 29), two facts each, in both scorings."""
    rows = []
    for name, scoring in ((s, scoring) for s in sets for scoring in ("letter", "likelihood")):
        for person in range(10 * draw, 10 * draw + 10):
            for view, number in ((view, number) for view in VIEWS for number in range(FACTS)):
                row = {"set": name, "task": "classification", "view": view, "scoring": scoring}
                row |= {"profile": f"{person:03d}", "question_id": f"{person:03d}/classification/{view}/{number}"}
                rows.append(row | {"value": f"fact {number}", "correct": float(right(person, view, number))})
    frame = pd.DataFrame(rows)
    shared = {"run": f"{method}-{modality}-{draw}", "scale": "miniature", "base_model": "llava", "forget_ratio": 10}
    shared |= {"forget_draw": draw, "method": method, "protocol": "clean", "variant": "canonical", "parsed": True}
    shared |= {"modality": modality, "answer": "A"} | dict.fromkeys(tables.SEED_COLUMNS, 0)
    shared |= dict.fromkeys(("exact", "rouge1", "rouge2", "rougeL", "bleu", "factuality"), np.nan)
    return Run(shared["run"], frame.assign(**shared), {}, {})


def numbers(models: dict[tuple[str, str], Callable], draws: int = 3, sets=("forget",), dead=()) -> tables.Numbers:
    """The runs of (method, modality) → who is right about what, on ``draws`` disjoint forget sets; ``dead``: see of."""
    return of([run(*model, right, draw, sets) for model, right in models.items() for draw in range(draws)], dead)


def of(runs: list[Run], dead=()) -> tables.Numbers:
    """What ``tables.numbers`` makes of these runs; of the models, the ``dead`` (method, modality) have collapsed."""
    items = all_items(runs)
    found = tables.differences(items, (LETTER, LIKELIHOOD))
    judged = items[health.KEY].drop_duplicates()
    judged["collapsed"] = [model in dead for model in zip(judged["method"], judged["modality"], strict=True)]
    judged = judged.assign(why="half of its answers broken")
    states = pd.DataFrame(columns=health.KEY)
    return tables.Numbers(runs, tables.pooled_scores(items), found, gates.of(found), states, judged)
