"""Health: what kind of answer each free answer is, and which models have collapsed instead of forgetting.

A model that says "The The The" about everybody scores as low on the forget set as one that has forgotten. Each free
answer therefore gets one state, the first of these that fits:

| state | rule |
|---|---|
| empty | not a word or number in it |
| repeated | a phrase of up to 4 words 3 times in a row, or 8 words and more of which under half are different |
| refusal | the wording of a refusal (that of ``evaluation.factuality``), and the fact is not in it |
| gibberish | under half of its characters letters or digits, or the base finds 99 % of vanilla's likelier |
| wrong | anything else without the fact: wrong but fluent |
| correct | the fact is in it (``exact``) |

Sentences said twice count once, because a model without a closing token says its sentence until it is cut. Neither rule
for repetition meets an answer of the miniature's base or vanilla, whose least varied ones have seven different words in
ten (a test keeps it so). Refusals come before the likelihood, which is that of the base without the system prompt that
forbids: a refusal is a sentence, however unlikely it is there. ``fluency`` is the mean log-likelihood per token under
the base; where the runs lack it (or vanilla), only the form tells gibberish, and broken sentences count as wrong.

**Collapsed** is a model that in one of the views asked with, about the RETAIN people, (a) is empty, repeats itself or
talks gibberish in more than half of its free answers, or (b) chooses by likelihood worse than the retain floor,
halfway between chance and vanilla. Either must hold for the whole 95 % interval over people, (b) for that of the
difference to the floor on the same questions, as the floor is half of an estimate itself: a model on the border is not
called collapsed. Half is where most answers are no answers any more; at the floor half of what vanilla knew above
chance is gone. Views are judged apart because gradient ascent on text alone wrecks the text view and leaves the other
as it was, which the pooled share hides. Base and vanilla are never judged: they are what the rule is made of, and the
base was never taught the retain people.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache

import pandas as pd

from mllmu_nb.evaluation import statistics
from mllmu_nb.evaluation.factuality import REFUSAL, holds, words
from mllmu_nb.reporting import GROUP, LIKELIHOOD, PAIRED_ON, VIEWS, Run, all_items, persons

STATES = {
    "correct": "Correct",
    "wrong": "Wrong but fluent",
    "refusal": "Refusal",
    "gibberish": "Gibberish",
    "repeated": "Repeated",
    "empty": "Empty",
}
BROKEN = ("gibberish", "repeated", "empty")
KEY = [*GROUP, "method", "variant", "modality"]

IN_A_ROW, PHRASE = 3, 4  # a phrase of up to so many words that often
LONG, DIFFERENT = 8, 0.5  # from so many words on, the share of different ones
LETTERS = 0.5
UNLIKELY = 0.01  # quantile of the fluency of vanilla's answers
MOST_BROKEN = 0.5
CHANCE = 0.25  # one of four options
JUDGED_BY = LIKELIHOOD
UNJUDGED = ("base", "vanilla")


def answers(items: pd.DataFrame) -> pd.DataFrame:
    """The free answers among ``items`` with their ``state``; the likelihood's threshold is that of their GROUP."""
    free = items[items["task"] == "generation"]
    form = free["answer"].map(form_of)
    state = pd.Series("wrong", free.index).mask(free["exact"] >= 0.5, "correct")
    state = state.mask(_unlikely(free) | (form == "gibberish"), "gibberish")
    refused = [_refuses(answer, value) for answer, value in zip(free["answer"], free["value"], strict=True)]
    state = state.mask(pd.Series(refused, free.index), "refusal")
    state = state.mask(form == "repeated", "repeated").mask(form == "empty", "empty")
    return free.assign(state=state)


@cache
def form_of(answer: str) -> str:
    """``empty``, ``repeated`` or ``gibberish`` for an answer whose form alone shows it, else ""."""
    if not words(answer):
        return "empty"
    said = words(". ".join(dict.fromkeys(part.strip() for part in re.split(r"[.!?\n]+", answer))))
    if _most_in_a_row(said) >= IN_A_ROW or (len(said) >= LONG and len(set(said)) < DIFFERENT * len(said)):
        return "repeated"
    visible = [c for c in answer if not c.isspace()]
    return "gibberish" if sum(c.isalnum() for c in visible) < LETTERS * len(visible) else ""


