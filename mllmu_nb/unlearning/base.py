"""The parts of an unlearning method: scored batches, a loss that yields its terms, and its declarations.

A method sees logits, labels and hidden states, never a model, a tokenizer or a file.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from mllmu_nb.errors import KitError, choose, invalid
from mllmu_nb.registry import Registry

__all__ = ["IGNORE", "METHODS", "Method", "Needs", "Recipe", "ReferenceLogProbs", "Scored", "Step", "Stream", "get"]
__all__ += ["mean_kl", "names", "register", "summed_kl", "variants", "with_answers"]

IGNORE = -100  # the label of a position that is not supervised
REFERENCES = ("base", "vanilla", "oracle")  # models with which the unlearned ones are compared
YOURS = "yours"  # the method of a model made elsewhere: base_path, with the adapter of adapter_path
# Sources of the recipes of the methods here.
RULE = "searched on the miniature, on people of other data seeds, by the rule of tools/settings.py"
RELEASED = "MLLMU-Bench's code and README"
AUTHOR = "MLLMU-Bench, the author in issue 12"
YIELDED = 'a loss yields pairs, each of a new name and a scalar with a gradient: yield "forget", -step.forget.token_nll'


class _Answers:
    """Quantities that every batch of answers computes from ``log_probs`` [B, T] and ``labels`` [B, T]."""

    log_probs: Any
    labels: Tensor
    per_row: float | None  # supervised tokens per row of the whole batch; None: this is not a piece

    @cached_property
    def mask(self) -> Tensor:
        """[B, T], true if a token is supervised."""
        return self.labels != IGNORE

    @cached_property
    def counts(self) -> Tensor:
        """[B], the number of supervised tokens of each answer."""
        return self.mask.sum(1)

    @cached_property
    def summed_log_probs(self) -> Tensor:
        """log p(y | x) = −ℓ in nats [B], summed over the supervised tokens."""
        return self.log_probs.sum(1)

    @cached_property
    def mean_nll(self) -> Tensor:
        """ℓ̄ in nats per supervised token [B], each answer averaged over its own tokens."""
        return -(self.summed_log_probs / self.counts)

    @cached_property
    def token_nll(self) -> Tensor:
        """Nats per supervised token (a scalar), all tokens of the batch weighted alike: the loss of fine-tuning. A
        piece is scaled so that the mean over pieces, weighted by their rows, is the value of the batch."""
        tokens = self.counts.sum() if self.per_row is None else self.per_row * len(self.labels)
        return -self.log_probs.sum() / tokens


@dataclass(frozen=True)
class Scored(_Answers):
    """A model's output for a batch. ``logits`` [B, T, V]: ``logits[:, t]`` predicts ``labels[:, t]`` [B, T]
    (:data:`IGNORE`: not supervised). ``hidden``: a name of :attr:`Needs.hidden` → that layer's states [B, T, H];
    ``everywhere``: the logits [B, S, V] at all positions of the padded batch."""

    logits: Tensor
    labels: Tensor
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    everywhere: Tensor | None = None
    per_row: float | None = None

    @cached_property
    def log_probs(self) -> Tensor:
        """log p(y_t | x, y_<t) in nats [B, T], 0 at positions that are not supervised."""
        mask = self.mask
        chosen = self.logits[mask].float().log_softmax(-1).gather(-1, self.labels[mask].unsqueeze(-1)).squeeze(-1)
        return chosen.new_zeros(mask.shape).masked_scatter(mask, chosen)


@dataclass(frozen=True)
class ReferenceLogProbs(_Answers):
    """The stored output of a model that is no longer in memory: ``log_probs`` [B, T] as in :class:`Scored`."""

    log_probs: Tensor
    labels: Tensor
    per_row: float | None = None


def mean_kl(reference: Scored, scored: Scored) -> Tensor:
    """mean_t KL(p_reference ‖ p_scored) in nats [B] over the whole vocabulary, at the supervised positions."""
    mask = scored.mask
    before, after = (s.logits[mask].float().log_softmax(-1) for s in (reference, scored))
    divergence = (before.exp() * (before - after)).sum(-1)
    per_token = divergence.new_zeros(mask.shape).masked_scatter(mask, divergence)
    return per_token.sum(1) / scored.counts


def summed_kl(reference: Scored, scored: Scored) -> Tensor:
    """KL(p_reference ‖ p_scored) in nats, a scalar: the sum over all positions, also image slots and padding, divided
    by the batch size, as in the released code."""
    before, after = (s.everywhere.float().log_softmax(-1) for s in (reference, scored))
    return (before.exp() * (before - after)).sum() / len(after)


class NoStream(AttributeError):
    """A loss reads a stream that the step does not have."""


class Step:
    """One step of training as a loss sees it. ``step.forget`` is a :class:`Scored` batch, scored when it is first read;
    ``step.reference.forget`` is the same batch scored by the reference model."""

    def __init__(self, read: Callable[[str], Any], names: Iterable[str], reference: Step | None = None):
        self._read, self.names, self.reference = read, tuple(names), reference
        self.asked: dict[str, Any] = {}  # the streams read so far

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self.names:
            has = ", ".join(self.names) or "none"
            raise NoStream(f"there is no stream {name!r} in this step: it has {has} (see streams, and needs.reference)")
        if name not in self.asked:
            self.asked[name] = self._read(name)
        return self.asked[name]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @classmethod
    def of(cls, batches: Mapping[str, Any], reference: Mapping[str, Any] | None = None) -> Step:
        """Return a step of batches that are already scored, for tests and notebooks."""
        reference = reference or {}
        return cls(batches.__getitem__, batches, cls(reference.__getitem__, reference))


@dataclass(frozen=True)
class Stream:
    """Conversations that a step draws from a set of people. ``change`` (turn → turn), if given, changes each turn.
    Streams of one set are drawn together: row i of each asks the same question."""

    set: str = "forget"
    change: Callable[[Any], Any] | None = None

    def changed(self, conversation: Any) -> Any:
        """Return the conversation as this stream asks it."""
        return replace(conversation, turns=tuple(map(self.change, conversation.turns))) if self.change else conversation


def with_answers(answers: Sequence[str]) -> Stream:
    """Return a stream of the forget questions, each with one of ``answers`` (refusals, say), always the same one."""

    def change(turn: Any) -> Any:
        return replace(turn, answer=answers[zlib.crc32(f"{turn.prompt} {turn.answer}".encode()) % len(answers)])

    return Stream(change=change)


@dataclass(frozen=True)
class Needs:
    """What a loss reads in addition to the logits at supervised positions."""

    reference: tuple[str, ...] = ()  # streams that the reference model scores too
    everywhere: tuple[str, ...] = ()  # streams scored at all positions
    # Hyper-parameters that name a layer. If the default is a float (0.5), all values are shares of the depth, even 1;
    # if it is an int (8), all are layer numbers.
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """How one model is trained; None means the value of the scale's preset. Give ``steps`` or ``epochs``; the other
    becomes 0."""

    lr: float | None = None
    steps: int | None = None  # optimizer steps
    epochs: float | None = None  # or passes over the forget set (fine-tuning: over everything)
    batch_size: int | None = None  # conversations per step
    schedule: str | None = None  # of the learning rate: constant, linear, cosine or plateau (falls late)
    warmup: float | None = None  # share of the steps
    weight_decay: float | None = None
    clip: float | None = None  # largest norm of the gradient; 0: not clipped
    optimizer: str | None = None  # adamw, or muon for the matrices inside the layers
    adam: str | None = None  # whose AdamW: torch (if None), or transformers (as in 4.45)
    adam_eps: float | None = None  # AdamW's epsilon (None: 1e-8); that of transformers' own AdamW was 1e-6
    precision: str | None = None  # fp32, or bf16: frozen weights and matrix products in half precision
    micro_batch: int = 0  # conversations read at once; gradients add up over the batch; 0: whole batch
    checkpointing: bool = False  # activations are computed again in the backward pass instead of kept
    label_mode: str | None = None  # which tokens are supervised: answer, text, upstream
    eos: bool | None = None  # whether the end of the answer is taught
    lora_r: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float | None = None
    lora_init: str | None = None  # of the adapter's matrix A: kaiming (uniform) or gaussian
    adapter_reach: str | None = None  # which layers get adapters: language, upstream, upstream_v5
    turns: int | None = None  # fine-tuning: questions about one person in one conversation
    together: int | None = None  # fine-tuning: batches drawn at once, then divided by length
    augment: bool | None = None  # fine-tuning: portraits change each time they are shown
    settings: Mapping[str, Any] = field(default_factory=dict)  # hyper-parameters of the method at this scale
    source: str = ""  # where the numbers come from

    def numbers(self) -> dict[str, Any]:
        """Return the recipe without ``source`` and ``settings``: the same numbers make the same model."""
        return {name: value for name, value in asdict(self).items() if name not in ("source", "settings")}


@dataclass(frozen=True)
class Method:
    """An unlearning method. Its fields are its hyper-parameters; class attributes declare the rest."""

    name: ClassVar[str] = ""
    variant: ClassVar[str] = "canonical"
    label: ClassVar[str] = ""
    published: ClassVar[str] = ""  # its name in published tables; it has a row in ours even without a run
    colour: ClassVar[str] = "#332288"  # in figures
    marker: ClassVar[str] = "h"
    order: ClassVar[int] = 50  # place among the methods in tables
    # What one step draws: names of sets (turned into streams), or name → stream. The first one sets the length of an
    # epoch; () means that the method trains nothing.
    streams: ClassVar[Any] = ("forget",)
    needs: ClassVar[Needs] = Needs()
    reference_model: ClassVar[str] = "vanilla"  # or retain_epoch, the base model after one epoch on the retain people
    passes: ClassVar[tuple[tuple[str, ...], ...]] = ()  # streams of each pass, if an epoch visits sets in turn
    rate_falls: ClassVar[str] = "step"  # when the schedule of the rate advances: each step, or each whole epoch
    rise: ClassVar[float] = 10.0  # nats above the first loss that mean divergence; inf for a loss in other units
    trains: ClassVar[str] = ""  # linear layers with adapters, a pattern on full names; "": as adapter_reach says
    system: ClassVar[str] = ""  # a prompt before every question at evaluation
    recipes: ClassVar[Mapping[Any, Recipe]] = {}  # by scale or (scale, modality)
    # These follow from the declarations of a class.
    all_passes: ClassVar[tuple[tuple[str, ...], ...]]  # streams of each pass; without ``passes`` one pass with all
    other_reference: ClassVar[str]  # the model to be asked beforehand; "": none, or vanilla with its adapter off

    def __init_subclass__(cls) -> None:
        if not isinstance(cls.streams, Mapping):
            cls.streams = {name: Stream(name) for name in cls.streams}
        cls.all_passes = cls.passes or (tuple(cls.streams),)
        cls.other_reference = cls.reference_model if cls.needs.reference and cls.reference_model != "vanilla" else ""

    def loss(self, step: Step) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, term); the loss is the sum of the terms. Each term is back-propagated before the next one is
        computed, and this frees the graph of its batch: what reads the same batch must be one term, such as the sum of
        a likelihood and a divergence on ``step.retain``."""
        raise KitError(f"method {self.name} ({self.variant}) has no loss: {YIELDED}")

    # Hooks of the training loop; parameters: name → trained parameter, with its gradient.

    def after_backward(self, term: str, parameters: Mapping[str, Tensor]) -> None:
        """Called after the gradient of a term has been added."""

    def before_update(self, parameters: Mapping[str, Tensor]) -> None:
        """Called after all gradients are added and clipped, before the optimizer moves the parameters."""

    def after_update(self, parameters: Mapping[str, Tensor]) -> None:
        """Called after the optimizer has moved the parameters."""

    def check_length(self, steps: int, epochs: float) -> None:
        """Raise KitError unless the length is whole epochs, if the method has ``passes`` or its rate falls by epoch."""
        if (self.passes or self.rate_falls == "epoch") and (steps or epochs != int(epochs)):
            given = f"{steps} steps are not one" if steps else f"{epochs:g} is not one"
            who = f"{self.name} ({self.variant})"
            raise KitError(f"{who} walks through whole epochs: {given}; set unlearn_epochs, as to 2")

    @classmethod
    def hyper_parameters(cls) -> dict[str, Any]:
        """Return name → default."""
        return {field.name: field.default for field in fields(cls)}

    @classmethod
    def recipe(cls, scale: str, modality: str) -> Recipe:
        """Return the method's own recipe, or an empty one."""
        return cls.recipes.get((scale, modality)) or cls.recipes.get(scale) or Recipe()


