"""Figures can be read, show scores at the right places, and mark what is collapsed or behind a closed gate."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fake_runs
import numpy as np
import pytest
from fake_runs import but, everybody, make, saying
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from readable import assert_readable, words
from seaborn.utils import relative_luminance

from mllmu_nb import unlearning
from mllmu_nb.data.schema import QA, Profile, Question
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import figures, plots, runs, tables
from mllmu_nb.reporting.runs import Scores

OF_MODELS = list(figures.FIGURES)
DRAWN: dict[tuple[str, int], Figure] = {}
FEW = {"asked": {"classification": 2, "generation": 1, "cloze": 1}, "famous": 3}


def group(runs) -> Scores:
    [(_, scores)] = Scores.of(runs).groups
    return scores


@pytest.fixture(scope="module")
def known() -> Scores:
    """Every model on three forget sets."""
    return group(everybody(draws=range(3)))


@pytest.fixture(scope="module")
def marked() -> Scores:
    """Three draws. Letters of vanilla and NPO are as good as the oracle's, so their gate is closed. NPO (text only)
    gives everybody the same answer; GA on both is the oracle."""

    def letters_like_oracle(name, modality, draw):
        own, oracle = fake_runs.realistic(name, modality, draw), fake_runs.realistic("oracle", draw=draw)
        return lambda asked: (oracle if asked.scoring == "letter" else own)(asked)

    runs = []
    for draw in range(3):
        runs.append(make("vanilla", letters_like_oracle("vanilla", "none", draw), draw=draw))
        runs.append(make("oracle", draw=draw))
        runs.append(make("ga", fake_runs.realistic("oracle", draw=draw), draw=draw, modality="multimodal"))
        npo = make("npo", letters_like_oracle("npo", "unimodal", draw), draw=draw, modality="unimodal")
        runs.append(saying(npo, "The The The", task="generation"))
    return group(runs)


def drawn(name: str, scores: Scores) -> Figure:
    """Return a figure of ``known`` or ``marked``. It is drawn only once, because tests do not change it."""
    if (name, id(scores)) not in DRAWN:
        DRAWN[name, id(scores)] = figures.FIGURES.get(name)(scores)
    return DRAWN[name, id(scores)]


def person(number: int) -> Profile:
    """Return a profile with long words everywhere, to test that a sheet holds them."""

    def picture(seed):
        pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    attributes = {
        "name": "Maximiliana Featherstonehaugh-Cholmondeley", "gender": "female", "birth_date": "12 September 1971",
        "birthplace": "San Fernando del Valle de Catamarca, Argentina", "residence": "Reykjavik, Iceland",
        "profession": "Environmental compliance engineer", "height": "178 cm",
        "education": "Master of Science in Environmental Engineering, University of Buenos Aires",
        "salary": "$ 84,000 a year", "medical": "seasonal allergies", "father_job": "carpenter",
    }  # fmt: skip
    asked = (
        Question(str(number), "classification", "image_text", 0, "Which of these is the profession of this person, "
                 "who is shown in the picture beside the question?", "C", "x", "profession",
                 ("Teacher", "Environmental compliance engineer and consultant for municipal water", "Nurse", "Pilot")),
        Question(str(number), "generation", "text", 0, "Where does Maximiliana Featherstonehaugh-Cholmondeley live "
                 "these days?", "She lives in Reykjavik, Iceland, and has done so for a number of years.", "Iceland"),
        Question(str(number), "cloze", "image_text", 0, "This person was born on __.", "12 September 1971", "x"),
    )  # fmt: skip
    return Profile(
        f"{number:03d}", attributes["name"], "fictitious", attributes, picture(number), "…",
        (QA("q", "a"),), asked, tuple(picture(10 * number + n) for n in range(4)),
    )  # fmt: skip


def test_the_check_of_overlaps_can_fail():
    figure = Figure(figsize=(3.4, 2))
    figure.text(0.1, 0.5, "one text", fontsize=8)
    figure.text(0.15, 0.5, "over another", fontsize=8)
    with pytest.raises(AssertionError, match="lies over"):
        assert_readable(figure)


@pytest.mark.parametrize("name", OF_MODELS)
@pytest.mark.parametrize("scores", ["known", "marked"])
def test_a_figure_is_readable(scores, name, request):
    scores = request.getfixturevalue(scores)
    figure = drawn(name, scores)
    assert figure.get_figwidth() in (plots.COLUMN, plots.PAGE) and figure.get_label(), "a width of the paper, alt text"
    assert_readable(figure)


def test_the_profile_sheet_is_readable():
    assert_readable(figures.profile_sheet([person(1), person(2), person(3)]))


# What is shown


def marks(panel) -> dict[float, float]:
    """Return height of each mark of a forest → its value."""
    return {round(y[0], 3): x[0] for x, y in (bars[0].get_data() for bars in panel.containers)}


def test_marks_and_intervals_stand_at_the_scores(known):
    figure = drawn("oracle_gap", known)
    cells = known.cells.query("against == 'oracle' and set == 'forget' and view == 'both' and method == 'vanilla'")
    for panel, (scoring, metric, times) in zip(
        figure.axes, [("letter", "accuracy", 100), ("likelihood", "accuracy", 100), ("", "rougeL", 1)], strict=False
    ):
        cell = cells[(cells["scoring"] == scoring) & (cells["metric"] == metric)].iloc[0]
        assert marks(panel)[0.0] == pytest.approx(times * cell["value"])
        [bar] = panel.containers[0][2][0].get_segments()
        assert bar[:, 0] == pytest.approx([times * cell["low"], times * cell["high"]])
    assert [axes.get_title() for axes in figure.axes[:3]] == ["Letter, points", "Likelihood, points", "ROUGE-L"]


def test_the_gap_figure_shows_the_verdicts(marked):
    panel = drawn("oracle_gap", marked).axes[1]
    assert panel.get_title() == "Likelihood, points"
    assert [text.get_text() for text in panel.texts] == ["≠", "=", "≠"]  # vanilla; GA, which is the oracle; NPO


def test_forgetting_is_the_fall_from_vanilla(known):
    panel = drawn("forgetting_utility", known).axes[0]
    where = "method == 'oracle' and view == 'both' and scoring == 'likelihood' and metric == 'accuracy'"
    cells = known.cells.query(where).set_index(["against", "set"])["value"]
    points = [tuple(float(end[0]) for end in bars[0].get_data()) for bars in panel.containers]
    assert points[-1] == pytest.approx((100 * cells["", "retain"], -100 * cells["vanilla", "forget"]))
    assert points[0][1] == 0, "vanilla has not fallen"
    unmeasured = drawn("forgetting_utility", known).axes[-1]
    assert [text.get_text() for text in unmeasured.texts][0] == "not measured" and len(panel.get_xticks())
    people = [text for text in words(panel.figure) if "People (in all replicates together): Forget 30" in text]
    assert "Intervals are over 3 replicates" in people[0]


def spots(panel) -> set[tuple[float, float]]:
    """Return the places of a panel's dots."""
    return {tuple(place.round(6)) for dots in panel.collections for place in np.ma.filled(dots.get_offsets(), np.nan)}


