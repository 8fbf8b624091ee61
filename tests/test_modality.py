"""The headline claim: one training asked along its way, compared at equal retain, and a verdict from the interval."""

import math

import hand_made
import numpy as np
import pandas as pd
import pytest
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks

from mllmu_nb import paths, run, stages
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import statistics
from mllmu_nb.reporting import modality as told
from mllmu_nb.reporting.studies import by_person, gates_of
from mllmu_nb.studies import modality, models
from mllmu_nb.unlearning import get

SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25, "shots": 0, "replay": 0.0}


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.mktemp("out")))
        yield Config(base_path=str(tiny_base), train_steps=2, unlearn_steps=4, **SMALL)


# -- the measurement --------------------------------------------------------------------------------------------


def test_the_models_along_a_training_are_those_of_the_training(config):
    """After its first step of four a model has moved as one that was trained one step at a constant rate; after its
    last it is the run's own."""
    ours = config.but(method="grad_diff", modality="multimodal", schedule="constant")
    talks = models.conversations(run.population(ours), "multimodal")
    found, _, log = models.along(ours, get("grad_diff"), ours.unlearning, talks, [1, 3], progress=False)
    assert sorted(found) == [1, 3, 4] and log.steps == 4
    short = ours.but(unlearn_steps=1)
    one, _, _ = models.trained(short, get("grad_diff"), short.unlearning, talks, progress=False)
    last, _ = run.model(ours)
    for (name, mine), alike, final in zip(
        found[1].named_parameters(), one.parameters(), last.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, alike, msg=name)
        torch.testing.assert_close(found[4].get_parameter(name), final, msg=name)
    moved = [not torch.equal(a, b) for a, b in zip(found[1].parameters(), found[3].parameters(), strict=True)]
    assert any(moved)
    assert not _global_optimizer_post_hooks, "the hook outlives the training"


def test_every_point_of_every_training_is_asked_alike(config):
    folder = modality.measure(config.but(unlearn_steps=4), [1], ["ga"], points=2, kept=3, jobs=1)
    people = told.read(folder)
    assert set(people.groupby(["modality", "step"], observed=True).ngroup()) == set(range(6))
    record = stages.read_json(folder / stages.RECORD)
    assert [one["points"] for one in record["trainings"]] == [[0, 2, 4]] * 2
    likely = people[(people["measure"] == "likelihood") & (people["view"] == "text")]
    asked = likely.groupby(["modality", "step", "set"], observed=True)["items"].agg(["size", "sum"])
    assert asked.xs("forget", level="set").to_numpy().tolist() == [[3, 15]] * 6
    assert asked.xs("retain", level="set").to_numpy().tolist() == [[3, 15]] * 6
    start = people[people["step"] == 0].groupby(["modality", "measure", "set"], observed=True)["score"].sum().unstack(0)
    assert (start["multimodal"] == start["unimodal"]).all(), "both start at vanilla"
    found = told.measured(
        folder
    )  # a model that knows nothing has nothing to lose: no retain in common is an answer too
    assert set(found["method"]) == {"ga", told.POOLED}
    assert set(found.loc[found["claimed"] != "", "verdict"]) <= {told.SUPPORTED, told.NOT_SUPPORTED, told.UNDECIDED}


def test_what_is_measured_is_found_again(config, monkeypatch):
    ours = config.but(method="ga", modality="unimodal", forget_draw=1)
    folder = modality.walk(ours, points=2, kept=3)
    monkeypatch.setattr(models, "along", lambda *given, **named: pytest.fail("trained again"))
    assert modality.walk(ours, points=2, kept=3) == folder
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        modality.walk(ours.but(unlearn_lr=0.5), points=2, kept=3)


def test_answers_summed_by_person_give_the_interval_of_the_answers():
    rows = [
        {"set": "forget", "view": "text", "task": task, "scoring": scoring, "profile": f"{n % 3}", "correct": n % 2}
        | {"exact": exact, "rougeL": 0.5}
        for n in range(7)
        for task, scoring, exact in (("classification", "likelihood", math.nan), ("generation", "", float(n > 4)))
    ]
    summed = by_person(pd.DataFrame(rows))
    likely = summed[summed["measure"] == "likelihood"].set_index("profile")
    assert likely["score"].to_dict() == {"0": 1, "1": 1, "2": 1} and likely["items"].to_dict() == {
        "0": 3,
        "1": 2,
        "2": 2,
    }
    exact = summed[summed["measure"] == "exact"]
    assert exact["score"].sum() == 2 and exact["items"].sum() == 7
    assert "cloze" not in set(summed["measure"])


# -- equal retain -----------------------------------------------------------------------------------------------


