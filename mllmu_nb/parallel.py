"""Training in several processes, under ``accelerate launch``: weights of the pieces, and a model split into shares."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from mllmu_nb.errors import KitError
from mllmu_nb.models.files import gathered, is_share
from mllmu_nb.unlearning.base import IGNORE, Recipe


def processes() -> PartialState:
    """The processes that train together: one unless ``accelerate launch`` started several."""
    return PartialState(cpu=not torch.cuda.is_available())


def weights(pieces: Sequence[Mapping], device: torch.device) -> tuple[list[float], dict[str, float]]:
    """Return the weight of each of this process's pieces, and for each stream the supervised tokens per row of the
    batch. A weight is the piece's share of the batch's rows, times the number of processes, so the mean over the
    processes is the mean over the batch. A batch in one piece gets no tokens per row, since it can count its own."""
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
    """The terms, averaged over the processes. Averages gradients, too; those of shards are averaged already."""
    for parameter in trained:
        if not is_share(parameter):
            # an adapter on the vision tower has no gradient if no picture was shown
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = reduce(gradient, "mean")
    return reduce(terms, "mean")


def shard(model, recipe: Recipe) -> None:
    """Split each layer of the language model into shares, one per process (FSDP2), gathered while it computes and
    freed after the forward pass. By default a layer would stay gathered, since it takes itself for a root (the model's
    own ``forward`` is not called), and an adapter that is switched off and on would stay frozen. Raises KitError for
    Muon."""
    from torch.distributed.fsdp import fully_shard

    if recipe.optimizer == "muon":
        raise KitError("Muon needs whole matrices: set optimizer to adamw, or launch without FSDP")
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in core.get_decoder().layers:
        fully_shard(layer, reshard_after_forward=True)


def clip_(parameters: Iterable[Tensor], most: float) -> float:
    """Clip the gradients to the norm ``most`` and return their norm before. torch's ``clip_grad_norm_`` does not
    accept shares and whole gradients together."""
    parameters = list(parameters)
    if not any(map(is_share, parameters)):
        return torch.nn.utils.clip_grad_norm_(parameters, most).item()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.stack([gathered(gradient.norm()) for gradient in gradients]).norm().item()
    for gradient in gradients:
        gradient.mul_(min(1.0, most / (norm + 1e-6)))
    return norm
