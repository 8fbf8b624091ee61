"""Studies: a grid of ordinary runs, summed by person; and four analyses whose numbers are known by hand."""

import argparse
import math
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch

from mllmu_nb import checks, paths, pipeline, stages, training
from mllmu_nb.commands import study as command
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting.runs import read_run
from mllmu_nb.statistics.intervals import interval, standard_error
from mllmu_nb.studies import base, cliff, differences, modality, path, released_code, variance
from mllmu_nb.studies.base import MEASURES, Measured
from mllmu_nb.training import TrainingDiverged
from mllmu_nb.unlearning import ReferenceLogProbs, Scored, Step, get, variants

SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25, "shots": 0, "replay": 0.0, "train_steps": 2}
STUDIES = ("cliff", "differences", "modality", "variance")
LN2 = math.log(2)
HALF, QUARTER = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.mktemp("out")))
        yield Config(base_path=str(tiny_base), **SMALL)


def measured(scores, settings=None, **record):
    """A study of these scores, with the columns that they do not vary."""
    scores = pd.DataFrame(scores).assign(variant="canonical") if "variant" not in scores else scores
    return Measured(paths.reference() / "studies" / "x", record, scores, settings)


def run_command(*arguments):
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    return command.main(parser.parse_args(arguments))


# -- making one -------------------------------------------------------------------------------------------------

TOY = """
    from mllmu_nb.studies.base import Study, register

    def grid(config, draws):
        alone = config.but(method="ga", modality="unimodal", unlearn_steps=1)
        return [alone.but(replicate=draw, unlearn_lr=lr) for draw in draws for lr in (1e-3, 2e-3)]

    def table(measured):
        return measured.scores.groupby(["unlearn_lr", "measure"], as_index=False)[["score", "items"]].sum()

    by = ("unlearn_lr",)
    register(Study("toy", "how much a rate matters", grid, table, lambda table: table, (0,), by, limit=2))
"""


@pytest.fixture(scope="module")
def toy(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    (folder / "toy_study.py").write_text(textwrap.dedent(TOY))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("MLLMU_NB_EXTENSIONS", "toy_study")
        yield base.get("toy")
    base.STUDIES._entries.pop("toy")


@pytest.fixture(scope="module")
def made(config, toy):
    return base.make(toy, config, [1])


def test_a_study_is_one_file_outside_the_package(toy, made, capsys, monkeypatch):
    assert run_command() == 0
    listed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert {*STUDIES, "toy"} <= set(listed) and listed["toy"] == "how much a rate matters"
    study = base.read("toy")
    assert study.folder == made and base.provenance_line(study) == "your own study, forget draws [1]"
    result = toy.table(study)
    assert set(result["unlearn_lr"]) == {1e-3, 2e-3} and set(result["measure"]) == set(toy.measures)
    # two people of each set; both views
    counts = result[result["unlearn_lr"] == 1e-3].set_index("measure")["items"].to_dict()
    assert counts == {"likelihood": 40, "letter": 40, "rougeL": 16, "exact": 16, "cloze": 16}


def test_scores_are_those_of_the_runs(made):
    scores, (first, second) = base.read("toy").scores, sorted((made / "runs").iterdir())
    for folder in (first, second):
        run = read_run(folder)
        mine = base.only(scores, unlearn_lr=run.parameters["unlearn_lr"], measure="rougeL", set="retain", view="text")
        answers = run.items.query("task == 'generation' and set == 'retain' and view == 'text'")
        assert len(answers) == mine["items"].sum() == 4
        assert mine["score"].sum() == pytest.approx(answers["rougeL"].sum())
    settings = base.read("toy").settings
    # 3 people with 14 questions by name, 8 a step: 6 steps a pass
    assert settings["passes"].tolist() == [1 / 6] * 2 and settings["steps"].tolist() == [1, 1]


def test_what_is_made_is_not_made_again_and_one_that_diverges_is_no_end(config, toy, made, monkeypatch):
    monkeypatch.setattr(training, "unlearn", lambda *given, **named: pytest.fail("trained again"))
    assert base.make(toy, config, [1]) == made

    def diverges(*given, **named):
        raise TrainingDiverged("training diverged at step 3")

    monkeypatch.setattr(training, "unlearn", diverges)
    base.make(toy, config, [1, 2])
    study = base.read("toy")
    assert study.settings["diverged"].tolist() == ["", "", *["training diverged at step 3"] * 2]
    assert set(study.scores["replicate"]) == {1} and study.record["replicates"] == [1, 2]


def test_only_the_miniature_is_measured(config, toy):
    with pytest.raises(KitError, match="made on the miniature"):
        base.make(toy, Config(scale="paper"))


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
        (["differences", "--draws", "0", "-1"], "--draws are numbers of forget sets from 0 on, not -1"),
        (["cliff", "--jobs", "0"], "--jobs must be at least 1, not 0"),
        (["clif"], "unknown study 'clif': did you mean 'cliff'?"),
    ],
)
def test_the_command_refuses_what_cannot_be(arguments, message):
    with pytest.raises(KitError) as error:
        run_command(*arguments)
    assert str(error.value) == message


