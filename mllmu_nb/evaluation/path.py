"""The path of unlearning: a model's answers at points of its training, about the first people of each set.

A point asks for likelihoods and free answers, without worked examples. It has one row per answer: set, task, view,
scoring, profile, question_id and ``answer`` (of a choice by likelihood, the letter of the likeliest option).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mllmu_nb.data.schema import LETTERS, OPTIONS, SETS, Population
from mllmu_nb.evaluation import draws as drawing
from mllmu_nb.evaluation.ask import answer, require_room, ways_of
from mllmu_nb.evaluation.engine import Prompts
from mllmu_nb.evaluation.tasks import Asking, Inquiry
from mllmu_nb.stages import write_frame

POINTS = 10  # equal parts of the path
BEYOND = 2  # a training at a constant rate continues to this multiple of its steps, only for its path
PEOPLE = {"forget": 25, "test": 25, "retain": 10, "celebrity": 10}  # how many people of each set, the first ones
COLUMNS = ["set", "task", "view", "scoring", "profile", "question_id", "answer"]


def steps_of(length: int) -> list[int]:
    """Return the optimizer steps of a path's points: its start, and the ends of its equal parts."""
    return sorted({round(length * part / POINTS) for part in range(POINTS + 1)})


def questions(
    model, processor, population: Population, system: str = "", scale: str = "miniature"
) -> list[tuple[Inquiry, Prompts]]:
    """Return what each point asks, encoded once for all points. Raises ``KitError`` for a question beyond the model's
    context."""
    draws = drawing.draw(population, SETS, shots=0, shot_source="none", shot_seed=0)
    asking, asked = Asking(population, draws, 0, "clean", system, scale=scale), []
    ways = ways_of(asking, limit=PEOPLE)
    for way in ("likelihoods", "free_answers"):  # all sets at once: larger batches
        if way in ways:
            inquiry = getattr(asking, way)(ways[way])
            asked.append((inquiry, prompts := Prompts.of(model, processor, inquiry.conversations, inquiry.options)))
            require_room(model, inquiry, prompts)
    return asked


def point(
    model,
    processor,
    asked: Sequence[tuple[Inquiry, Prompts]],
    batch_size: int = 64,
    seen: Mapping[str, dict] | None = None,
) -> pd.DataFrame:
    """Return the current answers of ``model`` to :func:`questions`; ``seen``: as in ``ask.ask``. Its mode and the
    random state of its training do not change."""
    frames = []
    for inquiry, prompts in asked:
        rows = pd.DataFrame(answer(model, processor, inquiry, batch_size, None, prompts, seen))
        frames.append(rows if inquiry.options is None else rows.assign(answer=_likeliest(rows)))
    rows = pd.concat(frames, ignore_index=True)[COLUMNS]
    return rows.sort_values("set", key=lambda names: names.map(list(PEOPLE).index), kind="stable", ignore_index=True)


def write(points: Mapping[int, pd.DataFrame], path: Path) -> None:
    """Write the points, by step, to one small file."""
    frame = pd.concat([rows.assign(step=step) for step, rows in points.items()], ignore_index=True)
    write_frame(path, frame.astype({"step": "int32"}))


def _likeliest(rows: pd.DataFrame) -> np.ndarray:
    """Return the letter of the likeliest option [rows]; "" if an option has no finite likelihood, as in scoring."""
    likelihoods = rows[list(OPTIONS)].to_numpy(float)
    return np.where(np.isfinite(likelihoods).all(1), np.array(LETTERS)[likelihoods.argmax(1)], "")
