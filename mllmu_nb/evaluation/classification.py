"""Multiple choice, scored twice: by the letter the model writes and by the option it finds likeliest.

``letter`` is upstream's: the answer's first character, upper-cased, if it is one of the options. Anything else is
wrong and is counted as a parse failure. ``likelihood`` shows the question without its options and compares the mean
log-likelihood per token of four answers: the sentence that fine-tuning teaches for this fact, with each option in the
place of the fact (the bare option where there is no such sentence). It needs no shots and cannot fail to parse.
"""

from __future__ import annotations

import re
from math import isfinite

import numpy as np

from mllmu_nb.data.reading import with_name
from mllmu_nb.data.schema import LETTERS, Item, Population, Profile, Question
from mllmu_nb.evaluation.engine import greedy, option_likelihoods
from mllmu_nb.evaluation.items import row, shots_before
from mllmu_nb.models.prompts import Conversation, Turn, choice_shot, question_of, question_prompt

LETTER_TOKENS = 4  # upstream generates 50 and reads one character


def letter_rows(
    model, processor, items: list[Item], population: Population, *, shots, shot_seed, system, batch_size, progress=None
) -> list[dict]:
    """One ``letter`` row an item: ``answer`` is what was written, ``parsed`` whether a letter came out."""
    examples = shots_before(items, population, shots=shots, people=1, seed=shot_seed, as_turn=_solved)
    talks = [
        Conversation((*before, question_of(item.question, item.image)), system)
        for item, before in zip(items, examples, strict=True)
    ]
    texts, lengths = greedy(model, processor, talks, LETTER_TOKENS, batch_size, progress)
    rows = []
    for item, before, text, length in zip(items, examples, texts, lengths, strict=True):
        given = letter(text, len(item.question.options))
        scored = {"correct": float(given == item.question.answer), "parsed": bool(given)}
        rows.append(row(item, text, scoring="letter", shots=len(before), tokens=length, **scored))
    return rows


def likelihood_rows(
    model, processor, items: list[Item], population: Population, *, system, batch_size, progress=None
) -> list[dict]:
    """One ``likelihood`` row an item: ``answer`` is the letter of the likeliest option (the first of equals)."""
    talks = [Conversation((Turn(question_prompt(item.question.text), image=item.image),), system) for item in items]
    options = [
        tuple(stated(population.profiles[item.question.profile], item.question, o) for o in item.question.options)
        for item in items
    ]
    table = option_likelihoods(model, processor, talks, options, batch_size, progress)
    return [_chosen(item, scores) for item, scores in zip(items, table, strict=True)]


def stated(person: Profile, question: Question, option: str) -> str:
    """``option`` as an answer: the person's fine-tuning sentence for the asked attribute, the fact replaced by it.

    The article before it follows the option, lest "an" give the right one away. In the text view the sentence says the
    name.
    """
    for qa in person.qa:
        if qa.value and qa.attribute == question.attribute and qa.value in qa.answer:
            before, after = qa.answer.split(qa.value, 1)
            article = "an " if option[:1].lower() in "aeiou" else "a "
            text = re.sub(r"\b[Aa]n? $", article, before) + option + after
            return with_name(text, person.name) if question.view == "text" else text
    return option


def letter(text: str, options: int = len(LETTERS)) -> str:
    """The letter an answer gives, or "" when its first character is none of the options'."""
    first = text.strip()[:1].upper()
    return first if first in LETTERS[:options] else ""


def _solved(question: Question, image: bytes | None) -> Turn:
    return choice_shot(question.text, question.options, question.answer, image)


def _chosen(item: Item, scores: np.ndarray) -> dict:
    # a model that diverged may find nothing likely at all: no option is chosen and the answer is wrong
    choice = LETTERS[int(np.argmax(scores))] if all(map(isfinite, scores)) else ""
    named = {f"option_{name}": float(score) for name, score in zip(LETTERS, scores, strict=False)}
    right = float(choice == item.question.answer)
    return row(item, choice, scoring="likelihood", correct=right, parsed=bool(choice), **named)
