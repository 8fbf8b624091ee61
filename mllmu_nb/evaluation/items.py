"""What every task shares: the row of an item and where worked examples ("shots") come from."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import nan

from mllmu_nb.data.schema import Item, Population, Profile, Question
from mllmu_nb.errors import KitError
from mllmu_nb.models.prompts import Turn

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
    "option_A",
    "option_B",
    "option_C",
    "option_D",
    "tokens",
)
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
    *,
    shots: int,
    people: int,
    seed: int,
    as_turn: Callable[[Question, bytes | None], Turn],
) -> list[tuple[Turn, ...]]:
    """The worked examples to put before each item: the clean protocol's, out of the pool that is never scored.

    They are the first ``shots`` questions, of the item's task and view, of ``people`` drawn from the pool; so no
    answer leaks, where upstream draws from the very people it scores. Who is drawn depends on the seed, the set and
    the task and not on the model or the view: every model of a run reads the same examples, and both views show the
    same people. Celebrities get examples too, where upstream finds none for multiple choice. In the image view each
    example stands beside its person's portrait.
    """
    found = {}
    for item in items:
        key = item.set, item.question.task, item.question.view
        if key not in found:
            found[key] = _shots(population, *key, shots, people, seed, as_turn) if shots else ()
    return [found[item.set, item.question.task, item.question.view] for item in items]


def _shots(population, set_name, task, view, shots, people, seed, as_turn) -> tuple[Turn, ...]:
    able = [person for person in population.of_kind("pool") if _questions(person, task, view)]
    if len(able) < people:
        raise KitError(f"{task} shots need {people} people in the unscored pool, it has {len(able)}: set shots to 0")
    drawn = random.Random(f"{seed}/{set_name}/{task}").sample(sorted(able, key=lambda person: person.id), people)
    examples = [
        as_turn(question, person.portrait if view == "image_text" else None)
        for person in drawn
        for question in _questions(person, task, view)
    ]
    return tuple(examples[:shots])


def _questions(person: Profile, task: str, view: str) -> list[Question]:
    return [question for question in person.questions if question.task == task and question.view == view]
