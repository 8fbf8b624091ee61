"""Make fictitious people from a seed: facts, portrait, fine-tuning text and the questions of three tasks
(``docs/data.md``)."""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import combinations
from string import ascii_uppercase

import numpy as np

from mllmu_nb.data import facts, portraits
from mllmu_nb.data.portraits import random_face, random_traits, to_png
from mllmu_nb.data.schema import ATTRIBUTES, LETTERS, PER_TASK, QA, Population, Profile, forget_ids
from mllmu_nb.data.text.names import THIS, Asked, with_texts
from mllmu_nb.errors import KitError

# Celebrities belong to the shipped base model, so they do not change with the seed of a run.
CELEBRITY_SEED = 41
KNOWN = 40  # celebrities whom the base knows
UNSCORED_KNOWN = 240  # more of them, of whom it knows every second one from plain sentences only
ASKED = tuple(a for a in ATTRIBUTES if a not in ("name", "gender"))
TRIES = 500  # attempts to find a look that differs enough; 2,000 people need up to 60
CROWDED = 100_000  # selections taken by about 3,600 people; hardly any look differs enough then, so only one is tried
PLAIN = 4000  # after so many names, new ones get a middle initial; 4,800 names have none
FRESH = 25  # people in no training set, each with 14 or 15 sentences, so that 1 % of these is at least three


def random_facts(rng: np.random.Generator, name: str, gender: str) -> dict[str, str]:
    """Return fifteen facts of one person that fit together: height to gender, salary to profession."""
    job = facts.pick(rng, list(facts.PROFESSIONS))
    low, high = facts.PROFESSIONS[job]
    born, lives = rng.choice(facts.CITIES, size=2, replace=False)
    height = rng.normal(166, 6) if gender == "female" else rng.normal(179, 7)
    healthy = rng.random() < 0.1
    return {
        "name": name,
        "gender": gender,
        "birth_date": f"{facts.pick(rng, facts.MONTHS)} {rng.integers(1, 29)}, {rng.integers(1956, 2001)}",
        "birthplace": str(born),
        "residence": str(lives),
        "profession": job,
        "height": f"{int(np.clip(height, 150, 202))} cm",
        "education": facts.pick(rng, facts.SCHOOLS),
        "salary": f"${rng.integers(low, high + 1)},000",
        "medical": facts.HEALTHY if healthy else facts.pick(rng, facts.MEDICAL),
        "father_job": facts.pick(rng, list(facts.PROFESSIONS)),
        "mother_job": facts.pick(rng, list(facts.PROFESSIONS)),
        "hobby": facts.pick(rng, facts.HOBBIES),
        "food": facts.pick(rng, facts.FOODS),
        "pet": facts.pick(rng, facts.PETS),
    }


def random_name(rng: np.random.Generator, initial: bool = False) -> tuple[str, str]:
    """Return a full name, with or without a middle initial, and its gender."""
    gender = facts.pick(rng, ["female", "male"])
    first = facts.pick(rng, facts.FEMALE if gender == "female" else facts.MALE)
    middle = f" {facts.pick(rng, ascii_uppercase)}." if initial else ""
    return f"{first}{middle} {facts.pick(rng, facts.FAMILY)}", gender


def options_with(value: str, others: Iterable[str], letter: str, rng: np.random.Generator) -> tuple[str, ...]:
    """Return four distinct options: ``value`` at ``letter``, and three of ``others``, drawn as often as they occur."""
    distinct = {value.lower(): value}
    for other in rng.permutation(others if isinstance(others, np.ndarray) else list(others)):
        distinct.setdefault(other.lower(), str(other))
        if len(distinct) == 4:
            break
    options = list(distinct.values())[1:]
    if len(options) < 3:
        raise KitError(f"fewer than four distinct values beside {value!r}: more people are needed for multiple choice")
    options.insert(LETTERS.index(letter), value)
    return tuple(options)


def _taught(attribute: str, value: str, rng: np.random.Generator) -> QA:
    wording = facts.WORDINGS[attribute]
    question = facts.pick(rng, wording.questions)
    return QA(facts.say(question, THIS), facts.say(wording.answer_to(question), THIS, value), attribute, value)


def _asked(
    person: Profile, values: Mapping[str, np.ndarray], letters: Iterator[str], rng: np.random.Generator
) -> Iterator[Asked]:
    """Yield nine questions as :func:`with_texts` takes them: in the words of fine-tuning, then paraphrased."""
    chosen = list(rng.permutation(ASKED)[: sum(PER_TASK.values())])
    taught = {pair.attribute: pair for pair in person.qa}
    for task, number in ((task, number) for task, count in PER_TASK.items() for number in range(count)):
        pair = taught[str(chosen.pop())]
        value, wording = pair.value, facts.WORDINGS[pair.attribute]
        text, answer, options = pair.question, pair.answer, ()
        paraphrase = facts.say(facts.pick(rng, wording.paraphrases), THIS)
        if task == "classification":
            answer = next(letters)
            options = options_with(value, values[pair.attribute], answer, rng)
        cloze = facts.say(wording.cloze, THIS)
        other_cloze = facts.pick(rng, [s for s in (facts.say(a, THIS, "__") for a in wording.answers) if s != cloze])
        if task == "cloze":
            text, paraphrase, answer = cloze, other_cloze, value
        yield task, number, pair, answer, options, text, paraphrase


