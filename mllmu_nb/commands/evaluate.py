"""``mllmu-nb evaluate --model FOLDER``: asks a model that was made elsewhere the same questions as every run, and
compares it with vanilla and the oracle of the same people: those made here, else those that come with the project."""

import argparse
import os
import re
from pathlib import Path

from mllmu_nb import inputs, pipeline
from mllmu_nb.commands import sweep
from mllmu_nb.config import GRID, YOURS, Config
from mllmu_nb.data.schema import SETS
from mllmu_nb.errors import KitError
from mllmu_nb.models.files import model_type
from mllmu_nb.reporting.beside import Beside
from mllmu_nb.reporting.runs import read_run
from mllmu_nb.reporting.sheet import write_csv
from mllmu_nb.scoring.score import run_scores
from mllmu_nb.stages import is_whole

EXAMPLES = ("evaluate --model my_model --adapter my_adapter", "evaluate --model my_model --limit 5 --name mine")

LONGEST = 100  # bytes of a name: a file's may have 255, and more is added


def arguments(parser: argparse.ArgumentParser) -> None:
    about = "folder that save_pretrained has written, or a name on the hub"
    parser.add_argument("--model", required=True, metavar="PATH", help=about)
    about = "LoRA adapter for this model, in peft's layout"
    parser.add_argument("--adapter", metavar="FOLDER", help=about)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET", help="only these sets")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N people of each set")
    about = "configuration that names the people to ask about (default: the miniature); its method and grid are ignored"
    parser.add_argument("--config", type=Path, metavar="FILE", help=about)
    parser.add_argument("--name", default=YOURS, help=f"what tables call the model (default: {YOURS})")


def main(options: argparse.Namespace) -> int:
    """Ask, score, compare, and write both into the run's folder, as scores.csv and comparison.csv. Raises KitError for
    what does not fit, if possible before the model is loaded."""
    if options.limit is not None and options.limit < 1:
        raise KitError(f"--limit must be at least 1, not {options.limit}")
    if not re.fullmatch(r"[\w.]+", options.name) or len(options.name.encode()) > LONGEST:
        what = f"at most {LONGEST} letters, digits, _ and ."
        raise KitError(f"--name must be {what} (it becomes a folder's name), not {options.name!r:.200}")
    for name, given in (("model", options.model), ("adapter", options.adapter)):
        if given is not None and not given.strip():
            raise KitError(f"--{name} is empty: name a folder")
    model, adapter = (sweep.absolute(os.path.expanduser(path or "")) for path in (options.model, options.adapter))
    given = sweep.read(options.config) if options.config else {}
    of_a_method = {GRID, "variant", "after", "adapter_path", *sweep.hyper_parameters_of(given)}
    of_a_method |= sweep.of_grid(given)
    given = {name: value for name, value in given.items() if name not in of_a_method}
    plain = Config.from_parameters({**given, "method": "vanilla", "modality": "none"})
    family = model_type(Path(model)) if Path(model, "config.json").is_file() else plain.base_model
    changed = {"base_path": model, "adapter_path": adapter, "base_model": family}
    if model != plain.base_path:
        changed["base_revision"] = ""  # the configuration's is of its own base
    config = plain.but(method=YOURS, **changed)
    inputs.check(config)
    others = {name: plain.but(method=name, base_model=family) for name in ("vanilla", "oracle") if name != options.name}
    references = {name: pipeline.reference(other) for name, other in others.items()}
    asked = {"name": options.name, "sets": list(dict.fromkeys(options.sets)), "limit": options.limit}
    asked["compared_with"] = plain.but(base_model=family) if os.path.isdir(plain.base_path) else None
    stage = pipeline.answered(config, **asked)
    if is_whole(stage.folder) and not stage.finished:
        what = "of another model, sets, limit or version of the kit"
        raise KitError(f"{stage.folder} is an evaluation {what}: choose another --name, or remove the folder")
    folder = pipeline.run(config, **asked)
    own, others = read_run(folder), {name: read_run(place) for name, place in references.items() if place}
    comparison = Beside(own, **others)
    write_csv(run_scores(own.items), folder / "scores.csv")
    write_csv(comparison.cells, folder / "comparison.csv")
    print(f"{own.id}: {len(own.items)} answers; [low, high] is the 95 % interval over people\n")
    print(comparison.score_table().to_string(), end="\n\n")
    for name, run in others.items():
        print(f"minus {name} ({run.id}), question by question\n\n{comparison.score_table(name).to_string()}\n")
    print(*comparison.remarks(), f"answers, scores and comparison: {folder}", sep="\n")
    return 0
