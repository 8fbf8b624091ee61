"""Free answers: overlap with the printed sentence as upstream measures it, and whether the fact itself is there.

ROUGE and BLEU reward the frame of a sentence as much as its fact: a model that never saw the people scores high on
templated answers. ``exact`` and ``factuality`` look at the fact alone and stand beside them.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache, partial
from math import nan

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer

from mllmu_nb.data.schema import Item, Population
from mllmu_nb.evaluation.factuality import holds, rubric
from mllmu_nb.evaluation.items import Part, ending, row
from mllmu_nb.models.prompts import Conversation, question_of

ANSWER_TOKENS = 40  # upstream generates 50; one sentence about one fact


def by_sentence(items: list[Item], population: Population, *, system, protocol) -> Part:
    """The items as they are asked, without shots."""
    talks = [Conversation((question_of(item.question, item.image, protocol),), system) for item in items]
    rows = partial(generation_rows, values=known_values(population))
    return Part(items, talks, rows, **ending(protocol, ANSWER_TOKENS))


def generation_rows(
    items: list[Item],
    talks: list[Conversation],
    texts: list[str],
    lengths: list[int],
    values: dict[str, set[str]],
) -> list[dict]:
    """One row an item. Where a question's bare value is not known, exact and factuality stay NaN.

    ``values`` is what :func:`known_values` finds.
    """
    rows = []
    for item, text, length in zip(items, texts, lengths, strict=True):
        asked = item.question
        facts = {"exact": nan, "factuality": nan}
        if asked.value:
            # the printed truth may itself name a second value ("a chef who works as a restaurant owner")
            rivals = [value for value in values[asked.attribute] if not holds(asked.answer, value)]
            facts = {
                "exact": float(holds(text, asked.value)),
                "factuality": float(rubric(text, asked.value, asked.attribute, rivals)),
            }
        rows.append(row(item, text, tokens=length, **overlap(asked.answer, text), **facts))
    return rows


def overlap(truth: str, answer: str) -> dict[str, float]:
    """ROUGE-1/2/L F1 with stemming and sentence BLEU by whitespace tokens, smoothing method 1; all 0 to 1."""
    found = {name: score.fmeasure for name, score in _rouge().score(truth, answer).items()}
    words = answer.split()
    smoothing = SmoothingFunction().method1
    found["bleu"] = float(sentence_bleu([truth.split()], words, smoothing_function=smoothing)) if words else 0.0
    return found


@cache
def _rouge() -> RougeScorer:
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def known_values(population: Population) -> dict[str, set[str]]:
    """What is said of anyone, by attribute: an answer that names one of these beside the truth contradicts itself."""
    known = defaultdict(set)
    for person in population.profiles.values():
        for attribute, value in person.attributes.items():
            known[attribute].add(value)
    return known