def test_forget_is_compared_where_both_keep_equally_much():
    kept = np.array([[1.0, 0.8, 0.4], [1.0, 0.7, 0.6]])
    left = np.array([[1.0, 0.8, 0.0], [1.0, 0.4, 0.4]])
    # in common .6 to 1. First: from .4 at .6 up to .8 at .8 and 1 at 1: (.2 · .6 + .2 · .9) / .4 = .75
    # second: .4 up to .7, then up to 1 at 1: (.1 · .4 + .3 · .7) / .4 = .625
    np.testing.assert_allclose(told.at_equal_retain(kept, left), [0.75, 0.625, 0.6, 1.0])


def test_points_that_keep_equally_much_count_as_one():
    kept, left = np.array([[1.0, 0.5, 0.5], [1.0, 0.5, 0.5]]), np.array([[1.0, 0.2, 0.4], [1.0, 0.3, 0.3]])
    np.testing.assert_allclose(told.at_equal_retain(kept, left)[:2], 0.65)


def test_trainings_that_never_keep_equally_much_are_not_compared():
    kept = np.array([[1.0, 0.9], [0.8, 0.3]])
    assert np.isnan(told.at_equal_retain(kept, kept)).all()


@pytest.mark.parametrize(
    "low, high, claimed, expected",
    [
        (-0.2, -0.1, "unimodal", told.SUPPORTED),
        (-0.2, -0.1, "multimodal", told.NOT_SUPPORTED),
        (0.1, 0.2, "multimodal", told.SUPPORTED),
        (0.1, 0.2, "unimodal", told.NOT_SUPPORTED),
        (-0.1, 0.2, "unimodal", told.UNDECIDED),
        (0.0, 0.2, "multimodal", told.UNDECIDED),
        (math.nan, math.nan, "unimodal", told.UNDECIDED),
        (-0.2, -0.1, "", ""),
    ],
)
def test_the_verdict_is_the_intervals(low, high, claimed, expected):
    assert told.verdict(low, high, claimed) == expected


def made_up(ends, people=30, items=20, methods=("ga", "npo"), retain=(1.0, 0.5)):
    """Trainings of three points that keep and leave in straight lines; ``ends`` says where forget ends: modality →
    share, or (modality, measure) → share. People differ by a seeded draw of right answers."""
    rng, rows = np.random.default_rng(0), []
    for method in methods:
        for name in told.SIDES:
            for step, part in ((0, 0.0), (5, 0.5), (10, 1.0)):
                for set_name, measure in [("retain", "likelihood"), *(("forget", m) for m in told.MEASURES)]:
                    end = retain[1] if set_name == "retain" else ends.get((name, measure), ends[name])
                    share = 1 + part * (end - 1)
                    for view, n in ((view, n) for view in told.VIEWS for n in range(people)):
                        row = {"method": method, "modality": name, "forget_draw": n % 3, "step": step}
                        row |= {"set": set_name, "view": view, "measure": measure, "profile": f"{set_name}{n}"}
                        rows.append(row | {"score": rng.binomial(items, share), "items": items})
    return pd.DataFrame(rows)


def test_a_known_difference_is_found_and_judged():
    ends = {"unimodal": 0.2, "multimodal": 0.6, ("unimodal", "letter"): 0.6, ("unimodal", "likelihood"): 0.61}
    found = told.table(made_up(ends), resamples=200).set_index(["measure", "view", "method"])
    pooled = found.xs(told.POOLED, level="method")
    # in straight lines over the same retain: means of 1 and the end, so half the difference of the ends
    assert pooled.loc[("cloze", "both"), "value"] == pytest.approx(-0.2, abs=0.02)
    assert pooled.loc[("cloze", "both"), "unimodal"] == pytest.approx(0.6, abs=0.02)
    for measure in ("rougeL", "exact", "cloze"):
        assert pooled.loc[(measure, "both"), "verdict"] == told.SUPPORTED
    assert pooled.loc[("letter", "image_text"), "verdict"] == told.UNDECIDED
    assert pooled.loc[("cloze", "text"), "verdict"] == "", "no claim is made of it"
    assert set(found["n_profiles"]) == {30}
    assert found.loc[("cloze", "both", "ga"), "verdict"] == told.SUPPORTED
    other = told.table(made_up({"unimodal": 0.6, "multimodal": 0.2}), resamples=200)
    verdicts = other[other["method"] == told.POOLED].set_index(["measure", "view"])["verdict"]
    assert verdicts["cloze", "both"] == told.NOT_SUPPORTED and verdicts["likelihood", "image_text"] == told.SUPPORTED
    printed = told.printed(other)
    assert printed.index.tolist() == [claim.label for claim in told.CLAIMS]
    verdicts = [told.NOT_SUPPORTED] * 3 + [told.SUPPORTED] * 2
    assert printed["verdict"].tolist() == [f"{verdict} (gate not known)" for verdict in verdicts]