def terms_of(method: Method, step: Step) -> Iterator[tuple[str, Tensor]]:
    """Yield the terms of the loss of ``method`` at ``step``. Raises KitError if there are none, if one is not what a
    loss yields, or if the loss reads a stream that the step does not have."""
    own, names = f"method {method.name} ({method.variant}): its loss", set()
    try:
        given = method.loss(step)
        for pair in given if isinstance(given, Iterable) and not isinstance(given, Tensor) else [given]:
            name, term = pair if isinstance(pair, tuple | list) and len(pair) == 2 else ("", None)
            scalar = isinstance(term, Tensor) and term.ndim == 0 and term.requires_grad
            if not (scalar and isinstance(name, str) and name not in names):
                raise KitError(f"{own} gives {' '.join(f'{pair!r:.200}'.split())}: {YIELDED}")
            names.add(name)
            yield name, term
    except NoStream as error:
        raise KitError(f"{own} reads what it does not declare: {error}") from None
    if not names:
        raise KitError(f"{own} gives nothing: {YIELDED}")


METHODS = Registry("method")  # (name, variant) → class
IN_A_PATH = r"\w[\w.-]*", "letters, digits, _, . and - (it is in the names of folders)"
WORDS = {"name": IN_A_PATH, "variant": IN_A_PATH, "label": (r".*\S.*", "a line of text for tables")}


