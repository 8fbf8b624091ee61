"""``mllmu-nb sweep CONFIG``: a grid of runs, each one notebook in a process of its own. Finished runs are skipped, so a
sweep that was stopped continues where it was."""

import argparse
import inspect
import itertools
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from mllmu_nb import inputs, paths, pipeline, unlearning
from mllmu_nb.after import settings_of
from mllmu_nb.commands import warm
from mllmu_nb.config import GRID, PATHS, YOURS, Config, check_names, setting_names, variant_of
from mllmu_nb.errors import KitError, choose
from mllmu_nb.processes import launched, machine_cores, machine_memory
from mllmu_nb.reporting.runs import MODEL, label
from mllmu_nb.stages import read_json

EXAMPLES = (
    "sweep configs/miniature.yaml",
    "sweep configs/miniature.yaml --ratios 5 10 15",
    "sweep configs/miniature.yaml --shard 1/4",
)
FIRST = ("vanilla", "oracle", "base")  # the others need vanilla's model, so it runs first, together with an oracle
RUN_MEMORY = 2 * 2**30  # bytes of a miniature's run, rounded up
MEMORY = "most often for want of memory: try fewer --jobs"

say = partial(print, flush=True)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="configuration file, such as configs/miniature.yaml")
    about = "forget ratios in per cent, in place of the grid's"
    parser.add_argument("--ratios", type=int, nargs="+", metavar="R", help=about)
    parser.add_argument("--bases", nargs="+", metavar="FAMILY", help="families of base models, in place of base_model")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="notebooks at a time (miniature: by cores and memory, else 1)"
    )
    parser.add_argument("--shard", metavar="I/N", help="only every N-th run, from the I-th: the grid over N machines")


def main(options: argparse.Namespace) -> int:
    """Make the runs that are not finished, then the report. Returns 0 if all are finished afterwards, else 1."""
    if options.jobs is not None and options.jobs < 1:
        raise KitError(f"--jobs must be at least 1, not {options.jobs}")
    if launched("WORLD_SIZE", 1) > 1:
        raise KitError("a sweep starts its own processes: run one notebook by accelerate launch, then sweep without it")
    every = cells(read(options.config), options.ratios, options.bases)
    configs = share(every, options.shard) if options.shard else every
    if not configs:
        say(f"--shard {options.shard}: nothing to do, for the grid has {len(every)} runs")
        return 0
    notebooks, began, names = {config: notebook_for(config) for config in configs}, time.perf_counter(), labels(configs)
    inputs.check_comparable(configs)
    for config in configs:
        inputs.check(config)
        inputs.fetch(config)
    waiting = [Job(config, notebook) for config, notebook in notebooks.items() if not pipeline.finished(config)]
    for config in filter(pipeline.finished, every if waiting else ()):  # new runs will be compared with these
        pipeline.check_commits(config, inputs.run_folder(config))
    at_once = options.jobs or usual_jobs(configs)
    say(f"{len(configs)} runs, {len(configs) - len(waiting)} of them finished already, {at_once} at a time")
    say(f"  people: {inputs.population(configs[0]).counted()}")
    for run_id, name in names.items():
        say(f"  {run_id:32}  {name}")
    if waiting:
        say(f"executed notebooks, with figures: {waiting[0].executed.parent}")
    failed = execute(waiting, at_once)
    for run_id, reason in failed.items():
        print(f"failed: {run_id} ({names[run_id]}): {reason}", file=sys.stderr, flush=True)
    finished = [config for config in configs if pipeline.finished(config)]
    for config in {inputs.data_hash(config): config for config in finished}.values():
        inputs.write_people(config, paths.people(paths.results(config.scale)))
    for scale, config in {config.scale: config for config in reversed(finished)}.items():
        write_report(scale, config)
    say("minutes:  training  answers")
    for config in finished:
        record = read_json(inputs.run_folder(config) / "train.json")
        beyond = record.get("beyond_context", 0)
        more = f"  ({beyond} prompts exceed the model's context)" if beyond else ""
        say(f"{record['seconds'] / 60:18.1f} {record['evaluation_seconds'] / 60:8.1f}  {config.run_id}{more}")
    say(f"altogether {(time.perf_counter() - began) / 60:.1f} min")
    return 1 if failed else 0


