"""From parameters to a run's files, on a tiny base model that has learnt nothing."""

import importlib.util
import json
import os
import shutil
import weakref
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from miniature import make_model
from mllmu_nb import after, inputs, paths, pipeline, stages, training, unlearning
from mllmu_nb.config import Config, departures
from mllmu_nb.data import facts, official
from mllmu_nb.data.generate import known_people
from mllmu_nb.data.schema import SETS
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import ask as asking
from mllmu_nb.evaluation import path as evaluated
from mllmu_nb.mixture import REFUSAL
from mllmu_nb.models import adapters, families, load
from mllmu_nb.models.checkpoint import Checkpoint
from mllmu_nb.registry import Registry
from mllmu_nb.scoring import anchor

SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25, "shots": 0, "replay": 0.0}
QUICK = {"train_steps": 2, "unlearn_epochs": 1.0}
GA = {"method": "ga", "modality": "unimodal"}
COMPARE = Path(__file__).parent.parent / "tools" / "compare_reference.py"


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.mktemp("out")))
        yield Config(base_path=str(tiny_base), **SMALL, **QUICK)


@pytest.fixture(scope="module")
def made(config):
    """Folders of three runs that share a vanilla model."""
    variations = {"vanilla": {}, "oracle": {"method": "oracle"}, "ga": GA}
    return {name: pipeline.run(config.but(**changes)) for name, changes in variations.items()}


def answers(folder) -> pd.DataFrame:
    return pd.read_parquet(folder / "answers.parquet")


# -- people and models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vanilla", "oracle", "retain_epoch"])
def test_upstream_teaches_image_and_text_pairs_alone(config, monkeypatch, name):
    class Seen(Exception):
        pass

    def taught(model, processor, conversations, *given, **more):
        raise Seen([turn.image is not None for c in conversations for turn in c.turns])

    monkeypatch.setattr("mllmu_nb.training.finetune", taught)
    for protocol, pictures in (("clean", {True, False}), ("upstream", {True})):
        with pytest.raises(Seen) as seen:
            pipeline.finetuned(config.but(protocol=protocol, train_lr=0.5), name).get()
        assert set(seen.value.args[0]) == pictures


def test_unlearning_can_start_from_a_vanilla_model_made_elsewhere_whose_anchor_is_asked_first(
    config, made, tmp_path, monkeypatch
):
    """The folder has the released model's name; the test looks at the one number of that model that others have
    published."""
    vanilla, processor = pipeline.vanilla(config)
    folder = tmp_path / "LLaVA_Vanilla"
    vanilla.save_pretrained(folder)  # without a processor: the base's is used
    people, bench = inputs.population(config), tmp_path / "bench"
    official.write_layout(people, bench)  # with a 5 % split too
    made_here = {"people": 100, "pool": 8, "celebrities": 40}  # the defaults: the people are those of the layout
    given = config.but(vanilla_path=str(folder), data_source=str(bench), forget_ratio=5, **GA, **made_here)
    assert Config.from_parameters(given.given()) == given
    with pytest.raises(KitError, match=r"LLaVA_Vanilla has ROUGE-L 0\.0\d\d on its anchor.*reports have 0\.571: its"):
        pipeline.unlearned(given).get()
    found = anchor.score(stages.read_json(pipeline.anchored(given).folder / "anchor.json"))
    assert found["questions"] == 2 * len(inputs.population(given).forget_ids)
    monkeypatch.setattr(type(inputs.family(given)), "anchor", found["rougeL"])
    monkeypatch.setattr(load, "load_base", lambda *given: pytest.fail("vanilla comes from its folder"))
    log = stages.read_json(pipeline.unlearned(given).get() / "train.json")
    assert log["losses"]["nll_forget"][0] > 0 and pipeline._record(given)["anchor"]["questions"] == found["questions"]
    assert pipeline.anchored(config.but(**GA)) is None
    assert pipeline.anchored(given).key == pipeline.anchored(given.but(protocol="upstream")).key  # however it goes on
    assert given.run_id != given.but(vanilla_path="").run_id


def test_what_else_decides_an_unlearning_from_a_given_vanilla_model_is_in_its_key(config, tmp_path, monkeypatch):
    """The adapter's seed, the processor and the kernels."""
    folder = tmp_path / "vanilla"
    pipeline.vanilla(config)[0].save_pretrained(folder)
    given = config.but(vanilla_path=str(folder), **GA)
    keys = {pipeline.unlearned(given).key, pipeline.unlearned(given.but(adaptation="lora")).key}
    keys.add(pipeline.unlearned(given.but(base_path="")).key)
    monkeypatch.setattr(pipeline.pinning, "settings", lambda: {"ATEN_CPU_CAPABILITY": "default"})
    assert len({*keys, pipeline.unlearned(given).key}) == 4


