"""Compares methods along their path: what they keep at equal forgetting (docs/scoring.md, "Along the path")."""

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mllmu_nb.data.conversations import VIEW_OF as TRAINED_VIEW
from mllmu_nb.scoring.frames import GROUP, MODEL, PEOPLE, POOLED, REPLICATE, VIEWS, is_model, of_metric, persons
from mllmu_nb.scoring.registry import by_key
from mllmu_nb.scoring.summary import asked_differently
from mllmu_nb.statistics.intervals import SAME, crossed, interval, limits, paired_difference

HALF = 0.5  # share of the gap at which methods are ranked
PLACES = (0.25, HALF, 0.75)
AREA = "area"  # the mean of what is kept from vanilla to the last of PLACES
LEVELS = np.linspace(0, PLACES[-1], 16)
KEPT = "kept"  # likelihood score about retain people and celebrities; each set counts half
LIKELIHOOD, EXACT = "likelihood", "exact"
# What is measured along a path: name → set, measure and views.
READ = {
    "retain": ("retain", LIKELIHOOD, tuple(VIEWS)),
    "celebrity": ("celebrity", LIKELIHOOD, tuple(VIEWS)),
    "free": ("retain", EXACT, tuple(VIEWS)),
    "test": ("test", LIKELIHOOD, tuple(VIEWS)),
    "forget_free": ("forget", EXACT, tuple(VIEWS)),
    "forget_image": ("forget", LIKELIHOOD, ("image_text",)),
}
NEARBY = (0.8, 1.2)  # multiples of a run's own number of steps
RUN_AT = [*PEOPLE, *MODEL, "run"]
POINT = ["step", "set", "view", "measure", "person"]


def no_points(by: Sequence[str] = ()) -> pd.DataFrame:
    """An empty frame of points, for runs that stored no path."""
    return pd.DataFrame(columns=[*RUN_AT, *by, *POINT, "score", "items"])


class Curve(NamedTuple):
    """The path of one run: ``steps`` [points], the share of the gap ``closed`` [points], and ``read``: name in READ →
    scores [points, people]."""

    steps: np.ndarray
    closed: np.ndarray
    read: dict[str, pd.DataFrame]


def by_person(answers: pd.DataFrame) -> pd.DataFrame:
    """Sum the ``score`` of the answers along paths, and count them (``items``), for each step, set, view, measure
    (likelihood, exact) and person. ``answers`` are joined with their questions."""
    choices = of_metric(answers, "classification", LIKELIHOOD)
    right = (choices["answer"] == choices["answer_true"]).astype(float)
    free = of_metric(answers, "generation", "")
    exact = by_key()["generation", "", EXACT].function(free)
    parts = choices.assign(measure=LIKELIHOOD, score=right), free.assign(measure=EXACT, score=exact)
    rows = pd.concat([part for part in parts if len(part)])
    rows = rows.assign(person=persons, items=rows["score"].notna().astype(int)).fillna({"score": 0.0})
    return rows.groupby([*RUN_AT, *POINT], sort=False, observed=True)[["score", "items"]].sum().reset_index()


def curves(points: pd.DataFrame, closed_in: str = "trained") -> dict[str, Curve]:
    """Return run → curve for unlearned runs with an oracle about the same people, asked alike, that knows less of
    Forget than vanilla, in the view that was ``trained``, or in ``both``. ``points`` are from :func:`by_person`."""
    result, forget = {}, points[(points["set"] == "forget") & (points["measure"] == LIKELIHOOD)]
    oracles = forget[is_model(forget, "oracle")]
    alike = [*PEOPLE, *asked_differently(oracles)]
    oracles, of_run = dict(list(oracles.groupby(alike))), dict(list(forget.groupby("run")))
    trained = points[(points["modality"] != "none") & (points["after"] == "")]
    read_of = {name: _by_run(trained, *place) for name, place in READ.items()}
    for run, first in trained.drop_duplicates("run").set_index("run").iterrows():
        views = list(VIEWS) if closed_in == POOLED else [TRAINED_VIEW[first["modality"]]]
        oracle = oracles.get(tuple(first[alike]))
        if oracle is None or run not in of_run:
            continue
        mine, oracle = (rows[rows["view"].isin(views)] for rows in (of_run[run], oracle))
        if mine.empty:
            continue
        sums = mine.groupby("step")[["score", "items"]].sum()
        level, end = sums["score"] / sums["items"], oracle["score"].sum() / oracle["items"].sum()
        gap = level.iloc[0] - end
        if not gap > 0:
            continue
        read = {name: runs[run] for name, runs in read_of.items() if run in runs}
        result[run] = Curve(sums.index.to_numpy(), ((level.iloc[0] - level) / gap).to_numpy(), read)
    return result


