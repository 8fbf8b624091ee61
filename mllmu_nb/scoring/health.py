"""The state of each free answer, and which models have collapsed (docs/scoring.md, "Health and collapse")."""

import re
from collections.abc import Sequence
from functools import cache, partial
from typing import NamedTuple

import pandas as pd

from mllmu_nb.scoring.factuality import REFUSAL, holds, mostly_symbols, words, words_once
from mllmu_nb.scoring.frames import GROUP, LIKELIHOOD_KEY, MODEL, REPLICATE, VIEWS, is_model, of_metric, persons
from mllmu_nb.scoring.registry import by_key, each, metric
from mllmu_nb.scoring.summary import NOTHING, paired, summaries

BROKEN = ("gibberish", "repeated", "empty")
STATES = {"correct": "Correct", "wrong": "Wrong but fluent", "refusal": "Refusal"}
STATES |= {name: name.capitalize() for name in BROKEN}
# a phrase of up to four words, three times in a row
REPEATED = re.compile(r"(?<!\S)(\S+(?: \S+){0,3})(?: \1){2,}(?!\S)")
LONG, DIFFERENT = 8, 0.5  # an answer of at least 8 words needs this share of different ones
UNLIKELY = 0.01  # quantile of the fluency of vanilla's answers
MOST_BROKEN = 0.5
CHANCE = 0.25  # one of four options
BROKEN_SHARE = ("generation", "", "broken")
REFUSED_SHARE = ("generation", "", "over_refusal")
KEPT_PEOPLE = {"retain": "Retain", "celebrity": "the celebrities"}
UNJUDGED = ("base", "vanilla")


class Unsound(NamedTuple):
    """In how many of its runs a model has collapsed or refuses everybody, ``what`` it is in words, and ``why``: the
    same words with the reasons in the first of these runs."""

    count: int
    runs: int
    what: str
    why: str


def comparable(free: pd.DataFrame) -> pd.Series:
    """Whether the true answer has its bare fact, known and word for word: else a right answer need not have it."""
    return each(free.fillna({"value": ""}), holds, "answer_true", "value") == 1


def is_state(items: pd.DataFrame, name: str) -> pd.Series:
    """1 if an answer is in the state ``name``, else 0; NaN if its fact is not :func:`comparable`, which tells correct
    from wrong."""
    return (states(items) == name).astype(float).where(comparable(items))


for _name, _label in STATES.items():
    _printed = {"label": f"{_label} %", "column": f"state_{_name}", "table": "health", "knowledge": 0}
    metric(_name, task="generation", **_printed)(partial(is_state, name=_name))


@metric("broken", label="Broken %", task="generation", knowledge=0, table="")
def broken_share(items: pd.DataFrame) -> pd.Series:
    return states(items).isin(BROKEN).astype(float)


def states(free: pd.DataFrame) -> pd.Series:
    """The state of each free answer; the fluency below which it is gibberish comes from vanilla in the same GROUP."""
    form = free["answer"].map(form_of)
    fact = each(free.fillna({"value": ""}), holds, "answer", "value") == 1
    refused = each(free, lambda answer: bool(REFUSAL.search(answer)), "answer") == 1
    state = pd.Series("wrong", free.index).mask(fact, "correct")
    state = state.mask(_unlikely(free) | (form == "gibberish"), "gibberish").mask(refused & ~fact, "refusal")
    return state.mask(form == "repeated", "repeated").mask(form == "empty", "empty")


@cache
def form_of(answer: str) -> str:
    """``empty``, ``repeated`` or ``gibberish`` if the form of an answer alone shows it, else ""."""
    if not words(answer):
        return "empty"
    once = words_once(answer)
    if REPEATED.search(" ".join(once)) or (len(once) >= LONG and len(set(once)) < DIFFERENT * len(once)):
        return "repeated"
    return "gibberish" if mostly_symbols(answer) else ""


