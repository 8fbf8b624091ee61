"""Which method comes nearest to the oracle, which of them can be told apart, and whether published lists agree.

Methods are ranked on the forget set by the distance |method − oracle|: below the oracle is as wrong as above it. At
least three disjoint forget sets are pooled, since one set of ten people ranks those people as much as the methods.

Two distances are equal where the gaps are equal or opposite, and both of these are means over people (A − B, and
A + B − 2 × oracle): a pair is told apart only if both are refuted, by the larger of their p-values (an
intersection-union test, Berger 1982), which needs no guess at the signs and holds where a gap is near 0. A mean of
|method − oracle| taken person by person would not do: a person's few answers are noise enough to put even the oracle's
double at a distance.
"""

from __future__ import annotations

import itertools
from math import nan
from typing import NamedTuple

import pandas as pd

from mllmu_nb.errors import KitError
from mllmu_nb.scoring.frames import DRAW, GROUP, MODEL, PAIRED_ON, POOLED, is_model, of_metric, persons
from mllmu_nb.scoring.gates import OPEN
from mllmu_nb.scoring.registry import DOWN, FORGOTTEN, Metric, by_key, metrics
from mllmu_nb.statistics.intervals import holm, paired_difference, paired_p
from mllmu_nb.statistics.ranking import kendall_tau, shared_letters, smallest_p

NEEDED = 3  # disjoint forget sets
LEVEL = 0.05  # of the whole family of comparisons of a table
UNRANKED = ("base", "vanilla", "oracle")
SHARED = 4  # methods that a published list must have in common with ours
KEY = ["task", "scoring", "metric"]
AT = ["trained", *KEY]
PAIR_COLUMNS = [*GROUP, *AT, "a", "b", "difference", "low", "high", "n_profiles", "p"]
SHUT = "Gate closed: vanilla is not shown to be above the oracle, so nothing shows that there was something to forget."
RANKED, COLLAPSED, MISSING, FEWER, BEHIND_GATE = "ranked", "collapsed", "missing", "fewer sets", "gate closed"


class Ranking(NamedTuple):
    """``methods``: a row a GROUP, ``trained`` modality, main metric and model, with its gap (``value``, ``low``,
    ``high``), ``distance``, ``standing`` (ranked, collapsed, missing, fewer sets, gate closed), ``place``, ``group``
    (letters) and ``note``. ``pairs``: a row a comparison of two models ``a`` and ``b`` (MODEL as tuples), with the
    ``difference`` of their distances, ``low``, ``high``, ``p``, ``p_holm`` and ``apart``. ``sets``: GROUP → number of
    forget sets; ``refused``: GROUP → why its models cannot be ranked."""

    methods: pd.DataFrame
    pairs: pd.DataFrame
    sets: dict[tuple, int]
    refused: dict[tuple, str]


def ranking(items: pd.DataFrame, cells: pd.DataFrame, judged: pd.DataFrame) -> Ranking:
    """The models of every GROUP, ranked for every trained modality and main metric, views pooled.

    ``items`` are scored, ``cells`` and ``judged`` made of them. What trains on no modality (prompting) stands in both.
    A collapsed model keeps its gap but has no place, and neither has anybody behind a closed gate.
    """
    methods, pairs, sets, refused = [], [], {}, {}
    for group, cell in cells.groupby(GROUP, sort=True):
        answers = items[items[GROUP].eq(list(group)).all(axis=1) & (items["set"] == "forget")]
        answers = answers.assign(person=persons(answers))
        try:
            sets[group] = forget_sets(answers)
        except KitError as reason:
            refused[group] = str(reason)
            continue
        gaps = pd.DataFrame(_gaps(cell, judged, answers, sets[group]))
        compared = pd.DataFrame(_comparisons(gaps, answers), columns=PAIR_COLUMNS[len(GROUP) :])
        compared["p_holm"] = holm(compared["p"])
        compared["apart"] = compared["p_holm"] < LEVEL
        at = dict(zip(GROUP, group, strict=True))
        methods.append(_placed(gaps, compared).assign(**at))
        pairs.append(compared.assign(**at))
    methods, pairs = (pd.concat(frames, ignore_index=True) if frames else pd.DataFrame() for frames in (methods, pairs))
    return Ranking(methods, pairs, sets, refused)


