"""What each difference changes: one ingredient at a time, measured on a tiny model, and told from made-up answers."""

import math

import pandas as pd
import pytest
import torch

from mllmu_nb import __main__ as door
from mllmu_nb import paths, run, stages
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import differences as told
from mllmu_nb.reporting import studies
from mllmu_nb.studies import differences
from mllmu_nb.studies.differences import (
    ARMS,
    RetainEpochPreference,
    SequentialGradientDifference,
    SummedKLMinimization,
)
from mllmu_nb.unlearning import METHODS, Recorded, Scored, get, sequence_log_probs

LN2 = math.log(2)
HALF, QUARTER = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25, "shots": 0, "replay": 0.0}
QUICK = {"train_steps": 2, "unlearn_epochs": 1}


def scored(probabilities, labels, everywhere=None):
    logits = torch.tensor(probabilities).log().requires_grad_()
    return Scored(logits, torch.tensor(labels), None if everywhere is None else torch.tensor(everywhere).log())


# -- the ingredients --------------------------------------------------------------------------------------------


def test_sequential_steps_have_the_canonical_terms():
    method = SequentialGradientDifference(gamma=2.0, alpha=3.0)
    assert method.passes == (("forget",), ("retain",))
    # a mean over answers: (ln 2 + ln 4) / 2 where the tokens' mean would be (2 ln 2 + ln 4) / 3
    batch = scored([[HALF, HALF], [QUARTER, HALF]], [[0, 0], [0, -100]])
    up, parts = method.loss({"forget": batch}, {})
    assert up.item() == pytest.approx(-2 * 1.5 * LN2) and parts == {"forget": pytest.approx(1.5 * LN2)}
    down, _ = method.loss({"retain": batch}, {})
    joint, _ = get("grad_diff", gamma=2.0, alpha=3.0).loss({"forget": batch, "retain": batch}, {})
    assert down.item() == pytest.approx(3 * 1.5 * LN2)
    assert (up + down).item() == pytest.approx(joint.item())


def test_the_summed_kl_stands_where_the_mean_stood():
    # KL(HALF ‖ QUARTER) = 1/2 ln 2 + 0 - 1/4 ln 2 = 1/4 ln 2, at three of four positions, one of them supervised
    forget = scored([[HALF]], [[0]])
    now = scored([[QUARTER]], [[2]], [[QUARTER, QUARTER, HALF, QUARTER]])
    before = scored([[HALF]], [[2]], [[HALF, HALF, HALF, HALF]])
    for method, kl in ((SummedKLMinimization(alpha=2.0), 3 / 4 * LN2), (get("kl_min", alpha=2.0), 1 / 4 * LN2)):
        loss, parts = method.loss({"forget": forget, "retain": now}, {"retain": before})
        assert parts == {"forget": pytest.approx(LN2), "kl": pytest.approx(kl)}
        assert loss.item() == pytest.approx(-LN2 + 2 * kl)
    assert SummedKLMinimization.passes.fget(SummedKLMinimization()) == (("forget", "retain"),)


def test_against_a_model_that_never_knew_the_answer_npo_pulls_harder():
    """The weight of an answer is 2σ(β Δ): 1 against the model itself, 2σ(.1 · 20 ln 2) = 1.6 where the reference finds
    each of 20 tokens half as likely."""
    now = scored([[HALF] * 20], [[0] * 20])
    plain = torch.autograd.grad(-sequence_log_probs(now).sum(), now.logits, retain_graph=True)[0]
    for probability, weight in ((0.5, 1.0), (0.25, 1.6)):
        reference = Recorded(torch.full((1, 20), math.log(probability)), now.labels)
        loss, _ = RetainEpochPreference().loss({"forget": now}, {"forget": reference})
        pull = torch.autograd.grad(loss, now.logits, retain_graph=True)[0]
        torch.testing.assert_close(pull, -weight * plain, rtol=1e-3, atol=1e-6)
    assert RetainEpochPreference().measured_elsewhere and not get("npo").measured_elsewhere


def test_an_arm_differs_in_one_ingredient_and_stands_beside_its_canonical_method():
    canonical = {arm.method.name: arm for arm in ARMS if not arm.ingredient}
    keys = [(arm.method.name, arm.ingredient) for arm in ARMS]
    assert len(set(keys)) == len(keys) and {key for key in keys if key[1]} == set(told.TOLD)
    for arm in ARMS:
        plain = canonical[arm.method.name]
        assert set(arm.modalities) <= set(plain.modalities)
        assert plain == differences.Arm(get(arm.method.name)), "canonical, with the preset"
        other = [type(arm.method) is not type(plain.method), arm.label_mode != "answer"]
        assert sum(other) == bool(arm.ingredient)
    assert not any(kind.__module__ == differences.__name__ for known in METHODS.values() for kind in known.values())


