"""Base models in, adapters and fine-tuned weights in and out: safetensors only, every key accounted for."""

from __future__ import annotations

import ctypes
import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from mllmu_nb.errors import KitError
from mllmu_nb.models.files import ASSETS, HUB, check_any_adapter, few, verify_shipped

logging.disable_progress_bar()  # a bar for each of a handful of files says nothing and stays in a notebook's output

# The language model is `language_model` in LLaVA and `text_model` in Idefics2. Full paths, since the vision tower's
# attention has projections of the same names.
LANGUAGE_LINEARS = r"model\.(language_model|text_model)\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
# What upstream's rule means to spare. It gathers bare names outside of these, and then takes every module so named.
SPARED = ("multi_modal_projector", "vision_model", "lm_head")
REACHES = ("language", "upstream")
INITS = {"kaiming": True, "gaussian": "gaussian"}  # of an adapter's A, as peft names them


def load_base(config) -> tuple[nn.Module, object]:
    """The base model of a run and its processor, as (model, processor), the model in evaluation mode.

    ``config`` has ``scale``, ``base_model`` and ``base_path``. The miniature is read from ``base_path`` or the folder
    the package ships, checked against the hash in its recipe; any other scale from ``base_path`` or the hub. float32,
    but bfloat16 for larger models on a GPU.
    Raises KitError when a file is missing, altered or does not fit the architecture.
    """
    if config.base_model not in HUB:
        raise KitError(f"unknown base model {config.base_model!r}: choose one of {', '.join(HUB)}")
    miniature = config.scale == "miniature"
    if miniature:
        source = Path(config.base_path or ASSETS / f"{config.base_model}-miniature")
        verify_shipped(source)
        torch.set_num_threads(1)  # sums in one order, so the same numbers wherever it runs; a second model runs beside
        _keep_memory()
    else:
        source = config.base_path or HUB[config.base_model]
    return load_whole(source, config.base_model, miniature)


def load_whole(source: str | Path, base_model: str, miniature: bool) -> tuple[nn.Module, object]:
    """A model and its processor as ``save_pretrained`` has written them into a folder, or as they lie on the hub.

    What :func:`load_base` says of precision holds here. Raises KitError for weights that are no safetensors, and for
    any key that is missing or unexpected.
    """
    # Under `accelerate launch` every process has a GPU of its own.
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else "cpu"
    small = miniature or device == "cpu"
    try:
        # PIL, since torchvision's resizing gives other pixels; eager, since it is faster at the smallest size.
        processor = AutoProcessor.from_pretrained(source, backend="pil", local_files_only=miniature)
        model, keys = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=torch.float32 if small else torch.bfloat16,
            attn_implementation="eager" if miniature else "sdpa",
            use_safetensors=True,
            local_files_only=miniature,
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise KitError(f"the model {source} cannot be loaded: {str(error).splitlines()[0]}") from error
    if model.config.model_type != base_model:
        raise KitError(f"the model {source} is of the family {model.config.model_type}, not {base_model}")
    wrong = {kind: sorted(map(str, found)) for kind, found in keys.items() if found}
    for kind, found in wrong.items():
        raise KitError(f"the model {source} does not fit its architecture: {kind.replace('_', ' ')} {few(found)}")
    if base_model == "idefics2":
        processor.image_processor.do_image_splitting = False
    return model.to(device).eval(), processor


def _keep_memory() -> None:
    """Have glibc, where that is the allocator, keep the memory of large tensors: to give it back and fetch it anew at
    every step takes time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def language_targets(model: nn.Module) -> list[str]:
    """Full paths of the language model's attention and MLP projections, which adapters are attached to."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(LANGUAGE_LINEARS, name)
    ]
    if not found:
        raise KitError("no language model was found in this model: its modules have other names than those known here")
    return found


def unfreeze(model: nn.Module) -> nn.Module:
    """Every weight of ``model`` trains but those of the vision tower, as in LLaVA's own fine-tuning."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not re.match(r"model\.vision_(tower|model)\.", name))
    return model


def upstream_targets(model: nn.Module) -> list[str]:
    """Full paths of the linear layers that the released code's rule reaches, in this version of transformers.

    The rule: every linear layer whose bare name is also borne by one outside of :data:`SPARED`. So it reaches into the
    vision tower by way of shared names, and all through it where the tower's path does not say ``vision_model``.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    names = {name.rsplit(".", 1)[-1] for name in linears if not any(part in name for part in SPARED)}
    return [name for name in linears if name.rsplit(".", 1)[-1] in names]


def reached(model: nn.Module, reach: str) -> dict[str, int]:
    """What adapters of that ``reach`` sit on: path, a star for the layer's number → how many modules."""
    return dict(Counter(re.sub(r"\.\d+\.", ".*.", name) for name in _targets(model, reach)))


