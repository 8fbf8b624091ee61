"""``python -m mllmu_nb export``: the people of a run in the published layout, its model as others load it.

``--data FOLDER`` writes the people as :func:`mllmu_nb.data.official.write_layout` does, with the training splits in
``baseline_train_split`` beside the folder. ``--model FOLDER`` writes the run's model, adapters merged, with processor
and tokenizer; ``from_pretrained`` of transformers loads the folder without this kit. ``--adapter FOLDER`` writes the
adapter alone, for ``peft`` to put on the model it was trained on: vanilla for an unlearned one, else the base.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import yaml

from mllmu_nb import paths, provenance, run
from mllmu_nb.commands import sweep
from mllmu_nb.config import GRID, Config
from mllmu_nb.errors import KitError
from mllmu_nb.stages import RECORD, write_json

SUMMARY = "write a run's people in the published layout, its model as a folder that from_pretrained loads"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        type=Path,
        nargs="?",
        help="configuration file (default: the miniature's values); its grid is left out",
    )
    parser.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="as of papermill"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="write the people there")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="write the model there, adapters merged")
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="write the adapter alone there")


def main(options: argparse.Namespace) -> int:
    """Writes what is asked for and prints what it was. KitError where a folder is taken or there is no such model."""
    if not (options.data or options.model or options.adapter):
        raise KitError("name what to write: --data FOLDER, --model FOLDER or --adapter FOLDER")
    config = configured(options.config, dict(options.parameter))
    for folder in (options.model, options.adapter):
        if folder:
            _check_model(config, folder)
    if options.adapter and not _adapter_stage(config):
        raise KitError(f"{_who(config)} has no adapter: all its weights were trained, take --model")
    if options.data:
        export_data(config, options.data)
    if options.model:
        export_model(config, options.model)
    if options.adapter:
        export_adapter(config, options.adapter)
    return 0


def configured(path: Path | None, given: dict[str, str]) -> Config:
    """The parameters of a file without its grid, changed by ``given``, whose values are read as YAML."""
    parameters = sweep.read(path) if path else {}
    parameters.pop(GRID, None)
    changed = {}
    for name, text in given.items():
        try:
            changed[name] = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            raise KitError(f"-p {name}: {text!r} is no value") from None
    return Config.from_parameters(sweep.fitting({**parameters, **changed}))


def export_data(config: Config, folder: Path) -> None:
    """Writes the people of ``config`` in the published layout. Raises KitError where a folder is taken."""
    from mllmu_nb.data import official

    folder = folder.expanduser().resolve()
    people = run.population(config)
    written = official.write_layout(people, folder)
    kinds = ", ".join(f"{len(people.of_kind(kind))} {kind}" for kind in ("fictitious", "pool", "celebrity"))
    print(f"{kinds}, {len(people.forget_ids)} of them to be forgotten at {config.forget_ratio} %")
    for target in (folder, folder.parent / official.TRAIN_FOLDER):
        print(f"{sum(target in path.parents for path in written):4} files in {target}")


def export_model(config: Config, folder: Path) -> None:
    """Writes the model of ``config``, made if need be, as one plain model with its processor."""

    def fill(place: Path) -> None:
        model, processor = run.model(config)
        model.save_pretrained(place)
        processor.save_pretrained(place)

    _write(config, folder, fill)


def export_adapter(config: Config, folder: Path) -> None:
    """Writes the adapter of ``config``, made if need be, as peft keeps it, with the processor."""
    from mllmu_nb.models import load

    def fill(place: Path) -> None:
        stage = _adapter_stage(config)(config)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(stage / name, place / name)
        load.load_base(config)[1].save_pretrained(place)

    _write(config, folder, fill)


def _adapter_stage(config: Config) -> Any:
    """The function that makes the stage with the adapter of ``config.method``; None where it has none."""
    if config.trains:
        return run.unlearned
    stages = {"vanilla": run.vanilla, "oracle": run.oracle} if config.adaptation == "lora" else {}
    return stages.get(config.method)


def _check_model(config: Config, folder: Path) -> None:
    if run.system(config):
        raise KitError(
            f"method {config.method!r} changes no weights, it asks with a system prompt: export vanilla, and ask so"
        )
    folder = folder.expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KitError(f"{folder} is already there: remove it or choose another folder")


def _write(config: Config, folder: Path, fill: Any) -> None:
    """Has ``fill`` write into ``folder``, which appears whole, with what made it, or not at all."""
    folder = folder.expanduser().resolve()
    paths.writable(folder.parent)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    try:
        part.mkdir()
        fill(part)
        write_json(part / RECORD, _record(config))
        if folder.exists():
            folder.rmdir()  # it is empty
        part.rename(folder)
    except OSError as error:
        raise KitError(f"{folder} cannot be written ({error.strerror or error}): choose another folder") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"{_who(config)}: {size:.1f} MB in {folder}")


def _record(config: Config) -> dict[str, Any]:
    hashes = {"data_hash": run.data_hash(config), "base_hash": run.base_hash(config)}
    return provenance.record(scale=config.scale, parameters=config.parameters(), **hashes)


def _who(config: Config) -> str:
    return f"{config.method} {config.modality}" if config.trains else config.method
