"""The leakage matrix and the alignment of the two views, on answers known by hand."""

import hand_made
import pytest
from matplotlib.text import Text

from mllmu_nb.errors import KitError
from mllmu_nb.reporting import leakage

ORACLE, VANILLA, GA = ("oracle", "none"), ("vanilla", "none"), ("ga", "multimodal")


def in_view(image: int, text: int):
    """Right about so many of a person's two facts in each view."""
    return lambda person, view, number: number < {"image_text": image, "text": text}[view]


# with the image: vanilla 1, oracle 1/2, GA 0; in text: vanilla 1, oracle 0, GA 1
MODELS = {VANILLA: in_view(2, 2), ORACLE: in_view(1, 0), GA: in_view(0, 2)}


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
