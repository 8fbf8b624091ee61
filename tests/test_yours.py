"""Models made elsewhere: what is scored, what is refused and why, and what they are compared with."""

import ast
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from mllmu_nb import __main__ as door
from mllmu_nb import after, inputs, paths, pipeline, stages
from mllmu_nb.commands import export
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.models import adapters
from mllmu_nb.models.files import check_adapter, check_model
from mllmu_nb.models.load import load_model
from mllmu_nb.registry import Registry
from mllmu_nb.reporting.runs import read_run

VISION_TOO = ["q_proj", "v_proj"]  # bare names, as others write them, also match the vision tower
SMALL = {"people": 8, "pool": 4, "celebrities": 4, "forget_ratio": 25, "shots": 0, "replay": 0.0}


@pytest.fixture(scope="module")
def folder(tiny_base, tmp_path_factory):
    """A model as others save it: without a recipe."""
    ignored = shutil.ignore_patterns("recipe.json")
    return shutil.copytree(tiny_base, tmp_path_factory.mktemp("model") / "tiny", ignore=ignored)


@pytest.fixture
def model(folder):
    return load(folder)[0]


def load(place):
    return load_model(str(place), "llava", "miniature")


def put_adapter(model, place, targets=VISION_TOO, **more):
    """Save an adapter with peft; it has an effect, and other targets than the kit's adapters."""
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
    again = adapters.load(load(folder)[0], tmp_path)
    assert torch.allclose(logits(again), expected) and not torch.allclose(expected, plain, atol=1e-3)
    assert torch.allclose(logits(adapters.merge(again)), expected, atol=1e-5)


def test_module_names_of_an_older_transformers_are_understood(folder, model, tmp_path):
    expected = logits(put_adapter(model, tmp_path, targets=r".*language_model.*\.(q|v)_proj").eval())
    file = tmp_path / "adapter_model.safetensors"
    renamed = "base_model.model.model.language_model.", "base_model.model.language_model.model."
    old = {name.replace(*renamed): weight for name, weight in load_file(file).items()}
    assert not old.keys() & load_file(file).keys()
    save_file(old, file)
    assert torch.allclose(logits(adapters.load(load(folder)[0], tmp_path)), expected)


def test_adapters_that_do_not_fit_are_named(folder, model, tmp_path):
    put_adapter(model, tmp_path)
    file, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    weights, told = load_file(file), json.loads(settings.read_text())

    def refused(match):
        with pytest.raises(KitError, match=match) as caught:
            adapters.load(load(folder)[0], tmp_path)
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
    settings.write_text(json.dumps({**told, "target_modules": "q_proj((("}))
    refused("does not fit the model: missing \\), unterminated subpattern")
    settings.write_text(json.dumps({**told, "peft_type": "IA3"}))
    refused("is of the type IA3: only LORA adapters are supported")
    settings.write_text("{")
    refused("cannot read .*adapter_config.json: it is not JSON")
    settings.write_text(json.dumps(told))
    file.rename(tmp_path / "adapter_model.bin")
    refused("holds no adapter_model.safetensors but adapter_model.bin: only safetensors are loaded")
    with pytest.raises(KitError, match="cannot read .*adapter_config.json: No such file or directory"):
        check_adapter(tmp_path / "none")


def test_an_adapter_that_cannot_be_added_to_weights_is_one_line(folder, model, tmp_path):
    put_adapter(model, tmp_path, alora_invocation_tokens=[5])
    with pytest.raises(KitError, match="the adapter cannot be merged into the model: aLoRA does not support merging"):
        adapters.merge(adapters.load(load(folder)[0], tmp_path))