def _by_run(points: pd.DataFrame, set_name: str, measure: str, views: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return run → scores [points, people] on this set and measure, with these views pooled."""
    here = points[(points["set"] == set_name) & (points["measure"] == measure) & points["view"].isin(views)]
    sums = here.groupby(["run", "step", "person"])[["score", "items"]].sum()
    means = (sums["score"] / sums["items"]).groupby(level="run")
    return {run: one.droplevel("run").unstack("person") for run, one in means}


def crossings(closed: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Return weights [levels, points] that interpolate to where each share is first closed; NaN if it never is."""
    weights, point = np.full((len(levels), len(closed)), nan), np.eye(len(closed))
    for row, level in enumerate(levels):
        reached = np.flatnonzero(closed >= level - 1e-9)
        if level <= 0:
            weights[row] = point[0]
        elif len(reached):
            last = reached[0]
            share = min(1.0, (level - closed[last - 1]) / (closed[last] - closed[last - 1]))
            weights[row] = (1 - share) * point[last - 1] + share * point[last]
    return weights


def kept_by_person(points: pd.DataFrame, closed_in: str = "trained", by: Sequence[str] = ()) -> pd.DataFrame:
    """Return what each run keeps at equal forgetting: one row per run, ``place`` (a share in :data:`LEVELS`, or AREA),
    ``what`` (a name in READ, or KEPT), ``set`` and person. ``value`` is the score of the person at this place, NaN if
    the run never reaches it."""
    runs, parts = points.drop_duplicates("run").set_index("run"), []
    places = np.array([*LEVELS.round(2), AREA], object)
    for run, curve in curves(points, closed_in).items():
        weights = crossings(curve.closed, LEVELS)
        area = np.trapezoid(weights, LEVELS, axis=0) / LEVELS[-1]  # NaN if the last level is never reached
        for name, scores in curve.read.items():
            people, read = scores.columns, np.vstack([weights, area]) @ scores.to_numpy()
            sides = {"run": run, "place": np.repeat(places, len(people)), "person": np.tile(people, len(places))}
            rows = pd.DataFrame(sides | {"value": read.ravel(), "what": name, "set": READ[name][0]})
            parts += [rows, rows.assign(what=KEPT)] if name in ("retain", "celebrity") else [rows]
    columns = ["run", "place", "person", "value", "what", "set"]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return frame.merge(runs[[*PEOPLE, *MODEL, *by]].reset_index(), on="run")


def kept(of_people: pd.DataFrame, by: Sequence[str] = (), minus: bool = False) -> pd.DataFrame:
    """Average the rows of :func:`kept_by_person`, with intervals: one row per GROUP, MODEL, ``by``, place, what.
    ``minus``: their differences to the column ``value_other``.

    Columns value, low, high (NaN if there is no interval), n_profiles, n_replicates (that reach the place), ``of`` (all
    replicates), and ``dots``, the value of each replicate.
    """
    columns, rows = [*GROUP, *MODEL, *by, "place", "what"], []
    sides = [of_people[name].to_numpy(float) for name in ("value", "value_other")[: 1 + minus]]
    known = np.isfinite(sides).all(axis=0)
    sets, people = (pd.factorize(of_people[name])[0] for name in ("set", "person"))
    replicates = of_people.groupby(REPLICATE).ngroup().to_numpy()
    for key, at in of_people.groupby(columns, sort=False, dropna=False).indices.items():
        reached = at[known[at]]
        mean = _mean_of_sets([side[reached] for side in sides], sets[reached], people[reached], replicates[reached])
        count = {"of": len(np.unique(replicates[at])), "n_profiles": len(np.unique(people[reached]))}
        alone = {"low": nan, "high": nan} if mean["n_replicates"] < min(2, count["of"]) else {}
        rows.append(dict(zip(columns, key, strict=True)) | mean | count | alone)
    more = ["value", "low", "high", "n_profiles", "n_replicates", "of", "dots"]
    return pd.DataFrame(rows, columns=[*columns, *more])


def _mean_of_sets(
    sides: Sequence[np.ndarray], sets: np.ndarray, people: np.ndarray, replicates: np.ndarray
) -> dict[str, Any]:
    """Return the mean of the sets' means, with equal weights, and its interval over replicates crossed with people.
    ``sides``: the values, or those of two methods, whose difference is averaged. All arrays are [rows]."""
    values, low, function = sides[0], 0.0, interval
    if len(sides) > 1:
        values, low, function = sides[0] - sides[1], -1.0, paired_difference
    units = np.unique(replicates)
    dots = tuple(of_sets(values[replicates == one], sets[replicates == one])[0] for one in units)
    row = {"value": nan, "low": nan, "high": nan, "n_replicates": len(units), "dots": dots}
    if not len(values):
        return row
    row["value"], residual = of_sets(values, sets)
    # with one replicate, the variance is over people
    estimate = crossed(residual, people, replicates if len(units) > 1 else people) if np.ptp(people) else None
    if estimate is None or estimate.variance < SAME**2 or not low < row["value"] < 1:
        # use the interval of the mean of all rows; if sets differ in size, that is another mean, so include the value
        alone = function(*(np.clip(side, 0, 1) for side in sides), people)
        return row | {"low": min(alone.low, row["value"]), "high": max(alone.high, row["value"])}
    return row | dict(zip(("low", "high"), limits(estimate._replace(mean=row["value"]), (low, 1.0)), strict=True))


def of_sets(values: np.ndarray, sets: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean of the sets' means, and each value's residual from its set, scaled to equal weights of sets."""
    codes = np.unique(sets, return_inverse=True)[1]
    size = np.bincount(codes)
    means = np.bincount(codes, values) / size
    return float(means.mean()), (values - means[codes]) * len(values) / (size[codes] * len(size))


def kept_difference(one: pd.DataFrame, other: pd.DataFrame, same: Sequence[str] = ()) -> pd.DataFrame:
    """Average ``one`` minus ``other``, rows of :func:`kept_by_person`, person by person, in rows that agree in the
    columns ``same``: as :func:`kept`, with value, low and high from -1 to 1. The model's columns are those of ``one``.
    """
    return kept(paired(one, other, same), minus=True)


def paired(one: pd.DataFrame, other: pd.DataFrame, same: Sequence[str] = (), how: str = "inner") -> pd.DataFrame:
    """The rows of ``one`` with the ``value_other`` that ``other`` has about the same people at the same place, in rows
    that agree in the columns ``same``. Both are from :func:`kept_by_person`; ``how`` as in pandas' merge."""
    on = [*PEOPLE, *same, "place", "what", "set", "person"]
    return one.merge(other[[*on, "value"]], on=on, how=how, suffixes=("", "_other"))


def coarse(
    points: pd.DataFrame, of_people: pd.DataFrame, closed_in: str = "trained", by: Sequence[str] = ()
) -> pd.DataFrame:
    """Return what interpolation costs, as :func:`kept` with ``minus``: what is kept where half of the gap is closed,
    read from every second point of each path, minus the same read from all ``points``, which is in ``of_people``."""
    number = points.groupby("run")["step"].rank(method="dense")
    few = kept_by_person(points[number % 2 == 1], closed_in, by)
    return kept(paired(few[few["place"] == HALF], of_people, ["run", *MODEL, *by]), by, minus=True)


def between_modalities(
    of_people: pd.DataFrame, names: Sequence[str], places: Sequence[float], by: Sequence[str] = ()
) -> pd.DataFrame:
    """Return text only minus image + text at equal forgetting: one row per GROUP, ``by``, place, what and method
    (``all``: all of them together) that reaches the place in both modalities, in at least one common replicate.

    ``of_people`` are from :func:`kept_by_person`, with the gap closed in both views. Columns unimodal, multimodal,
    value, low, high, n_profiles, n_replicates.
    """
    rows = of_people[of_people["what"].isin(names) & of_people["place"].isin(places) & of_people["value"].notna()]
    sides = [rows[rows["modality"] == name] for name in ("unimodal", "multimodal")]
    on = [*PEOPLE, *by, "method", "variant", "place", "what", "person"]
    pairs = sides[0].merge(sides[1][[*on, "value"]], on=on, suffixes=("", "_other"))
    count = of_people[[*GROUP, *REPLICATE]].drop_duplicates().groupby(GROUP).size()
    together = [
        _often_reached(here, count[key[: len(GROUP)]])
        for key, here in pairs.groupby([*GROUP, *by, "place", "what"], sort=False)
    ]
    # all methods together: each person's mean over the methods
    person = [*PEOPLE, *by, "place", "what", "person"]
    every = pd.concat([pairs.iloc[:0], *together]).groupby(person, as_index=False)[["value", "value_other"]].mean()
    pairs = pd.concat([pairs, every.assign(method="all", variant="canonical")])
    result, columns = [], [*GROUP, *by, "place", "what", "method", "variant"]
    for key, here in pairs.groupby(columns, sort=False):
        one, other, replicates = here["value"], here["value_other"], here.groupby(REPLICATE).ngroup()
        difference = paired_difference(one, other, here["person"], replicates=replicates)
        row = dict(zip(columns, key, strict=True)) | {"unimodal": one.mean(), "multimodal": other.mean()}
        row |= vars(difference)
        if row["n_replicates"] < min(2, count[key[: len(GROUP)]]):
            row |= {"low": nan, "high": nan}
        result.append(row)
    return pd.DataFrame(result)


def _often_reached(pairs: pd.DataFrame, replicates: int) -> pd.DataFrame:
    """Keep methods with rows in over half of the ``replicates``, and replicates in which all of these have rows."""
    replicate, method = pairs.groupby(REPLICATE).ngroup(), pairs.groupby(["method", "variant"]).ngroup()
    there = pd.crosstab(replicate, method) > 0
    usual = there.columns[there.sum() > replicates / 2]
    return pairs[method.isin(usual) & replicate.isin(there.index[there[usual].all(axis=1)])]


def edges(points: pd.DataFrame, lengths: Mapping[str, int], by: Sequence[str] = ()) -> pd.DataFrame:
    """Estimate how much ``times`` (NEARBY) as many steps would have changed the likelihood score on Forget in the
    trained view, linear between points: one row per GROUP, MODEL, ``by`` and ``times``.

    ``points`` are from :func:`by_person`; ``lengths``: run → its steps. Columns value, low, high (from -1 to 1),
    n_profiles, n_replicates, dots (of the replicates); NaN if a path does not go that far, for example because its
    learning rate falls to 0.
    """
    here = points[(points["set"] == "forget") & (points["measure"] == LIKELIHOOD)]
    here = here[here["view"] == here["modality"].map(TRAINED_VIEW)]
    tables, parts, rows = _by_run(here, "forget", LIKELIHOOD, list(VIEWS)), [], []
    for run in here["run"].unique():
        score, at = tables[run], lengths[run] * np.array([1, *NEARBY])
        score = score.reindex(score.index.union(at)).interpolate("index", limit_area="inside").loc[at]
        for times, change in zip(NEARBY, (score.iloc[1:] - score.iloc[0]).to_numpy(), strict=True):
            parts.append(pd.DataFrame({"run": run, "times": times, "person": score.columns, "value": change}))
    key, values = [*GROUP, *MODEL, *by, "times"], ["value", "low", "high", "n_profiles", "n_replicates", "dots"]
    if parts:
        runs = here.drop_duplicates("run")[[*RUN_AT, *by]]
        for names, of_people in pd.concat(parts).merge(runs, on="run").groupby(key, sort=False, dropna=False):
            replicates = of_people.groupby(REPLICATE).ngroup()
            change = interval(of_people["value"], of_people["person"], (-1.0, 1.0), replicates)
            each = tuple(of_people["value"].groupby(replicates).mean()) if replicates.nunique() > 1 else ()
            rows.append(dict(zip(key, names, strict=True)) | vars(change) | {"dots": each})
    return pd.DataFrame(rows, columns=[*key, *values])
