"""Gradient ascent on the forget set. Source: Jang et al. 2023, arXiv 2210.01504; Yao et al. 2023, arXiv 2310.10683."""

from mllmu_nb.unlearning.base import Method, mean_nll, register, token_nll


@register
class GradientAscent(Method):
    """L = −E_f ℓ̄"""

    name = "ga"

    def loss(self, scored, reference):
        forget = mean_nll(scored["forget"])
        return -forget, {"forget": forget.item()}


@register
class UpstreamGradientAscent(Method):
    """L = −ℓ̄_f, one mean over the labelled tokens of the batch. Source: MLLMU-Bench's released code."""

    name, variant = "ga", "upstream"

    def loss(self, scored, reference):
        forget = token_nll(scored["forget"])
        return -forget, {"forget": forget.item()}
