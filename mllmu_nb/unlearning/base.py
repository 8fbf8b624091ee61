"""What every unlearning method is made of: scored batches, three quantities on them, and the registry.

Pure torch: a method sees logits and labels, never a model, a tokenizer or a file.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor

from mllmu_nb.errors import KitError

IGNORE = -100  # the label of a position that is not supervised
REFERENCE_MODELS = ("vanilla", "retain_epoch")


@dataclass(frozen=True)
class Scored:
    """What a model says about a batch: ``logits`` [B, T, V] in which ``logits[:, t]`` predicts ``labels[:, t]``.

    ``labels`` [B, T] hold token ids, and :data:`IGNORE` where nothing is supervised; such positions count nowhere,
    whatever their logits are. ``everywhere`` [B, S, V] are the logits at all positions of the batch as it was padded,
    image slots and padding among them: only for a method that asks for them.
    """

    logits: Tensor
    labels: Tensor
    everywhere: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """[B, T], true where a token is supervised."""
        return self.labels != IGNORE

    @property
    def counts(self) -> Tensor:
        """[B], supervised tokens of each sequence."""
        return self.mask.sum(1)


@dataclass(frozen=True)
class Recorded:
    """What was kept of a model that is no longer in memory: ``log_probs`` [B, T], log p(y_t | x, y_<t) of each label in
    nats and 0 where nothing is supervised. It takes the place of a :class:`Scored` wherever no more is needed.
    """

    log_probs: Tensor
    labels: Tensor

    mask = Scored.mask
    counts = Scored.counts


def token_log_probs(scored: Scored | Recorded) -> Tensor:
    """log p(y_t | x, y_<t) in nats [B, T], 0 at positions that are not supervised."""
    if isinstance(scored, Recorded):
        return scored.log_probs
    mask = scored.mask
    chosen = scored.logits[mask].float().log_softmax(-1).gather(-1, scored.labels[mask].unsqueeze(-1)).squeeze(-1)
    return chosen.new_zeros(mask.shape).masked_scatter(mask, chosen)


def sequence_log_probs(scored: Scored | Recorded) -> Tensor:
    """log p(y | x) = −ℓ in nats [B], summed over the supervised tokens."""
    return token_log_probs(scored).sum(1)


def mean_nll(scored: Scored | Recorded) -> Tensor:
    """E ℓ̄: nats per supervised token, averaged over each answer and then over the batch (a scalar)."""
    return -(sequence_log_probs(scored) / scored.counts).mean()


def token_nll(scored: Scored | Recorded) -> Tensor:
    """Nats per supervised token, every token of the batch alike: the loss of fine-tuning, as transformers has it."""
    return -token_log_probs(scored).sum() / scored.counts.sum()


def mean_kl(reference: Scored, scored: Scored) -> Tensor:
    """E mean_t KL(p_reference ‖ p_scored) in nats over the whole vocabulary, at the supervised positions (a scalar)."""
    mask = scored.mask
    before, after = (s.logits[mask].float().log_softmax(-1) for s in (reference, scored))
    divergence = (before.exp() * (before - after)).sum(-1)
    per_token = divergence.new_zeros(mask.shape).masked_scatter(mask, divergence)
    return (per_token.sum(1) / scored.counts).mean()


def summed_kl(reference: Scored, scored: Scored) -> Tensor:
    """KL(p_reference ‖ p_scored) in nats, summed over every position there is and divided by the batch size (a scalar).

    As the released code has it, image slots and padding weigh as much as the answer.
    """
    before, after = (s.everywhere.float().log_softmax(-1) for s in (reference, scored))
    return (before.exp() * (before - after)).sum() / len(after)


@dataclass(frozen=True)
class Method:
    """An unlearning method: which batches a step sees and the loss on them. Its fields are its hyper-parameters.

    ``uses`` names the batches ("forget", "retain") that one step draws together, the first setting the length of an
    epoch; empty for a method that trains nothing. ``reference`` names those of them of which the loss must know what
    the model ``reference_model`` says: ``vanilla``, the frozen model that unlearning starts from, as a :class:`Scored`,
    or ``retain_epoch``, the base model after one epoch on the retain people, as a :class:`Recorded`. ``everywhere``
    names those scored at all positions. ``system`` is put before every question at evaluation.
    ``passes`` is what one epoch walks through; a variant that visits its sets one after the other overrides it, and its
    loss is then given one of them at a time.
    """

    name: ClassVar[str] = ""
    variant: ClassVar[str] = "canonical"
    uses: ClassVar[tuple[str, ...]] = ("forget",)
    reference: ClassVar[tuple[str, ...]] = ()
    reference_model: ClassVar[str] = "vanilla"
    everywhere: ClassVar[tuple[str, ...]] = ()
    system: ClassVar[str] = ""

    @property
    def measured_elsewhere(self) -> bool:
        """Whether the loss needs to know what another model than vanilla says."""
        return bool(self.reference) and self.reference_model != "vanilla"

    @property
    def passes(self) -> tuple[tuple[str, ...], ...]:
        return (self.uses,) if self.uses else ()

    def loss(self, scored: dict[str, Scored], reference: dict[str, Scored]) -> tuple[Tensor, dict[str, float]]:
        """The scalar to minimise and the parts of it worth keeping in the log, in nats."""
        raise NotImplementedError(f"{self.name} has no loss")


METHODS: dict[str, dict[str, type[Method]]] = {}  # name → variant → class


def register(method: type[Method]) -> type[Method]:
    """Class decorator: makes ``method`` known under its name and variant. A package outside the kit may use it too."""
    if not method.name:
        raise KitError(f"the unlearning method {method.__name__} has no name")
    if method.reference_model not in REFERENCE_MODELS:
        known = ", ".join(REFERENCE_MODELS)
        raise KitError(f"{method.name} has no reference_model {method.reference_model!r}: choose one of {known}")
    variants = METHODS.setdefault(method.name, {})
    if variants.get(method.variant, method).__module__ != method.__module__:
        raise KitError(f"the unlearning method {method.name!r} ({method.variant}) is registered already")
    variants[method.variant] = method
    return method


def get(name: str, variant: str = "canonical", **settings: float) -> Method:
    """The method ``name`` with ``settings`` for its hyper-parameters (``get("npo", beta=0.4)``).

    Raises KitError naming what there is when the method, the variant or a setting is unknown.
    """
    if name not in METHODS:
        raise KitError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    if variant not in METHODS[name]:
        raise KitError(f"{name} has no variant {variant!r}: choose one of {', '.join(METHODS[name])}")
    method = METHODS[name][variant]
    known = [field.name for field in fields(method)]
    for setting in settings:
        if setting not in known:
            raise KitError(f"{name} has no setting {setting!r}: it takes {', '.join(known) or 'none'}")
    return method(**settings)
