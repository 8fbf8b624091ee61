"""Adapters on a frozen model, made here or elsewhere: safetensors only, every key accounted for."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import set_peft_model_state_dict
from torch import Tensor, nn

from mllmu_nb.errors import KitError, choose
from mllmu_nb.models import families
from mllmu_nb.models.files import check_adapter, few, fill, read_weights, save_weights
from mllmu_nb.unlearning.base import Recipe

INITS = {"kaiming": True, "gaussian": "gaussian"}  # of an adapter's A, as peft names them
WEIGHTS = "adapter_model.safetensors"


def attach(model: nn.Module, recipe: Recipe, seed: int, where: str = "") -> PeftModel:
    """Freeze ``model`` and put a fresh adapter (B is zero) on the modules that ``where``, a pattern on full paths, or
    else ``recipe.adapter_reach`` names. Raises KitError when anything else would train."""
    choose("init", recipe.lora_init, INITS)
    reach, own = where or recipe.adapter_reach, families.of(model)
    torch.manual_seed(seed)
    settings = LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=own.adapter_pattern(model, reach),
        init_lora_weights=INITS[recipe.lora_init],
    )
    return _attached(model, settings, own.adapter_targets(model, reach))


def _attached(model: nn.Module, settings: LoraConfig, targets: list[str]) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is to go
        adapted = get_peft_model(model, settings)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    carrying = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in trained}
    if carrying != set(targets):
        raise KitError(f"the adapter is not where it belongs: see {few(sorted(carrying ^ set(targets)))}")
    return adapted.eval()  # peft leaves the new dropout layers switched on


def merge(model: PeftModel) -> nn.Module:
    """The plain model with the adapter's change added to its weights, in evaluation mode. The sum is made in float32,
    whatever the weights are held in: a change is often smaller than their last bit."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            held = base.weight.dtype
            base.float()
            layer.merge()
            base.to(held)
    return model.unload().eval()


def _weights(model: PeftModel) -> dict[str, Tensor]:
    """Under the names of peft's own files."""
    return {name.replace(".default", ""): p for name, p in model.named_parameters() if ".lora_" in name}


def save(model: PeftModel, folder: Path) -> None:
    """Write the adapter in peft's layout, without the base's path."""
    folder.mkdir(parents=True, exist_ok=True)
    replace(model.peft_config["default"], base_model_name_or_path=None).save_pretrained(folder)
    save_weights(_weights(model), folder / WEIGHTS)


def load(model: nn.Module, folder: Path) -> PeftModel:
    """Put an adapter that the kit has saved on a plain model. KitError on a damaged file or one that does not fit."""
    try:
        settings = LoraConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise KitError(f"there is no adapter in {folder}: {str(error).splitlines()[0]}") from error
    stored = read_weights(folder / WEIGHTS)
    carrying = sorted({name.removeprefix("base_model.model.").split(".lora_")[0] for name in stored})
    adapted = _attached(model, replace(settings, inference_mode=False), carrying)
    fill(_weights(adapted), stored, folder / WEIGHTS)
    return adapted


def load_foreign(model: nn.Module, folder: Path) -> PeftModel:
    """Put a LoRA adapter that others have trained on a plain model, whatever modules it sits on; peft translates older
    names. Raises KitError for numbers that are not finite and for any missing, unexpected or misshapen key."""
    check_adapter(folder)
    stored = read_weights(folder / WEIGHTS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = get_peft_model(model, LoraConfig.from_pretrained(folder))
            result = set_peft_model_state_dict(adapted, stored)
    except (ValueError, RuntimeError, TypeError, KeyError, re.error) as error:
        reason = " ".join(str(error).split())[:300]
        raise KitError(f"the adapter in {folder} does not fit the model: {reason}") from error
    missing = [name for name in result.missing_keys if ".default" in name]
    problems = {"lacks": missing, "has unexpected": result.unexpected_keys}
    listed = "; ".join(f"{problem} {few(sorted(names))}" for problem, names in problems.items() if names)
    if listed:
        raise KitError(f"the adapter in {folder} does not fit the model: it {listed}")
    return adapted.eval()
