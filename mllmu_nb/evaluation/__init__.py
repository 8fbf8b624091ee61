"""Three tasks, two views, four sets: from a model and a population to one row an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm import tqdm

from mllmu_nb.config import BASE_MODELS, CHOICES, PROTOCOLS
from mllmu_nb.data.schema import SETS, TASKS, Item, Population
from mllmu_nb.errors import KitError

if TYPE_CHECKING:
    from mllmu_nb.evaluation.items import Part

MAX_SHOTS = 5


def evaluate(
    model,
    processor,
    population: Population,
    *,
    sets: Sequence[str] = SETS,
    shots: int = MAX_SHOTS,
    shot_seed: int = 0,
    shot_source: str = "pool",
    scoring: str = "both",
    cyclic: bool = False,
    draws: Mapping[str, Any] | None = None,
    protocol: str = "clean",
    system: str = "",
    batch_size: int = 64,
    limit: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask the model everything the sets ask and keep every answer: one row an item, ``items.COLUMNS`` wide.

    ``shots`` worked examples (0 to 5) precede letter questions and, up to four, cloze questions. Whose they are is
    drawn by ``draws.draw`` from ``shot_source`` and ``shot_seed``, or stands in ``draws`` (see there, also for who is
    left out of the score); the same draws and model give the same rows. ``system`` precedes everything (the Prompting
    baseline). ``limit`` keeps the first so many people of each set. A refusal is a wrong answer like any other.

    A multiple-choice question gives two rows, one a ``scoring``, or with ``letter`` only that. ``cyclic`` asks for the
    letter in every cyclic order of the options and adds ``items.CYCLIC_COLUMNS``. ``protocol`` ``upstream`` asks as the
    released evaluation does: 50 tokens for every answer, all of which count; a blank after the colon of a free question
    about a picture; a test portrait drawn for each person and task.

    Raises ``KitError`` for unknown values, draws that do not fit, and, before anything is answered, for a question that
    does not fit the model's context with what precedes it.
    """
    # imported here, since reporting takes the statistics from this package and has no use for torch
    from mllmu_nb.evaluation.draws import check, draw
    from mllmu_nb.evaluation.items import COLUMNS, CYCLIC_COLUMNS

    if not 0 <= shots <= MAX_SHOTS:
        raise KitError(f"shots is {shots}: choose 0 to {MAX_SHOTS}")
    if not sets:
        raise KitError(f"no set is to be evaluated: choose from {', '.join(SETS)}")
    family = model.config.model_type
    for kind, given, known in (
        ("base model", family, BASE_MODELS),
        *(("set", name, SETS) for name in sets),
        ("shot_source", shot_source, CHOICES["shot_source"]),
        ("scoring", scoring, CHOICES["scoring"]),
        ("protocol", protocol, PROTOCOLS),
    ):
        if given not in known:
            raise KitError(f"unknown {kind} {given}: choose from {', '.join(known)}")
    drawing = {"shots": shots, "shot_source": shot_source, "family": family, "protocol": protocol}
    if draws is None:
        draws = draw(population, sets, shot_seed=shot_seed, **drawing)
    check(draws, population, sets, **drawing)
    asking = {"shots": shots, "scoring": scoring, "cyclic": cyclic, "protocol": protocol, "system": system}
    parts = asked(population, draws, sets=sets, limit=limit, **asking)
    for part in parts:
        part.require_room(model, processor)
    total = sum(len(part.talks) for part in parts)
    # without a terminal (papermill, logs) the bar stays silent
    with tqdm(total=total, desc="items", unit="item", mininterval=1.0, disable=None if progress else True) as bar:
        rows = [row for part in parts for row in part.answered(model, processor, batch_size, bar.update)]
    return pd.DataFrame(rows, columns=[*COLUMNS, *(CYCLIC_COLUMNS if cyclic else ())])


def asked(
    population: Population,
    draws: Mapping[str, Any],
    *,
    sets: Sequence[str] = SETS,
    limit: int | None = None,
    shots: int = MAX_SHOTS,
    scoring: str = "both",
    cyclic: bool = False,
    protocol: str = "clean",
    system: str = "",
) -> list[Part]:
    """What ``evaluate`` asks a model, task by task, before anything is answered; settings as there."""
    from mllmu_nb.evaluation.classification import by_letter, by_likelihood
    from mllmu_nb.evaluation.cloze import by_cloze
    from mllmu_nb.evaluation.generation import by_sentence

    items = [item for name in sets for item in _of_first_people(_scored(population, name, draws), limit)]
    choices, sentences, blanks = ([item for item in items if item.question.task == task] for task in TASKS)
    asking = {"system": system, "protocol": protocol}
    parts = [by_letter(choices, population, draws, shots=shots, cyclic=cyclic, **asking)]
    parts += [by_likelihood(choices, population, system=system)] if scoring == "both" else []
    parts += [by_sentence(sentences, population, **asking)]
    return parts + [by_cloze(blanks, population, draws, shots=shots, **asking)]


def _scored(population: Population, name: str, draws: Mapping[str, Any]) -> list[Item]:
    """The items of a set without those of the people left out, each test picture the drawn one."""
    from mllmu_nb.evaluation.draws import left_out, picture

    absent = {task: left_out(draws, name, task) for task in TASKS}
    items = [item for item in population.items(name) if item.question.profile not in absent[item.question.task]]
    if name != "test":
        return items
    numbers = [picture(draws, item.question.profile, item.question.task) for item in items]
    return [
        replace(item, image=population.profiles[item.question.profile].test_portraits[number]) if item.image else item
        for item, number in zip(items, numbers, strict=True)
    ]


def _of_first_people(items: list[Item], limit: int | None) -> list[Item]:
    people = set(list(dict.fromkeys(item.question.profile for item in items))[:limit])
    return [item for item in items if item.question.profile in people]
