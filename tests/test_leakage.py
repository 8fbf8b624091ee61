"""The leakage matrix and the alignment of the two views, on answers known by hand."""

from dataclasses import replace

import hand_made
import pandas as pd
import pytest
from matplotlib.text import Text

from mllmu_nb.errors import KitError
from mllmu_nb.reporting import CLOZE, LIKELIHOOD, all_items, leakage

ORACLE, VANILLA, GA = ("oracle", "none"), ("vanilla", "none"), ("ga", "multimodal")


def in_view(image: int, text: int):
    """Right about so many of a person's two facts in each view."""
    return lambda person, view, number: number < {"image_text": image, "text": text}[view]


# with the image: vanilla 1, oracle 1/2, GA 0; in text: vanilla 1, oracle 0, GA 1
MODELS = {VANILLA: in_view(2, 2), ORACLE: in_view(1, 0), GA: in_view(0, 2)}


def matrix(models=MODELS) -> pd.DataFrame:
    found = leakage.matrix(hand_made.numbers(models))
    return found.set_index(["method", "view"])


def test_the_matrix_by_hand():
    found = matrix()
    assert found.loc[("vanilla", "image_text"), "value"] == 0.5 and found.loc[("vanilla", "text"), "value"] == 1
    assert found.loc[("ga", "image_text"), "value"] == -0.5 and found.loc[("ga", "text"), "value"] == 1
    assert found.loc[("ga", leakage.ACROSS), "value"] == 1.5, "the gap in text less the gap with the image"
    assert (found["low"] < found["value"]).all() and (found["value"] <= found["high"]).all()
    assert set(found["gate"]) == {"open"} and set(found["n_profiles"]) == {30}


def test_a_view_behind_a_closed_gate_is_marked_and_so_is_the_difference_of_both():
    found = matrix(MODELS | {ORACLE: in_view(1, 2)})  # vanilla and oracle know the same when asked in text
    gates = found.loc["ga", "gate"].to_dict()
    assert gates == {"image_text": "open", "text": "closed", leakage.ACROSS: "closed"}


def test_table_and_figure_mark_gates_and_collapsed_models():
    models = MODELS | {ORACLE: in_view(1, 2)}
    frame, [sheet] = leakage.leakage_table(hand_made.numbers(models, dead={GA}))
    text = sheet.markdown()
    assert (
        "| GA ‡ | −50.0 ± " in text
        and "(+0.0 ± " in text
        and "In brackets: gate closed" in text
        and "‡ Collapsed" in text
    )
    assert (
        "**Unlearned on image + text**" in text
        and "‡ " not in leakage.leakage_table(hand_made.numbers(models))[1][0].markdown()
    )
    assert frame.set_index("method")["collapsed"].to_dict() == {"vanilla": False, "ga": True}
    drawn = leakage.figure(frame)
    written = [label.get_text() for label in drawn.findobj(Text)]
    assert "GA ‡\nimage + text" in written and "–" in written, "what was not asked is a dash, not a number"
    assert [line for line in written if line.startswith("−50\n± ")]
    with pytest.raises(KitError, match="no model was asked"):
        leakage.figure(frame[:0])


def some_right(person: int, view: str, number: int) -> bool:
    """With the image, three of ten people's first fact; in text, none."""
    return view == "image_text" and number == 0 and person % 10 < 3


def test_alignment_by_hand():
    models = {VANILLA: in_view(2, 2), ORACLE: in_view(1, 1), GA: some_right, ("npo", "unimodal"): in_view(2, 1)}
    found = leakage.alignment(all_items(hand_made.numbers(models, sets=("forget", "retain")).runs), (LIKELIHOOD,))
    values = found.set_index(["method", "metric"])
    # GA: 7 of 10 first facts and all second ones are wrong in both views; none is right in both
    assert values.loc[("ga", "acc_f"), "value"] == pytest.approx(0.85) and values.loc[("ga", "acc_r"), "value"] == 0
    # NPO: the first fact is right in both views, the second with the image only, which counts for neither
    assert values.loc[("npo", "acc_f"), "value"] == 0 and values.loc[("npo", "acc_r"), "value"] == 0.5
    assert values.loc[("oracle", "acc_f"), "value"] == 0.5 and values.loc[("vanilla", "acc_r"), "value"] == 1
    assert set(values["n_items"]) == {60} and set(values["n_profiles"]) == {30}
    assert (values["low"] < values["high"]).all(), "no share is certain, not even a perfect one"


def test_only_questions_about_one_fact_are_a_pair():
    known = hand_made.numbers(MODELS)
    items = all_items(known.runs)
    second = (items["view"] == "text") & (items["question_id"].str.endswith("/1"))
    other = leakage.paired_facts(items.assign(value=items["value"].where(~second, "another fact")), LIKELIHOOD)
    assert set(other["number"]) == {"0"}
    written = leakage.paired_facts(items.assign(value=items["value"].where(~second, "FACT 1")), LIKELIHOOD)
    unknown = leakage.paired_facts(items.assign(value=""), LIKELIHOOD)
    assert len(written) == len(unknown) == len(leakage.paired_facts(items, LIKELIHOOD)) == 3 * 30 * 2
    assert leakage.paired_facts(items[items["view"] == "text"], LIKELIHOOD).empty
    assert leakage.paired_facts(items, CLOZE).empty


def test_people_of_other_data_seeds_are_other_people():
    known = hand_made.numbers(MODELS, draws=1)
    more = [replace(r, id=f"{r.id}-s1", items=r.items.assign(data_seed=1, run=f"{r.id}-s1")) for r in known.runs]
    found = leakage.alignment(all_items([*known.runs, *more]), (LIKELIHOOD,))
    assert set(found["n_profiles"]) == {20}


def test_the_alignment_table_shows_both_shares_and_says_what_was_not_asked():
    known = hand_made.numbers(MODELS, sets=("forget", "retain"))
    _, [sheet] = leakage.alignment_table(known)
    text = sheet.markdown()
    assert "| Vanilla | 0.0 ± " in text and "| 100.0 ± " in text and "No fact was asked in both views." in text


def test_acc_f_stands_in_brackets_where_a_gate_is_closed():
    models = MODELS | {ORACLE: in_view(1, 2)}  # in text vanilla and the oracle know the same
    frame, [sheet] = leakage.alignment_table(hand_made.numbers(models, sets=("forget", "retain")))
    assert frame.groupby("metric")["gate"].unique().map(list).to_dict() == {"acc_f": ["closed"], "acc_r": [""]}
    text = sheet.markdown()
    assert "| Vanilla | (0.0 ± " in text and "| 100.0 ± " in text and "AccF shows no forgetting: Likelihood." in text
    _, [sheet] = leakage.alignment_table(hand_made.numbers(MODELS, sets=("forget", "retain")))
    assert "In brackets" not in sheet.markdown()
