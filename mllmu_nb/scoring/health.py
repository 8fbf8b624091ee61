"""Health: what kind of answer each free answer is, and which models have collapsed instead of forgetting.

A model that says "The The The" about everybody scores as low on the forget set as one that has forgotten. Each free
answer therefore has one state, the first of these that fits:

| state | rule |
|---|---|
| empty | not a word or number in it |
| repeated | a phrase of up to 4 words 3 times in a row, or 8 words and more of which under half are different |
| refusal | the wording of a refusal (``factuality.REFUSAL``), and the fact is not in it |
| gibberish | under half of its characters letters or digits, or the base finds 99 % of vanilla's likelier |
| wrong | anything else without the fact: wrong but fluent |
| correct | the fact is in it (``exact``) |

A sentence said twice counts once, because a model without a closing token repeats its sentence until it is cut.
Refusals come before the likelihood, which is that of the base without the system prompt that forbids: a refusal is a
sentence, however unlikely it is there. ``fluency`` is the mean log-likelihood per token under the base; where the runs
lack it (or vanilla), only the form shows gibberish, and broken sentences count as wrong.

**Collapsed** is a model that in one of the views, about the RETAIN people, (a) is empty, repeats itself or writes
gibberish in more than half of its free answers, or (b) chooses by likelihood worse than the retain floor, halfway
between chance and vanilla. Either must hold for the whole 95 % interval over people, (b) for that of the difference to
the floor on the same questions, as the floor is an estimate itself: a model on the border is not called collapsed.
Views are judged apart because gradient ascent on text alone wrecks the text view and leaves the other as it was. Base
and vanilla are never judged: the rule is made of them, and the base was never taught the retain people.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
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


def _share_of(*names: str) -> Callable[[pd.DataFrame], pd.Series]:
    return lambda items: states(items).isin(names).astype(float)


for _name, _label in STATES.items():
    metric(_name, label=f"{_label} %", task="generation", column=f"state_{_name}", knowledge=0, table="health")(
        _share_of(_name)
    )
metric("broken", label="Broken %", task="generation", knowledge=0, table="")(_share_of(*BROKEN))


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
        alike = 0
        for word, later in zip(tokens, tokens[length:], strict=False):
            alike = alike + 1 if word == later else 0
            most = max(most, 1 + alike // length)
    return most


def _unlikely(free: pd.DataFrame) -> pd.Series:
    """Whether the base finds an answer less likely than all but UNLIKELY of vanilla's in the same GROUP."""
    if "fluency" not in free:
        return pd.Series(False, free.index)
    floors = free[is_model(free, "vanilla")].groupby(GROUP)["fluency"].quantile(UNLIKELY)
    return free["fluency"] < floors.reindex(pd.MultiIndex.from_frame(free[GROUP])).to_numpy()  # NaN is below nothing


def judged(items: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Which models have collapsed, by the rule above: a row a model (GROUP, MODEL, ``by``), draws and seeds pooled.

    ``items`` are scored. Columns ``collapsed`` and ``why`` ("" where it has not); for each view the share of broken
    free answers on the retain set (``broken_text`` ..), the accuracy there by likelihood (``retain_text`` ..) and the
    floor of that (``floor_text`` ..), NaN where it was not asked or vanilla was not asked the same.
    """
    key = [*GROUP, *MODEL, *by]
    items = filled(items, by)
    retain = items[items["set"] == "retain"].assign(person=persons)
    broken, chosen = (by_key()[names] for names in (BROKEN_SHARE, JUDGED_BY))
    free, choices = of_metric(retain, *broken.key[:2]), of_metric(retain, *chosen.key[:2])
    pairs = paired(choices, "vanilla", [chosen.column])
    pairs[f"{chosen.column}_reference"] = (CHANCE + pairs[f"{chosen.column}_reference"]) / 2
    floors = pairs.groupby([*key, "view"], dropna=False)[f"{chosen.column}_reference"].mean()

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
