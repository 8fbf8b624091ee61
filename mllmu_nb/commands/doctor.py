"""``python -m mllmu_nb doctor configs/paper-llava.yaml``: what would stop the configuration's runs, before they start.

No weights are loaded and nothing is trained or asked: it takes seconds, most of them for reading the people. The hub is
asked only for what has to come from it and is not in the cache; whether there is a token is said, the token never.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from mllmu_nb import paths, pinning, pipeline, provenance
from mllmu_nb.commands import sweep
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import Conversation
from mllmu_nb.errors import KitError
from mllmu_nb.models import files

SUMMARY = "what is missing for a configuration's runs, before compute is spent"
OK, WARNING, PROBLEM = "ok", "warning", "problem"
WIDTH = 120
GIB = 2**30
TIGHT = 0.8  # share of the memory above which the estimate is too close to it
PATIENCE = 5  # seconds that the hub is given to answer
ANSWERS = 2**22  # bytes of a run's answers and records, rounded up
KERNEL = "python3"  # the name in the notebooks' metadata


class Finding(NamedTuple):
    """What a check says: a verdict, what is there, and what to do about it."""

    verdict: str
    text: str
    advice: str = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="configuration file, such as configs/paper-llava.yaml")


def main(options: argparse.Namespace) -> int:
    """Prints the table. 1 when there is a problem, else 0; KitError for a configuration that cannot be read."""
    configs = sweep.cells(sweep.read(options.config))
    text = f"{len(configs)} runs, scale {configs[0].scale}, {configs[0].base_model}"
    findings = {"configuration": Finding(OK, text), **{name(check): examine(check, configs) for check in CHECKS}}
    print(table(findings))
    verdicts = [finding.verdict for finding in findings.values()]
    print(f"{verdicts.count(PROBLEM)} problems, {verdicts.count(WARNING)} warnings")
    return 1 if PROBLEM in verdicts else 0


def examine(check, configs: Sequence[Config]) -> Finding:
    """What ``check`` says about the runs ``configs``; an error of any kind is a problem."""
    try:
        return check(configs)
    except Exception as error:
        return Finding(PROBLEM, " ".join(str(error).split())[:500] or type(error).__name__)


def name(check) -> str:
    return check.__name__.replace("_", " ")


def table(findings: dict[str, Finding]) -> str:
    """The findings as aligned text: verdict, what was looked at, what is there, and on the next line what to do."""
    wide = max(map(len, findings))
    lines = []
    for what, finding in findings.items():
        start = f"{finding.verdict:8} {what:{wide}}  "
        rest = " " * len(start)
        lines += textwrap.wrap(finding.text, WIDTH, initial_indent=start, subsequent_indent=rest)
        advice = f"-> {finding.advice}" if finding.advice else ""
        lines += textwrap.wrap(advice, WIDTH, initial_indent=rest, subsequent_indent=f"{rest}   ")
    return "\n".join(lines)


# -- the machine ------------------------------------------------------------------------------------------------


def versions(configs: Sequence[Config]) -> Finding:
    """Whether every dependency is there in a version that the kit takes, and whether it is the tested one."""
    from packaging.requirements import Requirement

    lock = paths.checkout() / "requirements.lock"
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.is_file() else []
    pins = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    tested = {pin.name: str(pin.specifier).lstrip("=") for pin in pins if not pin.marker or pin.marker.evaluate()}
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
        elif tested.get(needed.name, version) != version:
            untested.append(f"{needed.name} {version} (tested: {tested[needed.name]})")
    if wrong:
        return Finding(PROBLEM, "; ".join(wrong), "run `make env`, or install with -c requirements.lock")
    if untested:
        return Finding(WARNING, "; ".join(untested), "scores may differ in the last digits from the reference")
    return Finding(OK, ", ".join(" ".join(pair) for pair in provenance.versions().items()))


def device(configs: Sequence[Config]) -> Finding:
    """What the runs are computed on."""
    import torch

    machine, gpu = provenance.machine(), torch.cuda.is_available()
    text = machine["device"] if gpu else f"{machine['device']}, {machine['cpu']}, {os.cpu_count()} cores"
    if configs[0].scale != "miniature" and not gpu:
        return Finding(PROBLEM, text, "the 7B models need a GPU: on a CPU a run takes weeks")
    if gpu and not torch.cuda.is_bf16_supported():
        return Finding(PROBLEM, f"{text}, without bfloat16", "take a GPU of the year 2020 or later")
    return Finding(OK, text)


def bits(configs: Sequence[Config]) -> Finding:
    """Whether this machine computes the very numbers that others with AVX2 do."""
    machine = provenance.machine()
    chosen = ", ".join(f"{variable}={value}" for variable, value in machine["bits"].items() if value)
    text = f"{machine['capability']} kernels, {chosen or 'nothing is set'}"
    if pinning.pinned() or not machine["device"].startswith("cpu"):
        return Finding(OK, text)
    advice = f"expect scores within the reference's intervals; on x86 leave {', '.join(machine['bits'])} unset"
    return Finding(WARNING, f"not pinned: {text}", advice)


def memory(configs: Sequence[Config]) -> Finding:
    """The memory against what the most demanding of the runs needs."""
    import psutil
    import torch

    gpu = torch.cuda.is_available()
    needed, made_of = most_needed(configs, gpu)
    there = torch.cuda.get_device_properties(0).total_memory if gpu else psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    if not gpu and limit.is_file() and limit.read_text().strip().isdigit():
        there = min(there, int(limit.read_text()))
    text = f"about {needed / GIB:.1f} GiB needed ({made_of}); {there / GIB:.1f} GiB there"
    if needed > there:
        return Finding(PROBLEM, text, "take a device with more; fewer shots need less while questions are asked")
    if needed > TIGHT * there:
        return Finding(WARNING, text, "the estimate leaves out an allocator's reserve: it may not fit")
    return Finding(OK, text)


def most_needed(configs: Sequence[Config], gpu: bool) -> tuple[int, str]:
    """Bytes that the most demanding of the runs needs, and what they are made of."""
    from mllmu_nb.models.memory import LIBRARIES

    model = _estimate(configs[0], gpu)
    asking = model.answering(pipeline.EVAL_BATCH[configs[0].scale], max(config.shots for config in configs))
    recipes = [(c.training, c.adaptation == "full", "") for c in configs if c.method != "base"]
    recipes += [(c.unlearning, False, c.objective.trains) for c in configs if c.trains]
    trainings = [model.training(*one) for number, one in enumerate(recipes) if one not in recipes[:number]]
    most = max([asking, *trainings], key=lambda need: need.most)
    text = f"{most.parameters:,} parameters {most.weights / GIB:.1f}"
    if most.trained:
        text += f", {most.trained:,} trained with their states {most.states / GIB:.1f}"
    text += f", estimated: kept for the gradient {most.kept / GIB:.1f}, or keys and values {asking.cache / GIB:.1f}"
    return most.most, f"{text}, libraries {LIBRARIES / GIB:.1f}"


def _estimate(config: Config, gpu: bool):
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


# -- people, base model and hub ---------------------------------------------------------------------------------


def people(configs: Sequence[Config]) -> Finding:
    """The people of every ratio and draw: read or generated, which checks their schema, and their hash."""
    forgotten = []
    for config in {tuple(getattr(config, name) for name in pipeline.DATA): config for config in configs}.values():
        if remote := _remote(config):
            return Finding(OK, f"{', '.join(remote)}: read, and their schema checked, when they are downloaded")
        known = pipeline.population(config)
        forgotten.append(f"{len(known.forget_ids)} to be forgotten at {config.forget_ratio} %")
    kinds = ", ".join(f"{len(known.of_kind(kind))} {kind}" for kind in ("fictitious", "pool", "celebrity"))
    text = f"{kinds}; {', '.join(forgotten)}; hash {pipeline.data_hash(config)}"
    if odd := known.notes.get("schema"):
        return Finding(WARNING, f"{text}; {'; '.join(odd)}", "nothing that a run reads is concerned")
    return Finding(OK, text)


def _remote(config: Config) -> list[str]:
    """The data sources of ``config`` that are names on the hub."""
    sources = [part.strip() for part in config.data_source.split(",") if part.strip()]
    return [source for source in sources if not os.path.exists(os.path.expanduser(source))]


def base_model(configs: Sequence[Config]) -> Finding:
    """Whether it is whole, unaltered and of the right family, by its files alone."""
    config, source = configs[0], pipeline.base_source(configs[0])
    config.family.render(Conversation(()), "", "")
    if config.scale == "miniature":
        files.check_shipped(Path(source))
    if size := _download_size(config):
        return Finding(OK, f"{source}, from the hub: about {size / GIB:.0f} GiB to download, not in the cache yet")
    if not Path(source).is_dir():
        return Finding(OK, f"{source}, in the hub's cache")
    files.check_model(Path(source), config.base_model)
    return Finding(OK, f"{Path(source).name}, hash {pipeline.base_hash(config)}")


def _download_size(config: Config) -> int:
    """Bytes of the base model in half precision, 0 where it need not be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    from mllmu_nb.models.memory import Estimate

    source, names = pipeline.base_source(config), ("config.json", "model.safetensors.index.json")
    if config.scale == "miniature" or Path(source).is_dir():
        return 0
    if all(isinstance(try_to_load_from_cache(source, name), str) for name in names):
        return 0
    return 2 * Estimate(config.family.published_shape(), element=2, eager=False).parameters


