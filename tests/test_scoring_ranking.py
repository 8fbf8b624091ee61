"""What is kept along a path, the ranking by it, and agreement with published lists, on answers worked out by hand."""

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_answers import GA, NPO, ORACLE, VANILLA, run, scored
from scipy.stats import t

from mllmu_nb.scoring import path
from mllmu_nb.scoring.gates import gates
from mllmu_nb.scoring.health import Unsound
from mllmu_nb.scoring.ranking import SHUT, ranking
from mllmu_nb.scoring.score import cells
from mllmu_nb.statistics.intervals import paired_difference

LIKELIHOOD = {"task": "classification", "scoring": "likelihood", "metric": "accuracy"}
GROUP = ("llava", "clean", 10)
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def first(count: int, more=()):
    """Everybody's first ``count`` of four questions are right, and one more for the people in ``more``."""
    return lambda person, view, number: number + 2 * (view == "text") < count + (person in more)


# means over 30 people with 4 questions: the oracle has 1/4, so the gaps are 0, +1/4, -1/4 and +1/2
MODELS = {
    VANILLA: first(4),
    ORACLE: first(1),
    ("grad_diff", "multimodal"): first(1),
    GA: first(2),
    NPO: first(0),
    ("kl_min", "multimodal"): first(3),
}


def frames(models=MODELS, dead=(), **options):
    """Return scored items, their cells, and the unsound models: those in ``dead``."""
    items = scored(models, **options)
    bad = {
        (*GROUP, name, "canonical", "multimodal", ""): Unsound(
            1, 3, "collapsed in 1 of 3", "collapsed in 1 of 3: broken"
        )
        for name in dead
    }
    return items, cells(items), bad


# -- along the path ---------------------------------------------------------------------------------------------


def points(model, forget, kept, replicate: int = 0) -> pd.DataFrame:
    """Return a path of ``len(forget)`` points. Four forget people have ten answers each, of which ``forget`` are right.
    Four retain people and celebrities have ten answers each, of which ``kept`` (a list per person, or one number) are
    right."""
    rows = []
    for step, (gone, left) in enumerate(zip(forget, kept, strict=True)):
        for set_name, right in (("forget", gone), ("retain", left), ("celebrity", left)):
            for person in range(4):
                score = right[person] if isinstance(right, list) else right
                who = f"{replicate if set_name == 'forget' else ''}{set_name}{person}"
                row = {"step": 10 * step, "set": set_name, "view": "image_text", "measure": "likelihood", "person": who}
                rows.append(row | {"score": float(score), "items": 10})
    return pd.DataFrame(rows).assign(**run(*model, replicate))


def test_a_share_of_the_gap_is_reached_between_two_points():
    weights = path.crossings(np.array([0.0, 0.2, 0.6, 0.5, 0.8]), [0.0, 0.2, 0.3, 0.6, 0.7, 0.9])
    assert weights[0].tolist() == [1, 0, 0, 0, 0] and weights[1].tolist() == [0, 1, 0, 0, 0]
    assert weights[2] == pytest.approx([0, 0.75, 0.25, 0, 0]) and weights[3].tolist() == [0, 0, 1, 0, 0]
    assert weights[4] == pytest.approx([0, 0, 0, 1 / 3, 2 / 3]), "the first time it is closed, not a later one"
    assert np.isnan(weights[5]).all(), "never"


def test_every_second_point_alone_by_hand():
    # from 10 to 4 of 10, three quarters of the gap: half is two thirds of the way, where 10 minus 2/3 of 5 are kept
    rows = pd.concat([points(GA, [10, 8, 4, 3], [10, 9, 5, 0]), points(ORACLE, [2], [10])])
    [few] = path.coarse(rows, path.kept_by_person(rows)).query("what == 'kept'").to_dict("records")
    assert few["place"] == 0.5 and few["value"] == pytest.approx(2 / 3 - 0.7), "with all points .7"


