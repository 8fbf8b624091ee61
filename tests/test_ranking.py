"""Ranking by distance to the oracle and agreement with published lists, on answers whose order is known by hand."""

import math
from dataclasses import replace

import hand_made
import pandas as pd
import pytest
from matplotlib.text import Text

from mllmu_nb.errors import KitError
from mllmu_nb.reporting import LIKELIHOOD, published, ranking

NPO = ("npo", "multimodal")


def place(view: str, number: int) -> int:
    """0 to 3: which of a person's four questions."""
    return number + 2 * (view == "text")


def first(count: int, more=()):
    """Right about everybody's first ``count`` questions; ``more`` are people who get one question more."""
    return lambda person, view, number: place(view, number) < count + (person in more)


# means over 30 people of 4 questions; the oracle has 1/4, so the gaps are 0, +1/4, -1/4 and +1/2
MODELS = {
    ("vanilla", "none"): first(4),
    ("oracle", "none"): first(1),
    ("grad_diff", "multimodal"): first(1),
    ("ga", "multimodal"): first(2),
    ("npo", "multimodal"): first(0),
    ("kl_min", "multimodal"): first(3),
}


def ranked(models=MODELS, dead=()):
    found = ranking.rank(hand_made.numbers(models, dead=dead), (LIKELIHOOD,))
    return found.methods.set_index("method"), found.pairs.set_index(["a", "b"])


def test_the_order_is_by_distance_and_what_is_as_far_shares_a_place():
    methods, pairs = ranked()
    assert methods.loc[["grad_diff", "ga", "npo", "kl_min"], "value"].tolist() == [0, 0.25, -0.25, 0.5]
    assert methods.loc[["grad_diff", "ga", "npo", "kl_min"], "place"].tolist() == [1, 2, 2, 4]
    assert methods.loc[["grad_diff", "ga", "npo", "kl_min"], "group"].tolist() == ["a", "b", "b", "c"]
    # opposite gaps of one size: nobody differs in distance, however far apart the two models are
    assert pairs.loc[("GA (image + text)", "NPO (image + text)"), "p"] == 1
    assert methods.loc["prompting", "standing"] == "missing" and pd.isna(methods.loc["prompting", "place"])


def test_a_comparison_by_hand():
    models = MODELS | {("ga", "multimodal"): first(2, {0}), ("npo", "multimodal"): first(0, {1})}
    methods, pairs = ranked(models)
    assert methods.loc[["npo", "ga"], "place"].tolist() == [2, 3]  # 1/4 - 1/120 and 1/4 + 1/120
    pair = pairs.loc[("GA (image + text)", "NPO (image + text)")]
    # A + B - 2 O is 1/4 for two of thirty people: mean 1/60, variance (1/8 - 30/3600)/29, t = 1.4392 on 29 degrees
    assert pair["difference"] == pytest.approx(1 / 60) and pair["low"] <= 0 <= pair["high"]
    assert pair["p"] == pytest.approx(0.16080, abs=2e-5)
    assert not pair["apart"] and methods.loc["npo", "group"] == methods.loc["ga", "group"] == "b"


def test_holm_runs_over_all_pairs_of_the_table():
    found = ranking.rank(hand_made.numbers(MODELS))
    assert len(found.pairs) == 12 and set(found.pairs["scoring"]) == {"letter", "likelihood"}
    smallest = found.pairs["p"].min()
    assert found.pairs["p_holm"].min() == pytest.approx(12 * smallest) and found.pairs["p_holm"].max() == 1


def test_the_collapsed_are_marked_and_never_ranked():
    methods, pairs = ranked(dead={NPO})
    assert methods.loc["npo", "standing"] == "collapsed" and pd.isna(methods.loc["npo", "place"])
    assert methods.loc["npo", "note"] == "NPO (image + text) has collapsed: half of its answers broken."
    assert methods.loc["npo", "value"] == -0.25, "its gap stays to be seen"
    assert len(pairs) == 3 and not any("NPO" in name for pair in pairs.index for name in pair)
    assert methods.loc[["grad_diff", "ga", "kl_min"], "place"].tolist() == [1, 2, 3]


def test_nobody_is_ranked_behind_a_closed_gate():
    methods, pairs = ranked(MODELS | {("vanilla", "none"): first(1)})
    assert set(methods.drop("prompting")["standing"]) == {"gate closed"} and pairs.empty
    assert methods["place"].isna().all()


def test_a_method_that_lacks_a_forget_set_is_not_ranked():
    known = hand_made.numbers(MODELS)
    fewer = hand_made.of([run for run in known.runs if run.id != "npo-multimodal-2"])
    methods = ranking.rank(fewer, measures=(LIKELIHOOD,)).methods.set_index("method")
    assert methods.loc["npo", "note"] == "NPO (image + text) was run on 2 of the 3 forget sets."
    assert methods.loc["kl_min", "place"] == 3


