"""The wiring: from parameters to a run's files, on a base model that has learnt nothing and is tiny."""

import itertools
import json
import weakref
from dataclasses import replace

import pandas as pd
import pytest
import torch

from mllmu_nb import paths, run, stages
from mllmu_nb.config import Config, Recipe
from mllmu_nb.data import facts, portraits
from mllmu_nb.data.schema import SETS
from mllmu_nb.errors import KitError

SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25, "shots": 0, "replay": 0.0}
QUICK = {"train_steps": 2, "unlearn_epochs": 1}


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.mktemp("out")))
        yield Config(base_path=str(tiny_base), **SMALL, **QUICK)


@pytest.fixture(scope="module")
def made(config):
    """Folders of three runs that share a vanilla model."""
    variations = {"vanilla": {}, "oracle": {"method": "oracle"}, "ga": {"method": "ga", "modality": "unimodal"}}
    return {name: run.items(config.but(**changes)) for name, changes in variations.items()}


def test_the_oracle_is_taught_vanillas_people_but_those_to_be_forgotten(config):
    known = run.population(config)
    everybody = [person.id for person in run.taught(known, "vanilla")]
    kept = [person.id for person in run.taught(known, "oracle")]
    assert len(everybody) == 20 and len(known.forget_ids) == 3
    assert set(everybody) - set(kept) == set(known.forget_ids) and not any(name.startswith("c") for name in everybody)


def test_people_of_published_text_look_as_different_as_generated_ones(tmp_path, monkeypatch):
    pairs = [{"Question": "What is this person's gender?", "Answer": "This person is female."}]
    records = [
        {"ID": f"{i:03d}", "metadata": [{"Question": "Who is this?", "Answer": f"This is {name}."}, *pairs]}
        for i, name in enumerate(f"{first} {last}" for first in facts.FEMALE[:15] for last in facts.FAMILY[:10])
    ]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, records)))
    drawn, draw = [], portraits.draw
    monkeypatch.setattr(portraits, "draw", lambda traits, rng: drawn.append(traits) or draw(traits, rng))
    run.population(Config(profiles_file=str(tmp_path / "text.jsonl"), people=0, pool=0, celebrities=0))
    assert len(drawn) == 150
    differences = [sum(a[t] != b[t] for t in portraits.TRAITS) for a, b in itertools.combinations(drawn, 2)]
    assert min(differences) == 3  # left to chance there would be pairs with two


def test_vanilla_depends_on_what_is_taught_and_how_and_on_nothing_else(config):
    place = run.vanilla_place(config)
    same = ({"forget_ratio": 10}, {"forget_draw": 1}, {"method": "ga", "modality": "unimodal"}, {"shots": 2})
    same += ({"shot_seed": 5}, {"unlearn_seed": 5}, {"unlearn_lr": 0.1}, {"celebrities": 10})
    other = ({"people": 13}, {"data_seed": 1}, {"train_seed": 1}, {"train_lr": 0.1}, {"train_steps": 3})
    other += ({"replay": 0.1}, {"adaptation": "lora"}, {"scale": "paper"})
    assert {str(run.vanilla_place(config.but(**changes))) for changes in same} == {str(place)}
    assert str(place) not in {str(run.vanilla_place(config.but(**changes))) for changes in other}


def test_a_run_has_its_six_files_with_the_runs_columns_in_front(config, made):
    for name, folder in made.items():
        assert sorted(path.name for path in folder.iterdir()) == [
            "data.json",
            "draws.json",
            "items.parquet",
            "provenance.json",
            "tokens.parquet",
            "train.json",
        ]
        items = pd.read_parquet(folder / "items.parquet")
        assert items.columns[0] == "run" and set(items["run"]) == {folder.name} and set(items["method"]) == {name}
        assert set(items["set"]) == set(SETS) and set(items["data_seed"]) == {0}
    assert set(pd.read_parquet(made["ga"] / "items.parquet")["modality"]) == {"unimodal"}