def test_three_times_as_many_points_by_hand():
    spec = importlib.util.spec_from_file_location("path_points", BENCHMARKS / "path_points.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    # the gap is 8 of 10. All points: half is a third of the way from 7 to 4, where 9 minus a third of 4 are kept
    rows = pd.concat([points(GA, [10, 9, 7, 4], [10, 10, 9, 5]), points(ORACLE, [2], [10])])
    [kept] = module.table(rows).query("what == 'kept'").to_dict("records")
    # every third: two thirds of the way from 10 to 4, where 10 minus two thirds of 5 are kept
    assert (kept["all_value"], kept["few_value"]) == pytest.approx((23 / 30, 20 / 30))
    assert kept["change_value"] == pytest.approx(0.1) and kept["all_n_replicates"] == 1


def test_what_two_methods_keep_is_compared_person_by_person_by_hand():
    forget, left = [10, 8, 4, 3], [[10, 10, 10, 10], [9, 9, 8, 8], [5, 5, 4, 4], [0, 0, 0, 0]]
    less = [[right - (0 < place < 3) for right in row] for place, row in enumerate(left)]
    rows = [points(model, forget, kept) for model, kept in ((GA, left), (NPO, less))]
    of_people = path.kept_by_person(pd.concat([*rows, points(ORACLE, [2], [10])]))
    ga, npo = (of_people[of_people["method"] == name] for name in ("ga", "npo"))
    [at] = path.kept_difference(npo, ga).query("what == 'kept' and place == 0.5").to_dict("records")
    # one of ten less at the points on both sides of half closed, of everybody
    assert at["value"] == pytest.approx(-0.1) and at["method"] == "npo" and at["low"] <= at["value"] <= at["high"]


def test_two_methods_that_keep_the_same_of_everybody_have_the_limits_of_a_paired_difference():
    """All eight people keep seven of ten at half closed, after both methods and in all three replicates."""
    rows = [points(m, [10, 8, 4, 3], [10, 9, 5, 0], r) for m in (GA, NPO) for r in range(3)]
    of_people = path.kept_by_person(pd.concat(rows + [points(ORACLE, [2], [10], r) for r in range(3)]))
    ga, npo = (of_people[of_people["method"] == name] for name in ("ga", "npo"))
    [at] = path.kept_difference(npo, ga).query("what == 'kept' and place == 0.5").to_dict("records")
    here = ga.query("what == 'kept' and place == 0.5")
    expected = paired_difference(here["value"], here["value"], here["person"])
    assert (at["value"], at["low"], at["high"]) == pytest.approx((0, expected.low, expected.high))
    assert at["low"] < 0 < at["high"] and at["n_replicates"] == 3


def test_what_is_kept_at_equal_forgetting_by_hand():
    # from 10 to the oracle's 2 of 10: half of the gap is at 6, halfway between 8 and 4, and there 7 of 10 are kept
    rows = pd.concat([points(GA, [10, 8, 4, 3], [10, 9, 5, 0]), points(ORACLE, [2], [10])])
    curve = path.curves(rows)[run(*GA)["run"]]
    assert curve.closed == pytest.approx([0, 0.25, 0.75, 0.875])
    found = path.kept(path.kept_by_person(rows)).set_index(["what", "place"])
    assert [found.loc[("kept", place), "value"] for place in (0.25, 0.5, 0.75)] == pytest.approx([0.9, 0.7, 0.5])
    # from 1 to .9 over a third of 0 to .75, then from .9 to .5 over two thirds
    assert found.loc[("kept", "area"), "value"] == pytest.approx((0.95 + 2 * 0.7) / 3)
    assert found.loc[("retain", 0.5), ["n_replicates", "of", "n_profiles"]].tolist() == [1, 1, 4]


def test_the_gap_of_a_path_ends_at_the_oracle_that_was_asked_alike():
    """In a grid over the precision of evaluation; a rate, which an oracle does not have, keeps none from its oracle."""
    rows = [points(GA, [10, 8, 4], [10, 9, 5]), points(ORACLE, [2], [10])]
    rows += [rows[0].assign(run="fp16"), points(ORACLE, [4], [10]).assign(run="oracle fp16")]
    precisions = ("fp32", "fp32", "fp16", "fp16")
    rows = [one.assign(eval_precision=name, unlearn_lr=0.001) for one, name in zip(rows, precisions, strict=True)]
    rows[1], rows[3] = (one.assign(unlearn_lr="") for one in (rows[1], rows[3]))
    closed = {name: curve.closed.tolist() for name, curve in path.curves(pd.concat(rows)).items()}
    assert closed[run(*GA)["run"]] == pytest.approx([0, 0.25, 0.75]), "from 10 to 2"
    assert closed["fp16"] == pytest.approx([0, 1 / 3, 1]), "from 10 to 4"


def test_what_is_never_reached_has_no_value_and_says_in_how_many_replicates():
    rows = [points(GA, [10, 5], [10, 8], 0), points(GA, [10, 8], [10, 9], 1)]
    rows = pd.concat(rows + [points(ORACLE, [2], [10], number) for number in (0, 1)])
    found = path.kept(path.kept_by_person(rows)).query("what == 'kept'").set_index("place")
    assert found["n_replicates"].to_dict() | {0.25: 2, 0.5: 1, 0.75: 0, "area": 0} == found["n_replicates"].to_dict()
    assert (found["of"] == 2).all() and math.isnan(found.loc[0.75, "value"])
    assert len(found.loc[0.5, "dots"]) == 1 and found.loc[0.25, "dots"] == pytest.approx((1 - 0.2 * 2 / 5, 0.9))
    assert found.loc[0.25, ["low", "high"]].notna().all()
    assert found.loc[0.5, "value"] > 0 and found.loc[0.5, ["low", "high"]].isna().all(), "one of two: people alone"


def test_the_interval_of_what_is_kept_is_over_replicates_and_people():
    # equal people: kept .9, .7 and .8 in three replicates; sd .1, so the standard error is .1/sqrt(3), t(.975, 2) 4.303
    rows = [points(GA, [10, 6, 2], [10, kept, 0], r) for r, kept in enumerate((9, 7, 8))]
    rows = pd.concat(rows + [points(ORACLE, [2], [10], number) for number in range(3)])
    [at] = path.kept(path.kept_by_person(rows)).query("what == 'kept' and place == 0.5").to_dict("records")
    reach = 4.302653 * 0.1 / math.sqrt(3) / (0.8 * 0.2)  # on the logit scale
    low, high = (1 / (1 + math.exp(-(math.log(4) + way * reach))) for way in (-1, 1))
    assert (at["value"], at["low"], at["high"]) == pytest.approx((0.8, low, high), rel=1e-6)


def test_modalities_are_compared_setting_by_setting():
    """At the first rate both keep the same; at the second, text only keeps half as much. Rates are not mixed."""
    rows = [points(ORACLE, [2], [10]).assign(unlearn_lr="")]
    for rate, left in ((0.001, 8), (0.004, 4)):
        for modality, kept in (("multimodal", 8), ("unimodal", left)):
            path_of = points(("ga", modality), [10, 6, 2], [10, kept, 0]).assign(unlearn_lr=rate)
            both = pd.concat([path_of, path_of.assign(view="text")])
            rows.append(both.assign(run=f"{modality}-{rate}"))
    of_people = path.kept_by_person(pd.concat(rows), "both", ["unlearn_lr"])
    found = path.between_modalities(of_people, ["retain"], [0.5], ["unlearn_lr"]).query("method == 'ga'")
    assert found.set_index("unlearn_lr")["value"].to_dict() == pytest.approx({0.001: 0.0, 0.004: -0.4})
    assert set(found["n_items"]) == {4}


def test_all_methods_together_are_the_same_methods_in_each_replicate():
    """GA reaches the place in all three replicates, NPO in two, KL Min. in one: GA and NPO count, in those two."""
    kept = {"ga": [8, 8, 8], "npo": [6, 6, None], "kl_min": [0, None, None]}
    rows = [points(ORACLE, [2], [10], replicate) for replicate in range(3)]
    for method, replicates in kept.items():
        for (replicate, left), modality in itertools.product(enumerate(replicates), ("multimodal", "unimodal")):
            less = 0 if left is None or modality == "multimodal" else {"ga": 2, "npo": 4, "kl_min": 0}[method]
            path_of = points((method, modality), [10, 9 if left is None else 2], [10, (left or 0) - less], replicate)
            rows.append(pd.concat([path_of, path_of.assign(view="text")]))
    found = path.between_modalities(path.kept_by_person(pd.concat(rows), "both"), ["retain"], [0.75])
    found = found.set_index("method")
    assert found["n_replicates"].to_dict() == {"ga": 3, "npo": 2, "kl_min": 1, "all": 2}
    ga, npo = found.loc["ga", "value"], found.loc["npo", "value"]
    assert (ga, npo) == pytest.approx((-0.15, -0.3)) and found.loc["all", "value"] == pytest.approx((ga + npo) / 2)
    assert found["low"].isna().to_dict() == {"ga": False, "npo": False, "kl_min": True, "all": False}


def test_sets_of_different_sizes_count_alike():
    """Checks the variance of the mean of two means, each over its own people."""
    values, sets = np.array([0.9, 0.1, 0.6, 0.6, 0.9]), np.array([0, 0, 1, 1, 1])
    found = path._mean_of_sets([values], sets, np.arange(5), np.zeros(5, int))
    within = sum(
        ((values[sets == one] - values[sets == one].mean()) ** 2).sum() / n**2 / 4 for one, n in ((0, 2), (1, 3))
    )
    reach = t.ppf(0.975, 4) * math.sqrt(5 / 4 * within) / (0.6 * 0.4)  # on the logit scale
    low, high = (1 / (1 + math.exp(-(math.log(1.5) + way * reach))) for way in (-1, 1))
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.6, low, high))


