"""Multiple choice, scored twice: by the letter the model writes and by the option it finds likeliest.

``letter`` is upstream's: the answer's first character, upper-cased, if it is one of the options. Anything else is
wrong and is counted as a parse failure. ``likelihood`` shows the question without its options and compares the mean
log-likelihood per token of four answers: the sentence that fine-tuning teaches for this fact, with each option in the
place of the fact (the bare option where there is no such sentence). It needs no shots and cannot fail to parse.

Asked by letter in the four cyclic orders of its options, a question also shows whether the model means an option or a
place: it is ``consistent`` where the same option is named in every order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite

import numpy as np

from mllmu_nb.data.reading import with_name
from mllmu_nb.data.schema import LETTERS, Item, Population, Profile, Question
from mllmu_nb.evaluation.items import Part, ending, row, shots_before
from mllmu_nb.models.prompts import Conversation, Turn, choice_shot, question_of

LETTER_TOKENS = 4  # upstream generates 50 and reads one character


def by_letter(items: list[Item], population: Population, draws: Mapping, *, shots, system, protocol, cyclic) -> Part:
    """The items as they are asked for a letter, with ``cyclic`` in all cyclic orders of their options."""
    examples = shots_before(items, population, draws, shots, _solved)
    talks = [
        Conversation((*before, question_of(shifted(item.question, shift), item.image, protocol)), system)
        for item, before in zip(items, examples, strict=True)
        for shift in range(len(LETTERS) if cyclic else 1)
    ]
    return Part(items, talks, letter_rows, **ending(protocol, LETTER_TOKENS))


def letter_rows(items: list[Item], talks: list[Conversation], texts: list[str], lengths: list[int]) -> list[dict]:
    """One ``letter`` row an item: ``answer`` is what was written, ``parsed`` whether a letter came out.

    Where the options were asked in several orders, the row is the first one's; ``chosen`` names the option of each
    order by its letter in the first ("-": none) and ``consistency`` is 1 where that is one option throughout, else 0.
    """
    orders, rows = len(talks) // max(len(items), 1), []
    for number, item in enumerate(items):
        first, count = number * orders, len(item.question.options)
        given = [letter(text, count) for text in texts[first : first + orders]]
        scored = {"correct": float(given[0] == item.question.answer), "parsed": bool(given[0])}
        if orders > 1:
            chosen = "".join(
                LETTERS[(LETTERS.index(name) + shift) % count] if name else "-" for shift, name in enumerate(given)
            )
            scored |= {"chosen": chosen, "consistency": float(len(set(chosen)) == 1 and "-" not in chosen)}
        counted = {"shots": len(talks[first].turns) - 1, "tokens": lengths[first]}
        rows.append(row(item, texts[first], scoring="letter", **counted, **scored))
    return rows


def by_likelihood(items: list[Item], population: Population, *, system) -> Part:
    """The items as their options are compared: the bare question, and each option as the answer to it."""
    talks = [Conversation((Turn(item.question.text, image=item.image),), system) for item in items]
    options = [
        tuple(stated(population.profiles[item.question.profile], item.question, o) for o in item.question.options)
        for item in items
    ]
    return Part(items, talks, likelihood_rows, options=options)


def likelihood_rows(items: list[Item], talks: list[Conversation], table: np.ndarray) -> list[dict]:
    """One ``likelihood`` row an item: ``answer`` is the letter of the likeliest option (the first of equals)."""
    return [_chosen(item, scores) for item, scores in zip(items, table, strict=True)]


def shifted(question: Question, shift: int) -> Question:
    """The question with its options moved up by ``shift`` places, those at the top to the end."""
    options = question.options[shift:] + question.options[:shift]
    return replace(question, options=options)


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