def test_the_path_asks_with_the_system_prompt_of_its_method(config, made, monkeypatch):
    class Silent(type(unlearning.get("ga"))):
        name, system = "silent", "Say nothing about anybody."

    class Asked(Exception):
        pass

    def questions(model, processor, known, system="", *more):
        raise Asked(system)

    monkeypatch.setattr("mllmu_nb.evaluation.path.questions", questions)
    monkeypatch.setitem(unlearning.METHODS._entries, ("silent", "canonical"), Silent)
    with pytest.raises(Asked, match="^Say nothing about anybody.$"):
        pipeline.unlearned(config.but(**{**GA, "method": "silent"})).get()


def test_the_oracle_is_taught_vanillas_people_but_those_to_be_forgotten(config):
    known = inputs.population(config)
    everybody = [person.id for person in inputs.taught(known, "vanilla")]
    kept = [person.id for person in inputs.taught(known, "oracle")]
    assert kept == [person.id for person in inputs.taught(known, "retain_epoch")]
    assert len(everybody) == 20 and len(known.forget_ids) == 3
    assert set(everybody) - set(kept) == set(known.forget_ids) and not any(name.startswith("c") for name in everybody)


def test_a_file_of_people_that_has_changed_is_read_again(tmp_path):
    file = tmp_path / "text.jsonl"
    config = Config(profiles_file=str(file), people=0, pool=0, celebrities=0)

    def written(names):
        pairs = ["Who is this?", "This is {}."], ["What is this person's gender?", "This person is female."]
        records = [
            {"ID": f"{i:03d}", "metadata": [{"Question": q, "Answer": a.format(name)} for q, a in pairs]}
            for i, name in enumerate(names)
        ]
        file.write_text("\n".join(map(json.dumps, records)))
        return [person.name for person in inputs.population(config).profiles.values()]

    names = [f"{first} Berg" for first in facts.FEMALE[:10]]
    assert written(names) == names
    hashed = inputs.data_hash(config)
    assert written([*names[:9], "Wilhelmina Berg"])[-1] == "Wilhelmina Berg" and inputs.data_hash(config) != hashed


def test_files_behind_commas_and_links_are_read_again_when_they_change(tmp_path):
    """A comma separates the parts of a data_source only where no such path exists."""
    text = tmp_path / "people, new.jsonl"
    text.write_text("one")
    layout, real = tmp_path / "a,b", tmp_path / "elsewhere"
    layout.mkdir()
    real.mkdir()
    (real / "train.parquet").write_text("one")
    (layout / "Full_Set").symlink_to(real)
    configs = Config(profiles_file=str(text)), Config(data_source=str(layout))
    before = [inputs._data(config) for config in configs]
    assert not inputs.unread(configs[1]) and inputs.unread(Config(data_source="x/y, z/w")) == ["x/y", "z/w"]
    for file in (text, real / "train.parquet"):
        file.write_text("another")
    assert all(inputs._data(config) != old for config, old in zip(configs, before, strict=True))


def test_vanilla_depends_on_what_is_taught_and_how_and_on_nothing_else(config):
    key = pipeline.finetuned(config).key
    same = ({"forget_ratio": 10}, {"replicate": 1, "train_seed": 0}, GA, {"shots": 2}, {"shot_seed": 5})
    same += ({**GA, "unlearn_seed": 5}, {**GA, "unlearn_lr": 0.1}, {"celebrities": 10})
    other = ({"people": 13}, {"data_seed": 1}, {"train_seed": 1}, {"train_lr": 0.1}, {"train_steps": 3})
    other += ({"replicate": 1}, {"replay": 0.1}, {"exams": 0.5}, {"adaptation": "lora"}, {"scale": "paper"})
    assert {pipeline.finetuned(config.but(**changes)).key for changes in same} == {key}
    assert key not in {pipeline.finetuned(config.but(**changes)).key for changes in other}


def test_a_length_that_the_method_does_not_accept_is_refused_before_vanilla_is_trained(config, tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))
    passes = {"method": "grad_diff", "variant": "upstream", "unlearn_epochs": None, "unlearn_steps": 20}
    with pytest.raises(KitError, match=r"grad_diff \(upstream\) walks through whole epochs: 20 steps are not one"):
        pipeline.run(config.but(modality="unimodal", **passes))
    assert not pipeline.finetuned(config).finished