def test_models_that_are_not_loaded_are_named(folder, model, tmp_path):
    with pytest.raises(KitError, match="none is no folder: name one that save_pretrained has written"):
        check_model(tmp_path / "none", "llava")
    put_adapter(model, tmp_path / "adapter")
    with pytest.raises(KitError, match="adapter contains an adapter: name its model as well"):
        check_model(tmp_path / "adapter", "llava")
    with pytest.raises(KitError, match="is of the family llava, not idefics2: set base_model to it"):
        check_model(folder, "idefics2")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    check_model(copy, "llava")
    for file in (tmp_path / "adapter").iterdir():
        shutil.copy(file, copy)
    with pytest.raises(KitError, match="copy contains a model and an adapter: keep each in its own folder, and name"):
        check_model(copy, "llava")
    with pytest.raises(KitError, match="copy cannot be loaded: an adapter lies beside it: keep each in a folder"):
        load(copy)
    for file in copy.glob("adapter_*"):
        file.unlink()
    told = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**told, "model_type": "qwen2_vl"}))
    with pytest.raises(KitError, match="is of the family qwen2_vl, not llava: set base_model to it"):
        check_model(copy, "llava")
    (copy / "config.json").write_text("[]")
    with pytest.raises(KitError, match="cannot read .*config.json: it holds no names and values"):
        check_model(copy, "llava")
    (copy / "config.json").write_text(json.dumps(told))
    weights = load_file(copy / "model.safetensors")
    save_file({**weights, "lm_head.weight": torch.ones(4, 4, dtype=torch.int8)}, copy / "model.safetensors")
    with pytest.raises(KitError, match=r"model.safetensors has integers as weights: see lm_head.weight; save"):
        check_model(copy, "llava")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(KitError, match="holds no model.safetensors but pytorch_model.bin: only safetensors are loaded"):
        check_model(copy, "llava")


def test_weights_in_several_files_are_loaded_from_their_own_folder_alone(folder, model, tmp_path):
    """transformers joins folder and name as they are, so the index could name a file that nobody has checked."""
    parts = tmp_path / "parts"
    model.save_pretrained(parts, max_shard_size="1MB")
    for file in folder.iterdir():
        if not file.match("model*.safetensors") and file.name != "config.json":
            shutil.copy(file, parts)
    check_model(parts, "llava")
    assert torch.equal(logits(load(parts)[0]), logits(model))

    index = parts / "model.safetensors.index.json"
    told, first = json.loads(index.read_text()), sorted(parts.glob("model-*.safetensors"))[0]
    shutil.copy(first, tmp_path / "x.safetensors")
    shutil.copytree(parts, parts / "deeper")
    (parts / "weights.bin").touch()

    def refused(match):
        for check in (load, lambda place: check_model(place, "llava")):
            with pytest.raises(KitError, match=match) as caught:
                check(parts)
            assert "\n" not in str(caught.value)

    for name in ("../x.safetensors", str(tmp_path / "x.safetensors"), f"deeper/{first.name}", "weights.bin", "", None):
        files = {weight: name if file == first.name else file for weight, file in told["weight_map"].items()}
        index.write_text(json.dumps({**told, "weight_map": files}))
        refused(f"index.json names {re.escape(repr(name))}: each must be a safetensors file in this folder")
    index.write_text(json.dumps({**told, "weight_map": [first.name]}))
    refused("index.json has no weight_map of names and files: save the model again")

    first.rename(parts / "other.safetensors")  # a plain name, but not that of a usual part: it is checked as well
    files = {weight: "other.safetensors" if file == first.name else file for weight, file in told["weight_map"].items()}
    index.write_text(json.dumps({**told, "weight_map": files}))
    check_model(parts, "llava")
    save_file({"lm_head.weight": torch.ones(4, 4, dtype=torch.int8)}, parts / "other.safetensors")
    with pytest.raises(KitError, match=r"other.safetensors has integers as weights"):
        check_model(parts, "llava")
    config = parts / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "transformers_weights": "deeper/x.safetensors"}))
    refused("config.json names other weights .*x.safetensors.*: remove transformers_weights from it")


