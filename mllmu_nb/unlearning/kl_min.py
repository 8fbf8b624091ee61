"""Gradient ascent on forget, kept close to vanilla on retain. Source: Maini et al. 2024 (TOFU), arXiv 2401.06121."""

from dataclasses import dataclass

from mllmu_nb.unlearning.base import AUTHOR, RULE, Method, Needs, Recipe, mean_kl, register, summed_kl


@register
@dataclass(frozen=True)
class KLMinimization(Method):
    """L = −E_f ℓ̄ + α E_r mean_t KL(p_θ₀ ‖ p_θ), θ₀ the frozen vanilla model, t over the answer tokens"""

    alpha: float = 1.0  # weight of the retain term

    name, label, colour, marker, order = "kl_min", "KL Min.", "#009E73", "D", 30
    published = "KL_Min"
    streams = ("forget", "retain")
    needs = Needs(reference=("retain",))
    recipes = {
        ("miniature", "multimodal"): Recipe(lr=1e-3, steps=138, settings={"alpha": 8.0}, source=RULE),
        ("miniature", "unimodal"): Recipe(lr=1e-3, steps=185, settings={"alpha": 16.0}, source=RULE),
        "paper": Recipe(epochs=3, source=AUTHOR),
    }

    def loss(self, step):
        yield "forget", -step.forget.mean_nll.mean()
        yield "kl", self.alpha * mean_kl(step.reference.retain, step.retain).mean()


@register
class UpstreamKLMinimization(KLMinimization):
    """In every epoch, L = −ℓ̄_f through the whole forget set, then L = ℓ̄_r + α (1/B) Σ_t KL(p_θ₀ ‖ p_θ) through the
    whole retain set. ℓ̄ is one mean over the labelled tokens of a batch of B; t is every position in it, also image
    slots and padding. Source: MLLMU-Bench's released code."""

    variant = "upstream"
    passes = (("forget",), ("retain",))
    rate_falls = "epoch"  # the schedule counts batches but moves on once per epoch, so the rate hardly falls
    needs = Needs(reference=("retain",), everywhere=("retain",))
    recipes = dict.fromkeys(("miniature", "paper"), Recipe(epochs=3, source=AUTHOR))

    def loss(self, step):
        if "forget" in step:
            yield "forget", -step.forget.token_nll
        if "retain" in step:  # one term, because both need the same logits
            kl = summed_kl(step.reference.retain, step.retain)
            yield "retain", step.retain.token_nll + self.alpha * kl
