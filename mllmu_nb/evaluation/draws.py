"""All random choices of an evaluation, as plain JSON: whose questions are shown as worked examples before a question
("shots"), and which picture of a person the test set shows. ``docs/architecture.md`` describes the sources of shots.

``draws.json`` is stored with a run, and can be replayed here or given to another implementation::

    {"shot_source": "upstream", "shot_seed": 0,
     "shots": {set: {"classification": [id], "cloze": [id, id]}},
     "test_image": {id: {task: number of the picture, from 0}}}
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from pydantic import BaseModel, ValidationError

from mllmu_nb.data.schema import TASKS, Population, Profile
from mllmu_nb.errors import KitError
from mllmu_nb.models.families import Family
from mllmu_nb.stages import read_json

RETAINED = 2  # retain people who are not scored; multiple choice shows the first, cloze the first two


def draw(
    population: Population,
    sets: Sequence[str],
    *,
    shots: int,
    shot_source: str,
    shot_seed: int,
    shot_people: Mapping[str, int] = Family.shot_people,
    protocol: str = "clean",
) -> dict[str, Any]:
    """Return all draws of an evaluation of ``sets``. With the same ``shot_seed``, every model is asked the same.

    A draw depends on its set and task, not on the view or on the other sets. ``shot_people`` is the family's. Raises
    ``KitError`` if there are too few people to draw from.
    """
    draws: dict[str, Any] = {"shot_source": shot_source, "shot_seed": shot_seed, "shots": {}, "test_image": {}}
    for name in filter(population.members, sets) if shots and shot_source != "none" else ():
        people = {task: _drawn(population, name, task, n, shot_source, shot_seed) for task, n in shot_people.items()}
        draws["shots"][name] = people
    for person in population.members("test") if protocol == "upstream" and "test" in sets else ():
        pictures = range(len(person.test_portraits))
        numbers = {task: Random(f"{shot_seed}/test/{task}/{person.id}").choice(pictures) for task in TASKS}
        draws["test_image"][person.id] = numbers
    return draws


def _drawn(population: Population, set_name: str, task: str, count: int, source: str, seed: int) -> list[str]:
    (people, place), key, needed = _source(population, set_name, source), f"{seed}/{set_name}/{task}", count
    if source == "retain":  # the same people for all sets and tasks
        key, needed = f"{seed}/retain", RETAINED
    if source == "upstream":
        able = [person.id for person in people]
    else:
        tasks = {task} if source == "pool" else set(Family.shot_people)
        able = sorted(p.id for p in people if tasks <= {question.task for question in p.questions})
    least = needed if source == "pool" else needed + 1  # so that somebody is left to score
    if source == "upstream" and set_name == "celebrity" and not any(in_full_set(population, i) for i in able):
        least, needed = 0, min(needed, len(able))  # upstream finds none of them, so it shows and leaves out nobody
    if len(able) < least:
        raise KitError(f"{task} shots need {least} people in the {place}, it has {len(able)}: set shots to 0")
    return Random(key).sample(able, needed)[:count]


def of_one_ratio(draws: Mapping[str, Any]) -> list[str]:
    """Return the sets whose shots are drawn from people who change with the forget ratio."""
    return [name for name in draws["shots"] if draws["shot_source"] not in ("pool", "retain") and name != "celebrity"]


def _source(population: Population, set_name: str, source: str) -> tuple[list[Profile], str]:
    """Return the people that a source may draw from for a set, and their name in messages. For ``retain``, nobody whom
    another forget ratio forgets, so that all ratios show the same people."""
    if source == "pool":
        return population.of_kind("pool"), "unscored pool"
    if source == "retain":
        forgotten = {i for ids in population.notes.get("forget_splits", {}).values() for i in ids}
        return [person for person in population.members("retain") if person.id not in forgotten], "retain set"
    return population.members(set_name), f"{set_name} set"


class _File(BaseModel, extra="forbid", strict=True):
    shot_source: str
    shot_seed: Any = None
    shots: dict[str, dict[str, list[str]]]
    test_image: dict[str, dict[str, int]] = {}


def read(path: str | Path) -> dict[str, Any]:
    """Read a file of draws. Raises ``KitError`` if it cannot be read or has another form."""
    try:
        return _File.model_validate(read_json(Path(path))).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise KitError(f"the draws {path} are of another form ({problem}): take the draws.json of a run") from None


def check(draws: Mapping[str, Any], population: Population, sets: Sequence[str], **how: Any) -> None:
    """Raise ``KitError`` unless :func:`draw` with the arguments ``how`` could make ``draws``, with any seed: as many
    people for every set and task, all from the right source, and for every test person a picture that exists."""
    usual = draw(population, sets, shot_seed=0, **how)
    source, given = usual["shot_source"], draws["shot_source"]
    if given != source:
        raise KitError(f"the draws are for shot_source {given!r}: it cannot be {source!r} here")
    for name, tasks in usual["shots"].items():
        people, place = _source(population, name, source)
        able = {person.id for person in people}
        for task, drawn in tasks.items():
            ids, count = draws["shots"].get(name, {}).get(task, []), len(drawn)
            if len(ids) != count or len(able.intersection(ids)) != count:
                needed = f"name {count} {'person' if count == 1 else 'people'} of the {place}"
                raise KitError(f"the draws name {ids!r} for the {task} shots of {name}: {needed}")
    for person, task in product(population.members("test") if "test" in sets else (), TASKS):
        number = draws["test_image"].get(person.id, {}).get(task, None if usual["test_image"] else 0)
        if number not in range(len(person.test_portraits)):
            problem = f"picture {number} of {person.id} in {task}: the test set has no such picture"
            raise KitError(f"the draws show {problem}")


def shown(draws: Mapping[str, Any], population: Population, set_name: str, task: str) -> list[Profile]:
    """Return the people whose questions precede those of a set and task, in the order shown."""
    ids = draws["shots"].get(set_name, {}).get(task, [])
    if draws["shot_source"] != "upstream":
        return [population.profiles[i] for i in ids]
    if set_name == "celebrity":
        ids = [in_full_set(population, i) for i in ids] if task == "cloze" else []
    return [p for p in population.profiles.values() if p.kind != "celebrity" and p.id in ids]  # Full_Set's order


def in_full_set(population: Population, celebrity: str) -> str:
    """Return the fictitious person with a celebrity's printed ID, whose row upstream takes instead; "" for none."""
    return population.notes.get("shared_ids", {}).get(celebrity, "")


def left_out(draws: Mapping[str, Any], population: Population, set_name: str, task: str) -> set[str]:
    """Return the ids of people whose questions of a task are not scored, because their answers may have been shown.
    Upstream leaves out those that it finds in ``Full_Set``: a celebrity only if a fictitious person has the same ID."""
    if draws["shot_source"] == "upstream":
        drawn = draws["shots"].get(set_name, {}).get(task, [])
        return {i for i in drawn if set_name != "celebrity" or in_full_set(population, i)}
    if draws["shot_source"] == "retain" and set_name == "retain":
        return {i for tasks in draws["shots"].values() for ids in tasks.values() for i in ids}
    return set()