# -- those that come with the project ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_a_committed_study_gives_the_table_that_lies_beside_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))
    study = base.read(name)
    assert study.committed and study.record["dirty"] is False
    stored = pd.read_csv(study.folder / f"{name}.csv", keep_default_na=False, na_values=["", "nan"])
    again = base.get(name).table(study)
    texts = list(stored.select_dtypes("str"))
    without = [] if name != "modality" else ["gate"]  # that of the runs which were there when it was made
    stored, again = (one.drop(columns=without).fillna(dict.fromkeys(texts, "")) for one in (stored, again))
    pd.testing.assert_frame_equal(stored, again, check_dtype=False)
    trained = base.only(study.settings, diverged="").merge(study.scores, on=base.get(name).setting)
    assert len(trained) == len(study.scores)


def test_a_study_of_an_older_vanilla_says_so_first(tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))
    studies = {name: base.read(name) for name in STUDIES}
    plain = Config()
    vanilla = {"parameters": plain.parameters(), "base_hash": pipeline.base_hash(plain)}
    vanilla["data_hash"] = pipeline.data_hash(plain)
    reference = tmp_path / "reference"
    for name, record in (("oracle-none-1", {**vanilla, "data_hash": "0"}), ("vanilla-none-1", vanilla)):
        (paths.runs(reference) / name).mkdir(parents=True)
        stages.write_json(paths.runs(reference) / name / stages.RECORD, record)
    monkeypatch.setattr(Measured, "committed", True)
    monkeypatch.setattr(paths, "reference", lambda: reference)
    lines = {name: base.provenance_line(study) for name, study in studies.items()}
    assert lines["cliff"] == "the study that comes with the project, forget draws [5, 6, 7]"
    older = "made with an older vanilla: data_hash b050e47cb91915ee (now"
    assert all(lines[name].startswith(older) for name in ("differences", "modality", "variance"))
    assert "train_steps 1300 (now 750); the study that comes" in lines["variance"]


def test_ones_own_study_comes_before_the_committed_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))
    with pytest.raises(KitError, match="not there at scale paper: `python -m mllmu_nb study differences`"):
        base.read("differences", "paper")
    committed = base.read("differences")
    own = paths.study(paths.results("miniature"), "differences")
    own.mkdir(parents=True)
    for file in committed.folder.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    assert committed.committed and not base.read("differences").committed


# -- the cliff --------------------------------------------------------------------------------------------------


