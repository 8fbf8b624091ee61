"""``mllmu-nb doctor CONFIG``: finds what would stop the configuration's runs, before they start. No check loads
weights. The output says whether there is a token, but never shows it."""

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from math import inf
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import torch
from packaging.requirements import Requirement
from transformers import AutoConfig

from mllmu_nb import inputs, paths, pinning, prediction, provenance
from mllmu_nb.commands import sweep
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.hub import sources, without_password
from mllmu_nb.models import families
from mllmu_nb.models.files import check_depth, check_model
from mllmu_nb.prediction import GIB
from mllmu_nb.processes import machine_cores, machine_memory

EXAMPLES = ("doctor configs/paper-llava.yaml",)
OK, WARNING, PROBLEM = "ok", "warning", "problem"
TIGHT = 0.8  # share of the memory above which an estimate gets a warning
LONG = 12  # hours above which the advice is to share the runs among machines
TIMEOUT = 5  # seconds that the hub is given to answer

Configs = Sequence[Config]


class Result(NamedTuple):
    """The result of a check: its verdict, a description, and what to do."""

    verdict: str
    text: str
    advice: str = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="configuration file, such as configs/paper-llava.yaml")
    parser.add_argument("--rate", type=float, help="rate for the prediction of hours, in TFLOP per second")


def main(options: argparse.Namespace) -> int:
    """Print one line per check. Returns 1 if there is a problem, else 0. Raises KitError if the configuration cannot
    be read."""
    if options.rate is not None and not 0 < options.rate < inf:
        raise KitError(f"--rate must be a number above 0, not {options.rate}")
    configs = sweep.cells(sweep.read(options.config))
    verdicts = []
    for check in CHECKS:
        try:
            result = check(configs, options.rate) if check is hours else check(configs)
        except Exception as error:  # of the network, a library or a file: the run would meet it, too
            result = Result(PROBLEM, " ".join(str(error).split())[:500] or type(error).__name__)
        advice = f"\n{'':19}-> {result.advice}" if result.advice else ""
        print(f"{result.verdict:8} {check.__name__:8}  {result.text}{advice}")
        verdicts.append(result.verdict)
    print(f"{verdicts.count(PROBLEM)} problems, {verdicts.count(WARNING)} warnings")
    return 1 if PROBLEM in verdicts else 0


def versions(configs: Configs) -> Result:
    """Check that every dependency is installed in a version that the kit accepts."""
    needs, wrong = metadata.requires("mllmu-nb") or [], []
    bits = ["bitsandbytes>=0.46.1"] if any(config.quantise_base for config in configs) else []  # as transformers asks
    for needed in map(Requirement, [*needs, *bits]):
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not needed.specifier.contains(version, prereleases=True):
            wrong.append(f"{needed.name} {version} (needs {needed.specifier})")
    if wrong:
        by_hand = " (quantise_base: pip install bitsandbytes)" if bits else ""
        return Result(PROBLEM, "; ".join(wrong), f"run `make env`, or install with -c requirements.lock{by_hand}")
    return Result(OK, ", ".join(map(" ".join, provenance.versions().items())))


def device(configs: Configs) -> Result:
    """Check the device of the runs, and whether it gives the same bits as other machines with AVX2."""
    machine, gpu = provenance.machine(), torch.cuda.is_available()
    said = [machine["device"], machine["cpu"], f"{machine_cores()} cores", f"{machine['capability']} kernels"]
    text = ", ".join([*said, *(f"{name}={value}" for name, value in machine["bits"].items() if value)])
    if configs[0].scale != "miniature" and not gpu:
        return Result(PROBLEM, text, "the 7B models need a GPU: on a CPU a run takes weeks")
    precisions = {config.eval_precision for config in configs}
    precisions |= {config.training.precision for config in configs if prediction.finetuned_for(config)}
    precisions |= {config.unlearning.precision for config in configs if config.trains}
    if gpu and "bf16" in precisions and not torch.cuda.is_bf16_supported(including_emulation=False):
        advice = "take a GPU of the year 2020 or later, or set precision to fp32 and eval_precision to fp16"
        return Result(PROBLEM, f"{text}, without bfloat16", advice)
    if not gpu and not pinning.pinned():
        advice = f"expect scores within the reference's intervals; on x86 leave {', '.join(machine['bits'])} unset"
        return Result(WARNING, f"not pinned: {text}", advice)
    return Result(OK, text)


