"""Which printed gaps exceed the noise: what differences between published figures can be told from chance.

Papers print a figure a method and no interval. How far two of them must lie apart follows from the numbers of people
and questions behind them, which the benchmark fixes (``people_behind``), and from how alike the answers about one
person are, which nobody prints: it is assumed, .1 unless told otherwise, with 0 and .4 as its range. A gap exceeds the
noise where it is larger than the difference that a comparison at 95 % finds with 80 % power:

    detectable = (1.96 + 0.84) · sqrt((1 - together) · (v1 + v2))

v1 and v2 are the two figures' variances and ``together`` the correlation of the two models' figures over people: 0
unless told otherwise, as no paper prints answers. Models of one vanilla model agree more than that, so a paired
comparison could tell more apart.
"""

from __future__ import annotations

from itertools import combinations
from math import nan, sqrt

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from scipy.stats import norm

from mllmu_nb import paths
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import figures, published, read_run

CORRELATIONS = (0.0, 0.1, 0.4)
LIKELY = 0.1
LEVEL, POWER = 0.95, 0.8
REACH = float(norm.ppf((1 + LEVEL) / 2) + norm.ppf(POWER))
FICTITIOUS, CELEBRITIES = 500, 153
QUESTIONS = {"classification": 5, "generation": 2, "cloze": 2}  # a person in one view
SHOWN = {"classification": 1, "generation": 0, "cloze": 2}  # people whose questions are worked examples: not scored
EXCEEDS, COULD, UNKNOWN = "exceeds the noise", "could be noise", "cannot be said (n unknown)"
CELL = ["source", "base_model", "forget_ratio", "set", "view", "metric"]
TASKS = {"classification": "Multiple choice", "cloze": "Cloze", "generation": "ROUGE"}


def people_behind(set_name: str, ratio: int, task: str) -> int:
    """How many people a published figure is a mean over, by the paper's set sizes and the released code's examples.

    ``set_name`` as sources print it, ``ratio`` in per cent. Multiple choice about celebrities has no worked examples.
    """
    forget = FICTITIOUS * ratio // 100
    size = {"Forget": forget, "Test": forget, "Retain": FICTITIOUS - forget, "Real Celebrity": CELEBRITIES}[set_name]
    return size - (0 if (set_name, task) == ("Real Celebrity", "classification") else SHOWN[task])


def lender() -> pd.DataFrame:
    """Answers of the committed vanilla model, whose people's spread stands in for that of published models."""
    return read_run(paths.committed_runs("miniature") / "llava-r10-d0-vanilla-none-s0").items


def spread(items: pd.DataFrame, set_name: str, view: str, metric: str) -> float:
    """Standard deviation over people of their mean score, from the answers of one run (``items.parquet``).

    Forget and retain people were taught alike, so both stand for the fictitious ones.
    """
    names = ["celebrity"] if set_name == "Real Celebrity" else ["test"] if set_name == "Test" else ["forget", "retain"]
    asked = items[items["set"].isin(names) & (items["task"] == "generation")]
    asked = asked if view == "both" else asked[asked["view"] == view]
    means = asked.groupby("profile")[metric].mean()
    if len(means) < 2:
        raise KitError(f"no spread of {metric} on {', '.join(names)}: the run asked {len(means)} people")
    return float(means.std())


def detectable(first: float, second: float, people: int, each: int, correlation: float, together: float = 0.0) -> float:
    """The smallest difference of two shares of right answers that is found with 80 % power at 95 %, as a share.

    Both are means over ``people`` with ``each`` questions, whose answers are correlated by ``correlation``: n answers
    are worth n / (1 + (each - 1) · correlation). Their variance is that of the mean of both shares.
    """
    share = (first + second) / 2
    variance = share * (1 - share) * (1 + (each - 1) * correlation) / (people * each)
    return REACH * sqrt(2 * (1 - together) * variance)