def forget_sets(items: pd.DataFrame) -> int:
    """How many disjoint forget sets the oracle was asked about. Raises KitError if they share people or are too few."""
    asked = items[is_model(items, "oracle") & (items["set"] == "forget")]
    draws = asked.assign(person=persons(asked))[[*DRAW, "person"]].drop_duplicates()
    if draws["person"].duplicated().any():
        raise KitError("forget sets share people: they count as one, so pool only disjoint ones")
    count = len(draws[DRAW].drop_duplicates())
    if count < NEEDED:
        raise KitError(f"ranking needs three disjoint forget sets, and there {'is' if count == 1 else 'are'} {count}")
    return count


def _gaps(cells: pd.DataFrame, judged: pd.DataFrame, answers: pd.DataFrame, sets: int) -> list[dict]:
    """The gap of every model to the oracle, and whether and why not it takes part in the ranking."""
    gaps = cells[(cells["against"] == "oracle") & (cells["set"] == "forget") & (cells["view"] == POOLED)]
    gaps = gaps[~gaps["method"].isin(UNRANKED)]
    asked = answers.drop_duplicates([*MODEL, *DRAW]).groupby(MODEL).size()
    reasons = judged[judged["collapsed"]].set_index([*GROUP, *MODEL])["why"].to_dict()
    trained = sorted(set(gaps["modality"]) - {"none"}) or ["none"]
    rows = []
    for metric, modality in itertools.product(metrics(main=True), trained):
        here = gaps[gaps[KEY].eq(list(metric.key)).all(axis=1) & gaps["modality"].isin((modality, "none"))]
        for gap in here.to_dict("records"):
            model = tuple(gap[column] for column in MODEL)
            standing, note = RANKED, ""
            if pd.isna(gap["value"]):
                standing, note = MISSING, gap["note"]
            elif why := reasons.get((*(gap[column] for column in GROUP), *model)):
                standing, note = COLLAPSED, f"Collapsed: {why}."
            elif gap["gate"] != OPEN:
                standing, note = BEHIND_GATE, SHUT
            elif asked[model] < sets:
                standing, note = FEWER, f"Run on {asked[model]} of the {sets} forget sets."
            kept = {c: gap[c] for c in (*MODEL, *KEY, "value", "low", "high", "n_items", "n_profiles")}
            distance = {"distance": abs(gap["value"]), "standing": standing, "note": note}
            rows.append({"trained": modality} | kept | distance)
    return rows


def _comparisons(gaps: pd.DataFrame, answers: pd.DataFrame) -> list[dict]:
    """Every two ranked models of a trained modality and metric."""
    rows = []
    for metric in metrics(main=True):
        asked = of_metric(answers, metric.task, metric.scoring)
        table = asked.pivot_table(index=[*PAIRED_ON, "person"], columns=MODEL, values=metric.column)
        ranked = gaps[gaps[KEY].eq(list(metric.key)).all(axis=1) & (gaps["standing"] == RANKED)]
        for modality, here in ranked.groupby("trained", sort=False):
            at = dict(zip(AT, (modality, *metric.key), strict=True))
            rows += [at | _compared(table, a, b, metric) for a, b in itertools.combinations(here.to_dict("records"), 2)]
    return rows


