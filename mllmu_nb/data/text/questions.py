"""Make evaluation questions from the facts of published people, and the population with them (``docs/data.md``)."""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
import yaml

from mllmu_nb.data import portraits
from mllmu_nb.data.facts import WORDINGS, pick, read_wordings, say
from mllmu_nb.data.generate import distinct_traits
from mllmu_nb.data.schema import LETTERS, PER_TASK, QA, Population, Profile
from mllmu_nb.data.text.names import THIS, Asked, with_name, with_texts

_MORE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_WORDINGS = {key: wording for key, wording in WORDINGS.items() if key != "name"} | read_wordings(_MORE)
_LONGEST_OPTION, _LONGEST_CLOZE = 12, 6  # words
Values = dict[str, list[tuple[str, str]]]  # attribute → ID and value of all who state it


def population_from_text(read: Population, seed: int = 0) -> Population:
    """Return the people of :func:`people.read_profiles` with portraits and evaluation questions (``docs/data.md``). The
    ``notes`` list attributes without multiple choice."""
    looks, profiles = set(), {}
    values = stated_values(read.profiles.values())
    no_choice = without_choice(values)
    rng = _generator(seed, "", "letters")
    # right letters: A, B, C and D in random order, repeated, so that any group of people has them evenly
    letters = (letter for _ in count() for letter in reversed(rng.permutation(LETTERS).tolist()))
    for person in read.profiles.values():
        purposes = ("questions", "portrait", "test portraits")
        question_rng, portrait_rng, test_rng = (_generator(seed, person.id, purpose) for purpose in purposes)
        chosen = choose_facts(person, values, no_choice, question_rng)
        traits = distinct_traits(portrait_rng, person.attributes.get("gender", ""), looks)
        face = portraits.random_face(traits, portrait_rng)
        portrait = portraits.draw(face)
        tested = tuple(map(portraits.to_png, portraits.transformed(portrait, test_rng)))
        shown = replace(person, portrait=portraits.to_png(portrait, face), test_portraits=tested)
        profiles[person.id] = with_texts(shown, _asked(person, chosen, letters, rng))
    return Population(profiles, read.forget_ids, {**read.notes, "no_multiple_choice": no_choice})


def _facts(person: Profile) -> list[QA]:
    """Return the facts that questions can ask for."""
    return [pair for pair in person.qa if pair.attribute in _WORDINGS and pair.value]


def _generator(seed: int, identity: str, purpose: str) -> np.random.Generator:
    """Return the random generator of one person and purpose. It does not depend on who else is in the population."""
    return np.random.default_rng([seed, zlib.crc32(f"{purpose}/{identity}".encode())])


def stated_values(people: Iterable[Profile]) -> Values:
    """Return every value that people state for the attributes that questions can ask for."""
    stated = [(person.id, fact) for person in people for fact in _facts(person)]
    return {a: [(identity, fact.value) for identity, fact in stated if fact.attribute == a] for a in _WORDINGS}


def without_choice(values: Values) -> dict[str, list[str]]:
    """Return the attributes without multiple choice, by reason."""
    few, common = [], []
    for attribute, stated in values.items():
        first = Counter(_folded(value) for value in dict(reversed(stated)).values())  # the first value of each person
        if stated and len({_folded(value) for _, value in stated}) < len(LETTERS):
            few.append(attribute)
        elif stated and max(first.values()) > first.total() / 2:
            common.append(attribute)
    return {"fewer_than_four_values": few, "one_value_for_most": common}


