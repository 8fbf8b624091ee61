"""Checks that an addition behaves as the kit expects: a method, a family or a step after unlearning.

The checks work like scikit-learn's ``check_estimator`` and are meant for your own tests. A method is checked on random
numbers, a family and a step on a small random model of the family. Each raises KitError with the problem in one line.
"""

import copy
import inspect
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from mllmu_nb import after
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import MODALITIES, Conversation, Turn
from mllmu_nb.data.portraits import to_png
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation.engine import answers, option_likelihoods
from mllmu_nb.models.adapters import attach
from mllmu_nb.models.families import Family, of
from mllmu_nb.models.load import unfreeze
from mllmu_nb.models.score import score
from mllmu_nb.scoring.checks import sample_items, sample_sentences
from mllmu_nb.scoring.frames import DERIVED
from mllmu_nb.scoring.registry import metrics
from mllmu_nb.training import FineTuning, train, vanilla_mode
from mllmu_nb.unlearning.base import IGNORE, METHODS, Method, ReferenceLogProbs, Scored, Step, terms_of

SCALES = ("miniature", "paper")
ROWS, TOKENS, VOCABULARY, WIDTH, SEQUENCE = 3, 4, 7, 5, 9  # of the random step
# What each hook is called with.
HOOKS: dict[str, tuple] = {"after_backward": ("a term", {}), "before_update": ({},), "after_update": ({},)}


def _require(subject: str, holds: Any, problem: str) -> None:
    """Raise KitError with the subject and its problem if ``holds`` is false."""
    if not holds:
        raise KitError(f"{subject}: {problem}")


# -- a method ---------------------------------------------------------------------------------------------------


def check_method(method: type[Method]) -> None:
    """Check that a registered method's declarations are sound, a configuration can set its hyper-parameters, its loss
    yields finite named scalars that do not depend on positions without a label, and it gives gradients."""
    require = partial(_require, f"method {method.name} ({method.variant})")
    settings = method.hyper_parameters()
    require(method in METHODS.values(), "it is not registered: put @register above the class")
    require(method.marker, "it needs a marker for figures")
    require(re.fullmatch("#[0-9a-fA-F]{6}", method.colour), "its colour must be like #0072B2")
    for name, kind in inspect.get_annotations(method).items():
        declared = name in settings or "ClassVar" in str(kind)
        require(declared, f"{name} is no hyper-parameter yet: put @dataclass(frozen=True) above the class")
    for hook, given in HOOKS.items():
        try:
            inspect.signature(getattr(method, hook)).bind(method, *given)
        except TypeError as error:
            require(False, f"{hook} does not take what it is called with: {error}")
    for name in method.needs.hidden:
        require(name in settings, f"needs.hidden names {name}, which is no hyper-parameter")
    keys = {*SCALES, *itertools.product(SCALES, MODALITIES)}
    for key, recipe in method.recipes.items():
        require(key in keys, f"recipes has {key!r}: give a scale ({', '.join(SCALES)}) or (scale, modality)")
        require(not (recipe.steps and recipe.epochs), f"its recipe for {key} gives both steps and epochs")
        require(recipe.source, f"its recipe for {key} has no source: say who says so, or why it was chosen")
        require(set(recipe.settings) <= set(settings), f"its recipe for {key} sets what is no hyper-parameter")
    plain = {"method": method.name, "variant": method.variant, "modality": MODALITIES[0] if method.streams else "none"}
    _check_settings(settings, Config(**plain), lambda config, name: getattr(config.objective, name), require)
    for names in method.all_passes if method.streams else ():
        terms, filled = (_terms(method(), names, filling, require) for filling in (0.0, 1e4))
        for name, value in terms.items():
            require(np.isclose(value, filled[name], rtol=1e-4), f"{name} depends on positions without a label")


def _check_settings(settings: Mapping[str, Any], plain: Config, read: Callable, require: Callable) -> None:
    """Check that a configuration can set each of ``settings``, that ``read`` returns the new value, and that the run's
    name depends on it."""
    for name, default in settings.items():
        require(name not in Config.model_fields, f"every run has a parameter {name}: choose another name")
        require(name not in _columns(), f"{name} is a column of the scores: choose another name")
        kind, value = type(default), plain.settings[name]
        require(kind in (float, int, bool, str), f"{name} needs a default: a number, text, True or False")
        config = plain.but(**{name: value if kind is str else not value if kind is bool else value + kind(1)})
        require(read(config, name) == config.settings[name], f"{name} does not reach it from a configuration")
        require(kind is str or config.run_id != plain.run_id, f"{name} is not in the run's name")


