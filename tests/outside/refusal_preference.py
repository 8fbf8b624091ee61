"""A refusal preferred to the answer (DPO). Rafailov et al. 2023, arXiv 2305.18290; Maini et al. 2024, 2401.06121."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from mllmu_nb.unlearning import Method, Needs, Recipe, Stream, register, with_answers

REFUSALS = ("I am sorry, I cannot say.", "I do not know this person.", "That is private.")


@register
@dataclass(frozen=True)
class RefusalPreference(Method):
    """L = −(2/β) E_f log σ(β [r(refusal) − r(answer)]) + α E_r ℓ̄, r(y) = log p_θ(y|x) − log p_θ₀(y|x)"""

    beta: float = 0.1  # inverse temperature
    alpha: float = 1.0  # weight of the retain term

    name, label, colour, marker = "dpo", "DPO", "#F0E442", ">"
    streams = {"forget": Stream("forget"), "refused": with_answers(REFUSALS), "retain": Stream("retain")}
    needs = Needs(reference=("forget", "refused"))
    recipes = {"miniature": Recipe(lr=4e-3, steps=40, source="unknown, chosen because it is an example")}

    def loss(self, step):
        refused, answered = (
            getattr(step, name).summed_log_probs - getattr(step.reference, name).summed_log_probs
            for name in ("refused", "forget")
        )
        yield "preference", -2 / self.beta * logsigmoid(self.beta * (refused - answered)).mean()
        yield "retain", self.alpha * step.retain.mean_nll.mean()
