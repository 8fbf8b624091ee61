"""Which method comes nearest to the oracle, which of them can be told apart, and whether published lists agree.

docs/scoring.md ("Ranking", "Agreement with published lists") has the rules and why they are so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from math import nan
from typing import NamedTuple

import pandas as pd

from mllmu_nb.errors import KitError
from mllmu_nb.scoring.frames import DRAW, GROUP, KEY, MODEL, PAIRED_ON, POOLED, is_model, of_metric, persons
from mllmu_nb.scoring.gates import OPEN
from mllmu_nb.scoring.registry import DOWN, FORGOTTEN, Metric, by_key, metrics
from mllmu_nb.statistics.intervals import holm, paired_difference, paired_p
from mllmu_nb.statistics.ranking import kendall_tau, shared_letters, smallest_p

NEEDED = 3  # disjoint forget sets
LEVEL = 0.05  # of the whole family of comparisons of a table
UNRANKED = ("base", "vanilla", "oracle")
SHARED = 4  # methods that a published list must have in common with ours
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

    ``items`` are scored, ``cells`` and ``judged`` made of them.
    """
    methods, pairs, sets, refused = [], [], {}, {}
    for group, cell in cells.groupby(GROUP, sort=True):
        answers = _at(items, [*GROUP, "set"], [*group, "forget"])
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
    frames = (pd.concat(frames, ignore_index=True) if frames else pd.DataFrame() for frames in (methods, pairs))
    return Ranking(*frames, sets, refused)


def _at(rows: pd.DataFrame, columns: list[str], values: Iterable) -> pd.DataFrame:
    """The rows that have these values in these columns."""
    return rows[rows[columns].eq(list(values)).all(axis=1)]


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
    gaps = _at(cells, ["against", "set", "view"], ["oracle", "forget", POOLED])
    gaps = gaps[~gaps["method"].isin(UNRANKED)]
    asked = answers.drop_duplicates([*MODEL, *DRAW]).groupby(MODEL).size()
    reasons = judged[judged["collapsed"]].set_index([*GROUP, *MODEL])["why"].to_dict()
    trained = sorted(set(gaps["modality"]) - {"none"}) or ["none"]
    rows = []
    for metric, modality in itertools.product(metrics(main=True), trained):
        here = _at(gaps[gaps["modality"].isin((modality, "none"))], KEY, metric.key)
        for gap in here.to_dict("records"):
            group, model = (tuple(gap[column] for column in columns) for columns in (GROUP, MODEL))
            standing, note = RANKED, ""
            if pd.isna(gap["value"]):
                standing, note = MISSING, gap["note"]
            elif why := reasons.get(group + model):
                standing, note = COLLAPSED, f"Collapsed: {why}."
            elif gap["gate"] != OPEN:
                standing, note = BEHIND_GATE, SHUT
            elif asked[model] < sets:
                standing, note = FEWER, f"Run on {asked[model]} of the {sets} forget sets."
            kept = {column: gap[column] for column in (*MODEL, *KEY, "value", "low", "high", "n_items", "n_profiles")}
            kept |= {"distance": abs(gap["value"]), "standing": standing, "note": note}
            rows.append({"trained": modality} | kept)
    return rows


def _comparisons(gaps: pd.DataFrame, answers: pd.DataFrame) -> list[dict]:
    """Every two ranked models of a trained modality and metric."""
    rows, ranked = [], gaps[gaps["standing"] == RANKED]
    for metric in metrics(main=True):
        asked = of_metric(answers, metric.task, metric.scoring)
        table = asked.pivot_table(index=[*PAIRED_ON, "person"], columns=MODEL, values=metric.column)
        for modality, here in _at(ranked, KEY, metric.key).groupby("trained", sort=False):
            at = dict(zip(AT, (modality, *metric.key), strict=True))
            rows += [at | _compared(table, a, b, metric) for a, b in itertools.combinations(here.to_dict("records"), 2)]
    return rows


def _compared(table: pd.DataFrame, a: dict, b: dict, metric: Metric) -> dict:
    """|gap of a| − |gap of b| with its interval, the signs held as they came out, and the p of the two distances.

    ``table`` has a row a question and person and a column a model, seeds averaged.
    """
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
        apart = _at(pairs[pairs["apart"].astype(bool)], AT, key)
        letters = shared_letters(models, [frozenset(pair) for pair in zip(apart["a"], apart["b"], strict=True)])
        ranked = ranked.assign(place=ranked["distance"].round(9).rank(method="min"), group=[letters[m] for m in models])
        frames += [ranked, cell[cell["standing"] != RANKED].assign(place=nan, group="")]
    return pd.concat(frames, ignore_index=True).astype({"place": "Int64"})


def agreement(cells: pd.DataFrame, judged: pd.DataFrame, printed: pd.DataFrame) -> dict:
    """Kendall's τ of our order of methods to one list that others printed, for the models of one GROUP.

    ``printed`` has a row a method: ``method``, set, task, view, scoring, metric in our words, and ``value``. Returns
    ``n`` and ``methods`` that both have; ``tau``, ``p`` and ``smallest_p`` of the scores; ``tau_gap``, ``p_gap`` and
    ``n_gap`` of our distances to the oracle; ``gate``, and a ``note`` for what is missing.
    """
    at = printed.iloc[0]
    here = _at(cells, ["set", "view", *KEY], at[["set", "view", *KEY]])
    here = _at(here, MODEL[1:], ["canonical", "multimodal", ""]).dropna(subset=["value"])
    scores, gaps = (here[here["against"] == against].set_index("method") for against in ("", "oracle"))
    theirs = printed.set_index("method")["value"]
    shared = [method for method in theirs.index if method in scores.index and method in gaps.index]
    if len(shared) < SHARED:
        note = f"only {len(shared)} of their methods have a run here"
        return {"n": len(theirs), "methods": list(theirs.index), "note": note}
    tau, p = kendall_tau(scores["value"][shared], theirs[shared])
    result = {"n": len(shared), "methods": shared, "tau": tau, "p": p, "gate": gaps["gate"].iloc[0], "note": ""}
    result["smallest_p"] = smallest_p(scores["value"][shared], theirs[shared])
    dead = judged[judged["collapsed"]].merge(here[[*GROUP, *MODEL]].drop_duplicates())
    alive = [method for method in shared if method not in set(dead["method"])]
    result["n_gap"] = len(alive)
    if at["set"] in FORGOTTEN and result["gate"] != OPEN:
        result["note"] = SHUT
    elif len(alive) >= SHARED:
        worse = theirs[alive] if by_key()[tuple(at[KEY])].goal(at["set"]) == DOWN else -theirs[alive]
        result["tau_gap"], result["p_gap"] = kendall_tau(gaps["value"][alive].abs(), worse)
    return result