def test_nothing_in_a_folder_is_run(folder, tmp_path, out):
    """Neither a template of conversations, which jinja would run, nor the code that a config can name."""
    copy, ran = shutil.copytree(folder, tmp_path / "hostile"), tmp_path / "ran"
    (copy / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: ...\n")
    template = "{{ raise_exception('rendered') }}"
    (copy / "chat_template.jinja").write_text(template)
    named = dict.fromkeys(
        ("AutoConfig", "AutoProcessor", "AutoImageProcessor", "AutoModelForImageTextToText"), "evil.Evil"
    )
    for name in ("config", "processor_config", "tokenizer_config"):
        told = json.loads((copy / f"{name}.json").read_text())
        more = {"auto_map": {**named, "AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "chat_template": template}
        (copy / f"{name}.json").write_text(json.dumps({**told, **more}))
    processor = load(copy)[1]
    assert processor.chat_template == template and processor.tokenizer.chat_template == template
    answers = [
        pd.read_parquet(pipeline.run(Config(method="yours", base_path=str(place), **SMALL)) / "answers.parquet")
        for place in (folder, copy)
    ]
    pd.testing.assert_frame_equal(*answers)
    assert not ran.exists()


def unsafe(code: str) -> list[str]:
    """Return the parts of ``code`` that run text, or that read objects from a file, which can run code in it."""
    found = []
    for node in ast.walk(ast.parse(code)):
        text = ast.unparse(node) if isinstance(node, ast.Call | ast.Attribute | ast.ImportFrom) else ""
        runs = re.match(r"(eval|exec)\(|pickle\.(?!UnpicklingError)|from (pickle|marshal|dill|joblib) ", text)
        loads = text.startswith("torch.load(") and "weights_only=True" not in text
        if runs or loads or re.match(r"[\w.]+\(.*(trust_remote_code|allow_pickle)=(?!False)", text, re.S):
            found.append(text)
    return found


def test_no_module_runs_what_it_reads():
    for code in (
        "eval(x)",
        "pickle.load(f)",
        "from pickle import load",
        "torch.load(f)",
        "np.load(f, allow_pickle=True)",
    ):
        assert unsafe(code), code
    files = sorted(paths.PACKAGE.rglob("*.py"))
    assert len(files) > 80 and not {file.name: found for file in files if (found := unsafe(file.read_text("utf-8")))}


# -- what is asked and what it is compared with --------------------------------------------------------------------


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    monkeypatch.setattr(paths, "reference", lambda: tmp_path / "committed")
    return tmp_path / "out"


@pytest.fixture
def settings(tmp_path):
    """A configuration file with a grid, which has no effect on a model made elsewhere."""
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "method": "ga", "grid": {"modality": ["unimodal"]}}))
    return path


@pytest.fixture
def base(tiny_base, out):
    """The run of the same model as the kit's own base model."""
    return pipeline.run(Config(method="base", base_path=str(tiny_base), **SMALL))


def put_reference(base, results, method, right):
    """Copy the run ``base`` under another name, with all or no questions right by likelihood."""
    place = shutil.copytree(base, paths.runs(results) / method)
    shutil.copytree(base.parent.parent / "people", paths.people(results), dirs_exist_ok=True)
    true = read_run(base).answers["answer_true"]
    answers = pd.read_parquet(place / "answers.parquet")
    for letter in "ABCD":
        chosen = (true == letter) == right
        answers[f"option_{letter}"] = np.where(answers["scoring"] == "likelihood", np.where(chosen, -1.0, -9.0), np.nan)
    answers.to_parquet(place / "answers.parquet", index=False)
    record = stages.read_json(place / stages.RECORD)
    record["parameters"]["method"] = method
    stages.write_json(place / stages.RECORD, {**record, "run": method, "files": stages.digests(place)})
    return place


def test_a_model_is_asked_what_every_run_is_asked(folder, base, out):
    yours = pipeline.run(Config(method="yours", base_path=str(folder), **SMALL))
    evaluated = out / "results" / "miniature" / "evaluated" / "runs"
    assert yours.parent == evaluated and yours.name.startswith("yours-none-")
    assert not [path for path in base.parent.iterdir() if path != base], "apart from the runs that tables are made of"
    answers, same = pd.read_parquet(base / "answers.parquet"), pd.read_parquet(yours / "answers.parquet")
    assert set(read_run(yours).answers["method"]) == {"yours"}
    # the shipped base measures the fluency of a model made elsewhere, not the base that it started from
    pd.testing.assert_frame_equal(answers.drop(columns="fluency"), same.drop(columns="fluency"))
    spoken = (same["task"] == "generation") & (same["answer"] != "")
    assert spoken.any() and same["fluency"].notna().equals(spoken)
    taught, read = (pd.read_parquet(place / "sentences.parquet") for place in (base, yours))
    arrays = ["log_probs", "right", "spread"]
    assert len(read) == 2 * 29 + 25 * 29 and read.drop(columns=arrays).equals(taught.drop(columns=arrays))
    assert all((a == b).all() for a, b in zip(read["log_probs"], taught["log_probs"], strict=True))