def attach_lora(
    model: nn.Module,
    r: int = 16,
    alpha: int = 16,
    dropout: float = 0.05,
    seed: int = 0,
    *,
    reach: str = "language",
    init: str = "kaiming",
) -> PeftModel:
    """Freeze ``model`` and put a fresh adapter on it: A uniform (Kaiming) or gaussian, B zero, so nothing changes yet.

    ``reach``: ``language`` (:func:`language_targets`) or ``upstream`` (:func:`upstream_targets`). Raises KitError when
    anything but the adapters of its modules would train.
    """
    if init not in INITS:
        raise KitError(f"unknown init {init!r}: choose one of {', '.join(INITS)}")
    if reach == "language":
        where = LANGUAGE_LINEARS
    else:
        where = rf".*\.({'|'.join(sorted({name.rsplit('.', 1)[-1] for name in _targets(model, reach)}))})"
    torch.manual_seed(seed)
    settings = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=where, init_lora_weights=INITS[init]
    )
    return _attach(model, settings, reach)


def _targets(model: nn.Module, reach: str) -> list[str]:
    if reach not in REACHES:
        raise KitError(f"unknown adapter_reach {reach!r}: choose one of {', '.join(REACHES)}")
    return language_targets(model) if reach == "language" else upstream_targets(model)


def _attach(model: nn.Module, settings: LoraConfig, reach: str) -> PeftModel:
    expected = set(_targets(model, reach))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is to go
        adapted = get_peft_model(model, settings)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    found = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in trained}
    if found != expected:
        where = {"language": "on the language model alone", "upstream": "where upstream's rule puts it"}[reach]
        raise KitError(f"the adapter is not {where}: see {few(sorted(found ^ expected))}")
    return adapted.eval()  # peft leaves the new dropout layers switched on


def merge(model: PeftModel) -> nn.Module:
    """The plain model with the adapter's change added to its weights."""
    return model.merge_and_unload()


def count_trainable(model: nn.Module) -> int:
    """Number of parameters that require a gradient."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _adapter_weights(model: PeftModel) -> dict[str, Tensor]:
    """Under the names of peft's own files."""
    return {name.replace(".default", ""): p for name, p in model.named_parameters() if ".lora_" in name}


def save_adapter(model: PeftModel, folder: str | Path) -> None:
    """Write the adapter in peft's layout (adapter_model.safetensors, adapter_config.json), without the base's path."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    replace(model.peft_config["default"], base_model_name_or_path=None).save_pretrained(folder)
    _save(_adapter_weights(model), Path(folder) / "adapter_model.safetensors")


def load_adapter(model: nn.Module, folder: str | Path, reach: str = "language") -> PeftModel:
    """Put a saved adapter of that ``reach`` (as for :func:`attach_lora`) on a plain model.

    KitError on a damaged file, on another reach, or on any missing, unexpected or misshapen key.
    """
    try:
        settings = LoraConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise KitError(f"there is no adapter in {folder}: {str(error).splitlines()[0]}") from error
    stored = _read(Path(folder) / "adapter_model.safetensors")
    adapted = _attach(model, replace(settings, inference_mode=False), reach)
    _fill(_adapter_weights(adapted), stored, Path(folder) / "adapter_model.safetensors")
    return adapted


def load_any_adapter(model: nn.Module, folder: str | Path) -> PeftModel:
    """Put a LoRA adapter that others have trained on a plain model, whatever modules it sits on.

    Names that an older transformers gave to the modules are translated by peft. Raises KitError as
    :func:`check_any_adapter` does, for modules that the model does not have, and for any missing, unexpected or
    misshapen key.
    """
    folder = Path(folder)
    check_any_adapter(folder)
    stored = _read(folder / "adapter_model.safetensors")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = get_peft_model(model, LoraConfig.from_pretrained(folder))
            found = set_peft_model_state_dict(adapted, stored)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise KitError(f"the adapter in {folder} does not fit the model: {reason}") from error
    lacking = [name for name in found.missing_keys if ".default" in name]
    problems = {"lacks": lacking, "has unexpected": found.unexpected_keys}
    told = "; ".join(f"{problem} {few(sorted(names))}" for problem, names in problems.items() if names)
    if told:
        raise KitError(f"the adapter in {folder} does not fit the model: it {told}")
    return adapted.eval()


def save_full(model: nn.Module, folder: str | Path) -> None:
    """Write all weights to model.safetensors; tied ones once."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    _save(dict(model.named_parameters()), Path(folder) / "model.safetensors")


def load_full(model: nn.Module, folder: str | Path) -> nn.Module:
    """Fill ``model`` with weights written by :func:`save_full`; KitError as in :func:`load_adapter`."""
    file = Path(folder) / "model.safetensors"
    _fill(dict(model.named_parameters()), _read(file), file)
    return model


def _save(weights: Mapping[str, Tensor], file: Path) -> None:
    save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, file)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise KitError(f"{file} is missing or damaged: {str(error).splitlines()[0]}") from error


def _fill(weights: Mapping[str, Tensor], stored: Mapping[str, Tensor], file: Path) -> None:
    shared = weights.keys() & stored.keys()
    problems = {
        "lacks": sorted(weights.keys() - stored.keys()),
        "has unexpected": sorted(stored.keys() - weights.keys()),
        "has other shapes for": sorted(name for name in shared if weights[name].shape != stored[name].shape),
    }
    found = "; ".join(f"{problem} {few(names)}" for problem, names in problems.items() if names)
    if found:
        raise KitError(f"{file} does not fit the model: it {found}")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(stored[name])
