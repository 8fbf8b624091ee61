"""Tests which printed gaps exceed the noise, in published figures (:func:`gaps`) and in your own table (:func:`audit`);
docs/methods.md has the formula. ``correlation``, between answers about one person, is assumed: .1, with a range from 0
to .4. ``model_correlation`` is that of the two models' figures over people."""

from itertools import combinations, product
from math import isnan, nan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import norm

from mllmu_nb import paths
from mllmu_nb.config import Config
from mllmu_nb.data.schema import PER_TASK as QUESTIONS
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import plots, published
from mllmu_nb.reporting.runs import read_run

CORRELATIONS = (0.0, 0.1, 0.4)
LIKELY = 0.1
SEEN = float(norm.ppf(0.975))  # a gap of more standard errors exceeds the noise, at 95 %
REACH = SEEN + float(norm.ppf(0.8))  # a gap of so many is seen with 80 % power
FICTITIOUS, CELEBRITIES = 500, 153
SHOWN = {"classification": 1, "generation": 0, "cloze": 2}  # people whose questions are worked examples, not scored
EXCEEDS, COULD, UNKNOWN = "exceeds the noise", "could be noise", "cannot be said (people or spread unknown)"
CELL = ["source", "base_model", "forget_ratio", "set", "view", "metric"]


def people_behind(set_name: str, ratio: int, task: str) -> int:
    """The number of people behind a published figure, by the paper's set sizes and the released code's worked examples.
    ``set_name`` is as sources print it, ``ratio`` in per cent."""
    forget = FICTITIOUS * ratio // 100
    size = {"Forget": forget, "Test": forget, "Retain": FICTITIOUS - forget, "Real Celebrity": CELEBRITIES}[set_name]
    return size - (0 if set_name == "Real Celebrity" else SHOWN[task])


def vanilla_items() -> pd.DataFrame:
    """Scored answers of the committed vanilla model; their spread over people replaces that of published models."""
    folder = paths.runs(paths.reference()) / Config(method="vanilla", forget_ratio=10).run_id
    if not folder.is_dir():
        raise KitError(f"no run of vanilla at 10 % under {folder.parent}: it is committed, so check it out")
    return read_run(folder).items


def spread(items: pd.DataFrame, set_name: str, view: str, metric: str) -> float:
    """Standard deviation over people of their mean score, from the scored answers of one run. Forget and retain people
    were taught in the same way, so both are used as fictitious people."""
    names = {"Real Celebrity": ["celebrity"], "Test": ["test"]}.get(set_name, ["forget", "retain"])
    asked = items[items["set"].isin(names) & (items["task"] == "generation")]
    asked = asked if view == "both" else asked[asked["view"] == view]
    return float(asked.groupby("profile")[metric].mean().std())


def detectable(
    first: float, second: float, people: int, each: int, correlation: float, model_correlation: float = 0.0
) -> float:
    """The smallest difference of two shares of right answers that is detected with 80 % power at 95 %, as a share. Both
    are means over ``people`` with ``each`` questions; ``correlation`` is that between answers about one person."""
    share = (first + second) / 2
    sd = sqrt(share * (1 - share) * (1 + (each - 1) * correlation) / each)
    return _detectable(sd, sd, people, model_correlation)


def _detectable(first: float, second: float, people: int, model_correlation: float) -> float:
    """The same from the two models' standard deviations over people, in their unit."""
    return REACH * sqrt(((first - second) ** 2 + 2 * (1 - model_correlation) * first * second) / people)


def smallest(first: Any, second: Any, correlation: float, model_correlation: float = 0.0) -> float:
    """The smallest detectable gap of two figures, in their unit; NaN if the number of people is unknown. A figure has
    ``value``, ``people``, ``questions`` (per person), ``top``, the best value of its measure, and ``sd``: the standard
    deviation over people if it is not a share of right answers, else NaN."""
    people = min(first.people, second.people)
    if not people >= 2:
        return nan
    if not np.isnan([first.sd, second.sd]).any():
        return _detectable(first.sd, second.sd, people, model_correlation)
    each = min(first.questions, second.questions)
    shares = first.value / first.top, second.value / second.top
    return first.top * detectable(*shares, people, each, correlation, model_correlation)