def test_a_model_is_compared_with_its_references_question_by_question(
    folder, model, base, tmp_path, out, settings, monkeypatch, capsys
):
    put_adapter(model, tmp_path / "adapter")
    references = {
        name: put_reference(base, tmp_path / "made", name, name == "vanilla") for name in ("vanilla", "oracle")
    }
    command = ["evaluate", "--model", str(folder), "--adapter", str(tmp_path / "adapter"), "--name", "mine"]
    command += ["--sets", "forget", "--limit", "2", "--config", str(settings)]
    monkeypatch.setattr(pipeline, "reference", lambda config: references[config.method])
    capsys.readouterr()
    assert door.main(command) == 0
    said = capsys.readouterr().out
    assert "minus vanilla (vanilla), question by question" in said and "minus oracle (oracle)" in said
    assert "Likelihood" in said and "gate closed" in said
    [place] = paths.runs(paths.evaluated("miniature")).iterdir()
    items = read_run(place).items
    assert set(items["set"]) == {"forget"} and items["profile"].nunique() == 2 and set(items["method"]) == {"mine"}
    table = pd.read_csv(place / "comparison.csv", keep_default_na=False)
    likely = table[(table["scoring"] == "likelihood") & (table["view"] == "both") & (table["metric"] == "accuracy")]
    likely = likely[likely["set"] == "forget"].set_index("against")
    right = items.loc[items["scoring"] == "likelihood", "correct"].mean()
    values = likely.loc[["vanilla", "oracle"], "value"].astype(float)
    assert values.to_dict() == pytest.approx({"vanilla": right - 1, "oracle": right})
    assert set(likely.loc[["vanilla", "oracle"], "gate"]) == {"open"} and len(pd.read_csv(place / "scores.csv"))
    record = stages.read_json(place / stages.RECORD)
    assert record["limit"] == 2 and list(record["sets"]) == ["forget"]
    assert record["parameters"]["adapter_path"] == "adapter" and record["name"] == "mine"


def test_a_model_of_ones_own_has_no_released_vanilla_to_be_asked_first():
    beside = {"vanilla_path": "MLLMMU/LLaVA_Vanilla", "data_source": "MLLMMU/MLLMU-Bench"}
    plain = Config(scale="paper", method="yours", base_path="owner/model", **beside)
    assert pipeline.anchored(plain) is None and pipeline.anchored(plain.but(adapter_path="here")) is None


def test_references_are_found_by_the_people_they_were_asked_about(folder, tmp_path, out):
    plain = Config(**SMALL)
    assert pipeline.reference(plain) is None
    there = paths.runs(paths.reference()) / plain.run_id
    there.mkdir(parents=True)
    known = {"data_hash": inputs.data_hash(plain), "base_hash": inputs.base_hash(plain)}
    known["forget_ids"] = list(inputs.population(plain).forget_ids)
    (there / "answers.parquet").touch()
    made = dict.fromkeys(stages.OF_A_RUN, "") | {"files": stages.digests(there), "key": "of another machine"}
    record = made | known
    stages.write_json(there / stages.RECORD, record)
    assert pipeline.reference(plain) == there
    assert pipeline.reference(plain.but(replicate=1)) is None and pipeline.reference(plain.but(method="oracle")) is None
    for changed in (
        {"data_hash": "other"},
        {"base_hash": "other"},
        {"forget_ids": ["999"]},
        {"files": {"answers.parquet": {}}},
        {"files": {}},
    ):
        stages.write_json(there / stages.RECORD, {**record, **changed})
        assert pipeline.reference(plain) is None


def test_the_base_of_the_references_measures_the_fluency_of_a_model_made_elsewhere(
    folder, tiny_base, out, tmp_path, monkeypatch
):
    def run(config, **asked):
        judges.append(pipeline.answered(config, **asked).inputs["judge"])
        raise KitError("asked")

    judges: list[str] = []
    monkeypatch.setattr(pipeline, "run", run)
    own = Config(base_path=str(tiny_base))
    for name, given in (("own", {"base_path": str(tiny_base)}), ("shipped", {})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"celebrities": 12, **given}))
        assert door.main(["evaluate", "--model", str(folder), "--config", str(tmp_path / f"{name}.yaml")]) == 2
    assert judges == [inputs.base_hash(own), inputs.base_hash(Config())]


