"""The studies: the pieces of the released code, grids of unlearnings, and tables with numbers known by hand."""

import argparse
import importlib.util
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pandas as pd
import pytest
import torch
from fake_runs import but, make

from mllmu_nb import checks, inputs, paths, pieces, pipeline, studies, training
from mllmu_nb.batches import unlearning_batches, unlearning_steps
from mllmu_nb.commands import study as command
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import training_conversations
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import path as measuring
from mllmu_nb.training import TrainingDiverged
from mllmu_nb.unlearning import ReferenceLogProbs, Scored, Step, get, variants

SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25, "shots": 0, "replay": 0.0, "train_steps": 2}
LN2 = math.log(2)
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
HALF, QUARTER = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.mktemp("out")))
        yield Config(base_path=str(tiny_base), **SMALL)


# -- making one -------------------------------------------------------------------------------------------------


def ran(*arguments):
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    return command.main(parser.parse_args(arguments))


def test_the_command_makes_the_runs_once_and_writes_their_table(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "reference", lambda: tmp_path)  # otherwise the committed study would be read
    with pytest.raises(KitError, match="no study yet: make it with `python -m mllmu_nb study differences`"):
        studies.read("differences")
    with pytest.raises(KitError, match="this study has nothing to compare yet"):
        studies.compared([])
    with pytest.raises(KitError, match="no oracle of replicate 3"):
        studies.oracles([3])
    with pytest.raises(KitError, match="--replicates are numbers from 0 on, not -1"):
        ran("differences", "--replicates", "0", "-1")
    alone = config.but(method="ga", modality="unimodal", unlearn_steps=2)
    configs = [alone, alone.but(variant="labels_text")]
    monkeypatch.setattr(studies, "grid", lambda replicates: configs)
    monkeypatch.setattr(studies, "oracles", lambda replicates, own: [make("oracle")])
    assert ran() == 0
    printed = capsys.readouterr().out
    assert "| GA, labels | answer | all text |" in printed and "differences.csv" in printed
    assert (paths.study("differences") / "differences.csv").is_file()
    runs = studies.read("differences")
    assert {run["variant"]: run.train["steps"] for run in runs} == {"canonical": 2, "labels_text": 2}
    for run in runs:
        [made] = [pipeline.unlearned(one).get() for one in configs if one.run_id == run.id]
        assert sorted(file.name for file in run.folder.iterdir()) == ["path.parquet", "provenance.json", "train.json"]
        assert (run.folder / "path.parquet").read_bytes() == (made / "path.parquet").read_bytes()
        assert {"question", "answer_true"} <= {*run.path.columns}

    def diverges(*given, **named):
        raise TrainingDiverged("training diverged at step 3")

    monkeypatch.setattr(training, "unlearn", diverges)  # so the two existing runs must not be made again
    studies.make("differences", [*configs, alone.but(unlearn_lr=1.0)])
    assert "training diverged at step 3" in capsys.readouterr().out and len(studies.read("differences")) == 2