def test_ranking_needs_three_disjoint_forget_sets():
    two = hand_made.numbers(MODELS, draws=2)
    with pytest.raises(KitError, match="ranking needs three disjoint forget sets, and there are 2"):
        ranking.rank(two)
    frame, [sheet] = ranking.table(two)
    assert frame.empty and "Not ranked: LLaVA (miniature), forget 10 %" in sheet.markdown()
    assert ranking.tau_table(two, published.load())[0].empty
    known = hand_made.numbers(MODELS)
    same = [replace(run, items=run.items.assign(forget_draw=7)) for run in known.runs if run.id.endswith("0")]
    with pytest.raises(KitError, match="share people"):
        ranking.rank(hand_made.of([*known.runs, *same]))


def test_groups_share_a_letter_exactly_if_they_are_not_told_apart():
    def letters(names, *apart):
        return ranking.shared_letters(list(names), [frozenset(pair) for pair in apart])

    assert letters("abc") == {"a": "a", "b": "a", "c": "a"}
    assert letters("ab", "ab") == {"a": "a", "b": "b"}
    assert letters("abcd", "ad", "bd") == {"a": "a", "b": "a", "c": "ab", "d": "b"}
    # the nearest and the next are apart and the third, less certain, is neither's loser: no single ladder can say so
    assert letters("abc", "ab") == {"a": "a", "b": "b", "c": "ab"}
    assert letters("") == {}


def test_table_and_figure_show_places_letters_and_who_is_not_ranked():
    known = hand_made.numbers(MODELS, dead={NPO})
    frame, [sheet] = ranking.table(known)
    text = sheet.markdown()
    assert "| Grad. Diff. | +0.0 ± " in text and "| 1 a |" in text and "| 3 c |" in text
    assert "NPO (image + text) has collapsed: half of its answers broken." in text
    assert frame.loc[frame["method"] == "npo", "place"].isna().all()
    drawn = ranking.figure(ranking.rank(known))
    written = [label.get_text() for label in drawn.findobj(Text)]
    assert "1  Grad. Diff." in written and "NPO (collapsed)" in written and "3  KL Min." in written


def test_undecided_columns_are_named():
    alike = {
        **MODELS,
        **dict.fromkeys((("ga", "multimodal"), ("npo", "multimodal"), ("kl_min", "multimodal")), first(1)),
    }
    found = ranking.rank(hand_made.numbers(alike))
    assert set(found.methods["group"]) == {"a", ""}
    [line] = ranking.undecided(found)
    assert line.endswith("Letter (unlearned on image + text), Likelihood (unlearned on image + text).")
    assert "Cloze" not in line, "what was not asked is not undecided"


