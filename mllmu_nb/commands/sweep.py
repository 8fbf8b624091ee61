"""``python -m mllmu_nb sweep configs/miniature.yaml``: a grid of runs, one notebook in a process of its own for each.

A configuration file holds parameters and, under ``grid``, lists of values for some of them; the grid is their product.
What is finished is skipped, so a sweep that was stopped goes on where it was. ``papermill -f`` takes the same file.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from mllmu_nb import paths, run
from mllmu_nb.config import GRID, MODELS, YOURS, Config, check_names
from mllmu_nb.errors import KitError
from mllmu_nb.provenance import PATHS
from mllmu_nb.stages import RECORD, read_json

SUMMARY = "run a grid of notebooks, then write scores, tables and figures"
FIRST = ("vanilla", "oracle", "base")  # the others wait for vanilla, so it goes first and an oracle beside it
JOBS = {"miniature": 3, "paper": 1}  # a third notebook starts while two fill two cores; a 7B model fills its GPU
FINETUNE = "finetune"  # the notebook of the models that are not unlearned


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="configuration file, such as configs/miniature.yaml")
    parser.add_argument(
        "--ratios", type=int, nargs="+", metavar="R", help="forget ratios in per cent, for the grid's own"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="notebooks at a time (miniature: 3, else 1)")
    parser.add_argument("--shard", metavar="I/N", help="only every N-th run, from the I-th: the grid over N machines")


def main(options: argparse.Namespace) -> int:
    """Runs what is not finished yet. 0 when all of it is finished afterwards, else 1; KitError for bad input."""
    if options.jobs is not None and options.jobs < 1:
        raise KitError(f"--jobs must be at least 1, not {options.jobs}")
    configs = cells(read(options.config), options.ratios)
    if options.shard:
        configs = share(configs, options.shard)
    notebooks = {config.run_id: notebook_for(config) for config in configs}
    for config in configs:
        run.check(config)
    jobs = [Job(config, notebooks[config.run_id]) for config in configs]
    at_once = options.jobs or min(JOBS[config.scale] for config in configs)
    return 0 if carry_out(jobs, at_once) else 1


# -- the grid ---------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """The parameters of a configuration file, the grid among them. Raises KitError naming what is wrong with it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KitError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise KitError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise KitError(f"{path} must hold parameters, one 'name: value' a line")
    # Notebooks run in their own folder, so what is named from here is named in full.
    return {
        name: _in_full(value) if name in PATHS and isinstance(value, str) else value for name, value in content.items()
    }


def _in_full(value: str) -> str:
    """A path, or several with commas between, as absolute ones; what does not exist here (a hub's name) as it is."""
    parts = [value] if Path(value).exists() else value.split(",")
    parts = [part.strip() for part in parts]
    return ",".join(str(Path(part).resolve()) if part and Path(part).exists() else part for part in parts)


def cells(parameters: Mapping[str, Any], ratios: Sequence[int] | None = None) -> list[Config]:
    """The runs of a grid, those first that others build on.

    A method that unlearns is run for every modality of the grid, any other one once. Raises KitError for an unknown
    parameter, an empty or single-valued axis, a run that cannot be.
    """
    fixed = {name: value for name, value in parameters.items() if name != GRID}
    axes = parameters.get(GRID) or {}
    if not isinstance(axes, Mapping):
        raise KitError("grid must hold lists by parameter, such as 'method: [vanilla, ga]'")
    axes = {**axes, "forget_ratio": list(ratios)} if ratios else dict(axes)
    check_names([*fixed, *axes])
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            raise KitError(f"grid: {name} must be a list of values, such as [{values}]")
    found: dict[str, Config] = {}
    for values in itertools.product(*axes.values()):
        chosen = {**fixed, **dict(zip(axes, values, strict=True))}
        config = Config.from_parameters(fitting(chosen))
        if found.setdefault(config.run_id, config) != config:
            raise KitError(f"two runs of the grid are called {config.run_id}: sweep them apart, with two MLLMU_NB_OUT")
    place = {method: number for number, method in enumerate(FIRST)}
    return sorted(found.values(), key=lambda config: place.get(config.method, len(FIRST)))


