"""Files of models: check a folder without loading it; read and write weights as safetensors."""

import errno
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mllmu_nb.errors import KitError, few
from mllmu_nb.stages import digest, read_json

ASSETS = Path(__file__).parent.parent / "assets"
MOST_LAYERS = 1000  # no model of a family here has a quarter of it
SHIPPED = ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "recipe.json")


def check_shipped(folder: Path) -> None:
    """Raise KitError unless ``folder`` holds a complete miniature and its weights have the hash in its recipe."""
    ours = folder.parent == ASSETS
    if ours and not folder.is_dir():
        family = folder.name.removesuffix("-miniature")
        raise KitError(f"no miniature of {family} comes with the kit: `make base BASES={family}` builds one")
    own = "let base_path name one that tools/base_model/build.py has written"
    advice = "run `make base` to rebuild it" if ours else own
    if missing := [name for name in SHIPPED if not (folder / name).is_file()]:
        raise KitError(f"the base model in {folder} lacks {', '.join(missing)}: {advice}")
    weights, stated = folder / "model.safetensors", read_json(folder / "recipe.json").get("sha256")
    if digest(weights)["sha256"] != stated:
        raise KitError(f"{weights} does not have the hash in recipe.json: {advice}")


def check_model(folder: Path, base_model: str) -> None:
    """Raise KitError unless ``folder`` holds a model of the family ``base_model`` as safetensors; nothing is loaded."""
    if not folder.is_dir():
        raise KitError(f"{folder} is no folder: name one that save_pretrained has written")
    if (folder / "adapter_config.json").is_file():
        if (folder / "config.json").is_file():  # transformers would load the adapter without being asked
            raise KitError(f"{folder} contains a model and an adapter: keep each in its own folder, and name both")
        raise KitError(f"{folder} contains an adapter: name its model as well")
    if (family := model_type(folder)) != base_model:
        raise KitError(f"the model in {folder} is of the family {family}, not {base_model}: set base_model to it")
    check_safetensors(folder, "model")


def model_type(folder: Path) -> str:
    """Return the model_type in the config.json of ``folder``. Raises KitError if there is none."""
    stated = read_json(folder / "config.json").get("model_type")
    if not isinstance(stated, str):
        raise KitError(f"{folder}/config.json names no model_type: name a folder that save_pretrained has written")
    return stated


def commit(source: str, revision: str) -> str:
    """Return the commit of a hub model that the cache holds for ``revision`` ("": the newest); "" for a folder."""
    return "" if Path(source).is_dir() else folder_of(source, revision).name


def folder_of(source: str, revision: str) -> Path:
    """Return the folder of a model, or that of a hub model in the cache; an empty path if the cache lacks it."""
    from huggingface_hub import try_to_load_from_cache

    if Path(source).is_dir():
        return Path(source)
    cached = try_to_load_from_cache(source, "config.json", revision=revision or None)
    return Path(cached).parent if isinstance(cached, str) else Path()


def check_adapter(folder: Path) -> None:
    """Raise KitError unless ``folder`` holds a LoRA adapter in peft's layout, its weights as safetensors."""
    kind = read_json(folder / "adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise KitError(f"the adapter in {folder} is of the type {kind}: only LORA adapters are supported")
    check_safetensors(folder, "adapter_model")


def check_safetensors(folder: Path, stem: str) -> None:
    """Raise KitError unless the weights are floats in safetensors. Reading another format can run code in the file.
    Integers would be read as the weights themselves, without the scales of their quantisation."""
    files = sorted({*folder.glob(f"{stem}*.safetensors"), *check_index(folder, stem)})
    if not files:
        other = sorted(path.name for kind in ("*.bin", "*.pt") for path in folder.glob(kind))
        instead = f" but {few(other)}" if other else ""
        raise KitError(f"{folder} holds no {stem}.safetensors{instead}: only safetensors are loaded")
    for file in files:
        with suppress(SafetensorError), safe_open(file, "pt") as weights:  # loading reports a damaged file
            names = [name for name in weights.keys() if not name.endswith("position_ids")]  # noqa: SIM118
            if whole_numbers := [name for name in names if weights.get_slice(name).get_dtype().startswith(("I", "U"))]:
                raise KitError(f"{file} has integers as weights: see {few(whole_numbers)}; save it dequantised")


def check_index(folder: Path, stem: str) -> set[Path]:
    """Return the files that the index of ``folder`` names for weights; none without an index. Raises KitError unless
    they are safetensors in ``folder`` itself: transformers would follow a name such as "../x.safetensors"."""
    settings, index = folder / "config.json", folder / f"{stem}.safetensors.index.json"
    if settings.is_file() and (other := read_json(settings).get("transformers_weights")):
        raise KitError(f"{settings} names other weights ({other!r}): remove transformers_weights from it")
    if not index.is_file():
        return set()
    if not isinstance(weight_map := read_json(index).get("weight_map"), dict):
        raise KitError(f"{index} has no weight_map of names and files: save the model again")
    there = {path.name for path in folder.glob("*.safetensors")}
    if wrong := [repr(name) for name in weight_map.values() if not isinstance(name, str) or name not in there]:
        names = few(list(dict.fromkeys(wrong)))
        raise KitError(f"{index} names {names}: each must be a safetensors file in this folder")
    return {folder / name for name in weight_map.values()}


def check_depth(folder: Path) -> None:
    """Raise KitError if config.json names more layers than any model has: each is built before weights are read."""
    settings = read_json(folder / "config.json")
    parts = [settings, *(part for part in settings.values() if isinstance(part, dict))]
    for name, count in (pair for part in parts for pair in part.items()):
        if ("layers" in name or "depth" in name) and isinstance(count, int) and count > MOST_LAYERS:
            raise KitError(f"{folder}/config.json has {name}: {count}, more than any model has: correct it")


def save_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Write weights to a file; of a sharded model every process must call this. Raises OSError if writing fails."""
    try:
        save_file({name: gathered(weight.detach()).contiguous() for name, weight in weights.items()}, file)
    except SafetensorError as error:  # the library's error for a full disk; its text names the system's error
        raise OSError(errno.ENOSPC, str(error)) from error


def is_share(tensor: Tensor) -> bool:
    """Return whether each process holds a share of the tensor (torch's DTensor)."""
    return hasattr(tensor, "full_tensor")


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole tensor, also if each process holds only a share of it."""
    return tensor.full_tensor() if is_share(tensor) else tensor


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read weights from a file. Raises KitError if it is missing or damaged, or holds a number that is not finite."""
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise KitError(f"{file} is missing or damaged: {str(error).splitlines()[0]}") from error
    check_finite(weights, str(file))
    return weights


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Raise KitError if a weight of ``source`` is not finite."""
    if broken := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise KitError(f"{source} holds numbers that are not finite: see {few(broken)}")
