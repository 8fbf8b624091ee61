"""The study of the released code's pieces: a grid of ordinary runs, and tables with numbers known by hand."""

import argparse
import json
import math
from itertools import islice

import pandas as pd
import pytest
import torch
from fake_runs import make

from mllmu_nb import checks, inputs, paths, pipeline, training
from mllmu_nb.batches import unlearning_batches, unlearning_steps
from mllmu_nb.commands import study as command
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import training_conversations
from mllmu_nb.errors import KitError
from mllmu_nb.studies import released_code, searched
from mllmu_nb.training import TrainingDiverged
from mllmu_nb.unlearning import ReferenceLogProbs, Scored, Step, get, variants

SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25, "shots": 0, "replay": 0.0, "train_steps": 2}
LN2 = math.log(2)
KNOWN = {"canonical": range(4), "labels_text": [0]}
HALF, QUARTER = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.mktemp("out")))
        yield Config(base_path=str(tiny_base), **SMALL)


# -- making one -------------------------------------------------------------------------------------------------


def test_the_command_makes_the_runs_once_and_writes_their_table(config, tmp_path, monkeypatch, capsys):
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    monkeypatch.setattr(paths, "reference", lambda: tmp_path)  # otherwise the committed study would be read
    with pytest.raises(KitError, match="no study yet: make it with `python -m mllmu_nb study differences`"):
        released_code.read()
    with pytest.raises(KitError, match="--replicates are numbers from 0 on, not -1"):
        command.main(parser.parse_args(["differences", "--replicates", "0", "-1"]))
    alone = config.but(method="ga", modality="unimodal", unlearn_steps=1)
    configs = [alone, alone.but(variant="labels_text")]
    monkeypatch.setattr(released_code, "grid", lambda replicates: configs)
    assert command.main(parser.parse_args([])) == 0
    assert "differences.csv" in capsys.readouterr().out
    runs = released_code.read()
    assert {run["variant"] for run in runs} == {"canonical", "labels_text"} and {
        run.train["steps"] for run in runs
    } == {1}
    written = pd.read_csv(paths.study("differences") / "differences.csv")
    [forget] = written.query("set == 'forget' and measure == 'likelihood'").to_dict("records")
    [variant] = [run for run in runs if run["variant"] == "labels_text"]
    asked = variant.items.query("scoring == 'likelihood' and set == 'forget' and view == 'text'")
    assert forget["released"] == pytest.approx(asked["correct"].mean()) and forget["n_items"] == len(asked)

    def diverges(*given, **named):
        raise TrainingDiverged("training diverged at step 3")

    monkeypatch.setattr(training, "unlearn", diverges)  # so the two existing runs must not be made again
    released_code.make([*configs, alone.but(unlearn_lr=1.0)])
    assert "training diverged at step 3" in capsys.readouterr().out and len(released_code.read()) == 2


# -- differences ------------------------------------------------------------------------------------------------


def scored(probabilities, labels, everywhere=None):
    logits = torch.tensor(probabilities).log().requires_grad_()
    return Scored(
        logits, torch.tensor(labels), everywhere=None if everywhere is None else torch.tensor(everywhere).log()
    )


def terms(method, batches, reference=None):
    return {name: term.item() for name, term in method.loss(Step.of(batches, reference))}


def test_sequential_steps_have_the_canonical_terms():
    # a mean over answers: (ln 2 + ln 4) / 2; the mean over tokens would be (2 ln 2 + ln 4) / 3
    batch = scored([[HALF, HALF], [QUARTER, HALF]], [[0, 0], [0, -100]])
    for variant, retain in (("whole_passes", {"retain": batch}), ("passes", {"retain": batch, "length": None})):
        method = get("grad_diff", variant, gamma=2.0, alpha=3.0)
        assert terms(method, {"forget": batch}) == {"forget": pytest.approx(-2 * 1.5 * LN2)}
        assert terms(method, retain) == {"retain": pytest.approx(3 * 1.5 * LN2)}
    joint = terms(get("grad_diff", gamma=2.0, alpha=3.0), {"forget": batch, "retain": batch})
    assert joint == {"forget": pytest.approx(-3 * LN2), "retain": pytest.approx(4.5 * LN2)}