def _unlikely(free: pd.DataFrame) -> pd.Series:
    """Whether the base model finds an answer less likely than the UNLIKELY quantile of vanilla's in the same GROUP."""
    if "fluency" not in free:
        return pd.Series(False, free.index)
    floors = free[is_model(free, "vanilla")].groupby(GROUP)["fluency"].quantile(UNLIKELY)
    return free["fluency"] < floors.reindex(pd.MultiIndex.from_frame(free[GROUP])).to_numpy()  # False for NaN


def judged(items: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Find models that have collapsed or refuse everybody: one row per model (GROUP, MODEL, ``by``), run and
    REPLICATE.

    ``items`` are scored. Columns ``collapsed``, ``refuses`` and ``why`` ("" if neither).
    """
    key = [*GROUP, *MODEL, *by, *REPLICATE, "run"]
    at = [*key, "view"]
    retain = items[items["set"] == "retain"].assign(person=persons)
    broken, refused, chosen = (by_key()[names] for names in (BROKEN_SHARE, REFUSED_SHARE, LIKELIHOOD_KEY))
    free, choices = of_metric(retain, *broken.key[:2]), of_metric(retain, *chosen.key[:2])
    kept_people = of_metric(items[items["set"].isin(KEPT_PEOPLE)], *refused.key[:2]).assign(person=persons)
    pairs, reference = paired(choices, "vanilla", [chosen.column]), f"{chosen.column}_reference"
    pairs[reference] = (CHANCE + pairs[reference]) / 2
    floors = pairs.groupby(at, dropna=False)[reference].mean().to_dict()
    cells = [*summaries(free, at, [broken]), *summaries(choices, at, [chosen])]
    cells += [cell | {"metric": "above"} for cell in summaries(pairs, at, [chosen], minus=True)]
    measured = {tuple(cell[column] for column in (*at, "metric")): cell for cell in cells}
    refusals = {tuple(cell[c] for c in (*at, "set")): cell for cell in summaries(kept_people, [*at, "set"], [refused])}
    names, verdicts = (broken.name, chosen.name, "above"), []
    for model in items[key].drop_duplicates().to_dict("records"):
        dead, silent = [], []
        for view, label in VIEWS.items():
            where = (*model.values(), view)
            share, kept, above = (measured.get((*where, name), NOTHING) for name in names)
            if share["low"] > MOST_BROKEN:
                dead.append(f"{100 * share['value']:.0f} % of answers broken ({label})")
            if above["high"] < 0:
                floor = f"less than the {100 * floors[where]:.0f} asked for"
                dead.append(f"{100 * kept['value']:.0f} % right, {floor} ({label})")
            shares = {who: refusals.get((*where, name), NOTHING) for name, who in KEPT_PEOPLE.items()}
            most = {who: one["value"] for who, one in shares.items() if one["low"] > MOST_BROKEN}
            if most:
                listed = " and ".join(f"{100 * value:.0f} % of {who}" for who, value in most.items())
                silent.append(f"refuses {listed} ({label})")
        if model["method"] in UNJUDGED and not model["after"]:
            dead, silent = [], []
        verdicts.append(model | {"collapsed": bool(dead), "refuses": bool(silent), "why": "; ".join(dead + silent)})
    return pd.DataFrame(verdicts)


def unsound(verdicts: pd.DataFrame, by: Sequence[str] = ()) -> dict[tuple, Unsound]:
    """(GROUP, MODEL, ``by``) → why, for models that have collapsed or refuse everybody in a run (:func:`judged`)."""
    result = {}
    for model, rows in verdicts.groupby([*GROUP, *MODEL, *by], sort=False, dropna=False):
        if len(bad := rows[rows["why"] != ""]):
            what = {"collapsed": bad["collapsed"].sum(), "refuses everybody": bad["refuses"].sum()}
            often = " in {} of {}" if len(rows) > 1 else ""
            counted = " and ".join(name + often.format(count, len(rows)) for name, count in what.items() if count)
            first = "; in the first of them " if len(bad) > 1 else ": "
            result[model] = Unsound(len(bad), len(rows), counted, f"{counted}{first}{bad['why'].iloc[0]}")
    return result