def test_what_all_keep_alike_lies_inside_its_interval():
    """Ten retain people keep all and three celebrities half: .75, because each set counts the same."""
    values, sets = np.array([1.0] * 10 + [0.5] * 3), np.array([0] * 10 + [1] * 3)
    found = path._mean_of_sets([values], sets, np.arange(13), np.zeros(13, int))
    assert found["value"] == 0.75 and found["low"] <= 0.75 <= found["high"]


def test_without_a_gap_or_an_oracle_there_is_no_curve():
    assert not path.curves(points(GA, [10, 5], [10, 8]))
    assert not path.curves(pd.concat([points(GA, [2, 1], [10, 8]), points(ORACLE, [2], [10])]))


def test_an_edge_is_what_a_fifth_of_the_steps_changes():
    # the points are at 0, 10, 20 and 30 steps; a fifth more than 15 is 18, a fifth fewer is 12
    rows = pd.concat([points(GA, [10, 8, 4, 3], [10, 10, 10, 10]), points(GA, [10, 10, 10, 0], [10] * 4, 1)])
    found = path.edges(rows, {"ga-multimodal-0": 15, "ga-multimodal-1": 15}).set_index("times")
    assert found["n_replicates"].tolist() == [2, 2] and found["n_profiles"].tolist() == [8, 8]
    # four of ten right answers are lost over ten steps: 12 points in three steps, in one replicate of two
    assert found["value"].to_dict() == pytest.approx({0.8: 0.06, 1.2: -0.06})
    assert found.loc[1.2, "dots"] == pytest.approx((-0.12, 0.0)), "of the two replicates"
    assert found.loc[1.2, "low"] < -0.06 < found.loc[1.2, "high"]
    beyond = path.edges(rows, {"ga-multimodal-0": 30, "ga-multimodal-1": 30}).set_index("times")
    assert math.isnan(beyond.loc[1.2, "value"]), "the path ends where the run does"
    assert beyond.loc[0.8, "value"] == pytest.approx((0.06 + 0.6) / 2)
    assert path.edges(points(ORACLE, [2], [10]), {}).empty