def test_tau_and_its_exact_p_by_hand():
    assert ranking.tau([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx((1, 2 / 24))
    # of 24 orders, 1 + 3 have at most one inversion, as many at least five
    assert ranking.tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx((4 / 6, 8 / 24))
    # one tie: 5 of 5 untied pairs agree, tau-b = 5/sqrt(5 * 6); 4 of 24 orders have all five or none
    assert ranking.tau([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx((5 / math.sqrt(30), 4 / 24))
    assert all(math.isnan(value) for value in ranking.tau([1, 1, 1, 1], [1, 2, 3, 4]))


def test_the_smallest_p_there_is_by_hand():
    smallest = ranking.smallest_p
    assert (smallest([1, 2, 3, 4], [2, 1, 4, 3]), smallest(range(5), range(5))) == pytest.approx((2 / 24, 2 / 120))
    # one tie in ours: of 24 orders, 2 agree in all five untied pairs and 2 in none; the tie at the end, the same
    assert smallest([1, 1, 2, 3], [1, 2, 3, 4]) == smallest([1, 2, 3, 3], [4, 2, 3, 1]) == pytest.approx(4 / 24)
    # two pairs of two on each side: 4 of 24 orders put the same two first, 4 the same two last
    assert smallest([1, 1, 2, 2], [5, 6, 5, 6]) == pytest.approx(8 / 24)
    assert math.isnan(smallest([1, 1, 1, 1], [1, 2, 3, 4]))
    for ours, theirs in (([1, 1, 2, 3], [1, 2, 3, 4]), ([1, 1, 2, 2], [5, 5, 6, 6])):
        assert ranking.tau(ours, theirs)[1] == smallest(ours, theirs), "the very same order"


def printed(**values) -> pd.DataFrame:
    """A list as ``published.load`` gives it: classification on Forget at 5 %, the view unsaid."""
    names = {"ga": "GA", "grad_diff": "Grad. Diff.", "kl_min": "KL_Min", "npo": "NPO", "vanilla": "Vanilla"}
    rows = [{"method": names[method], "value": value} for method, value in values.items()]
    same = {"base_model": "LLaVA-1.5-7B", "forget_ratio": 5, "set": "Forget", "view": "unstated"}
    return pd.DataFrame(rows).assign(**same, metric="classification_acc", kind="published", source="A (2026)")


def test_agreement_with_a_list_by_hand():
    known = hand_made.numbers(MODELS | {("ga", "multimodal"): first(2, {0})})
    theirs = printed(npo=30, grad_diff=40, kl_min=45, ga=50, vanilla=20)
    [row] = ranking.agreement(known, theirs).to_dict("records")
    assert (row["n"], row["methods"]) == (4, "GA, Grad. Diff., KL Min., NPO"), "vanilla is no unlearning method"
    # scores: npo 0, grad_diff 1/4, ga 1/2, kl_min 3/4 against 30, 40, 50, 45: one inversion
    assert (row["tau"], row["p"]) == pytest.approx((4 / 6, 8 / 24))
    # distances: grad_diff 0, npo 1/4, ga 1/4 + 1/120, kl_min 1/2 against 40, 30, 50, 45: two inversions
    assert (row["tau_gap"], row["p_gap"]) == pytest.approx((2 / 6, 18 / 24))
    assert row["smallest_p"] == pytest.approx(2 / 24)


def test_behind_a_closed_gate_a_list_has_no_tau_of_distances():
    known = hand_made.numbers(MODELS | {("vanilla", "none"): first(1)}, sets=("forget", "retain"))
    theirs = printed(npo=30, grad_diff=40, kl_min=45, ga=50)
    found = ranking.agreement(known, pd.concat([theirs, theirs.assign(set="Retain")])).set_index("set")
    assert found.loc["Forget", "tau"] == pytest.approx(4 / 6) and math.isnan(found.loc["Forget", "tau_gap"])
    assert found.loc["Forget", "gate"] == "closed" and found.loc["Forget", "note"] == ranking.SHUT
    assert found.loc["Retain", ["gate", "note"]].tolist() == ["", ""] and not math.isnan(found.loc["Retain", "tau_gap"])
    _, [sheet] = ranking.tau_table(known, theirs)
    text = sheet.markdown()
    assert "(0.67)" in text and ranking.SHUT in text and "In brackets: a τ of scores" in text
    assert "Not compared" not in text, "its scores are"


def test_lists_that_cannot_be_compared_say_why():
    known = hand_made.numbers(MODELS)
    theirs = printed(npo=30, grad_diff=40, kl_min=45, ga=50)
    lists = pd.concat([theirs, theirs.assign(metric="FIB"), theirs.assign(set="Retain"), theirs[:3].assign(source="B")])
    found = ranking.agreement(known, lists).set_index(["set", "metric"])
    assert len(found) == 3, "three methods are too few to be listed"
    assert found.loc[("Forget", "FIB"), "note"] == "FIB has no counterpart here"
    assert found.loc[("Retain", "classification_acc"), "note"] == "only 0 of their methods have a run here"
    assert found["tau"].notna().sum() == 1
    frame, [sheet] = ranking.tau_table(known, lists)
    text = sheet.markdown()
    assert "0.083 with 4 methods, 0.017 with 5 methods" in text and "ours: 1." in text and len(frame) == 3
    assert "Not compared: FIB has no counterpart here (1 list); only 0 of their" in text


def test_the_collapsed_are_in_scores_and_not_in_the_ranking():
    known = hand_made.numbers(MODELS, dead={NPO})
    theirs = printed(npo=30, grad_diff=40, kl_min=50, ga=45)
    [row] = ranking.agreement(known, theirs).to_dict("records")
    assert (row["tau"], row["n"], row["n_gap"]) == (1, 4, 3) and math.isnan(row["tau_gap"])
    _, [sheet] = ranking.tau_table(known, theirs)
    assert "The others have collapsed, and fewer than 4 are no list." in sheet.markdown()


def test_a_higher_score_is_better_on_the_retain_set():
    models = {key: right for key, right in MODELS.items()} | {("oracle", "none"): first(4)}
    known = hand_made.numbers(models, sets=("forget", "retain"))
    theirs = printed(kl_min=60, ga=50, grad_diff=40, npo=30).assign(set="Retain")
    [row] = ranking.agreement(known, theirs).to_dict("records")
    assert row["tau"] == 1 and row["tau_gap"] == 1, "the nearer to the oracle, the higher"