def cell(scores: Scores, **where) -> dict:
    """Return the one cell of GA on image + text whose columns have these values."""
    where |= {"method": "ga", "modality": "multimodal"}
    [one] = scores.cells[scores.cells[list(where)].eq(list(where.values())).all(axis=1)].to_dict("records")
    return one


def test_replicates_are_dots_wherever_a_method_has_a_number(known):
    likelihood = {"task": "classification", "scoring": "likelihood", "metric": "accuracy"}
    kept = cell(known, **likelihood, against="", set="retain", view="both")["dots"]
    fall = cell(known, **likelihood, against="vanilla", set="forget", view="both")["dots"]
    places = {(round(100 * x, 6), round(-100 * y, 6)) for x, y in zip(kept, fall, strict=True)}
    assert len(kept) == 3 and places <= spots(drawn("forgetting_utility", known).axes[0])
    figure = drawn("leakage", known)
    row = [label.get_text() for label in figure.axes[0].get_yticklabels()].index("GA\nimage + text")
    gaps = cell(known, **likelihood, against="oracle", set="forget", view="image_text")["dots"]
    assert {(round((100 * gap + 100) / 200, 6), row + 0.9) for gap in gaps} <= spots(figure.axes[0])
    figure = drawn("health", known)
    row = [label.get_text() for label in figure.axes[0].get_yticklabels()].index("GA (image + text)")
    free = {"task": "generation", "scoring": "", "against": "", "set": "forget", "view": "image_text"}
    for metric, height in {"correct": row + 0.4, "broken": row - 0.4}.items():
        shares = cell(known, **free, metric=metric)["dots"]
        ends = {(round(one if metric == "correct" else 1 - one, 6), round(height, 6)) for one in shares}
        assert len(shares) == 3 and ends <= spots(figure.axes[0]), metric