# -- ranking ----------------------------------------------------------------------------------------------------


def ranked(kept, dead=(), count: int = 3, shut: bool = False):
    """Rank methods. ``kept``: how many of ten answers each keeps about each person at half of the gap."""
    rows = [
        points((name, "multimodal"), [10, 6, 2], [10, [some + extra for some in left], 0], replicate)
        for name, left in kept.items()
        for replicate, extra in zip(range(count), (0, 0.2, -0.2), strict=False)
    ]
    rows = pd.concat(rows + [points(ORACLE, [2], [10], number) for number in range(count)])
    _, table, bad = frames(MODELS | ({VANILLA: first(1)} if shut else {}), dead)
    found = ranking(path.kept_by_person(rows), bad, gates(table))
    return found, found.methods.set_index("method") if len(found.methods) else found.methods


def test_who_keeps_most_stands_first_and_who_cannot_be_told_apart_shares_a_letter():
    found, methods = ranked({"ga": [4, 5, 4, 5], "npo": [5, 4, 5, 4], "kl_min": [9, 9, 8, 9]})
    assert methods.loc[["kl_min", "ga", "npo"], "place"].tolist() == [1, 2, 2]
    assert methods.loc[["kl_min", "ga", "npo"], "group"].tolist() == ["a", "b", "b"]
    assert len(found.pairs) == 3 and found.pairs["p_holm"].min() == pytest.approx(3 * found.pairs["p"].min())
    pair = found.pairs.query("a == @models[0] and b == @models[1]", local_dict={"models": [
        (name, "canonical", "multimodal", "") for name in ("ga", "npo")]})  # fmt: skip
    assert pair["p"].item() == pytest.approx(1) and not pair["apart"].item()