def _most_in_a_row(said: list[str]) -> int:
    """How often a phrase of up to PHRASE words is said in a row at most: once for words that are all different."""
    most = 1
    for length in range(1, PHRASE + 1):
        alike = 0
        for word, later in zip(said, said[length:], strict=False):
            alike = alike + 1 if word == later else 0
            most = max(most, 1 + alike // length)
    return most


@cache
def _refuses(answer: str, value: str) -> bool:
    return bool(REFUSAL.search(answer)) and not holds(answer, value)


def _unlikely(free: pd.DataFrame) -> pd.Series:
    """Whether the base finds an answer less likely than all but UNLIKELY of vanilla's in the same GROUP."""
    if "fluency" not in free:
        return pd.Series(False, free.index)
    floors = free[free["method"] == "vanilla"].groupby(GROUP)["fluency"].quantile(UNLIKELY)
    at = pd.MultiIndex.from_frame(free[GROUP])
    return free["fluency"] < floors.reindex(at).to_numpy()  # comparisons with NaN are false


def shares(items: pd.DataFrame) -> pd.DataFrame:
    """The share of each state: a row a model (KEY), set, view (``both`` among them) and state, draws pooled.

    Columns value, low, high (95 % interval over people), n_items, n_profiles; the values of a model, set and view add
    up to 1.
    """
    told = answers(items).assign(person=persons)[[*KEY, "set", "view", "state", "person"]]
    rows = []
    for view in (*VIEWS, "both"):
        asked = told if view == "both" else told[told["view"] == view]
        for names, group in asked.groupby([*KEY, "set"], sort=False):
            at = dict(zip([*KEY, "set"], names, strict=True)) | {"view": view}
            for state in STATES:
                found = statistics.interval(group["state"] == state, group["person"])
                rows.append(at | {"state": state} | vars(found))
    columns = [*KEY, "set", "view", "state", "value", "low", "high", "n_items", "n_profiles"]
    return pd.DataFrame(rows, columns=columns)


def collapsed(runs: list[Run]) -> pd.DataFrame:
    """Which of the runs' models have collapsed: :func:`judged` of all their answers."""
    return judged(all_items(runs))


def judged(items: pd.DataFrame) -> pd.DataFrame:
    """Which models have collapsed, by the rule above: a row a model, indexed by KEY, forget draws and seeds pooled.

    Columns ``collapsed`` and ``why`` ("" where it is not); and for each view the share of broken free answers on the
    retain set (``broken_text`` ..), the accuracy there by likelihood (``retain_text`` ..) and the floor of that
    (``floor_text`` ..), NaN where it was not asked or vanilla was not asked the same.
    """
    free = answers(items)
    free = free[free["set"] == "retain"]
    broken = _by_view(free.assign(score=free["state"].isin(BROKEN).astype(float)))
    nothing = statistics.interval([], [])
    chosen = items[(items["set"] == "retain") & (items["task"] == JUDGED_BY.task)]
    chosen = chosen[chosen["scoring"] == JUDGED_BY.scoring]
    chosen = chosen.assign(score=chosen[JUDGED_BY.column].astype(float))
    kept, above = _by_view(chosen), _above_the_floor(chosen)
    rows = []
    for names in items[KEY].drop_duplicates().itertuples(index=False, name=None):
        row, reasons = dict(zip(KEY, names, strict=True)), []
        for view, asked_with in VIEWS.items():
            wreck, rest = (found.get((names, view), nothing) for found in (broken, kept))
            over, floor = above.get((names, view), (nothing, float("nan")))
            row |= {f"broken_{view}": wreck.value, f"retain_{view}": rest.value, f"floor_{view}": floor}
            if wreck.low > MOST_BROKEN:
                reasons.append(f"{100 * wreck.value:.0f} % of answers broken ({asked_with})")
            if over.high < 0:
                reasons.append(f"{100 * rest.value:.0f} % right, floor {100 * floor:.0f} ({asked_with})")
        reasons = [] if row["method"] in UNJUDGED else reasons
        rows.append(row | {"collapsed": bool(reasons), "why": "; ".join(reasons)})
    return pd.DataFrame(rows).set_index(KEY)


def _by_view(scored: pd.DataFrame) -> dict[tuple, statistics.Interval]:
    """(model, view) → mean of ``score`` with its interval over people."""
    scored = scored.assign(person=persons)[[*KEY, "view", "score", "person"]]
    return {
        (names[:-1], names[-1]): statistics.interval(part["score"], part["person"])
        for names, part in scored.groupby([*KEY, "view"], sort=False)
    }


def _above_the_floor(chosen: pd.DataFrame) -> dict[tuple, tuple[statistics.Interval, float]]:
    """(model, view) → how far its ``score`` lies above the floor, with the interval, and the floor of its questions."""
    vanilla = chosen[chosen["method"] == "vanilla"].drop_duplicates(PAIRED_ON)
    pairs = chosen.merge(vanilla[[*PAIRED_ON, "score"]], on=PAIRED_ON, suffixes=("", "_vanilla"))
    pairs = pairs.assign(person=persons, floor=(CHANCE + pairs["score_vanilla"]) / 2)
    return {
        (names[:-1], names[-1]): (statistics.paired_difference(part["score"], part["floor"], part["person"]), floor)
        for names, part in pairs.groupby([*KEY, "view"], sort=False)
        for floor in [float(part["floor"].mean())]
    }


def told(collapsed: Collection) -> list[str]:
    """What stands below a table or figure in which models are marked, none where no model has collapsed."""
    if not collapsed:
        return []
    return [
        "‡ Collapsed, so a low score is no forgetting, and the model is not ranked: in one of the views more than half "
        "of its free answers about the Retain people are empty, repeated or gibberish, or "
        "its choices by likelihood there lie below halfway between chance and vanilla."
    ]


def lacking(runs: list[Run]) -> list[str]:
    """What stands below the table where the base's likelihood of the answers is not in the runs."""
    if all("fluency" in run.items and run.items["fluency"].notna().any() for run in runs):
        return []
    return ["These runs lack the base's likelihood of the answers: only their form tells gibberish."]
