"""The cliff: an equal grid for every method, one rule that chooses, and a map whose numbers are the table's."""

import math

import numpy as np
import pandas as pd
import pytest

from mllmu_nb import run, stages
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import cliff as told
from mllmu_nb.studies import cliff, models
from mllmu_nb.training import TrainingDiverged

SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25, "shots": 0, "replay": 0.0, "train_steps": 2}
FEW = [cliff.Setting("ga", "unimodal", lr, steps) for lr in (1e-3, 2e-3) for steps in (2, 7)]
LEFT = {"diverged": 0, "passes": 1.0, "low": 0.0, "high": 1.0, "n_items": 10, "n_profiles": 5}


def test_every_method_has_the_same_budget_on_draws_that_no_run_reports():
    grid = cliff.grid()
    counts = pd.DataFrame([vars(setting) for setting in grid]).groupby(["method", "modality"]).size()
    assert len(counts) == 8 and set(counts) == {12} and len(set(grid)) == 96
    assert not {0, 1, 2} & set(cliff.DRAWS)
    known = [set(run.population(Config(forget_draw=draw)).forget_ids) for draw in (0, 1, 2, *cliff.DRAWS)]
    assert sum(map(len, known)) == len(set.union(*known)) == 60, "forget sets overlap"


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.mktemp("out")))
        yield Config(base_path=str(tiny_base), **SMALL)


@pytest.fixture(scope="module")
def measured(config):
    return cliff.measure(config, [1, 2], FEW, kept=4, jobs=1)


def test_what_is_asked_and_how_long_was_trained(measured, config):
    settings = pd.read_parquet(measured / "settings.parquet")
    # 3 people with 14 questions by name, 8 a step: 6 steps a pass
    assert settings.groupby("steps")["passes"].first().to_dict() == {0: 0, 2: 2 / 6, 7: 7 / 6}
    assert len(settings) == 5 * 2 and (settings["diverged"] == "").all()
    answers = pd.read_parquet(measured / "answers.parquet")
    asked = answers.groupby(["lr", "steps", "forget_draw", "set", "view"], observed=True)
    assert set(asked["profile"].nunique().xs("forget", level="set")) == {3}
    assert set(asked["profile"].nunique().xs("retain", level="set")) == {4}
    assert set(asked.size().xs("retain", level="set")) == {4 * (5 + 2)}
    assert answers["broken"].notna().equals(answers["exact"].notna())
    found = told.measured(measured)
    assert len(found) == 5 * 2 * 2 * 3 and found["n_items"].min() == 2 * 3 * 2
    assert len(told.choose(found)) == 1 and len(told.printed(found)) == 1
    people = [models.some(run.population(config), "retain", 4, [0, draw]) for draw in (1, 2)]
    assert people[0] != people[1] and people[0] == sorted(people[0])


def test_a_setting_is_that_many_steps(config, monkeypatch):
    seen = []
    kept = models.trained
    monkeypatch.setattr(models, "trained", lambda *g, **n: seen.append(kept(*g, **n)) or seen[-1])
    cliff.left(config.but(forget_draw=1), cliff.Setting("npo", "multimodal", 1e-3, 5), kept=1)
    assert seen[0][2].steps == 5


def test_a_training_that_diverges_is_a_result_and_not_the_end(config, monkeypatch):
    def diverges(*given, **named):
        raise TrainingDiverged("training diverged at step 3")

    monkeypatch.setattr(models, "trained", diverges)
    folder = cliff.left(config.but(forget_draw=1), cliff.Setting("ga", "multimodal", 1.0, 5), kept=1)
    assert stages.read_json(folder / "train.json")["diverged"] == "training diverged at step 3"
    answers = pd.read_parquet(folder / "items.parquet")
    assert answers.empty
    settings = pd.DataFrame([stages.read_json(folder / "train.json")])
    found = told.table(told.compact(answers), settings)
    assert set(found["diverged"]) == {1} and found["value"].isna().all()
    with pytest.raises(KitError, match="every setting of ga diverged"):
        told.choose(pd.concat([table(), found]))


# -- the rule ---------------------------------------------------------------------------------------------------


def made_up(lr, forget, retain, other=None, broken=0.0, diverged=0, steps=10, modality="unimodal"):
    """A setting's cells: retain of the trained view and of the other one."""
    view, across = ("text", "image_text") if modality == "unimodal" else ("image_text", "text")
    rows = []
    for set_name, mine, theirs in (("forget", forget, 0.99), ("retain", retain, retain if other is None else other)):
        for at, value in ((view, mine), (across, theirs)):
            for measure, shown in (("likelihood", value), ("exact", 0.5), ("broken", broken)):
                cell = {"set": set_name, "view": at, "measure": measure, "value": shown}
                rows.append({"method": "ga", "modality": modality, "lr": lr, "steps": steps, **LEFT, **cell})
                rows[-1]["diverged"] = diverged
    return rows


