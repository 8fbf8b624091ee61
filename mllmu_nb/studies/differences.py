"""What each difference between the released code and the methods' own papers changes: one at a time, all else equal.

An :class:`Arm` is one unlearning. Without an ``ingredient`` it is the canonical method with the miniature's preset.
With one it is the same with a single piece of the released code in it: vanilla, people, learning rate and length stay.
The classes below are the canonical methods with that piece; they are not registered, since nobody's baseline is made of
them.

Reading and drawing what :func:`measure` has left is :mod:`mllmu_nb.reporting.differences`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllmu_nb import paths, run, stages, studies
from mllmu_nb.config import Config
from mllmu_nb.studies import models
from mllmu_nb.unlearning import Method, mean_nll, summed_kl
from mllmu_nb.unlearning.ga import GradientAscent
from mllmu_nb.unlearning.grad_diff import GradientDifference
from mllmu_nb.unlearning.kl_min import KLMinimization
from mllmu_nb.unlearning.npo import NegativePreference

if TYPE_CHECKING:
    from mllmu_nb.data.schema import Population
    from mllmu_nb.models.prompts import Conversation
    from mllmu_nb.training import TrainLog

NAME = "differences"
DRAWS = (0, 1)
SHOT_SOURCES = ("none", "pool", "upstream")
SHOT_DRAWS = 20
COLUMNS = ("set", "task", "view", "scoring", "profile", "question_id", "correct", "exact")
CODE = (*models.CODE, "mllmu_nb.studies.differences")


class SequentialGradientDifference(GradientDifference):
    """The canonical terms in steps of their own: all through forget, then all through retain, in every epoch."""

    variant = "sequential"
    passes = (("forget",), ("retain",))

    def loss(self, scored, reference):
        [(name, batch)] = scored.items()
        nll = mean_nll(batch)
        return {"forget": -self.gamma, "retain": self.alpha}[name] * nll, {name: nll.item()}


class SummedKLMinimization(KLMinimization):
    """The canonical objective, its KL summed over every position and divided by the batch size."""

    variant = "summed"
    everywhere = ("retain",)

    def loss(self, scored, reference):
        forget, kl = mean_nll(scored["forget"]), summed_kl(reference["retain"], scored["retain"])
        return -forget + self.alpha * kl, {"forget": forget.item(), "kl": kl.item()}


class RetainEpochPreference(NegativePreference):
    """The canonical objective against θ_ref, the base model after one epoch on the retain people, instead of θ_0."""

    variant = "retain_epoch"
    reference_model = "retain_epoch"


@dataclass(frozen=True)
class Arm:
    """One unlearning: ``method``, and the ``ingredient`` in which it is not canonical ("": in none).

    ``label_mode`` is that of unlearning alone; vanilla was taught its answers. ``few`` cuts the retain questions down
    to as many as there are to forget.
    """

    method: Method
    ingredient: str = ""
    label_mode: str = "answer"
    few: bool = False
    modalities: tuple[str, ...] = tuple(models.VIEW)


ARMS = (
    Arm(GradientDifference()),
    Arm(SequentialGradientDifference(), "passes", few=True),
    Arm(SequentialGradientDifference(), "whole_passes"),
    Arm(GradientDifference(), "labels_text", label_mode="text"),
    Arm(
        GradientDifference(), "labels_upstream", label_mode="upstream", modalities=("multimodal",)
    ),  # no image: as text
    Arm(GradientAscent()),
    Arm(GradientAscent(), "labels_text", label_mode="text"),
    Arm(GradientAscent(), "labels_upstream", label_mode="upstream", modalities=("multimodal",)),
    Arm(KLMinimization()),
    Arm(SummedKLMinimization(), "summed_kl"),
    Arm(NegativePreference()),
    Arm(RetainEpochPreference(), "retain_epoch"),
)


def measure(
    config: Config,
    forget_draws: Sequence[int] = DRAWS,
    arms: Sequence[Arm] = ARMS,
    shot_draws: int = SHOT_DRAWS,
    jobs: int = studies.JOBS,
) -> Path:
    """The folder with the answers of every arm on every forget draw (unlearned.parquet), those of vanilla after the
    shots of ``shot_draws`` draws (shots.parquet) and how they were made (provenance.json); made if need be.

    ``config`` says who and how; its method, modality and forget draw are passed over. What was finished before is not
    done again. Raises KitError for another scale than the miniature's.
    """
    import pandas as pd

    plain = studies.miniature(config.but(method="vanilla", modality="none", forget_draw=0))
    paths.writable(paths.study(plain.scale, NAME).parent)
    if any(arm.method.measured_elsewhere for arm in arms):  # once, before two ask for it
        for draw in forget_draws:
            run.retain_epoch(plain.but(forget_draw=draw))
    tasks = [
        (plain.but(method=arm.method.name, modality=modality, forget_draw=draw), arm)
        for draw, arm in ((draw, arm) for draw in forget_draws for arm in arms)
        for modality in arm.modalities
    ]
    made = studies.each(_unlearned, tasks, jobs)
    shown = shots(plain, shot_draws)
    told = {"forget_draws": list(forget_draws), "shot_draws": shot_draws}
    told |= {"unlearned": [stages.read_json(one / "train.json") for one in made]}
    told |= {"shots_seconds": stages.read_json(shown / stages.RECORD)["seconds"]}
    answers = pd.concat([pd.read_parquet(one / "items.parquet") for one in made], ignore_index=True)
    tables = {"unlearned": answers, "shots": pd.read_parquet(shown / "shots.parquet")}
    return studies.write(NAME, plain, tables, told)


def unlearned(config: Config, arm: Arm) -> Path:
    """The folder with the answers (items.parquet) of ``arm``, whose preset and people are those of ``config``, and with
    how it was trained (train.json); made if need be."""
    known = run.population(config)
    recipe = replace(config.unlearning, label_mode=arm.label_mode)
    inputs = {
        "vanilla": run.vanilla_place(config).name,
        "forget": list(known.forget_ids),
        "recipe": asdict(replace(recipe, source="")),
        "arm": [type(arm.method).__name__, asdict(arm.method), arm.ingredient, arm.few],
        "settings": config.hash_of(("method", "modality", "unlearn_seed", "forget_draw")),
        "code": stages.code_hash((*CODE, f"mllmu_nb.unlearning.{arm.method.name}")),
    }

    def make(place: Path) -> None:
        model, processor, log = _trained(config, arm, known, recipe)
        everyone = {name: [person.id for person in known.members(name)] for name in models.ASKED}
        view = models.VIEW[config.modality]
        answers = models.likelihood_and_sentences(model, processor, known, [view], everyone)[list(COLUMNS)]
        shared = {"method": arm.method.name, "ingredient": arm.ingredient, "modality": config.modality}
        shared |= {"forget_draw": config.forget_draw}
        for position, (column, value) in enumerate(shared.items()):
            answers.insert(position, column, value)
        answers.to_parquet(place / "items.parquet", index=False)
        numbers = {"lr": recipe.lr, "label_mode": recipe.label_mode, "steps": log.steps}
        numbers |= {"seconds": round(log.seconds, 3), "supervised_tokens": log.supervised_tokens}
        stages.write_json(place / "train.json", {**shared, **numbers, "last": log.losses[-1]})

    return stages.stage("difference", inputs, make)


def shots(config: Config, draws: int = SHOT_DRAWS) -> Path:
    """The folder with vanilla's letters and filled blanks about the forget people (shots.parquet), once without worked
    examples and after those of ``draws`` draws from each source; made if need be."""
    known = run.population(config)
    inputs = {
        "vanilla": run.vanilla_place(config).name,
        "data": run.data_hash(config),
        "forget": list(known.forget_ids),
        "shots": [config.shots, draws],
        "code": stages.code_hash(CODE),
    }

    def make(place: Path) -> None:
        import pandas as pd

        model, processor = run.model(config)
        rows = [
            {"source": source, "shot_seed": seed, **row}
            for source in SHOT_SOURCES
            for seed in range(1 if source == "none" else draws)
            for row in _shown(model, processor, known, config.shots, source, seed)
        ]
        columns = ["source", "shot_seed", *(c for c in COLUMNS if c != "exact")]
        pd.DataFrame(rows, columns=columns).to_parquet(place / "shots.parquet", index=False)

    return stages.stage("difference-shots", inputs, make)


# ------------------------------------------------------------------------------------------------------------- inside


def _unlearned(task: tuple[Config, Arm]) -> Path:
    return unlearned(*task)


def _trained(config: Config, arm: Arm, known: Population, recipe) -> tuple[Any, Any, TrainLog]:
    """The model after ``arm``, ready to be asked, its processor and the log of the training."""
    from mllmu_nb.models import load
    from mllmu_nb.training import record, steps_of

    talks = models.conversations(known, config.modality)
    if arm.few:
        talks["retain"] = _as_many(talks["retain"], talks["forget"], config.unlearn_seed)
    recorded = None
    if arm.method.measured_elsewhere:
        reference, processor = load.load_base(config)
        reference = load.load_full(reference, run.retain_epoch(config)).eval()
        text = {"batch_size": recipe.batch_size, "label_mode": recipe.label_mode, "eos": recipe.eos}
        recorded = record(reference, processor, talks["forget"], **text)
    other = {}
    if len(arm.method.passes) > 1 and recipe.steps:  # as many whole passes as come closest
        passes = recipe.steps / steps_of(talks["forget"], 1, recipe.batch_size)
        recipe = replace(recipe, steps=0, epochs=max(1, round(passes)))
    if len(arm.method.passes) == 1:
        other = {"rise": math.inf}  # a KL that is summed is another quantity: its height says nothing
    return models.trained(config, arm.method, recipe, talks, recorded, **other)


def _as_many(conversations: list[Conversation], others: list[Conversation], seed: int) -> list[Conversation]:
    """As many questions of ``conversations``, drawn at random, as ``others`` hold."""
    questions = [replace(one, turns=(turn,)) for one in conversations for turn in one.turns]
    order = np.random.default_rng(seed).permutation(len(questions))
    return [questions[i] for i in order[: sum(len(one.turns) for one in others)]]


def _shown(model, processor, known: Population, count: int, source: str, seed: int) -> Iterator[dict]:
    """Letters and blanks of the forget people after ``count`` shots from ``source``."""
    from mllmu_nb.evaluation import asked, draws

    drawn = draws.draw(known, ["forget"], shots=count, shot_source=source, shot_seed=seed)
    letters, _, blanks = asked(known, drawn, sets=["forget"], shots=count, scoring="letter")
    for part in (letters, blanks):
        part.require_room(model, processor)
        yield from part.answered(model, processor, run.EVAL_BATCH["miniature"])