def test_the_dots_of_a_gap_lie_beside_its_bar(known):
    """On the bar, which has the same colour, nobody would see them."""
    figure = drawn("oracle_gap", known)
    likelihood = {"task": "classification", "scoring": "likelihood", "metric": "accuracy"}
    gaps = cell(known, **likelihood, against="oracle", set="forget", view="both")["dots"]
    row = [label.get_text() for label in figure.axes[0].get_yticklabels()].index("GA (image + text)")
    assert {(round(100 * gap, 6), row + 0.33) for gap in gaps} <= spots(figure.axes[1])


def test_a_bar_that_goes_on_below_does_not_stretch_the_figure(known):
    """With three replicates, an interval can reach falls that are not possible."""
    low = known.cells["low"].mask(known.cells["against"] == "vanilla", -0.9)
    high = known.cells["high"].mask(known.cells["against"] == "vanilla", 0.5)  # for a difference: the fall is smaller
    panel = figures.forgetting_utility(replace(known, cells=known.cells.assign(low=low, high=high))).axes[0]
    assert -10 < panel.get_ylim()[0] < 0
    assert min(bars[2][1].get_segments()[0][0][1] for bars in panel.containers) == pytest.approx(-50)
    sizes = {bars[0].get_markersize() for bars in panel.containers if bars[0].get_marker() != "*"}
    assert len(sizes) == 1 and panel.containers[0][0].get_markerfacecolor()[1] < 1, "alike, and seen through"


def test_a_figure_names_its_runs_in_its_corner(known):
    for name in OF_MODELS:
        assert "LLaVA (miniature), forget 10 %" in words(drawn(name, known)), name


def test_replicates_that_only_one_of_two_axes_has_are_no_dots():
    """GA is asked about Retain in two of three replicates."""
    small = {"people": 20, "famous": 3, "asked": {"classification": 2}}
    runs = [make(name, draw=draw, **small) for name in ("vanilla", "oracle") for draw in range(3)]
    runs += [make("ga", modality="multimodal", draw=draw, **small) for draw in range(2)]
    runs += [make("ga", modality="multimodal", draw=2, sets=("forget",), **small)]
    panel = figures.forgetting_utility(group(runs)).axes[0]
    assert len([one for one in panel.collections if len(one.get_offsets()) == 3]) == 2, "vanilla and the oracle"


def test_without_replicates_there_are_no_dots():
    scores = group(everybody(people=20, famous=3, asked={"classification": 2, "generation": 1}))
    for name in ("forgetting_utility", "oracle_gap", "leakage", "health"):
        shown = " ".join(words(figures.FIGURES.get(name)(scores)))
        assert "Dots: replicates" not in shown and "its dots" not in shown and "A dot" not in shown, name


def test_kinds_of_answers_are_told_apart_without_colours():
    plain = [face["facecolor"] for face in figures.STATE_FACES.values() if "hatch" not in face]
    hatches = [face["hatch"] for face in figures.STATE_FACES.values() if "hatch" in face]
    assert len(set(hatches)) == len(hatches) and len(plain) == 2
    assert abs(np.diff([relative_luminance(colour) for colour in plain])) > 0.5, "dark and white"


def test_health_bars_are_the_shares(marked):
    figure = drawn("health", marked)
    panel = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Forget, text")
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == ["Vanilla", "GA (image + text)", "NPO (text only) ‡ 3 of 3", "Oracle"]
    cells = marked.cells.query("against == '' and set == 'forget' and view == 'text' and task == 'generation'")
    for row, method in enumerate(["vanilla", "ga", "npo", "oracle"]):
        widths = [bar.get_width() for bar in panel.patches if round(bar.get_y() + bar.get_height() / 2) == row]
        shares = cells[(cells["method"] == method) & cells["metric"].isin(figures.STATES)]["value"]
        assert sorted(widths) == pytest.approx(sorted(shares[shares > 0])) and sum(widths) == pytest.approx(1)


