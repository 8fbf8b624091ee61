"""``python -m mllmu_nb doctor CONFIG``: what would stop the configuration's runs, in seconds, before they start.

A check takes the runs and returns a :class:`Result`. None loads weights; the hub is asked only for what has to be
downloaded; whether there is a token is printed, never the token.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from packaging.requirements import Requirement

from mllmu_nb import paths, pinning, pipeline, provenance
from mllmu_nb.commands import sweep
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.models.files import check_model

SUMMARY = "what is missing for a configuration's runs, before compute is spent"
EXAMPLES = ("doctor configs/paper-llava.yaml",)
OK, WARNING, PROBLEM = "ok", "warning", "problem"
GIB = 2**30
TIGHT = 0.8  # share of the memory above which the estimate is too close to it
TIMEOUT = 5  # seconds that the hub is given to answer
ANSWERS = 2**22  # bytes of a run's answers and records, rounded up
KERNEL = "python3"  # the name in the notebooks' metadata

Configs = Sequence[Config]


class Result(NamedTuple):
    """What a check says: a verdict, the state of things, and what to do about it."""

    verdict: str
    text: str
    advice: str = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="configuration file, such as configs/paper-llava.yaml")


def main(options: argparse.Namespace) -> int:
    """Prints a line a check. 1 when there is a problem, else 0; KitError for a configuration that cannot be read."""
    configs = sweep.cells(sweep.read(options.config))
    verdicts = []
    for check in CHECKS:
        result = examine(check, configs)
        print(lines(check.__name__, result))
        verdicts.append(result.verdict)
    print(f"{verdicts.count(PROBLEM)} problems, {verdicts.count(WARNING)} warnings")
    return 1 if PROBLEM in verdicts else 0


def examine(check: Callable[[Configs], Result], configs: Configs) -> Result:
    """What ``check`` returns for the runs; an error of any kind is a problem."""
    try:
        return check(configs)
    except Exception as error:
        return Result(PROBLEM, " ".join(str(error).split())[:500] or type(error).__name__)


def lines(name: str, result: Result) -> str:
    """Verdict, name and text, and below what to do; aligned and wrapped."""
    start = f"{result.verdict:8} {name:8}  "
    rest = " " * len(start)
    wrapped = textwrap.wrap(result.text, 120, initial_indent=start, subsequent_indent=rest)
    advice = f"-> {result.advice}" if result.advice else ""
    return "\n".join(wrapped + textwrap.wrap(advice, 120, initial_indent=rest, subsequent_indent=f"{rest}   "))


# -- the machine ------------------------------------------------------------------------------------------------


def versions(configs: Configs) -> Result:
    """Whether every dependency is there in a version that the kit takes, and whether it is the tested one."""
    lock = paths.checkout() / "requirements.lock"
    text = lock.read_text(encoding="utf-8") if lock.is_file() else ""
    pins = [Requirement(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    tested = {pin.name: pin.specifier for pin in pins if not pin.marker or pin.marker.evaluate()}
    wrong, untested = [], []
    for needed in map(Requirement, metadata.requires("mllmu-nb") or []):
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{needed.name} is missing")
            continue
        if not needed.specifier.contains(version, prereleases=True):
            wrong.append(f"{needed.name} {version} (needs {needed.specifier})")
        elif version not in tested.get(needed.name, [version]):
            untested.append(f"{needed.name} {version} (tested: {tested[needed.name]})")
    if wrong:
        return Result(PROBLEM, "; ".join(wrong), "run `make env`, or install with -c requirements.lock")
    if untested:
        return Result(WARNING, "; ".join(untested), "scores may differ in the last digits from the reference")
    return Result(OK, ", ".join(map(" ".join, provenance.versions().items())))


def device(configs: Configs) -> Result:
    """What the runs are computed on, and whether to the bit as on other machines with AVX2."""
    machine, gpu = provenance.machine(), torch.cuda.is_available()
    variables = ", ".join(f"{name}={value}" for name, value in machine["bits"].items() if value)
    text = (
        f"{machine['device']}, {machine['cpu']}, {os.cpu_count()} cores, {machine['capability']} kernels, {variables}"
    )
    if configs[0].scale != "miniature" and not gpu:
        return Result(PROBLEM, text, "the 7B models need a GPU: on a CPU a run takes weeks")
    if gpu and not torch.cuda.is_bf16_supported():
        return Result(PROBLEM, f"{text}, without bfloat16", "take a GPU of the year 2020 or later")
    if not gpu and not pinning.pinned():
        advice = f"expect scores within the reference's intervals; on x86 leave {', '.join(machine['bits'])} unset"
        return Result(WARNING, f"not pinned: {text}", advice)
    return Result(OK, text)


def memory(configs: Configs) -> Result:
    """The memory against what the most demanding of the runs needs."""
    gpu = torch.cuda.is_available()
    total = torch.cuda.get_device_properties(0).total_memory if gpu else psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    if not gpu and limit.is_file() and limit.read_text().strip().isdigit():
        total = min(total, int(limit.read_text()))
    need = most_memory(configs, gpu)
    share, listed = sum(need.values()) * GIB / total, ", ".join(f"{what} {size:.1f}" for what, size in need.items())
    text = f"about {sum(need.values()):.1f} GiB needed ({listed}); {total / GIB:.1f} GiB there"
    advice = "take a device with more: the estimate leaves out an allocator's reserve; fewer shots need less"
    return Result(OK, text) if share <= TIGHT else Result(WARNING if share <= 1 else PROBLEM, text, advice)


def most_memory(configs: Configs, gpu: bool) -> dict[str, float]:
    """GiB that the most demanding of the runs needs, by what they hold."""
    model = _estimate(configs[0], gpu)
    needs = [model.answering(pipeline.EVAL_BATCH[configs[0].scale], max(config.shots for config in configs))]
    needs += [model.training(c.training, c.adaptation == "full") for c in configs if c.method != "base"]
    needs += [model.training(c.unlearning, False, c.objective.trains) for c in configs if c.trains]
    return max(needs, key=lambda need: sum(need.values()))


def _estimate(config: Config, gpu: bool = False):
    """Of the base model, by its configuration from its folder or the hub's cache, else as it was published."""
    from transformers import AutoConfig

    from mllmu_nb.models.memory import Estimate

    source, miniature = pipeline.base_source(config), config.scale == "miniature"
    try:
        shape = AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        if source != config.family.hub:
            raise KitError(f"unknown, for the shape of {source} cannot be read: {str(error).splitlines()[0]}") from None
        shape = config.family.published_shape()
    return Estimate(shape, element=2 if gpu and not miniature else 4, eager=miniature)


