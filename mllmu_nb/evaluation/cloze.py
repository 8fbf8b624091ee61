"""Filling the blank: right when the missing words are contained in the answer, in any case (upstream's rule)."""

from __future__ import annotations

from collections.abc import Mapping

from mllmu_nb.data.schema import Item, Population, Question
from mllmu_nb.evaluation.items import Part, ending, row, shots_before
from mllmu_nb.models.prompts import Conversation, Turn, cloze_shot, question_of

CLOZE_TOKENS = 20  # upstream generates 50; the longest value of a profile is a handful of words


def by_cloze(items: list[Item], population: Population, draws: Mapping, *, shots, system, protocol) -> Part:
    """The items as they are asked. ``shots`` are at most the two cloze questions that each drawn person has in a view:
    four for LLaVA, two for Idefics2."""
    examples = shots_before(items, population, draws, shots, _solved)
    talks = [
        Conversation((*before, question_of(item.question, item.image, protocol)), system)
        for item, before in zip(items, examples, strict=True)
    ]
    return Part(items, talks, cloze_rows, **ending(protocol, CLOZE_TOKENS))


def cloze_rows(items: list[Item], talks: list[Conversation], texts: list[str], lengths: list[int]) -> list[dict]:
    """One row an item."""
    return [
        row(
            item,
            text,
            shots=len(talk.turns) - 1,
            correct=float(contained(item.question.answer, text)),
            tokens=length,
        )
        for item, talk, text, length in zip(items, talks, texts, lengths, strict=True)
    ]


def contained(truth: str, answer: str) -> bool:
    """Upstream's test: the ground truth is a part of the answer, ignoring case."""
    return truth.strip().lower() in answer.lower()


def _solved(question: Question, image: bytes | None) -> Turn:
    return cloze_shot(question.text, question.answer, image)
