"""``python -m mllmu_nb doctor configs/paper-llava.yaml``: what would stop the configuration's runs, before they start.

Looks at versions, device, memory, people, base model, disk, hub, kernel and folders. No weights are loaded and nothing
is trained or asked: it takes seconds, most of them for reading the people. The hub is asked only for what has to come
from it and is not in the cache; whether there is a token is said, the token itself never.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mllmu_nb import paths, provenance, run
from mllmu_nb.commands import sweep
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError

SUMMARY = "what is missing for a configuration's runs, before compute is spent"
OK, WARNING, PROBLEM = "ok", "warning", "problem"
WIDTH = 120
GIB = 2**30
TIGHT = 0.8  # share of the memory above which the estimate is too close to it
PATIENCE = 5  # seconds that the hub is given to answer
ITEMS = 2**22  # bytes of a run's answers and records, rounded up
KERNEL = "python3"  # the name in the notebooks' metadata


@dataclass(frozen=True)
class Finding:
    """One line of the table: what was looked at, what was found, and what to do about it unless it is ok."""

    what: str
    verdict: str
    found: str
    advice: str = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="configuration file, such as configs/paper-llava.yaml")


def main(options: argparse.Namespace) -> int:
    """Prints the table. 1 when there is a problem, else 0; KitError for a configuration that cannot be read."""
    findings = list(examine(sweep.cells(sweep.read(options.config))))
    print(table(findings))
    counts = {verdict: sum(one.verdict == verdict for one in findings) for verdict in (PROBLEM, WARNING)}
    print(f"{counts[PROBLEM]} problems, {counts[WARNING]} warnings")
    return 1 if counts[PROBLEM] else 0


def examine(configs: Sequence[Config]) -> Iterator[Finding]:
    """Every finding about the runs ``configs``."""
    yield Finding("configuration", OK, f"{len(configs)} runs, scale {configs[0].scale}, {configs[0].base_model}")
    yield from versions()
    yield from device(configs)
    yield from people(configs)
    yield from base(configs[0])
    yield from hub(configs)
    yield kernel()
    yield disk(configs)
    yield from folders(configs[0].scale)


def table(findings: Sequence[Finding]) -> str:
    """The findings as aligned text: verdict, what was looked at, what was found, and on the next line what to do."""
    wide = max(len(one.what) for one in findings)
    lines = []
    for one in findings:
        start = f"{one.verdict:8} {one.what:{wide}}  "
        rest = " " * len(start)
        lines += textwrap.wrap(one.found, WIDTH, initial_indent=start, subsequent_indent=rest) or [start.rstrip()]
        if one.advice:
            lines += textwrap.wrap(f"-> {one.advice}", WIDTH, initial_indent=rest, subsequent_indent=f"{rest}   ")
    return "\n".join(lines)


# -- the machine ------------------------------------------------------------------------------------------------


def versions() -> Iterator[Finding]:
    """Whether every dependency is there in a version that the kit takes, and whether it is the tested one."""
    from packaging.requirements import Requirement

    try:
        stated = metadata.requires("mllmu-nb") or []
    except metadata.PackageNotFoundError:
        yield Finding("versions", PROBLEM, "mllmu-nb is not installed in this Python", "run `make env`")
        return
    wrong, others = [], []
    tested = _tested()
    for requirement in map(Requirement, stated):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _installed(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found or 'missing'} (needs {requirement.specifier or 'any'})")
        elif tested.get(requirement.name, found) != found:
            others.append(f"{requirement.name} {found} (tested: {tested[requirement.name]})")
    told = ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
    if wrong:
        yield Finding("versions", PROBLEM, "; ".join(wrong), "run `make env`, or install with -c requirements.lock")
    elif others:
        yield Finding("versions", WARNING, "; ".join(others), "scores may differ in the last digits from the reference")
    else:
        yield Finding("versions", OK, told)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _tested() -> dict[str, str]:
    """Package → version of the lock, as far as the checkout has one and its line holds for this machine."""
    from packaging.requirements import Requirement

    lock = paths.checkout() / "requirements.lock"
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.is_file() else []
    pins = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {pin.name: next(iter(pin.specifier)).version for pin in pins if pin.marker is None or pin.marker.evaluate()}


def device(configs: Sequence[Config]) -> Iterator[Finding]:
    """The device, and its memory against what the largest of the runs needs."""
    import torch

    gpu = torch.cuda.is_available()
    large = configs[0].scale != "miniature"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = provenance.device() if gpu else f"{provenance.device()}, {cores} cores"
    if large and not gpu:
        yield Finding("device", PROBLEM, told, "the 7B models need a GPU: on a CPU a run takes weeks")
    elif gpu and not torch.cuda.is_bf16_supported():
        yield Finding("device", PROBLEM, f"{told}, without bfloat16", "take a GPU of the year 2020 or later")
    else:
        yield Finding("device", OK, told)
    there = torch.cuda.get_device_properties(0).total_memory if gpu else memory()
    try:
        needed, parts = most_needed(configs, gpu)
    except KitError as error:
        yield Finding("memory", PROBLEM, str(error), "see the base model below")
        return
    found = f"about {needed / GIB:.1f} GiB needed ({parts}); {there / GIB:.1f} GiB there"
    if needed > there:
        yield Finding("memory", PROBLEM, found, "take a larger device, or fewer questions a step")
    elif needed > TIGHT * there:
        yield Finding("memory", WARNING, found, "the estimate leaves out an allocator's reserve: it may not fit")
    else:
        yield Finding("memory", OK, found)


def memory() -> int:
    """Bytes of main memory that this process may use: the machine's, or the limit of its container."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(found, int(text)) if text.isdigit() else found


