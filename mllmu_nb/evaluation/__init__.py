"""Three tasks, two views, four sets: from a model and a population to one row an item."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from tqdm import tqdm

from mllmu_nb.data.schema import SETS, TASKS, Item, Population
from mllmu_nb.errors import KitError

MAX_SHOTS = 5


def evaluate(
    model,
    processor,
    population: Population,
    *,
    sets: Sequence[str] = SETS,
    shots: int = MAX_SHOTS,
    shot_seed: int = 0,
    system: str = "",
    batch_size: int = 64,
    limit: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask the model everything the sets ask and keep every answer: one row an item, ``items.COLUMNS`` wide.

    A multiple-choice question gives two rows, one a scoring. ``shots`` worked examples (0 to 5) from the unscored pool
    precede letter questions and, up to four, cloze questions; ``system`` precedes everything (the Prompting baseline).
    ``limit`` keeps the first so many people of each set. Nothing is drawn but the shots, from ``shot_seed``: the same
    model gives the same rows. A refusal is a wrong answer like any other.
    """
    # imported here, since reporting takes the statistics from this package and has no use for torch
    from mllmu_nb.evaluation.classification import letter_rows, likelihood_rows
    from mllmu_nb.evaluation.cloze import cloze_rows
    from mllmu_nb.evaluation.generation import generation_rows
    from mllmu_nb.evaluation.items import COLUMNS

    if not 0 <= shots <= MAX_SHOTS:
        raise KitError(f"shots is {shots}: choose 0 to {MAX_SHOTS}")
    unknown = [name for name in sets if name not in SETS]
    if unknown or not sets:
        raise KitError(f"unknown set {', '.join(unknown) or '(none given)'}: choose from {', '.join(SETS)}")
    items = [item for name in sets for item in _of_first_people(population.items(name), limit)]
    choices, sentences, blanks = ([item for item in items if item.question.task == task] for task in TASKS)
    asking = {"system": system, "batch_size": batch_size}
    examples = {"shots": shots, "shot_seed": shot_seed}
    total = 2 * len(choices) + len(sentences) + len(blanks)
    # without a terminal (papermill, logs) the bar stays silent
    with tqdm(total=total, desc="items", unit="item", mininterval=1.0, disable=None if progress else True) as bar:
        asking["progress"] = bar.update
        rows = [
            *letter_rows(model, processor, choices, population, **examples, **asking),
            *likelihood_rows(model, processor, choices, population, **asking),
            *generation_rows(model, processor, sentences, population, **asking),
            *cloze_rows(model, processor, blanks, population, **examples, **asking),
        ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _of_first_people(items: list[Item], limit: int | None) -> list[Item]:
    people = set(list(dict.fromkeys(item.question.profile for item in items))[:limit])
    return [item for item in items if item.question.profile in people]
