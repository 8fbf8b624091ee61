"""Models that were made elsewhere: what is scored, what is refused and why, what they are compared with."""

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from mllmu_nb import __main__ as door
from mllmu_nb import paths, run, stages
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation.tokens import STORED
from mllmu_nb.models.files import check_any_adapter, check_whole
from mllmu_nb.models.load import load_any_adapter, load_whole, merge
from mllmu_nb.models.miniature import make_model, make_processor, make_tokenizer
from mllmu_nb.reporting import LIKELIHOOD, ROUGE_L, Run, comparison

VISION_TOO = ["q_proj", "v_proj"]  # by their bare names, as others write them: the vision tower has them too
SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25, "shots": 0, "replay": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as others save it: no recipe."""
    place = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer(["Where was this person born?", "USER: ASSISTANT: Just give ONE letter."], 400)
    make_model(tokenizer, 0, width=32, layers=2, heads=2).save_pretrained(place)
    make_processor(tokenizer).save_pretrained(place)
    return place


@pytest.fixture
def model(folder):
    return load_whole(folder, "llava", miniature=True)[0]


def put_adapter(model, place, targets=VISION_TOO, **more):
    """An adapter as peft saves it, which does something; its targets are not those of this kit."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, **more))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    adapted.save_pretrained(place)
    return adapted


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[1, 5, 6, 7]])).logits


# -- what is loaded and what is refused ---------------------------------------------------------------------------


def test_an_adapter_of_any_reach_is_put_on_and_merged(folder, model, tmp_path):
    plain = logits(model)
    expected = logits(put_adapter(model, tmp_path, targets=["q_proj", "v_proj", "linear_1"]).eval())
    again = load_any_adapter(load_whole(folder, "llava", miniature=True)[0], tmp_path)
    assert torch.allclose(logits(again), expected) and not torch.allclose(expected, plain, atol=1e-3)
    assert torch.allclose(logits(merge(again)), expected, atol=1e-5)


def test_module_names_of_an_older_transformers_are_understood(folder, model, tmp_path):
    expected = logits(put_adapter(model, tmp_path, targets=r".*language_model.*\.(q|v)_proj").eval())
    file = tmp_path / "adapter_model.safetensors"
    renamed = "base_model.model.model.language_model.", "base_model.model.language_model.model."
    old = {name.replace(*renamed): weight for name, weight in load_file(file).items()}
    assert not old.keys() & load_file(file).keys()
    save_file(old, file)
    assert torch.allclose(logits(load_any_adapter(load_whole(folder, "llava", miniature=True)[0], tmp_path)), expected)


def test_adapters_that_do_not_fit_are_named(folder, model, tmp_path):
    put_adapter(model, tmp_path)
    file, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    weights, told = load_file(file), json.loads(settings.read_text())

    def refused(match):
        with pytest.raises(KitError, match=match) as caught:
            load_any_adapter(load_whole(folder, "llava", miniature=True)[0], tmp_path)
        assert "\n" not in str(caught.value)

    first = next(iter(weights))
    save_file({name: weight for name, weight in weights.items() if name != first}, file)
    refused("the adapter in .* does not fit the model: it lacks .*lora_")
    save_file({**weights, "base_model.model.model.elsewhere.lora_A.weight": torch.zeros(4, 4)}, file)
    refused("does not fit the model: it has unexpected .*elsewhere")
    save_file({**weights, first: torch.zeros(3, 3)}, file)
    refused("does not fit the model: .*size mismatch")
    save_file(weights, file)
    settings.write_text(json.dumps({**told, "target_modules": ["c_attn"]}))
    refused("does not fit the model: .*c_attn")
    settings.write_text(json.dumps({**told, "peft_type": "IA3"}))
    refused("is of the kind IA3: only LORA can be put on a model here")
    settings.write_text("{")
    refused("cannot read .*adapter_config.json: it is no JSON")
    settings.write_text(json.dumps(told))
    file.rename(tmp_path / "adapter_model.bin")
    refused("holds no adapter_model.safetensors but adapter_model.bin: only safetensors are loaded")
    with pytest.raises(KitError, match="cannot read .*adapter_config.json: No such file or directory"):
        check_any_adapter(tmp_path / "none")