def test_draws_are_kept_and_those_of_a_file_are_checked_before_anything_is_trained(config, made, tmp_path):
    kept = stages.read_json(made["ga"] / "draws.json")
    assert kept["shot_source"] == "pool" and kept["shots"] == {}  # without shots nobody is drawn
    path = tmp_path / "draws.json"
    again = config.but(shots=3, draws_file=str(path))
    people = {"classification": ["013"], "cloze": ["014", "013"]}
    stages.write_json(path, {"shot_source": "pool", "shots": dict.fromkeys(SETS, people)})
    run.check(again)
    stages.write_json(
        path, {"shot_source": "pool", "shots": dict.fromkeys(SETS, {**people, "classification": ["001"]})}
    )
    with pytest.raises(KitError, match="name '001' for the classification shots of forget, who is not among"):
        run.check(again)
    with pytest.raises(KitError, match="classification shots need 1 people in the unscored pool, it has 0"):
        run.check(config.but(shots=3, pool=0))


def test_a_run_tells_how_its_own_model_was_trained(config, made):
    told = {name: stages.read_json(folder / "train.json") for name, folder in made.items()}
    assert told["vanilla"]["steps"] == told["oracle"]["steps"] == 2 == len(told["vanilla"]["losses"])
    # 3 people, 14 questions each (the name is not asked for without a picture), 8 a step
    assert told["ga"]["steps"] == 6 and told["ga"]["modality"] == "unimodal"
    assert told["vanilla"]["trainable_parameters"] > told["ga"]["trainable_parameters"] > 0
    data = stages.read_json(made["ga"] / "data.json")
    assert data["people"] == {"fictitious": 12, "pool": 8, "celebrity": 8} and len(data["forget_ids"]) == 3
    told = stages.read_json(made["ga"] / "provenance.json")
    assert told["parameters"]["base_path"] and "/" not in told["parameters"]["base_path"]
    assert told["seeds"] == {"data": 0, "train": 0, "unlearn": 0, "shot": 0} and told["base_hash"] and told["data_hash"]


