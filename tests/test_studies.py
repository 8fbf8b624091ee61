"""The study of the released code's pieces: a grid of ordinary runs, summed by person; tables whose numbers are known by
hand."""

import argparse
import math

import numpy as np
import pandas as pd
import pytest
import torch

from mllmu_nb import checks, paths, pipeline, stages, training
from mllmu_nb.commands import study as command
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting.runs import read_run
from mllmu_nb.scoring.path import TRAINED_VIEW
from mllmu_nb.statistics.intervals import interval
from mllmu_nb.studies import base, differences, released_code
from mllmu_nb.studies.base import Measured
from mllmu_nb.training import TrainingDiverged
from mllmu_nb.unlearning import ReferenceLogProbs, Scored, Step, get, variants

SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25, "shots": 0, "replay": 0.0, "train_steps": 2}
LN2 = math.log(2)
HALF, QUARTER = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.mktemp("out")))
        config = Config(base_path=str(tiny_base), **SMALL)
        patch.setattr(base, "Config", lambda: config)  # the kit's vanilla is the miniature's, which takes minutes
        yield config


def measured(scores):
    """A study of these scores, with the columns that they do not vary."""
    scores = pd.DataFrame(scores).assign(variant="canonical") if "variant" not in scores else scores
    return Measured(paths.reference() / "studies" / "x", {}, scores, pd.DataFrame())


def run_command(*arguments):
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    return command.main(parser.parse_args(arguments))


# -- making one -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(config):
    """Vanilla, and two models of one step each."""
    alone = config.but(method="ga", modality="unimodal", unlearn_steps=1, replicate=1)
    return [config.but(replicate=1), alone, alone.but(variant="labels_text")]


@pytest.fixture(scope="module")
def made(grid):
    return base.make(grid, limit=2)


def test_scores_are_those_of_the_runs(made):
    study = base.read()
    assert study.folder == made and study.record["replicates"] == [1]
    # two people of each set, both views
    counts = base.only(study.scores, method="ga", variant="labels_text").groupby("measure")["items"].sum()
    assert counts.to_dict() == {"likelihood": 40, "letter": 40, "exact": 16, "cloze": 16}
    assert set(base.only(study.scores, method="vanilla")["set"]) == {"forget"}
    folders = [folder for folder in (made / "runs").iterdir() if folder.name.startswith("ga")]
    assert len(folders) == 2
    for run in map(read_run, folders):
        mine = base.only(study.scores, variant=run["variant"], measure="exact", set="retain", view="text")
        answers = run.items.query("task == 'generation' and set == 'retain' and view == 'text'")
        assert len(answers) == mine["items"].sum() == 4
        assert mine["score"].sum() == pytest.approx(answers["exact"].sum())
    assert study.settings["steps"].tolist()[1:] == [1, 1]
    _, answer, text = study.settings["supervised_tokens"]
    assert text > answer > 0


def test_what_is_made_is_not_made_again_and_one_that_diverges_is_no_end(grid, made, monkeypatch):
    monkeypatch.setattr(training, "unlearn", lambda *given, **named: pytest.fail("trained again"))
    assert base.make(grid, limit=2) == made

    def diverges(*given, **named):
        raise TrainingDiverged("training diverged at step 3")

    monkeypatch.setattr(training, "unlearn", diverges)
    base.make([*grid, grid[1].but(unlearn_lr=1.0)], limit=2)
    study = base.read()
    assert study.settings["diverged"].tolist() == ["", "", "", "training diverged at step 3"]
    assert len(study.scores.drop_duplicates(base.SETTING)) == 3


def test_a_study_of_another_vanilla_is_none(config, made, monkeypatch):
    record = stages.read_json(made / stages.RECORD)
    for name in ("data_hash", "base_hash"):
        stages.write_json(made / stages.RECORD, record | {name: "older"})
        with pytest.raises(KitError, match="no study of this vanilla yet: `python -m mllmu_nb study differences`"):
            base.read()
    stages.write_json(made / stages.RECORD, record)
    assert base.read().folder == made
    monkeypatch.setattr(base, "Config", lambda: config.but(train_steps=3))
    with pytest.raises(KitError, match="no study of this vanilla"):
        base.read()


def test_ones_own_study_comes_before_the_committed_one(made, tmp_path, monkeypatch):
    reference = tmp_path / "reference"
    committed = paths.study(reference, base.NAME)
    committed.mkdir(parents=True)
    for file in ("scores.parquet", "settings.csv", stages.RECORD):
        (committed / file).write_bytes((made / file).read_bytes())
    monkeypatch.setattr(paths, "reference", lambda: reference)
    assert base.read().folder == made
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "empty"))
    assert base.read().folder == committed


