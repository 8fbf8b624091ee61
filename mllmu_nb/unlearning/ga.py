"""Gradient ascent on the forget set. Source: Jang et al. 2023, arXiv 2210.01504; Yao et al. 2023, arXiv 2310.10683."""

from mllmu_nb.unlearning.base import RELEASED, RULE, Method, Recipe, register


@register
class GradientAscent(Method):
    """L = −E_f ℓ̄"""

    name, label, colour, marker, order = "ga", "GA", "#D55E00", "s", 10
    published = "GA"
    recipes = {
        ("miniature", "multimodal"): Recipe(lr=8e-3, steps=8, source=RULE),
        ("miniature", "unimodal"): Recipe(lr=1e-3, steps=65, source=RULE),
    }

    def loss(self, step):
        yield "forget", -step.forget.mean_nll.mean()


@register
class UpstreamGradientAscent(GradientAscent):
    """L = −ℓ̄_f, one mean over the labelled tokens of the batch. Source: MLLMU-Bench's released code."""

    variant = "upstream"
    recipes = dict.fromkeys(
        ("miniature", "paper"), Recipe(epochs=1, source=f"{RELEASED}; 1 to 2 says the author in issue 12")
    )

    def loss(self, step):
        yield "forget", -step.forget.token_nll