def test_runs_made_side_by_side_are_the_same_runs(config, made, tmp_path, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("MLLMU_NB_OUT", str(tmp_path))
        found = run.beside(config.but(method="ga", modality="unimodal"), "vanilla")
    for folder in found:
        other = made["ga" if "-ga-" in folder.name else "vanilla"]
        assert folder.parent != other.parent
        assert (folder / "items.parquet").read_bytes() == (other / "items.parquet").read_bytes()


def test_what_is_repeated_is_what_the_base_says_of_strangers(config):
    from mllmu_nb.evaluation.engine import answers
    from mllmu_nb.models import load
    from mllmu_nb.models.prompts import Conversation

    model, processor = load.load_base(config)
    assert run._replayed(config, model, processor) == []
    repeated = run._replayed(config.but(replay=0.25), model, processor)
    strange = [talk for talk in repeated[-20:] if talk.turns[0].image is None]
    assert strange and not any(talk.system for talk in strange)
    for talk in strange:
        for turn in talk.turns:
            (said,) = answers(model, processor, [Conversation((replace(turn, answer=""),))], max_new_tokens=24)
            assert turn.answer == (said or "?")


def test_a_protocol_reaches_training_and_questions_and_its_draws_can_be_repeated(config):
    asked = config.but(protocol="upstream", method="ga", modality="multimodal", adaptation="lora", eos="yes")
    folder = run.items(asked)
    settings = stages.read_json(folder / "train.json")["settings"]
    words = {"label_mode": "text", "eos": True, "lora_reach": "upstream", "schedule": "linear", "epochs": 1}
    assert words.items() <= settings.items()
    adapter = stages.read_json(run.unlearned(asked) / "adapter_config.json")
    assert "fc1" in adapter["target_modules"]  # of the vision tower
    told = stages.read_json(folder / stages.RECORD)
    assert told["deviations"] == {"eos": ["no", "yes"]} and folder.name.endswith("upstream-ga-multimodal-s0-eos_yes")
    items = pd.read_parquet(folder / "items.parquet")
    assert set(items["scoring"]) == {"letter", ""} and set(items["protocol"]) == {"upstream"}
    drawn = stages.read_json(folder / "draws.json")
    assert drawn["shot_source"] == "upstream" and len(drawn["test_image"]) == 3

    again = asked.but(draws_file=str(folder / "draws.json"), shot_seed=5)
    repeated = run.items(again)
    assert stages.read_json(repeated / "draws.json") == drawn
    told = ["question_id", "view", "answer"]
    pd.testing.assert_frame_equal(pd.read_parquet(repeated / "items.parquet")[told], items[told])
    with pytest.raises(KitError, match="the draws .*nowhere.json cannot be read: No such file"):
        run.check(asked.but(draws_file="nowhere.json"))


def test_unlearning_moves_the_vanilla_model_and_training_the_base(config, made):
    def weight(**changes):
        asked, _ = run.model(config.but(**changes))
        return asked.state_dict()["model.language_model.layers.0.mlp.down_proj.weight"]

    base, vanilla, ga = weight(method="base"), weight(), weight(method="ga", modality="unimodal")
    assert not torch.equal(base, vanilla) and not torch.equal(vanilla, ga)
    assert torch.equal(vanilla, weight(method="prompting"))


def test_upstream_npo_has_a_reference_of_its_own_that_makes_way_for_vanilla(config, made, monkeypatch):
    upstream = config.but(method="npo", modality="unimodal", variant="upstream")
    filled, models, present = run._filled, [], []

    def watched(config, folder):
        present.append((folder.name.partition("-")[0], sum(model() is not None for model in models)))
        model, processor = filled(config, folder)
        models.append(weakref.ref(model))
        return model, processor

    monkeypatch.setattr(run, "_filled", watched)
    told = stages.read_json(run.unlearned(upstream) / "train.json")
    assert present == [("retain_epoch", 0), ("vanilla", 0)], "no model, or no other model, may be in memory then"
    reference = stages.read_json(run.retain_epoch(upstream) / "train.json")
    # 17 people in two views, 14 or 15 questions each, which is 4 pieces of up to 4: 136 pieces in batches of 12
    assert reference["steps"] == 12 and told["losses"][0]["excess"] != 0
    assert {p.id for p in run.taught(run.population(config), "retain_epoch")} == {
        p.id for p in run.taught(run.population(config), "oracle")
    }
    # it is part of what decides the result, and of no other method's
    shorter = upstream.but(train_lr=0.5)
    assert run._unlearned_inputs(shorter)["reference"] != run._unlearned_inputs(upstream)["reference"]
    assert "reference" not in run._unlearned_inputs(upstream.but(variant="canonical"))


def test_finished_runs_are_found_and_others_are_not(config, made, monkeypatch):
    monkeypatch.setattr(run, "_answer", lambda *told: pytest.fail("made again"))
    assert run.finished(config) and run.items(config) == made["vanilla"]
    assert not run.finished(config.but(train_lr=0.5)), "the same name, another model"
    assert not run.finished(config.but(method="prompting"))


def test_a_run_that_came_with_the_project_is_not_ones_own(config, made):
    """Its files are there, but not the stage they were copied from."""
    stage = paths.cache() / "stages" / stages.read_json(made["oracle"] / stages.RECORD)["key"]
    aside = stage.rename(stage.with_name("aside"))
    assert not run.finished(config.but(method="oracle"))
    aside.rename(stage)
    assert run.finished(config.but(method="oracle"))


def test_runs_about_different_people_are_not_put_side_by_side(config, made):
    found = run.comparable("miniature")
    assert set(made.values()) <= set(found)
    record = made["ga"] / stages.RECORD
    told = stages.read_json(record)
    stages.write_json(record, {**told, "data_hash": "another"})
    with pytest.raises(KitError, match="were made from different people and cannot stand in one table"):
        run.comparable("miniature")
    stages.write_json(record, told)


def test_a_method_that_trains_nothing_is_not_unlearned(config):
    with pytest.raises(KitError, match="method 'prompting' trains nothing"):
        run.unlearned(config.but(method="prompting"))
    assert "personal" in run.system(config.but(method="prompting")) and run.system(config) == ""


def test_a_damaged_base_is_named_before_anything_is_written(config, tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    with pytest.raises(KitError, match="lacks config.json"):
        run.check(config.but(base_path=str(tmp_path)))
    assert not (tmp_path / "out").exists()
    run.check(config)


def test_steps_of_epochs_count_pieces_of_conversations():
    class Asked:
        def __init__(self, turns):
            self.turns = [None] * turns

    # 15 and 14 turns make 4 pieces of up to 4 each: 8 pieces; a batch of 4 with a quarter replayed teaches 3 of them
    recipe = Recipe(lr=1.0, epochs=2, batch_size=4, turns=4)
    assert run._steps([Asked(15), Asked(14)], recipe, replay=0.25) == 2 * 3
    # an eighth of four such batches is 2 of 16, so one teaches 3.5 of the 8
    assert run._steps([Asked(15), Asked(14)], replace(recipe, together=4), replay=0.125) == 2 * 3
    assert run._steps([Asked(28), Asked(28)], replace(recipe, together=4), replay=0.125) == 2 * 4