def test_every_method_has_the_same_budget_on_draws_that_no_run_reports():
    grid = [one for one in cliff.grid(Config()) if one.trains]
    counts = pd.DataFrame([(one.method, one.modality, one.replicate) for one in grid]).value_counts()
    assert len(counts) == 4 * 2 * 3 and set(counts) == {12} and len({one.run_id for one in grid}) == 288
    assert {one.unlearning.lr for one in grid if one.method == "ga"} == set(cliff.RATES["ga"])
    known = [set(pipeline.population(Config(replicate=draw)).forget_ids) for draw in (0, 1, 2, *cliff.DRAWS)]
    assert sum(map(len, known)) == len(set.union(*known)) == 60, "forget sets overlap"


LEFT = {"diverged": 0, "passes": 1.0, "low": 0.0, "high": 1.0, "n_items": 10, "n_profiles": 5}


def setting(lr, forget, retain, other=None, broken=0.0, diverged=0, steps=10, modality="unimodal", method="ga"):
    """A setting's cells: retain of the trained view and of the other one."""
    view, across = ("text", "image_text") if modality == "unimodal" else ("image_text", "text")
    at = {
        "method": method,
        "modality": modality,
        "unlearn_lr": lr,
        "unlearn_steps": steps,
        **LEFT,
        "diverged": diverged,
    }
    rows = []
    for set_name, mine, theirs in (("forget", forget, 0.99), ("retain", retain, retain if other is None else other)):
        for asked, value in ((view, mine), (across, theirs)):
            for measure, shown in (("likelihood", value), ("exact", 0.5), ("broken", broken)):
                rows.append({**at, "set": set_name, "view": asked, "measure": measure, "value": shown})
    return rows


def cells(*settings):
    """The cells of vanilla and of some settings."""
    vanilla = [{**row, "method": "vanilla", "modality": "none"} for row in setting(0.0, 0.97, 0.98)]
    return pd.DataFrame(vanilla + [row for one in settings for row in one])


def chosen(*settings):
    return cliff.choose(cells(*settings)).iloc[0]


def test_the_rule_takes_what_keeps_most_of_those_that_fall_far_enough():
    mild, good, steep = setting(1e-3, 0.63, 0.97), setting(2e-3, 0.61, 0.85), setting(3e-3, 0.3, 0.84)
    best = chosen(mild, good, steep)
    assert (best["unlearn_lr"], best["forget"], best["retain"], best["fit"]) == (2e-3, 0.61, 0.85, True)
    assert best["fall"] == pytest.approx(0.36)
    assert chosen(steep, setting(2e-3, 0.6, 0.9, other=0.8))["unlearn_lr"] == 3e-3  # the view not trained counts
    assert chosen(steep, setting(2e-3, 0.6, 0.9, broken=0.51))["unlearn_lr"] == 3e-3
    assert chosen(steep, setting(2e-3, 0.6, 0.9, diverged=1))["unlearn_lr"] == 3e-3
    assert chosen(setting(2e-3, 0.6, 0.9, steps=20), setting(3e-3, 0.5, 0.9))["unlearn_steps"] == 10


def test_where_nothing_falls_far_enough_the_rule_says_so_and_takes_what_falls_furthest_unbroken():
    best = chosen(setting(1e-3, 0.9, 0.6), setting(2e-3, 0.2, 0.5, broken=0.6), setting(3e-3, 0.8, 0.55))
    assert (best["unlearn_lr"], best["fit"]) == (3e-3, False)
    assert cliff.printed(cells(setting(1e-3, 0.9, 0.6)))[""].tolist() == ["no setting falls so far unbroken"]
    with pytest.raises(KitError, match="every setting of ga diverged"):
        chosen(setting(1e-3, math.nan, math.nan, diverged=1))


