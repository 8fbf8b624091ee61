"""Points along one unlearning: its adapter is kept at equal parts of the training, and each is asked like any run.

A point is a step after unlearning: ``config.but(after="point", step=30)`` is the model of ``config`` as it was after 30
optimizer steps, which is one of the ``points`` (10) equal parts of its training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mllmu_nb import pipeline
from mllmu_nb.after import after
from mllmu_nb.batches import unlearning_steps
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import Conversation, training_conversations
from mllmu_nb.errors import KitError
from mllmu_nb.stages import Stage

POINTS = 10


def conversations(config: Config) -> dict[str, list[Conversation]]:
    """What ``config`` unlearns and what it keeps, by set."""
    known = pipeline.population(config)
    return {name: training_conversations(known.members(name), config.modality) for name in ("forget", "retain")}


def steps_of(config: Config, points: int = POINTS) -> list[int]:
    """The optimizer steps after which the adapter is kept."""
    length = unlearning_steps(config.objective, config.unlearning, conversations(config))
    return sorted({max(1, round(length * number / points)) for number in range(1, points + 1)})


def path(config: Config, points: int = POINTS) -> Stage:
    """The stage of the training of ``config``, its adapter kept in ``step-<n>`` at every point."""
    steps, method, recipe = steps_of(config, points), config.objective, config.unlearning

    def make(folder: Path) -> None:
        from mllmu_nb.models import adapters
        from mllmu_nb.training import reference_log_probs, unlearn

        def keep(step: int, model: Any) -> None:
            if step in steps:
                adapters.save(model, folder / f"step-{step}")

        sets, stored = conversations(config), None
        if method.other_reference:
            other, processor = pipeline.filled(config, pipeline.finetuned(config, method.other_reference))
            asked = [conversation for taught in sets.values() for conversation in taught]
            stored = reference_log_probs(other, processor, asked, recipe)
        model, processor = pipeline.vanilla(config, recipe.precision)
        model = adapters.attach(model, recipe, config.unlearn_seed, method.trains)
        unlearn(model, processor, method, sets, recipe, config.unlearn_seed, stored, after_step=keep)

    inputs = {"unlearned": pipeline.unlearned(config).key, "steps": steps}
    return Stage("path", inputs, make, (config.family, method))


@after("point")
def at_point(model: Any, config: Config, step: int = 0, points: int = POINTS) -> Any:
    """The model of ``config`` as it was after ``step`` optimizer steps; ``model`` is what it was in the end."""
    from mllmu_nb.models import adapters

    plain = config.but(after="")
    if step not in (steps := steps_of(plain, points)):
        raise KitError(f"step {step} is no point of this training: choose one of {', '.join(map(str, steps))}")
    if step == steps[-1]:
        return model
    vanilla, _ = pipeline.vanilla(plain, plain.eval_precision)
    return adapters.merge(adapters.load(vanilla, path(plain, points).get() / f"step-{step}"))