def most_needed(configs: Sequence[Config], gpu: bool) -> tuple[int, str]:
    """Bytes that the most demanding of the runs needs, and what they are made of."""
    from mllmu_nb.models import memory as estimate

    shape = shape_of(configs[0])
    miniature = configs[0].scale == "miniature"
    options = {"element": 2 if gpu and not miniature else 4, "eager": miniature}
    answering = {"answering": run.EVAL_BATCH[configs[0].scale], "shots": max(config.shots for config in configs)}
    needs = [estimate.need(shape, **options, **answering)]
    seen = []
    for config in configs:
        recipes = [(config.training, config.adaptation == "full")] if config.method != "base" else []
        recipes += [(config.unlearning, False)] if config.trains else []
        for recipe, full in recipes:
            if (recipe, full) not in seen:
                seen.append((recipe, full))
                needs.append(estimate.need(shape, **options, **answering, recipe=recipe, full=full))
    most = max(needs, key=lambda need: need.most)
    told = f"{most.parameters:,} parameters {most.weights / GIB:.1f}"
    if most.trained:
        told += f", {most.trained:,} trained with their states {most.states / GIB:.1f}"
    told += f", estimated: kept for the gradient {most.kept / GIB:.1f}, or keys and values {most.cache / GIB:.1f}"
    return most.most, f"{told}, libraries {estimate.LIBRARIES / GIB:.1f}"


def shape_of(config: Config):
    """The transformers configuration of the base model: from its folder or the hub's cache, else as published."""
    from transformers import AutoConfig

    from mllmu_nb.models.files import HUB
    from mllmu_nb.models.memory import published_shape

    source = run.base_source(config)
    try:
        return AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        if source == HUB[config.base_model]:
            return published_shape(config.base_model)
        reason = str(error).splitlines()[0]
        raise KitError(f"unknown, for the shape of {source} cannot be read: {reason}") from None


# -- people and base model --------------------------------------------------------------------------------------


def people(configs: Sequence[Config]) -> Iterator[Finding]:
    """The people of every ratio and draw: read or generated, which checks their schema, and their hash."""
    told = []
    for config in {tuple(getattr(config, name) for name in run.DATA): config for config in configs}.values():
        remote = _remote(config)
        if remote:
            yield Finding(
                "people", OK, f"{', '.join(remote)}: read, and their schema checked, when they are downloaded"
            )
            return
        try:
            known = run.population(config)
        except KitError as error:
            yield Finding("people", PROBLEM, " ".join(str(error).split()), "mend the data, or name other people")
            return
        told.append(f"{len(known.forget_ids)} to be forgotten at {config.forget_ratio} %")
    kinds = ", ".join(f"{len(known.of_kind(kind))} {kind}" for kind in ("fictitious", "pool", "celebrity"))
    odd = known.notes.get("schema", [])
    found = f"{kinds}; {', '.join(told)}; hash {run.data_hash(config)}"
    if odd:
        yield Finding("people", WARNING, f"{found}; {'; '.join(odd)}", "nothing that a run reads is concerned")
    else:
        yield Finding("people", OK, found)


def base(config: Config) -> Iterator[Finding]:
    """The base model: whole, unaltered and of the right family, by its files alone."""
    from mllmu_nb.models import files

    source = run.base_source(config)
    try:
        run.check_family(config)
    except KitError as error:
        yield Finding("base model", PROBLEM, str(error), "see base_model in the configuration")
        return
    if config.scale == "miniature" or Path(source).is_dir():
        try:
            if config.scale == "miniature":
                files.verify_shipped(Path(source))
            else:
                files.check_whole(source, config.base_model)
        except KitError as error:
            yield Finding("base model", PROBLEM, str(error), "see base_path in the configuration")
            return
        yield Finding("base model", OK, f"{Path(source).name}, hash {run.base_hash(config)}")
    elif _cached(source):
        yield Finding("base model", OK, f"{source}, in the hub's cache")
    else:
        size = download_size(config) / GIB
        yield Finding(
            "base model", OK, f"{source}, from the hub: about {size:.0f} GiB to download, not in the cache yet"
        )


def download_size(config: Config) -> int:
    """Bytes of the base model on the hub, where it lies in half precision."""
    from mllmu_nb.models.memory import need, published_shape

    return need(published_shape(config.base_model), element=2, eager=False).weights


