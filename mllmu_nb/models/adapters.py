"""LoRA adapters on a frozen model, made by the kit or elsewhere: safetensors only, and every key is checked."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import set_peft_model_state_dict
from torch import nn

from mllmu_nb.errors import KitError, few
from mllmu_nb.models import families
from mllmu_nb.models.files import check_adapter, read_weights, save_weights
from mllmu_nb.unlearning.base import Recipe

INITS = {"kaiming": True, "gaussian": "gaussian"}  # of an adapter's matrix A: name → peft's name
WEIGHTS = "adapter_model.safetensors"


def attach(model: nn.Module, recipe: Recipe, seed: int, where: str = "") -> PeftModel:
    """Freeze ``model`` and add a fresh adapter (B is zero) to the linear layers that ``where``, a pattern on full
    paths, matches (if it is empty: to those of ``recipe.adapter_reach``). Raises KitError if there are none."""
    targets = families.of(model).adapter_targets(model, where or recipe.adapter_reach)
    torch.manual_seed(seed)
    settings = LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules="|".join(map(re.escape, targets)),  # peft matches a pattern against all modules, not only linear
        init_lora_weights=INITS[recipe.lora_init],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name of transformers
        adapted = get_peft_model(model, settings)
    return adapted.eval()  # peft leaves the new dropout layers switched on


def merge(model: PeftModel) -> nn.Module:
    """Return the plain model with the adapter's change added to its weights, in evaluation mode. The sum is computed in
    float32 whatever the dtype of the weights, because a change is often smaller than their last bit. Raises KitError
    for an adapter that cannot be added to weights."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            held = base.weight.dtype
            base.float()
            try:
                layer.merge()
            except RuntimeError as error:  # not a change of weights, such as aLoRA
                raise KitError(f"the adapter cannot be merged into the model: {error}") from error
            base.to(held)
    return model.unload().eval()


def save(model: PeftModel, folder: Path) -> None:
    """Write the adapter in peft's layout, without the base model's path."""
    replace(model.peft_config["default"], base_model_name_or_path=None).save_pretrained(folder)
    weights = {name.replace(".default", ""): p for name, p in model.named_parameters() if ".lora_" in name}
    save_weights(weights, folder / WEIGHTS)


def load(model: nn.Module, folder: Path) -> PeftModel:
    """Load a saved LoRA adapter, the kit's or another, onto a plain model; peft translates older names. Raises
    KitError for a damaged file, numbers that are not finite, and missing, unexpected or misshapen keys."""
    check_adapter(folder)
    stored = read_weights(folder / WEIGHTS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = get_peft_model(model, LoraConfig.from_pretrained(folder))
            keys = set_peft_model_state_dict(adapted, stored)
    except (ValueError, RuntimeError, TypeError, KeyError, re.error) as error:
        reason = " ".join(str(error).split())[:300]
        raise KitError(f"the adapter in {folder} does not fit the model: {reason}") from error
    missing = [name for name in keys.missing_keys if ".default" in name]
    for problem, names in (("lacks", missing), ("has unexpected", keys.unexpected_keys)):
        if names:
            raise KitError(f"the adapter in {folder} does not fit the model: it {problem} {few(sorted(names))}")
    return adapted.eval()