def test_sums_give_the_interval_of_the_answers():
    rng = np.random.default_rng(0)
    items = pd.DataFrame({"profile": np.repeat([f"{n:02d}" for n in range(40)], 5), "score": rng.integers(2, size=200)})
    sums = items.groupby("profile", sort=False)["score"].agg(["sum", "count"]).reset_index()
    sums = sums.set_axis(["profile", "score", "items"], axis=1)
    assert interval(*base.answers(sums)) == interval(items["score"], items["profile"])
    values, people = base.answers(pd.DataFrame({"profile": ["a", "b"], "score": [2.0, 0.3], "items": [3, 2]}))
    assert values.tolist() == [1, 1, 0, 0.15, 0.15] and people.tolist() == ["a", "a", "a", "b", "b"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["differences", "--replicates", "0", "-1"], "--replicates are numbers from 0 on, not -1"),
        (["--jobs", "0"], "--jobs must be at least 1, not 0"),
    ],
)
def test_the_command_refuses_what_cannot_be(arguments, message):
    with pytest.raises(KitError) as error:
        run_command(*arguments)
    assert str(error.value) == message


def test_the_command_writes_the_table_that_the_scores_give(made, monkeypatch, capsys):
    monkeypatch.setattr(base, "make", lambda grid, jobs: made)
    monkeypatch.setattr(differences, "grid", lambda config, replicates: [])
    assert run_command() == 0
    assert f"differences.csv: {made}" in capsys.readouterr().out
    stored = pd.read_csv(made / "differences.csv")
    pd.testing.assert_frame_equal(stored, differences.table(base.read()), check_dtype=False)
    assert set(stored["variant"]) == {"labels_text"}


# -- differences ------------------------------------------------------------------------------------------------


def scored(probabilities, labels, everywhere=None):
    logits = torch.tensor(probabilities).log().requires_grad_()
    return Scored(
        logits, torch.tensor(labels), everywhere=None if everywhere is None else torch.tensor(everywhere).log()
    )


def terms(method, batches, reference=None):
    return {name: term.item() for name, term in method.loss(Step.of(batches, reference))}


def test_sequential_steps_have_the_canonical_terms():
    # a mean over answers: (ln 2 + ln 4) / 2 where the tokens' mean would be (2 ln 2 + ln 4) / 3
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
    """The weight of an answer is 2σ(β Δ): 1 against the model itself, 2σ(.1 · 20 ln 2) = 1.6 where the reference finds
    each of 20 tokens half as likely."""
    now = scored([[HALF] * 20], [[0] * 20])
    plain = torch.autograd.grad(-now.summed_log_probs.sum(), now.logits, retain_graph=True)[0]
    for probability, weight in ((0.5, 1.0), (0.25, 1.6)):
        reference = ReferenceLogProbs(torch.full((1, 20), math.log(probability)), now.labels)
        [(_, loss)] = released_code.RetainEpochPreference().loss(Step.of({"forget": now}, {"forget": reference}))
        pull = torch.autograd.grad(loss, now.logits, retain_graph=True)[0]
        torch.testing.assert_close(pull, -weight * plain, rtol=1e-3, atol=1e-6)
    assert get("npo", "retain_epoch").other_reference and not get("npo").other_reference


def test_a_setting_differs_in_one_piece_and_stands_beside_its_canonical_method():
    trained = [one for one in differences.grid(Config(), [0]) if one.trains]
    models = {(one.method, one.variant, one.modality): one for one in trained}
    assert len(models) == len(trained) == 22
    ours = {key for method in ("ga", "grad_diff", "kl_min", "npo") for key in ((method, v) for v in variants(method))}
    ours = {key for key in ours if variants(key[0])[key[1]].__module__ == released_code.__name__}
    assert ours == set(differences.PIECES) == {key[:2] for key in models if key[1] != "canonical"}
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
        # as many epochs as the canonical steps are: of 8 over 150 questions, 140 by name
        questions = 150 if one.modality == "multimodal" else 140
        walked = 8 * plain.unlearn_steps / questions
        assert one.unlearn_epochs == (pytest.approx(walked, abs=1) if variant.endswith("passes") else 0)


@pytest.mark.parametrize("key", differences.PIECES, ids=" ".join)
def test_every_variant_passes_the_checks(key):
    checks.check_method(variants(key[0])[key[1]])


def test_a_way_down_as_long_as_the_way_up_is_that_long(config):
    # 3 people to forget with 15 questions, 9 to keep, 8 a step: 6 steps up, 6 or 17 down
    for variant, steps in (("passes", 12), ("whole_passes", 23)):
        one = config.but(method="grad_diff", variant=variant, modality="multimodal", unlearn_epochs=1.0)
        log = stages.read_json(pipeline.unlearned(one).get() / "train.json")
        assert log["steps"] == steps
        assert ["forget" in loss for loss in log["losses"]] == [True] * 6 + [False] * (steps - 6)


