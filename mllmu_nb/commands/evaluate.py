"""``python -m mllmu_nb evaluate --model FOLDER [--adapter FOLDER]``: score a model that was made elsewhere.

It is asked the questions of the configuration's people, generated, one's own or published, as every run is. Beside it
stand vanilla and the oracle of the same people: the runs that are named, or else those found here or committed with the
project. Scores and comparison are printed and lie, with all answers, in a folder of their own.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mllmu_nb import run
from mllmu_nb.commands import sweep
from mllmu_nb.config import BASE_MODELS, GRID, YOURS, Config
from mllmu_nb.data.schema import SETS
from mllmu_nb.errors import KitError
from mllmu_nb.stages import RECORD, read_json

if TYPE_CHECKING:
    from mllmu_nb.reporting import Run

REFERENCES = ("vanilla", "oracle")
ASKING = ("protocol", "shots", "shot_source", "shot_seed", "scoring", "cyclic")  # parameters of the asking alone
SUMMARY = "score a model or an adapter that was made elsewhere, beside vanilla and the oracle"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="PATH",
        help="folder that save_pretrained has written, or a name on the hub",
    )
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="LoRA adapter that goes on it, in peft's layout")
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="SET", help=f"of {', '.join(SETS)} (all)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N people of each set")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="whose questions (the miniature's); method and grid are passed over"
    )
    parser.add_argument("--name", default=YOURS, help=f"what tables call the model ({YOURS})")
    for name in REFERENCES:
        parser.add_argument(f"--{name}", type=Path, metavar="RUN", help="folder of its run (found by itself)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="copy answers and scores there as well")


def main(options: argparse.Namespace) -> int:
    """Asks, scores and compares. KitError for what does not fit, wherever possible before the model is loaded."""
    _check(options)
    plain = parameters(options.config)
    own = plain.but(
        method=YOURS,
        base_path=_in_full(options.model),
        adapter_path=_in_full(options.adapter) if options.adapter else "",
        base_model=_family(options.model, plain.base_model),
    )
    run.check(own)
    beside = {name: _reference(getattr(options, name), own, plain, name, options.name) for name in REFERENCES}
    folder = run.evaluated(own, name=options.name, sets=options.sets, limit=options.limit)
    tell(folder, beside)
    if options.out:
        shutil.copytree(folder, options.out, dirs_exist_ok=True)
    print(f"answers, scores and comparison: {options.out or folder}")
    return 0


def parameters(path: Path | None) -> Config:
    """The people and settings of a configuration file, the miniature's without one, for a model that is not trained."""
    found = sweep.read(path) if path else {}
    found = {name: value for name, value in found.items() if name not in (GRID, "variant", "adapter_path")}
    return Config.from_parameters({**found, "method": "vanilla", "modality": "none"})


def tell(folder: Path, beside: Mapping[str, Run | None]) -> None:
    """Prints the scores of the run in ``folder`` and how they differ from vanilla's and the oracle's, by name.

    Writes both into the folder, as scores.csv and comparison.csv.
    """
    from mllmu_nb.evaluation import statistics
    from mllmu_nb.reporting import comparison, read_run

    own = read_run(folder)
    statistics.scores(own.items).to_csv(folder / "scores.csv", index=False)
    print(f"{own.id}: {len(own.items)} answers; ± is half a 95 % interval over people\n")
    print(comparison.printed_scores(own).to_string(), end="\n\n")
    found = comparison.beside(own, **beside)
    found.to_csv(folder / "comparison.csv", index=False)
    for name, other in beside.items():
        if other:
            print(f"minus {name} ({other.id}), question by question\n")
            print(comparison.printed_differences(found, name).to_string(), end="\n\n")
    print(*comparison.told(own, **beside), sep="\n")


# -- what is given ----------------------------------------------------------------------------------------------


def _check(options: argparse.Namespace) -> None:
    unknown = [name for name in options.sets if name not in SETS]
    if unknown:
        raise KitError(f"unknown set {', '.join(unknown)}: choose from {', '.join(SETS)}")
    if options.limit is not None and options.limit < 1:
        raise KitError(f"--limit must be at least 1, not {options.limit}")
    if not re.fullmatch(r"[\w.]+", options.name):
        raise KitError(f"--name must be letters, digits, _ and . (it is part of a folder's name), not {options.name!r}")
    if options.name in REFERENCES and getattr(options, options.name):
        raise KitError(f"--name {options.name} makes the model its own reference: leave out --{options.name}")
    if options.out and options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise KitError(f"{options.out} is already there: remove it or choose another folder")


def _in_full(path: str | Path) -> str:
    """A path in full, a name on the hub as it is."""
    return str(Path(path).expanduser().resolve()) if Path(path).expanduser().exists() else str(path)


def _family(model: str, otherwise: str) -> str:
    from mllmu_nb.models.files import family_of

    folder = Path(model).expanduser()
    found = family_of(folder) if (folder / "config.json").is_file() else otherwise
    return found if found in BASE_MODELS else otherwise


def _reference(named: Path | None, own: Config, plain: Config, method: str, name: str) -> Run | None:
    """The run of vanilla or the oracle: the one named, else one of the same people, where there is any."""
    from mllmu_nb.reporting import comparison, read_run

    if named is None:
        found = None if method == name else run.reference(plain.but(method=method, base_model=own.base_model))
        return read_run(found) if found else None
    known, reference = run.population(own), read_run(named)
    comparison.check_reference(reference, method, own.base_model, run.data_hash(own), known.forget_ids)
    _tell_asked(own, named, method)
    return reference


def _tell_asked(own: Config, named: Path, method: str) -> None:
    """Prints where the reference was asked in another way: then a difference is not the model's alone."""
    there = read_json(named / RECORD).get("parameters", {}) if (named / RECORD).is_file() else {}
    for field in ASKING:
        if field in there and there[field] != getattr(own, field):
            print(f"{method} was asked with {field} {there[field]!r}, your model with {getattr(own, field)!r}")