def test_where_the_evaluation_reaches_a_training_its_questions_are_in_the_key(config, monkeypatch):
    """The path also asks about celebrities; exams, if their share is not 0, leave out what evaluation asks."""
    assert pipeline.unlearned(config.but(**GA)).key != pipeline.unlearned(config.but(**GA, celebrities=4)).key
    both = [config.but(exams=exams) for exams in (0.0, 0.5)]
    before = [pipeline.finetuned(one).key for one in both]
    known = inputs.population(config)
    fewer = {name: replace(person, questions=person.questions[:1]) for name, person in known.profiles.items()}
    monkeypatch.setattr(inputs, "population", lambda config: replace(known, profiles=fewer))
    after = [pipeline.finetuned(one).key for one in both]
    assert after[0] == before[0] and after[1] != before[1]


def test_what_is_repeated_is_what_the_base_was_taught_celebrities_too(config):
    repeated = pipeline.replayed_conversations(config.train_seed)
    celebrities, unscored = known_people()
    prompts = " ".join(turn.prompt for conversation in repeated for turn in conversation.turns)
    named = {person.name for person in (*celebrities, *unscored) if person.name in prompts}
    assert named >= {person.name for person in (*celebrities, *unscored[::2])}, "all of whom it repeats"
    private = [conversation for conversation in repeated if conversation.system]
    assert 0.1 < len(private) / len(repeated) < 0.15 and len(repeated) == 4000
    assert {turn.answer for conversation in private for turn in conversation.turns} == {REFUSAL}
    other = pipeline.replayed_conversations(config.train_seed + 1)
    assert [c.turns[0].prompt for c in other[:20]] != [c.turns[0].prompt for c in repeated[:20]]


def test_unlearning_changes_the_vanilla_model_and_training_the_base(config, made):
    def weight(**changes):
        model, _ = pipeline.model(config.but(**changes))
        return model.state_dict()["model.language_model.layers.0.mlp.down_proj.weight"]

    base, vanilla, ga = weight(method="base"), weight(), weight(**GA)
    assert not torch.equal(base, vanilla) and not torch.equal(vanilla, ga)
    assert torch.equal(vanilla, weight(method="prompting"))


def test_upstream_npo_has_a_reference_of_its_own_that_leaves_before_vanilla_comes(config, made, monkeypatch):
    upstream = config.but(method="npo", modality="unimodal", variant="upstream")
    filled, models, present = pipeline.filled, [], []

    def watched(config, stage, precision):
        present.append((stage.name, sum(model() is not None for model in models)))
        model, processor = filled(config, stage, precision)
        models.append(weakref.ref(model))
        return model, processor

    monkeypatch.setattr(pipeline, "filled", watched)
    pipeline.model(upstream)  # trains what is missing; its vanilla is the first one, to be asked at the path's start
    names = ["vanilla", "retain_epoch", "vanilla", "vanilla"]
    assert present == [(name, 0) for name in names], "no other model may be in memory then"
    record = stages.read_json(pipeline.unlearned(upstream).get() / "train.json")
    # 17 people in two views, 14 or 15 questions each, which is 4 pieces of up to 4: 136 pieces in batches of 12
    reference = stages.read_json(pipeline.finetuned(upstream, "retain_epoch").get() / "train.json")
    assert reference["steps"] == 12
    # L = -2/β log σ(β (ℓ̄ - ℓ̄_ref)) would be 2/β log 2 if the two models agreed, but they do not
    assert abs(record["losses"]["forget"][0] - 2 / 0.4 * torch.log(torch.tensor(2.0)).item()) > 1e-4
    # the reference is one of the stage's inputs, for this method only
    assert pipeline.unlearned(upstream).inputs["reference"] == pipeline.finetuned(upstream, "retain_epoch").key
    assert not pipeline.unlearned(upstream.but(variant="canonical")).inputs["reference"]


def test_a_method_that_trains_nothing_is_not_unlearned(config):
    with pytest.raises(KitError, match="method 'prompting' trains nothing"):
        pipeline.unlearned(config.but(method="prompting"))
    assert "personal" in config.but(method="prompting").system and config.system == ""


# -- runs -------------------------------------------------------------------------------------------------------


