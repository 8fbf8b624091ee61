"""Ranking by distance to the oracle and agreement with published lists, on answers whose order is known by hand."""

import math

import pandas as pd
import pytest
from made_answers import GA, NPO, ORACLE, VANILLA, scored

from mllmu_nb.scoring.health import judged
from mllmu_nb.scoring.ranking import SHUT, agreement, ranking
from mllmu_nb.scoring.score import cells

LIKELIHOOD = {"task": "classification", "scoring": "likelihood", "metric": "accuracy"}


def first(count: int, more=()):
    """Right about everybody's first ``count`` of four questions; ``more`` are people with one right answer more."""
    return lambda person, view, number: number + 2 * (view == "text") < count + (person in more)


# means over 30 people of 4 questions; the oracle has 1/4, so the gaps are 0, +1/4, -1/4 and +1/2
MODELS = {
    VANILLA: first(4),
    ORACLE: first(1),
    ("grad_diff", "multimodal"): first(1),
    GA: first(2),
    NPO: first(0),
    ("kl_min", "multimodal"): first(3),
}


def frames(models=MODELS, dead=(), **options):
    """Scored items, their cells, and which models have collapsed: those in ``dead``."""
    items = scored(models, **options)
    verdicts = judged(items)
    verdicts["collapsed"] = verdicts["method"].isin(dead)
    return items, cells(items), verdicts.assign(why="half of its answers broken")


def ranked(models=MODELS, dead=()):
    found = ranking(*frames(models, dead))
    methods = found.methods[found.methods["scoring"] == "likelihood"].set_index("method")
    pairs = found.pairs[found.pairs["scoring"] == "likelihood"] if len(found.pairs) else found.pairs
    return methods, {
        frozenset((a[0], b[0])): row for a, b, row in zip(pairs["a"], pairs["b"], pairs.to_dict("records"), strict=True)
    }


def test_the_order_is_by_distance_and_what_is_as_far_shares_a_place():
    methods, pairs = ranked()
    four = ["grad_diff", "ga", "npo", "kl_min"]
    assert methods.loc[four, "value"].tolist() == [0, 0.25, -0.25, 0.5]
    assert methods.loc[four, "place"].tolist() == [1, 2, 2, 4] and methods.loc[four, "group"].tolist() == [*"abbc"]
    # opposite gaps of one size: nobody differs in distance, however far apart the two models are
    assert pairs[frozenset(("ga", "npo"))]["p"] == 1
    assert set(methods["trained"]) == {"multimodal"}


def test_a_comparison_by_hand():
    methods, pairs = ranked(MODELS | {GA: first(2, {0}), NPO: first(0, {1})})
    assert methods.loc[["npo", "ga"], "place"].tolist() == [2, 3]  # 1/4 - 1/120 and 1/4 + 1/120
    pair = pairs[frozenset(("ga", "npo"))]
    # A + B - 2 O is 1/4 for two of thirty people: mean 1/60, variance (1/8 - 30/3600)/29, t = 1.4392 on 29 degrees
    assert pair["difference"] == pytest.approx(1 / 60) and pair["low"] <= 0 <= pair["high"]
    assert pair["p"] == pytest.approx(0.16080, abs=2e-5)
    assert not pair["apart"] and methods.loc["npo", "group"] == methods.loc["ga", "group"] == "b"


def test_holm_runs_over_all_pairs_of_a_group():
    pairs = ranking(*frames()).pairs
    assert len(pairs) == 12 and set(pairs["scoring"]) == {"letter", "likelihood"}
    assert pairs["p_holm"].min() == pytest.approx(12 * pairs["p"].min()) and pairs["p_holm"].max() == 1


def test_the_collapsed_keep_their_gap_and_are_never_ranked():
    methods, pairs = ranked(dead=["npo"])
    assert methods.loc["npo", ["standing", "value"]].tolist() == ["collapsed", -0.25]
    assert (
        pd.isna(methods.loc["npo", "place"]) and methods.loc["npo", "note"] == "Collapsed: half of its answers broken."
    )
    assert len(pairs) == 3 and not any("npo" in names for names in pairs)
    assert methods.loc[["grad_diff", "ga", "kl_min"], "place"].tolist() == [1, 2, 3]