# -- the measurement --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.mktemp("out")))
        yield Config(base_path=str(tiny_base), **SMALL, **QUICK)


@pytest.fixture(scope="module")
def measured(config):
    # every ingredient's code is walked through; the modality changes nothing in it
    arms = [differences.Arm(a.method, a.ingredient, a.label_mode, a.few, ("multimodal",)) for a in ARMS]
    return differences.measure(config, [0], arms, shot_draws=2, jobs=1)


def test_the_canonical_arm_is_the_run_of_the_methods_notebook(config, measured):
    answers, _ = told.read(measured)
    mine = answers[(answers["method"] == "npo") & (answers["ingredient"] == "")]
    theirs = pd.read_parquet(run.items(config.but(method="npo", modality="multimodal")) / "items.parquet")
    keys = ["set", "question_id", "scoring"]
    pairs = mine.merge(theirs, on=keys, suffixes=("", "_run"))
    assert len(pairs) == len(mine) == (5 + 2) * 12  # likelihood and sentence, one view
    for column in ("correct", "exact"):
        pd.testing.assert_series_equal(pairs[column], pairs[f"{column}_run"], check_names=False)


def test_everything_but_the_ingredient_is_alike(measured):
    records = stages.read_json(measured / stages.RECORD)["unlearned"]
    found = {(one["method"], one["ingredient"]): one for one in records}
    assert len(found) == len(records) == len(ARMS)
    for (method, ingredient), one in found.items():
        canonical = found[method, ""]
        assert one["lr"] == canonical["lr"]
        # 3 people to forget with 15 questions, 9 to keep, 8 a step: 6 steps, and 17 through all of retain
        more = {"passes": 6, "whole_passes": 17}.get(ingredient, 0)
        assert one["steps"] == 6 + more
    assert found["ga", "labels_upstream"]["supervised_tokens"] > found["ga", "labels_text"]["supervised_tokens"]
    assert found["ga", "labels_text"]["supervised_tokens"] > found["ga", ""]["supervised_tokens"]


def test_what_is_measured_is_found_again(config, measured, monkeypatch):
    monkeypatch.setattr(differences, "_trained", lambda *given: pytest.fail("trained again"))
    arm = next(arm for arm in ARMS if arm.ingredient == "summed_kl")
    differences.unlearned(config.but(method="kl_min", modality="multimodal"), arm)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        differences.unlearned(config.but(method="kl_min", modality="multimodal", unlearn_lr=0.5), arm)


def test_only_the_miniature_is_measured(config):
    with pytest.raises(KitError, match="made on the miniature"):
        differences.measure(config.but(scale="paper", unlearn_epochs=0, train_steps=0))


def test_shots_are_drawn_anew_and_none_are_asked_once(measured):
    shots = told.read(measured)[1]
    asked = shots.groupby(["source", "shot_seed"])["question_id"].nunique().to_dict()
    assert asked == {
        (s, n): 3 * (10 + 4) for s, n in (("none", 0), ("pool", 0), ("pool", 1), ("upstream", 0), ("upstream", 1))
    }


def test_the_command_refuses_draws_that_cannot_be(capsys):
    assert door.main(["study", "differences", "--draws", "0", "-1"]) == 2
    assert capsys.readouterr().err == "error: --draws are numbers of forget sets from 0 on, not -1\n"


# -- what is told of it -----------------------------------------------------------------------------------------


def made_up(ingredient, right, modality="multimodal", set_name="forget", draw=0):
    """One likelihood item of each of as many people as ``right`` has entries."""
    return [
        {"method": "ga", "ingredient": ingredient, "modality": modality, "forget_draw": draw, "set": set_name}
        | {"task": "classification", "view": "image_text", "scoring": "likelihood", "profile": f"{n:03d}"}
        | {"question_id": f"{n:03d}/0", "correct": float(value), "exact": math.nan}
        for n, value in enumerate(right)
    ]


def test_differences_are_paired_and_pooled_over_draws():
    rows = made_up("", [1, 1, 0, 0]) + made_up("labels_text", [1, 0, 0, 0])
    rows += made_up("", [1, 1, 1, 1], draw=1) + made_up("labels_text", [0, 0, 1, 1], draw=1)
    found = told.changes(pd.DataFrame(rows)).iloc[0]
    assert (found["canonical"], found["released"], found["value"]) == (6 / 8, 3 / 8, -3 / 8)
    # by person -1/2, -1, 0, 0 over two draws: mean -.375, sd .4787, Student's t with 3 degrees 3.182
    half = 3.1824 * 0.47871 / 2
    assert found["high"] == pytest.approx(half - 0.375, abs=1e-3)
    assert found["low"] == -1.0  # -1.137, which no difference can be
    assert found["verdict"] == told.NOTHING and (found["n_items"], found["n_profiles"]) == (8, 4)