def test_a_run_has_its_files_and_they_are_all_it_takes_to_score_it(config, made):
    files = ["answers.parquet", "draws.json", "path.parquet", "provenance.json", "sentences.parquet", "train.json"]
    files.append("utility.parquet")
    people = paths.people(paths.results("miniature")) / inputs.data_hash(config)
    questions = pd.read_parquet(people.with_suffix(".parquet"))
    assert not questions.duplicated(["version", "question_id"]).any()
    for name, folder in made.items():
        assert sorted(path.name for path in folder.iterdir()) == files and folder.name.startswith(f"{name}-")
        rows = answers(folder)
        assert set(rows["set"]) == set(SETS) and not {"correct", "rougeL", "question"} & set(rows)
        assert rows["fluency"].notna().equals((rows["task"] == "generation") & (rows["answer"] != ""))
        rows["version"] = rows["set"].map(lambda name: "test" if name == "test" else "plain").astype(str)
        joined = rows.merge(questions, "left", ["version", "question_id"], validate="many_to_one")
        assert joined["question"].notna().all() and (joined["task_x"] == joined["task_y"]).all()
    own = pd.read_parquet(people.parent / f"{people.name}-facts.parquet")
    assert set(own["profile"]) == set(inputs.population(config).profiles)


def test_an_unlearning_that_was_killed_goes_on_to_the_same_bytes(config, monkeypatch):
    """Killed before the run's own four steps have ended, and after, where only the path goes on to eight."""
    stage = pipeline.unlearned(config.but(**GA, unlearn_epochs=None, unlearn_steps=4))
    files = ("adapter_model.safetensors", "path.parquet")
    whole, taken = [(stage.get() / name).read_bytes() for name in files], []
    stop: list[int] = []
    losses = stages.read_json(stage.folder / "train.json")["losses"]
    monkeypatch.setattr(Checkpoint.__init__, "__defaults__", (None, None, 0.0))  # saved after every step
    step = training.back_propagate

    def back_propagate(*given):
        taken.append(1)
        if taken == stop:
            raise InterruptedError
        return step(*given)

    monkeypatch.setattr(training, "back_propagate", back_propagate)
    for number in (3, 7):
        stop[:] = [1] * number
        shutil.rmtree(stage.folder)
        taken.clear()
        with pytest.raises(InterruptedError):
            stage.get()
        stage.get()
        assert len(taken) == 9, "the step that was lost is taken again, and no other"
        assert [(stage.folder / name).read_bytes() for name in files] == whole
        assert stages.read_json(stage.folder / "train.json")["losses"] == losses


def test_a_path_begins_with_vanilla_and_passes_through_the_run(made):
    """Each point is read at its step, with the adapter of that step."""
    path, on = pd.read_parquet(made["ga"] / "path.parquet"), ["set", "scoring", "question_id"]
    steps, last = sorted(path["step"].unique()), stages.read_json(made["ga"] / "train.json")["steps"]
    assert steps[0] == 0 and last in steps and steps[-1] == 2 * last, "beyond its end, at a constant rate"
    options = [f"option_{letter}" for letter in "ABCD"]
    for step, name in ((0, "vanilla"), (last, "ga")):
        rows = answers(made[name]).query("scoring == 'likelihood' or task == 'generation'").astype({"set": str})
        likeliest = rows[options].fillna(-np.inf).to_numpy().argmax(1)
        rows = rows.assign(
            own=np.where(rows["scoring"] == "likelihood", np.array(list("ABCD"))[likeliest], rows["answer"])
        )
        point = path[path["step"] == step].astype(dict.fromkeys(on, str))
        both = point.merge(rows.astype(dict.fromkeys(on, str))[[*on, "own"]], on=on, validate="one_to_one")
        assert len(both) == len(point) > 100 and (both["answer"] == both["own"]).mean() > 0.99, name
    first, end = (path.loc[path["step"] == step, "answer"].to_numpy() for step in (0, last))
    assert (first != end).any(), "else nothing was learnt between them"


def test_all_paths_of_the_same_people_have_one_start_which_a_fresh_adapter_does_not_change(config, made):
    ga = config.but(**GA)
    start = pipeline.path_start(ga)
    assert start.finished and start.key == pipeline.path_start(config.but(method="npo", modality="unimodal")).key
    others = ({"replicate": 1}, {"forget_ratio": 15}, {"eval_batch": 7}, {"train_steps": 3})
    assert len({start.key, *(pipeline.path_start(ga.but(**given)).key for given in others)}) == 1 + len(others)
    model, processor = pipeline.vanilla(ga, ga.unlearning.precision)
    adapted = adapters.attach(model, ga.unlearning, 0).get_base_model()
    asked = evaluated.questions(adapted, processor, inputs.population(ga))
    point = evaluated.point(adapted, processor, asked, pipeline.asked_at_once(ga, pipeline.PATH_BATCH))
    pd.testing.assert_frame_equal(pd.read_parquet(start.folder / "path.parquet").drop(columns="step"), point)
    stored = pd.read_parquet(made["ga"] / "path.parquet").query("step == 0").drop(columns="step")
    pd.testing.assert_frame_equal(stored, point)


