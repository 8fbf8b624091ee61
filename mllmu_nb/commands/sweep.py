"""``python -m mllmu_nb sweep CONFIG``: a grid of runs, each one notebook in a process of its own.

A configuration file holds parameters and, under ``grid``, lists of values for some of them, hyper-parameters of methods
included; the runs are their product. Finished runs are skipped, so a sweep that was stopped continues where it was.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mllmu_nb import paths, pipeline, unlearning
from mllmu_nb.config import GRID, PATHS, YOURS, Config, check_names, setting_names
from mllmu_nb.errors import KitError
from mllmu_nb.processes import execute_notebook
from mllmu_nb.stages import read_json

SUMMARY = "run a grid of notebooks, then write scores, tables and figures"
EXAMPLES = (
    "sweep configs/miniature.yaml",
    "sweep configs/miniature.yaml --ratios 5 10 15",
    "sweep configs/miniature.yaml --shard 1/4",
)
FIRST = ("vanilla", "oracle", "base")  # the others need vanilla's model, so it goes first and an oracle beside it
JOBS = {"miniature": 3, "paper": 1}  # a third notebook starts while two fill two cores; a 7B model fills its GPU
FINETUNE = "finetune"  # the notebook of the models that are not unlearned
MEMORY = "most often for want of memory: try fewer --jobs"

say = partial(print, flush=True)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="configuration file, such as configs/miniature.yaml")
    about = "forget ratios in per cent, in place of the grid's"
    parser.add_argument("--ratios", type=int, nargs="+", metavar="R", help=about)
    parser.add_argument("--bases", nargs="+", metavar="FAMILY", help="families, in place of base_model")
    parser.add_argument("--jobs", type=int, metavar="N", help="notebooks at a time (miniature: 3, else 1)")
    parser.add_argument("--shard", metavar="I/N", help="only every N-th run, from the I-th: the grid over N machines")


def main(options: argparse.Namespace) -> int:
    """Makes the runs that are not finished, then the report. 0 when all of them are finished afterwards, else 1."""
    if options.jobs is not None and options.jobs < 1:
        raise KitError(f"--jobs must be at least 1, not {options.jobs}")
    configs = cells(read(options.config), options.ratios, options.bases)
    if options.shard:
        configs = share(configs, options.shard)
    began = time.perf_counter()
    for config in configs:
        notebook_for(config)
        pipeline.check(config)
    waiting = [config for config in configs if not pipeline.finished(config)]
    at_once = options.jobs or min((JOBS[config.scale] for config in configs), default=1)
    say(f"{len(configs)} runs, {len(configs) - len(waiting)} of them finished already, {at_once} at a time")
    for config in configs:
        say(f"  {config.run_id:32}  {', '.join(f'{name} {value}' for name, value in config.given().items())}")
    failed = execute(waiting, at_once)
    for run_id, reason in failed.items():
        print(f"failed: {run_id}: {reason}", file=sys.stderr, flush=True)
    finished = [config for config in configs if pipeline.finished(config)]
    for config in {pipeline.data_hash(config): config for config in finished}.values():
        pipeline.write_people(config, paths.people(paths.results(config.scale)))
    for scale, config in {config.scale: config for config in reversed(finished)}.items():
        write_report(scale, config)
    say("minutes:  training  answers")
    for config in finished:
        record = read_json(pipeline.run_folder(config) / "train.json")
        say(f"{record['seconds'] / 60:18.1f} {record['evaluation_seconds'] / 60:8.1f}  {config.run_id}")
    say(f"altogether {(time.perf_counter() - began) / 60:.1f} min")
    return 1 if failed else 0


def write_report(scale: str, config: Config) -> None:
    """Writes scores, tables and figures of all finished runs of a scale, with portraits of the people of ``config``."""
    from mllmu_nb.reporting import report

    known = pipeline.population(config)
    shown = [person for name in ("forget", "retain", "celebrity") for person in known.members(name)[:1]]
    written = report.write_all(scale, shown, say)
    say(f"{len(written)} files in {paths.results(scale)} and {paths.figures(scale)}")


# -- the grid ---------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """The parameters of a configuration file, the grid included. Raises KitError naming what is wrong with it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KitError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no text, or too many digits
        raise KitError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise KitError(f"{path} must hold parameters, one 'name: value' a line")
    # Notebooks run in their own folder, so paths are absolute.
    return content | {name: absolute(content[name]) for name in PATHS if isinstance(content.get(name), str)}


def absolute(value: str) -> str:
    """A path, or several with commas between, in full; what does not exist here (a name on the hub) as it is."""
    entries = [entry.strip() for entry in ([value] if os.path.exists(value) else value.split(","))]
    return ",".join(str(Path(entry).resolve()) if entry and os.path.exists(entry) else entry for entry in entries)