def test_draws_are_pooled_and_a_diverged_training_is_counted():
    row = {"method": "ga", "modality": "unimodal", "unlearn_lr": 0.1, "unlearn_steps": 5, "items": 5, "view": "text"}
    row |= {"set": "forget", "measure": "likelihood"}
    scores = [{**row, "replicate": draw, "profile": f"{draw}{n}", "score": n} for draw in (0, 1) for n in range(5)]
    settings = pd.DataFrame([{**row, "passes": 0.5, "diverged": reason} for reason in ("", "", "at step 3")])
    result = cliff.table(measured(pd.DataFrame(scores), settings))
    assert len(result) == 2 * 2 * 3 and set(result["diverged"]) == {1} and set(result["passes"]) == {0.5}
    cell = base.only(result, set="forget", view="text", measure="likelihood").iloc[0]
    assert (cell["value"], cell["n_items"], cell["n_profiles"]) == (20 / 50, 50, 10)
    assert base.only(result, set="retain")["value"].isna().all()


def test_the_map_shows_every_setting_and_marks_two():
    result = cells(
        setting(1e-3, 0.9, 0.97),
        setting(2e-3, 0.6, 0.9),
        setting(1e-3, math.nan, math.nan, diverged=2, steps=20),
        setting(2e-3, 0.3, 0.3, steps=20),
    )
    drawn = cliff.figure(result, "unimodal", {("ga", "unimodal"): (1e-3 * math.sqrt(2), 10 * math.sqrt(2))})
    forget, retain = drawn.axes[:2]
    assert [text.get_text() for text in forget.texts] == ["90", "60", "×", "30"]
    assert [text.get_text() for text in retain.texts] == ["97", "90", "×", "30"]
    [frame] = forget.patches
    assert frame.get_xy() == (0.5, -0.5)
    np.testing.assert_allclose([line.get_xydata()[0] for line in forget.lines], 0.5)  # halfway on both axes
    assert [label.get_text() for label in forget.get_yticklabels()] == ["10 (1.0)", "20 (1.0)"]
    outside = cliff.figure(result, "unimodal", {("ga", "unimodal"): (1e-2, 10), ("ga", "multimodal"): (1e-3, 10)})
    assert outside.get_supxlabel().endswith("outside the map, without a ring: GA 1.0e-02, 10 steps")
    with pytest.raises(KitError, match="no setting unlearned on image \\+ text"):
        cliff.figure(result, "multimodal")


@pytest.mark.parametrize(
    "used, where",
    [
        ((2e-3, 10), "2.0e-03, 10 steps: as chosen"),
        ((1e-3, 20), "1.0e-03, 20 steps: on the grid"),
        ((1.5e-3, 20), "1.5e-03, 20 steps: between its settings"),
        ((2e-3, 21), "2.0e-03, 21 steps: outside the grid"),
    ],
)
def test_what_the_kit_uses_stands_beside_what_is_chosen(used, where):
    settings = [setting(lr, 0.6, retain) for lr, retain in ((1e-3, 0.8), (2e-3, 0.9))]
    settings += [setting(lr, 0.3, 0.3, steps=20) for lr in (1e-3, 2e-3)]
    assert cliff.printed(cells(*settings), {("ga", "unimodal"): used})["the kit's"].tolist() == [where]


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
        # 80 steps of 8 over 150 questions (140 by name) are 4.2 (4.4) epochs
        assert one.unlearn_epochs == (4 if variant.endswith("passes") else 0)


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
    at |= {"view": base.TRAINED_VIEW[modality], "measure": "likelihood", "items": 1}
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


# -- points along a training ------------------------------------------------------------------------------------


def test_the_points_are_those_of_the_training(config):
    """After its first step of four a model has moved as one that was trained one step at a constant rate; after its
    last it is the run's own."""
    ours = config.but(method="grad_diff", modality="multimodal", schedule="constant", unlearn_steps=4)
    assert path.steps_of(ours) == [1, 2, 3, 4] and path.steps_of(ours.but(unlearn_steps=25), 6) == [
        4,
        8,
        12,
        17,
        21,
        25,
    ]
    first, third, last = (
        dict(pipeline.model(ours.but(after="point", step=n))[0].named_parameters()) for n in (1, 3, 4)
    )
    for mine, theirs in ((first, ours.but(unlearn_steps=1)), (last, ours)):
        for name, parameter in pipeline.model(theirs)[0].named_parameters():
            torch.testing.assert_close(mine[name], parameter, msg=name)
    assert any(not torch.equal(first[name], third[name]) for name in first)
    stored, end = (stage.get() for stage in (path.path(ours), pipeline.unlearned(ours)))
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (stored / "step-4", end)]
    assert weights[0] == weights[1]
    with pytest.raises(KitError, match="step 5 is no point of this training: choose one of 1, 2, 3, 4"):
        pipeline.model(ours.but(after="point", step=5))