def test_answers_and_starts_of_another_commit_are_not_used(config, made, monkeypatch):
    """The name on the hub means its newest commit, so the key is the same."""
    old, known = {"base_commit": "a" * 40}, inputs.record_of
    for stage in (pipeline.shared_answers(config), pipeline.path_start(config.but(**GA))):
        stages.write_json(stage.get() / stages.RECORD, stages.read_json(stage.folder / stages.RECORD) | old)
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "record_of", lambda config: known(config) | {"base_commit": "b" * 40})
        for again in (config.but(forget_ratio=30), config.but(method="npo", modality="unimodal")):
            with pytest.raises(KitError, match=f"was made from commit {'a' * 40} of the base model"):
                pipeline.run(again)


def test_a_training_records_its_own_settings_not_those_of_a_step_after_it(config, monkeypatch):
    monkeypatch.setattr(after, "STEPS", Registry("step after unlearning"))
    after.after("scaled")(lambda model, config, share=0.5: model)
    stage = pipeline.unlearned(config.but(**GA, after="scaled", share=0.9))
    assert "share" not in stages.read_json(stage.get() / "train.json")["settings"]
    assert stage.key == pipeline.unlearned(config.but(**GA)).key


def test_answers_are_stored_to_the_bit(tmp_path, config, made):
    rows = answers(made["ga"]).assign(option_B=[1 / 3] * 7 + [-1e-45] * (len(answers(made["ga"])) - 7))
    pipeline.write_answers(rows, tmp_path / "answers.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "answers.parquet"), rows, check_exact=True)


def test_a_run_records_how_its_own_model_was_trained_and_on_whom(config, made):
    trained = {name: stages.read_json(folder / "train.json") for name, folder in made.items()}
    assert trained["vanilla"]["steps"] == trained["oracle"]["steps"] == 2 == len(trained["vanilla"]["losses"]["loss"])
    # 3 people, 14 questions each (no question for the name without a picture), 8 per step
    assert trained["ga"]["steps"] == 6 and trained["ga"]["modality"] == "unimodal"
    assert trained["vanilla"]["trainable_parameters"] > trained["ga"]["trainable_parameters"] > 0
    losses = trained["ga"]["losses"]
    assert losses["loss"] == losses["forget"] and losses["loss"][0] == -losses["nll_forget"][0] < 0
    record = stages.read_json(made["ga"] / stages.RECORD)
    assert record["people"] == {"fictitious": 12, "pool": 8, "celebrity": 8} and len(record["forget_ids"]) == 3
    assert record["sets"]["forget"] == record["sets"]["test"] and record["sets"]["forget"]["profiles"] == 3
    assert record["parameters"]["base_path"] and "/" not in record["parameters"]["base_path"]
    assert record["base_hash"] and record["data_hash"] and set(record["files"]) > {"answers.parquet", "draws.json"}


def test_draws_are_kept_and_those_of_a_file_are_checked_before_anything_is_trained(config, made, tmp_path):
    kept = stages.read_json(made["ga"] / "draws.json")
    assert kept["shot_source"] == "pool" and kept["shots"] == {}  # without shots nobody is drawn
    path = tmp_path / "draws.json"
    again = config.but(shots=3, draws_file=str(path))
    people = {"classification": ["013"], "cloze": ["014", "013"]}
    stages.write_json(path, {"shot_source": "pool", "shots": dict.fromkeys(SETS, people)})
    inputs.check(again)
    scored = {**people, "classification": ["001"]}
    stages.write_json(path, {"shot_source": "pool", "shots": dict.fromkeys(SETS, scored)})
    with pytest.raises(KitError, match=r"name \['001'\] for the classification shots of forget"):
        inputs.check(again)
    with pytest.raises(KitError, match="classification shots need 1 people in the unscored pool, it has 0"):
        inputs.check(config.but(shots=3, pool=0))
    with pytest.raises(KitError, match="cannot read nowhere.json: .*No such file"):
        inputs.check(config.but(draws_file="nowhere.json"))
    released = {"method": "grad_diff", "modality": "multimodal", "protocol": "upstream"}
    with pytest.raises(KitError, match="grad_diff .upstream. walks through whole epochs: 1.5 is not one"):
        inputs.check(config.but(**released, unlearn_epochs=1.5))


def test_a_run_with_other_draws_is_another_one(config, monkeypatch):
    usual = pipeline.answered(config).key
    monkeypatch.setattr(inputs, "draws_of", lambda *given: {"shots": {"forget": {"cloze": ["014"]}}})
    assert pipeline.answered(config).key != usual


def test_a_protocol_reaches_training_and_questions_and_its_draws_can_be_repeated(config):
    asked = config.but(protocol="upstream", method="ga", modality="multimodal", adaptation="lora", eos=True)
    folder = pipeline.run(asked)
    settings = stages.read_json(folder / "train.json")["settings"]
    words = {"label_mode": "text", "eos": True, "adapter_reach": "upstream", "schedule": "linear", "epochs": 1}
    assert words.items() <= settings.items()
    adapter = stages.read_json(pipeline.unlearned(asked).get() / "adapter_config.json")
    weights = load_file(pipeline.unlearned(asked).get() / "adapter_model.safetensors")
    assert any("vision_tower" in name for name in weights) and "fc1" not in str(adapter["target_modules"])
    before = load_file(pipeline.finetuned(asked).get() / "adapter_model.safetensors")
    first = next(name for name in weights if "lora_A" in name)
    along = [torch.nn.functional.normalize(one[first], dim=1) for one in (before, weights)]
    assert (along[0] * along[1]).sum(1).abs().mean() < 0.5, "a matrix A of its own"
    deviations = stages.read_json(folder / stages.RECORD)["deviations"]
    assert deviations["eos"] == [False, True] and deviations["shots"] == [5, 0] and "train_steps" in deviations
    assert stages.read_json(folder / stages.RECORD)["departures"] == departures() != []
    [batches] = [one for one in departures() if "one by one" in one]
    assert all(part in batches for part in ("(eval_batch), padded", "begin with is read once", "fp16 rounds otherwise"))
    assert stages.read_json(folder / "train.json")["beyond_context"] == 0
    rows = answers(folder)
    assert set(rows["scoring"]) == {"letter", ""}
    drawn = stages.read_json(folder / "draws.json")
    assert drawn["shot_source"] == "upstream" and len(drawn["test_image"]) == 3

    again = pipeline.run(asked.but(draws_file=str(folder / "draws.json"), shot_seed=5))
    assert again != folder and stages.read_json(again / "draws.json") == drawn
    pd.testing.assert_frame_equal(answers(again), rows)


@pytest.mark.slow
def test_runs_made_side_by_side_are_the_same_runs(config, made, tmp_path, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("MLLMU_NB_OUT", str(tmp_path))
        folders = pipeline.beside(config.but(**GA), "vanilla")
    for folder, name in zip(folders, ("ga", "vanilla"), strict=True):
        assert folder != made[name] and folder.name == made[name].name
        assert (folder / "answers.parquet").read_bytes() == (made[name] / "answers.parquet").read_bytes()


def test_a_process_that_was_killed_beside_the_others_is_named(config, monkeypatch):
    class Killed(ThreadPoolExecutor):
        def __init__(self, count, **named):
            super().__init__(count)

        def submit(self, *given):
            ended = Future()
            ended.set_exception(BrokenProcessPool("terminated abruptly"))
            return ended

    monkeypatch.setattr(pipeline, "finished", lambda one: False)
    monkeypatch.setattr(pipeline, "ProcessPoolExecutor", Killed)
    with pytest.raises(KitError, match="killed, most often for want of memory: `mllmu-nb sweep` with"):
        pipeline.beside(config.but(**GA), "vanilla")


def test_under_accelerate_launch_all_processes_make_one_run_after_the_other(config, monkeypatch):
    made = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(pipeline, "finished", lambda one: False)
    monkeypatch.setattr(pipeline, "ProcessPoolExecutor", lambda *given, **named: pytest.fail("two at once"))
    monkeypatch.setattr(pipeline, "run", lambda one: made.append(one.method))
    pipeline.beside(config.but(**GA), "vanilla", "oracle")
    assert made == ["ga", "vanilla", "oracle"]


def test_a_finished_run_is_used_again_and_another_is_not(config, made, monkeypatch):
    monkeypatch.setattr(stages, "replacing", lambda *_: pytest.fail("made again"))
    assert pipeline.finished(config) and pipeline.run(config) == made["vanilla"]
    assert not pipeline.finished(config.but(train_lr=0.5)) and not pipeline.finished(config.but(method="prompting"))


def test_a_run_whose_answers_were_changed_is_made_again(config, made):
    file = made["ga"] / "answers.parquet"
    whole, state = file.read_bytes(), file.stat()
    file.unlink()
    file.write_bytes(whole[:-1] + b"\0")  # of the same length
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # and the same time
    assert not pipeline.finished(config.but(**GA))
    assert pipeline.run(config.but(**GA)) == made["ga"]
    assert file.read_bytes() == whole and pipeline.finished(config.but(**GA))


def test_a_run_that_stopped_while_it_was_asked_goes_on_where_it_was(config, made, monkeypatch):
    file, honest, begun = made["vanilla"] / "answers.parquet", asking.answer, []
    whole = file.read_bytes()
    file.unlink()

    def stopping(model, processor, inquiry, *more):
        begun.append((inquiry.scoring, inquiry.items[0].question.task))
        if len(begun) == 3:
            raise RuntimeError("stopped")
        return honest(model, processor, inquiry, *more)

    monkeypatch.setattr(asking, "answer", stopping)
    with pytest.raises(RuntimeError, match="stopped"):
        pipeline.run(config)
    assert pipeline.run(config) == made["vanilla"] and file.read_bytes() == whole
    assert begun[3:5] == [begun[2], ("", "cloze")], "two of four tasks were answered before the stop"
    assert not list((paths.results("miniature") / ".unfinished").iterdir())


@pytest.mark.parametrize("method", [{}, GA, {"method": "oracle"}])
def test_prompts_that_are_too_long_are_refused_before_anything_is_trained(config, monkeypatch, method):
    monkeypatch.setattr(families.Family, "context", lambda self, model: 300)
    monkeypatch.setattr("mllmu_nb.training.train", lambda *given, **more: pytest.fail("trained"))
    long = config.but(**method, shots=5, train_lr=0.125)
    with pytest.raises(KitError, match=r"^the prompt of .* takes \d+ tokens and the context holds 300: ask for fewer"):
        pipeline.run(long)


def test_a_model_that_is_the_same_at_every_ratio_is_asked_once(config, made, monkeypatch):
    asked, honest = [], asking._answers

    def counted(model, processor, inquiry, batch_size, progress, prompts):
        asked.append(len(prompts.conversations))
        return honest(model, processor, inquiry, batch_size, progress, prompts)

    monkeypatch.setattr(asking, "_answers", counted)
    for ratio, most in ((10, 0.0), (40, 0.6)):  # the questions of 10 % are known from the run at 25 %
        run = config.but(forget_ratio=ratio)
        shared = answers(pipeline.run(run))
        assert sum(asked) <= most * len(shared), "only the questions of people who changed their set are new"
        asked.clear()
        afresh = asking.ask(*pipeline.model(run), inputs.population(run), draws=inputs.draws_of(run), batch_size=256)
        assert sum(asked) == len(afresh) == len(shared)
        columns = [name for name in afresh if not name.startswith("option_")]
        pd.testing.assert_frame_equal(shared[columns], afresh[columns], check_dtype=False)  # stored in small types
        options = list(asking.OPTIONS)
        np.testing.assert_allclose(shared[options], afresh[options], atol=1e-5)
        end = evaluated.questions(*pipeline.model(run), inputs.population(run))
        path = evaluated.point(*pipeline.model(run), end).assign(step=0)
        pd.testing.assert_frame_equal(pd.read_parquet(inputs.run_folder(run) / "path.parquet"), path, check_dtype=False)
        asked.clear()
    assert pipeline.shared_answers(config.but(**GA)) is None is pipeline.shared_answers(config.but(method="oracle"))
    assert pipeline.shared_answers(config.but(method="base")).key != pipeline.shared_answers(config).key
    prompting = config.but(method="prompting")
    key = pipeline.shared_answers(prompting).key
    monkeypatch.setattr(type(unlearning.get("prompting")), "system", "Tell nobody anything.")
    assert pipeline.shared_answers(prompting).key != key, "another prompt is another question"


def test_with_other_examples_at_each_ratio_free_answers_and_celebrities_are_asked_once(config, tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))  # these are other people
    asked, honest = Counter(), asking._answers

    def counted(model, processor, inquiry, batch_size, progress, prompts):
        if inquiry.conversations[0].protocol == "upstream" and inquiry.items[0].set in SETS:  # no path, no utility
            asked[inquiry.items[0].question.task] += len(prompts.conversations)
        return honest(model, processor, inquiry, batch_size, progress, prompts)

    monkeypatch.setattr(asking, "_answers", counted)
    few = {"people": 30, "shots": 5, "protocol": "upstream", "method": "base"}
    first, second = (config.but(**few, forget_ratio=ratio) for ratio in (10, 15))
    assert inputs.draws_of(first)["shots"]["test"] != inputs.draws_of(second)["shots"]["test"]
    before = answers(pipeline.run(first))
    assert sum(asked.values()) == len(before), "a run at the ratio that is shared asks each question once"
    asked.clear()
    rows = answers(pipeline.run(second))
    changed = rows[rows["set"] != "celebrity"].groupby("task").size()
    assert asked["classification"] == changed["classification"] and asked["cloze"] == changed["cloze"]
    test, known = rows[(rows["set"] == "test") & (rows["task"] == "generation")], before[before["set"] == "test"]
    assert asked["generation"] == (~test["profile"].isin(known["profile"])).sum() > 0, "of people new to the Test set"
    afresh = asking.ask(
        *pipeline.model(second), inputs.population(second), draws=inputs.draws_of(second),
        protocol="upstream", scoring="letter", long_prompts="ask", batch_size=256,
    )  # fmt: skip
    pd.testing.assert_series_equal(rows["answer"], afresh["answer"])


def test_the_peoples_questions_are_written_again_where_they_are_not_whole(config, made):
    file = paths.people(paths.results("miniature")) / f"{inputs.data_hash(config)}-facts.parquet"
    whole = file.read_bytes()
    file.write_bytes(b"PAR1")
    assert pipeline.run(config) == made["vanilla"] and file.read_bytes() == whole
    assert [path.suffix for path in file.parent.iterdir()] == [".parquet", ".parquet"]


def test_a_model_that_was_overwritten_is_asked_again_in_the_same_process(config, tmp_path, tiny_base):
    folder = shutil.copytree(tiny_base, tmp_path / "model")
    mine = config.but(method="yours", base_path=str(folder))
    asked = {"name": "mine", "sets": ("forget",), "limit": 1}
    first = pipeline.run(mine, **asked)
    before = answers(first)
    assert set(before["profile"]) == {inputs.population(config).forget_ids[0]}
    assert first.name.startswith("mine-none-") and first.parent.parent == paths.evaluated("miniature")
    model, processor = load.load_model(str(folder), "llava", "miniature")
    make_model(processor.tokenizer, 1, width=32, layers=1, heads=2).save_pretrained(folder)  # weights of another seed
    after = answers(pipeline.run(mine, **asked))
    assert len(after) == len(before) and not after["option_A"].equals(before["option_A"])
    record = stages.read_json(first / stages.RECORD)
    assert record["name"] == "mine" and record["limit"] == 1 and set(record["sets"]) == {"forget"}


def test_a_run_that_came_with_the_project_is_a_reference_and_not_ones_own(config, made, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "reference", lambda: tmp_path)
    prompting = config.but(method="prompting")
    assert pipeline.reference(prompting) is None
    folder = paths.runs(tmp_path) / prompting.run_id
    shutil.copytree(made["vanilla"], folder)
    assert pipeline.reference(prompting) == folder and not pipeline.finished(prompting)
    assert pipeline.reference(config) == made["vanilla"]  # your own run comes first
    record = stages.read_json(folder / stages.RECORD)
    stages.write_json(folder / stages.RECORD, {**record, "data_hash": "another"})
    assert pipeline.reference(prompting) is None
    stages.write_json(folder / stages.RECORD, record)
    (folder / "draws.json").write_text("{}")
    assert pipeline.reference(prompting) is None


def test_a_damaged_base_is_named_before_anything_is_written(config, tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    with pytest.raises(KitError, match="lacks config.json"):
        inputs.check(config.but(base_path=str(tmp_path)))
    assert not (tmp_path / "out").exists()
    inputs.check(config)


# -- two results folders ----------------------------------------------------------------------------------------


def test_two_results_folders_are_compared_to_the_bit(made, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("compare_reference", COMPARE)
    compare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compare)
    results, copy = made["ga"].parent.parent, tmp_path / "results"
    for name in made:
        shutil.copytree(made[name], copy / "runs" / name)
    assert compare.main(str(results), str(copy)) == 0 and "3 runs in both" in capsys.readouterr().out

    other = shutil.copytree(made["ga"], copy / "runs" / "other")  # as in a grid over a hyper-parameter
    record = stages.read_json(other / stages.RECORD)
    record["parameters"]["settings"] = {"beta": 2.0}
    stages.write_json(other / stages.RECORD, record)
    assert compare.main(str(results), str(copy)) == 0
    said = capsys.readouterr().out
    assert "3 runs in both" in said and "1 only after" in said

    rows = answers(made["vanilla"])
    first = rows["option_C"].first_valid_index()
    rows.loc[first, "option_C"] = np.nextafter(rows.loc[first, "option_C"], 0)
    pipeline.write_answers(rows, copy / "runs" / "vanilla" / "answers.parquet")
    assert compare.main(str(results), str(copy)) == 1
    assert "answers: option_C of 1 rows, the first -" in capsys.readouterr().out
    assert compare.main(str(results), str(tmp_path)) == 1 and "nothing to compare" in capsys.readouterr().out