def test_before_and_after_shows_the_first_person_whom_vanilla_answers_rightly():
    """Vanilla is wrong about forget person 0 in text; GA knows nothing."""
    right = lambda asked: not (asked.person == 0 and asked.view == "text")  # noqa: E731
    runs = [make("vanilla", right), make("ga", lambda asked: False, modality="multimodal"), make("base")]
    shown = words(figures.before_after(group(runs)))
    assert "To be forgotten: person 002" in shown and "To be kept: person 011" in shown
    assert sum(line.startswith("● The") for line in shown) == 4 == sum(line.startswith("○ The") for line in shown)
    assert "Base" not in shown
    with pytest.raises(KitError, match="needs a run of vanilla"):
        figures.before_after(group(runs[1:]))


def test_losses_are_solid_for_both_and_dashed_for_text(known):
    figure = drawn("losses", known)
    panel = next(axes for axes in figure.axes if axes.get_title(loc="left") == "GA")
    curves = [line for line in panel.lines if len(line.get_xdata()) > 2]
    pale = [line for line in curves if line.get_alpha()]
    curves = [line for line in curves if line not in pale]
    assert len(pale) == 6 and [line.get_linestyle() for line in curves] == ["-", "--"], "a line a run and a model"
    runs = [run.train["losses"] for run in known.runs if run.label == "GA (image + text)"]
    assert len(runs) == 3 and curves[0].get_ydata()[0] == pytest.approx(np.mean([one["loss"][0] for one in runs]))
    assert {"image + text", "text only"} <= {text.get_text() for text in panel.texts}
    with pytest.raises(KitError, match="no run has a training log"):
        figures.loss_curves([make("base")])


@pytest.mark.parametrize(("steps", "raw"), [(40, False), (60, True)])
def test_a_long_training_alone_has_its_raw_loss_behind_the_running_mean_and_says_so(steps, raw):
    run = make("ga", modality="multimodal")
    losses = {"loss": [1 / step for step in range(1, steps + 1)]}
    figure = figures.loss_curves([replace(run, train={**run.train, "losses": losses, "steps": steps})])
    pale = [line for line in figure.axes[0].lines if line.get_alpha() is not None and line.get_alpha() < 0.5]
    assert bool(pale) == raw == ("running mean" in " ".join(words(figure)))


def test_leakage_prints_the_gap_and_its_limits():
    """GA knows one of two facts with image + text and none with text; the oracle knows none."""
    runs = []
    for name, modality, right in (
        ("vanilla", "none", lambda asked: True),
        ("oracle", "none", lambda asked: asked.set != "forget"),
        ("ga", "multimodal", lambda asked: asked.set != "forget" or (asked.view == "image_text" and asked.number == 0)),
    ):
        asked = {"classification": 1, "generation": 2}
        runs.append(make(name, right, modality=modality, sets=("forget", "retain"), asked=asked))
    figure = figures.leakage(group(runs))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["Vanilla", "GA\nimage + text"]
    cells = [text.split("\n") for text in words(figure) if "\n[" in text]
    assert [gap for gap, _ in cells] == ["+100"] * 4 + ["+100", "+0", "+50", "+0"]  # choices, then free answers
    for gap, limits in cells:
        low, high = (int(end.replace("−", "-")) for end in limits.strip("[]").split(", "))
        assert low <= int(gap) <= high and low < high
    with pytest.raises(KitError, match="no model was asked"):
        figures.leakage(group(runs[:1]))


def test_a_heat_map_has_brackets_around_what_is_behind_a_closed_gate():
    """Vanilla knows no more than the oracle."""
    small = {"sets": ("forget", "retain"), "asked": {"classification": 1, "generation": 2}}
    models = {"vanilla": "none", "oracle": "none", "ga": "multimodal"}
    runs = [make(name, lambda asked: asked.set != "forget", modality=m, **small) for name, m in models.items()]
    shown = words(figures.leakage(group(runs)))
    cells = [text for text in shown if "\n[" in text]
    assert len(cells) == 8 and all(text.startswith("(+0\n[") and text.endswith("])") for text in cells)
    assert any("In grey and brackets" in text for text in shown)