def register(method: type[Method]) -> type[Method]:
    """Class decorator: registers ``method`` under its name and variant. Raises KitError for a faulty declaration."""
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise KitError(f"an unlearning method is a class of the kind Method, not {method!r:.60}")
    for name, (form, meaning) in WORDS.items():
        value = getattr(method, name)
        if not isinstance(value, str) or not re.fullmatch(form, value):
            raise KitError(f"the unlearning method {method.__name__} needs a {name}, {meaning}, not {value!r:.60}")
    if method.name in (*REFERENCES, YOURS):
        raise KitError(f"{method.name!r} names a model that is not unlearned: give {method.__name__} another name")
    recipes = method.recipes
    if not isinstance(recipes, Mapping) or not all(isinstance(one, Recipe) for one in recipes.values()):
        raise KitError(
            f"recipes of {method.name} must be Recipes by scale, {{'miniature': Recipe(..)}}: {recipes!r:.60}"
        )
    choose(f"reference_model of {method.name}", method.reference_model, ("vanilla", "retain_epoch"))
    choose(f"rate_falls of {method.name}", method.rate_falls, ("step", "epoch"))
    for name in (*method.needs.reference, *method.needs.everywhere, *(n for names in method.passes for n in names)):
        choose(f"stream of {method.name}", name, method.streams)
    if method.other_reference and (method.needs.hidden or method.needs.everywhere):
        raise KitError(f"{method.name}: of {method.reference_model} only the log-probabilities of answers are kept")
    for name, stream in method.streams.items():
        choose(f"set of {method.name}'s stream {name}", stream.set, ("forget", "retain"))
    return METHODS.add((method.name, method.variant), method)


def variants(name: str) -> dict[str, type[Method]]:
    """Return variant → class of the method ``name``; empty if there is no such method."""
    return {key[1]: METHODS.get(key) for key in METHODS if key[0] == name}


def names() -> list[str]:
    """Return every method once, in the order of the tables."""
    every = sorted(METHODS.values(), key=lambda method: (method.order, method.name))
    return list(dict.fromkeys(method.name for method in every))


def get(name: str, variant: str = "canonical", **settings: Any) -> Method:
    """Return the method ``name`` with ``settings`` for its hyper-parameters (``get("npo", beta=0.4)``)."""
    choose("method", name, names())
    choose(f"variant of {name}", variant, variants(name))
    return variants(name)[variant](**settings)


def typed(owner: str, setting: str, value: Any, default: Any) -> Any:
    """Return ``value`` if it has the type of ``default`` (an int counts as a float). Raises KitError with the setting
    and its ``owner``, a method or a step after unlearning."""
    try:
        strict = ConfigDict(strict=True, allow_inf_nan=False)
        return TypeAdapter(type(default), config=strict).validate_python(value)
    except ValidationError as error:
        raise invalid(error, f"{setting} of {owner}") from None