def compare(figures: pd.DataFrame, by: list[str], model_correlation: float) -> pd.DataFrame:
    """Compare every two methods that share a cell: one row per cell ``by``, pair and one of CORRELATIONS, with the
    ``gap`` (first minus second), the ``noise`` (a gap above it exceeds it), the ``detectable`` gap, and the
    ``verdict``. ``figures`` have the column ``method`` and those that :func:`smallest` reads."""
    rows = []
    for key, cell in figures.groupby(by, sort=False):
        for (a, b), correlation in product(combinations(cell.itertuples(), 2), CORRELATIONS):
            gap, limit = a.value - b.value, smallest(a, b, correlation, model_correlation)
            chance = limit * SEEN / REACH
            verdict = UNKNOWN if isnan(limit) else EXCEEDS if abs(gap) > chance else COULD
            rows.append([*key, a.method, b.method, gap, a.people, a.questions, correlation, chance, limit, verdict])
    pair = ["first", "second", "gap", "people", "questions", "correlation", "noise", "detectable", "verdict"]
    return pd.DataFrame(rows, columns=[*by, *pair])


def gaps(figures: pd.DataFrame, items: pd.DataFrame, model_correlation: float = 0.0) -> pd.DataFrame:
    """Compare every two methods that one source prints in one cell, by :func:`compare`. Gaps are shares, or in the unit
    of the source if the kit does not know the metric.

    ``figures`` are from :func:`published.load`; ``items`` are the answers of a run whose spread over people replaces
    that of ROUGE and BLEU. This spread contains their correlation.
    """
    behind = pd.DataFrame([_behind(row, items) for row in figures.itertuples()], figures.index)
    return compare(figures.assign(**behind, top=1.0), [*CELL, "task"], model_correlation)


def _behind(figure: Any, items: pd.DataFrame) -> dict:
    counterpart = published.COUNTERPARTS.get(figure.metric)
    if counterpart is None:
        return {"task": "", "value": figure.value, "people": nan, "questions": nan, "sd": nan}
    task, view = counterpart.task, published.OURS["view"][figure.view]
    people, each = people_behind(figure.set, figure.forget_ratio, task), QUESTIONS[task] * (2 if view == "both" else 1)
    sd = nan if counterpart.metric == "accuracy" else spread(items, figure.set, view, counterpart.metric)
    return {"task": task, "value": figure.value / counterpart.times, "people": people, "questions": each, "sd": sd}