def test_the_path_ends_where_a_replicate_gets_no_further_and_shows_replicates_as_dots(known):
    figure = drawn("path", known)
    [first, second] = figure.axes
    assert first.get_title(loc="left") == "Unlearned on image + text" and len(first.lines) >= 4
    kept = known.kept.query("closed_in == 'trained' and what == 'kept' and method == 'ga' and modality == 'multimodal'")
    [half] = kept[kept["place"] == 0.5].to_dict("records")
    heights = [height for one in first.collections for height in np.atleast_2d(one.get_offsets())[:, 1]]
    assert {round(100 * dot, 6) for dot in half["dots"]} <= {round(float(height), 6) for height in heights}
    said = " ".join(" ".join(words(figure)).split())
    assert "Dots: replicates; bars: 95 % intervals. Marks of 25, 50 and 75 % are moved sideways" in said
    assert "values are interpolated" in said
    alone = group([run for run in known.runs if run["replicate"] == 0])
    assert not any("Dots: replicates" in text for text in words(figures.along_the_path(alone)))
    with pytest.raises(KitError, match="no unlearning has a path"):
        figures.along_the_path(group(everybody(people=12, famous=2)[:2]))


def test_marks_of_fewer_replicates_say_of_how_many(known):
    kept = known.kept[(known.kept["closed_in"] == "trained") & (known.kept["what"] == "kept")]
    here = (kept["place"] == 0.75) & (kept["method"] == "ga") & (kept["modality"] == "multimodal")
    [said] = figures.fewer_replicates(known, kept.assign(n_replicates=kept["of"].where(~here, 1)))
    few = f"(of {kept['of'].max()}; 75 %: GA (image + text) 1)."
    assert said.endswith(f"A mark beyond it is the mean of the replicates that get there {few}")
    assert not figures.fewer_replicates(known, kept.assign(n_replicates=kept["of"]))


def test_the_paths_of_each_set_have_a_row_a_modality(known):
    figure = figures.path_by_set(known)
    titles = [panel.get_title() for panel in figure.axes]
    assert titles[:2] == ["Retain, unlearned on image + text", "Test, unlearned on image + text"] and len(titles) == 6
    assert_readable(figure)
    figure = figures.path_by_set(replace(known, points=known.points[known.points["set"] != "celebrity"]))
    assert [panel.get_title() for panel in figure.axes][:2] == titles[:2] and len(figure.axes) == 4, "no celebrities"
    assert words(figure).count("GA") == 2, "names stand beside the last panel of each row"
    with pytest.raises(KitError, match="no unlearning has a path"):
        figures.path_by_set(group(everybody(people=12, famous=2)[:2]))


# Gates and collapse


def test_what_is_behind_a_closed_gate_is_grey_and_says_so(marked):
    """Letters on Forget are grey, likelihood keeps its colours; on Retain nothing has a gate."""
    figure = drawn("oracle_gap", marked)
    titles, half = [panel.get_title() for panel in figure.axes], len(figure.axes) // 2

    def colours(panel):
        return {to_hex(bars[0].get_color()) for bars in panel.containers}

    letter, likelihood = titles.index("Letter, points"), titles.index("Likelihood, points")
    assert colours(figure.axes[letter]) == {plots.CLOSED} and plots.CLOSED not in colours(figure.axes[likelihood])
    assert plots.CLOSED not in colours(figure.axes[half + letter])
    assert any("In grey: gate closed" in text for text in words(figure))
    assert not any("gate" in text for text in words(drawn("forgetting_utility", marked)))


def test_a_collapsed_model_is_marked_in_every_figure(marked):
    for name in ("forgetting_utility", "oracle_gap", "health", "before_after", "leakage"):
        shown = words(figures.FIGURES.get(name)(marked))
        names = {text.replace("\n", " ") for text in shown if "‡ 3 of 3" in text}
        assert names in ({"NPO (text only) ‡ 3 of 3"}, {"NPO text only ‡ 3 of 3"}), name
        assert any("‡ The model has collapsed or refuses" in text for text in shown), name
    lost = words(drawn("losses", marked))
    assert "text only ‡ 3 of 3" in lost and not any("image + text ‡" in text for text in lost)
    assert any("‡ The model has collapsed or refuses" in text for text in lost)


# Models that are not in the paper


def test_a_model_after_a_step_has_the_losses_of_its_training_where_it_is_alone():
    halved = make("ga", people=12, famous=4, modality="multimodal", after="halved")
    assert "GA, halved" in words(figures.loss_curves([halved]))
    plain = make("ga", people=12, famous=4, modality="multimodal")
    assert "GA, halved" not in words(figures.loss_curves([plain, halved]))


