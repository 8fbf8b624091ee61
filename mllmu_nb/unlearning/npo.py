"""Negative preference optimisation. Source: Zhang et al. 2024, arXiv 2404.05868, eq. 3."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from mllmu_nb.unlearning.base import Method, mean_nll, register, sequence_log_probs


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
