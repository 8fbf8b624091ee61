"""``mllmu-nb card RUN``: a run, or a result of ``evaluate``, on one page of HTML, beside vanilla and the oracle."""

import argparse
from pathlib import Path

from mllmu_nb import inputs, paths, pipeline
from mllmu_nb.commands import sweep
from mllmu_nb.config import PATHS, YOURS, Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import card
from mllmu_nb.reporting.beside import Beside
from mllmu_nb.reporting.runs import read_run

EXAMPLES = ("card results/reference/runs/ga-multimodal-28ce0ac8", "card FOLDER --out card.html")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a run, or the folder that evaluate has printed")
    about = "configuration of the run, if it names files or folders (a run stores only the last part of a path)"
    parser.add_argument("--config", type=Path, metavar="FILE", help=about)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write it (card.html in the current folder)")


def main(options: argparse.Namespace) -> int:
    """Write the page. Raises KitError if the folder has no whole run, or its people or base are not found."""
    target = options.out or Path("card.html")
    if target.is_dir():
        raise KitError(f"--out {target} is a folder: name a file in it")
    paths.writable(target.parent, "name another file by --out")
    own = read_run(options.run)
    given = sweep.read(options.config) if options.config else {}
    named = {name: given[name] for name in PATHS if name in given}
    config = Config.from_parameters(own.record["parameters"] | named)
    try:
        same_people = own.record["data_hash"] == inputs.data_hash(config)
    except KitError as error:
        raise KitError(
            f"{error} (a run stores only the last part of a path: give its configuration with --config)"
        ) from None
    if not same_people:
        raise KitError(f"the run {own.id} is about other people than its parameters give now: make the run again")
    if config.method != YOURS and own.record["base_hash"] != inputs.base_hash(config):
        raise KitError(f"the base model of the run {own.id} is not found: give the run's configuration with --config")
    elsewhere = {"base_path": named.get("base_path", ""), "adapter_path": ""}  # the references are of the kit's base
    plain = pipeline.PLAIN | (elsewhere if config.method == YOURS else {})
    others = {name: pipeline.reference(config.but(method=name, **plain)) for name in ("vanilla", "oracle")}
    beside = Beside(own, **{name: read_run(folder) for name, folder in others.items() if folder})
    target.write_text(card.card(beside, inputs.population(config)), encoding="utf-8")
    print(f"{card.verdict(beside)}\nreport card: {target}")
    return 0
