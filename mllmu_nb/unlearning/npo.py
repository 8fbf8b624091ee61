"""Negative preference optimisation. Source: Zhang et al. 2024, arXiv 2404.05868, eq. 3."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from mllmu_nb.unlearning.base import Method, mean_nll, register, sequence_log_probs, token_nll


@register
@dataclass(frozen=True)
class NegativePreference(Method):
    """L = −(2/β) E_f log σ(−β [log p_θ(y|x) − log p_θ₀(y|x)]), log-probabilities summed over the answer

    Its gradient is gradient ascent's, each answer weighted by 2σ(β [log p_θ − log p_θ₀]): an answer that is forgotten
    already pulls no more.
    """

    beta: float = 0.1

    name = "npo"
    reference = ("forget",)

    def loss(self, scored, reference):
        ratio = sequence_log_probs(scored["forget"]) - sequence_log_probs(reference["forget"])
        loss = -2 / self.beta * logsigmoid(-self.beta * ratio).mean()
        return loss, {"forget": mean_nll(scored["forget"]).item(), "ratio": ratio.mean().item()}


@register
@dataclass(frozen=True)
class UpstreamNegativePreference(Method):
    """L = −(2/β) log σ(β (ℓ̄_θ − ℓ̄_θref)), each ℓ̄ one mean over the labelled tokens of the batch; θ_ref is the base
    model after one epoch on the retain people, while optimisation starts from θ₀. Source: MLLMU-Bench's released code.

    Its gradient is that of ascent on the batch, weighted by 2σ(−β (ℓ̄_θ − ℓ̄_θref)), however long the answers are.
    """

    beta: float = 0.4

    name, variant = "npo", "upstream"
    reference = ("forget",)
    reference_model = "retain_epoch"

    def loss(self, scored, reference):
        forget = token_nll(scored["forget"])
        excess = forget - token_nll(reference["forget"])
        loss = -2 / self.beta * logsigmoid(self.beta * excess)
        return loss, {"forget": forget.item(), "excess": excess.item()}
