"""The cliff: how much is forgotten and how much kept at every learning rate and length, for every method alike.

A :class:`Setting` is one unlearning with the miniature's preset but for its rate and its number of optimizer steps.
Every method has as many rates and lengths as any other, on the same people. The forget sets of :data:`DRAWS` share
nobody with those that are reported at this ratio, so how far a setting lets the forget people fall was not chosen on
those it is judged by. No more than that is fresh. Forget sets of another ratio are drawn anew and share some people
with these. And nearly everybody is to be kept in some run: the people who are asked here as kept are in reported retain
sets, and some of them in reported forget sets. Which setting is chosen says :func:`mllmu_nb.reporting.cliff.choose`.

The budget counts rates and lengths only. Where the rates of a family of methods lie was placed by hand, and so was the
weight alpha of a retain term: 1, 2 and 4 were looked at on forget sets 5 and 6, where 1 kept far less when as much was
forgotten and 4 took longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from mllmu_nb import paths, run, stages, studies
from mllmu_nb.config import Config
from mllmu_nb.reporting import cliff as told
from mllmu_nb.studies import models

NAME = "cliff"
DRAWS = (5, 6, 7)  # forget sets that are never reported
KEPT = 30  # retain people who are asked, drawn anew for each forget set
# What ascends alone is over the edge in some forty steps; what a retain term holds takes longer to get there.
ALONE, HELD = ("ga", "npo"), ("grad_diff", "kl_min")
RATES = dict.fromkeys(ALONE, (1.5e-3, 2e-3, 3e-3, 4e-3)) | dict.fromkeys(HELD, (2e-3, 3e-3, 4e-3, 5e-3))
STEPS = dict.fromkeys(ALONE, (20, 30, 40)) | dict.fromkeys(HELD, (40, 60, 80))
COLUMNS = ["set", "task", "view", "profile", "question_id", "correct", "exact", "answer"]
CODE = (*models.CODE, "mllmu_nb.studies.cliff")


@dataclass(frozen=True)
class Setting:
    """One way to unlearn: the preset of ``method`` and ``modality`` but for rate and optimizer steps."""

    method: str
    modality: str
    lr: float
    steps: int


def grid(methods: Sequence[str] = models.METHODS, modalities: Sequence[str] = tuple(models.VIEW)) -> list[Setting]:
    """Every method at its rates and lengths: the same number of settings each."""
    return [
        Setting(method, modality, lr, steps)
        for method in methods
        for modality in modalities
        for lr in RATES[method]
        for steps in STEPS[method]
    ]


def measure(
    config: Config,
    forget_draws: Sequence[int] = DRAWS,
    settings: Sequence[Setting] = (),
    kept: int = KEPT,
    jobs: int = studies.JOBS,
) -> Path:
    """The folder with what every setting leaves (answers.parquet, settings.parquet) and how it was made
    (provenance.json); made if need be. ``settings`` are those of :func:`grid` when none are given.

    ``config`` says who and how; its method, modality and forget draw are passed over. Raises KitError for another scale
    than the miniature's.
    """
    plain = studies.miniature(config)
    paths.writable(paths.study(plain.scale, NAME).parent)
    start = Setting("vanilla", "none", 0.0, 0)  # what every setting starts from
    tasks = [
        (plain.but(forget_draw=draw), setting, kept)
        for setting in (start, *(settings or grid()))
        for draw in forget_draws
    ]
    made = studies.each(_left, tasks, jobs)
    records = pd.DataFrame([stages.read_json(folder / "train.json") for folder in made])
    answers = pd.concat([pd.read_parquet(folder / "items.parquet") for folder in made], ignore_index=True)
    record = {
        "forget_draws": list(forget_draws),
        "kept": kept,
        "core_seconds": round(float(records["core_seconds"].sum()), 1),
    }
    return studies.write(NAME, plain, {"answers": told.compact(answers), "settings": records}, record)


def left(config: Config, setting: Setting, kept: int = KEPT) -> Path:
    """The folder with what is known after ``setting`` about the forget people of ``config`` and ``kept`` others, asked
    in both views (items.parquet), and how it was trained (train.json); made if need be.

    Where training diverged there is no answer, and train.json says so.
    """
    import time

    from mllmu_nb.training import TrainingDiverged, steps_of

    known = run.population(config)
    own = config.but(method=setting.method, modality=setting.modality)
    trains = setting.steps > 0
    recipe = replace(own.unlearning, lr=setting.lr, steps=setting.steps, epochs=0)
    inputs = {
        "vanilla": run.vanilla_place(config).name,
        "forget": list(known.forget_ids),
        "setting": asdict(setting),
        "recipe": asdict(replace(recipe, source="")),
        "asked": [kept, config.data_seed, config.forget_draw],
        "settings": config.hash_of(("unlearn_seed",)),
        "code": stages.code_hash((*CODE, *([f"mllmu_nb.unlearning.{setting.method}"] if trains else []))),
    }

    def make(place: Path) -> None:
        from mllmu_nb.unlearning import get

        began, passes, diverged = time.process_time(), 0.0, ""
        people = {"forget": list(known.forget_ids)}
        people["retain"] = models.some(known, "retain", kept, [config.data_seed, config.forget_draw])
        try:
            if trains:
                talks = models.conversations(known, setting.modality)
                passes = setting.steps / steps_of(talks["forget"], 1, recipe.batch_size)
                model, processor, _ = models.trained(own, get(setting.method), recipe, talks, progress=False)
            else:
                model, processor = run.model(own)
        except TrainingDiverged as reason:
            people, diverged = {}, str(reason)
            model, processor = run.model(config)  # is asked nothing
        answers = models.likelihood_and_sentences(model, processor, known, models.VIEW.values(), people)
        shared = {**asdict(setting), "forget_draw": config.forget_draw}
        answers.reindex(columns=COLUMNS).assign(**shared).to_parquet(place / "items.parquet", index=False)
        log = {**shared, "passes": passes, "alpha": recipe.alpha, "diverged": diverged}
        log["core_seconds"] = round(time.process_time() - began, 3)
        stages.write_json(place / "train.json", log)

    return stages.stage(NAME, inputs, make)


def _left(task: tuple[Config, Setting, int]) -> Path:
    return left(*task)