def test_a_verdict_is_given_where_the_interval_leaves_nought_out():
    kept, lost = [1] * 20, [0] * 18 + [1] * 2
    rows = made_up("", kept) + made_up("labels_text", lost) + made_up("labels_upstream", kept)
    table = told.changes(pd.DataFrame(rows))
    assert table["verdict"].tolist() == ["lower", told.NOTHING]
    printed = told.printed(table)
    assert printed.index[0] == ("GA, labels", "answer", "all text", "image + text")
    assert printed["Forget, likelihood"].tolist()[0].startswith("100 → 10 (−")
    assert printed["verdict"].tolist() == ["Forget, likelihood lower", told.NOTHING]


def shot_rows(source, seed, right):
    return [
        {"source": source, "shot_seed": seed, "task": task, "profile": str(n), "question_id": f"{n}/{task}"}
        | {"correct": float(value)}
        for task in told.TASKS
        for n, value in enumerate(right)
    ]


def test_the_spread_over_draws_stands_beside_the_first_draws_interval():
    rows = shot_rows("none", 0, [0, 0, 1, 0]) + shot_rows("pool", 0, [1, 0, 1, 0]) + shot_rows("pool", 1, [1, 1, 1, 1])
    rows += shot_rows("upstream", 0, [1, 1, 1]) + shot_rows("upstream", 1, [0, 1, 0])
    shots = pd.DataFrame(rows)
    table = told.spread(shots)
    assert table["source"].tolist() == ["none", "pool", "upstream"] * 2
    pool = table.iloc[1]
    assert (pool["draws"], pool["mean"], pool["lowest"], pool["highest"], pool["first"]) == (2, 0.75, 0.5, 1.0, 0.5)
    assert pool["sd"] == pytest.approx(math.sqrt(1 / 8)) and pool["low"] < 0.5 < pool["high"]
    changed = told.shot_changes(shots).set_index(["task", "what"])["value"]
    assert changed["cloze", "pool − none"] == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    # the fourth person was left out of both of upstream's draws; the others: .5, 1, .5 against 1, .5, 1
    assert changed["cloze", "upstream − pool"] == pytest.approx((-0.5 + 0.5 - 0.5) / 3)
    assert len(told.shot_figure(shots).axes) == 2


def test_every_ingredient_has_its_row_in_the_figure():
    rows = []
    for method, ingredient in told.TOLD:
        for kind in ("", ingredient):
            rows += [{**row, "method": method} for row in made_up(kind, [1, 0, int(kind == ""), 1])]
    figure = told.figure(told.changes(pd.DataFrame(rows).drop_duplicates()))
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == [f"{one.what}:\n{one.released}" for one in told.TOLD.values()]


def test_ones_own_study_comes_before_the_committed_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))
    with pytest.raises(KitError, match="not there at scale paper: `python -m mllmu_nb study differences`"):
        studies.found("differences", "paper")
    committed = paths.committed_study("miniature", "differences")
    assert studies.found("differences") == committed
    assert studies.line(committed) == "the study that comes with the project, forget draws [0, 1]"
    own = paths.study("miniature", "differences")
    own.mkdir(parents=True)
    stages.write_json(own / stages.RECORD, {"forget_draws": [3]})
    assert studies.found("differences") == own
    assert studies.line(own) == "your own study, forget draws [3]"


def test_the_committed_measurement_is_whole():
    folder = paths.committed_study("miniature", "differences")
    answers, shots = told.read(folder)
    made = {
        (m, i, o) for m, i, o in answers[["method", "ingredient", "modality"]].drop_duplicates().itertuples(index=False)
    }
    assert made == {(arm.method.name, arm.ingredient, modality) for arm in ARMS for modality in arm.modalities}
    assert shots.groupby("source")["shot_seed"].nunique().to_dict() == {"none": 1, "pool": 20, "upstream": 20}
    kept, again = pd.read_csv(folder / "differences.csv"), told.changes(answers)
    pd.testing.assert_frame_equal(kept, again, check_dtype=False)
    record = stages.read_json(folder / stages.RECORD)
    assert len(record["unlearned"]) == len(made) * len(record["forget_draws"]) and record["dirty"] is False
