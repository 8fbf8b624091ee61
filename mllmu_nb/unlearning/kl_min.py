"""Ascent on forget, held to the vanilla model on retain. Source: Maini et al. 2024 (TOFU), arXiv 2401.06121."""

from dataclasses import dataclass

from mllmu_nb.unlearning.base import Method, mean_kl, mean_nll, register, summed_kl, token_nll


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


@register
@dataclass(frozen=True)
class UpstreamKLMinimization(Method):
    """L = −ℓ̄_f all through the forget set, then L = ℓ̄_r + α (1/B) Σ_t KL(p_θ₀ ‖ p_θ) all through the retain set, in
    every epoch; ℓ̄ is one mean over the labelled tokens of a batch of B, t every position of it, image slots and padding
    too. Source: MLLMU-Bench's released code; the KL's direction unknown, chosen because it is the paper's.
    """

    alpha: float = 1.0

    name, variant = "kl_min", "upstream"
    uses = ("forget", "retain")
    passes = (("forget",), ("retain",))
    reference = everywhere = ("retain",)

    def loss(self, scored, reference):
        if "forget" in scored:
            forget = token_nll(scored["forget"])
            return -forget, {"forget": forget.item()}
        retain, kl = token_nll(scored["retain"]), summed_kl(reference["retain"], scored["retain"])
        return retain + self.alpha * kl, {"retain": retain.item(), "kl": kl.item()}
