"""Where a score's spread comes from: one source changed at a time, and split back into what was put in."""

import math

import numpy as np
import pandas as pd
import pytest

from mllmu_nb import run, stages
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import variance as told
from mllmu_nb.studies import variance

SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25, "shots": 2, "replay": 0.0}
FEW = {"train_seed": (0, 1), "unlearn_seed": (0, 1), "shot_seed": (0, 1, 2)}


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.mktemp("out")))
        yield Config(base_path=str(tiny_base), train_steps=2, unlearn_steps=2, **SMALL)


def test_one_source_is_changed_at_a_time(config):
    folder = variance.measure(config, [0, 2], ["ga"], FEW, jobs=1)
    people = pd.read_parquet(folder / "people.parquet")
    levels = people[list(told.FACTORS)].drop_duplicates().to_numpy().tolist()
    expected = [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2], [2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert sorted(levels) == sorted(expected)
    assert set(people["modality"]) == {"multimodal", "unimodal"}
    # 12 people, of whom two disjoint threes are forgotten: the other six are asked by every model
    kept = (
        people[people["set"] == "retain"]
        .groupby(list(told.FACTORS))["profile"]
        .agg(lambda ids: tuple(sorted(set(ids))))
    )
    assert kept.nunique() == 1 and len(kept.iloc[0]) == 6
    assert stages.read_json(folder / stages.RECORD)["levels"]["forget_draw"] == [0, 2]
    found = told.measured(folder)
    assert set(found.loc[found["measure"] == "exact", "factor"]) == set(told.SOURCES) - {"shot_seed"}
    assert len(told.printed(found)) == len(told.SOURCES)


def test_other_vanillas_are_trained_and_not_asked_to_be_the_same(config):
    places = {run.vanilla_place(config.but(train_seed=seed)) for seed in FEW["train_seed"]}
    assert len(places) == 2 and all(place.is_dir() for place in places)


def test_somebody_must_be_left_to_be_kept(config):
    with pytest.raises(KitError, match="forget everybody"):
        variance.measure(config, [0, 1, 2, 3], ["ga"], FEW, jobs=1)


# -- the split --------------------------------------------------------------------------------------------------


def made_up(effects, people=40, items=50, models=("ga", "npo"), seed=0):
    """Cloze scores about .5 of the same people, moved by ``effects``: factor → what each of its levels adds. A
    person's score is a plain share of ``items``, so that nothing but the effects and the people is in it."""
    easy = np.random.default_rng(seed).normal(0.5, 0.05, people).clip(0.3, 0.7)
    rows, first = [], dict.fromkeys(told.FACTORS, 0)
    levels = [(first, 0.0)]
    levels += [({**first, f: n}, added) for f, all_ in effects.items() for n, added in enumerate(all_) if n]
    for number, method in enumerate(models):
        for level, added in levels:
            for person in range(people):
                row = {"method": method, "modality": "unimodal", **level, "set": "retain", "view": "text"}
                score = items * (easy[person] + added + 0.01 * number)
                rows.append(row | {"measure": "cloze", "profile": str(person), "score": score, "items": items})
    return pd.DataFrame(rows)


def test_the_split_finds_what_was_put_in():
    effects = {"forget_draw": [0, 0.1, -0.1], "train_seed": [0, 0.02, -0.02], "unlearn_seed": [0, 0, 0]}
    effects |= {"shot_seed": [0, 0.01]}
    found = told.table(made_up(effects))
    found = found[found["view"] == "both"].set_index("factor")
    # everyone moves alike, so the differences have no error: sd of (0, .1, -.1) is .1, of (0, .01) it is .01 / √2
    assert found.loc["forget_draw", "sd"] == pytest.approx(0.1)
    assert found.loc["train_seed", "sd"] == pytest.approx(0.02)
    assert found.loc["unlearn_seed", "sd"] == pytest.approx(0.0, abs=1e-9)
    assert found.loc["shot_seed", "sd"] == pytest.approx(0.01 / math.sqrt(2))
    assert found.loc["model", "sd"] == pytest.approx(0.01 / math.sqrt(2))
    assert found["levels"].to_dict() == {
        "forget_draw": 3,
        "train_seed": 3,
        "unlearn_seed": 3,
        "shot_seed": 2,
        "model": 2,
    }
    # chi-square with 2 degrees: .0506 and 7.378
    assert found.loc["forget_draw", "high"] == pytest.approx(0.1 * math.sqrt(2 / 0.050636), rel=1e-3)
    assert found.loc["forget_draw", "low"] == pytest.approx(0.1 * math.sqrt(2 / 7.3778), rel=1e-3)


def test_what_the_sampling_of_people_makes_is_taken_off():
    """Levels that differ by each person's own chance alone: the spread of their means is all sampling."""
    people = made_up({"unlearn_seed": [0.0] * 5}, models=("ga",))
    noise = np.random.default_rng(1).normal(0, 5, len(people))
    people["score"] += noise
    found = told.scores(people)
    found = found[(found["view"] == "both") & (found["unlearn_seed"] > 0)]
    # one person's noise has sd 5 of 50 items: a mean of 40 has .1 / √40; the paired error over √2 is just that
    assert found["se_paired"].mean() == pytest.approx(0.1 / math.sqrt(40), rel=0.15)
    assert (found["se_paired"] < found["se"]).any()
    split = told.table(people).set_index(["view", "factor"])
    assert split.loc[("both", "unlearn_seed"), "sd"] < 0.1 / math.sqrt(40)


def test_so_it_is_of_what_models_differ_by():
    """Three models that differ by each person's own chance alone. What is common to them is no part of it."""
    people = made_up({}, models=("ga", "grad_diff", "npo"))
    own, common = np.random.default_rng(2).normal(0, 5, (3, 40)), np.random.default_rng(3).normal(0, 12, 40)
    people["score"] = 25 + (own + common).ravel()
    found = told.scores(people)
    found = found[found["view"] == "both"]
    expected = (np.var(own - own.mean(0), axis=1, ddof=1) * 3 / 2 / 40 / 50**2).mean()
    assert (found["se_models"] ** 2).mean() == pytest.approx(expected)
    split = told.table(people).set_index(["view", "factor"]).loc[("both", "model")]
    assert split["variance"] == pytest.approx(max(found["value"].var() - expected, 0.0), abs=1e-12)
    assert split["low"] == 0, "nothing but sampling: not shown to matter"
    apart = people.assign(score=people["score"] + 5 * (people["method"] == "npo"))  # by a tenth
    assert told.table(apart).set_index(["view", "factor"]).loc[("both", "model"), "low"] > 0
    alone = told.scores(people[people["method"] == "ga"])
    assert alone["se_models"].isna().all()


def test_other_people_have_their_own_error_and_no_paired_one():
    people = made_up({"forget_draw": [0, 0.1]}, models=("ga",))
    people["set"] = "forget"
    people.loc[people["forget_draw"] == 1, "profile"] = "other " + people["profile"]
    found = told.scores(people)
    assert found["se_paired"].isna().all() and found["se"].notna().all()
    assert np.isfinite(told.table(people).set_index(["view", "factor"]).loc[("both", "forget_draw"), "variance"])


def test_without_the_first_level_there_is_nothing_to_compare_with():
    people = made_up({"forget_draw": [0, 0.1], "train_seed": [0, 0.1]}, models=("ga",))
    plain = (people["forget_draw"] == 0) & (people["train_seed"] == 0)
    with pytest.raises(KitError, match="not measured at the first level"):
        told.table(people[~plain])


def test_the_figure_has_a_place_for_every_source():
    effects = {"forget_draw": [0, 0.1], "train_seed": [0, 0.02], "unlearn_seed": [0, 0.01, 0.02]}
    retain = made_up(effects)
    both = pd.concat([retain, retain.assign(set="forget"), retain.assign(measure="exact")])
    figure = told.figure(told.table(both))
    assert [panel.get_title() for panel in figure.axes[:2]] == ["Exact", "Cloze"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(told.SOURCES.values())
    assert "–" in [text.get_text() for text in figure.axes[0].texts], "no shots stand before a free question"
