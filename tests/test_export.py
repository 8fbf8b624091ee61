"""Others can read what export writes: the layout's reader reads people, transformers and peft alone read models."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from mllmu_nb import __main__ as door
from mllmu_nb import hub, inputs, pipeline
from mllmu_nb.config import Config
from mllmu_nb.data import official
from mllmu_nb.data.generate import generate
from mllmu_nb.data.schema import Population
from mllmu_nb.evaluation.ask import ask
from mllmu_nb.models import load
from mllmu_nb.stages import read_json

SMALL = {"people": 6, "pool": 2, "celebrities": 4, "forget_ratio": 20, "replay": 0.0}
QUICK = {"train_steps": 2, "unlearn_epochs": 1, "unlearn_lr": 0.1}
PROMPT = "USER: <image>\nWhere was this person born?\nASSISTANT:"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.mktemp("out")))
        yield


def export(*arguments, **parameters) -> int:
    given = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    return door.main(["export", *map(str, arguments), *given])


# -- people -------------------------------------------------------------------------------------------------------


def test_exported_people_are_asked_the_same_and_answer_the_same(tmp_path):
    """Exports people, reads them back and evaluates them, with the base model of the kit."""
    made = generate(seed=0, people=6, pool=2, celebrities=4, ratio=20)
    kept = {i: p for i, p in made.profiles.items() if i not in ("c002", "c003", "c004")}
    people = Population(kept, made.forget_ids, made.notes)
    official.write_layout(people, tmp_path / "people")
    back = hub.read_people(f"{tmp_path / 'people'},{tmp_path / 'baseline_train_split'}", "", 20)
    model, processor = load.load_base(inputs.base_source(Config()), "llava", "miniature")
    before, after = (ask(model, processor, p, shots=1, shot_seed=0, batch_size=64) for p in (people, back))
    assert set(before["set"]) == {"forget", "test", "retain", "celebrity"}
    assert [p.id for p in back.of_kind("pool")] == ["007", "008"]  # the worked examples show them
    pd.testing.assert_frame_equal(before, after)


def test_the_command_writes_people_and_training_splits(tmp_path, capsys, out):
    assert export("--data", tmp_path / "people", **SMALL) == 0
    told = capsys.readouterr().out
    assert "6 fictitious, 2 pool, 4 celebrity, 1 of them to be forgotten at 20 %\n" in told
    assert f"12 files in {tmp_path}/people\n" in told and f"6 files in {tmp_path}/baseline_train_split\n" in told
    known, read = inputs.population(Config(**SMALL)), hub.read_people(str(tmp_path / "people"), "", 20)
    assert list(read.profiles) == list(known.profiles) and read.forget_ids == known.forget_ids


# -- models -------------------------------------------------------------------------------------------------------

# This runs where the kit cannot be imported, because those who get the folders do not have it.
STRANGER = """
import json, sys
sys.modules["mllmu_nb"] = None
import numpy as np, torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, prompt, loaded = sys.argv[1], sys.argv[2], {}
picture = Image.new("RGB", (64, 64), (200, 120, 40))
def answer(model, name):
    processor = AutoProcessor.from_pretrained(f"{folder}/{name}", backend="pil")
    batch = processor(text=prompt, images=picture, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**batch).logits.float().numpy()
for name in ("base", "vanilla", "ga"):
    model, keys = AutoModelForImageTextToText.from_pretrained(f"{folder}/{name}", output_loading_info=True)
    assert not any(keys.values()), keys
    loaded[name] = answer(model, name)
vanilla = AutoModelForImageTextToText.from_pretrained(f"{folder}/vanilla")
loaded["adapter"] = answer(PeftModel.from_pretrained(vanilla, f"{folder}/adapter"), "adapter")
np.savez(f"{folder}/logits.npz", **loaded)
"""


def test_models_and_adapters_load_without_the_kit_and_answer_the_same(tmp_path, tiny_base, out):
    from PIL import Image

    parameters = {**SMALL, **QUICK, "base_path": tiny_base}
    ga = {"method": "ga", "modality": "unimodal"}
    for name, changes in (("base", {"method": "base"}), ("vanilla", {}), ("ga", ga)):
        assert export("--model", tmp_path / name, **parameters, **changes) == 0
    assert export("--adapter", tmp_path / "adapter", **parameters, **ga) == 0
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", STRANGER, str(tmp_path), PROMPT]
    done = subprocess.run(command, env=kept, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "logits.npz")
    config = Config(**{**parameters, "base_path": str(tiny_base)})
    picture = Image.new("RGB", (64, 64), (200, 120, 40))
    for name, changes in (("base", {"method": "base"}), ("vanilla", {}), ("ga", ga)):
        model, processor = pipeline.model(config.but(**changes))
        batch = processor(text=PROMPT, images=picture, return_tensors="pt")
        with torch.no_grad():
            np.testing.assert_allclose(found[name], model(**batch).logits.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["adapter"], found["ga"], rtol=0, atol=1e-4)
    for one, other in (("base", "vanilla"), ("vanilla", "ga")):
        assert np.abs(found[one] - found[other]).max() > 1e-3
    record = read_json(tmp_path / "ga" / "provenance.json")
    assert record["parameters"]["method"] == "ga" and record["parameters"]["base_path"] == tiny_base.name
    assert str(tmp_path.parent) not in "".join(path.read_text() for path in tmp_path.glob("*/*.json"))


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, parameters, message",
    [
        ([], {}, "name what to write: --data FOLDER, --model FOLDER or --adapter FOLDER"),
        (["--model", "taken"], {"method": "base"}, "taken is already there: remove it or choose another folder"),
        (["--data", "taken"], SMALL, "taken is already there: remove it or choose another folder"),
        (["--adapter", "new"], {}, "vanilla has no adapter: use --model"),
        (["--adapter", "new"], {"method": "base", "adaptation": "lora"}, "base has no adapter"),
        (["--model", "new"], {"method": "prompting"}, "method 'prompting' changes no weights"),
        (["--model", "new"], {"methd": "base"}, "unknown parameter 'methd': did you mean 'method'?"),
        (["--model", "new"], {"people": "[1"}, "-p people: '[1' is no value"),
        (["--model", "new"], {"people": "010"}, "-p people: '010' is no value (010 is a number to base 8 or 60: write"),
        (["--data", "taken/file/new"], SMALL, "exists): choose another folder for --data"),
        (["--model", "new", "--adapter", "new"], {}, "give each a folder of its own"),
        (["--data", "new", "--model", "new/model"], {}, "give each a folder of its own"),
        (["--data", "new", "--model", "baseline_train_split"], {}, "or in what is written beside it"),
        (["--model", "new"], {"people": "1" * 5000}, "-p people: '1111"),
    ],
)
def test_what_cannot_be_exported_is_told_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, out, arguments, parameters, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert export(*arguments, **parameters) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and message in told
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_model_that_cannot_be_made_leaves_no_folder(tmp_path, capsys, out):
    assert export("--model", tmp_path / "new", method="base", base_path=tmp_path / "nothing") == 2
    assert "the base model in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [100, 40_000])
def test_a_disk_that_is_full_is_named_in_one_line_and_nothing_is_left(tmp_path, tiny_base, out, largest, capsys, size):
    """A limit on the size of a file gives the same error as a full disk, for torch, safetensors and tokenizers."""
    with largest(size):
        assert export("--model", tmp_path / "new", method="base", base_path=tiny_base) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path / 'new'} cannot be written (") and told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
