"""Attention of rows with the same beginning. The beginning's part is computed for all rows at once, and its keys and
values exist once, not per row.

A row attends to the beginning and, separately, to its own tokens. Each result is a mean under its own softmax. Weighted
by their sums of exponentials, the two give the mean under one softmax over both. This does not hold if a sliding window
is shorter than a prompt with its padding (the window counts both), or if a layer adds anything to its scores.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "shared_beginning"
QUERIES_AT_ONCE = 512  # of each row and head, which limits the scores in memory
_reading: ContextVar[tuple[Cache | None, torch.nn.Module | None, int]] = ContextVar("reading", default=(None, None, 0))


@contextmanager
def sharing(model: torch.nn.Module) -> Iterator[None]:
    """Inside this context, :func:`reading` has an effect on ``model``, in any number of threads at once."""
    layer, text = _last_layer(model), model.config.get_text_config()
    before = text._attn_implementation
    with ExitStack() as undone:
        if layer:
            for module in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp):
                undone.enter_context(module.register_forward_pre_hook(_only_last_token))
            undone.enter_context(layer.self_attn.q_proj.register_forward_hook(_for_each_token))
        undone.callback(model.set_attn_implementation, {"text_config": before})
        model.set_attn_implementation({"text_config": NAME})
        yield


@contextmanager
def reading(model: torch.nn.Module, beginning: Cache | None, only_last: int) -> Iterator[None]:
    """Inside this context, rows read by ``model`` in this thread continue after ``beginning``, a single row. With
    ``only_last``, the number of tokens of each row, the last layer computes keys and values of all tokens, but the
    state of the last token only, because nothing reads the others. Its output projection and its MLP then give one
    state per row, which the layer adds to each token."""
    layer = _last_layer(model)
    token = _reading.set((beginning, layer.self_attn if layer and only_last else None, only_last))
    try:
        yield
    finally:
        _reading.reset(token)


def _last_layer(model: torch.nn.Module) -> torch.nn.Module | None:
    """Return the last layer of the language model; None if its modules are not those of Llama."""
    layer = getattr(model.get_decoder(), "layers", [None])[-1]
    attention = getattr(layer, "self_attn", None)
    return layer if hasattr(layer, "mlp") and hasattr(attention, "q_proj") and hasattr(attention, "o_proj") else None


def _only_last_token(module: torch.nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Give a module of the last layer the last token of each row, if :func:`reading` has ``only_last``."""
    return (given[0][:, -1:],) if _reading.get()[1] else None


def _for_each_token(module: torch.nn.Module, given: tuple[Tensor, ...], query: Tensor) -> Tensor | None:
    """Repeat the query of the last token, because the layer expects one for each token."""
    _, last, tokens = _reading.get()
    return query.expand(-1, tokens, -1) if last else None


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **kwargs,
) -> tuple[Tensor, None]:
    """Return the attention [rows, T, heads, width] of ``query`` [rows, heads, T, width] to the rows' own keys and
    values [rows, key heads, slots, width], masked by ``attention_mask`` [rows, 1, T, slots], and to the whole shared
    beginning. If :func:`reading` has ``only_last``, the last layer repeats the last token's result for all T."""
    length, (beginning, last, _) = query.shape[2], _reading.get()
    if last is module:
        query, attention_mask = query[:, :, -1:], attention_mask[:, :, -1:]
    if beginning is not None:
        lent = beginning.layers[module.layer_idx]
        result = _to_both(query, key, value, attention_mask, scaling, lent.keys, lent.values)
    else:
        result, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return result.expand(-1, length, -1, -1), None


def _to_both(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, keys: Tensor, values: Tensor):
    """Return the attention [rows, T, heads, width] to the rows' own ``key`` and ``value``, and to the single row of
    ``keys`` and ``values``."""
    rows, heads, length, width = query.shape
    shared = keys.shape[1]
    # heads that share keys and values are folded into the queries, as rows are
    folded = query.reshape(rows, shared, -1, width).transpose(0, 1).reshape(1, shared, -1, width)
    far, far_sum = _attention(folded, keys, values, None, scale)
    own = (repeat_kv(held, heads // shared) for held in (key, value))
    near, near_sum = _attention(query, *own, mask, scale)
    far = far.reshape(shared, rows, -1, width).transpose(0, 1).reshape(query.shape)
    far_sum = far_sum.reshape(shared, rows, -1).transpose(0, 1).reshape(rows, heads, length)
    both = near.lerp(far, (far_sum - near_sum).sigmoid().unsqueeze(-1).to(near.dtype))
    return both.transpose(1, 2).to(query.dtype)


def _attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Return the attention [rows, heads, T, width], and the log of each sum of exponentials [rows, heads, T]: on a CPU
    by the kernel of ``scaled_dot_product_attention``, elsewhere by :func:`_plain`."""
    if query.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(query, keys, values, attn_mask=mask, scale=scale)
    return _plain(query, keys, values, mask, scale)


def _plain(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Compute the same by two matrix products in float32, for a part of the queries at a time, so that few scores are
    in memory. Never run on a GPU; a test compares it with the CPU's kernel."""
    keys, values, results, sums = keys.float().mT, values.float(), [], []
    for start in range(0, query.shape[2], QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        scores = query[:, :, part].float() @ keys * scale
        if mask is not None:
            scores = scores + mask[:, :, part]
        results.append(scores.softmax(-1) @ values)
        sums.append(scores.logsumexp(-1))
    return torch.cat(results, 2), torch.cat(sums, 2)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, eager_mask)  # the kernel adds a mask of numbers