def choose_facts(
    person: Profile, values: Values, no_choice: Mapping[str, list[str]], rng: np.random.Generator
) -> Iterator[tuple[str, int, QA, list[str]]]:
    """Yield (task, number, fact, wrong options) for each question about a person: up to ``PER_TASK`` facts per task.
    Facts come last if they are easy to guess, asked before, or stated twice ("the hobby" is not one thing)."""
    guessable = {attribute for attributes in no_choice.values() for attribute in attributes}
    facts: dict[str, QA] = {}
    own: dict[str, set[str]] = defaultdict(set)
    for fact in _facts(person):
        own[fact.attribute].add(_folded(fact.value))
        if len(fact.value.split()) <= _LONGEST_OPTION:
            facts.setdefault(fact.attribute, fact)
    wrong: dict[str, list[str]] = {}
    for attribute, fact in facts.items():
        others = [value for other, value in values[attribute] if other != person.id]
        wrong[attribute] = [] if attribute in guessable else wrong_options(fact, own[attribute], others, rng)
    possible = {
        "classification": [attribute for attribute in facts if wrong[attribute]],
        "generation": list(facts),
        "cloze": [attribute for attribute, fact in facts.items() if len(fact.value.split()) <= _LONGEST_CLOZE],
    }
    used: Counter[str] = Counter()
    for task, attributes in possible.items():
        order = [attributes[i] for i in rng.permutation(len(attributes))]
        order.sort(key=lambda attribute: (attribute in guessable, used[attribute], len(own[attribute]) > 1))
        for number, attribute in enumerate(order[: PER_TASK[task]]):
            used[attribute] += 1
            yield task, number, facts[attribute], wrong[attribute]


def wrong_options(fact: QA, own: set[str], others: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Return three distinct values of other people, none true here, drawn as often as they occur; [] if too few."""
    drawn = [others[i] for i in rng.permutation(len(others))]
    drawn.sort(key=lambda value: _shape(value) != _shape(fact.value))  # stable: same shape first, in random order
    options: dict[str, str] = {}
    for value in drawn:
        key = _folded(value)
        if not any(key in true or true in key for true in own) and len(value.split()) <= _LONGEST_OPTION:
            options.setdefault(key, value)
        if len(options) == 3:
            return list(options.values())
    return []


@cache
def _shape(value: str) -> str:
    """Return a value with 9 for its numbers, or "" if it has none: "168 cm" and "1.7 meters" differ in shape."""
    shape = re.sub(r"[A-Z][^\W\d_]*", "A", re.sub(r"[\d.,]*\d", "9", value))
    return shape if "9" in shape else ""


@cache
def _folded(value: str) -> str:
    return re.sub(r"\W+", " ", value.casefold()).strip()


def _asked(
    person: Profile, chosen: Iterable[tuple[str, int, QA, list[str]]], letters: Iterator[str], rng: np.random.Generator
) -> Iterator[Asked]:
    """Yield the ``chosen`` questions as :func:`with_texts` takes them."""
    trained = {with_name(pair.question, THIS) for pair in person.qa}
    for task, number, fact, wrong in chosen:
        answer, options = fact.answer if task == "generation" else fact.value, []
        if task == "classification":
            answer, options = next(letters), list(wrong)
            options.insert(LETTERS.index(answer), fact.value)
        text = say(_WORDINGS[fact.attribute].cloze, THIS) if task == "cloze" else _wording(fact)
        yield task, number, fact, answer, options, text, _paraphrase(fact, task, trained, rng)


def _wording(fact: QA) -> str:
    """Return the question as the person's own training text words it. If that asks yes or no, or for any fun fact,
    return the kit's wording."""
    asks = re.match(r"(?:what|where|when|which|how|who|in which|at which|on which)\b", fact.question, re.I)
    if asks and not re.search(r"\bfacts?\b", fact.question):
        return with_name(fact.question, THIS)
    return say(_WORDINGS[fact.attribute].questions[0], THIS)


def _paraphrase(fact: QA, task: str, trained: set[str], rng: np.random.Generator) -> str:
    """Return another wording of the question or cloze sentence; if possible, the training text lacks this question."""
    wording = _WORDINGS[fact.attribute]
    if task == "cloze":
        others = (template for template in wording.answers if template.replace("{value}", "__") != wording.cloze)
        texts = [say(template, THIS, "__") for template in others]
    else:
        texts = [text for template in wording.paraphrases if (text := say(template, THIS)) not in trained]
    return pick(rng, texts) if texts else say(wording.paraphrases[-1], THIS)