def memory(configs: Configs) -> Result:
    """Compare the memory with the need of the most demanding run, times the runs that a sweep makes at once."""
    gpu = torch.cuda.is_available()
    total = torch.cuda.get_device_properties(0).total_memory if gpu else machine_memory()
    at_once = min(len(configs), sweep.usual_jobs(configs))
    each = memory_of_stages(configs).items()
    needs = {stage: {what: at_once * size for what, size in need.items()} for stage, need in each}
    stage, need = max(needs.items(), key=lambda one: sum(one[1].values()))
    share, listed = sum(need.values()) * GIB / total, ", ".join(f"{what} {size:.1f}" for what, size in need.items())
    runs = f" in {at_once} runs at once" if at_once > 1 else ""
    text = f"about {sum(need.values()):.1f} GiB needed for {stage}{runs} ({listed}); {total / GIB:.1f} GiB available"
    if others := [f"{name} {sum(one.values()):.1f}" for name, one in needs.items() if name != stage]:
        text += f"; the other stages need {', '.join(others)}"
    advice = "take a device with more, sweep with fewer --jobs, or set checkpointing, precision, micro_batch, "
    advice += "quantise_base, eval_batch, shots"
    return Result(OK, text) if share <= TIGHT else Result(WARNING if share <= 1 else PROBLEM, text, advice)


def memory_of_stages(configs: Configs) -> dict[str, dict[str, float]]:
    """Stage → GiB that the most demanding run needs there, by content."""
    needs: dict[str, dict[str, float]] = {}
    for config in configs:
        model, bits = estimate(inputs.base_of(config)), bool(config.quantise_base)
        own = {"answers": model.answering(config)}
        if prediction.finetuned_for(config):
            own["fine-tuning"] = model.training(config.training, config.adaptation == "full", None, bits)
        if config.modality != "none":
            own["unlearning"] = model.training(config.unlearning, False, config.objective, bits)
            own["points of a path"] = model.answering(config, on_path=True)
        for stage, need in own.items():
            needs[stage] = max(needs.get(stage, {}), need, key=lambda one: sum(one.values()))
    return needs


def hours(configs: Configs, rate: float | None = None) -> Result:
    """Predict the hours of every stage at ``rate`` (TFLOP per second). Without ``rate``, take a share of the measured
    speed of this device or, if the runs need a GPU that is not here, of an H100's data sheet."""
    on_this_device = configs[0].scale == "miniature" or torch.cuda.is_available()

    def assumed(precision: str) -> prediction.Rate:
        usual = prediction.assumed_rate(precision, on_this_device)
        return usual._replace(flops=rate * 1e12) if rate else usual

    counts: Counter[str] = Counter()
    each: Counter[str] = Counter()  # hours
    for base in dict.fromkeys(map(inputs.base_of, configs)):
        runs = [config for config in configs if inputs.base_of(config) == base]
        for name, (count, spent) in prediction.hours(runs, estimate(base), assumed).items():
            counts[name] += count
            each[name] += spent
    precision, total = configs[0].training.precision, each.total()
    listed = ", ".join(f"{count} {name} {each[name]:.2g}" for name, count in counts.items())
    text = f"about {total:,.0f} hours" if total >= 10 else f"about {total:.2g} hours"
    text += f" one after the other ({listed}); "
    text += f"{precision} training at {assumed(precision).flops / 1e12:.3g} TFLOP/s"
    if not rate:
        most = "is measured here" if on_this_device else "an H100 has"
        text += f", {prediction.SHARE:.0%} of what {most}: see --rate"
    busy = round(os.getloadavg()[0]) if on_this_device and not rate and hasattr(os, "getloadavg") else 0
    if busy >= (cores := machine_cores()):
        text += f"; {busy} processes share the {cores} cores now, so ask again when they are idle"
    advice = "`sweep --shard i/n` shares the runs among machines; precision changes the hours most"
    return Result(OK, text, advice if total > LONG else "")