def test_a_label_mode_that_a_method_declares_is_that_of_unlearning_alone():
    text = Config(method="ga", variant="labels_text", modality="unimodal")
    assert (text.unlearning.label_mode, text.training.label_mode, text.label_mode) == ("text", "answer", "answer")
    assert text.but(label_mode="upstream").unlearning.label_mode == "upstream", "what is given comes first"
    assert pipeline.finetuned(text).key == pipeline.finetuned(Config()).key
    assert Config(method="ga", modality="unimodal").unlearning.label_mode == "answer"


def likely(variant, right, set_name="forget", draw=0, modality="multimodal", method="ga"):
    """Sums of one likelihood item of each of as many people as ``right`` has entries."""
    at = {"method": method, "variant": variant, "modality": modality, "replicate": draw, "set": set_name}
    at |= {"view": TRAINED_VIEW[modality], "measure": "likelihood", "items": 1}
    return [{**at, "profile": f"{n:03d}", "score": float(value)} for n, value in enumerate(right)]


def test_differences_are_paired_and_pooled_over_draws():
    rows = likely("canonical", [1, 1, 0, 0]) + likely("labels_text", [1, 0, 0, 0])
    rows += likely("canonical", [1, 1, 1, 1], draw=1) + likely("labels_text", [0, 0, 1, 1], draw=1)
    result = differences.table(measured(pd.DataFrame(rows))).iloc[0]
    assert (result["canonical"], result["released"], result["value"]) == (6 / 8, 3 / 8, -3 / 8)
    # by person -1/2, -1, 0, 0 over two draws: mean -.375, sd .4787, Student's t with 3 degrees 3.182
    half = 3.1824 * 0.47871 / 2
    assert result["high"] == pytest.approx(half - 0.375, abs=1e-3)
    assert result["low"] == -1.0  # -1.137, which no difference can be
    assert result["verdict"] == differences.NO_DIFFERENCE and (result["n_items"], result["n_profiles"]) == (8, 4)


def test_a_verdict_is_given_where_the_interval_leaves_nought_out():
    kept, lost = [1] * 20, [0] * 18 + [1] * 2
    rows = likely("canonical", kept) + likely("labels_text", lost) + likely("labels_upstream", kept)
    table = differences.table(measured(pd.DataFrame(rows)))
    assert table["verdict"].tolist() == ["lower", differences.NO_DIFFERENCE]
    printed = differences.printed(table)
    assert printed.index[0] == ("GA, labels", "answer", "all text", "image + text")
    assert printed["Forget, likelihood"].tolist()[0].startswith("100 → 10 (−")
    assert printed["verdict"].tolist() == ["Forget, likelihood lower", differences.NO_DIFFERENCE]


def shot_rows(source, seed, right):
    at = {"method": "vanilla", "variant": "canonical", "modality": "none", "set": "forget", "view": "text", "items": 1}
    at |= {"shot_source": source, "shot_seed": seed}
    return [
        {**at, "measure": measure, "profile": str(n), "score": float(value)}
        for measure in ("letter", "cloze")
        for n, value in enumerate(right)
    ]


def test_the_spread_over_draws_stands_beside_the_first_draws_interval():
    rows = shot_rows("none", 0, [0, 0, 1, 0]) + shot_rows("pool", 0, [1, 0, 1, 0]) + shot_rows("pool", 1, [1, 1, 1, 1])
    rows += shot_rows("upstream", 0, [1, 1, 1]) + shot_rows("upstream", 1, [0, 1, 0])
    shots = differences.shots(measured(pd.DataFrame(rows)))
    table = differences.spread(shots)
    assert table["source"].tolist() == ["none", "pool", "upstream"] * 2
    pool = table.iloc[1]
    assert (pool["draws"], pool["mean"], pool["lowest"], pool["highest"], pool["first"]) == (2, 0.75, 0.5, 1.0, 0.5)
    assert pool["sd"] == pytest.approx(math.sqrt(1 / 8)) and pool["low"] < 0.5 < pool["high"]
    changed = differences.shot_changes(shots).set_index(["task", "what"])["value"]
    assert changed["cloze", "pool − none"] == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    # the fourth person was left out of both of upstream's draws; the others: .5, 1, .5 against 1, .5, 1
    assert changed["cloze", "upstream − pool"] == pytest.approx((-0.5 + 0.5 - 0.5) / 3)
    assert len(differences.shot_figure(shots).axes) == 2


def test_every_piece_has_its_row_in_the_figure():
    rows = []
    for method, variant in differences.PIECES:
        for kind in {"canonical", variant}:
            rows += likely(kind, [1, 0, int(kind == "canonical"), 1], method=method)
    drawn = differences.figure(differences.table(measured(pd.DataFrame(rows).drop_duplicates())))
    labels = [text.get_text() for text in drawn.axes[0].get_yticklabels()]
    assert labels == [f"{one.what}:\n{one.released}" for one in differences.PIECES.values()]