def test_points_are_kept_of_a_method_that_is_measured_against_another_model(config):
    ours = config.but(method="npo", variant="retain_epoch", modality="unimodal", unlearn_steps=2)
    folder = path.path(ours).get()
    last = (folder / "step-2" / "adapter_model.safetensors").read_bytes()
    assert last == (pipeline.unlearned(ours).get() / "adapter_model.safetensors").read_bytes()


# -- equal retain -----------------------------------------------------------------------------------------------


def test_every_point_of_every_training_is_asked():
    grid = modality.grid(Config(), [1])
    assert [one.method for one in grid].count("vanilla") == 1 and len(grid) == 1 + 4 * 2 * 10
    steps = [one.settings["step"] for one in grid if (one.method, one.modality) == ("ga", "multimodal")]
    assert steps == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]


def test_forget_is_compared_where_both_keep_equally_much():
    kept = np.array([[1.0, 0.8, 0.4], [1.0, 0.7, 0.6]])
    left = np.array([[1.0, 0.8, 0.0], [1.0, 0.4, 0.4]])
    # in common .6 to 1. First: from .4 at .6 up to .8 at .8 and 1 at 1: (.2 · .6 + .2 · .9) / .4 = .75
    # second: .4 up to .7, then up to 1 at 1: (.1 · .4 + .3 · .7) / .4 = .625
    np.testing.assert_allclose(modality.at_equal_retain(kept, left), [0.75, 0.625, 0.6, 1.0])
    # points that keep equally much count as one
    kept, left = np.array([[1.0, 0.5, 0.5], [1.0, 0.5, 0.5]]), np.array([[1.0, 0.2, 0.4], [1.0, 0.3, 0.3]])
    np.testing.assert_allclose(modality.at_equal_retain(kept, left)[:2], 0.65)
    # trainings that never keep equally much are not compared
    kept = np.array([[1.0, 0.9], [0.8, 0.3]])
    assert np.isnan(modality.at_equal_retain(kept, kept)).all()


@pytest.mark.parametrize(
    "low, high, claimed, expected",
    [
        (-0.2, -0.1, "unimodal", modality.SUPPORTED),
        (-0.2, -0.1, "multimodal", modality.NOT_SUPPORTED),
        (0.1, 0.2, "multimodal", modality.SUPPORTED),
        (0.1, 0.2, "unimodal", modality.NOT_SUPPORTED),
        (-0.1, 0.2, "unimodal", modality.UNDECIDED),
        (0.0, 0.2, "multimodal", modality.UNDECIDED),
        (math.nan, math.nan, "unimodal", modality.UNDECIDED),
        (-0.2, -0.1, "", ""),
    ],
)
def test_a_verdict_is_the_intervals_and_nothing_elses(low, high, claimed, expected):
    assert modality.verdict(low, high, claimed) == expected