def test_a_model_of_a_grid_that_has_no_path_is_left_out_of_the_paths():
    small = {"people": 12, "famous": 4, "modality": "multimodal"}
    runs = [make("vanilla", people=12, famous=4), make("oracle", people=12, famous=4), make("ga", **small)]
    runs += [but(make("npo", **small, unlearn_lr=rate), path=None) for rate in (0.001, 0.004)]
    scores = group(runs)
    assert scores.by == ["unlearn_lr"] and "NPO" not in " ".join(words(figures.along_the_path(scores)))


@pytest.mark.slow
def test_the_names_of_many_models_fit_beside_the_paths():
    small = {"people": 12, "famous": 4, "asked": {"classification": 2, "generation": 1}}
    runs = [make("vanilla", **small), make("oracle", **small)]
    runs += [make("ga", modality="multimodal", unlearn_lr=rate / 1000, **small) for rate in range(1, 25)]
    scores = group(runs)
    for figure in (figures.FIGURES.get("path")(scores), figures.path_by_set(scores)):
        assert_readable(figure)
        marks = [line.get_xdata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
        near = [min(abs(x - place) for place in (25, 50, 75, 100)) for x in marks if x > 1]  # at 1 are signs of names
        assert len(near) > 24 and max(near) <= 10


def test_variants_steps_after_and_grids_are_drawn_side_by_side():
    """Draws two variants of NPO, GA before and after a step, a grid over a rate, and unregistered methods."""
    small = {"people": 12, "famous": 4, "modality": "multimodal"}
    runs = [make("vanilla", people=12, famous=4), make("oracle", people=12, famous=4)]
    ga = fake_runs.realistic("ga", "multimodal")
    runs += [make("npo", **small), make("npo", **small, variant="upstream")]
    runs += [make("ga", **small), make("ga", **small, after="int4")]
    runs += [make("grad_diff", **small, unlearn_lr=rate) for rate in (0.001, 0.004)]
    runs += [make(f"newcomer_{number}", ga, **small) for number in range(4)]
    scores = group(runs)
    names = {scores.name(model) for model in scores.models()}
    assert {"NPO (image + text)", "NPO (upstream, image + text)", "GA, int4 (image + text)"} <= names
    assert "Grad. Diff. (image + text), unlearn_lr 0.004" in names and len(names) == 12
    for name in ("forgetting_utility", "oracle_gap", "health", "before_after"):
        figure = figures.FIGURES.get(name)(scores)
        assert names - {"Vanilla", "Oracle"} <= set(words(figure)), name
        assert_readable(figure)
    for name in ("leakage", "losses"):
        assert_readable(figures.FIGURES.get(name)(scores))


def test_names_stay_apart_when_methods_fall_alike(known):
    """All methods have nearly the same height: names must move apart, marks must not."""
    fallen = known.cells["against"] == "vanilla"
    alike = known.cells.assign(**{end: known.cells[end].mask(fallen, -0.3) for end in ("value", "low", "high")})
    assert_readable(figures.forgetting_utility(replace(known, cells=alike)))


def test_every_method_has_its_own_colour_and_marker():
    looks = [plots.look(method) for method in (*plots.LOOKS, *unlearning.names())]
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == len(looks)
    assert plots.look("npo", "upstream", "unimodal") == plots.look("npo")._replace(filled=False)
    assert plots.look("manu") == (unlearning.Method.colour, unlearning.Method.marker, True)


# Text, files


def test_spread_is_nearest_and_apart():
    assert plots.spread([0.0, 10.0], 1.0) == [0.0, 10.0]
    assert plots.spread([5.0, 5.0], 2.0) == pytest.approx([4.0, 6.0])
    placed = plots.spread([1.0, 0.0, 0.1], 1.0, low=0.0, high=2.5)
    assert sorted(placed) == pytest.approx([0.0, 1.0, 2.0]) and placed[1] < placed[2] < placed[0]


def test_wrapped_lines_fit_and_say_when_they_were_cut():
    lines = plots.wrap("An extraordinarilylongword " * 9, 1.0, most=3)
    assert len(lines) == 3 and lines[-1].endswith("…") and all(plots.width_of(line) <= 1.0 for line in lines)
    assert plots.wrap("a\nb\t\u6f22", 3.0) == ["a b □"]
    assert "".join(plots.wrap("x" * 60, 1.0, most=9)) == "x" * 60 and plots.wrap("", 1.0) == [""]


def test_figures_are_the_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; import fake_runs; from mllmu_nb.reporting import figures, plots;"
        "plots.save(figures.loss_curves([fake_runs.make('vanilla')]), Path(sys.argv[1]), 'runs')"
    )
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True, env=environment)
    plots.save(figures.loss_curves([make("vanilla")]), tmp_path / "here", "runs")
    for kind in ("png", "pdf"):
        assert (tmp_path / f"here.{kind}").read_bytes() == (tmp_path / f"there.{kind}").read_bytes()