def test_nobody_is_ranked_behind_a_closed_gate():
    methods, pairs = ranked(MODELS | {VANILLA: first(1)})
    assert set(methods["standing"]) == {"gate closed"} and not pairs and methods["place"].isna().all()


def test_a_model_that_lacks_a_forget_set_or_the_question_is_not_ranked():
    items, _, verdicts = frames()
    fewer = items[items["run"] != "npo-multimodal-2"]
    methods = ranking(fewer, cells(fewer), verdicts).methods.set_index(["method", "scoring", "task"])
    assert methods.loc[("npo", "likelihood", "classification"), "note"] == "Run on 2 of the 3 forget sets."
    assert methods.loc[("kl_min", "likelihood", "classification"), "place"] == 3
    assert methods.loc[("npo", "", "cloze"), "standing"] == "missing"


def test_ranking_needs_three_disjoint_forget_sets():
    found = ranking(*frames(draws=2))
    assert found.methods.empty and found.refused == {
        ("llava", "clean", 10): "ranking needs three disjoint forget sets, and there are 2"
    }
    items, table, verdicts = frames()
    again = items[items["replicate"] == 0].assign(replicate=7)
    [reason] = ranking(pd.concat([items, again]), table, verdicts).refused.values()
    assert "share people" in reason


def printed(**values) -> pd.DataFrame:
    """A published list: letter accuracy on the forget set, views pooled."""
    rows = [{"method": method, "value": value} for method, value in values.items()]
    return pd.DataFrame(rows).assign(set="forget", view="both", **LIKELIHOOD | {"scoring": "letter"})


def test_agreement_with_a_list_by_hand():
    _, table, verdicts = frames(MODELS | {GA: first(2, {0})})
    row = agreement(table, verdicts, printed(npo=30, grad_diff=40, kl_min=45, ga=50))
    assert (row["n"], set(row["methods"])) == (4, {"ga", "grad_diff", "kl_min", "npo"})
    # scores: npo 0, grad_diff 1/4, ga 1/2, kl_min 3/4 against 30, 40, 50, 45: one inversion
    assert (row["tau"], row["p"]) == pytest.approx((4 / 6, 8 / 24))
    # distances: grad_diff 0, npo 1/4, ga 1/4 + 1/120, kl_min 1/2 against 40, 30, 50, 45: two inversions
    assert (row["tau_gap"], row["p_gap"]) == pytest.approx((2 / 6, 18 / 24))
    assert row["smallest_p"] == pytest.approx(2 / 24)


def test_behind_a_closed_gate_a_list_has_no_tau_of_distances():
    _, table, verdicts = frames(MODELS | {VANILLA: first(1)}, sets=("forget", "retain"))
    theirs = printed(npo=30, grad_diff=40, kl_min=45, ga=50)
    forget, retain = (agreement(table, verdicts, theirs.assign(set=name)) for name in ("forget", "retain"))
    assert forget["tau"] == pytest.approx(4 / 6) and "tau_gap" not in forget
    assert (forget["gate"], forget["note"]) == ("closed", SHUT)
    assert (retain["gate"], retain["note"]) == ("", "") and not math.isnan(retain["tau_gap"])


def test_lists_that_share_too_few_methods_say_so_and_the_collapsed_are_in_scores_only():
    _, table, verdicts = frames(dead=["npo"])
    theirs = printed(npo=30, grad_diff=40, kl_min=50, ga=45)
    row = agreement(table, verdicts, theirs)
    assert (row["tau"], row["n"], row["n_gap"]) == (1, 4, 3) and "tau_gap" not in row
    row = agreement(table, verdicts, theirs.assign(set="retain"))
    assert row["note"] == "only 0 of their methods have a run here" and "tau" not in row


def test_a_higher_score_is_better_on_the_retain_set():
    _, table, verdicts = frames(MODELS | {ORACLE: first(4)}, sets=("forget", "retain"))
    row = agreement(table, verdicts, printed(kl_min=60, ga=50, grad_diff=40, npo=30).assign(set="retain"))
    assert row["tau"] == 1 and row["tau_gap"] == 1, "the nearer to the oracle, the higher"