def shares(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The number of gaps in each group ``by``, and the share of them that exceeds the noise at each correlation."""
    known = table[table["verdict"] != UNKNOWN].assign(exceeds=table["verdict"] == EXCEEDS)
    wide = known.pivot_table(index=by, columns="correlation", values="exceeds", aggfunc="mean", sort=False)
    wide = wide.rename(columns="ρ = {:g}".format)
    return wide.assign(gaps=known.groupby(by).size() // known["correlation"].nunique()).rename_axis(columns=None)


# -- your own table ---------------------------------------------------------------------------------------------

ASSUMED = ("people", "questions", "sd", "top")  # columns that a table may have
EMPTY = ["", "NA", "N/A", "n/a", "NaN", "nan"]  # cells without a figure
AUDITED = ["measure", "first", "second", "gap", "noise", "least", "most", "detectable", "verdict"]


def read(path: Path | str) -> pd.DataFrame:
    """Read a table of scores, one row per figure: ``method``, ``measure``, ``value``, and those of ASSUMED that the
    file has. The file has these columns, or ``method`` and one per measure, as papers print it; empty cells are left
    out. Raises KitError if a column is missing, a figure is no number, or a method has two for a measure."""
    try:
        # names stay text: a method may be called "None" or "1"
        names = {"method": str, "measure": str}
        table = pd.read_csv(path, dtype=names, keep_default_na=False, na_values=EMPTY)
    except UnicodeDecodeError:
        raise KitError(f"cannot read {path}: save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise KitError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if "method" not in table:
        hint = ": separate columns by commas" if any(sign in str(table.columns[0]) for sign in ";\t") else ""
        raise KitError(f"{path} has no column 'method', only {', '.join(map(str, table))}{hint}")
    if "value" not in table:
        beside = [name for name in ("method", *ASSUMED) if name in table]
        table = table.melt(id_vars=beside, var_name="measure")
    for name in [one for one in ("value", *ASSUMED) if one in table]:
        numbers = pd.to_numeric(table[name].astype(str).str.removesuffix("%"), errors="coerce")
        if (broken := table[name].notna() & numbers.isna()).any():
            raise KitError(f"{path}: {table[name][broken.idxmax()]!r} in the column {name} is not a number")
        table[name] = numbers
    table = table.assign(measure=table.get("measure", "")).dropna(subset=["value"])
    if table.empty:
        raise KitError(f"{path} has no score: it needs one row per method and one column per measure")
    if (twice := table.duplicated(["method", "measure"])).any():
        method, measure = table.loc[twice, ["method", "measure"]].iloc[0]
        raise KitError(f"{path}: {method!r} has two figures for {measure!r}: keep one, or give them different names")
    return table


def audit(table: pd.DataFrame, questions: int = 1, model_correlation: float = 0.0) -> pd.DataFrame:
    """Compare every two methods on each measure (columns AUDITED), in the unit of the table; ``least`` and ``most`` are
    the noise over the assumed range of the correlation within a person.

    ``questions`` (per person and measure) are used if the table does not say; ``top``, a measure's best value, is then
    100. Without a number of ``people``, the verdict is unknown. A measure that is no share of right answers needs a
    column ``sd``, the standard deviation over people. Raises KitError for a share outside 0 to ``top``, for shares up
    to 1 if ``top`` is 100 and no column says so, and for impossible assumptions.
    """
    given = table["top"].notna() if "top" in table else pd.Series(False, table.index)
    assumed = {"people": nan, "questions": questions, "sd": nan, "top": 100.0}
    table = table.assign(**{name: table[name].fillna(v) if name in table else v for name, v in assumed.items()})
    table = table.assign(measure=table["measure"].astype(object).fillna(""))
    for name, least in {"people": 2, "questions": 1, "sd": 0}.items():
        if (wrong := (table[name] < least) | np.isinf(table[name])).any():
            raise KitError(f"{name} of {table[wrong].iloc[0]['method']!r} is below {least} or infinite")
    if not 0 <= model_correlation <= 1:
        raise KitError("model_correlation is a share from 0 to 1")
    for measure, rows in table.groupby("measure", sort=False):
        best = rows["top"].iloc[0]
        if rows["sd"].notna().all():  # it is judged by its spread, whatever its best value
            continue
        if (rows["top"] != best).any():
            raise KitError(f"the measure {measure!r} has several best values (column top): give one")
        if not rows["value"].between(0, best).all():
            raise KitError(f"a value of {measure!r} lies outside 0 to {best:g}: name its best value (column top)")
        if best == 100 and not given[rows.index].any() and 0 < rows["value"].max() <= 1:
            said = "say that its best value is 1 (column top), or write them in per cent"
            raise KitError(f"all values of {measure!r} lie between 0 and 1: {said}")
    gaps = compare(table, ["measure"], model_correlation)
    ends = gaps.groupby(["measure", "first", "second"])["noise"].agg(least="min", most="max")
    gaps = gaps[gaps["correlation"] == LIKELY].join(ends, on=ends.index.names)
    return gaps[AUDITED].reset_index(drop=True)


@plots.styled
def figure(gaps: pd.DataFrame) -> Figure:
    """Draw the 24 largest gaps, each with the noise as its whisker: a gap whose whisker reaches 0 could be noise.
    Filled: exceeds the noise; hollow: does not. Raises KitError if no gap could be judged."""
    known = gaps[gaps["verdict"] != UNKNOWN]
    if known.empty:
        raise KitError("no gap has a known number of people")
    known = known.assign(size=known["gap"].abs()).nlargest(24, "size")
    exceeds = known["verdict"] == EXCEEDS
    names = known["first"] + " − " + known["second"] + known["measure"].map(lambda name: f", {name}" if name else "")
    drawn = known.assign(
        name=["\n".join(plots.wrap(name, 0.45 * plots.PAGE, most=6)) for name in names],
        low=known["gap"] - known["noise"],
        high=known["gap"] + known["noise"],
        look=[plots.Look(plots.RIGHT if one else plots.GREY, filled=one) for one in exceeds],
    )
    below = ["Bars: 1.96 standard errors to both sides. Hollow and grey: could be noise."]
    texts = {"title": "A gap whose whisker reaches 0 could be noise", "unit": "gap, in the unit of the table"}
    return plots.forest(drawn, y="name", x="gap", right="verdict", below=below, **texts)