def hub(configs: Sequence[Config]) -> Finding:
    """Whether the hub answers for what has to come from it, and whether there is a token."""
    from huggingface_hub import HfApi, get_token

    wanted = {pipeline.base_source(configs[0]): "model"} if _download_size(configs[0]) else {}
    for config in configs:  # the people are a data set, their training splits are kept as a model
        wanted |= {source: "model" if number else "dataset" for number, source in enumerate(_remote(config))}
    if not wanted:
        return Finding(OK, "not needed")
    token = get_token()
    api, shown = HfApi(os.environ.get("HF_ENDPOINT"), token), "a token is set" if token else "no token is set"
    for source, kind in wanted.items():
        try:
            api.repo_info(source, repo_type=kind, timeout=PATIENCE)
        except Exception as error:  # of the network, the hub or the name: several libraries' own kinds
            advice = "check the spelling, HF_TOKEN and HF_ENDPOINT, or name folders by base_path and data_source"
            return Finding(PROBLEM, f"{source}: {str(error).splitlines()[0]}; {shown}", advice)
    return Finding(OK, f"{', '.join(wanted)} can be had; {shown}")


# -- notebooks and folders --------------------------------------------------------------------------------------


def kernel(configs: Sequence[Config]) -> Finding:
    """Whether the notebooks' kernel exists and is of this very Python."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    advice = f"`{Path(sys.executable).name} -m ipykernel install --sys-prefix --name {KERNEL}` in this environment"
    try:
        command = KernelSpecManager().get_kernel_spec(KERNEL).argv[0]
    except NoSuchKernel:
        return Finding(PROBLEM, f"there is no Jupyter kernel {KERNEL}", advice)
    # a bare "python" is started as this one; an environment's python is most often a link to one that several
    # environments share, so folders are compared
    command = sys.executable if command in ("python", "python3") else shutil.which(command)
    if command is None or Path(command).absolute().parent != Path(sys.executable).absolute().parent:
        return Finding(WARNING, f"{KERNEL} runs another Python than this one", advice)
    return Finding(OK, f"{KERNEL}, of this Python")


def disk(configs: Sequence[Config]) -> Finding:
    """Free space against the models, adapters and answers that the runs leave, and a base model to be downloaded."""
    model, recipe = _estimate(configs[0], gpu=False), configs[0].training
    finetuned = model.parameters if configs[0].adaptation == "full" else model.trained(recipe, full=False)
    numbers = finetuned * len({config.method == "oracle" for config in configs})  # vanilla and the oracle
    numbers += sum(model.trained(c.unlearning, False, c.objective.trains) for c in configs if c.trains)
    download = _download_size(configs[0])
    needed = 2 * (4 * numbers + len(configs) * ANSWERS) + download  # each is written aside first
    free = shutil.disk_usage(next(place for place in (paths.root(), *paths.root().parents) if place.exists())).free
    included = ", the download among them," if download else ""
    text = f"about {needed / GIB:.1f} GiB needed{included} and {free / GIB:.1f} GiB free"
    advice = "free some, or set MLLMU_NB_OUT (and HF_HOME) to another disk"
    return Finding(PROBLEM, text, advice) if needed > free else Finding(OK, text)


def folders(configs: Sequence[Config]) -> Finding:
    """Whether results, figures and the cache can be written."""
    for folder in (pipeline.run_folder(configs[0]).parent, paths.figures(configs[0].scale), paths.cache()):
        paths.writable(folder)
    return Finding(OK, f"results, figures and cache can be written under {paths.root()}")


CHECKS = (versions, device, bits, memory, people, base_model, hub, kernel, disk, folders)