@cache
def estimate(base: tuple[str, str, str, str]) -> prediction.Estimate:
    """The estimate for a base model, from its configuration in its folder or the hub's cache, else as published."""
    source, family, scale, _ = base
    if Path(source, "config.json").is_file():
        check_depth(Path(source))
    try:
        shape = AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError):
        if source != families.get(family).hub:
            if Path(source, "config.json").is_file():
                raise
            advice = "name a folder that save_pretrained has written, or a name on the hub"
            raise KitError(f"base_path {source} has no config.json, here or in the hub's cache: {advice}") from None
        shape = families.get(family).published_shape()
    return prediction.Estimate(shape, eager=scale == "miniature")


def people(configs: Configs) -> Result:
    """Read or generate the people of every ratio and replicate, which checks their schema, and report their hash."""
    if remote := inputs.unread(configs[0]):
        return Result(OK, f"{', '.join(remote)}: read, and their schema checked, when they are downloaded")
    distinct = list({tuple(getattr(config, name) for name in inputs.DATA): config for config in configs}.values())
    known = [(config, inputs.population(config)) for config in distinct]
    forget = ", ".join(f"{len(one.forget_ids)} to be forgotten at {config.forget_ratio} %" for config, one in known)
    return Result(OK, f"{known[0][1].counted()}; {forget}; hash {inputs.data_hash(distinct[0])}")


def model(configs: Configs) -> Result:
    """Check notebooks, base models, worked examples, folders and the runs that are there, as a sweep does before it
    starts."""
    for config in configs:
        sweep.notebook_for(config)
    if here := [config for config in configs if not inputs.unread(config)]:
        inputs.check_comparable(here)
    for config in here:
        inputs.check(config)
    said = [f"{len(configs)} runs, scale {configs[0].scale}, under {paths.root()}"]
    for source, family, _, revision in dict.fromkeys(map(inputs.base_of, configs)):
        folder, where = Path(source), "from the hub"
        if folder.is_dir():
            check_model(folder, family)
            where = f"hash {inputs.hash_of_model(source, revision)}"
        said.append(f"base model {folder.name}, {where}")
    return Result(OK, "; ".join(said))


def hub(configs: Configs) -> Result:
    """Check that the hub answers for what comes from it and that its models hold safetensors, and report whether there
    is a token."""
    wanted: dict[tuple[str, str, str], bool] = {}  # name, kind, revision → whether it is a model with weights
    for config in configs:
        wanted |= {(source, "model", revision): True for source, revision in inputs.models_on_hub(config)}
        people_from = sources(config.data_source, config.data_revision)
        wanted |= {one: False for one in people_from if one[0] in inputs.unread(config)}
    if not wanted:
        return Result(OK, "not needed")
    token = "a token is set" if huggingface_hub.get_token() else "no token is set"
    api = huggingface_hub.HfApi(os.environ.get("HF_ENDPOINT"), huggingface_hub.get_token())
    for (source, kind, revision), is_model in wanted.items():
        name = "@".join(filter(None, (source, revision)))
        try:
            there = api.repo_info(source, repo_type=kind, revision=revision or None, timeout=TIMEOUT).siblings or ()
        except Exception as error:  # of the network, the hub or the name, from several libraries
            advice = "check the spelling, HF_TOKEN and HF_ENDPOINT, or name folders by base_path and data_source"
            return Result(PROBLEM, f"{name}: {without_password(str(error)).splitlines()[0]}; {token}", advice)
        if is_model and not any(file.rfilename.endswith(".safetensors") for file in there):
            advice = "only safetensors are loaded: name another revision, or a folder to which they were converted"
            return Result(PROBLEM, f"{name} holds no safetensors; {token}", advice)
    return Result(OK, f"{', '.join(dict.fromkeys(source for source, *_ in wanted))} can be downloaded; {token}")


CHECKS = (versions, device, memory, hours, people, model, hub)
