"""RMU: hidden states of the forget questions are steered to a random direction. Li et al. 2024, arXiv 2403.03218."""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from mllmu_nb.unlearning import Method, Needs, Recipe, register


def distance(batch, states, target):
    """Mean squared distance of hidden states [B, T, H] from ``target`` at the supervised positions of each answer, then
    over answers (a scalar): a batch in pieces has the same."""
    squares = (states - target).square().mean(-1)
    return ((squares * batch.mask).sum(1) / batch.counts).mean()


@register
@dataclass(frozen=True)
class RMU(Method):
    """L = E_f ‖h_θ − c u‖² + α E_r ‖h_θ − h_θ₀‖², h the states of one layer, u a fixed random direction"""

    layer: float = 0.5  # depth of the layer, as a share
    steering: float = 6.0  # c, the length of the direction
    alpha: float = 1.0  # weight of the retain term

    name, label, colour, marker = "rmu", "RMU", "#56B4E9", "<"
    streams = ("forget", "retain")
    needs = Needs(hidden=("layer",), reference=("retain",))
    rise = math.inf  # squared distances grow with the size of the states
    trains = r"layers\.\d+\.mlp\.down_proj$"
    recipes = {"miniature": Recipe(lr=5e-3, steps=60, source="unknown, chosen because it is an example")}

    def loss(self, step):
        states = step.forget.hidden["layer"]
        direction = torch.randn(states.shape[-1], generator=torch.Generator().manual_seed(0))
        yield "forget", distance(step.forget, states, self.steering * normalize(direction, dim=0).to(states))
        before = step.reference.retain.hidden["layer"]
        yield "retain", self.alpha * distance(step.retain, step.retain.hidden["layer"], before)
