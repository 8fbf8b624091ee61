"""Negative preference optimisation. Source: Zhang et al. 2024, arXiv 2404.05868, eq. 3."""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from mllmu_nb.errors import KitError
from mllmu_nb.unlearning.base import AUTHOR, RULE, Method, Needs, Recipe, ReferenceLogProbs, Scored, register


@register
@dataclass(frozen=True)
class NegativePreference(Method):
    """L = −(2/β) E_f log σ(−β [log p_θ(y|x) − log p_θ₀(y|x)]), log-probabilities summed over the answer

    Its gradient is gradient ascent's, each answer weighted by 2σ(β [log p_θ − log p_θ₀]): an answer that is forgotten
    already pulls no more.
    """

    beta: float = 0.1  # inverse temperature

    name, label, colour, marker, order = "npo", "NPO", "#CC79A7", "v", 40
    published = "NPO"
    needs = Needs(reference=("forget",))
    recipes = {
        ("miniature", "multimodal"): Recipe(lr=1e-3, steps=51, settings={"beta": 0.1}, source=RULE),
        ("miniature", "unimodal"): Recipe(lr=2e-3, steps=37, settings={"beta": 0.2}, source=RULE),
        "paper": Recipe(epochs=2, source=AUTHOR),
    }

    def __post_init__(self):
        if not 0 < self.beta < math.inf:
            raise KitError(f"beta of npo must be a number above 0, not {self.beta:g}")

    def loss(self, step):
        before = step.reference.forget.summed_log_probs  # first: the model's graph is not in memory yet
        ratio = step.forget.summed_log_probs - before
        yield "forget", -2 / self.beta * logsigmoid(-self.beta * ratio).mean()


def _mean_nll(answers: Scored | ReferenceLogProbs) -> Tensor:
    """Nats per supervised token of a batch, or of one piece. Unlike ``token_nll`` it is not scaled to the whole batch,
    because the loss is not a sum over answers."""
    return -answers.log_probs.sum() / answers.counts.sum()


@register
@dataclass(frozen=True)
class UpstreamNegativePreference(NegativePreference):
    """L = −(2/β) log σ(β (ℓ̄_θ − ℓ̄_θref)), each ℓ̄ one mean over the labelled tokens of the batch; θ_ref is the base
    model after one epoch on the retain people, while optimisation starts from θ₀. Source: MLLMU-Bench's released code.

    Its gradient is gradient ascent's on the batch, weighted by 2σ(−β (ℓ̄_θ − ℓ̄_θref)), for answers of any length.
    """

    beta: float = 0.4  # inverse temperature

    variant = "upstream"
    reference_model = "retain_epoch"
    recipes = dict.fromkeys(("miniature", "paper"), Recipe(epochs=2, source=AUTHOR))

    def loss(self, step):
        before = _mean_nll(step.reference.forget)
        excess = _mean_nll(step.forget) - before
        yield "forget", -2 / self.beta * logsigmoid(self.beta * excess)


@register
@dataclass(frozen=True)
class RetainedPreference(NegativePreference):
    """L = L_NPO + α E_r ℓ̄, the usual form in comparisons. Source: Zhang et al. 2024, section 4 (NPO + RT).

    L_NPO sums over an answer's n tokens, the retain term takes their mean: α weighs about n times less than in Grad.
    Diff.
    """

    alpha: float = 1.0  # weight of the retain term

    variant, colour, marker = "retain", "#882255", "<"
    streams = ("forget", "retain")
    recipes = NegativePreference.recipes | {
        ("miniature", "multimodal"): Recipe(lr=2.5e-4, steps=573, settings={"beta": 0.2, "alpha": 2.0}, source=RULE),
        ("miniature", "unimodal"): Recipe(lr=1.25e-4, steps=497, settings={"beta": 0.2, "alpha": 4.0}, source=RULE),
    }

    def loss(self, step):
        yield from super().loss(step)
        yield "retain", self.alpha * step.retain.mean_nll.mean()
