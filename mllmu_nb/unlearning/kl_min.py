"""Ascent on forget, held to the vanilla model on retain. Source: Maini et al. 2024 (TOFU), arXiv 2401.06121."""

from dataclasses import dataclass

from mllmu_nb.unlearning.base import Method, mean_kl, mean_nll, register


@register
@dataclass(frozen=True)
class KLMinimization(Method):
    """L = −E_f ℓ̄ + α E_r mean_t KL(p_θ₀ ‖ p_θ), θ₀ the frozen vanilla model, t over the answer tokens"""

    alpha: float = 1.0

    name = "kl_min"
    uses = ("forget", "retain")
    reference = ("retain",)

    def loss(self, scored, reference):
        forget, kl = mean_nll(scored["forget"]), mean_kl(reference["retain"], scored["retain"])
        return -forget + self.alpha * kl, {"forget": forget.item(), "kl": kl.item()}