def gaps(found: pd.DataFrame, items: pd.DataFrame, correlations=CORRELATIONS, together: float = 0.0) -> pd.DataFrame:
    """Every pair of methods that one source prints in one cell: a row a pair and assumed correlation.

    ``found`` as from :func:`published.load`; ``items`` are the answers of the run that lends its people's spread to
    ROUGE and BLEU, whose correlation is in that spread and not assumed. Columns: CELL, ``task``, ``first``, ``second``,
    ``gap`` (first minus second, a share; of a measure that is not known, in its source's unit), ``people``,
    ``questions`` (a person), ``correlation``, ``detectable`` and ``verdict``. A measure whose numbers of questions are
    not known has NaN and says so.
    """
    rows = []
    for key, cell in found.dropna(subset=["value"]).groupby(CELL, sort=False):
        named = dict(zip(CELL, key, strict=True))
        for a, b in combinations(cell.itertuples(), 2):
            for correlation in correlations:
                pair = {"first": a.method, "second": b.method, "correlation": correlation}
                rows.append({**named, **pair, **_judged(named, a.value, b.value, items, correlation, together)})
    columns = [*CELL, "task", "first", "second", "gap", "people", "questions", "correlation", "detectable", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def shares(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Gaps for each group of ``gaps``' rows: their number and the share that exceeds the noise at each correlation."""
    known = table[table["verdict"] != UNKNOWN].assign(exceeds=table["verdict"] == EXCEEDS)
    wide = known.pivot_table(index=by, columns="correlation", values="exceeds", aggfunc="mean", sort=False)
    return wide.assign(gaps=known.groupby(by).size() // known["correlation"].nunique()).rename_axis(columns=None)


@figures.styled
def figure(table: pd.DataFrame) -> Figure:
    """Each gap in units of the detectable one: a mark at the likely correlation, a line over the assumed range.

    A row a task, set and ratio, one column; right of the line at 1 a gap exceeds the noise, and the share that does is
    written beside the row.
    """
    known = table[table["verdict"] != UNKNOWN]
    known = known.assign(ratio=known["gap"].abs() / known["detectable"].where(known["detectable"] > 0, np.inf))
    keys = ["task", "set", "forget_ratio"]
    order = {task: place for place, task in enumerate(TASKS)}
    rows = sorted(known[keys].drop_duplicates().itertuples(index=False, name=None), key=lambda k: (order[k[0]], *k[1:]))
    if not rows:
        raise KitError("no gap has a known number of questions")
    result = Figure(figsize=(figures.COLUMN, 0.7 + 0.36 * len(rows)), layout="constrained")
    axes = result.subplots()
    most = known["ratio"].max()
    for place, key in enumerate(rows):
        here = known[(known[keys] == list(key)).all(axis=1)]
        pairs = here.groupby(["source", "base_model", "view", "metric", "first", "second"], sort=False)["ratio"]
        low, high = pairs.min().to_numpy(), pairs.max().to_numpy()
        middle = here[here["correlation"] == LIKELY]["ratio"].to_numpy()
        beside = place + np.linspace(-0.3, 0.3, len(middle))[np.argsort(np.argsort(middle, kind="stable"))]
        colours = np.where(middle > 1, figures.RIGHT, figures.GREY)
        axes.hlines(beside, low, high, color=colours, linewidth=0.4, alpha=0.6)
        axes.scatter(middle, beside, s=4, color=colours, linewidth=0, zorder=3)
        told = f"{(middle > 1).sum()} of {len(middle)}"
        axes.text(1.02, place, told, transform=axes.get_yaxis_transform(), va="center", fontsize=figures.SMALL)
    axes.axvline(1, color=figures.INK, linewidth=0.7)
    names = [f"{TASKS[task]}, {name.replace('Real ', '')}, {ratio} %" for task, name, ratio in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_xscale("function", functions=(np.sqrt, np.square))  # room for the small ones
    axes.set_xticks([tick for tick in (0, 1, 2, 5, 10, 20, 50) if tick <= most or tick <= 1])
    axes.set(xlim=(0, 1.05 * max(most, 1.0)), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel("printed gap ÷ smallest detectable gap")
    axes.text(1.02, -0.6, "exceed", transform=axes.get_yaxis_transform(), fontsize=figures.SMALL)
    axes.tick_params(axis="y", length=0)
    seaborn.despine(result, left=True)
    return result


def _judged(cell: dict, first: float, second: float, items: pd.DataFrame, correlation: float, together: float) -> dict:
    """What :func:`gaps` says of one pair of figures, which are in the unit of their source."""
    counterpart = published.COUNTERPARTS.get(cell["metric"])
    if counterpart is None:
        said = {"task": "", "gap": first - second, "people": nan, "questions": nan}
        return said | {"detectable": nan, "verdict": UNKNOWN}
    first, second = first / counterpart.times, second / counterpart.times
    view = published.OURS["view"][cell["view"]]
    people = people_behind(cell["set"], cell["forget_ratio"], counterpart.task)
    each = QUESTIONS[counterpart.task] * (2 if view == "both" else 1)
    if counterpart.metric == "accuracy":
        limit = detectable(first, second, people, each, correlation, together)
    else:
        deviation = spread(items, cell["set"], view, counterpart.metric)
        limit = REACH * deviation * sqrt(2 * (1 - together) / people)
    verdict = EXCEEDS if abs(first - second) > limit else COULD
    said = {"task": counterpart.task, "gap": first - second, "people": people, "questions": each}
    return said | {"detectable": limit, "verdict": verdict}