def cells(
    parameters: Mapping[str, Any], ratios: Sequence[int] | None = None, bases: Sequence[str] | None = None
) -> list[Config]:
    """The runs of a grid, each once, those first that others build on; a method is combined only with the axes that
    concern it. Raises KitError for an unknown parameter, an axis that is no list, an impossible run."""
    fixed, axes = {name: value for name, value in parameters.items() if name != GRID}, parameters.get(GRID)
    if not isinstance(axes, Mapping | None):
        raise KitError("grid must hold lists by parameter, such as 'method: [vanilla, ga]'")
    axes = dict(axes or {})
    axes |= {"forget_ratio": list(ratios)} if ratios else {}
    axes |= {"base_model": list(bases)} if bases else {}
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            raise KitError(f"grid: {name} must be a list of values, such as [{values}]")
    combinations = [fixed | dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    hyper_parameters = {name for one in combinations for name in _hyper_parameters(one)}
    check_names([*fixed, *axes], hyper_parameters)
    configs: dict[str, Config] = {}
    for one in combinations:
        config = Config.from_parameters(fitting(one, {*axes, *hyper_parameters}))
        other = configs.setdefault(config.run_id, config)
        if any(getattr(config, name) != getattr(other, name) for name in PATHS):  # a run id has file names, not folders
            raise KitError(f"two runs of the grid would be called {config.run_id}: give their files different names")
    return sorted(configs.values(), key=lambda config: (*FIRST, config.method).index(config.method))


def _hyper_parameters(parameters: Mapping[str, Any]) -> set[str]:
    """Names of those of the method, in its variant, and of the step after it."""
    method, after = parameters.get("method", "vanilla"), parameters.get("after", "")
    chosen = parameters.get("variant") or parameters.get("protocol")
    return set(setting_names(method, after, chosen if chosen in unlearning.variants(method) else "canonical"))


def fitting(parameters: Mapping[str, Any], optional: Iterable[str] = ()) -> dict[str, Any]:
    """The parameters without those of the ``optional`` names that do not concern the method: another method's
    hyper-parameters and variants; and for one that trains nothing the rates of unlearning. Its modality is none."""
    variants = unlearning.variants(parameters.get("method", "vanilla"))
    trains = any(variant.streams for variant in variants.values())
    own = _hyper_parameters(parameters) | {name for name in Config.model_fields if trains or "unlearn_" not in name}
    own -= set() if parameters.get("variant") in (None, *variants) else {"variant"}
    values = {name: value for name, value in parameters.items() if name in own or name not in optional}
    return values if trains else {**values, "modality": "none"}


def share(configs: list[Config], shard: str) -> list[Config]:
    """Every n-th run, from the i-th, of "i/n"."""
    index, _, number = shard.partition("/")
    if not (index.isdecimal() and number.isdecimal() and 1 <= int(index) <= int(number)):
        raise KitError(f"--shard must be I/N with I from 1 to N, such as 1/4, not {shard!r}")
    return configs[int(index) - 1 :: int(number)]


def notebook_for(config: Config) -> Path:
    """The notebook that makes a run: the method's own, which may lie beside a method's file outside the package, or
    the one on fine-tuning for a model that is not unlearned. Raises KitError unless there is one."""
    if config.method == YOURS:
        raise KitError("a model that was made elsewhere is asked by python -m mllmu_nb evaluate, not by a sweep")
    variants, places = unlearning.variants(config.method), {paths.notebooks()}
    if variants:
        folder = Path(inspect.getfile(variants[config.variant])).resolve().parent
        places |= set() if paths.PACKAGE in folder.parents else {folder}
    pattern = f"*_{config.method if variants else FINETUNE}.ipynb"
    notebooks = [path for place in places for path in place.glob(pattern)]
    if len(notebooks) != 1:
        count, where = len(notebooks), " and ".join(sorted(map(str, places)))
        raise KitError(f"there must be one notebook for method {config.method!r}, not {count}: {pattern} in {where}")
    return notebooks[0]


# -- the runs ---------------------------------------------------------------------------------------------------


def execute(configs: Sequence[Config], at_once: int) -> dict[str, str]:
    """Makes all runs; run id → reason of those that failed. Runs that need the same vanilla model wait for one another
    at its stage."""
    threads, waiting = max(1, (os.cpu_count() or 1) // at_once), list(configs)
    running: dict[Config, tuple[multiprocessing.process.BaseProcess, float]] = {}
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                config = waiting.pop(0)
                running[config] = start(config, threads), time.perf_counter()
                say(f"started            {config.run_id}")
            time.sleep(0.2)
            for config, (process, began) in list(running.items()):
                if process.exitcode is None:
                    continue
                del running[config]
                if reason := problem(config, process.exitcode):
                    failed[config.run_id] = f"{reason} (see {executed(config).with_suffix('.log')})"
                done, minutes = len(configs) - len(waiting) - len(running), (time.perf_counter() - began) / 60
                say(f"[{done}/{len(configs)}] {minutes:5.1f} min  {config.run_id}" + "  FAILED" * bool(reason))
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()
    return failed


def executed(config: Config) -> Path:
    """Where a run's executed notebook lies; what was printed meanwhile lies beside it, as .log."""
    return paths.cache() / "notebooks" / config.scale / f"{config.run_id}.ipynb"


def start(config: Config, threads: int) -> multiprocessing.process.BaseProcess:
    """A process in which papermill makes a run."""
    target = executed(config)
    target.parent.mkdir(parents=True, exist_ok=True)
    told = notebook_for(config), target, target.with_suffix(".log"), config.given(), threads
    process = multiprocessing.get_context("spawn").Process(target=execute_notebook, args=told)
    process.start()
    return process


def problem(config: Config, code: int) -> str:
    """What went wrong, in one line: the signal that ended the process, or the last line of its log, which is the error
    of the notebook's cell. "" where the run is finished."""
    if code < 0:
        return f"ended by signal {-code} ({signal.strsignal(-code)}), {MEMORY}"
    if code == 0:
        made = pipeline.finished(config)
        return "" if made else "the notebook came to its end without making the run, or code was changed meanwhile"
    log = executed(config).with_suffix(".log").read_text(encoding="utf-8", errors="replace")
    last = log.strip().split("\n")[-1]
    return f"its kernel was killed, {MEMORY}" if "DeadKernelError" in last else last or "its log is empty"