def walks(ends, people=30, items=20, methods=("ga", "npo"), gates=(), seed=0):
    """Straight trainings: retain falls from 1 to .5, forget from 1 to ``ends`` [modality], or [modality, measure]."""
    rng = np.random.default_rng(seed)
    rows = []
    models = [("vanilla", "none", 0)] + [(m, o, step) for m in methods for o in modality.SIDES for step in (5, 10)]
    for method, side, step in models:
        at = {"method": method, "modality": side, "replicate": 0, "step": step, "variant": "canonical"}
        for set_name, measure in [("retain", "likelihood")] + [("forget", name) for name in list(MEASURES)[:5]]:
            end = 0.5 if set_name == "retain" else ends.get((side, measure), ends.get(side))
            share = 1 - step / 10 * (1 - (end or 0))
            for view in ("image_text", "text"):
                row = {**at, "set": set_name, "view": view, "measure": measure, "items": items}
                rows += [
                    {**row, "profile": f"{set_name}{n}", "score": rng.binomial(items, share)} for n in range(people)
                ]
    study = measured(pd.DataFrame(rows))
    study.__dict__["gates"] = pd.DataFrame(gates, columns=["task", "scoring", "metric", "view", "gate"])
    return study


def test_a_known_difference_is_found_and_judged():
    ends = {"unimodal": 0.2, "multimodal": 0.6, ("unimodal", "letter"): 0.6, ("unimodal", "likelihood"): 0.61}
    result = modality.table(walks(ends), resamples=200).set_index(["measure", "view", "method"])
    pooled = result.xs(modality.POOLED, level="method")
    # in straight lines over the same retain: means of 1 and the end, so half the difference of the ends
    assert pooled.loc[("cloze", "both"), "value"] == pytest.approx(-0.2, abs=0.02)
    assert pooled.loc[("cloze", "both"), "unimodal"] == pytest.approx(0.6, abs=0.02)
    for measure in ("rougeL", "exact", "cloze"):
        assert pooled.loc[(measure, "both"), "verdict"] == modality.SUPPORTED
    assert pooled.loc[("letter", "image_text"), "verdict"] == modality.UNDECIDED
    assert pooled.loc[("cloze", "text"), "verdict"] == "", "no claim is made of it"
    assert set(result["n_profiles"]) == {30}
    ranges = result[["retain_low", "retain_high"]].isna().all(axis=1)
    assert (ranges == (result.index.get_level_values("method") == modality.POOLED)).all()


def test_a_verdict_behind_a_closed_gate_says_so():
    at = ("classification", "letter", "accuracy", "image_text", "closed")
    gates = [at, ("classification", "likelihood", "accuracy", "image_text", "open")]
    gates += [(*at[:3], "both", "open")]  # another view has its own
    result = modality.table(walks({"unimodal": 0.6, "multimodal": 0.2}, gates=gates), resamples=50)
    verdicts = ["not supported (gate not known)"] * 3 + ["supported (gate closed)", "supported"]
    assert modality.printed(result)["verdict"].tolist() == verdicts
    drawn = modality.figure(result)
    assert [panel.get_title(loc="left").partition(": ")[2] for panel in drawn.axes] == verdicts
    names = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert names == ["GA", "NPO", "all methods"]


def test_the_interval_is_as_wide_as_people_vary():
    """With retain known exactly and two points, the difference at equal retain is half that of the last point, and so
    is its standard error."""
    study = walks({"unimodal": 0.5, "multimodal": 0.5}, people=40, methods=("ga",))
    scores = study.scores[study.scores["step"] != 5].copy()
    exact = scores["set"] == "retain"
    scores.loc[exact, "score"] = 20 * (1 - 0.05 * scores.loc[exact, "step"])
    scores.loc[(scores["set"] == "forget") & (scores["step"] == 0), "score"] = 20
    study.__dict__["scores"] = scores
    cell = modality.table(study).set_index(["measure", "view", "method"]).loc[("cloze", "text", "ga")]
    last = base.only(scores, step=10, measure="cloze", view="text")
    by = last.pivot(index="profile", columns="modality", values="score")
    error = standard_error((by["unimodal"] - by["multimodal"]).to_numpy(), np.full(40, 20.0)) / 2
    assert (cell["high"] - cell["low"]) / 2 == pytest.approx(2.0227 * error, rel=0.06)  # t of 39 degrees
    assert cell["value"] == pytest.approx((by["unimodal"].sum() - by["multimodal"].sum()) / 800 / 2)


