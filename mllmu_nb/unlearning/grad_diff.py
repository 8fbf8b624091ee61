"""Gradient difference: up on forget, down on retain, in one step. Source: Liu, Liu & Stone 2022, arXiv 2203.12817."""

from dataclasses import dataclass

from mllmu_nb.unlearning.base import Method, mean_nll, register, token_nll


@register
@dataclass(frozen=True)
class GradientDifference(Method):
    """L = −γ E_f ℓ̄ + α E_r ℓ̄"""

    gamma: float = 1.0
    alpha: float = 1.0

    name = "grad_diff"
    uses = ("forget", "retain")

    def loss(self, scored, reference):
        forget, retain = mean_nll(scored["forget"]), mean_nll(scored["retain"])
        return -self.gamma * forget + self.alpha * retain, {"forget": forget.item(), "retain": retain.item()}


@register
class UpstreamGradientDifference(Method):
    """L = −ℓ̄_f all through the forget set, then L = ℓ̄_r all through the retain set, in every epoch; each ℓ̄ is one mean
    over the labelled tokens of a batch. Source: MLLMU-Bench's released code.
    """

    name, variant = "grad_diff", "upstream"
    uses = ("forget", "retain")
    passes = (("forget",), ("retain",))

    def loss(self, scored, reference):
        if "forget" in scored:
            forget = token_nll(scored["forget"])
            return -forget, {"forget": forget.item()}
        retain = token_nll(scored["retain"])
        return retain, {"retain": retain.item()}
