"""Gradient difference: up on forget, down on retain, in one step. Source: Liu, Liu & Stone 2022, arXiv 2203.12817."""

from dataclasses import dataclass

from mllmu_nb.unlearning.base import RELEASED, RULE, Method, Recipe, register


@register
@dataclass(frozen=True)
class GradientDifference(Method):
    """L = −γ E_f ℓ̄ + α E_r ℓ̄"""

    gamma: float = 1.0  # weight of the forget term
    alpha: float = 1.0  # weight of the retain term

    name, label, colour, marker, order = "grad_diff", "Grad. Diff.", "#0072B2", "^", 20
    published = "Grad. Diff."
    streams = ("forget", "retain")
    recipes = {
        ("miniature", "multimodal"): Recipe(lr=2e-3, steps=107, settings={"alpha": 4.0}, source=RULE),
        ("miniature", "unimodal"): Recipe(lr=5e-4, steps=243, settings={"alpha": 2.0}, source=RULE),
    }

    def loss(self, step):
        yield "forget", -self.gamma * step.forget.mean_nll.mean()
        yield "retain", self.alpha * step.retain.mean_nll.mean()


@register
class UpstreamGradientDifference(Method):
    """In every epoch, L = −ℓ̄_f through the whole forget set, then L = ℓ̄_r through the whole retain set; each ℓ̄ is
    one mean over the labelled tokens of a batch. Source: MLLMU-Bench's released code."""

    name, variant, label, colour, marker, order = "grad_diff", "upstream", "Grad. Diff.", "#0072B2", "^", 20
    streams = ("forget", "retain")
    passes = (("forget",), ("retain",))
    rate_falls = "epoch"  # the schedule counts batches but moves on once per epoch, so the rate hardly falls
    recipes = dict.fromkeys(("miniature", "paper"), Recipe(epochs=1, source=RELEASED))

    def loss(self, step):
        if "forget" in step:
            yield "forget", -step.forget.token_nll
        if "retain" in step:
            yield "retain", step.retain.token_nll