@pytest.mark.slow
def test_a_path_of_more_points_is_stored_beside_the_usual_one(config, monkeypatch, short_paths):
    spec = importlib.util.spec_from_file_location("path_points", BENCHMARKS / "path_points.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    monkeypatch.setattr(measuring, "steps_of", short_paths)
    alone = config.but(method="ga", modality="unimodal", unlearn_steps=15)
    studies.make("few", [alone])
    monkeypatch.setattr(measuring, "POINTS", measuring.POINTS * module.TIMES)
    studies.make("many", [alone], module.measured)
    [few], [many] = studies.read("few"), studies.read("many")
    assert list(few.path["step"].unique()) == [*range(0, 31, 3)] and list(many.path["step"].unique()) == [*range(31)]
    shared = many.path[many.path["step"] % 3 == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(shared.astype({"step": int}), few.path.astype({"step": int}))


# -- at equal forgetting ------------------------------------------------------------------------------------------


def halved(variant, draw, good, modality="multimodal", **more):
    """GA, whose path closes the whole gap; where all others lose an answer, those of ``good`` people lose none."""
    return make("ga", lambda q: good(q.person), modality=modality, variant=variant, draw=draw, **more)


@pytest.fixture
def oracles(monkeypatch):
    ends = [make("oracle", lambda q: q.set not in ("forget", "test"), draw=draw) for draw in (0, 1)]
    monkeypatch.setattr(studies, "oracles", lambda replicates, own: ends)


def odd(person):
    return person % 2 == 1


def everybody(person):
    return True


def test_models_are_compared_person_by_person_where_both_close_half(oracles):
    """In these paths everybody's kept answers turn into the run's own, at the same pace."""
    canonical = [halved("canonical", draw, odd) for draw in (0, 1)]
    pieces = [halved("labels_text", draw, everybody) for draw in (0, 1)]
    kept, free = studies.compared([*canonical, *pieces]).to_dict("records")
    assert (kept["what"], free["what"], kept["variant"]) == ("kept", "free", "labels_text")
    assert kept["value"] == 1.0, "every answer about the others stays right"
    # half of the people lose, on average, half of their answers where half of the gap is closed
    assert kept["other_value"] == pytest.approx(0.75, abs=0.08)
    assert kept["change_value"] == pytest.approx(1 - kept["other_value"])
    assert kept["change_low"] < kept["change_value"] < kept["change_high"]
    assert kept["n_replicates"] == kept["of"] == 2 and kept["closed"] == pytest.approx(kept["other_closed"])
    [(heading, [(name, cells)])] = studies.table([*canonical, *pieces]).blocks
    texts = [text for text, _ in cells]
    assert heading == "Unlearned on image + text" and [name, *texts[:2]] == ["GA, labels", "answer", "all text"]
    assert texts[2] == f"{100 * kept['other_closed']:.0f} → {100 * kept['closed']:.0f}"  # two equal pairs: no limits
    limits = f"({100 * kept['change_low']:+.1f} to {100 * kept['change_high']:+.1f})".replace("-", "−")
    assert texts[3] == f"{100 * kept['other_value']:.0f} → 100 {limits}"


def test_what_is_closed_has_limits_over_replicates_by_hand():
    """Differences of .1 and .3 have the mean .2 and the standard error .1; t with one degree of freedom is 12.706."""
    shares = pd.DataFrame({"share": [0.6, 0.8], "share_other": [0.5, 0.5]})
    closed = studies._closed(shares)
    assert list(closed.values()) == pytest.approx([0.7, 0.5, 0.2 - 1.2706, 0.2 + 1.2706], abs=1e-4)
    alone = studies._closed(shares[:1])
    assert (alone["closed"], alone["other_closed"]) == (0.6, 0.5) and math.isnan(alone["closed_low"])


def test_only_replicates_in_which_both_close_half_are_compared(oracles):
    canonical = [halved("canonical", draw, odd) for draw in (0, 1)]
    pieces = [halved("labels_text", draw, everybody) for draw in (0, 1)]
    stopped = [but(one, path=one.path[one.path["step"] == 0]) for one in pieces]
    [kept, _] = studies.compared([*canonical, pieces[0], stopped[1]]).to_dict("records")
    alone = studies.compared([canonical[0], pieces[0]]).to_dict("records")[0]
    assert (kept["n_replicates"], kept["of"]) == (1, 2)
    assert kept["other_value"] == pytest.approx(alone["other_value"]) and math.isnan(kept["change_low"])
    sheet = studies.table([*canonical, pieces[0], stopped[1]])
    assert sheet.blocks[0][1][0][1][3][0] == f"{100 * kept['other_value']:.0f} → 100, 1 of 2"
    never = studies.table([*canonical, *stopped])
    assert never.blocks[0][1][0][1][3] == ("", "Not both close half of the gap.")
    assert "Limits are over 2 replicates" in sheet.markdown()
    assert "Limits are over people alone." in studies.table([canonical[0], pieces[0]]).markdown()


def test_the_kits_own_study_is_compared_with_the_reference_run_alone(monkeypatch, tmp_path):
    """A user's own runs may start from another vanilla model."""
    asked = []

    def reference(config, own=True):
        asked.append((config.method, own))
        return None

    monkeypatch.setattr(pipeline, "reference", reference)
    run = make("npo", modality="unimodal", variant="retain_epoch")
    for folder in (paths.reference() / "studies" / "differences" / "runs" / "npo", tmp_path):
        with pytest.raises(KitError, match="there is no "):
            studies.complete([replace(run, folder=folder)])
    assert [own for _, own in asked] == [False, True]


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
        [(_, loss)] = pieces.RetainEpochPreference().loss(Step.of({"forget": now}, {"forget": reference}))
        pull = torch.autograd.grad(loss, now.logits, retain_graph=True)[0]
        torch.testing.assert_close(pull, -weight * plain, rtol=1e-3, atol=1e-6)
    assert get("npo", "retain_epoch").other_reference and not get("npo").other_reference


def test_a_setting_differs_in_one_piece_and_stands_beside_its_canonical_method():
    trained = studies.grid([0])
    models = {(one.method, one.variant, one.modality): one for one in trained}
    assert len(models) == len(trained) == 25
    ours = {key for method in ("ga", "grad_diff", "kl_min", "npo") for key in ((method, v) for v in variants(method))}
    ours = {key for key in ours if variants(key[0])[key[1]].__module__ == pieces.__name__}
    assert ours == set(studies.PIECES) == {key[:2] for key in models if key[1] != "canonical"}
    for (method, variant, kind), one in models.items():
        plain = models[method, "canonical", kind]
        assert one.unlearning.lr == plain.unlearning.lr and one.settings == plain.settings
        changed = {
            name for name, value in one.unlearning.numbers().items() if value != plain.unlearning.numbers()[name]
        }
        kind = variant.partition("_")[0]
        assert changed == {"labels": {"label_mode"}, "reach": {"adapter_reach"}}.get(
            kind, {"steps", "epochs"} if variant.endswith("passes") else set()
        )
        # as many epochs as the canonical steps make: 8 questions per step, of 150 (by name 140)
        questions = 150 if one.modality == "multimodal" else 140
        walked = 8 * plain.unlearn_steps / questions
        assert one.unlearn_epochs == (pytest.approx(walked, abs=1) if variant.endswith("passes") else 0)


@pytest.mark.parametrize("key", studies.PIECES, ids=" ".join)
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
