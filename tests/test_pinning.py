"""The same bits on CPUs of one maker: the variables that choose the kernels, and results of a small training."""

import hashlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mllmu_nb import paths, pinning, provenance
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.pipeline import finetuned, unlearned

# AMD: made on an EPYC with AVX-512, by the code before the package was rebuilt, with the first versions below; the
# others gave the same bits on AVX2. Intel: made on a Xeon with AVX-512; the other versions gave the same bits, with
# Python 3.13. Upstream trains with torch's AdamW here, as it did when they were made.
MADE_WITH = {
    "torch": ("2.13.0", "2.15.0"),
    "numpy": ("2.4.6", "2.5.5"),
    "transformers": ("5.24.0",),
    "peft": ("0.21.2",),
    "tokenizers": ("0.23.3",),
}
SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25, "replay": 0.0, "train_steps": 10}
AMD = {
    "base": "075cec1974c5b904",
    "vanilla": "c658e76db18f19fb",
    "vanilla with replay": "60b7da7779d48c5d",
    "vanilla's adapter": "2d2c0b6d8bba161c",
    "ga clean": "3c09c57e7f70d150",
    "ga upstream": "f8f83d0652614373",
    "grad_diff clean": "9c78cddf9f4f9b98",
    "grad_diff upstream": "2416cd9f6b5ab0fb",
    "kl_min clean": "e037daf7a271b134",
    "kl_min upstream": "4f770f4a11bd78b1",
    "npo clean": "99ac34afe8205f71",
    "npo upstream": "0b217045b2f03cbc",
}
INTEL = {
    "base": "075cec1974c5b904",
    "vanilla": "bd8012ca4b4a0586",
    "vanilla with replay": "3d42c6893a0a4d97",
    "vanilla's adapter": "dc1bdc05c1393939",
    "ga clean": "78eb191ea3a7570a",
    "ga upstream": "bf60af615c7ac2d5",
    "grad_diff clean": "08827b60f3e8e4b9",
    "grad_diff upstream": "e858d1547c1e44bb",
    "kl_min clean": "5cd5763bd096686c",
    "kl_min upstream": "3dd2f974642e62b0",
    "npo clean": "34a2c9a39f782245",
    "npo upstream": "8434667c5969cec7",
}


def fresh(code: str, **variables: str) -> subprocess.CompletedProcess:
    """Run code in a new process, in which nothing is pinned yet."""
    environment = {k: v for k, v in os.environ.items() if k not in (*pinning.VARIABLES, pinning.UNPINNED)}
    environment |= {"PYTHONPATH": str(paths.PACKAGE.parent), **variables}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)


SHOW = "import sys; from mllmu_nb import pinning; print(pinning.settings(), pinning.pinned(), 'torch' in sys.modules)"
avx2 = pytest.mark.skipif(not pinning._has_avx2(), reason="this CPU has no AVX2: nothing is pinned")


@avx2
def test_the_variables_are_set_before_torch_is_loaded():
    assert fresh(SHOW).stdout.strip() == f"{pinning.VARIABLES} True False"


@avx2
def test_what_the_user_has_set_is_kept():
    kept = {**pinning.VARIABLES, "MKL_CBWR": "COMPATIBLE"}
    assert fresh(SHOW, MKL_CBWR="COMPATIBLE").stdout.strip() == f"{kept} False False"


def test_nothing_is_set_for_building_bases():
    ended = fresh(f"import torch; {SHOW}", **{pinning.UNPINNED: "1"})
    assert ended.stdout.strip() == f"{dict.fromkeys(pinning.VARIABLES, '')} False True" and ended.stderr == ""


@avx2
def test_torch_that_came_first_is_warned_of_in_one_line():
    ended = fresh(f"import torch; {SHOW}")
    [line] = [line for line in ended.stderr.splitlines() if "Warning" in line]
    assert line.endswith(
        "torch was imported before mllmu_nb, so results may differ in bits from those of other CPUs: "
        "import mllmu_nb first"
    )
    assert line.startswith("<string>:1"), "the line that imports is named, not one of the kit"
    assert fresh(f"import torch; {SHOW}", **pinning.VARIABLES).stderr == "", "what is set already needs no warning"


def test_a_machine_is_recorded_by_what_decides_the_bits(monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    machine = provenance.machine()
    others = {name: os.environ.get(name, "") for name in pinning.VARIABLES}
    assert machine["bits"] == {**others, "MKL_CBWR": "COMPATIBLE"}
    assert machine["device"] and machine["capability"] and "cpu" in machine
    assert machine["threads"] >= 1 and machine["processes"] == 1


def test_half_precision_on_a_pinned_cpu_is_refused(tiny_base, monkeypatch):
    from mllmu_nb.models.load import load_base
    from mllmu_nb.training import train
    from mllmu_nb.unlearning import Recipe, get

    model, _ = load_base(str(tiny_base), "llava", "miniature")
    for name, value in pinning.VARIABLES.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KitError) as error:
        train(model.cpu(), get("ga"), [], Recipe(lr=1e-3, precision="bf16"), steps=1)
    assert "200 times slower" in str(error.value) and "MLLMU_NB_UNPINNED=1" in str(error.value)
    assert "\n" not in str(error.value)


def reason_to_skip() -> str:
    if not pinning._has_avx2():
        return "this CPU has no AVX2, so its bits are its own"
    if not pinning.pinned():
        return f"{', '.join(pinning.VARIABLES)} have other values here"
    others = {name: metadata.version(name).split("+")[0] for name in MADE_WITH}
    differing = [f"{name} {version}" for name, version in others.items() if version not in MADE_WITH[name]]
    return f"the hashes were not made with {', '.join(differing)}" if differing else ""


@pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())
def test_a_small_training_gives_the_same_bytes_as_on_other_machines_of_this_maker(tiny_base):
    common = {**SMALL, "base_path": str(tiny_base)}
    made: dict[str, Path] = {"base": tiny_base / "model.safetensors"}
    made["vanilla"] = finetuned(Config(**common)).get() / "model.safetensors"
    made["vanilla with replay"] = finetuned(Config(**{**common, "replay": 0.2})).get() / "model.safetensors"
    made["vanilla's adapter"] = finetuned(Config(**common, adaptation="lora")).get() / "adapter_model.safetensors"
    weights = {"ga": {}, "grad_diff": {"alpha": 2.0}, "kl_min": {"alpha": 2.0}, "npo": {"beta": 0.2}}
    clean = {"unlearn_steps": 5, "unlearn_lr": 1e-3}  # not the presets: what a new search chooses changes no byte here
    for method, weight in weights.items():
        for protocol, own in (("clean", clean), ("upstream", {"unlearn_epochs": 1})):
            how = {"modality": "multimodal", "protocol": protocol, "adam": "torch", **own, **common}
            config = Config(method=method, **how).but(**weight if protocol == "clean" else {})
            made[f"{method} {protocol}"] = unlearned(config).get() / "adapter_model.safetensors"
    assert {name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for name, file in made.items()} == (
        INTEL if pinning.INTEL else AMD
    )
