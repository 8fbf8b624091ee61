"""``python -m mllmu_nb evaluate --model FOLDER [--adapter FOLDER]``: score a model that was made elsewhere.

It is asked the questions of the configuration's people, generated, one's own or published, as every run is. Beside it
stand vanilla and the oracle of the same people: the runs that are named, or else those made here or come with the
project. Scores and comparison are printed and lie, with all answers, in a folder of their own.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mllmu_nb import pipeline
from mllmu_nb.commands import sweep
from mllmu_nb.config import GRID, YOURS, Config
from mllmu_nb.data.schema import SETS
from mllmu_nb.errors import KitError
from mllmu_nb.models.files import model_type

if TYPE_CHECKING:
    from mllmu_nb.reporting.runs import Run

REFERENCES = ("vanilla", "oracle")
SUMMARY = "score a model or an adapter that was made elsewhere, beside vanilla and the oracle"


def arguments(parser: argparse.ArgumentParser) -> None:
    about = "folder that save_pretrained has written, or a name on the hub"
    parser.add_argument("--model", required=True, metavar="PATH", help=about)
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="LoRA adapter that goes on it, in peft's layout")
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="SET", help=f"of {', '.join(SETS)} (all)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N people of each set")
    about = "whose questions (the miniature's); method and grid are passed over"
    parser.add_argument("--config", type=Path, metavar="FILE", help=about)
    parser.add_argument("--name", default=YOURS, help=f"what tables call the model ({YOURS})")
    for name in REFERENCES:
        parser.add_argument(f"--{name}", type=Path, metavar="RUN", help="folder of its run (looked for by itself)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="copy answers and scores there as well")


def main(options: argparse.Namespace) -> int:
    """Asks, scores and compares. KitError for what does not fit, wherever possible before the model is loaded."""
    _check(options)
    plain, folder = parameters(options.config), Path(options.model).expanduser()
    own = plain.but(
        method=YOURS,
        base_path=_in_full(options.model),
        adapter_path=_in_full(options.adapter) if options.adapter else "",
        base_model=model_type(folder) if (folder / "config.json").is_file() else plain.base_model,
    )
    pipeline.check(own)
    references = {name: _reference(getattr(options, name), own, plain, name, options.name) for name in REFERENCES}
    folder = pipeline.evaluated(own, name=options.name, sets=options.sets, limit=options.limit)
    show(folder, references)
    if options.out:
        shutil.copytree(folder, options.out, dirs_exist_ok=True)
    print(f"answers, scores and comparison: {options.out or folder}")
    return 0


def parameters(path: Path | None) -> Config:
    """The people and settings of a configuration file, the miniature's without one, for a model that is not trained."""
    given = sweep.read(path) if path else {}
    given = {name: value for name, value in given.items() if name not in (GRID, "variant", "after", "adapter_path")}
    return Config.from_parameters({**given, "method": "vanilla", "modality": "none"})


def show(folder: Path, references: Mapping[str, Run | None]) -> None:
    """Prints the scores of the run in ``folder`` and how they differ from those of the references, by name; writes both
    into the folder, as scores.csv and comparison.csv."""
    from mllmu_nb.reporting import comparison
    from mllmu_nb.reporting.runs import read_run
    from mllmu_nb.scoring.score import run_scores

    own = read_run(folder)
    differences = comparison.beside(own, **references)
    run_scores(own.items).to_csv(folder / "scores.csv", index=False)
    differences.to_csv(folder / "comparison.csv", index=False)
    print(f"{own.id}: {len(own.items)} answers; ± is half a 95 % interval over people\n")
    print(comparison.printed_scores(own).to_string(), end="\n\n")
    for name, other in references.items():
        if other:
            print(f"minus {name} ({other.id}), question by question\n")
            print(comparison.printed_differences(differences, name).to_string(), end="\n\n")
    print(*comparison.told(own, **references), sep="\n")


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


def _reference(named: Path | None, own: Config, plain: Config, method: str, name: str) -> Run | None:
    """The run of vanilla or the oracle: the one named, else one of the same people, where there is any. Raises KitError
    for one of another model or other people; what else was asked otherwise is printed."""
    from mllmu_nb.reporting.runs import read_run

    if named is None:
        folder = None if method == name else pipeline.reference(plain.but(method=method, base_model=own.base_model))
        return read_run(folder) if folder else None
    reference, forget_ids = read_run(named), list(pipeline.population(own).forget_ids)
    expected = {"method": method, "base_model": own.base_model, "data_hash": pipeline.data_hash(own)}
    made_with = {**reference.record, **reference.parameters}
    for parameter, value in {**expected, "forget_ids": forget_ids}.items():
        theirs = made_with[parameter]
        if theirs != value:
            raise KitError(
                f"{named} is no {method} of your configuration: {parameter} is {theirs!s:.40}, not {value!s:.40}"
            )
    for parameter in pipeline.ASKING:
        theirs, mine = made_with[parameter], getattr(own, parameter)
        if theirs != mine:
            print(f"{method} was asked with {parameter} {theirs!r}, your model with {mine!r}")
    return reference
