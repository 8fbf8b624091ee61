"""Gradient ascent on the forget set. Source: Jang et al. 2023, arXiv 2210.01504; Yao et al. 2023, arXiv 2310.10683."""

from mllmu_nb.unlearning.base import Method, Recipe, register

RULE = "chosen on the miniature, with another data seed: the steps after which half of the gap to the oracle is closed"
RELEASED = "MLLMU-Bench's code and README"


@register
class GradientAscent(Method):
    """L = −E_f ℓ̄"""

    name, label, colour, marker, order = "ga", "GA", "#D55E00", "s", 10
    recipes = {
        ("miniature", "multimodal"): Recipe(lr=1e-3, steps=46, source=RULE),
        ("miniature", "unimodal"): Recipe(lr=1e-3, steps=63, source=RULE),
    }

    def loss(self, step):
        yield "forget", -step.forget.mean_nll.mean()


@register
class UpstreamGradientAscent(Method):
    """L = −ℓ̄_f, one mean over the labelled tokens of the batch. Source: MLLMU-Bench's released code."""

    name, variant, label, colour, marker, order = "ga", "upstream", "GA", "#D55E00", "s", 10
    recipes = dict.fromkeys(
        ("miniature", "paper"), Recipe(epochs=1, source=f"{RELEASED}; 1 to 2 says the author in issue 12")
    )

    def loss(self, step):
        yield "forget", -step.forget.token_nll
