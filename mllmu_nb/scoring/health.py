"""Health: what kind of answer each free answer is, and which models have collapsed instead of forgetting.

docs/scoring.md ("Health and collapse") has the rules for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from itertools import groupby
from math import nan

import pandas as pd

from mllmu_nb.scoring.factuality import REFUSAL, holds, mostly_symbols, words, words_once
from mllmu_nb.scoring.frames import GROUP, MODEL, VIEWS, filled, is_model, of_metric, persons
from mllmu_nb.scoring.registry import Metric, by_key, each, metric
from mllmu_nb.scoring.summary import NOTHING, paired, summaries

STATES = {
    "correct": "Correct",
    "wrong": "Wrong but fluent",
    "refusal": "Refusal",
    "gibberish": "Gibberish",
    "repeated": "Repeated",
    "empty": "Empty",
}
BROKEN = ("gibberish", "repeated", "empty")
IN_A_ROW, PHRASE = 3, 4  # a phrase of up to so many words that often
LONG, DIFFERENT = 8, 0.5  # from so many words on, the share of different ones
UNLIKELY = 0.01  # quantile of the fluency of vanilla's answers
MOST_BROKEN = 0.5
CHANCE = 0.25  # one of four options
BROKEN_SHARE = ("generation", "", "broken")
JUDGED_BY = ("classification", "likelihood", "accuracy")
UNJUDGED = ("base", "vanilla")


def _share_of(items: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """Of answers whose bare fact is known: without it, correct and wrong cannot be told apart."""
    return _share_broken(items, names).where(items["value"].fillna("") != "")


def _share_broken(items: pd.DataFrame, names: Sequence[str] = BROKEN) -> pd.Series:
    return states(items).isin(names).astype(float)


_HEALTH = {"task": "generation", "knowledge": 0}
for _name, _label in STATES.items():
    _register = metric(_name, label=f"{_label} %", column=f"state_{_name}", table="health", **_HEALTH)
    _register(partial(_share_of, names=[_name]))
metric("broken", label="Broken %", table="", **_HEALTH)(_share_broken)


def states(free: pd.DataFrame) -> pd.Series:
    """The state of each free answer; the likelihood's threshold is that of vanilla in the same GROUP."""
    form = free["answer"].map(form_of)
    fact = each(free.fillna({"value": ""}), holds, "answer", "value") == 1
    refused = each(free, lambda answer: bool(REFUSAL.search(answer)), "answer") == 1
    state = pd.Series("wrong", free.index).mask(fact, "correct")
    state = state.mask(_unlikely(free) | (form == "gibberish"), "gibberish").mask(refused & ~fact, "refusal")
    return state.mask(form == "repeated", "repeated").mask(form == "empty", "empty")


@cache
def form_of(answer: str) -> str:
    """``empty``, ``repeated`` or ``gibberish`` for an answer whose form alone shows it, else ""."""
    if not words(answer):
        return "empty"
    once = words_once(answer)
    if _most_in_a_row(once) >= IN_A_ROW or (len(once) >= LONG and len(set(once)) < DIFFERENT * len(once)):
        return "repeated"
    return "gibberish" if mostly_symbols(answer) else ""


def _most_in_a_row(tokens: Sequence[str]) -> int:
    """How often a phrase of up to PHRASE words comes in a row at most: once for words that are all different."""
    most = 1
    for length in range(1, PHRASE + 1):
        alike = (word == later for word, later in zip(tokens, tokens[length:], strict=False))
        runs = (sum(run) for same, run in groupby(alike) if same)
        most = max(most, 1 + max(runs, default=0) // length)
    return most


def _unlikely(free: pd.DataFrame) -> pd.Series:
    """Whether the base finds an answer less likely than all but UNLIKELY of vanilla's in the same GROUP."""
    if "fluency" not in free:
        return pd.Series(False, free.index)
    floors = free[is_model(free, "vanilla")].groupby(GROUP)["fluency"].quantile(UNLIKELY)
    return free["fluency"] < floors.reindex(pd.MultiIndex.from_frame(free[GROUP])).to_numpy()  # NaN is below nothing


def judged(items: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Which models have collapsed: a row a model (GROUP, MODEL, ``by``), draws and seeds pooled.

    ``items`` are scored. Columns ``collapsed`` and ``why`` ("" where it has not); for each view the share of broken
    free answers on the retain set (``broken_text`` ..), the accuracy there by likelihood (``retain_text`` ..) and the
    floor of that (``floor_text`` ..), NaN where it was not asked or vanilla was not asked the same.
    """
    key = [*GROUP, *MODEL, *by]
    items = filled(items, by)
    retain = items[items["set"] == "retain"].assign(person=persons)
    broken, chosen = (by_key()[names] for names in (BROKEN_SHARE, JUDGED_BY))
    free, choices = of_metric(retain, *broken.key[:2]), of_metric(retain, *chosen.key[:2])
    pairs, reference = paired(choices, "vanilla", [chosen.column]), f"{chosen.column}_reference"
    pairs[reference] = (CHANCE + pairs[reference]) / 2
    floors = pairs.groupby([*key, "view"], dropna=False)[reference].mean()

    def by_model_and_view(rows: pd.DataFrame, metric: Metric, minus: bool = False) -> dict[tuple, dict]:
        cells = summaries(rows, [*key, "view"], [metric], minus)
        return {tuple(cell[column] for column in (*key, "view")): cell for cell in cells}

    shares, levels = by_model_and_view(free, broken), by_model_and_view(choices, chosen)
    differences, verdicts = by_model_and_view(pairs, chosen, minus=True), []
    for model in items[key].drop_duplicates().to_dict("records"):
        row, reasons = dict(model), []
        for view, label in VIEWS.items():
            at = (*model.values(), view)
            share, kept, above = (cells.get(at, NOTHING) for cells in (shares, levels, differences))
            floor = floors.get(at, nan)
            row |= {f"broken_{view}": share["value"], f"retain_{view}": kept["value"], f"floor_{view}": floor}
            if share["low"] > MOST_BROKEN:
                reasons.append(f"{100 * share['value']:.0f} % of answers broken ({label})")
            if above["high"] < 0:
                reasons.append(f"{100 * kept['value']:.0f} % right, floor {100 * floor:.0f} ({label})")
        reasons = [] if row["method"] in UNJUDGED and not row["after"] else reasons
        verdicts.append(row | {"collapsed": bool(reasons), "why": "; ".join(reasons)})
    return pd.DataFrame(verdicts)