def test_models_that_are_not_loaded_are_named(folder, model, tmp_path):
    with pytest.raises(KitError, match="there is no folder .*none: name one that save_pretrained has written"):
        check_whole(tmp_path / "none", "llava")
    put_adapter(model, tmp_path / "adapter")
    with pytest.raises(KitError, match="adapter holds an adapter: name the model it goes on as well"):
        check_whole(tmp_path / "adapter", "llava")
    with pytest.raises(KitError, match="is of the family llava: this is asked as idefics2"):
        check_whole(folder, "idefics2")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    check_whole(copy, "llava")
    told = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**told, "model_type": "qwen2_vl"}))
    with pytest.raises(KitError, match="is of the family qwen2_vl: those known are llava, idefics2"):
        check_whole(copy, "llava")
    (copy / "config.json").write_text("[]")
    with pytest.raises(KitError, match="cannot read .*config.json: it holds no names and values"):
        check_whole(copy, "llava")
    (copy / "config.json").write_text(json.dumps(told))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(KitError, match="holds no model.safetensors but pytorch_model.bin: only safetensors are loaded"):
        check_whole(copy, "llava")


def test_a_model_with_a_missing_or_unexpected_weight_is_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if "layers.1" in name)
    save_file({n: w for n, w in weights.items() if n != name}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(KitError, match="does not fit its architecture: missing keys .*layers.1"):
        load_whole(copy, "llava", miniature=True)
    save_file({**weights, "elsewhere": torch.zeros(2)}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(KitError, match="does not fit its architecture: unexpected keys elsewhere"):
        load_whole(copy, "llava", miniature=True)


# -- what is asked and what it is compared with --------------------------------------------------------------------


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    monkeypatch.setattr(paths, "committed_runs", lambda scale: tmp_path / "committed")
    return tmp_path / "out"


@pytest.fixture
def settings(tmp_path):
    """A configuration file with a grid, which has no bearing on a model that was made elsewhere."""
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "method": "ga", "grid": {"modality": ["unimodal"]}}))
    return path


def with_recipe(folder, place):
    shutil.copytree(folder, place)
    weights = (place / "model.safetensors").read_bytes()
    (place / "recipe.json").write_text(json.dumps({"sha256": hashlib.sha256(weights).hexdigest()}))
    return str(place)


def test_a_model_is_asked_what_every_run_is_asked_and_compared_question_by_question(
    folder, model, tmp_path, out, settings, capsys
):
    base = run.items(Config(method="base", base_path=with_recipe(folder, tmp_path / "base"), **SMALL))
    yours = run.evaluated(Config(method="yours", base_path=str(folder), **SMALL))
    assert yours == out / "results" / "miniature" / "evaluated" / "llava-r25-d0-yours-none-s0"
    answers, same = pd.read_parquet(base / "items.parquet"), pd.read_parquet(yours / "items.parquet")
    assert set(same["method"]) == {"yours"}
    # the shipped base, and not the one it started from, says how fluent a model made elsewhere is
    own = ["run", "method", "fluency"]
    pd.testing.assert_frame_equal(answers.drop(columns=own), same.drop(columns=own))
    spoken = (same["task"] == "generation") & (same["answer"] != "")
    assert spoken.any() and same["fluency"].notna().equals(spoken)
    taught, read = (pd.read_parquet(place / "tokens.parquet") for place in (base, yours))
    assert len(read) == 3 * 29 + 25 * 29 and read.drop(columns=list(STORED)).equals(taught.drop(columns=list(STORED)))
    assert all((a == b).all() for a, b in zip(read["log_probs"], taught["log_probs"], strict=True))

    references = {name: put_reference(base, tmp_path / name, name, right) for name, right in TRUTH.items()}
    put_adapter(model, tmp_path / "adapter")
    command = ["evaluate", "--model", str(folder), "--adapter", str(tmp_path / "adapter"), "--name", "mine"]
    command += ["--sets", "forget", "--limit", "2", "--config", str(settings), "--out", str(tmp_path / "there")]
    capsys.readouterr()
    assert door.main(command + [f"--{name}={path}" for name, path in references.items()]) == 0
    said = capsys.readouterr().out
    assert "minus vanilla (vanilla), question by question" in said and "minus oracle (oracle)" in said
    assert (
        "In brackets: gate closed, vanilla is not shown to answer better about the forget people than the oracle"
        in said
    )
    assert "ROUGE-L (image + text), ROUGE-L (text), ROUGE-L (both)" in said and "Likelihood (text)" not in said
    items = pd.read_parquet(tmp_path / "there" / "items.parquet")
    assert set(items["set"]) == {"forget"} and items["profile"].nunique() == 2 and set(items["method"]) == {"mine"}
    found = pd.read_csv(tmp_path / "there" / "comparison.csv", keep_default_na=False)
    likely = found[(found["scoring"] == "likelihood") & (found["view"] == "both")].set_index("against")
    right = items.loc[items["scoring"] == "likelihood", "correct"].mean()
    assert likely["value"].astype(float).to_dict() == pytest.approx({"vanilla": right - 1, "oracle": right})
    assert set(likely["gate"]) == {"open"} and len(pd.read_csv(tmp_path / "there" / "scores.csv"))
    told = stages.read_json(tmp_path / "there" / stages.RECORD)
    assert told["limit"] == 2 and told["sets"] == ["forget"] and told["parameters"]["adapter_path"] == "adapter"
    assert not (out / "results" / "miniature" / "runs" / "llava-r25-d0-mine-none-s0").exists()


