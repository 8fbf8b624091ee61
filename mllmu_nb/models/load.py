"""Base models in, fine-tuned weights in and out."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

from mllmu_nb.errors import KitError
from mllmu_nb.models import families
from mllmu_nb.models.files import check_shipped, few, fill, read_weights, save_weights

logging.disable_progress_bar()  # a bar for each of a handful of files stays in a notebook's output

WEIGHTS = "model.safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Keys that files made elsewhere may hold beside the model's own, and why nothing is lost without them. (Transformers
# passes over rotary_emb.inv_freq and position_ids by itself: they follow from the configuration.)
HARMLESS = {
    r"\.masked_bias$|\.attn\.bias$": "is the causal mask, which is computed",
    r"(^|\.)image_newline$": "parts the rows of pictures cut into tiles, and none are here",
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them


def load_base(
    source: str, base_model: str, scale: str, revision: str = "", precision: str | None = None
) -> tuple[nn.Module, Any]:
    """:func:`load_model` of a base model; a miniature is checked against the hash in its recipe first."""
    if scale == "miniature":
        check_shipped(Path(source))
    return load_model(source, base_model, scale, revision, precision)


def load_model(
    source: str,
    base_model: str,
    scale: str,
    revision: str = "",
    precision: str | None = None,
    processor_of: tuple[str, str] | None = None,
) -> tuple[nn.Module, Any]:
    """A model, in evaluation mode, and its processor from a folder of ``save_pretrained`` or the hub, there at
    ``revision`` ("": the newest). The processor is that ``of`` another source and revision where the model has none.

    Weights take ``precision`` (fp32, bf16, fp16; None: bf16) where a larger model is on a GPU, else float32. Raises
    KitError for weights that are no safetensors, or do not fit the architecture; keys that are :data:`HARMLESS` are
    reported as a warning."""
    miniature = scale == "miniature"
    if miniature:
        torch.set_num_threads(1)  # sums in one order, so the same numbers wherever it runs; a second model runs beside
        _keep_memory()
    # Under `accelerate launch` every process has a GPU of its own.
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else "cpu"
    origin = {"revision": revision or "main", "local_files_only": miniature}
    try:
        read_from, at = processor_of or (source, revision)
        processor = families.get(base_model).load_processor(read_from, **{**origin, "revision": at or "main"})
        model, keys = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=torch.float32 if miniature or device == "cpu" else DTYPES[precision or "bf16"],
            attn_implementation="eager" if miniature else "sdpa",  # faster at the smallest size
            use_safetensors=True,
            **origin,
            output_loading_info=True,
        )
    except (
        OSError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        reason = shorten(str(error), 300, placeholder=" ..") or type(error).__name__
        raise KitError(f"the model {source} cannot be loaded: {reason}") from error
    if model.config.model_type != base_model:
        raise KitError(f"the model {source} is of the family {model.config.model_type}, not {base_model}")
    for kind, names in keys.items():
        if kind == "unexpected_keys":
            names = _without_harmless(source, names)
        if names:
            what = f"{kind.replace('_', ' ')} {few(sorted(map(str, names)))}"
            raise KitError(f"the model {source} does not fit its architecture: {what}")
    if broken := [name for name, weight in model.named_parameters() if not weight.isfinite().all()]:
        raise KitError(f"the model {source} holds numbers that are not finite: see {few(broken)}")
    families.of(model).prepare(processor)
    return model.to(device).eval(), processor


def _without_harmless(source: str, names: Iterable[str]) -> list[str]:
    """Unexpected keys but those that are :data:`HARMLESS`, of which a warning tells."""
    harmless = {n: why for n in names for pattern, why in HARMLESS.items() if re.search(pattern, n)}
    for why in sorted(set(harmless.values())):
        left = few([name for name, reason in harmless.items() if reason == why])
        warnings.warn(f"the model {source} also holds {left}, which is not read: it {why}", stacklevel=3)
    return [name for name in names if name not in harmless]


def _keep_memory() -> None:
    """Has glibc keep the memory of large tensors: giving it back and fetching it anew at every step takes time."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def unfreeze(model: nn.Module) -> nn.Module:
    """Every weight of ``model`` trains but those of the vision tower, as in LLaVA's own fine-tuning."""
    vision = re.compile(families.of(model).vision)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not vision.match(name))
    return model


def count_trainable(model: nn.Module) -> int:
    """Number of parameters that require a gradient."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def save_full(model: nn.Module, folder: Path) -> None:
    """Write all weights to model.safetensors; tied ones once."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(dict(model.named_parameters()), folder / WEIGHTS)


def load_full(model: nn.Module, folder: Path) -> nn.Module:
    """Fill ``model`` with weights written by :func:`save_full`. KitError where they do not fit."""
    fill(dict(model.named_parameters()), read_weights(folder / WEIGHTS), folder / WEIGHTS)
    return model