def _cached(source: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("config.json", "model.safetensors.index.json")
    return all(isinstance(try_to_load_from_cache(source, name), str) for name in names)


# -- the hub ----------------------------------------------------------------------------------------------------


def hub(configs: Sequence[Config]) -> Iterator[Finding]:
    """Whether the hub answers for what has to come from it, and whether there is a token. Nothing where nothing has."""
    wanted = {}
    for config in configs:
        source = run.base_source(config)
        if config.scale != "miniature" and not Path(source).is_dir() and not _cached(source):
            wanted[source] = "models"
        wanted |= {name: "datasets" if number == 0 else "models" for number, name in enumerate(_remote(config))}
    if not wanted:
        yield Finding("hub", OK, "not needed")
        return
    from huggingface_hub import constants, get_token

    token = get_token()
    yield Finding("hub token", OK, "there is one" if token else "none, and none is needed for what is public")
    if constants.is_offline_mode():
        advice = "unset it, or put the files into the cache first"
        yield Finding("hub", PROBLEM, f"HF_HUB_OFFLINE forbids to fetch {', '.join(wanted)}", advice)
        return
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    for name, kind in wanted.items():
        yield _asked(endpoint.rstrip("/"), name, kind, token)


def _asked(endpoint: str, name: str, kind: str, token: str | None) -> Finding:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{endpoint}/api/{kind}/{name}", headers=headers, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE):
            return Finding("hub", OK, f"{name} is there")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return Finding("hub", PROBLEM, f"{name}: {error.code}", "set HF_TOKEN to a token that may read it")
        if error.code == 404:
            return Finding("hub", PROBLEM, f"{name}: there is no such repository", "check the spelling")
        return Finding("hub", WARNING, f"{name}: the hub answers {error.code}", "try again later")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        advice = "name a mirror by HF_ENDPOINT, or a folder by base_path or data_source"
        return Finding("hub", PROBLEM, f"{name}: the hub cannot be reached ({reason})", advice)


def _remote(config: Config) -> list[str]:
    """The data sources of ``config`` that are names on the hub."""
    names = [name.strip() for name in config.data_source.split(",") if name.strip()]
    return [] if Path(config.data_source).exists() else [name for name in names if not Path(name).expanduser().exists()]


# -- notebooks and folders --------------------------------------------------------------------------------------


def kernel() -> Finding:
    """Whether the notebooks' kernel exists and is of this very Python."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    advice = f"`{Path(sys.executable).name} -m ipykernel install --sys-prefix --name {KERNEL}` in this environment"
    try:
        command = KernelSpecManager().get_kernel_spec(KERNEL).argv[0]
    except NoSuchKernel:
        return Finding("kernel", PROBLEM, f"there is no Jupyter kernel {KERNEL}", advice)
    found = shutil.which(command)
    # an environment's python is most often a link to one that several environments share, so folders are compared
    if found is None or Path(found).absolute().parent != Path(sys.executable).absolute().parent:
        return Finding("kernel", WARNING, f"{KERNEL} runs another Python than this one", advice)
    return Finding("kernel", OK, f"{KERNEL}, of this Python")


def disk(configs: Sequence[Config]) -> Finding:
    """Free space against the models, adapters and answers that the runs leave, and a base model to be downloaded."""
    from mllmu_nb.models.memory import need

    try:
        shape = shape_of(configs[0])
    except KitError:
        return Finding(
            "disk", WARNING, "unknown, for the base model's shape cannot be read", "see the base model above"
        )
    needed = len(configs) * ITEMS
    finetuned = {config.method if config.method == "oracle" else "vanilla" for config in configs}
    for full in {config.adaptation == "full" for config in configs}:
        needed += (
            len(finetuned) * 4 * need(shape, element=4, eager=False, recipe=configs[0].training, full=full).trained
        )
    unlearned = [config for config in configs if config.trains]
    if unlearned:
        trained = need(shape, element=4, eager=False, recipe=unlearned[0].unlearning).trained
        needed += len(unlearned) * 4 * trained
    needed *= 2  # each is written aside first
    source = run.base_source(configs[0])
    told = ""
    if configs[0].scale != "miniature" and not Path(source).is_dir() and not _cached(source):
        needed += download_size(configs[0])
        told = ", the download among them,"
    free = shutil.disk_usage(_existing(paths.root())).free
    found = f"about {needed / GIB:.1f} GiB needed{told} and {free / GIB:.1f} GiB free"
    if needed > free:
        return Finding("disk", PROBLEM, found, "free some, or set MLLMU_NB_OUT (and HF_HOME) to another disk")
    return Finding("disk", OK, found)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def folders(scale: str) -> Iterator[Finding]:
    """Whether results, figures and the cache can be written."""
    for folder in (paths.runs(scale), paths.figures(scale), paths.cache()):
        try:
            paths.writable(folder)
        except KitError as error:
            yield Finding("folders", PROBLEM, str(error), "set MLLMU_NB_OUT to a folder that is yours")
            return
    yield Finding("folders", OK, f"results, figures and cache can be written under {paths.root()}")