def test_the_summed_kl_stands_where_the_mean_stood():
    # KL(HALF ‖ QUARTER) = 1/2 ln 2 + 0 - 1/4 ln 2 = 1/4 ln 2, at three of four positions, one of them supervised
    now = scored([[QUARTER]], [[2]], [[QUARTER, QUARTER, HALF, QUARTER]])
    before = scored([[HALF]], [[2]], [[HALF, HALF, HALF, HALF]])
    batches = {"forget": scored([[HALF]], [[0]]), "retain": now}
    for variant, kl in (("summed_kl", 3 / 4 * LN2), ("canonical", 1 / 4 * LN2)):
        result = terms(get("kl_min", variant, alpha=2.0), batches, {"retain": before})
        assert result == {"forget": pytest.approx(-LN2), "kl": pytest.approx(2 * kl)}


def test_against_a_model_that_never_knew_the_answer_npo_pulls_harder():
    """An answer's weight is 2σ(β Δ): 1 against the model itself, and 2σ(.1 · 20 ln 2) = 1.6 if the reference finds each
    of 20 tokens half as likely."""
    now = scored([[HALF] * 20], [[0] * 20])
    plain = torch.autograd.grad(-now.summed_log_probs.sum(), now.logits, retain_graph=True)[0]
    for probability, weight in ((0.5, 1.0), (0.25, 1.6)):
        reference = ReferenceLogProbs(torch.full((1, 20), math.log(probability)), now.labels)
        [(_, loss)] = released_code.RetainEpochPreference().loss(Step.of({"forget": now}, {"forget": reference}))
        pull = torch.autograd.grad(loss, now.logits, retain_graph=True)[0]
        torch.testing.assert_close(pull, -weight * plain, rtol=1e-3, atol=1e-6)
    assert get("npo", "retain_epoch").other_reference and not get("npo").other_reference


def test_a_setting_differs_in_one_piece_and_stands_beside_its_canonical_method():
    trained = released_code.grid([0])
    models = {(one.method, one.variant, one.modality): one for one in trained}
    assert len(models) == len(trained) == 22
    ours = {key for method in ("ga", "grad_diff", "kl_min", "npo") for key in ((method, v) for v in variants(method))}
    ours = {key for key in ours if variants(key[0])[key[1]].__module__ == released_code.__name__}
    assert ours == set(released_code.PIECES) == {key[:2] for key in models if key[1] != "canonical"}
    for (method, variant, kind), one in models.items():
        plain = models[method, "canonical", kind]
        assert one.unlearning.lr == plain.unlearning.lr and one.settings == plain.settings
        changed = {
            name for name, value in one.unlearning.numbers().items() if value != plain.unlearning.numbers()[name]
        }
        kind = variant.partition("_")[0]
        assert changed == {"labels": {"label_mode"}}.get(
            kind, {"steps", "epochs"} if variant.endswith("passes") else set()
        )
        # as many epochs as the canonical steps make: 8 questions per step, of 150 (by name 140)
        questions = 150 if one.modality == "multimodal" else 140
        walked = 8 * plain.unlearn_steps / questions
        assert one.unlearn_epochs == (pytest.approx(walked, abs=1) if variant.endswith("passes") else 0)


@pytest.mark.parametrize("key", released_code.PIECES, ids=" ".join)
def test_every_variant_passes_the_checks(key):
    checks.check_method(variants(key[0])[key[1]])