def test_a_configuration_names_people_and_its_method_and_base_do_not_count(folder, out, tmp_path, monkeypatch):
    def run(config, **_):
        asked.append(config)
        raise KitError("asked")

    text = "method: npo\nmodality: unimodal\nbeta: 0.2\ncelebrities: 12\nbase_path: some/base\nbase_revision: v1\n"
    (tmp_path / "npo.yaml").write_text(text)
    asked: list[Config] = []
    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(pipeline, "reference", lambda config: None)
    assert door.main(["evaluate", "--model", str(folder), "--config", str(tmp_path / "npo.yaml")]) == 2
    monkeypatch.setattr(after, "STEPS", Registry("step after unlearning"))
    after.after("scaled")(lambda model, config, share=0.5: model)
    # NPO's beta and the step's share, fixed beside the grid
    grid = "beta: 0.2\nshare: 0.9\ncelebrities: 12\ngrid: {method: [vanilla, ga, npo], after: ['', scaled]}\n"
    (tmp_path / "grid.yaml").write_text(grid)
    assert door.main(["evaluate", "--model", str(folder), "--config", str(tmp_path / "grid.yaml")]) == 2
    assert export.configured(tmp_path / "grid.yaml", {"method": "vanilla"}).celebrities == 12
    assert export.configured(tmp_path / "grid.yaml", {"method": "npo", "modality": "unimodal"}).settings == {
        "beta": 0.2
    }
    for config in asked:
        assert (config.method, config.celebrities, config.base_revision) == ("yours", 12, "") and not config.settings
    assert len(asked) == 2


def test_a_finished_evaluation_is_not_replaced_by_another_one(folder, out, settings, monkeypatch, capsys):
    def made(config, *, limit, **asked):
        stage = pipeline.answered(config, limit=limit, **asked)
        stage.folder.mkdir(parents=True, exist_ok=True)
        (stage.folder / "answers.parquet").write_text(str(limit))
        record = {"key": stage.key, "files": stages.digests(stage.folder)}
        stages.write_json(stage.folder / stages.RECORD, record)
        raise KitError("asked")

    monkeypatch.setattr(pipeline, "run", made)
    command = ["evaluate", "--model", str(folder), "--config", str(settings), "--name", "mine"]
    for more, said in ((), "asked"), ((), "asked"), (("--limit", "1"), "choose another --name, or remove"):
        assert door.main([*command, *more]) == 2
        assert said in capsys.readouterr().err


NAME = "--name must be at most 100 letters, digits, _ and . (it becomes a folder's name)"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--limit", "0"], "--limit must be at least 1, not 0"),
        (["--name", "my-ga"], f"{NAME}, not 'my-ga'"),
        (["--name", "g" * 101], f"{NAME}, not 'ggg"),
        (["--name", "\u4e00" * 34], f"{NAME}, not '\u4e00\u4e00"),
        (["--model", " "], "--model is empty: name a folder"),
        (["--adapter", ""], "--adapter is empty: name a folder"),
        (["--adapter", "nowhere"], "cannot read nowhere/adapter_config.json: No such file or directory"),
        (["--config", "nowhere.yaml"], "cannot read nowhere.yaml: No such file or directory"),
        (["--model", "unknown"], "unknown base_model 'gemma3': choose one of "),
        (["--model", "nowhere"], "nowhere is no folder: name one that save_pretrained has written"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_a_model_is_loaded(
    folder, out, settings, tmp_path, arguments, message, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "config.json").write_text('{"model_type": "gemma3"}')
    monkeypatch.setattr("mllmu_nb.models.load.load_model", lambda *given: pytest.fail("loaded"))
    assert door.main(["evaluate", "--model", str(folder), "--config", str(settings), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1


def test_the_card_of_a_run_on_ones_own_base_needs_its_configuration(base, tiny_base, tmp_path, monkeypatch, capsys):
    """A run stores the names of its folders, not their paths."""
    monkeypatch.chdir(tmp_path)
    assert door.main(["card", str(base)]) != 0
    assert "the base model of the run base-none-" in capsys.readouterr().err
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**SMALL, "base_path": str(tiny_base)}))
    for target, message in (
        (tmp_path, "is a folder: name a file in it"),
        ("mine.yaml/x", "name another file by --out"),
    ):
        assert door.main(["card", "nowhere", "--out", str(target)]) == 2 and message in capsys.readouterr().err
    assert door.main(["card", str(base), "--config", "mine.yaml"]) == 0 and (tmp_path / "card.html").is_file()
    record = stages.read_json(base / stages.RECORD)
    record["parameters"]["profiles_file"] = "people.jsonl"
    stages.write_json(base / stages.RECORD, record)
    assert door.main(["card", str(base)]) != 0
    assert "people.jsonl cannot be read" in (said := capsys.readouterr().err) and "with --config" in said