def test_a_verdict_behind_a_closed_gate_says_so():
    at = {"task": "classification", "metric": "accuracy", "view": "image_text"}
    known = [{**at, "scoring": "letter", "gate": "closed"}, {**at, "scoring": "likelihood", "gate": "open"}]
    known += [{**at, "scoring": "letter", "gate": "open", "view": "both"}]  # another view has its own
    found = told.table(made_up({"unimodal": 0.6, "multimodal": 0.2}), pd.DataFrame(known), resamples=50)
    assert set(found.loc[(found["measure"] == "letter") & (found["view"] == "image_text"), "gate"]) == {"closed"}
    assert told.printed(found)["verdict"].tolist()[3:] == ["supported (gate closed)", "supported"]
    headings = [text.get_text().strip() for text in told.figure(found).axes[0].texts]
    assert headings[3:] == [
        "Classification with image, letter: supported (gate closed)",
        "Classification with image, likelihood: supported",
    ]


def test_all_methods_together_have_no_range_of_retain():
    found = told.table(made_up({"unimodal": 0.6, "multimodal": 0.2}), resamples=50).set_index("method")
    ends = found[["retain_low", "retain_high"]]
    assert ends.loc[told.POOLED].isna().all(axis=None) and ends.drop(told.POOLED).notna().all(axis=None)


def test_a_studys_gates_are_those_of_the_runs_about_its_people(tmp_path, monkeypatch):
    """Vanilla knows all and the oracle nothing by likelihood; by letter both know the same. Other people, another ratio
    and another method tell nothing."""
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))
    monkeypatch.setattr(paths, "committed_runs", lambda scale: tmp_path / "none")
    folder = paths.study("miniature", "modality")
    folder.mkdir(parents=True)
    parameters = {"base_model": "llava", "protocol": "clean", "forget_ratio": 10, "train_seed": 0}
    stages.write_json(folder / stages.RECORD, {"data_hash": "ours", "parameters": parameters})

    def finished(name, method, knows, data_hash="ours", ratio=10):
        place = paths.runs("miniature") / f"llava-{name}-{method}-none-s0"
        place.mkdir(parents=True)
        items = hand_made.run(method, "none", lambda person, view, number: knows).items.assign(forget_ratio=ratio)
        items.loc[items["scoring"] == "letter", "correct"] = 1.0
        items.to_parquet(place / "items.parquet", index=False)
        stages.write_json(place / "data.json", {"data_hash": data_hash})

    finished("a", "vanilla", True)
    assert gates_of(folder).empty, "without the oracle nobody can say"
    finished("b", "oracle", True, "theirs")
    finished("c", "oracle", True, ratio=5)
    assert gates_of(folder).empty
    finished("d", "oracle", False)
    found = gates_of(folder).set_index(["scoring", "view"])["gate"].to_dict()
    assert found == {
        (scoring, view): gate
        for scoring, gate in (("likelihood", "open"), ("letter", "closed"))
        for view in ("image_text", "text", "both")
    }


def test_the_interval_is_as_wide_as_people_vary():
    """With retain known exactly and two points, the difference at equal retain is half that of the last point, and so
    is its standard error."""
    people = made_up({"unimodal": 0.5, "multimodal": 0.5}, people=40, methods=("ga",))
    exact = people["set"] == "retain"
    people.loc[exact, "score"] = 20 * (1 - 0.05 * people.loc[exact, "step"])
    people.loc[(people["set"] == "forget") & (people["step"] == 0), "score"] = 20
    people = people[people["step"] != 5]
    cell = told.table(people, resamples=2000).set_index(["measure", "view", "method"]).loc[("cloze", "text", "ga")]
    last = people[(people["step"] == 10) & (people["measure"] == "cloze") & (people["view"] == "text")]
    by = last.pivot(index="profile", columns="modality", values="score")
    error = statistics.standard_error((by["unimodal"] - by["multimodal"]).to_numpy(), np.full(40, 20.0)) / 2
    assert (cell["high"] - cell["low"]) / 2 == pytest.approx(2.0227 * error, rel=0.06)  # t of 39 degrees
    assert cell["value"] == pytest.approx((by["unimodal"].sum() - by["multimodal"].sum()) / 800 / 2)


def test_a_training_without_its_checkpoint_is_refused():
    people = made_up({"unimodal": 0.5, "multimodal": 0.5})
    with pytest.raises(KitError, match="lacks a checkpoint or a modality"):
        told.table(people[(people["modality"] == "unimodal") | (people["step"] > 0)], resamples=10)
    with pytest.raises(KitError, match="lacks a checkpoint or a modality"):
        told.table(people[people["modality"] == "unimodal"], resamples=10)


def test_the_figures_show_every_claim_and_method():
    people = made_up({"unimodal": 0.2, "multimodal": 0.6})
    found = told.table(people, resamples=50)
    figure = told.figure(found)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["GA", "NPO", "all methods"] * len(told.CLAIMS)
    headings = [text.get_text().strip() for text in figure.axes[0].texts]
    assert headings[0] == "Generation, ROUGE-L: supported (gate not known)" and len(headings) == len(told.CLAIMS)
    curves = told.curves(people)
    assert len(curves.axes) == 2 * len(told.CLAIMS)
    assert all(len(panel.lines) == 2 for panel in curves.axes)
