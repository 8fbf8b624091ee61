"""``mllmu-nb export``: writes a run's people in the published layout, or its model as others load it. ``peft`` puts a
separate adapter on the model that it was trained on: vanilla for an unlearned model, else the base."""

import argparse
import os
import shutil
import tempfile
from itertools import permutations
from pathlib import Path
from typing import Any

import yaml

from mllmu_nb import inputs, paths, pipeline, provenance
from mllmu_nb.commands import sweep
from mllmu_nb.config import GRID, Config
from mllmu_nb.data import official
from mllmu_nb.errors import KitError
from mllmu_nb.models.load import load_base
from mllmu_nb.stages import RECORD, Stage, write_json

EXAMPLES = ("export --data people", "export -p method ga -p modality multimodal --adapter ga_adapter")
GIVEN: dict[str, Any] = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
KINDS = {"data": "the people", "model": "the model, adapters merged,", "adapter": "the adapter alone"}


def arguments(parser: argparse.ArgumentParser) -> None:
    about = "configuration file (default: the miniature's values); its grid is ignored"
    parser.add_argument("config", type=Path, nargs="?", help=about)
    parser.add_argument("-p", "--parameter", help="set a parameter; may be repeated", **GIVEN)
    for kind, what in KINDS.items():
        parser.add_argument(f"--{kind}", type=Path, metavar="FOLDER", help=f"write {what} there")


def main(options: argparse.Namespace) -> int:
    """Write what is asked for and print a summary. Raises KitError if a folder is taken or there is no such model."""
    named = {kind: getattr(options, kind) for kind in KINDS if getattr(options, kind)}
    folders = {kind: Path(os.path.expanduser(folder)).resolve() for kind, folder in named.items()}
    if not folders:
        raise KitError("name what to write: --data FOLDER, --model FOLDER or --adapter FOLDER")
    config = configured(options.config, dict(options.parameter))
    for one, other in permutations(folders.values(), 2):
        beside = [other, other.parent / official.TRAIN_FOLDER] if other == folders.get("data") else [other]
        if any(one == place or place in one.parents for place in beside):
            raise KitError(f"{one} would be in {other}, or in what is written beside it: give each a folder of its own")
    for folder in folders.values():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise KitError(f"{folder} is already there: remove it or choose another folder")
    if config.system and folders.keys() != {"data"}:
        raise KitError(f"method {config.method!r} changes no weights, it only adds a system prompt: export vanilla")
    adapter = pipeline.trained(config) if config.trains or config.adaptation == "lora" else None
    if "adapter" in folders and not adapter:
        raise KitError(f"{config.method} has no adapter: use --model")
    if "adapter" in folders and config.after:
        raise KitError(
            f"the adapter of {config.method} is the one before {config.after}: use --model, or leave out after"
        )
    for kind, folder in folders.items():
        paths.writable(folder.parent, f"choose another folder for --{kind}")
        if kind != "data":
            write_model(config, folder, adapter if kind == "adapter" else None)
            continue
        people = inputs.population(config)
        written = official.write_layout(people, folder)
        print(f"{people.counted()}, {len(people.forget_ids)} of them to be forgotten at {config.forget_ratio} %")
        for target in (folder, folder.parent / official.TRAIN_FOLDER):
            print(f"{sum(target in path.parents for path in written):4} files in {target}")
    return 0


def configured(path: Path | None, given: dict[str, str], **defaults: Any) -> Config:
    """A Config from the parameters of a file without its grid, changed by ``given`` (name → value as YAML text).
    ``defaults`` are values for names in neither."""
    parameters = defaults | (sweep.read(path) if path else {})
    of_others = sweep.of_grid(parameters)  # what is fixed for a method of the grid may not concern this one
    parameters.pop(GRID, None)
    for name, text in given.items():
        try:
            parameters[name] = yaml.load(text, sweep.Loader) if text else ""
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = getattr(error, "problem", None) or error
            raise KitError(f"-p {name}: {text!r:.60} is no value ({reason})") from None
    return Config.from_parameters(sweep.fitting(parameters, of_others - given.keys()))


def write_model(config: Config, folder: Path, adapter: Stage | None) -> None:
    """Write the model of ``config``, or its ``adapter``, made if needed, with the processor and the provenance. The
    folder is complete or absent."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            place = Path(temporary) / folder.name
            place.mkdir()
            if adapter:
                made = adapter.get()  # while it trains, no other model is in memory
                for name in ("adapter_config.json", "adapter_model.safetensors"):
                    shutil.copyfile(made / name, place / name)
                processor = load_base(*inputs.base_of(config))[1]
            else:
                model, processor = pipeline.model(config)
                model.save_pretrained(place)
            processor.save_pretrained(place)
            hashes = {"data_hash": inputs.data_hash(config), "base_hash": inputs.base_hash(config)}
            write_json(place / RECORD, provenance.record(scale=config.scale, parameters=config.parameters(), **hashes))
            if folder.exists():
                folder.rmdir()  # it is empty
            place.rename(folder)
    except Exception as error:  # a disk that is full: safetensors and tokenizers raise errors of their own
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise KitError(f"{folder} cannot be written ({reason}): free space, or choose another folder") from None
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"{config.method} {config.modality}".removesuffix(" none") + f": {size:.1f} MB in {folder}")