def disk(configs: Configs) -> Result:
    """Free space against the models, adapters and answers that the runs leave, and a base model to be downloaded."""
    model, first = _estimate(configs[0]), configs[0]
    numbers = sum(model.trained(c.unlearning, False, c.objective.trains) for c in configs if c.trains)
    finetuned = model.parameters if first.adaptation == "full" else model.trained(first.training, full=False)
    numbers += finetuned * len({config.method == "oracle" for config in configs})  # vanilla and the oracle
    needed = 2 * (4 * numbers + len(configs) * ANSWERS) + download_size(first)  # each is written aside first
    free = shutil.disk_usage(next(place for place in (paths.root(), *paths.root().parents) if place.exists())).free
    text = f"about {needed / GIB:.1f} GiB needed, downloads included, and {free / GIB:.1f} GiB free"
    advice = "free some, or set MLLMU_NB_OUT (and HF_HOME) to another disk"
    return Result(PROBLEM, text, advice) if needed > free else Result(OK, text)


def kernel(configs: Configs) -> Result:
    """Whether the notebooks' kernel exists and is of this very Python."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    advice = f"`{Path(sys.executable).name} -m ipykernel install --sys-prefix --name {KERNEL}` in this environment"
    try:
        command = KernelSpecManager().get_kernel_spec(KERNEL).argv[0]
    except NoSuchKernel:
        return Result(PROBLEM, f"there is no Jupyter kernel {KERNEL}", advice)
    # jupyter starts a bare "python" as this one; the Python of an environment is a link that several may share
    command = sys.executable if command in ("python", "python3") else command
    if Path(shutil.which(command) or "none").absolute().parent != Path(sys.executable).absolute().parent:
        return Result(WARNING, f"{KERNEL} runs another Python than this one", advice)
    return Result(OK, f"{KERNEL}, of this Python")


# -- what the runs read and write -------------------------------------------------------------------------------


def people(configs: Configs) -> Result:
    """The people of every ratio and draw: read or generated, which checks their schema, and their hash."""
    if remote := _remote(configs[0]):
        return Result(OK, f"{', '.join(remote)}: read, and their schema checked, when they are downloaded")
    distinct = list({tuple(getattr(config, name) for name in pipeline.DATA): config for config in configs}.values())
    known = [pipeline.population(config) for config in distinct]
    kinds = ", ".join(f"{len(known[0].of_kind(kind))} {kind}" for kind in ("fictitious", "pool", "celebrity"))
    forget = [
        f"{len(p.forget_ids)} to be forgotten at {c.forget_ratio} %" for c, p in zip(distinct, known, strict=True)
    ]
    text = f"{kinds}; {', '.join(forget)}; hash {pipeline.data_hash(distinct[0])}"
    return Result(OK, text)


def inputs(configs: Configs) -> Result:
    """Base model, worked examples and folders, as a sweep checks them before it starts."""
    source, size = pipeline.base_source(configs[0]), download_size(configs[0])
    for config in configs:
        if not _remote(config):
            pipeline.check(config)
    text = f"{len(configs)} runs, scale {configs[0].scale}, under {paths.root()}; base model {Path(source).name}"
    if Path(source).is_dir():
        check_model(Path(source), configs[0].base_model)
        return Result(OK, f"{text}, hash {pipeline.base_hash(configs[0])}")
    return Result(OK, f"{text}, " + (f"about {size / GIB:.0f} GiB to download" if size else "in the hub's cache"))


def hub(configs: Configs) -> Result:
    """Whether the hub answers for what has to come from it, and whether there is a token."""
    from huggingface_hub import HfApi, get_token

    wanted = {pipeline.base_source(configs[0]): "model"} if download_size(configs[0]) else {}
    for config in configs:  # the people are a data set, their training splits are kept as a model
        wanted |= {source: "model" if number else "dataset" for number, source in enumerate(_remote(config))}
    if not wanted:
        return Result(OK, "not needed")
    api, token = (
        HfApi(os.environ.get("HF_ENDPOINT"), get_token()),
        "a token is set" if get_token() else "no token is set",
    )
    for source, kind in wanted.items():
        try:
            revision = configs[0].base_revision if source == pipeline.base_source(configs[0]) else ""
            api.repo_info(source, repo_type=kind, revision=revision or None, timeout=TIMEOUT)
        except Exception as error:  # of the network, the hub or the name: several libraries' own kinds
            advice = "check the spelling, HF_TOKEN and HF_ENDPOINT, or name folders by base_path and data_source"
            return Result(PROBLEM, f"{source}: {str(error).splitlines()[0]}; {token}", advice)
    return Result(OK, f"{', '.join(wanted)} can be downloaded; {token}")


def _remote(config: Config) -> list[str]:
    """The data sources of ``config`` that are names on the hub."""
    sources = [source.strip() for source in config.data_source.split(",") if source.strip()]
    return [source for source in sources if not os.path.exists(os.path.expanduser(source))]


def download_size(config: Config) -> int:
    """Bytes of the base model in half precision, 0 where it need not be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    source, names = pipeline.base_source(config), ("config.json", "model.safetensors.index.json")
    if config.scale == "miniature" or Path(source).is_dir():
        return 0
    revision = config.base_revision or None
    cached = all(isinstance(try_to_load_from_cache(source, name, revision=revision), str) for name in names)
    return 0 if cached else 2 * _estimate(config).parameters


CHECKS = (versions, device, memory, disk, kernel, people, inputs, hub)