def _compared(table: pd.DataFrame, a: dict, b: dict, metric: Metric) -> dict:
    """|gap of a| − |gap of b| with its interval, the signs held as they came out, and the p of the two distances.

    ``table`` has a row a question and person and a column a model, seeds averaged."""
    people = table.index.get_level_values("person")
    oracle = table.xs(("oracle", ""), axis=1, level=("method", "after")).mean(axis=1).to_numpy()
    models = [tuple(one[column] for column in MODEL) for one in (a, b)]
    first, second = (table[model].to_numpy() for model in models)
    signs = [-1 if one["value"] < 0 else 1 for one in (a, b)]
    reach = metric.bounds[1] - metric.bounds[0]
    distances = signs[0] * (first - oracle), signs[1] * (second - oracle)
    summary = paired_difference(*distances, people, bounds=(-reach, reach))
    equal, opposite = paired_p(first, second, people), paired_p(first + second, 2 * oracle, people)
    values = {"difference": summary.value, "low": summary.low, "high": summary.high, "n_profiles": summary.n_profiles}
    return {"a": models[0], "b": models[1]} | values | {"p": max(equal, opposite)}


def _placed(gaps: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Models with ``place`` (equal distances share one) and ``group``, nearest first within each metric."""
    frames = []
    for key, cell in gaps.groupby(AT, sort=False):
        ranked = cell[cell["standing"] == RANKED].sort_values("distance", kind="stable")
        models = list(ranked[MODEL].itertuples(index=False, name=None))
        apart = pairs[pairs[AT].eq(list(key)).all(axis=1) & pairs["apart"].astype(bool)]
        letters = shared_letters(models, [frozenset(pair) for pair in zip(apart["a"], apart["b"], strict=True)])
        ranked = ranked.assign(place=ranked["distance"].round(9).rank(method="min"), group=[letters[m] for m in models])
        frames += [ranked, cell[cell["standing"] != RANKED].assign(place=nan, group="")]
    return pd.concat(frames, ignore_index=True).astype({"place": "Int64"})


def agreement(cells: pd.DataFrame, judged: pd.DataFrame, printed: pd.DataFrame) -> dict:
    """Kendall's τ of our order of methods to one list that others printed, for the models of one GROUP.

    ``printed`` has a row a method: ``method``, set, task, view, scoring, metric in our words, and ``value``. Both sides
    are the same metric on the same set and view, ours unlearned on image + text as the sources do. ``tau`` (with ``p``
    and the ``smallest_p`` there could be) compares scores of the ``methods`` both have. ``tau_gap`` sets our distance
    to the oracle against their order; nobody prints an oracle's score beside these, so theirs are better the lower they
    are where the goal is lower, and the higher elsewhere. The collapsed stay in the former, as others leave them in
    too, and are out of the latter, which needs four as well (``n_gap``). Behind a closed ``gate`` a distance says
    nothing about forgetting. A ``note`` stands for what is missing.
    """
    at = printed.iloc[0]
    here = cells[cells[["set", "view", *KEY]].eq(list(at[["set", "view", *KEY]])).all(axis=1)]
    here = here[here[MODEL[1:]].eq(["canonical", "multimodal", ""]).all(axis=1)].dropna(subset=["value"])
    scores, gaps = (here[here["against"] == against].set_index("method") for against in ("", "oracle"))
    theirs = printed.set_index("method")["value"]
    shared = [method for method in theirs.index if method in scores.index and method in gaps.index]
    if len(shared) < SHARED:
        note = f"only {len(shared)} of their methods have a run here"
        return {"n": len(theirs), "methods": list(theirs.index), "note": note}
    tau, p = kendall_tau(scores["value"][shared], theirs[shared])
    result = {"n": len(shared), "methods": shared, "tau": tau, "p": p, "gate": gaps["gate"].iloc[0], "note": ""}
    result["smallest_p"] = smallest_p(scores["value"][shared], theirs[shared])
    groups = here[GROUP].drop_duplicates()
    dead = set(judged[judged["collapsed"]].merge(groups)[MODEL].itertuples(index=False, name=None))
    alive = [method for method in shared if (method, "canonical", "multimodal", "") not in dead]
    result["n_gap"] = len(alive)
    if at["set"] in FORGOTTEN and result["gate"] != OPEN:
        result["note"] = SHUT
    elif len(alive) >= SHARED:
        worse = theirs[alive] if by_key()[tuple(at[KEY])].goal(at["set"]) == DOWN else -theirs[alive]
        result["tau_gap"], result["p_gap"] = kendall_tau(gaps["value"][alive].abs(), worse)
    return result
