"""The paper's headline claim, along training: what is forgotten in each task by unlearning on text only and on
image + text, at equal retain.

Each method unlearns the forget sets of :data:`DRAWS` with its preset, once in each modality, and is asked at
:data:`POINTS` points of that one training. Where the two trainings keep equally much is found by interpolation, in
:mod:`mllmu_nb.reporting.modality`. One vanilla model, and one order of unlearning a forget set: what another of either
would change is not measured here, but in :mod:`mllmu_nb.studies.variance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from mllmu_nb import paths, run, stages, studies
from mllmu_nb.config import Config
from mllmu_nb.reporting.studies import by_person
from mllmu_nb.studies import models

NAME = "modality"
DRAWS = (0, 1, 2)
POINTS = 6
KEPT = 30  # retain people who are asked, drawn anew for each forget set
CODE = (*models.CODE, "mllmu_nb.studies.modality")


def measure(
    config: Config,
    forget_draws: Sequence[int] = DRAWS,
    methods: Sequence[str] = models.METHODS,
    points: int = POINTS,
    kept: int = KEPT,
    jobs: int = studies.JOBS,
) -> Path:
    """The folder with the answers along every training, summed by person (people.parquet), and how they were made
    (provenance.json); made if need be.

    ``config`` says who and how; its method, modality and forget draw are passed over. Raises KitError for another scale
    than the miniature's.
    """
    plain = studies.miniature(config)
    paths.writable(paths.study(plain.scale, NAME).parent)
    tasks = [
        (plain.but(method=method, modality=modality, forget_draw=draw), points, kept)
        for method in methods
        for modality in models.VIEW
        for draw in forget_draws
    ]
    made = studies.each(_walk, tasks, jobs)
    trainings = [stages.read_json(folder / "train.json") for folder in made]
    people = pd.concat([pd.read_parquet(folder / "people.parquet") for folder in made], ignore_index=True)
    texts = {name: "category" for name in people if not pd.api.types.is_numeric_dtype(people[name])}
    record = {"forget_draws": list(forget_draws), "kept": kept, "trainings": trainings}
    return studies.write(NAME, plain, {"people": people.astype(texts)}, record)


def walk(config: Config, points: int = POINTS, kept: int = KEPT) -> Path:
    """The folder with what the model of ``config`` answers at the start of its training and at ``points`` equal parts
    of it, about the forget people and ``kept`` others, summed by person (people.parquet; ``step`` 0 is vanilla), and
    how it was trained (train.json); made if need be."""
    import time

    known, recipe = run.population(config), replace(config.unlearning, source="")
    inputs = {
        "vanilla": run.vanilla_place(config).name,
        "forget": list(known.forget_ids),
        "recipe": asdict(recipe),
        "asked": [points, kept, config.data_seed, config.forget_draw],
        "settings": config.hash_of(
            ("method", "variant", "modality", "unlearn_seed", "shots", "shot_seed", *run.ASKING)
        ),
        "code": stages.code_hash((*CODE, f"mllmu_nb.unlearning.{config.method}")),
    }

    def make(place: Path) -> None:
        from mllmu_nb.training import steps_of
        from mllmu_nb.unlearning import get

        began, talks = time.process_time(), models.conversations(known, config.modality)
        length = recipe.steps or steps_of(talks["forget"], recipe.epochs, recipe.batch_size)
        at = sorted({max(1, round(length * part / points)) for part in range(1, points + 1)})
        method = get(config.method, config.variant)
        found, processor, log = models.along(config, method, recipe, talks, at, progress=False)
        found[0], _ = run.model(config.but(method="vanilla", modality="none"))
        people = {"forget": list(known.forget_ids)}
        people["retain"] = models.some(known, "retain", kept, [config.data_seed, config.forget_draw])
        asked = [
            by_person(models.everything(model, processor, known, config, people)).assign(step=step)
            for step, model in sorted(found.items())
        ]
        shared = {name: getattr(config, name) for name in ("method", "modality", "forget_draw")}
        pd.concat(asked, ignore_index=True).assign(**shared).to_parquet(place / "people.parquet", index=False)
        numbers = {"lr": recipe.lr, "alpha": recipe.alpha, "steps": log.steps, "points": [0, *at]}
        seconds = {"core_seconds": round(time.process_time() - began, 3)}
        stages.write_json(place / "train.json", {**shared, **numbers, **seconds})

    return stages.stage(NAME, inputs, make)


def _walk(task: tuple[Config, int, int]) -> Path:
    return walk(*task)