def test_the_test_of_a_pair_counts_each_set_half_as_what_is_kept_does():
    rows = [points(model, [10, 6, 2], [10, 8, 0], r) for model in (GA, NPO) for r in range(3)]
    of_people = path.kept_by_person(pd.concat(rows + [points(ORACLE, [2], [10], r) for r in range(3)]))
    of_people = of_people[~of_people["person"].isin([f"celebrity{number}" for number in (1, 2, 3)])]
    more = {"retain": (0.1, 0.2, 0.3), "celebrity": (0.1, 0.0, 0.1)}  # GA minus NPO, by replicate
    own = [0.5 + more[s][r] for s, r in zip(of_people["set"], of_people["replicate"], strict=True) if s in more]
    ga = (of_people["method"] == "ga") & of_people["set"].isin(more)
    kept = of_people["set"].isin(more)
    of_people.loc[kept, "value"] = 0.5
    of_people.loc[ga, "value"] = [one for one, here in zip(own, ga[kept], strict=True) if here]
    [p] = ranking(of_people, {}, gates(frames()[1])).pairs["p"]
    # the replicates differ by .1, .1 and .2 (by the number of people: .1, .16 and .26): t = .4 / sd on 2 degrees
    assert p == pytest.approx(2 * t.sf(0.4 / 3 / (np.std([0.1, 0.1, 0.2], ddof=1) / math.sqrt(3)), 2))


def test_who_has_collapsed_or_never_gets_there_is_out_and_says_why():
    found, methods = ranked({"ga": [4, 5, 4, 5], "npo": [5, 4, 5, 4]}, dead=["npo"])
    assert methods.loc["npo", ["standing", "note"]].tolist() == ["unsound", "Collapsed in 1 of 3: broken."]
    assert pd.isna(methods.loc["npo", "place"]) and methods.loc["ga", "place"] == 1 and found.pairs.empty
    rows = [points(GA, [10, 8], [10, 9], r) for r in range(3)] + [points(ORACLE, [2], [10], r) for r in range(3)]
    methods = ranking(path.kept_by_person(pd.concat(rows)), {}, gates(frames()[1])).methods
    assert methods["note"].item() == "It never closes half the gap in 3 of 3 replicates."


def test_nobody_is_ranked_behind_a_closed_gate_or_on_two_replicates():
    _, methods = ranked({"ga": [4, 5, 4, 5]}, shut=True)
    assert methods.loc["ga", ["standing", "note"]].tolist() == ["gate closed", SHUT]
    found, _ = ranked({"ga": [4, 5, 4, 5]}, count=2)
    assert found.methods.empty and found.refused == "ranking needs 3 replicates, and there are 2"


def test_a_method_on_fewer_replicates_is_not_ranked():
    rows = [points(GA, [10, 6, 2], [10, 5, 0], r) for r in range(3)] + [points(ORACLE, [2], [10], r) for r in range(3)]
    rows += [points(NPO, [10, 6, 2], [10, 9, 0], r) for r in range(2)]
    found = ranking(path.kept_by_person(pd.concat(rows)), {}, gates(frames()[1]))
    methods = found.methods.set_index("method")
    assert methods.loc["npo", ["standing", "note"]].tolist() == ["fewer replicates", "Run on 2 of the 3 replicates."]
    assert methods.loc["ga", "place"] == 1 and pd.isna(methods.loc["npo", "place"]) and found.pairs.empty