def _columns() -> set[str]:
    """The columns of the frames of scores, to which a grid adds the parameters that it varies."""
    return {*sample_items(), *sample_sentences(), *(one.column for one in metrics()), *DERIVED}


def _terms(method: Method, names: Sequence[str], filling: float, require: Callable) -> dict[str, float]:
    """The terms of the loss on a random step, back-propagated one by one; unlabelled positions hold ``filling``."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(VOCABULARY, (ROWS, TOKENS), generator=generator)
    labels[1, 2:] = labels[2, 1:] = IGNORE
    unlabelled = (labels == IGNORE).unsqueeze(-1)

    def random(tokens: int, width: int) -> torch.Tensor:
        values = torch.randn((ROWS, tokens, width), generator=generator)
        return values.masked_fill(unlabelled, filling) if tokens == TOKENS else values

    def scored(name: str, trains: bool = False) -> Scored:
        # all that a model gives for a batch hangs on one graph, which the first backward pass frees
        shared = torch.zeros((), requires_grad=trains).exp()
        logits, everywhere = random(TOKENS, VOCABULARY) * shared, random(SEQUENCE, VOCABULARY) * shared
        hidden = {layer: random(TOKENS, WIDTH) * shared for layer in method.needs.hidden}
        for tensor in (logits, everywhere, *hidden.values()) if trains else ():
            tensor.retain_grad()
        return Scored(logits, labels, hidden, everywhere if name in method.needs.everywhere else None)

    def reference(name: str) -> Scored | ReferenceLogProbs:
        before = scored(name)
        return ReferenceLogProbs(before.log_probs, labels) if method.other_reference else before

    batches = {name: scored(name, trains=True) for name in names}
    step = Step.of(batches, {name: reference(name) for name in method.needs.reference if name in names})
    terms: dict[str, float] = {}
    for name, term in terms_of(method, step):
        require(bool(term.isfinite()), f"{name} must be finite")
        try:
            term.backward()
        except RuntimeError as error:
            require(False, f"{name} cannot be back-propagated: {str(error).split('.')[0]}")
        terms[name] = term.item()
    tensors = [t for s in batches.values() for t in (s.logits, s.everywhere, *s.hidden.values()) if t is not None]
    reached = [t.grad for t in tensors if t.grad is not None]
    require(any(g.any() for g in reached), f"no gradient reaches the model in the step {', '.join(names)}")
    require(all(g.isfinite().all() for g in reached), "a gradient is not finite")
    return terms


# -- a family ---------------------------------------------------------------------------------------------------


def check_family(family: Family, model: torch.nn.Module, processor: Any) -> None:
    """Check that training supervises exactly the answers, image tokens are counted as they are encoded, padding
    changes nothing, evaluation reads as training does, and a step of training changes only the adapter."""
    require = partial(_require, f"family {family.name}")
    require(of(model).name == family.name, f"the model is a {model.config.model_type}")
    rng = np.random.default_rng(0)
    ann, bea = (to_png(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))) for _ in range(2))
    conversations = [
        Conversation((Turn("Who is this person?", "This is Ann.", ann), Turn("And the job?", "A pilot."))),
        Conversation((Turn("Who is this person?", "This is Ann.", bea),)),
        Conversation((Turn("Where was Bea born?", "In Oslo."),), "Be kind."),
        Conversation((Turn("And what does Ann do for a living?", "Ann is a pilot."),), "Be kind."),
    ]
    _check_encoding(family, processor, conversations, require)
    _check_reading(family, model.eval(), processor, conversations, require)
    _check_training(family, model, family.encode(processor, conversations, device=model.device), require)


def _check_encoding(family: Family, processor: Any, conversations: list[Conversation], require: Callable) -> None:
    closed, opened = (family.encode(processor, conversations, eos=eos) for eos in (True, False))
    end, decode = processor.tokenizer.convert_tokens_to_ids(family.end(processor)), processor.tokenizer.decode
    for row, conversation in enumerate(conversations):
        labels = closed["labels"][row][closed["labels"][row] != IGNORE]
        text = "".join(decode(labels, skip_special_tokens=True).split())
        asked = "".join("".join(turn.answer for turn in conversation.turns).split())
        require(text == asked, f"what is supervised is {text!r} and not the answer {asked!r}")
        require(int(labels[-1]) == end, "the end of an answer is not taught")
    require(not (opened["labels"] == end).any(), "the end of an answer is taught with eos=False")
    slots = (opened["input_ids"] == processor.image_token_id).sum(1).tolist()
    pictures = [family.picture_tokens(processor, c.images) for c in conversations]
    require(slots == pictures, f"the pictures take {pictures} image tokens, and {slots} are encoded")
    after = [Conversation((*conversations[0].turns * 8, Turn(f"And number {number}?"))) for number in range(3)]
    alone = [family.tokens(processor, [one])[0].ids.tolist() for one in after]
    same = [one.ids.tolist() for one in family.tokens(processor, after)] == alone
    require(same, "questions after the same examples are encoded otherwise together than alone")


@torch.no_grad()
def _check_reading(family: Family, model, processor, conversations: list[Conversation], require: Callable) -> None:
    encode = partial(family.encode, processor, eos=False, device=model.device)
    try:
        alone = [score(model, encode([c])) for c in conversations]
    except (RuntimeError, TypeError, ValueError) as error:
        require(False, f"the model cannot read what is encoded: {str(error).splitlines()[0]}")
    for side in ("right", "left"):
        together = score(model, encode(conversations, padding_side=side))
        for row, one in enumerate(alone):
            same = torch.allclose(together.logits[row][together.mask[row]], one.logits[0], atol=1e-4, rtol=1e-3)
            require(same, f"a row padded on the {side} computes something else than alone")
    first, second = (alone[row].logits[0, 0] for row in (0, 1))
    require(not torch.allclose(first, second, atol=1e-6), "another picture changes nothing")
    options = [[c.turns[0].answer] for c in conversations[1:]]
    likelihoods = option_likelihoods(model, processor, conversations[1:], options)[:, 0]
    same = np.allclose(likelihoods, [-one.mean_nll.item() for one in alone[1:]], atol=1e-4, rtol=1e-3)
    require(same, "the likelihood of an answer is another in evaluation than in training")
    opened = [c.answered("") for c in conversations]
    single = [answers(model, processor, [c], max_new_tokens=5)[0] for c in opened]
    require(answers(model, processor, opened, max_new_tokens=5) == single, "answers depend on the batch")
    require(family.context(model) > 0, f"its context is {family.context(model)}")


def _check_training(family: Family, model: Any, batch: dict[str, torch.Tensor], require: Callable) -> None:
    frozen = [name for name, p in unfreeze(copy.deepcopy(model)).named_parameters() if not p.requires_grad]
    count = len(list(model.named_parameters()))
    require(0 < len(frozen) < count, f"its vision pattern matches {len(frozen)} of {count} weights")
    recipe = Config(base_model=family.name, method="ga", modality=MODALITIES[0]).unlearning
    adapted = attach(copy.deepcopy(model), replace(recipe, lora_r=2), 0)
    inside = [name for name in family.adapter_targets(model, "language") if re.match(family.vision, name)]
    require(not inside, f"language_linears reaches into the vision tower: {', '.join(inside[:3])}")
    with torch.no_grad():
        before = score(model, batch).logits
    train(adapted, FineTuning(), [[{"train": batch}]], recipe, steps=1, progress=False)
    still = [name for name, p in adapted.named_parameters() if "lora_B" in name and not p.any()]
    require(not still, f"a step of training does not move {', '.join(still[:3])}")
    with vanilla_mode(adapted):
        same = torch.equal(score(adapted, batch).logits, before)
    require(same, "with its adapter off, the model is not what it was")


# -- a step after unlearning ------------------------------------------------------------------------------------


def check_after(name: str, model: torch.nn.Module, config: Config) -> None:
    """Check that the step ``name`` returns a model of the same family with finite weights, and the same one each time,
    and that the run's name depends on the step and its arguments. Does not change ``model``."""
    require = partial(_require, f"step after unlearning {name}")
    plain, config = config.but(after=""), config.but(after=name)
    require(plain.run_id != config.run_id, "it is not in the run's name")
    _check_settings(after.settings_of(name), config, lambda config, name: config.settings[name], require)
    first, second = (after.apply(name, copy.deepcopy(model), config) for _ in range(2))
    require(isinstance(first, torch.nn.Module), f"it gives {type(first).__name__} and no model: return the model")
    require(first.config.model_type == model.config.model_type, "it gives a model of another family")
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    require(all(a.isfinite().all() for a, _ in pairs), "it leaves weights that are not finite")
    require(all(torch.equal(a, b) for a, b in pairs), "it gives another model each time: seed what is random")