def usual_jobs(configs: Sequence[Config]) -> int:
    """How many notebooks are executed at a time, unless the user says."""
    if any(config.scale != "miniature" for config in configs):
        return 1  # a 7B model fills its GPU
    # one more than there are cores: it starts while the others occupy them
    return max(1, min(machine_cores() + 1, machine_memory() // RUN_MEMORY))


def write_report(scale: str, config: Config) -> None:
    """Write scores, tables and figures of all finished runs of a scale, with portraits of the people of ``config``."""
    from mllmu_nb.reporting import report

    began, known = time.perf_counter(), inputs.population(config)
    shown = [person for name in ("forget", "retain", "celebrity") for person in known.members(name)[:1]]
    written = report.write_all(scale, [*shown, *known.profiles.values()], say)
    minutes = (time.perf_counter() - began) / 60
    say(f"{len(written)} files in {paths.results(scale)} and {paths.figures(scale)}: {minutes:.1f} min")


# -- the grid ---------------------------------------------------------------------------------------------------


class Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice in one mapping (YAML would take the last one), and numbers like 010 and 1:30
    (YAML would read 8 and 90)."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in names[:number]:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node):
        number = node.tag.endswith((":int", ":float"))
        if number and len(node.value) > 100:
            raise yaml.MarkedYAMLError(problem="a number of over 100 characters", problem_mark=node.start_mark)
        if number and re.match(r"[-+]?0[0-7_]+$|.*:", node.value):
            problem = f"{node.value} is a number to base 8 or 60: write it to base 10, or put text in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return super().construct_scalar(node)


def read(path: Path) -> dict[str, Any]:
    """The parameters of a configuration file, the grid included. Raises KitError naming what is wrong with it."""
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader)
    except OSError as error:
        raise KitError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no text, or too many digits
        raise KitError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise KitError(f"{path} must contain parameters, one 'name: value' per line")
    axes = content.get(GRID)
    return in_full(content) | ({GRID: in_full(axes)} if isinstance(axes, dict) else {})


def in_full(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with absolute paths, because notebooks run in their own folder."""
    return {**parameters, **{name: absolute(parameters[name]) for name in PATHS if name in parameters}}


def absolute(value: Any) -> Any:
    """One or several paths (with commas between) as absolute paths, or a list of these; one that does not exist (a hub
    name) stays, and so does what is no text."""
    if isinstance(value, list):
        return [absolute(one) for one in value]
    if not isinstance(value, str):
        return value
    entries = [entry.strip() for entry in ([value] if os.path.exists(value) else value.split(","))]
    named = ",".join(os.path.abspath(entry) if entry and os.path.exists(entry) else entry for entry in entries)
    return named or value  # blanks are refused when parameters are checked


def cells(parameters: Mapping[str, Any], ratios: Sequence[int] = (), bases: Sequence[str] = ()) -> list[Config]:
    """The runs of a grid, each once; those that others depend on come first. A method is combined only with the axes
    that concern it. Raises KitError for an unknown parameter, an axis that is not a list of single values, or an
    impossible run."""
    fixed, axes = {name: value for name, value in parameters.items() if name != GRID}, parameters.get(GRID)
    if not isinstance(axes, Mapping | None):
        raise KitError("grid must contain a list for each parameter, such as 'method: [vanilla, ga]'")
    given = {"forget_ratio": ratios, "base_model": bases}
    axes = dict(axes or {}) | {name: list(values) for name, values in given.items() if values}
    many = (list, dict, set, tuple)
    for name, values in axes.items():
        if not isinstance(values, list) or not values or any(isinstance(value, many) for value in values):
            example = "1, 2" if values is None or isinstance(values, many) else values
            raise KitError(f"grid: {name} must be a list of values, such as [{example}]"[:200])
    for name, value in fixed.items():
        if isinstance(value, many):
            inside = next(iter(value.items()), None) if isinstance(value, dict) else None
            advice = "write '{}: {}' by itself".format(*inside) if inside else "put a list of values under grid"
            raise KitError(f"{name} must be one value, not {value}: {advice}"[:200])
    combinations = [fixed | dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    hyper_parameters = {name for one in combinations for name in hyper_parameters_of(one)}
    check_names([*fixed, *axes], hyper_parameters)
    # a variant is combined only with the methods that have it, so one that is misspelt would be left out silently
    known = sorted({name for method in unlearning.names() for name in unlearning.variants(method)})
    for variant in filter(None, axes.get("variant", ())):
        choose("variant", variant, known)
    configs: dict[str, Config] = {}
    for one in combinations:
        config = Config.from_parameters(fitting(one, {*axes, *hyper_parameters}))
        other = configs.setdefault(config.run_id, config)
        if any(getattr(config, name) != getattr(other, name) for name in PATHS):  # a run id has file names, not folders
            raise KitError(f"two runs of the grid would be called {config.run_id}: give their files different names")
    return sorted(configs.values(), key=lambda config: (*FIRST, config.method).index(config.method))


def hyper_parameters_of(parameters: Mapping[str, Any]) -> set[str]:
    """Names of the hyper-parameters of the method, in its variant, and of the step after it."""
    method, after = parameters.get("method", "vanilla"), parameters.get("after", "")
    return set(setting_names(method, after, variant_of(method, parameters.get("variant"), parameters.get("protocol"))))


def of_grid(parameters: Mapping[str, Any]) -> set[str]:
    """Names of the hyper-parameters of the methods and of the steps after them in the grid of a configuration, which
    may be fixed beside it."""
    axes = parameters.get(GRID)
    lists = [axes.get(name) if isinstance(axes, Mapping) else None for name in ("method", "after")]
    methods, steps = (values if isinstance(values, list) else [] for values in lists)
    known = {name for method in methods if unlearning.variants(method) for name in setting_names(method, "")}
    return known.union(*map(settings_of, steps))


def fitting(parameters: Mapping[str, Any], optional: Iterable[str] = ()) -> dict[str, Any]:
    """The parameters without the ``optional`` ones that do not concern the method: hyper-parameters and variants of
    other methods; if it trains nothing, the parameters of unlearning, and its modality is none."""
    variants = unlearning.variants(parameters.get("method", "vanilla"))
    trains = any(variant.streams for variant in variants.values())
    own = hyper_parameters_of(parameters) | {name for name in Config.model_fields if trains or "unlearn_" not in name}
    own -= set() if parameters.get("variant") in (None, *variants) else {"variant"}
    values = {name: value for name, value in parameters.items() if name in own or name not in optional}
    return values if trains else {**values, "modality": "none"}


def share(configs: list[Config], shard: str) -> list[Config]:
    """Every n-th run, from the i-th on, for the ``shard`` "i/n"."""
    try:
        index, number = map(int, shard.split("/"))
    except ValueError:
        raise KitError(f"--shard must be I/N, such as 1/4, not {shard!r}") from None
    if not 1 <= index <= number:
        raise KitError(f"--shard {shard}: the first number must be from 1 to the second")
    return configs[index - 1 :: number]


def labels(configs: Sequence[Config]) -> dict[str, str]:
    """Run id → the model's name in tables, and the parameters in which the runs differ."""
    parameters = {config.run_id: {**config.parameters(), **config.settings} for config in configs}
    shown: dict[str, list[str]] = {run_id: [label(*map(own.get, MODEL))] for run_id, own in parameters.items()}
    for name in dict.fromkeys(name for config in configs for name in config.given() if name not in MODEL):
        values = {run_id: own[name] for run_id, own in parameters.items() if own.get(name) is not None}
        for run_id, value in values.items() if len(set(map(str, values.values()))) > 1 else ():
            shown[run_id].append(f"{name} {value}")
    return {run_id: ", ".join(words) for run_id, words in shown.items()}


def notebook_for(config: Config) -> Path:
    """The notebook that makes a run: the method's own, also in the folder of a method's file outside the package, else
    the one on evaluation; for a model that is not unlearned, the one on fine-tuning. Raises KitError if there is none,
    or more than one."""
    if config.method == YOURS:
        raise KitError("evaluate a model that was made elsewhere with python -m mllmu_nb evaluate, not with a sweep")
    variants, places = unlearning.variants(config.method), {paths.notebooks()}
    if variants:
        folder = Path(inspect.getfile(variants[config.variant])).resolve().parent
        places |= set() if paths.PACKAGE in folder.parents else {folder}
    pattern = f"*_{config.method if variants else 'finetune'}.ipynb"
    notebooks = [path for place in places for path in place.glob(pattern)]
    if variants and not notebooks:
        notebooks = list(paths.notebooks().glob("*_evaluate.ipynb"))
    if len(notebooks) != 1:
        count, where = len(notebooks), " and ".join(sorted(map(str, places)))
        need = f"there must be one notebook for method {config.method!r}, not {count}: {pattern} in {where}"
        raise KitError(need if count else f"{need}. Run a sweep in a checkout of the kit, which has the notebooks")
    return notebooks[0]


# -- the runs ---------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One notebook to be executed for one run, with papermill in a process of its own."""

    config: Config
    notebook: Path
    process: BaseProcess | None = None
    began: float = 0.0

    def __post_init__(self):
        self.executed = paths.cache() / "notebooks" / self.config.scale / f"{self.config.run_id}.ipynb"
        self.log = self.executed.with_suffix(".log")
        given = self.config.method in ("base", "oracle") or self.config.vanilla_path
        # the folder of the vanilla model that the run starts from, if any
        self.vanilla = None if given else pipeline.finetuned(self.config).folder

    def start(self, threads: int) -> None:
        """Start papermill on the notebook, in the notebook's folder, with the parameters that were given."""
        self.executed.parent.mkdir(parents=True, exist_ok=True)
        self.executed.unlink(missing_ok=True)
        self.began = time.perf_counter()
        self.process = warm.start(self.notebook, self.executed, self.log, self.config.given(), threads)

    def problem(self) -> str:
        """What went wrong, in one line: the signal that ended the process, or the last line of its log. "" if the run
        is finished."""
        code = self.process.exitcode
        if code < 0:
            return f"ended by signal {-code} ({signal.strsignal(-code)})" + f", {MEMORY}" * (code == -9)
        if code == 0:
            made = pipeline.finished(self.config)
            return "" if made else "the notebook came to its end without making the run, or code was changed meanwhile"
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        last = text.strip().split("\n")[-1]
        return f"its kernel was killed, {MEMORY}" if "DeadKernelError" in last else last or "its log is empty"


def execute(jobs: Sequence[Job], at_once: int) -> dict[str, str]:
    """Run all ``jobs``. Returns run id → reason of failure. A job waits while another one makes its vanilla model."""
    threads = max(1, machine_cores() // max(1, min(at_once, len(jobs))))
    waiting, running = list(jobs), []
    failed: dict[str, str] = {}
    tried: Counter[Path] = Counter()  # the failed attempts to make a vanilla model
    try:
        while waiting or running:
            for job in [job for job in running if job.process.exitcode is not None]:
                running.remove(job)
                minutes, problem = (time.perf_counter() - job.began) / 60, job.problem()
                place = f"[{len(jobs) - len(waiting) - len(running)}/{len(jobs)}]"
                say(f"{place} {minutes:5.1f} min  {job.config.run_id}" + "  FAILED" * bool(problem))
                if problem:
                    shown = job.executed if job.executed.exists() else job.log
                    failed[job.config.run_id] = f"{problem} (see {shown})"
                if not problem or not job.vanilla or job.vanilla.is_dir():
                    continue
                tried[job.vanilla] += 1
                # another method's notebook may have failed before it came to vanilla
                if job.config.method == "vanilla" or tried[job.vanilla] > 1:
                    lost = [other for other in waiting if other.vanilla == job.vanilla]
                    waiting = [other for other in waiting if other not in lost]
                    reason = "not tried, since the vanilla model it starts from could not be made"
                    failed |= {other.config.run_id: reason for other in lost}
            being_made = {job.vanilla for job in running if job.vanilla and not job.vanilla.is_dir()}
            job = next((job for job in waiting if job.vanilla not in being_made), None)
            if job and len(running) < at_once:
                waiting.remove(job)
                job.start(threads)
                running.append(job)
                say(f"started            {job.config.run_id}")
            time.sleep(0.2)
    finally:
        for job in running:
            job.process.terminate()
        for job in running:
            job.process.join()
    return failed
