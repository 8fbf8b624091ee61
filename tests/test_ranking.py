"""Ranking by distance to the oracle and agreement with published lists, on answers whose order is known by hand."""

import math
from dataclasses import replace

import hand_made
import pandas as pd
import pytest
from matplotlib.text import Text

from mllmu_nb.errors import KitError
from mllmu_nb.reporting import published, ranking

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


def printed(**values) -> pd.DataFrame:
    """A list as ``published.load`` gives it: classification on Forget at 5 %, the view unsaid."""
    names = {"ga": "GA", "grad_diff": "Grad. Diff.", "kl_min": "KL_Min", "npo": "NPO", "vanilla": "Vanilla"}
    rows = [{"method": names[method], "value": value} for method, value in values.items()]
    same = {"base_model": "LLaVA-1.5-7B", "forget_ratio": 5, "set": "Forget", "view": "unstated"}
    return pd.DataFrame(rows).assign(**same, metric="classification_acc", kind="published", source="A (2026)")


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