def test_a_training_without_its_point_is_refused():
    study = walks({"unimodal": 0.5, "multimodal": 0.5})
    scores = study.scores
    for lacking in ((scores["modality"] == "unimodal") & (scores["step"] == 5), scores["modality"] == "unimodal"):
        study.__dict__["scores"] = scores[~lacking]
        with pytest.raises(KitError, match="lacks a point or a modality"):
            modality.table(study, resamples=10)


def test_the_curves_show_every_claim_and_method():
    drawn = modality.curves(walks({"unimodal": 0.2, "multimodal": 0.6}))
    assert len(drawn.axes) == 2 * len(modality.CLAIMS) and all(len(panel.lines) == 2 for panel in drawn.axes)


def test_a_studys_gates_are_those_of_the_runs_about_its_people(config, toy, made):
    """A base that learnt nothing: no gate is open. Without the oracle nobody can say."""
    study = base.read("toy")
    assert study.gates.empty
    for method in ("vanilla", "oracle"):
        pipeline.run(config.but(method=method))
    again = base.read("toy")
    assert set(again.gates["gate"]) <= {"open", "closed"} and len(again.gates)
    again.__dict__.pop("gates")
    again.record["data_hash"] = "others"
    assert again.gates.empty


# -- variance ---------------------------------------------------------------------------------------------------


def test_one_source_is_changed_at_a_time():
    grid = [one for one in variance.grid(Config(), [0, 2]) if (one.method, one.modality) == ("ga", "unimodal")]
    levels = [[getattr(one, name) for name in variance.FACTORS] for one in grid]
    zero = [0, 0, 0, 0]
    assert levels == [zero, [2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 2, 0], [0, 0, 0, 1], [0, 0, 0, 2]]


def spread(effects, people=40, items=50, models=("ga", "npo"), seed=0):
    """Cloze scores about .5 of the same people, moved by ``effects``: factor → what each of its levels adds. A
    person's score is a plain share of ``items``, so that nothing but the effects and the people is in it."""
    easy = np.random.default_rng(seed).normal(0.5, 0.05, people).clip(0.3, 0.7)
    first = dict.fromkeys(variance.FACTORS, 0)
    levels = [(first, 0.0)] + [({**first, f: n}, add) for f, all_ in effects.items() for n, add in enumerate(all_) if n]
    row = {"modality": "unimodal", "set": "retain", "view": "text", "measure": "cloze", "items": items}
    return pd.DataFrame(
        {**row, **level, "method": method, "profile": str(n), "score": items * (easy[n] + added + 0.01 * number)}
        for number, method in enumerate(models)
        for level, added in levels
        for n in range(people)
    )


def split(scores):
    return base.only(variance.table(measured(scores)), view="both").set_index("factor")


def test_the_split_finds_what_was_put_in():
    effects = {"replicate": [0, 0.1, -0.1], "train_seed": [0, 0.02, -0.02], "unlearn_seed": [0, 0, 0]}
    result = split(spread(effects | {"shot_seed": [0, 0.01]}))
    # everyone moves alike, so the differences have no error: sd of (0, .1, -.1) is .1, of (0, .01) it is .01 / √2
    expected = {"replicate": 0.1, "train_seed": 0.02, "unlearn_seed": 0.0, "shot_seed": 0.01 / math.sqrt(2)}
    expected["model"] = 0.01 / math.sqrt(2)
    assert result["sd"].to_dict() == pytest.approx(expected, abs=1e-9)
    assert result["levels"].to_dict() == {**dict.fromkeys(variance.FACTORS, 3), "shot_seed": 2, "model": 2}
    # chi-square with 2 degrees: .0506 and 7.378
    assert result.loc["replicate", "high"] == pytest.approx(0.1 * math.sqrt(2 / 0.050636), rel=1e-3)
    assert result.loc["replicate", "low"] == pytest.approx(0.1 * math.sqrt(2 / 7.3778), rel=1e-3)


