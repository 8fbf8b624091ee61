"""Filling the blank: right when the missing words are contained in the answer, in any case (upstream's rule)."""

from __future__ import annotations

from mllmu_nb.data.schema import Item, Population, Question
from mllmu_nb.evaluation.engine import greedy
from mllmu_nb.evaluation.items import row, shots_before
from mllmu_nb.models.prompts import Conversation, Turn, cloze_shot, question_of

CLOZE_TOKENS = 20  # upstream generates 50; the longest value of a profile is a handful of words
PEOPLE = 2  # shots come from two people, as upstream does for LLaVA: two questions each and view, four in all


def cloze_rows(
    model, processor, items: list[Item], population: Population, *, shots, shot_seed, system, batch_size, progress=None
) -> list[dict]:
    """One row an item. ``shots`` are at most the four cloze questions that two pool people have in a view."""
    examples = shots_before(items, population, shots=shots, people=PEOPLE, seed=shot_seed, as_turn=_solved)
    talks = [
        Conversation((*before, question_of(item.question, item.image)), system)
        for item, before in zip(items, examples, strict=True)
    ]
    texts, lengths = greedy(model, processor, talks, CLOZE_TOKENS, batch_size, progress)
    return [
        row(item, text, shots=len(before), correct=float(contained(item.question.answer, text)), tokens=length)
        for item, before, text, length in zip(items, examples, texts, lengths, strict=True)
    ]


def contained(truth: str, answer: str) -> bool:
    """Upstream's test: the ground truth is a part of the answer, ignoring case."""
    return truth.strip().lower() in answer.lower()


def _solved(question: Question, image: bytes | None) -> Turn:
    return cloze_shot(question.text, question.answer, image)