def test_a_way_down_as_long_as_the_way_up_is_that_long(config):
    # 3 people to forget and 9 to keep, with 15 questions each, 8 per step: 6 steps up, then 6 or 17 down
    for variant, steps in (("passes", 12), ("whole_passes", 23)):
        one = config.but(method="grad_diff", variant=variant, modality="multimodal", unlearn_epochs=1.0)
        known, processor = inputs.population(one), inputs.family(one).load_processor(one.base_path)
        sets = {name: training_conversations(known.members(name), "multimodal") for name in ("forget", "retain")}
        assert unlearning_steps(one.objective, one.unlearning, sets) == steps
        fed = unlearning_batches(inputs.family(one), processor, one.objective, sets, one.unlearning, 0)
        names = [set(piece) - {"length"} for pieces in islice(fed, steps) for piece in pieces]
        assert names == [{"forget"}] * 6 + [{"retain"}] * (steps - 6)


def test_a_label_mode_that_a_method_declares_is_that_of_unlearning_alone():
    text = Config(method="ga", variant="labels_text", modality="unimodal")
    assert (text.unlearning.label_mode, text.training.label_mode, text.label_mode) == ("text", "answer", "answer")
    assert text.but(label_mode="upstream").unlearning.label_mode == "upstream", "what is given comes first"
    assert pipeline.finetuned(text).key == pipeline.finetuned(Config()).key
    assert Config(method="ga", modality="unimodal").unlearning.label_mode == "answer"


def answering(variant, right, modality="multimodal", draw=0):
    """Return GA in a variant; its choices with these numbers are right."""
    return make("ga", lambda q: q.number in right, variant=variant, modality=modality, draw=draw)


def test_differences_are_paired_and_pooled_over_draws():
    runs = [answering(variant, right, draw=draw) for draw in (0, 1) for variant, right in KNOWN.items()]
    result = released_code.changes(runs).query("set == 'forget' and measure == 'likelihood'").iloc[0]
    # five questions about each of ten people in two draws: four of them are right, or one
    assert (result["canonical"], result["released"]) == pytest.approx((0.8, 0.2))
    assert result["value"] == pytest.approx(-0.6) and result["high"] < 0 and result["verdict"] == "lower"
    assert (result["n_items"], result["n_profiles"]) == (100, 20), "asked in the view that was trained on, and no other"


def test_limits_over_several_replicates_are_wider_and_the_sheet_says_what_they_are_over():
    """All-text labels cost two of five answers in one replicate and none in the other, so nobody knows which part comes
    from the piece and which from the replicate."""
    runs = [answering("canonical", range(5), draw=draw) for draw in (0, 1)]
    runs += [answering("labels_text", right, draw=draw) for draw, right in enumerate(([2, 3, 4], range(5)))]
    at = "set == 'retain' and measure == 'likelihood'"
    [both] = released_code.changes(runs).query(at).to_dict("records")
    assert both["n_replicates"] == 2 and both["verdict"] == released_code.NO_DIFFERENCE
    assert released_code.changes([runs[0], runs[2]]).query(at)["verdict"].item() == "lower"
    assert "Limits are over 2 replicates, each with its own" in released_code.change_table(runs).markdown()
    assert "Limits are over people alone." in released_code.change_table([runs[0], runs[2]]).markdown()


def test_a_verdict_is_given_where_the_interval_leaves_nought_out():
    runs = [answering("canonical", range(5)), answering("labels_text", [0]), answering("labels_upstream", range(5))]
    sheet = released_code.change_table(runs)
    [(heading, [text, upstream])] = sheet.blocks
    assert heading == "Unlearned on image + text" and text[0] == "GA, labels"
    assert [cell for cell, _ in text[1]][:2] == ["answer", "all text"]
    assert text[1][2][0].startswith("100 → 20 (−") and "Forget, likelihood lower" in text[1][-1][0]
    assert upstream[1][-1][0] == released_code.NO_DIFFERENCE and "100 → 100 (" in sheet.markdown()


# -- searched settings ----------------------------------------------------------------------------------------------


