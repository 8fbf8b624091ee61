"""The forward pass for the supervised tokens of a batch, used by training and by teacher forcing."""

from collections.abc import Mapping

from torch import Tensor

from mllmu_nb.errors import KitError
from mllmu_nb.unlearning.base import IGNORE, Method, Needs, Scored

NOT_READ = ("labels", "stored_log_probs", "duplicate")  # entries of a batch that the model does not read


def score(model, batch: Mapping[str, Tensor], method: Method | None = None, name: str = "") -> Scored:
    """Return the logits at the supervised positions of a batch [B, T', V], T' the largest number in a row, and what
    else ``method`` needs. ``model`` may have an adapter. The vocabulary projection would fill most of the memory, so it
    runs elsewhere only if ``method`` needs all positions of the batch ``name``. Raises KitError if a row has no
    label."""
    needs = method.needs if method else Needs()
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = {key: value for key, value in batch.items() if key not in NOT_READ}
    output = core.model(**inputs, use_cache=False, output_hidden_states=bool(needs.hidden))
    states, (positions, labels) = output.last_hidden_state, labelled(batch)

    def at_labels(values: Tensor) -> Tensor:
        return values[:, :-1].gather(1, positions.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

    hidden = {}
    for layer in needs.hidden:
        depth, last = getattr(method, layer), len(output.hidden_states) - 1
        share = isinstance(depth, float)
        number = round(depth * last) if share else depth
        if not 0 <= number <= last:
            form = "a share of the depth (0 to 1)" if share else f"a layer (0 to {last})"
            raise KitError(f"{layer} of {method.name} is {depth}: give {form}, as its default is one")
        hidden[layer] = at_labels(output.hidden_states[number])
    everywhere = core.lm_head(states) if name in needs.everywhere else None
    return Scored(core.lm_head(at_labels(states)), labels, hidden, everywhere)


def labelled(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the positions [B, T'] whose next token has a label, in order, and these labels."""
    labels = batch["labels"][:, 1:]
    supervised = labels != IGNORE
    counts = supervised.sum(1)
    if not bool(counts.all()):
        raise KitError("an example has no supervised token: its answer is empty or its label mask is wrong")
    # A stable sort moves the labelled positions of a row to the front and keeps their order.
    positions = supervised.int().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    return positions, labels.gather(1, positions)
