"""Everything that chance decides in an evaluation, as plain JSON: whose questions are shown solved before a question
("shots"), and which picture of a person the test set shows.

``draws.json`` lies with a run. It can be given to another implementation, or to this one to be replayed::

    {"shot_source": "upstream", "shot_seed": 0,
     "shots": {set: {"classification": [id], "cloze": [id, id]}},
     "test_image": {id: {task: number of the picture, from 0}}}

Shots come from one of

- ``pool``: people who are in the training data and never scored. No answer leaks.
- ``retain``: the same few retain people for every set and task, whom nobody is scored on (any model, any task).
- ``upstream``: as in the released evaluation, from the very people of the set, once a set and task; only the drawn
  people's questions of that task are left out of the score. The drawn ids are looked up in ``Full_Set``, so Test shows
  the original questions and portraits, and celebrities are found there only where an id is also a fictitious
  person's. Such a person's questions are then shown before cloze questions. Before multiple choice, upstream shows
  that person's pictures without the text, which current versions of transformers refuse: here nothing is shown.
- ``none``.

``upstream`` as a protocol shows each test person one of their pictures, drawn anew for each task; ``clean`` the first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from mllmu_nb.data.schema import TASKS, Population, Profile
from mllmu_nb.errors import KitError

SOURCES = ("pool", "retain", "upstream", "none")
SHOT_PEOPLE = {"classification": 1, "cloze": 2}  # shown solved, by task; cloze shows two questions of each in a view
RETAINED = 2  # retain people who are taken out of scoring; multiple choice shows the first, cloze the first two
FIELDS = ("shot_source", "shot_seed", "shots", "test_image")


def draw(
    population: Population,
    sets: Sequence[str],
    *,
    shots: int,
    shot_source: str,
    shot_seed: int,
    shot_people: Mapping[str, int] = SHOT_PEOPLE,
    protocol: str = "clean",
) -> dict[str, Any]:
    """All draws of an evaluation of ``sets``, from ``shot_seed`` alone: one model is asked what any other is.

    A draw depends on its set and task and not on the view, nor on which other sets are asked. ``shot_people`` is the
    family's; ``shots`` = 0 draws nobody, and so does a set without people. Raises ``KitError`` when there are too few
    people to draw from.
    """
    draws: dict[str, Any] = {"shot_source": shot_source, "shot_seed": shot_seed, "shots": {}, "test_image": {}}
    if _needs_people(shots, shot_source):
        draws["shots"] = {
            name: {
                task: _drawn(population, name, task, count, shot_source, shot_seed)
                for task, count in shot_people.items()
            }
            for name in sets
            if population.members(name)
        }
    if protocol == "upstream" and "test" in sets:
        for person in population.members("test"):
            pictures = range(len(person.test_portraits))
            draws["test_image"][person.id] = {
                task: Random(f"{shot_seed}/test/{task}/{person.id}").choice(pictures) for task in TASKS
            }
    return draws


def read(path: str | Path) -> dict[str, Any]:
    """A file of draws. Raises ``KitError`` when it cannot be read or is of another form."""
    try:
        draws = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise KitError(f"the draws {path} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise KitError(f"the draws {path} are not JSON: take the draws.json of a run") from None
    if not isinstance(draws, dict) or not {"shot_source", "shots"} <= draws.keys() <= set(FIELDS):
        raise KitError(f"the draws {path} must hold {', '.join(FIELDS)} and nothing else: take the draws.json of a run")
    draws = {"shot_seed": None, "test_image": {}, **draws}
    for name in ("shots", "test_image"):
        if not isinstance(draws[name], dict):
            raise KitError(f"{name} of the draws {path} must hold names and values, not {draws[name]!r}")
    return draws


def check(
    draws: Mapping[str, Any],
    population: Population,
    sets: Sequence[str],
    *,
    shots: int,
    shot_source: str,
    shot_people: Mapping[str, int] = SHOT_PEOPLE,
    protocol: str = "clean",
) -> None:
    """Raise ``KitError`` unless ``draws`` are such as :func:`draw` makes: the right number of people for every set and
    task, all known and from where the source draws, and for every test person of ``upstream`` a picture there is."""
    if draws["shot_source"] != shot_source:
        raise KitError(f"the draws are for shot_source {draws['shot_source']!r}: it cannot be {shot_source!r} here")
    if _needs_people(shots, shot_source):
        for name in filter(population.members, sets):
            able = {person.id for person in _people(population, name, shot_source)}
            for task, count in shot_people.items():
                _check_people(_entry(draws["shots"], name, task), able, count, f"{task} shots of {name}")
    for person in population.members("test") if "test" in sets else ():
        for task in TASKS:
            number = _entry(draws["test_image"], person.id, task)
            if number is None and protocol != "upstream":
                continue
            if type(number) is not int or not 0 <= number < len(person.test_portraits):
                raise KitError(
                    f"the draws show picture {number} of {person.id} in {task}: "
                    f"a whole number from 0 to {len(person.test_portraits) - 1} is needed"
                )
    known = {person.id for person in population.members("test")} if "test" in sets else set()
    unknown = sorted(map(str, draws["test_image"].keys() - known)) if known else []
    if unknown:
        raise KitError(f"the draws show pictures of {unknown[0]}, who is not in the test set")


def shown(draws: Mapping[str, Any], population: Population, set_name: str, task: str) -> list[Profile]:
    """Whose questions precede those of a set and task, in the order in which they are shown."""
    ids = draws["shots"].get(set_name, {}).get(task, [])
    if draws["shot_source"] != "upstream":
        return [population.profiles[i] for i in ids]
    if set_name == "celebrity":
        if task == "classification":
            return []
        ids = [i.removeprefix("c") for i in ids]  # as the published layout prints them; reading it puts the c there
    return [p for p in population.profiles.values() if p.kind != "celebrity" and p.id in ids]  # Full_Set's order


def left_out(draws: Mapping[str, Any], set_name: str, task: str) -> set[str]:
    """Ids of those whose questions of a task are not scored, since their answers may have been shown."""
    if draws["shot_source"] == "upstream":
        return set(draws["shots"].get(set_name, {}).get(task, []))
    if draws["shot_source"] == "retain" and set_name == "retain":
        return {i for tasks in draws["shots"].values() for ids in tasks.values() for i in ids}
    return set()


def picture(draws: Mapping[str, Any], profile: str, task: str) -> int:
    """The number of the picture that the test set shows of a person."""
    return draws["test_image"].get(profile, {}).get(task, 0)


# ------------------------------------------------------------------------------------------------------------- inside


def _needs_people(shots: int, source: str) -> bool:
    return shots > 0 and source != "none"


def _people(population: Population, set_name: str, source: str) -> list[Profile]:
    """Those a source may draw for a set."""
    if source == "pool":
        return population.of_kind("pool")
    return population.members("retain" if source == "retain" else set_name)


def _drawn(population: Population, set_name: str, task: str, count: int, source: str, seed: int) -> list[str]:
    people = _people(population, set_name, source)
    if source == "upstream":
        if len(people) <= count:
            raise KitError(
                f"{task} shots take {count} of the {len(people)} people of {set_name}: nobody is left to score"
            )
        return Random(f"{seed}/{set_name}/{task}").sample([person.id for person in people], count)
    tasks = {task} if source == "pool" else set(SHOT_PEOPLE)
    able = sorted(p.id for p in people if tasks <= {question.task for question in p.questions})
    if source == "pool":
        if len(able) < count:
            raise KitError(f"{task} shots need {count} people in the unscored pool, it has {len(able)}: set shots to 0")
        return Random(f"{seed}/{set_name}/{task}").sample(able, count)
    if len(able) <= RETAINED:
        raise KitError(f"shots take {RETAINED} people out of the retain set, it has {len(able)}: set shots to 0")
    return Random(f"{seed}/retain").sample(able, RETAINED)[:count]


def _entry(table: Any, *keys: str) -> Any:
    """What a nested table holds under ``keys``, None where it holds nothing there."""
    for key in keys:
        table = table.get(key) if isinstance(table, Mapping) else None
    return table


def _check_people(ids: Any, able: set[str], count: int, what: str) -> None:
    ids = ids if isinstance(ids, list) else []
    unknown = [i for i in ids if not isinstance(i, str) or i not in able]
    if unknown:
        raise KitError(f"the draws name {unknown[0]!r} for the {what}, who is not among those it can come from")
    if len(set(ids)) != count or len(ids) != count:
        raise KitError(f"the draws name {len(set(ids))} people for the {what}: {count} are needed")
