"""``python -m mllmu_nb sweep configs/miniature.yaml``: a grid of runs, one notebook in a process of its own for each.

A configuration file holds parameters and, under ``grid``, lists of values for some of them, hyper-parameters of methods
among them (``beta: [0.1, 1.0]``); the runs are their product. What is finished is skipped, so a sweep that was stopped
goes on where it was. ``papermill -f`` takes the same file.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from mllmu_nb import after as after_steps
from mllmu_nb import paths, pipeline, unlearning
from mllmu_nb.config import GRID, PATHS, YOURS, Config, check_names
from mllmu_nb.errors import KitError
from mllmu_nb.stages import RECORD, read_json

SUMMARY = "run a grid of notebooks, then write scores, tables and figures"
FIRST = ("vanilla", "oracle", "base")  # the others wait for vanilla, so it goes first and an oracle beside it
JOBS = {"miniature": 3, "paper": 1}  # a third notebook starts while two fill two cores; a 7B model fills its GPU
FINETUNE = "finetune"  # the notebook of the models that are not unlearned
MODEL = ("method", "variant", "modality", "after")  # what a model's printed name holds
MEMORY = "most often for want of memory: try fewer --jobs"

say = partial(print, flush=True)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="configuration file, such as configs/miniature.yaml")
    about = "forget ratios in per cent, in place of the grid's"
    parser.add_argument("--ratios", type=int, nargs="+", metavar="R", help=about)
    parser.add_argument("--jobs", type=int, metavar="N", help="notebooks at a time (miniature: 3, else 1)")
    parser.add_argument("--shard", metavar="I/N", help="only every N-th run, from the I-th: the grid over N machines")


def main(options: argparse.Namespace) -> int:
    """Makes the runs that are not finished, then the report. 0 when all of them are finished afterwards, else 1."""
    if options.jobs is not None and options.jobs < 1:
        raise KitError(f"--jobs must be at least 1, not {options.jobs}")
    every = cells(read(options.config), options.ratios)
    configs = share(every, options.shard) if options.shard else every
    if not configs:
        say(f"--shard {options.shard}: nothing to do, for the grid has {len(every)} runs")
        return 0
    jobs = [Job(config, notebook_for(config)) for config in configs]
    pipeline.check_comparable(configs)
    for config in configs:
        pipeline.check(config)
    began, names = time.perf_counter(), describe(configs)
    waiting = [job for job in jobs if not pipeline.finished(job.config)]
    at_once = options.jobs or min(JOBS[config.scale] for config in configs)
    say(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them finished already, {at_once} at a time")
    for job in jobs:
        say(f"  {job.config.run_id:32}  {names[job.config.run_id]}")
    failed = execute(waiting, at_once)
    for name, reason in failed.items():
        print(f"failed: {name} ({names[name]}): {reason}", file=sys.stderr, flush=True)
    finished = [config for config in configs if pipeline.finished(config)]
    for scale in sorted({config.scale for config in finished}):
        write_report(scale, next(config for config in finished if config.scale == scale))
    say("minutes:  training  answers")
    for config in finished:
        record = read_json(pipeline.run_folder(config) / "train.json")
        say(f"{record['seconds'] / 60:18.1f} {record['evaluation_seconds'] / 60:8.1f}  {config.run_id}")
    say(f"altogether {(time.perf_counter() - began) / 60:.1f} min")
    return 1 if failed else 0


# -- the grid ---------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping; YAML would take the last one."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
            seen.append(key.value)
        return node


def read(path: Path) -> dict[str, Any]:
    """The parameters of a configuration file, the grid among them. Raises KitError naming what is wrong with it."""
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, _Loader)
    except OSError as error:
        raise KitError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no text, or a number without end
        raise KitError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise KitError(f"{path} must hold parameters, one 'name: value' a line")
    # Notebooks run in their own folder, so what is named from here is named in full.
    return content | {name: _in_full(content[name]) for name in PATHS if isinstance(content.get(name), str)}


def _in_full(value: str) -> str:
    """A path, or several with commas between, as absolute ones; what does not exist here (a hub's name) as it is."""
    parts = [part.strip() for part in ([value] if os.path.exists(value) else value.split(","))]
    return ",".join(str(Path(part).resolve()) if part and os.path.exists(part) else part for part in parts)


def cells(parameters: Mapping[str, Any], ratios: Sequence[int] | None = None) -> list[Config]:
    """The runs of a grid, each once, those first that others build on.

    A method is combined only with the axes that concern it: one that trains nothing with no modality and no learning
    rate, and none with another method's variants and hyper-parameters. Raises KitError for an unknown parameter, for an
    axis that is no list of single values, and for a run that cannot be.
    """
    fixed = {name: value for name, value in parameters.items() if name != GRID}
    axes = parameters.get(GRID)
    if not isinstance(axes, Mapping | None):
        raise KitError("grid must hold lists by parameter, such as 'method: [vanilla, ga]'")
    axes = dict(axes or {}) | ({"forget_ratio": list(ratios)} if ratios else {})
    for name, values in axes.items():
        if not isinstance(values, list) or not values or any(map(_is_many, values)):
            raise KitError(f"grid: {name} must be a list of values, such as [{values}]"[:200])
    for name, value in fixed.items():
        if _is_many(value):
            raise KitError(f"{name} must be one value, not {value}: put a list of values under grid"[:200])
    combinations = [fixed | dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    hyper_parameters = {name for one in combinations for name in _hyper_parameters(one)}
    check_names([*fixed, *axes], hyper_parameters)
    found: dict[str, Config] = {}
    for chosen in combinations:
        config = Config.from_parameters(fitting(chosen, {*axes, *hyper_parameters}))
        other = found.setdefault(config.run_id, config)
        if any(getattr(config, name) != getattr(other, name) for name in PATHS):  # a run's name has their last part
            raise KitError(f"two runs of the grid would be called {config.run_id}: give their files different names")
    return sorted(
        found.values(), key=lambda config: FIRST.index(config.method) if config.method in FIRST else len(FIRST)
    )


def _is_many(value: Any) -> bool:
    return isinstance(value, list | dict | set | tuple)


def _hyper_parameters(parameters: Mapping[str, Any]) -> set[str]:
    """Names of those of the method and of the step after it."""
    variants = unlearning.variants(parameters.get("method", "vanilla")).values()
    own = {name for variant in variants for name in variant.hyper_parameters()}
    return own | set(after_steps.settings_of(parameters.get("after", "")))


def fitting(parameters: Mapping[str, Any], optional: Iterable[str] = ()) -> dict[str, Any]:
    """The parameters as its method can take them: modality ``none`` where it trains nothing, and of the ``optional``
    names only those that concern it."""
    variants = unlearning.variants(parameters.get("method", "vanilla"))
    trains = any(variant.streams for variant in variants.values())
    own = _hyper_parameters(parameters) | {name for name in Config.model_fields if trains or "unlearn_" not in name}
    values = {name: value for name, value in parameters.items() if name in own or name not in optional}
    if values.get("variant") not in (None, *variants) and "variant" in optional:
        del values["variant"]
    return values if trains else {**values, "modality": "none"}


def share(configs: list[Config], shard: str) -> list[Config]:
    """Every n-th run, from the i-th, of "i/n"."""
    try:
        index, number = (int(part) for part in shard.split("/"))
    except ValueError:
        raise KitError(f"--shard must be I/N, such as 1/4, not {shard!r}") from None
    if not 1 <= index <= number:
        raise KitError(f"--shard {shard}: the first number goes from 1 to the second")
    return configs[index - 1 :: number]


def describe(configs: Sequence[Config]) -> dict[str, str]:
    """Run id → what it stands for: the model as tables call it, and the parameters in which the runs differ."""
    from mllmu_nb.reporting.runs import label

    values = {config.run_id: {**config.parameters(), **config.settings} for config in configs}
    given = dict.fromkeys(name for config in configs for name in config.given() if name not in MODEL)
    kinds = {name: {repr(own[name]) for own in values.values() if own.get(name) is not None} for name in given}
    described = {}
    for run_id, own in values.items():
        more = [f"{name} {own[name]}" for name in given if len(kinds[name]) > 1 and own.get(name) is not None]
        described[run_id] = ", ".join([label(*(own[name] for name in MODEL)), *more])
    return described


def notebook_for(config: Config) -> Path:
    """The notebook that makes a run: the method's own, or the one on fine-tuning for a model that is not unlearned.

    That of a method from outside the package may lie beside the method's file. Raises KitError unless there is one.
    """
    if config.method == YOURS:
        raise KitError("a model that was made elsewhere is asked by python -m mllmu_nb evaluate, not by a sweep")
    variants = unlearning.variants(config.method)
    name = config.method if variants else FINETUNE
    places = [paths.notebooks()]
    if variants:
        folder = Path(inspect.getfile(variants[config.variant])).resolve().parent
        places += [folder] if paths.PACKAGE not in folder.parents else []
    found = sorted({path for place in places for path in place.glob(f"*_{name}.ipynb")})
    if len(found) != 1:
        what = "several notebooks" if found else "no notebook"
        where = " and ".join(map(str, places))
        raise KitError(f"there is {what} for method {config.method!r}: *_{name}.ipynb in {where}")
    return found[0]


# -- the runs ---------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One notebook to be executed for one run, with papermill in a process of its own."""

    config: Config
    notebook: Path
    process: subprocess.Popen | None = None
    before: int = 0  # when the run's record was last written, as the job started
    began: float = 0.0

    @property
    def executed(self) -> Path:
        return paths.cache() / "notebooks" / self.config.scale / f"{self.config.run_id}.ipynb"

    @property
    def log(self) -> Path:
        return self.executed.with_suffix(".log")

    @cached_property
    def needs(self) -> Path | None:
        """The folder of the vanilla model that the run starts from; None for base and oracle, which need none."""
        return None if self.config.method in ("base", "oracle") else pipeline.finetuned(self.config).folder

    def start(self, threads: int) -> None:
        """Starts papermill on the notebook, in the notebook's folder, with the parameters that were given."""
        self.executed.parent.mkdir(parents=True, exist_ok=True)
        self.executed.unlink(missing_ok=True)
        # Parameters as YAML of one line: written this way every value comes back with its type.
        given = yaml.safe_dump(self.config.given(), default_flow_style=True, width=10**6, sort_keys=False)
        command = [sys.executable, "-m", "papermill", str(self.notebook), str(self.executed), "-y", given]
        command += ["--cwd", str(self.notebook.parent), "--no-progress-bar"]
        environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **os.environ}
        self.before, self.began = self.written(), time.perf_counter()
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def written(self) -> int:
        record = pipeline.run_folder(self.config) / RECORD
        return record.stat().st_mtime_ns if record.exists() else 0

    def succeeded(self) -> bool:
        """Whether the notebook came to its end and the run is there: found finished, or written since the start."""
        return self.process.returncode == 0 and (pipeline.finished(self.config) or self.written() != self.before)

    def why(self) -> str:
        """What went wrong, in one line: the signal that ended it, the error of the notebook's cell, or the last line of
        papermill's log."""
        if self.process.returncode < 0:
            number = -self.process.returncode
            return f"ended by signal {number} ({signal.strsignal(number)})" + f", {MEMORY}" * (number == 9)
        if self.process.returncode == 0:
            return "the notebook came to its end without making the run"
        try:
            for cell in json.loads(self.executed.read_text(encoding="utf-8"))["cells"]:
                for output in cell.get("outputs", []):
                    if output.get("output_type") == "error":
                        return f"{output['ename']}: {' '.join(output['evalue'].split())}"
        except (OSError, ValueError, KeyError, TypeError):
            pass  # papermill never came to write it, or was stopped while it did
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
        return f"its kernel was killed, {MEMORY}" if "DeadKernelError" in last else last


def execute(waiting: Sequence[Job], at_once: int) -> dict[str, str]:
    """Runs all of ``waiting``; what failed, by run id, with the reason."""
    threads = max(1, (os.cpu_count() or 1) // at_once)
    total, done, failed = len(waiting), 0, {}
    waiting, running = list(waiting), []
    broken: set[Path] = set()  # vanilla models that could not be made
    try:
        while waiting or running:
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                done += 1
                good = job.succeeded()
                minutes = (time.perf_counter() - job.began) / 60
                say(f"[{done}/{total}] {minutes:5.1f} min  {job.config.run_id}" + ("" if good else "  FAILED"))
                if not good:
                    shown = job.executed if job.executed.exists() else job.log
                    failed[job.config.run_id] = f"{job.why()} (see {shown})"
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


def write_report(scale: str, config: Config) -> None:
    """Writes scores, tables and figures of all finished runs of a scale; people of ``config`` are shown in them."""
    from mllmu_nb.reporting import report

    began, known = time.perf_counter(), pipeline.population(config)
    shown = [person for name in ("forget", "retain", "celebrity") for person in known.members(name)[:1]]
    written = report.write_all(scale, shown, say)
    minutes = (time.perf_counter() - began) / 60
    say(f"{len(written)} files in {paths.results(scale)} and {paths.figures(scale)}: {minutes:.1f} min")