def test_what_the_sampling_of_people_makes_is_taken_off():
    """Levels that differ by each person's own chance alone: the spread of their means is all sampling."""
    scores = spread({"unlearn_seed": [0.0] * 5}, models=("ga",))
    scores["score"] += np.random.default_rng(1).normal(0, 5, len(scores))
    result = variance.levels(scores)
    result = result[(result["view"] == "text") & (result["unlearn_seed"] > 0)]
    # one person's noise has sd 5 of 50 items: a mean of 40 has .1 / √40; the paired error over √2 is just that
    assert result["se_paired"].mean() == pytest.approx(0.1 / math.sqrt(40), rel=0.15)
    assert (result["se_paired"] < result["se"]).any()
    assert split(scores).loc["unlearn_seed", "sd"] < 0.1 / math.sqrt(40)


def test_so_it_is_of_what_models_differ_by():
    """Three models that differ by each person's own chance alone. What is common to them is no part of it."""
    scores = spread({}, models=("ga", "grad_diff", "npo"))
    own, common = np.random.default_rng(2).normal(0, 5, (3, 40)), np.random.default_rng(3).normal(0, 12, 40)
    scores["score"] = 25 + (own + common).ravel()
    result = variance.levels(scores).query("view == 'text'")
    expected = (np.var(own - own.mean(0), axis=1, ddof=1) * 3 / 2 / 40 / 50**2).mean()
    assert (result["se_models"] ** 2).mean() == pytest.approx(expected)
    model = split(scores).loc["model"]
    assert model["variance"] == pytest.approx(max(result["value"].var() - expected, 0.0), abs=1e-12)
    assert model["low"] == 0, "nothing but sampling: not shown to matter"
    apart = scores.assign(score=scores["score"] + 5 * (scores["method"] == "npo"))  # by a tenth
    assert split(apart).loc["model", "low"] > 0
    assert variance.levels(scores[scores["method"] == "ga"])["se_models"].isna().all()


def test_who_is_forgotten_at_some_level_is_not_asked_as_kept():
    scores = spread({"replicate": [0, 0.1]}, models=("ga",))
    lost = (scores["replicate"] == 1) & scores["profile"].isin(["0", "1"])
    kept = variance.kept_throughout(scores[~lost])
    assert set(kept["profile"]) == {str(n) for n in range(2, 40)}
    with pytest.raises(KitError, match="forget everybody"):
        variance.kept_throughout(scores[(scores["replicate"] == 1) == (scores["profile"].astype(int) < 20)])


def test_other_people_have_their_own_error_and_no_paired_one():
    scores = spread({"replicate": [0, 0.1]}, models=("ga",)).assign(set="forget")
    scores.loc[scores["replicate"] == 1, "profile"] = "other " + scores["profile"]
    result = variance.levels(scores)
    assert result["se_paired"].isna().all() and result["se"].notna().all()
    assert np.isfinite(split(scores).loc["replicate", "variance"])


def test_without_the_first_level_there_is_nothing_to_compare_with():
    scores = spread({"replicate": [0, 0.1], "train_seed": [0, 0.1]}, models=("ga",))
    plain = (scores["replicate"] == 0) & (scores["train_seed"] == 0)
    with pytest.raises(KitError, match="not measured at the first level"):
        variance.table(measured(scores[~plain]))


def test_the_figure_has_a_place_for_every_source():
    scores = spread({"replicate": [0, 0.1], "train_seed": [0, 0.02], "shot_seed": [0, 0.01, 0.02]})
    both = pd.concat([scores, scores.assign(set="forget"), scores.assign(measure="exact")])
    drawn = variance.figure(variance.table(measured(both)))
    assert [panel.get_title() for panel in drawn.axes[:2]] == ["Exact", "Cloze"]
    labels = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert labels == [name for factor, name in variance.SOURCES.items() if factor != "unlearn_seed"]
    assert "–" in [text.get_text() for text in drawn.axes[0].texts], "no shots stand before a free question"
