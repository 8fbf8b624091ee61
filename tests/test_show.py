"""What notebooks show: differences with what may be claimed, answers as text, pictures that stay the same."""

from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from mllmu_nb import run
from mllmu_nb.config import Config
from mllmu_nb.data.schema import SETS, VIEWS
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import LIKELIHOOD, Run, figures, show

PICTURE = b"\x89PNG"


def made_up(method, modality="none", forget=1.0, answer="a chemist"):
    """Twelve people a set, five choices and one sentence each and view; all is right but, at that share, on forget."""
    rows = []
    for name in SETS:
        for view in VIEWS:
            for person in range(12):
                at = {"set": name, "view": view, "profile": f"{person:03d}", "value": "chemist", "parsed": True}
                right = forget if name == "forget" else 1.0
                for number in range(5):
                    ident = f"{person:03d}/classification/{view}/{number}"
                    correct = float(number < 5 * right)
                    asked = {"task": "classification", "scoring": "likelihood", "question_id": ident}
                    rows.append(at | asked | {"correct": correct, "answer": "A", "question": "?"})
                asked = {"task": "generation", "scoring": "", "question_id": f"{person:03d}/generation/{view}/0"}
                rows.append(at | asked | {"exact": right, "rougeL": right, "answer": answer, "question": "What job?"})
    shared = {"base_model": "llava", "protocol": "clean", "variant": "canonical", "forget_ratio": 10, "forget_draw": 0}
    shared |= {"method": method, "modality": modality, "data_seed": 0, "train_seed": 0}
    return Run(f"{method}-{modality}", pd.DataFrame(rows).assign(**shared), {"losses": []}, {})


def test_a_difference_is_claimed_only_where_the_interval_allows():
    found = show.changes([made_up("vanilla"), made_up("ga", "multimodal", forget=0.2), made_up("oracle", forget=0.0)])
    assert set(found.index.get_level_values("method")) == {"GA (image + text)"}, (
        "references are not what is asked about"
    )
    forget = found.loc[("GA (image + text)", "Forget", "text")]
    assert forget["points"] == -80 and forget["reads as"] == "lower" and forget["people"] == 12
    assert found.loc[("GA (image + text)", "Retain", "text"), "reads as"] == "no difference shown"
    assert list(found.index.get_level_values("set")) == [
        s for s in ("Forget", "Test", "Retain", "Celebrity") for _ in VIEWS
    ]


def test_references_are_shown_where_nothing_is_unlearned():
    found = show.changes([made_up("vanilla"), made_up("oracle", forget=0.0)])
    assert (found.xs(("Oracle", "Forget"), level=("method", "set"))["points"] == -100).all()


def test_where_nothing_is_there_to_compare_with_there_are_no_changes():
    """A sweep may come to the base while vanilla is still being made."""
    found = show.changes([made_up("base"), made_up("oracle", forget=0.0)])
    assert found.empty and "points" in found.columns


def test_answers_are_shown_as_text_beside_vanillas():
    person = SimpleNamespace(name="Amina <b>", portrait=PICTURE)
    known = SimpleNamespace(profiles={f"{n:03d}": person for n in range(12)})
    shown = show.answers(known, [made_up("vanilla"), made_up("ga", "unimodal", 0.0, "<script>alert(1)</script>")]).data
    assert "<script>" not in shown and "&lt;script&gt;alert(1)" in shown and "Amina &lt;b&gt;" in shown
    assert "✓ a chemist" in shown and "✗ &lt;script&gt;" in shown and "truth: chemist" in shown
    with pytest.raises(KitError, match="beside vanilla's"):
        show.answers(known, [made_up("oracle")])


def test_bars_stand_at_the_shares_of_right_answers():
    figure = show.four_sets([made_up("vanilla"), made_up("ga", "unimodal", forget=0.4)], [show.LIKELIHOOD])
    bars = {round(bar.get_x(), 2): bar for bar in figure.axes[0].patches}
    heights = [bars[x].get_height() for x in sorted(bars)]
    assert heights == [100, 40, 100, 100, 100, 100, 100, 100]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["Vanilla", "GA (text only)"]


def test_a_picture_has_the_same_bytes_whenever_it_is_drawn():
    def draw():
        return show.curves([0, 1, 2], {"a line": [0, 1, 4]}, "x", "y")

    first = show.picture(draw()).data
    assert first == show.picture(draw()).data and first.startswith(b"\x89PNG")


def test_a_figure_without_its_runs_says_so():
    def draw() -> Figure:
        raise KitError("no run was found")

    assert show.drawn(draw).data == "*Not drawn: no run was found.*"


def test_comparisons_are_made_at_the_miniatures_scale_only(monkeypatch):
    made, together = [], []
    monkeypatch.setattr(run, "_make", lambda missing: together.extend(one.method for one in missing))
    monkeypatch.setattr(run, "items", lambda config: made.append((config.method, config.modality)) or config.run_id)
    monkeypatch.setattr(run, "finished", lambda config: config.method == "vanilla")
    config = Config(method="ga", modality="unimodal", unlearn_lr=1e-4)
    assert len(run.beside(config, "vanilla", "oracle")) == 3
    assert made == [("ga", "unimodal"), ("vanilla", "none"), ("oracle", "none")]
    assert together == ["ga", "oracle"], "what is missing is made side by side"
    made.clear(), together.clear()
    run.beside(config.but(scale="paper"), "vanilla", "oracle")
    assert made == [("ga", "unimodal"), ("vanilla", "none")] and not together, "hours of work nobody asked for"


def test_bars_behind_a_closed_gate_are_grey_and_the_line_below_says_why():
    """Vanilla knows no more of the forget people than the oracle here; Retain has no gate."""
    known = [made_up("vanilla", forget=0.2), made_up("ga", "multimodal", forget=0.2), made_up("oracle", forget=0.2)]
    figure = show.four_sets(known, (LIKELIHOOD,))
    colours = [to_hex(bar.get_facecolor()) for bar in figure.axes[0].patches]
    assert colours[:6] == [figures.CLOSED] * 6 and figures.CLOSED not in colours[6:]
    assert "In grey: gate closed" in figure.get_supxlabel()
    known[0] = made_up("vanilla")
    assert not show.four_sets(known, (LIKELIHOOD,)).get_supxlabel()
