"""Which printed gaps exceed the noise: which differences between published figures are more than chance.

Papers print a figure a method and no interval. How far two of them must lie apart follows from the numbers of people
and questions behind them, which the benchmark fixes (:func:`people_behind`), and from how alike the answers about one
person are, which nobody prints: a correlation is assumed, .1 with a range from 0 to .4. docs/methods.md has the
formula. ``together`` is the correlation of the two models' figures over people, 0 unless it is given: models of one
vanilla agree more than that, so a paired comparison could detect more.
"""

from __future__ import annotations

from itertools import combinations, product
from math import isnan, nan, sqrt
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from mllmu_nb import paths
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import published
from mllmu_nb.reporting.runs import columns_of, read_run
from mllmu_nb.stages import RECORD, read_json

CORRELATIONS = (0.0, 0.1, 0.4)
LIKELY = 0.1
LEVEL, POWER = 0.95, 0.8
REACH = float(norm.ppf((1 + LEVEL) / 2) + norm.ppf(POWER))
FICTITIOUS, CELEBRITIES = 500, 153
QUESTIONS = {"classification": 5, "generation": 2, "cloze": 2}  # a person in one view
SHOWN = {"classification": 1, "generation": 0, "cloze": 2}  # people whose questions are worked examples: not scored
EXCEEDS, COULD, UNKNOWN = "exceeds the noise", "could be noise", "cannot be said (n unknown)"
CELL = ["source", "base_model", "forget_ratio", "set", "view", "metric"]


def people_behind(set_name: str, ratio: int, task: str) -> int:
    """How many people a published figure is a mean over, by the paper's set sizes and the released code's examples.

    ``set_name`` as sources print it, ``ratio`` in per cent. Multiple choice about celebrities has no worked examples.
    """
    forget = FICTITIOUS * ratio // 100
    size = {"Forget": forget, "Test": forget, "Retain": FICTITIOUS - forget, "Real Celebrity": CELEBRITIES}[set_name]
    return size - (0 if (set_name, task) == ("Real Celebrity", "classification") else SHOWN[task])


def vanilla_items() -> pd.DataFrame:
    """Scored answers of the committed vanilla model, whose people's spread stands in for that of published models."""
    wanted = {"method": "vanilla", "after": "", "forget_ratio": 10, "replicate": 0, "train_seed": 0}
    for record in sorted(paths.runs(paths.reference()).glob(f"*/{RECORD}")):
        if wanted.items() <= columns_of(read_json(record)).items():
            return read_run(record.parent).items
    raise KitError(f"no run of vanilla at 10 % under {paths.runs(paths.reference())}: it is committed, so check it out")


def spread(items: pd.DataFrame, set_name: str, view: str, metric: str) -> float:
    """Standard deviation over people of their mean score, from the scored answers of one run.

    Forget and retain people were taught alike, so both stand for the fictitious ones.
    """
    names = {"Real Celebrity": ["celebrity"], "Test": ["test"]}.get(set_name, ["forget", "retain"])
    asked = items[items["set"].isin(names) & (items["task"] == "generation")]
    asked = asked if view == "both" else asked[asked["view"] == view]
    return float(asked.groupby("profile")[metric].mean().std())


def detectable(first: float, second: float, people: int, each: int, correlation: float, together: float = 0.0) -> float:
    """The smallest difference of two shares of right answers that is detected with 80 % power at 95 %, as a share.

    Both are means over ``people`` with ``each`` questions, whose answers are correlated by ``correlation``: n answers
    are worth n / (1 + (each - 1) · correlation). Their variance is that of the mean of both shares.
    """
    share = (first + second) / 2
    variance = share * (1 - share) * (1 + (each - 1) * correlation) / (people * each)
    return REACH * sqrt(2 * (1 - together) * variance)


def smallest(first: Any, second: Any, correlation: float, together: float = 0.0, top: float = 1.0) -> float:
    """The smallest detectable gap of two figures, in their unit, whose best value is ``top``; NaN where the number of
    people is unknown. A figure has ``value``, ``people``, ``questions`` (a person) and ``sd``: a standard deviation
    over people where it is no share of right answers, else NaN."""
    people = min(first.people, second.people)
    if not people >= 2:
        return nan
    if not np.isnan([first.sd, second.sd]).any():
        return REACH * sqrt((1 - together) * (first.sd**2 + second.sd**2) / people)
    each = min(first.questions, second.questions)
    return top * detectable(first.value / top, second.value / top, people, each, correlation, together)


def gaps(figures: pd.DataFrame, items: pd.DataFrame, together: float = 0.0) -> pd.DataFrame:
    """Every pair of methods that one source prints in one cell: a row a pair and assumed correlation.

    ``figures`` as from :func:`published.load`; ``items`` are the answers of the run whose people's spread stands in for
    ROUGE and BLEU; their correlation is in that spread and not assumed. Columns: CELL, ``task``, ``first``, ``second``,
    ``gap`` (first minus second, a share; of a metric that is not known, in its source's unit), ``people``,
    ``questions`` (a person), ``correlation``, ``detectable`` and ``verdict``. A metric whose numbers of questions are
    not known has NaN and says so.
    """
    behind = pd.DataFrame([_behind(row, items) for row in figures.itertuples()], figures.index)
    rows = []
    for key, cell in figures.assign(**behind).groupby(CELL, sort=False):
        for (a, b), correlation in product(combinations(cell.itertuples(), 2), CORRELATIONS):
            gap, limit = a.value - b.value, smallest(a, b, correlation, together)
            verdict = UNKNOWN if isnan(limit) else EXCEEDS if abs(gap) > limit else COULD
            rows.append([*key, a.task, a.method, b.method, gap, a.people, a.questions, correlation, limit, verdict])
    columns = [*CELL, "task", "first", "second", "gap", "people", "questions", "correlation", "detectable", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def _behind(figure: Any, items: pd.DataFrame) -> dict:
    """What is known of a printed figure, its value as a share."""
    counterpart = published.COUNTERPARTS.get(figure.metric)
    if counterpart is None:
        return {"task": "", "value": figure.value, "people": nan, "questions": nan, "sd": nan}
    task, view = counterpart.task, published.OURS["view"][figure.view]
    people, each = people_behind(figure.set, figure.forget_ratio, task), QUESTIONS[task] * (2 if view == "both" else 1)
    sd = nan if counterpart.metric == "accuracy" else spread(items, figure.set, view, counterpart.metric)
    return {"task": task, "value": figure.value / counterpart.times, "people": people, "questions": each, "sd": sd}


def shares(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Gaps for each group of ``gaps``' rows: their number and the share that exceeds the noise at each correlation."""
    known = table[table["verdict"] != UNKNOWN].assign(exceeds=table["verdict"] == EXCEEDS)
    wide = known.pivot_table(index=by, columns="correlation", values="exceeds", aggfunc="mean", sort=False)
    return wide.assign(gaps=known.groupby(by).size() // known["correlation"].nunique()).rename_axis(columns=None)