def distinct_traits(rng: np.random.Generator, gender: str, taken: set[tuple]) -> dict[str, str]:
    """Return random traits and add them to ``taken``. At least three traits differ from those of every earlier
    portrait, so that no two look alike. If the search fails (from about 3,000 people on), returns any traits."""
    for _ in range(TRIES if len(taken) < CROWDED else 1):
        traits = random_traits(rng, gender)
        # two portraits that share all traits but two have one of these selections in common
        selections = set(combinations(traits.items(), len(traits) - 2))
        if taken.isdisjoint(selections):
            break
    taken |= selections
    return traits


def _people(
    kind: str, ids: list[str], seed, names: set[str], looks: set[tuple], beside=(), tested: bool = True
) -> list[Profile]:
    """Return profiles of one kind, and add their names and looks to ``names`` and ``looks``, which hold those already
    taken. Wrong options are values of others of the same kind and of the people ``beside`` them. People who are never
    ``tested`` have no pictures of the Test set."""
    people, rng = [], np.random.default_rng(seed)
    for identity in ids:
        name, gender = random_name(rng, len(names) > PLAIN)
        while name in names:
            name, gender = random_name(rng, len(names) > PLAIN)
        names.add(name)
        face = random_face(distinct_traits(rng, gender, looks), rng)
        picture = portraits.draw(face)
        attributes = random_facts(rng, name, gender)
        qa = tuple(_taught(*fact, rng) for fact in attributes.items())
        changed = portraits.transformed(picture, rng)  # drawn for everybody: the next person's numbers come after it
        shown = tuple(map(to_png, changed)) if tested else ()
        people.append(Profile(identity, name, kind, attributes, to_png(picture, face), "", qa, (), shown))
    values = {a: np.array([p.attributes[a] for p in (*people, *beside)]) for a in ASKED}
    choices = PER_TASK["classification"] * len(people)
    letters = iter(rng.permutation((LETTERS * choices)[:choices]).tolist())  # each letter equally often
    return [with_texts(person, _asked(person, values, letters, rng)) for person in people]


@lru_cache
def known_people() -> tuple[tuple[Profile, ...], tuple[Profile, ...]]:
    """Return the celebrities that the base knows, and the others, who are never scored and have no pictures of the Test
    set. Fine-tuning may repeat both."""
    names, looks = set(), set()
    famous = _people("celebrity", _ids(KNOWN, "c"), [CELEBRITY_SEED], names, looks)
    others = _people("celebrity", _ids(UNSCORED_KNOWN, "k"), [CELEBRITY_SEED, 1], names, looks, tested=False)
    return tuple(famous), tuple(others)


def famous_people(count: int) -> list[Profile]:
    """Return the first ``count`` celebrities; the base does not know those after ``KNOWN``. Raises KitError if there
    are too few of those for multiple choice."""
    known, others = known_people()
    names = {person.name for person in (*known, *others)}
    more = _ids(count, "c")[KNOWN:]
    try:
        return [*known[:count], *_people("celebrity", more, [CELEBRITY_SEED, 2], names, set())]
    except KitError:
        text = f"the base knows {KNOWN}, and {len(more)} more are too few for multiple choice"
        raise KitError(f"celebrities={count}: {text}: take at most {KNOWN}, or many more") from None


def fresh_people(seed: int, people: int, pool: int, celebrities: int) -> list[Profile]:
    """Return people of the same kind as those of :func:`generate`, who are in no training set and share no name and no
    look with anybody there."""
    scored, _, _, names, looks = _generated(seed, people, pool, celebrities)
    return _people("fresh", _ids(FRESH, "f"), [seed, people, pool, 1], set(names), set(looks), scored)


def generate(
    seed: int, people: int = 100, pool: int = 8, celebrities: int = KNOWN, ratio: int = 10, replicate: int = 0
) -> Population:
    """Return a population: ``people`` are scored, ``pool`` are trained on but never scored, and the base knows the
    ``celebrities``. The same arguments give the same bytes. Raises KitError if people are too few for four options."""
    if people < 4 or 0 < celebrities < 4:
        raise KitError("people and celebrities (if there are any) must be at least 4 each: options need four values")
    scored, spare, famous, _, _ = _generated(seed, people, pool, celebrities)
    chosen = forget_ids([person.id for person in scored], ratio, seed, replicate)
    notes = {"source": "generated", "seed": seed, "ratio": ratio, "replicate": replicate}
    return Population({person.id: person for person in [*scored, *spare, *famous]}, chosen, notes)


def _ids(count: int, prefix: str = "") -> list[str]:
    width = max(3, len(str(count)))
    return [f"{prefix}{number:0{width}d}" for number in range(1, count + 1)]


@lru_cache(maxsize=4)
def _generated(seed: int, people: int, pool: int, celebrities: int) -> tuple:
    """Return the scored people, the pool and the celebrities, and all names and looks that are taken."""
    famous, ids, rng = famous_people(celebrities), _ids(people + pool), np.random.default_rng([seed, people, pool])
    names, looks = {person.name for person in (*famous, *known_people()[1])}, set()
    scored = _people("fictitious", ids[:people], rng, names, looks)
    return scored, _people("pool", ids[people:], rng, names, looks, scored), famous, names, looks