def table(*settings, start=0.97):
    """The cells of vanilla and of some settings."""
    vanilla = [{**row, "method": "vanilla", "modality": "none"} for row in made_up(0.0, start, 0.98)]
    return pd.DataFrame(vanilla + [row for setting in settings for row in setting])


def chosen(*settings):
    return told.choose(table(*settings)).iloc[0]


def test_the_rule_takes_what_keeps_most_of_those_that_fall_far_enough():
    mild, good, steep = made_up(1e-3, 0.63, 0.97), made_up(2e-3, 0.61, 0.85), made_up(3e-3, 0.3, 0.84)
    best = chosen(mild, good, steep)
    assert (best["lr"], best["forget"], best["retain"], best["fit"]) == (2e-3, 0.61, 0.85, True)
    assert best["fall"] == pytest.approx(0.36)
    assert chosen(steep, made_up(2e-3, 0.6, 0.9, other=0.8))["lr"] == 3e-3  # the view that was not trained counts
    assert chosen(steep, made_up(2e-3, 0.6, 0.9, broken=0.51))["lr"] == 3e-3
    assert chosen(steep, made_up(2e-3, 0.6, 0.9, diverged=1))["lr"] == 3e-3
    assert chosen(made_up(2e-3, 0.6, 0.9, steps=20), made_up(3e-3, 0.5, 0.9, steps=10))["steps"] == 10


def test_where_nothing_falls_far_enough_the_rule_says_so_and_takes_what_falls_furthest_unbroken():
    best = chosen(made_up(1e-3, 0.9, 0.6), made_up(2e-3, 0.2, 0.5, broken=0.6), made_up(3e-3, 0.8, 0.55))
    assert (best["lr"], best["fit"]) == (3e-3, False)
    assert told.printed(table(made_up(1e-3, 0.9, 0.6)))[""].tolist() == ["no setting falls so far unbroken"]
    assert chosen(made_up(1e-3, 0.9, 0.6, broken=0.7), made_up(2e-3, 0.2, 0.5, broken=0.6))["lr"] == 2e-3


def test_vanilla_is_no_setting():
    assert told.sides(table(made_up(1e-3, 0.9, 0.9)))["method"].tolist() == ["ga"]


def test_the_map_shows_every_setting_and_marks_two():
    found = table(
        made_up(1e-3, 0.9, 0.97),
        made_up(2e-3, 0.6, 0.9),
        made_up(1e-3, math.nan, math.nan, diverged=2, steps=20),
        made_up(2e-3, 0.3, 0.3, steps=20),
    )
    drawn = told.figure(found, "unimodal", {("ga", "unimodal"): (1e-3 * math.sqrt(2), 10 * math.sqrt(2))})
    forget, retain = drawn.axes[:2]
    assert [text.get_text() for text in forget.texts] == ["90", "60", "×", "30"]
    assert [text.get_text() for text in retain.texts] == ["97", "90", "×", "30"]
    [frame] = forget.patches
    assert frame.get_xy() == (0.5, -0.5)
    np.testing.assert_allclose([line.get_xydata()[0] for line in forget.lines], 0.5)  # halfway on both axes
    assert [label.get_text() for label in forget.get_yticklabels()] == ["10 (1.0)", "20 (1.0)"]
    assert "outside" not in drawn.get_supxlabel()
    outside = told.figure(found, "unimodal", {("ga", "unimodal"): (1e-2, 10), ("ga", "multimodal"): (1e-3, 10)})
    assert np.isnan(outside.axes[0].lines[0].get_xydata()[0, 0])
    assert outside.get_supxlabel().endswith("outside the map, without a ring: GA 1.0e-02, 10 steps")
    with pytest.raises(KitError, match="no setting unlearned on image \\+ text"):
        told.figure(found, "multimodal")


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
    settings = [made_up(lr, 0.6, retain) for lr, retain in ((1e-3, 0.8), (2e-3, 0.9))]
    settings += [made_up(lr, 0.3, 0.3, steps=20) for lr in (1e-3, 2e-3)]
    assert told.printed(table(*settings), {("ga", "unimodal"): used})["the kit's"].tolist() == [where]


def test_lengths_are_named_beside_every_method_that_has_its_own():
    alike = made_up(1e-3, 0.9, 0.97) + made_up(1e-3, 0.7, 0.9, steps=20)
    longer = [{**row, "method": "kl_min", "steps": 8 * row["steps"]} for row in alike]
    shared = [{**row, "method": "npo"} for row in alike]
    drawn = told.figure(table(alike, [{**row, "method": "grad_diff"} for row in alike], longer, shared), "unimodal")
    labels = [[label.get_text() for label in panel.get_yticklabels()] for panel in drawn.axes[:4]]
    assert labels == [["10 (1.0)", "20 (1.0)"], ["", ""], ["80 (1.0)", "160 (1.0)"], ["10 (1.0)", "20 (1.0)"]]
