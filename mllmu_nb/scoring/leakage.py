"""Whether what was unlearned in one view can still be asked in the other (docs/scoring.md, "Both views")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from mllmu_nb.scoring.frames import PEOPLE, VIEWS, is_model, of_metric
from mllmu_nb.scoring.registry import Metric, metrics
from mllmu_nb.scoring.summary import paired, summaries

ACROSS = "text - image"


def across_views(items: pd.DataFrame, key: Sequence[str]) -> list[dict]:
    """Cells of the view ACROSS, for the metrics that are right or wrong about one fact.

    ``items`` are scored, with ``person``; ``key`` are the columns that name a model.
    """
    cells = []
    for metric in metrics(by_fact=True, per="answer"):
        facts = paired_facts(items, metric)
        forget = paired(facts[facts["set"] == "forget"], "oracle", list(VIEWS), [*PEOPLE, "profile", "number"])
        gaps = forget.assign(**{view: forget[view] - forget[f"{view}_reference"] for view in VIEWS})
        gaps = gaps[~is_model(gaps, "oracle")].rename(columns={"text": "gap", "image_text": "gap_reference"})
        low, high = metric.bounds
        gap = replace(metric, column="gap", bounds=(low - high, high - low))
        at = {"against": "oracle", "view": ACROSS}
        cells += [row | at for row in summaries(gaps, [*key, "set"], [gap], minus=True)]
    return cells


def paired_facts(items: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """One row a fact that a run asked in both views, with the two scores in the columns ``image_text`` and ``text``."""
    asked = of_metric(items, metric.task, metric.scoring)
    asked = asked.assign(number=asked["question_id"].str.rsplit("/", n=1).str[-1], score=asked[metric.column])
    asked = asked.dropna(subset=["score"])
    same = ["run", "set", "profile", "number"]
    image, text = (asked[asked["view"] == view] for view in VIEWS)
    facts = image.merge(text[[*same, "value", "score"]], on=same, suffixes=("", "_text"))
    values = facts["value"].fillna(""), facts["value_text"].fillna("")
    unknown = (values[0] == "") | (values[1] == "")
    facts = facts[unknown | (values[0].str.casefold() == values[1].str.casefold())]
    return facts.drop(columns="view").rename(columns={"score": "image_text", "score_text": "text"})
