"""AdamW, Muon (which computes in the precision of its matrices), and the schedules of the learning rate."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from mllmu_nb.errors import KitError, choose
from mllmu_nb.unlearning.base import Recipe

# The names in transformers. "plateau" (warmup, stable, decay) is constant, then falls over the last share DECAY.
SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant_with_warmup",
    "plateau": "warmup_stable_decay",
}
DECAY = 0.3
REST = 0.5  # share of Muon's rate, for the parameters that AdamW trains
NEWTON_STEPS = 3  # torch takes 5; vanilla remembers as much with 3


def orthogonal(matrices: Tensor) -> Tensor:
    """Approximate the nearest orthogonal matrix to each of ``matrices`` [N, rows, columns] by Newton-Schulz steps:
    large singular values become about .7 to 1.2, small ones stay below."""
    a, b, c = 3.4445, -4.775, 2.0315  # of the quintic; torch.optim.Muon has the same
    tall = matrices.shape[1] > matrices.shape[2]
    result = matrices.mT if tall else matrices
    result = result / result.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_STEPS):
        gram = result @ result.mT
        result = torch.baddbmm(result, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result.mT if tall else result


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon (momentum .95, Nesterov, steps as long as AdamW's) without bfloat16, which on many CPUs takes
    longer than the rest of the training. Matrices of the same shape are updated together."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for (rows, columns), parameters in alike.items():
                gradients = torch.stack([p.grad for p in parameters])
                held = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
                for mean, gradient in zip(held, gradients, strict=True):
                    mean.lerp_(gradient, 1 - group["momentum"])
                ahead = gradients.lerp(torch.stack(held), group["momentum"])
                length = group["lr"] * 0.2 * max(rows, columns) ** 0.5
                for parameter, move in zip(parameters, orthogonal(ahead), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(move, alpha=-length)


class AdamWOf445(torch.optim.AdamW):
    """AdamW of transformers 4.45: it adds ``eps`` before the bias correction of the second moment, where torch adds it
    after. In the first hundreds of steps this eps weighs more, so parameters with small gradients move less."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        for group in self.param_groups:
            done = max((int(self.state[p]["step"]) for p in group["params"] if p in self.state), default=0)
            group["eps"] = self.defaults["eps"] / math.sqrt(1 - group["betas"][1] ** (done + 1))
        return super().step(closure)


def make_optimizers(trained: Mapping[str, Tensor], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """``adamw`` trains all parameters, as the paper's code does. ``muon`` trains the matrices inside the layers by Muon
    and the rest by AdamW at half the rate; a small model then learns in about half the steps."""
    if not trained:
        raise KitError("nothing to train: no parameter requires a gradient")
    choose("optimizer", recipe.optimizer, ("adamw", "muon"))
    choose("adam", recipe.adam or "torch", ("torch", "transformers"))
    kind = AdamWOf445 if recipe.adam == "transformers" else torch.optim.AdamW
    adamw = partial(kind, eps=recipe.adam_eps or 1e-8, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return [adamw(trained.values(), lr=recipe.lr)]
    inner = {name: p for name, p in trained.items() if p.ndim == 2 and ".layers." in name}
    rest = [p for name, p in trained.items() if name not in inner]
    muon = Muon(inner.values(), recipe.lr, recipe.weight_decay)
    return [muon, adamw(rest, lr=recipe.lr * REST)] if rest else [muon]


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int):
    """The schedule of the learning rate over the whole training, however many passes it has."""
    choose("schedule", recipe.schedule, SCHEDULES)
    plateau = recipe.schedule == "plateau"
    more = {"num_decay_steps": round(DECAY * steps), "decay_type": "linear"} if plateau else {}
    return get_scheduler(SCHEDULES[recipe.schedule], optimizer, round(recipe.warmup * steps), steps, more)