TRUTH = {"vanilla": 1.0, "oracle": 0.0}  # of every multiple-choice question, by likelihood


def put_reference(base, place, method, right):
    """The run ``base`` under another name, with the same answers but in multiple choice."""
    shutil.copytree(base, place)
    items = pd.read_parquet(place / "items.parquet").assign(method=method, run=method)
    items.loc[items["task"] == "classification", "correct"] = right
    items.to_parquet(place / "items.parquet")
    return place


def test_references_are_found_by_the_people_they_were_asked_about(folder, tmp_path, out, monkeypatch):
    plain = Config(**SMALL)
    assert run.reference(plain) is None
    there = tmp_path / "committed" / plain.run_id
    there.mkdir(parents=True)
    known = {"data_hash": run.data_hash(plain), "forget_ids": list(run.population(plain).forget_ids)}
    (there / "data.json").write_text(json.dumps(known))
    assert run.reference(plain) == there
    assert run.reference(plain.but(forget_draw=1)) is None and run.reference(plain.but(method="oracle")) is None
    (there / "data.json").write_text(json.dumps({**known, "data_hash": "other"}))
    assert run.reference(plain) is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sets", "forgotten"], "unknown set forgotten: choose from forget, test, retain, celebrity"),
        (["--limit", "0"], "--limit must be at least 1, not 0"),
        (["--name", "my-ga"], "--name must be letters, digits, _ and . (it is part of a folder's name), not 'my-ga'"),
        (["--name", "vanilla", "--vanilla", "x"], "--name vanilla makes the model its own reference"),
        (["--oracle", "nowhere"], "there is no finished run in nowhere: it has no items.parquet"),
        (["--adapter", "nowhere"], "cannot read nowhere/adapter_config.json: No such file or directory"),
        (["--config", "nowhere.yaml"], "cannot read nowhere.yaml: No such file or directory"),
        (["--model", "nowhere"], "there is no folder nowhere: name one that save_pretrained has written"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_a_model_is_loaded(
    folder, out, settings, arguments, message, monkeypatch, capsys
):
    monkeypatch.setattr("mllmu_nb.models.load.load_whole", lambda *given: pytest.fail("loaded"))
    assert door.main(["evaluate", "--model", str(folder), "--config", str(settings), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1


def test_a_folder_that_is_full_is_not_written_over(folder, out, settings, tmp_path, capsys):
    assert door.main(["evaluate", "--model", str(folder), "--config", str(settings), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} is already there: remove it or choose another folder\n"


def test_an_adapter_belongs_to_a_model_that_was_made_elsewhere():
    with pytest.raises(KitError, match="adapter_path is asked as method 'yours', not 'vanilla', which trains its own"):
        Config(adapter_path="somewhere")
    with pytest.raises(KitError, match="method 'yours' unlearns nothing: modality must be 'none'"):
        Config(method="yours", modality="unimodal")
    assert not Config(method="yours").trains


def made_up(method, likely, rouge, **data):
    """A run of ten people with two questions each: right by likelihood as told, ROUGE-L as told."""
    rows = []
    for person in range(10):
        for number in range(2):
            at = {"set": "forget", "view": "text", "profile": f"{person:03d}", "parsed": True}
            at |= {"answer": "no idea", "value": "chemist"}
            choice = {"task": "classification", "scoring": "likelihood", "correct": likely(person, number)}
            choice |= {"question_id": f"{person}/c/{number}", "rougeL": np.nan}
            said = {"task": "generation", "scoring": "", "correct": np.nan, "rougeL": rouge}
            rows += [at | choice, at | said | {"question_id": f"{person}/g/{number}"}]
    shared = {"run": method, "base_model": "llava", "forget_ratio": 10, "forget_draw": 0, "method": method}
    shared |= {"protocol": "clean", "variant": "canonical", "modality": "none"}
    shared |= dict.fromkeys(("data_seed", "train_seed", "unlearn_seed", "shot_seed"), 0)
    items = pd.DataFrame(rows).assign(**shared, factuality=np.nan, exact=np.nan, rouge1=0.0, rouge2=0.0, bleu=0.0)
    return Run(method, items, {}, {"data_hash": "a", "forget_ids": ["000"], **data})


def test_the_gate_is_open_where_vanilla_beats_the_oracle_and_closed_elsewhere():
    vanilla, oracle = made_up("vanilla", lambda p, n: 1.0, 0.6), made_up("oracle", lambda p, n: float(n and p < 5), 0.6)
    measures = [LIKELIHOOD, ROUGE_L]
    found = comparison.gate(vanilla, oracle, measures).set_index(["metric", "view"])
    assert found["gate"].to_dict() == {
        ("accuracy", "text"): "open",
        ("accuracy", "both"): "open",
        ("rougeL", "text"): "closed",
        ("rougeL", "both"): "closed",
    }
    assert found.loc[("accuracy", "both"), "value"] == pytest.approx(0.75)
    other = made_up("oracle", lambda p, n: float(p > 0), 0.6)  # better in one of ten people: that may be chance
    assert comparison.gate(vanilla, other, measures).iloc[0]["gate"] == "closed"

    own = made_up("mine", lambda p, n: float(n), 0.5)
    own.items["train_seed"] = 3  # another training is paired all the same
    table = comparison.beside(own, vanilla, oracle, measures)
    printed = comparison.printed_differences(table, "vanilla", measures)
    assert printed.loc[("Forget", "both"), "Likelihood %"].startswith("−50.0 ± ")
    assert printed.loc[("Forget", "both"), "ROUGE-L"].startswith("(−0.100 ± ")
    alone = comparison.beside(own, vanilla, None, measures)
    assert set(alone["gate"]) == {""} and set(alone["against"]) == {"vanilla"}
    assert comparison.told(own, vanilla, None) == ["Without oracle nobody can say whether a low score is forgetting."]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"method": "oracle"}, "the run vanilla is of vanilla, not of oracle"),
        ({"base_model": "idefics2"}, "is of the family llava, and your model of idefics2"),
        ({"data_hash": "b"}, "was made about other people than those of your configuration"),
        ({"forget_ids": ["001"]}, "was made with other people to be forgotten than those of your configuration"),
    ],
)
def test_a_reference_about_something_else_is_refused(changed, message):
    same = {"method": "vanilla", "base_model": "llava", "data_hash": "a", "forget_ids": ["000"]}
    reference = made_up("vanilla", lambda p, n: 1.0, 0.6)
    comparison.check_reference(reference, **same)
    with pytest.raises(KitError, match=message):
        comparison.check_reference(reference, **{**same, **changed})
