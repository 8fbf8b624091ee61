"""A model of a study: vanilla after one unlearning, and the part of the questions that it is asked.

What is here decides the answers of every study, so a change makes all of them anew.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from mllmu_nb import run
from mllmu_nb.config import Config, Recipe
from mllmu_nb.data.schema import Population
from mllmu_nb.unlearning import Method

if TYPE_CHECKING:
    import pandas as pd

    from mllmu_nb.models.prompts import Conversation
    from mllmu_nb.training import TrainLog

METHODS = ("ga", "grad_diff", "kl_min", "npo")
VIEW = {"multimodal": "image_text", "unimodal": "text"}  # what is trained on, and how the same is asked
ASKED = ("forget", "retain")
CODE = (*run.TRAINING_CODE, *run.EVALUATION_CODE, "mllmu_nb.unlearning.base", "mllmu_nb.studies.models")


def trained(
    config: Config,
    method: Method,
    recipe: Recipe,
    conversations: Mapping[str, Sequence[Conversation]],
    recorded: Mapping[Conversation, Any] | None = None,
    **other: Any,
) -> tuple[Any, Any, TrainLog]:
    """Vanilla after ``method`` by ``recipe`` on the conversations of ``ASKED``, ready to be asked; its processor and
    the log of the training. ``other`` are settings of :func:`~mllmu_nb.training.unlearn` that are not the recipe's."""
    found, processor, log = along(config, method, recipe, conversations, (), recorded, **other)
    return found[log.steps], processor, log


def along(
    config: Config,
    method: Method,
    recipe: Recipe,
    conversations: Mapping[str, Sequence[Conversation]],
    steps: Container[int],
    recorded: Mapping[Conversation, Any] | None = None,
    **other: Any,
) -> tuple[dict[int, Any], Any, TrainLog]:
    """The same after each of ``steps`` of one training and after its last: step → model."""
    from mllmu_nb.models import load
    from mllmu_nb.training import unlearn

    model, processor = run.model(config.but(method="vanilla", modality="none"))
    shape = (recipe.lora_r, recipe.lora_alpha, recipe.lora_dropout)
    model = load.attach_lora(model, *shape, config.unlearn_seed, reach=recipe.lora_reach, init=recipe.lora_init)
    names = ("steps", "epochs", "batch_size", "lr", "schedule", "warmup", "weight_decay", "clip", "precision")
    settings = {name: getattr(recipe, name) for name in (*names, "label_mode", "eos")}
    talks = (list(conversations[name]) for name in ASKED)
    with _copies(model, steps) as found:
        weighted = run.weighted(method, recipe)
        settings |= run.limit(method, recipe) | other
        log = unlearn(model, processor, weighted, *talks, settings, config.unlearn_seed, recorded)
    found[log.steps] = model
    return {step: load.merge(one).eval() for step, one in found.items()}, processor, log


@contextmanager
def _copies(model: Any, steps: Container[int]) -> Iterator[dict[int, Any]]:
    """Step → a copy of ``model`` after that optimizer step, for all ``steps`` taken inside."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    found: dict[int, Any] = {}
    taken = count(1)

    def keep(*told: Any) -> None:
        if (step := next(taken)) in steps:
            found[step] = deepcopy(model)

    hook = register_optimizer_step_post_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def conversations(known: Population, modality: str) -> dict[str, list[Conversation]]:
    """What is trained on of the forget and the retain people, by set."""
    from mllmu_nb.training import modality_conversations

    return {name: modality_conversations(known.members(name), modality) for name in ASKED}


def some(known: Population, name: str, most: int, seed: int) -> list[str]:
    """The ids of at most ``most`` people of a set, drawn at random, in their order."""
    members = [person.id for person in known.members(name)]
    drawn = np.random.default_rng(seed).permutation(len(members))[:most]
    return [members[place] for place in sorted(drawn)]


def likelihood_and_sentences(
    model, processor, known: Population, views: Iterable[str], people: Mapping[str, Iterable[str]]
) -> pd.DataFrame:
    """Which option is likeliest and what is said freely, asked in ``views`` about the ``people`` [set] → ids: the rows
    of items.parquet."""
    import pandas as pd

    from mllmu_nb.evaluation.classification import by_likelihood
    from mllmu_nb.evaluation.generation import by_sentence

    asked = {name: set(ids) for name, ids in people.items()}
    items = [item for name in asked for item in known.items(name) if item.question.profile in asked[name]]
    items = [item for item in items if item.question.view in tuple(views)]
    choices, sentences = ([i for i in items if i.question.task == task] for task in ("classification", "generation"))
    parts = [by_likelihood(choices, known, system=""), by_sentence(sentences, known, system="", protocol="clean")]
    return pd.DataFrame([row for part in parts for row in part.answered(model, processor, run.EVAL_BATCH["miniature"])])


def everything(
    model, processor, known: Population, config: Config, people: Mapping[str, Iterable[str]], **other: Any
) -> pd.DataFrame:
    """All tasks in both views about the ``people`` [set] → ids, asked as a run asks by ``config``: the rows of
    items.parquet. ``other`` is said to :func:`~mllmu_nb.evaluation.evaluate` instead."""
    from mllmu_nb.evaluation import evaluate

    asked = {ident for ids in people.values() for ident in ids}
    present = {ident: p for ident, p in known.profiles.items() if p.kind != "fictitious" or ident in asked}
    few = replace(known, profiles=present)
    asking = {name: getattr(config, name) for name in ("shots", "shot_seed", "shot_source", "scoring", "protocol")}
    asking |= {"sets": tuple(people), "batch_size": run.EVAL_BATCH["miniature"], "progress": False}
    return evaluate(model, processor, few, **(asking | other))