def fitting(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters with modality ``none`` for a method that does not unlearn."""
    from mllmu_nb.unlearning import METHODS, get

    method = parameters.get("method", Config.method)
    untrained = method in MODELS or (method in METHODS and not get(method).uses)
    return {**parameters, "modality": "none"} if untrained else parameters


def share(configs: list[Config], shard: str) -> list[Config]:
    """Every n-th run, from the i-th, of "i/n"."""
    try:
        index, number = (int(part) for part in shard.split("/"))
    except ValueError:
        raise KitError(f"--shard must be I/N, such as 1/4, not {shard!r}") from None
    if not 1 <= index <= number:
        raise KitError(f"--shard {shard}: the first number goes from 1 to the second")
    return configs[index - 1 :: number]


def notebook_for(config: Config) -> Path:
    """The notebook that makes a run: the method's own, or the one on fine-tuning for a model that is not unlearned.

    That of a method from outside the package may lie beside the method's file. Raises KitError unless there is one.
    """
    if config.method == YOURS:
        raise KitError("a model that was made elsewhere is asked by python -m mllmu_nb evaluate, not by a sweep")
    name = FINETUNE if config.method in MODELS else config.method
    places = [paths.notebooks(), *_outside(config)]
    found = sorted({path for place in places for path in place.glob(f"*_{name}.ipynb")})
    if len(found) != 1:
        what = "several notebooks" if found else "no notebook"
        where = " and ".join(str(place) for place in places)
        raise KitError(f"there is {what} for method {config.method!r}: *_{name}.ipynb in {where}")
    return found[0]


def _outside(config: Config) -> list[Path]:
    """The folder of the method's file, where that is not the package's."""
    from mllmu_nb.unlearning import METHODS

    if config.method not in METHODS:
        return []
    folder = Path(inspect.getfile(METHODS[config.method][config.variant])).resolve().parent
    return [] if paths.PACKAGE in folder.parents else [folder]


# -- the runs ---------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One notebook to be executed for one run."""

    config: Config
    notebook: Path
    process: subprocess.Popen | None = None
    before: int = 0  # when the run's record was last written, as the job started
    began: float = 0.0
    minutes: float = 0.0
    log: Path = field(init=False)
    executed: Path = field(init=False)

    def __post_init__(self):
        folder = paths.cache() / "notebooks" / self.config.scale
        self.executed = folder / f"{self.config.run_id}.ipynb"
        self.log = folder / f"{self.config.run_id}.log"

    @cached_property
    def needs(self) -> Path | None:
        """The folder of the vanilla model that the run starts from; None for base and oracle, which need none."""
        return None if self.config.method in ("base", "oracle") else run.vanilla_place(self.config)

    def start(self, threads: int) -> None:
        """Starts papermill on the notebook, in the notebook's folder, with every parameter of the run."""
        self.executed.parent.mkdir(parents=True, exist_ok=True)
        self.executed.unlink(missing_ok=True)
        # Parameters as YAML of one line: written this way every value comes back with its type.
        given = yaml.safe_dump(self.config.given(), default_flow_style=True, width=10**6, sort_keys=False)
        command = [sys.executable, "-m", "papermill", str(self.notebook), str(self.executed), "-y", given]
        command += ["--cwd", str(self.notebook.parent), "--no-progress-bar"]
        environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **os.environ}
        self.before = _written(self.config)
        self.began = time.perf_counter()
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def ended(self) -> bool:
        self.minutes = (time.perf_counter() - self.began) / 60
        return self.process.poll() is not None

    def succeeded(self) -> bool:
        """Whether the notebook came to its end and the run is there: found finished, or written since the start."""
        return self.process.returncode == 0 and (run.finished(self.config) or _written(self.config) != self.before)

    def why(self) -> str:
        """What went wrong, in one line: the error of the notebook's cell, else the last line of papermill's log."""
        try:
            for cell in json.loads(self.executed.read_text(encoding="utf-8"))["cells"]:
                for output in cell.get("outputs", []):
                    if output.get("output_type") == "error":
                        return f"{output['ename']}: {' '.join(output['evalue'].split())}"
        except (OSError, ValueError, KeyError):
            pass  # papermill never came to write it, or was stopped while it did
        if self.process.returncode == 0:
            return "the notebook came to its end without making the run"
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.exists() else []
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else "it ended without a word"


