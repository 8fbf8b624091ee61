"""One training in several processes, under ``accelerate launch``: the weight of each, and a model split into shares."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from mllmu_nb.errors import KitError
from mllmu_nb.models.files import gathered, is_share
from mllmu_nb.unlearning.base import IGNORE, Recipe


def processes() -> PartialState:
    """The processes that train together; one unless they were launched."""
    return PartialState(cpu=not torch.cuda.is_available())


def weights(pieces: Sequence[Mapping], device: torch.device) -> tuple[list[float], dict[str, float]]:
    """The weight of each of this process's pieces, such that the mean over the processes is that over the batch: its
    share of the rows, times the number of processes; and the supervised tokens per row of the batch in each stream. The
    latter are left out for a batch in one piece, which has its own."""
    count = processes().num_processes
    if len(pieces) == count == 1:
        return [1.0], {}
    rows = [0 if "duplicate" in first else len(first["labels"]) for first in (next(iter(p.values())) for p in pieces)]
    tokens = [
        sum(int((piece[name]["labels"][:, 1:] != IGNORE).sum()) for piece in pieces if "duplicate" not in piece[name])
        for name in pieces[0]
    ]
    counts = torch.tensor([sum(rows), *tokens], dtype=torch.float32, device=device)
    everywhere, *by_stream = (reduce(counts, "sum") if count > 1 else counts).tolist()
    per_row = {name: number / everywhere for name, number in zip(pieces[0], by_stream, strict=True)}
    return [count * number / everywhere for number in rows], per_row


def average_over_processes(terms: Tensor, trained: Iterable[Tensor]) -> Tensor:
    """The terms as means over the processes; so are the gradients afterwards, as those of shards are already."""
    for parameter in trained:
        if not is_share(parameter):
            # an adapter on the vision tower has no gradient where no picture was shown
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = reduce(gradient, "mean")
    return reduce(terms, "mean")


def shard(model, recipe: Recipe) -> None:
    """Each process holds a share of every layer of the language model (FSDP2), gathered while the layer computes. It is
    given up after the forward pass even though a layer, whose model's own ``forward`` is not called, takes itself for a
    root: else an adapter that is switched off and on would stay frozen. Raises KitError for Muon."""
    from torch.distributed.fsdp import fully_shard

    if recipe.optimizer == "muon":
        raise KitError("Muon needs whole matrices: set optimizer to adamw, or launch without FSDP")
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in core.get_decoder().layers:
        fully_shard(layer, reshard_after_forward=True)


def clip_(parameters: Iterable[Tensor], most: float) -> float:
    """The norm of the gradients before they are clipped to ``most``: torch's ``clip_grad_norm_``, which does not take
    shares and whole gradients together."""
    parameters = list(parameters)
    if not any(map(is_share, parameters)):
        return torch.nn.utils.clip_grad_norm_(parameters, most).item()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.stack([gathered(gradient.norm()) for gradient in gradients]).norm().item()
    for gradient in gradients:
        gradient.mul_(min(1.0, most / (norm + 1e-6)))
    return norm