def test_what_cannot_be_drawn_says_why_and_one_from_outside_is_drawn(tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text(
        "from matplotlib.figure import Figure\n"
        "from mllmu_nb.reporting.figures import figure\n"
        "@figure('mine', 'a blank page')\n"
        "def mine(scores):\n"
        "    '''My figure. Nothing\n    on it.'''\n"
        "    return Figure((1, 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MLLMU_NB_EXTENSIONS", "stranger")
    monkeypatch.setattr(figures.FIGURES, "_entries", dict(figures.FIGURES._entries))
    captions = figures.write_all(Scores.of([make("vanilla")]), [person(1)], tmp_path / "out", "runs")
    assert "- `mine_llava_10`: My figure. Nothing on it." in captions and len(captions) == len(OF_MODELS) + 2
    assert any("`oracle_gap_llava_10` is not drawn: the gap to the oracle needs" in line for line in captions)
    drawn = {path.name for path in (tmp_path / "out").iterdir()}
    assert drawn >= {"losses_llava_10.png", "profiles.pdf", "mine_llava_10.pdf"}
    assert "oracle_gap_llava_10.png" not in drawn


def test_methods_with_one_label_are_drawn_and_printed_apart(monkeypatch):
    labels = runs.method_label
    monkeypatch.setattr(runs, "method_label", lambda method: "GA" if method == "mine" else labels(method))
    made = [make(method, **FEW) for method in ("vanilla", "oracle")]
    made.append(make("ga", lambda q: q.number > 0, modality="multimodal", **FEW))
    made.append(make("mine", lambda q: q.number < 1, modality="multimodal", **FEW))
    scores = Scores.of(made)
    for name in ("leakage", "health", "oracle_gap"):
        figure = figures.FIGURES.get(name)(scores)
        assert {"ga", "mine"} <= {word.strip("\n,") for text in words(figure) for word in text.split()}, name
    [sheet] = tables.sheets("table2_main", scores)
    names = [name for _, rows in sheet.blocks for name, _ in rows]
    assert {"GA, ga", "GA, mine"} <= set(names)


@pytest.mark.parametrize("name", OF_MODELS)
def test_a_dollar_sign_in_a_name_is_no_mathematics(name, tmp_path):
    """A formula that cannot be parsed would stop the drawing, and one that can would be shown as another text."""
    hostile, right = r"$\nope{$", fake_runs.realistic("npo", "multimodal")
    made = [make(method, **FEW) for method in ("vanilla", "oracle")]
    made += [make(hostile, right, modality=modality, **FEW) for modality in ("multimodal", "unimodal")]
    made = [replace(run, record={**run.record, "base_label": hostile}) for run in made]
    figure = figures.FIGURES.get(name)(group(made))
    plots.save(figure, tmp_path / "figure", "runs")
    shown = [text for text in figure.findobj(Text) if hostile in text.get_text()]
    assert shown and not any(text.get_parse_math() for text in shown)


def test_answers_whose_fact_is_not_known_have_no_health():
    made = [make(method, **FEW) for method in ("vanilla", "oracle")]
    bare = [but(run, answers=run.answers.assign(value="")) for run in made]
    with pytest.raises(KitError, match="whose fact is known"):
        figures.FIGURES.get("health")(Scores.of(bare))
    values = made[0].answers["value"].mask(made[0].answers["set"] == "retain", "")
    some = [but(made[0], answers=made[0].answers.assign(value=values))]
    assert len(figures.FIGURES.get("health")(Scores.of(some)).axes) == 4
