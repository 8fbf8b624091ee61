"""Where the spread of a score comes from: the forget set, vanilla's training, the order of unlearning, the shots.

One of the four is changed at a time around the run of seed 0, everything else equal (:data:`LEVELS`), for every method
in both modalities. The retain people who are asked are the same throughout: those whom no level forgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from mllmu_nb import paths, run, stages, studies
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting.studies import by_person
from mllmu_nb.studies import models

NAME = "variance"
DRAWS = (0, 1, 2)
# The lowest level of each is the one that the others are changed around.
LEVELS = {"forget_draw": DRAWS, "train_seed": (0, 1), "unlearn_seed": (0, 1, 2), "shot_seed": (0, 1, 2)}
CODE = (*models.CODE, "mllmu_nb.studies.variance")


def measure(
    config: Config,
    forget_draws: Sequence[int] = DRAWS,
    methods: Sequence[str] = models.METHODS,
    levels: Mapping[str, Sequence[int]] = LEVELS,
    jobs: int = studies.JOBS,
) -> Path:
    """The folder with the answers at every level, summed by person (people.parquet), and how they were made
    (provenance.json); made if need be, and so is a vanilla model for each of the training seeds.

    ``config`` says who and how; its method, modality and forget draw are passed over, its seeds but ``data_seed`` are
    the ``levels``'. Raises KitError for another scale than the miniature's, and where the levels forget everybody.
    """
    levels = {name: sorted(values) for name, values in {**levels, "forget_draw": forget_draws}.items()}
    first = {name: values[0] for name, values in levels.items()}
    plain = studies.miniature(config.but(method="vanilla", modality="none", **first))
    paths.writable(paths.study(plain.scale, NAME).parent)
    forgotten = {i for draw in levels["forget_draw"] for i in run.population(plain.but(forget_draw=draw)).forget_ids}
    kept = tuple(p.id for p in run.population(plain).of_kind("fictitious") if p.id not in forgotten)
    if not kept:
        raise KitError(f"forget draws {list(forget_draws)} forget everybody: nobody is left to be asked as kept")
    for seed in levels["train_seed"]:
        run.vanilla(plain.but(train_seed=seed))
    changed = [{}, *({name: value} for name in first if name != "shot_seed" for value in levels[name][1:])]
    tasks = [
        # only the plain model is asked after other shots: they are no part of its training
        (plain.but(method=method, modality=modality, **change), kept, () if change else tuple(levels["shot_seed"][1:]))
        for method in methods
        for modality in models.VIEW
        for change in changed
    ]
    made = studies.each(_level, tasks, jobs)
    people = pd.concat([pd.read_parquet(folder / "people.parquet") for folder in made], ignore_index=True)
    seconds = [stages.read_json(folder / "train.json")["core_seconds"] for folder in made]
    record = {"forget_draws": list(forget_draws), "levels": levels}
    record |= {"kept": len(kept), "core_seconds": round(sum(seconds), 1)}
    texts = {name: "category" for name in people if not pd.api.types.is_numeric_dtype(people[name])}
    return studies.write(NAME, plain, {"people": people.astype(texts)}, record)


def level(config: Config, kept: Sequence[str], shot_seeds: Sequence[int] = ()) -> Path:
    """The folder with what the model of ``config`` answers about the forget people and ``kept``, also after the shots
    of ``shot_seeds``, summed by person (people.parquet), and what it took (train.json); made if need be."""
    import time

    known, recipe = run.population(config), replace(config.unlearning, source="")
    inputs = {
        "vanilla": run.vanilla_place(config).name,
        "forget": list(known.forget_ids),
        "recipe": asdict(recipe),
        "asked": [list(kept), list(shot_seeds)],
        "settings": config.hash_of(
            ("method", "variant", "modality", "unlearn_seed", "shots", "shot_seed", *run.ASKING)
        ),
        "code": stages.code_hash((*CODE, f"mllmu_nb.unlearning.{config.method}")),
    }

    def make(place: Path) -> None:
        from mllmu_nb.unlearning import get

        began = time.process_time()
        method, talks = get(config.method, config.variant), models.conversations(known, config.modality)
        model, processor, _ = models.trained(config, method, recipe, talks, progress=False)
        people = {"forget": list(known.forget_ids), "retain": kept}
        asked = [
            by_person(models.everything(model, processor, known, config, people, shot_seed=seed)).assign(shot_seed=seed)
            for seed in (config.shot_seed, *shot_seeds)
        ]
        names = ("method", "modality", "forget_draw", "train_seed", "unlearn_seed")
        shared = {name: getattr(config, name) for name in names}
        pd.concat(asked, ignore_index=True).assign(**shared).to_parquet(place / "people.parquet", index=False)
        stages.write_json(place / "train.json", {**shared, "core_seconds": round(time.process_time() - began, 3)})

    return stages.stage(NAME, inputs, make)


def _level(task: tuple[Config, Sequence[str], Sequence[int]]) -> Path:
    return level(*task)
