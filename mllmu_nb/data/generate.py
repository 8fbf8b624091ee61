"""Fictitious people from a seed: facts, portrait, fine-tuning text and the questions of three tasks.

The form is the published one: per profile and view five multiple-choice, two generation and two cloze questions,
the image view saying "this person" and the text view the name, both asking for the same facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import combinations
from string import ascii_uppercase

import numpy as np

from mllmu_nb.data import facts, portraits
from mllmu_nb.data.portraits import TRANSFORMS, Face, random_traits, to_png
from mllmu_nb.data.schema import ATTRIBUTES, LETTERS, PER_TASK, QA, Population, Profile, Question, with_letter
from mllmu_nb.data.splits import forget_ids
from mllmu_nb.data.text.names import THIS as HERE
from mllmu_nb.data.text.names import in_both_views, with_name
from mllmu_nb.errors import KitError

# Celebrities belong to the shipped base model, so they do not change with the seed of a run.
CELEBRITY_SEED = 41
CELEBRITIES_KNOWN = 40
UNSCORED_KNOWN = 240  # every second one only from plain sentences
ASKED = tuple(a for a in ATTRIBUTES if a not in ("name", "gender"))
TRIES = 500  # of a look that differs enough; 2,000 people need up to 60
MOST = 100_000  # people; names with a middle initial would last for 129,600
FRESH = 25  # people in no training set: each has 14 or 15 sentences, and 1 % of them is to be three or more


def random_facts(rng: np.random.Generator, name: str, gender: str) -> dict[str, str]:
    """Fifteen facts of one person that fit together: height to gender, salary to profession."""
    job = str(rng.choice(list(facts.PROFESSIONS)))
    low, high = facts.PROFESSIONS[job]
    born, lives = rng.choice(facts.CITIES, size=2, replace=False)
    height = rng.normal(166, 6) if gender == "female" else rng.normal(179, 7)
    healthy = rng.random() < 0.1
    return {
        "name": name,
        "gender": gender,
        "birth_date": f"{rng.choice(facts.MONTHS)} {rng.integers(1, 29)}, {rng.integers(1956, 2001)}",
        "birthplace": str(born),
        "residence": str(lives),
        "profession": job,
        "height": f"{int(np.clip(height, 150, 202))} cm",
        "education": str(rng.choice(facts.SCHOOLS)),
        "salary": f"${rng.integers(low, high + 1)},000",
        "medical": facts.HEALTHY if healthy else str(rng.choice(facts.MEDICAL)),
        "father_job": str(rng.choice(list(facts.PROFESSIONS))),
        "mother_job": str(rng.choice(list(facts.PROFESSIONS))),
        "hobby": str(rng.choice(facts.HOBBIES)),
        "food": str(rng.choice(facts.FOODS)),
        "pet": str(rng.choice(facts.PETS)),
    }


def random_name(rng: np.random.Generator, initial: bool = False) -> tuple[str, str]:
    """A full name, with a middle initial or without, and its gender."""
    gender = str(rng.choice(["female", "male"]))
    first = rng.choice(facts.FEMALE if gender == "female" else facts.MALE)
    middle = f" {rng.choice(list(ascii_uppercase))}." if initial else ""
    return f"{first}{middle} {rng.choice(facts.FAMILY)}", gender


def options_with(value: str, others: Iterable[str], letter: str, rng: np.random.Generator) -> tuple[str, ...]:
    """Four distinct options, ``value`` standing at ``letter`` and three of ``others`` drawn as often as they occur."""
    distinct = {value.lower(): value}
    for other in rng.permutation(list(others)):
        distinct.setdefault(other.lower(), str(other))
    wrong = list(distinct.values())[1:4]
    if len(wrong) < 3:
        raise KitError(f"fewer than four distinct values beside {value!r}: more people are needed for multiple choice")
    return with_letter(value, letter, wrong)


def _qa(person: dict[str, str], rng: np.random.Generator) -> tuple[QA, ...]:
    """Fine-tuning pairs, one for each attribute."""
    pairs = []
    for attribute in ATTRIBUTES:
        wording = facts.WORDINGS[attribute]
        question = str(rng.choice(wording.questions))
        texts = (facts.say(text, HERE, person[attribute]) for text in (question, wording.answer_to(question)))
        pairs.append(QA(*texts, attribute, person[attribute]))
    return tuple(pairs)


def _questions(
    profile: Profile, values: dict[str, list[str]], letters: Iterator[str], rng: np.random.Generator
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """The eighteen questions of a profile, in the words of fine-tuning, and the Test set's eighteen paraphrases.

    The sentence of a cloze question is the same for everybody.
    """
    questions, tested = [], []
    chosen, taught = (
        list(rng.permutation(ASKED)[: sum(PER_TASK.values())]),
        {pair.attribute: pair for pair in profile.qa},
    )
    for task, number in ((task, number) for task, count in PER_TASK.items() for number in range(count)):
        pair = taught[str(chosen.pop())]
        value, wording = pair.value, facts.WORDINGS[pair.attribute]
        text, answer, options = pair.question, pair.answer, ()
        paraphrase = facts.say(str(rng.choice(wording.paraphrases)), HERE)
        if task == "classification":
            answer = next(letters)
            options = options_with(value, values[pair.attribute], answer, rng)
        cloze = facts.say(wording.cloze, HERE)
        other_cloze = str(rng.choice([s for s in (facts.say(a, HERE, "__") for a in wording.answers) if s != cloze]))
        if task == "cloze":
            text, paraphrase, answer = cloze, other_cloze, value
        for asked, words in ((questions, text), (tested, paraphrase)):
            question = Question(profile.id, task, "", number, words, answer, value, pair.attribute, options)
            asked += in_both_views(question, profile.name)
    return tuple(questions), tuple(tested)


@dataclass
class Looks:
    """The looks of portraits that are taken. Each new one differs from all of them in at least ``differences`` traits;
    fewer than three, and two portraits could be taken for one another, but some 3,000 people use up what there is."""

    differences: int = 3
    taken: set[tuple] = field(default_factory=set)

    def take(self, traits: dict[str, str]) -> bool:
        """Adds the look of ``traits`` unless it is too near to another."""
        pairs = tuple(traits.items())
        # two looks that share so many traits are the same in one of these selections
        if any(chosen in self.taken for chosen in combinations(pairs, len(pairs) + 1 - self.differences)):
            return False
        for size in range(len(pairs) - 2, len(pairs) + 1):
            self.taken.update(combinations(pairs, size))
        return True


def distinct_traits(rng: np.random.Generator, gender: str, looks: Looks) -> dict[str, str]:
    """Random traits of a look that is not taken; now it is. Where none turns up, ``looks`` asks for less difference."""
    while looks.differences:
        for _ in range(TRIES):
            traits = random_traits(rng, gender)
            if looks.take(traits):
                return traits
        looks.differences -= 1
    return random_traits(rng, gender)


def _people(
    kind: str,
    ids: list[str],
    seed: list[int] | np.random.Generator,
    names: set[str],
    looks: Looks,
    beside: Iterable[Profile] = (),
) -> list[Profile]:
    """Profiles of one kind; ``names`` and ``looks`` hold those already taken and are added to.

    Wrong options are the values of others of the same kind and of those ``beside``.
    """
    people, rng = [], np.random.default_rng(seed)
    plain = {f"{first} {family}" for first in (*facts.FEMALE, *facts.MALE) for family in facts.FAMILY}
    for identity in ids:
        initial = plain <= names
        name, gender = random_name(rng, initial)
        while name in names:
            name, gender = random_name(rng, initial)
        names.add(name)
        face = Face.random(distinct_traits(rng, gender, looks), rng)
        picture = portraits.draw(face)
        attributes = random_facts(rng, name, gender)
        qa = _qa(attributes, rng)
        biography = " ".join(with_name(pair.answer, name) for pair in qa if pair.attribute != "name")
        changed = tuple(to_png(portraits.transform(picture, k, rng)) for k in range(len(TRANSFORMS)))
        people.append(Profile(identity, name, kind, attributes, to_png(picture, face), biography, qa, (), changed))
    values = {a: [p.attributes[a] for p in (*people, *beside)] for a in ASKED}
    choices = PER_TASK["classification"] * len(people)
    letters = iter(rng.permutation((LETTERS * choices)[:choices]).tolist())  # each letter equally often
    asked = (_questions(person, values, letters, rng) for person in people)
    return [replace(p, questions=plain, test_questions=test) for p, (plain, test) in zip(people, asked, strict=True)]


@lru_cache
def known_people() -> tuple[tuple[Profile, ...], tuple[Profile, ...]]:
    """Whom the base knows: the celebrities, and others who are never scored and whom fine-tuning may repeat."""
    names, looks = set(), Looks()
    famous = _people("celebrity", _ids(CELEBRITIES_KNOWN, "c"), [CELEBRITY_SEED], names, looks)
    return tuple(famous), tuple(_people("celebrity", _ids(UNSCORED_KNOWN, "k"), [CELEBRITY_SEED, 1], names, looks))


def famous_people(count: int = CELEBRITIES_KNOWN) -> list[Profile]:
    """The first ``count`` celebrities; those past ``CELEBRITIES_KNOWN`` are unknown to the base."""
    _check_count(count)
    known, others = known_people()
    names = {person.name for person in (*known, *others)}
    ids = [f"c{number:03d}" for number in range(CELEBRITIES_KNOWN + 1, count + 1)]
    return [*known[:count], *_people("celebrity", ids, [CELEBRITY_SEED, 2], names, Looks())]


def fresh_people(
    seed: int, people: int = 100, pool: int = 8, celebrities: int = CELEBRITIES_KNOWN, count: int = FRESH
) -> list[Profile]:
    """``count`` people of the same kind as those of :func:`generate`, who are in no training set.

    They share no name with anybody there, and no portrait that could be taken for one of the fictitious people's.
    """
    scored, _, _, names, looks = _generated(seed, people, pool, celebrities)
    return _people("fresh", _ids(count, "f"), [seed, people, pool, 1], set(names), deepcopy(looks), scored)


def generate(
    seed: int, people: int = 100, pool: int = 8, celebrities: int = CELEBRITIES_KNOWN, ratio: int = 10, draw: int = 0
) -> Population:
    """A population: ``people`` scored, ``pool`` trained on but never scored, ``celebrities`` known to the base.

    The same arguments give the same bytes. Raises KitError when there are too few people for four options, or the
    ratio leaves nobody.
    """
    if people < 4 or 0 < celebrities < 4:
        text = "people and celebrities must be at least 4 each (celebrities may be 0): options need four values"
        raise KitError(text)
    _check_count(people + pool + celebrities)
    scored, spare, famous, _, looks = _generated(seed, people, pool, celebrities)
    chosen = forget_ids([person.id for person in scored], ratio, seed, draw)
    notes = {"source": "generated", "seed": seed, "ratio": ratio, "draw": draw}
    if looks.differences < 3:
        notes["portraits_differ_in"] = looks.differences
    return Population({person.id: person for person in [*scored, *spare, *famous]}, chosen, notes)


def _check_count(count: int) -> None:
    if count > MOST:
        raise KitError(f"people, pool and celebrities are {count} together: at most {MOST} can be made")


def _ids(count: int, prefix: str = "") -> list[str]:
    width = max(3, len(str(count)))
    return [f"{prefix}{number:0{width}d}" for number in range(1, count + 1)]


@lru_cache(maxsize=4)
def _generated(seed: int, people: int, pool: int, celebrities: int) -> tuple:
    """The scored people, the pool and the celebrities, and all names and looks that are taken."""
    famous, ids, rng = famous_people(celebrities), _ids(people + pool), np.random.default_rng([seed, people, pool])
    names, looks = {person.name for person in (*famous, *known_people()[1])}, Looks()
    scored = _people("fictitious", ids[:people], rng, names, looks)
    return scored, _people("pool", ids[people:], rng, names, looks, scored), famous, names, looks
