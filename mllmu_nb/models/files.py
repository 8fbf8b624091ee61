"""What a model's folder holds, looked at without loading it: nothing here needs torch, so a grid of runs is checked at
once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mllmu_nb.errors import KitError

HUB = {"llava": "llava-hf/llava-1.5-7b-hf", "idefics2": "HuggingFaceM4/idefics2-8b"}
ASSETS = Path(__file__).parent.parent / "assets"
SHIPPED = ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "recipe.json")


def verify_shipped(folder: Path) -> None:
    """Raise KitError unless ``folder`` holds a whole miniature whose weights have the hash its recipe states."""
    missing = [name for name in SHIPPED if not (folder / name).is_file()]
    if missing:
        raise KitError(f"the base model in {folder} lacks {', '.join(missing)}: run `make base` to rebuild it")
    try:
        stated = json.loads((folder / "recipe.json").read_text())["sha256"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise KitError(f"{folder / 'recipe.json'} states no sha256: run `make base` to rebuild it") from error
    if hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() != stated:
        raise KitError(
            f"{folder / 'model.safetensors'} does not have the hash in recipe.json: run `make base` to rebuild it"
        )


def check_whole(folder: str | Path, base_model: str) -> None:
    """Raise KitError unless ``folder`` looks like a whole model of the family ``base_model`` that may be loaded.

    Reads its config.json alone: an adapter, another architecture and pickled weights are named before anything is
    loaded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise KitError(f"there is no folder {folder}: name one that save_pretrained has written")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise KitError(f"{folder} holds an adapter: name the model it goes on as well")
    family = family_of(folder)
    if family != base_model:
        known = f"this is asked as {base_model}" if family in HUB else f"those known are {', '.join(HUB)}"
        raise KitError(f"the model in {folder} is of the family {family}: {known}")
    _check_safe(folder, "model")


def family_of(folder: str | Path) -> str:
    """The model_type that the config.json of ``folder`` states."""
    return str(_json(Path(folder) / "config.json").get("model_type"))


def check_any_adapter(folder: str | Path) -> None:
    """Raise KitError unless ``folder`` holds a LoRA adapter in peft's layout, its weights as safetensors."""
    kind = _json(Path(folder) / "adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise KitError(f"the adapter in {folder} is of the kind {kind}: only LORA can be put on a model here")
    _check_safe(Path(folder), "adapter_model")


def _json(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no JSON"
        raise KitError(f"cannot read {file}: {reason}") from None
    if not isinstance(found, dict):
        raise KitError(f"cannot read {file}: it holds no names and values")
    return found


def _check_safe(folder: Path, stem: str) -> None:
    """Reading any other format of weights can run code that lies in the file."""
    if not any(folder.glob(f"{stem}*.safetensors")):
        other = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt"))
        instead = f" but {few(other)}" if other else ""
        raise KitError(f"{folder} holds no {stem}.safetensors{instead}: only safetensors are loaded")


def few(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
