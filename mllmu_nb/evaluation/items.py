"""What every task shares: the row of an item, the worked examples ("shots") before it, and how items are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan

from mllmu_nb.data.schema import Item, Population, Question
from mllmu_nb.evaluation.draws import shown
from mllmu_nb.evaluation.engine import NEXT_TURN, greedy, option_likelihoods, require_room
from mllmu_nb.models.prompts import Conversation, Turn

COLUMNS = (
    "set",
    "task",
    "view",
    "scoring",
    "profile",
    "question_id",
    "attribute",
    "question",
    "answer_true",
    "value",
    "shots",
    "answer",
    "correct",
    "parsed",
    "exact",
    "rouge1",
    "rouge2",
    "rougeL",
    "bleu",
    "factuality",
    "fluency",
    "option_A",
    "option_B",
    "option_C",
    "option_D",
    "tokens",
)
UPSTREAM_TOKENS = 50  # that upstream lets every answer have
CYCLIC_COLUMNS = ("chosen", "consistency")  # there where the options are asked in all their orders
MEASURES = COLUMNS[COLUMNS.index("exact") : COLUMNS.index("tokens")]


def row(item: Item, answer: str, *, scoring: str = "", shots: int = 0, correct: float = nan, **known) -> dict:
    """One row of ``items.parquet``, without the columns that a whole run shares. What was not measured is NaN."""
    asked = item.question
    return {
        "set": item.set,
        "task": asked.task,
        "view": asked.view,
        "scoring": scoring,
        "profile": asked.profile,
        "question_id": asked.id,
        "attribute": asked.attribute,
        "question": asked.text,
        "answer_true": asked.answer,
        "value": asked.value,
        "shots": shots,
        "answer": answer,
        "correct": correct,
        "parsed": True,
        **dict.fromkeys(MEASURES, nan),
        "tokens": 0,
        **known,
    }


def shots_before(
    items: list[Item],
    population: Population,
    draws: Mapping,
    shots: int,
    as_turn: Callable[[Question, bytes | None], Turn],
) -> list[tuple[Turn, ...]]:
    """The worked examples before each item: the first ``shots`` questions, of its task and view, of the drawn people.

    In the image view each example stands beside its person's portrait.
    """
    found = {}
    for item in items:
        key = item.set, item.question.task, item.question.view
        if key not in found:
            found[key] = _shots(population, draws, *key, as_turn)[:shots]
    return [found[item.set, item.question.task, item.question.view] for item in items]


def _shots(population, draws, set_name, task, view, as_turn) -> tuple[Turn, ...]:
    return tuple(
        as_turn(question, person.portrait if view == "image_text" else None)
        for person in shown(draws, population, set_name, task)
        for question in person.questions
        if question.task == task and question.view == view
    )


def ending(protocol: str, enough: int) -> dict[str, int | str]:
    """How long an answer may be for which ``enough`` tokens are enough: ``upstream`` gives all as many, and takes them
    whole."""
    if protocol == "upstream":
        return {"tokens": UPSTREAM_TOKENS, "until": ""}
    return {"tokens": enough, "until": NEXT_TURN}


@dataclass(frozen=True)
class Part:
    """Items as one task puts them to a model, before anything is answered.

    ``talks`` holds as many conversations for each item, one after the other, as the item is asked in ways. Each is
    answered in at most ``tokens`` tokens and up to the text ``until`` ("": whatever it says); or where ``options``
    [talks][options] are given, their likelihood is found. ``rows`` makes the rows from items, talks and what the engine
    has found.
    """

    items: list[Item]
    talks: list[Conversation]
    rows: Callable[..., list[dict]]
    tokens: int = 0
    until: str = NEXT_TURN
    options: list[tuple[str, ...]] | None = None

    def require_room(self, model, processor) -> None:
        """Raise ``KitError`` naming a question that is too long for the model's context with what precedes it."""
        talks = self.talks
        if self.options:
            talks = [t.answered(o) for t, options in zip(talks, self.options, strict=True) for o in options]
        ways = len(talks) // max(len(self.items), 1)
        names = [f"{item.question.id} ({item.set})" for item in self.items for _ in range(ways)]
        require_room(model, processor, talks, names, self.tokens)

    def answered(self, model, processor, batch_size: int, progress=None) -> list[dict]:
        """Ask the model and return the rows."""
        if self.options is not None:
            table = option_likelihoods(model, processor, self.talks, self.options, batch_size, progress)
            return self.rows(self.items, self.talks, table)
        found = greedy(model, processor, self.talks, self.tokens, batch_size, progress, self.until)
        return self.rows(self.items, self.talks, *found)
