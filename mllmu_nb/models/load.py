"""Load base models; save and load fine-tuned weights."""

import copy
import ctypes
import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from textwrap import shorten
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.utils import find_adapter_config_file, logging

from mllmu_nb.errors import KitError, few
from mllmu_nb.models import families
from mllmu_nb.models.files import (
    check_depth,
    check_finite,
    check_index,
    check_safetensors,
    check_shipped,
    folder_of,
    read_weights,
    save_weights,
)
from mllmu_nb.stages import state

logging.disable_progress_bar()  # otherwise a bar for each file stays in a notebook's output

WEIGHTS = "model.safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Extra keys that files from elsewhere may hold: the causal mask, which is computed, and the separator between the rows
# of a picture that is cut into tiles; the kit cuts no picture like this.
HARMLESS = re.compile(r"\.masked_bias$|\.attn\.bias$|(^|\.)image_newline$")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # numbers from malloc.h


def load_base(
    source: str, base_model: str, scale: str, revision: str = "", precision: str | None = None
) -> tuple[nn.Module, Any]:
    """Load a base model with :func:`load_model`. A miniature is checked against the hash in its recipe, and stays in
    memory, also for processes that are forked from this one; each call returns a copy."""
    if scale != "miniature" or precision == "nf4":
        return load_model(source, base_model, scale, revision, precision)
    check_shipped(Path(source))
    files = tuple(state(file) for file in sorted(Path(source).iterdir()) if file.is_file())
    loaded = copy.deepcopy(_in_memory(source, base_model, files))
    _use_one_core()
    return loaded


@lru_cache(maxsize=2)
def _in_memory(source: str, base_model: str, files: tuple) -> tuple[nn.Module, Any]:
    return load_model(source, base_model, "miniature")


def load_model(
    source: str,
    base_model: str,
    scale: str,
    revision: str = "",
    precision: str | None = None,
    processor_of: tuple[str, str] | None = None,
) -> tuple[nn.Module, Any]:
    """Load a model, in evaluation mode, and its processor from a folder of ``save_pretrained``, or from the hub at
    ``revision`` ("": the newest). ``processor_of``: another source and revision for the processor.

    Weights have ``precision`` (fp32, bf16, fp16; None: bf16) if a larger model is on a GPU, otherwise float32. ``nf4``
    holds the language model's layers in 4 bits (bitsandbytes; never run, because we had no GPU). Raises KitError for
    weights that are not floats in safetensors or do not fit the architecture, and for 4 bits on a CPU."""
    miniature, family = scale == "miniature", families.get(base_model)
    if miniature:
        _use_one_core()
    # Under `accelerate launch`, every process has its own GPU.
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else "cpu"
    more: dict[str, Any] = {}
    if precision == "nf4":
        if device == "cpu":
            raise KitError("quantise_base='nf4' needs a GPU and the package bitsandbytes: leave it out on a CPU")
        # transformers looks for a name at the start of a full one, such as model.visual.blocks.0.attn.qkv
        whole = [rf"(.*\.)?{name}" for name in family.whole]
        bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
        more = {
            "quantization_config": BitsAndBytesConfig(**bits, llm_int8_skip_modules=whole),
            "device_map": {"": device},
        }
        precision = "bf16"  # of all other weights
    read_from, at = processor_of or (source, revision)
    if Path(read_from).is_dir() and not any(Path(read_from).glob("tokenizer.*")):
        raise KitError(
            f"the model {read_from} has no tokenizer: put its tokenizer.json and tokenizer_config.json there"
        )
    try:
        if find_adapter_config_file(source, revision=revision or "main", local_files_only=miniature):
            # transformers would load it, onto this model or another one that it names, without any check
            raise KitError("an adapter lies beside it: keep each in a folder of its own")
        if (folder := folder_of(source, revision)).name:  # otherwise a model that is not in the cache yet
            check_index(folder, "model")
            check_depth(folder)
        processor = family.load_processor(read_from, revision=at or "main", local_files_only=miniature)
        model, keys = AutoModelForImageTextToText.from_pretrained(
            source,
            revision=revision or "main",
            local_files_only=miniature,
            dtype=torch.float32 if miniature or device == "cpu" else DTYPES[precision or "bf16"],
            attn_implementation="eager" if miniature else "sdpa",  # faster at the smallest size
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below
            **more,
        )
    except Exception as error:
        raise _unloadable(source, error) from error
    check_safetensors(folder_of(source, revision), "model")
    if model.config.model_type != base_model:
        raise KitError(f"the model {source} is of the family {model.config.model_type}, not {base_model}")
    if not family.end(processor):
        raise KitError(
            f"the tokenizer of {read_from} has no token that ends an answer: name an eos_token in its config"
        )
    for kind, names in keys.items():  # transformers itself only warns about these
        if wrong := sorted(str(name) for name in names if not (kind == "unexpected_keys" and HARMLESS.search(name))):
            what = f"{kind.replace('_', ' ')} {few(wrong)}"
            raise KitError(f"the model {source} does not fit its architecture: {what}")
    check_finite(dict(model.named_parameters()), f"the model {source}")
    return (model if more else model.to(device)).eval(), processor  # 4-bit layers are there already


def load_outline(source: str, base_model: str, scale: str, revision: str = "") -> tuple[SimpleNamespace, Any]:
    """The configuration of a model, as ``config`` of a stand-in for it, and its processor: enough to encode prompts."""
    origin: dict[str, Any] = {"revision": revision or "main", "local_files_only": scale == "miniature"}
    try:
        config, processor = (
            AutoConfig.from_pretrained(source, **origin),
            families.get(base_model).load_processor(source, **origin),
        )
    except Exception as error:
        raise _unloadable(source, error) from error
    return SimpleNamespace(config=config), processor


def _unloadable(source: str, error: Exception) -> KitError:
    """The error for a faulty file or name, for which transformers has many: OSError, KeyError, SafetensorError .."""
    reason = shorten(str(error), 300, placeholder=" ..") or type(error).__name__
    return KitError(f"the model {source} cannot be loaded: {reason}")


def _use_one_core() -> None:
    """Make torch add in one order, which gives the same numbers everywhere, and leave the other cores to other models.
    Make glibc keep the memory of large tensors; returning and requesting it again at every step takes time."""
    torch.set_num_threads(1)
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def unfreeze(model: nn.Module) -> nn.Module:
    """Make every weight of ``model`` trainable except those of the vision tower."""
    vision = re.compile(families.of(model).vision)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not vision.match(name))
    return model


def save_full(model: nn.Module, folder: Path) -> None:
    """Write all weights to model.safetensors, tied ones once."""
    save_weights(dict(model.named_parameters()), folder / WEIGHTS)


def load_full(model: nn.Module, folder: Path) -> nn.Module:
    """Fill ``model`` with weights written by :func:`save_full`. Raises KitError if they do not fit."""
    file, own = folder / WEIGHTS, dict(model.named_parameters())
    stored = read_weights(file)
    if wrong := [n for n in own.keys() | stored if n not in own or n not in stored or own[n].shape != stored[n].shape]:
        raise KitError(f"{file} does not fit the model: see {few(sorted(wrong))}")
    model.load_state_dict(stored, strict=False)  # a tied weight is in the file once
    return model