def test_the_searched_settings_are_the_committed_choices():
    [config] = [c for c in searched.grid([3]) if (c.method, c.variant, c.modality) == ("npo", "retain", "unimodal")]
    rows = json.loads((paths.reference() / "settings_search.json").read_text(encoding="utf-8"))["choices"]
    [row] = [one for one in rows if (one["method"], one["variant"], one["modality"]) == ("npo", "retain", "unimodal")]
    assert (config.unlearn_lr, config.unlearn_steps, config.settings["alpha"]) == (
        row["lr"],
        row["steps"],
        row["weight"],
    )
    assert config.replicate == 3 and len(searched.grid([0, 1])) == 2 * len(rows)


def test_the_study_of_settings_stores_the_path_of_each_training_once(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "reference", lambda: tmp_path)  # otherwise the committed study would be read
    configs = [config.but(method="ga", modality="unimodal", unlearn_steps=2, unlearn_lr=lr) for lr in (1e-3, 2e-3)]
    searched.make(configs)
    runs = searched.read()
    assert {run.parameters["unlearn_lr"] for run in runs} == {1e-3, 2e-3} and capsys.readouterr().out.count("[") == 2
    for run, one in zip(sorted(runs, key=lambda run: run.parameters["unlearn_lr"]), configs, strict=True):
        made = pipeline.unlearned(one).get()
        assert sorted(file.name for file in run.folder.iterdir()) == ["path.parquet", "provenance.json", "train.json"]
        assert (run.folder / "path.parquet").read_bytes() == (made / "path.parquet").read_bytes()
        assert run.id == one.run_id and {"question", "answer_true"} <= {*run.path.columns}
    monkeypatch.setattr(training, "unlearn", lambda *given, **named: pytest.fail("trained again"))
    searched.make(configs)
    monkeypatch.setattr(searched, "choices", list)
    with pytest.raises(KitError, match="no oracle of replicate 0"):
        searched.beside([0])


def test_searched_settings_are_compared_person_by_person_where_both_close_half(monkeypatch, tmp_path, capsys):
    """In these paths everybody's kept answers turn into the run's own, at the same pace."""

    def run(name, good, **more):
        return make("ga", lambda q: q.person % 2 == 0 or good, modality="multimodal", run=name, **more)

    ours = [run("ours", True, draw=draw, unlearn_lr=2e-3) for draw in (0, 1)]
    middle = [run("middle", False, draw=draw) for draw in (0, 1)]
    oracles = [make("oracle", lambda q: q.set not in ("forget", "test"), draw=draw) for draw in (0, 1)]
    frame = searched.compared(ours, [*middle, *oracles]).set_index("what")
    assert list(frame["n_replicates"]) == [2, 2] and list(frame["middle_n_replicates"]) == [2, 2]
    kept = frame.loc["kept"]
    assert kept["value"] == 1.0, "every answer about the others stays right"
    # half of the people lose, on average, half of their answers where half of the gap is closed
    assert kept["middle_value"] == pytest.approx(0.75, abs=0.08)
    assert kept["change_low"] < kept["change_value"] < kept["change_high"]
    assert kept["change_value"] == pytest.approx(1 - kept["middle_value"])
    never = searched.compared([one.but(path=one.path[one.path["step"] == 0]) for one in ours], [*middle, *oracles])
    assert never["value"].isna().all() and never["change_value"].isna().all()
    monkeypatch.setattr(searched, "read", lambda: ours)
    monkeypatch.setattr(searched, "beside", lambda replicates: [*middle, *oracles])
    monkeypatch.setattr(searched, "make", lambda configs: None)
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))
    paths.study("searched").mkdir(parents=True)
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    assert command.main(parser.parse_args(["searched"])) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| GA |")]
    name, settings, value, beside, change, *_ = line.strip("| ").split(" | ")
    assert settings.startswith("0.002, ") and value.startswith("100 ")
    assert beside.startswith(f"{100 * kept['middle_value']:.0f} ")
    assert change.startswith(f"+{100 * kept['change_value']:.0f} ")
    assert (paths.study("searched") / "searched.csv").is_file()
