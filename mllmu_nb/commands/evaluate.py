"""``python -m mllmu_nb evaluate --model FOLDER [--adapter FOLDER]``: score a model that was made elsewhere.

It is asked what every run of the configuration's people is asked, and set beside vanilla and the oracle of the same
people: the runs that are named, or else those made here or come with the project.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from pathlib import Path

from mllmu_nb import pipeline
from mllmu_nb.commands import sweep
from mllmu_nb.config import GRID, YOURS, Config
from mllmu_nb.data.schema import SETS
from mllmu_nb.errors import KitError
from mllmu_nb.models.files import model_type
from mllmu_nb.scoring.frames import REFERENCES

SUMMARY = "score a model or an adapter that was made elsewhere, beside vanilla and the oracle"
EXAMPLES = (
    "evaluate --model my_model --adapter my_adapter",
    "evaluate --model my_model --limit 5 --name mine --out scores",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    about = "folder that save_pretrained has written, or a name on the hub"
    parser.add_argument("--model", required=True, metavar="PATH", help=about)
    parser.add_argument(
        "--adapter", default="", metavar="FOLDER", help="LoRA adapter that goes on it, in peft's layout"
    )
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
    if unknown := [name for name in options.sets if name not in SETS]:
        raise KitError(f"unknown set {', '.join(unknown)}: choose from {', '.join(SETS)}")
    if options.limit is not None and options.limit < 1:
        raise KitError(f"--limit must be at least 1, not {options.limit}")
    if not re.fullmatch(r"[\w.]+", options.name):
        raise KitError(f"--name must be letters, digits, _ and . (it becomes a folder's name), not {options.name!r}")
    if options.name in REFERENCES and getattr(options, options.name):
        raise KitError(f"--name {options.name} makes the model its own reference: leave out --{options.name}")
    if options.out and options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise KitError(f"{options.out} is already there: remove it or choose another folder")
    model, adapter = (sweep.absolute(os.path.expanduser(path)) for path in (options.model, options.adapter))
    given = sweep.read(options.config) if options.config else {}
    given = {name: value for name, value in given.items() if name not in (GRID, "variant", "after", "adapter_path")}
    plain = Config.from_parameters({**given, "method": "vanilla", "modality": "none"})
    config = plain.but(
        method=YOURS,
        base_path=model,
        adapter_path=adapter,
        base_model=model_type(Path(model)) if Path(model, "config.json").is_file() else plain.base_model,
    )
    pipeline.check(config)
    references = {name: reference(getattr(options, name), config, plain, name, options.name) for name in REFERENCES}
    folder = pipeline.evaluated(config, name=options.name, sets=options.sets, limit=options.limit)
    show(folder, references)
    if options.out:
        shutil.copytree(folder, options.out, dirs_exist_ok=True)
    print(f"answers, scores and comparison: {options.out or folder}")
    return 0


def reference(named: Path | None, config: Config, plain: Config, method: str, name: str):
    """The run of vanilla or the oracle: the one named, else one of the same people, where there is any. Raises KitError
    for one of another model or other people; prints in what else it was asked in another way."""
    from mllmu_nb.reporting.runs import read_run

    if named is None:
        folder = None if method == name else pipeline.reference(plain.but(method=method, base_model=config.base_model))
        return read_run(folder) if folder else None
    run, forget_ids = read_run(named), pipeline.population(config).forget_ids
    from mllmu_nb.reporting import beside

    beside.check_reference(run, method, config.base_model, pipeline.data_hash(config), forget_ids)
    for parameter in pipeline.ASKING:
        own = getattr(config, parameter)
        theirs = run.parameters.get(parameter, own)  # older runs lack what came later
        if theirs != own:
            print(f"{method} was asked with {parameter} {theirs!r}, your model with {own!r}")
    return run


def show(folder: Path, references: dict) -> None:
    """Prints the scores of the run in ``folder`` and its differences to the references, by name; writes both into the
    folder, as scores.csv and comparison.csv."""
    from mllmu_nb.reporting import beside
    from mllmu_nb.reporting.runs import read_run
    from mllmu_nb.reporting.tables import write_csv
    from mllmu_nb.scoring.score import run_scores

    own = read_run(folder)
    comparison = beside.Beside(own, **references)
    write_csv(run_scores(own.items), folder / "scores.csv")
    write_csv(comparison.cells, folder / "comparison.csv")
    print(f"{own.id}: {len(own.items)} answers; ± is half a 95 % interval over people\n")
    print(comparison.table().to_string(), end="\n\n")
    for name, run in references.items():
        if run:
            print(f"minus {name} ({run.id}), question by question\n\n{comparison.table(name).to_string()}\n")
    print(*comparison.remarks(), sep="\n")