def _written(config: Config) -> int:
    record = paths.runs(config.scale) / config.run_id / RECORD
    return record.stat().st_mtime_ns if record.exists() else 0


def carry_out(jobs: list[Job], at_once: int) -> bool:
    """Executes the jobs, then writes scores, tables and figures of what there is. Whether every run is finished."""
    say = partial(print, flush=True)
    began = time.perf_counter()
    waiting = [job for job in jobs if not run.finished(job.config)]
    say(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them finished already, {at_once} at a time")
    failed = _execute(waiting, at_once, say)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr, flush=True)
    for scale in sorted({job.config.scale for job in jobs}):
        _report(scale, next(job.config for job in jobs if job.config.scale == scale), say)
    _tell_minutes(jobs, began, say)
    return not failed


def _execute(waiting: list[Job], at_once: int, say: Callable[[str], None]) -> dict[str, str]:
    """Runs all of ``waiting``; what failed, by run id, with the reason."""
    threads = max(1, (os.cpu_count() or 1) // at_once)
    total, done, failed = len(waiting), 0, {}
    waiting, running = list(waiting), []
    broken: set[Path] = set()  # vanilla models that could not be made
    try:
        while waiting or running:
            for job in [job for job in running if job.ended()]:
                running.remove(job)
                done += 1
                if job.succeeded():
                    say(f"[{done}/{total}] {job.minutes:5.1f} min  {job.config.run_id}")
                    continue
                failed[job.config.run_id] = f"{job.why()} (see {job.executed if job.executed.exists() else job.log})"
                say(f"[{done}/{total}] {job.minutes:5.1f} min  {job.config.run_id}  FAILED")
                if job.needs and not job.needs.is_dir():
                    broken.add(job.needs)
            for job in [job for job in waiting if job.needs in broken]:
                waiting.remove(job)
                done += 1
                failed[job.config.run_id] = "not tried, since the vanilla model it starts from could not be made"
            while len(running) < at_once and (job := _next(waiting, running)):
                waiting.remove(job)
                job.start(threads)
                running.append(job)
                say(f"started            {job.config.run_id}")
            time.sleep(0.2)
    finally:
        for job in running:
            job.process.terminate()
        for job in running:
            job.process.wait()
    return failed


def _next(waiting: list[Job], running: list[Job]) -> Job | None:
    """The first job that would not sit and wait for a model that another one is making."""
    being_made = {job.needs for job in running}
    return next((job for job in waiting if not (place := job.needs) or place.is_dir() or place not in being_made), None)


def _report(scale: str, config: Config, say: Callable[[str], None]) -> None:
    from mllmu_nb.reporting import report

    began = time.perf_counter()
    if not run.comparable(scale):
        return
    known = run.population(config)
    shown = [person for name in ("forget", "retain", "celebrity") for person in known.members(name)[:1]]
    written = report.write_all(scale, shown, say, jobs=os.cpu_count() or 1)
    minutes = (time.perf_counter() - began) / 60
    say(f"{len(written)} files in {paths.results(scale)} and {paths.figures(scale)}: {minutes:.1f} min")


def _tell_minutes(jobs: list[Job], began: float, say: Callable[[str], None]) -> None:
    """Minutes of each stage, as the runs have noted them."""
    say("minutes:  training  answers")
    for job in jobs:
        folder = paths.runs(job.config.scale) / job.config.run_id
        if run.finished(job.config):
            told = read_json(folder / "train.json")
            training, answers = told["seconds"] / 60, told["evaluation_seconds"] / 60
            say(f"{training:18.1f} {answers:8.1f}  {job.config.run_id}")
    say(f"altogether {(time.perf_counter() - began) / 60:.1f} min")
