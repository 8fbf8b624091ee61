"""Tables, and what they say about missing cells, closed gates and collapsed models, on made-up runs."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fake_runs import along, but, make, people_frames, realistic, saying, without

from mllmu_nb.errors import KitError
from mllmu_nb.reporting import figures, grid, published, report, tables
from mllmu_nb.reporting.grid import COLLAPSED_NOTE, GATES_UNKNOWN
from mllmu_nb.reporting.runs import Scores, columns_of
from mllmu_nb.reporting.sheet import BEST, SECOND, Sheet, latex_text, write_csv, write_sheets
from mllmu_nb.scoring import path, registry
from mllmu_nb.scoring.frames import KEY, joined, with_rivals
from mllmu_nb.scoring.ranking import UNKNOWN
from mllmu_nb.scoring.registry import metrics
from mllmu_nb.statistics.intervals import Interval
from mllmu_nb.unlearning import METHODS, Method, register

FEW = {"asked": {"classification": 2, "generation": 1, "cloze": 1}, "famous": 3}
CELLS = ["table2_main", "table2_by_view", "table_oracle_gap"]


def frame(name: str, scores: Scores) -> pd.DataFrame:
    return pd.concat([sheet.frame for sheet in tables.sheets(name, scores)], ignore_index=True)


def line(text: str, *starts: str) -> list[str]:
    """Return the cells of the first row that begins with the last of ``starts``, after the others of ``starts``."""
    *before, start = starts
    for mark in before:
        text = text.split(mark, 1)[1]
    row = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in row.strip("| ").split(" | ")[1:]]


@pytest.fixture(scope="module")
def known() -> Scores:
    """One draw. GA lacks generation on Test, KL Min. all of Celebrity; the oracle's retain facts are unknown; NPO has
    no run on text."""
    models = [
        ("vanilla", "none"),
        ("oracle", "none"),
        ("ga", "multimodal"),
        ("kl_min", "multimodal"),
        ("kl_min", "unimodal"),
    ]
    runs = {model: make(model[0], modality=model[1], **FEW) for model in models}
    runs["ga", "multimodal"] = without(runs["ga", "multimodal"], set="test", task="generation")
    runs["kl_min", "multimodal"] = without(runs["kl_min", "multimodal"], set="celebrity")
    oracle = runs["oracle", "none"]
    values = oracle.answers["value"].mask(oracle.answers["set"] == "retain", "")
    runs["oracle", "none"] = but(oracle, answers=oracle.answers.assign(value=values))
    return Scores.of(runs.values())


@pytest.fixture(scope="module")
def gated() -> Scores:
    """Three draws. Letters are as good as the oracle's, so their gate is closed. NPO on text writes one word and
    chooses at random; GA on image and text is the oracle."""
    runs = []
    for draw in range(3):
        oracle = realistic("oracle", draw=draw)
        for method, modality in (("vanilla", "none"), ("oracle", "none"), ("ga", "multimodal"), ("npo", "unimodal")):
            own = oracle if method == "ga" else realistic(method, modality, draw)
            right = lambda q, own=own, oracle=oracle: (oracle if q.scoring == "letter" else own)(q)  # noqa: E731
            run = make(
                method, right, modality=modality, draw=draw, famous=3, asked=FEW["asked"] | {"classification": 5}
            )
            runs.append(saying(run, "The The The", task="generation") if method == "npo" else run)
    return Scores.of(runs)


# -- the tables -------------------------------------------------------------------------------------------------


def test_table_1_counts_people_and_questions(known):
    table = frame("table1_data", known).set_index(["set", "task", "view"])
    assert len(table) == 4 * 3 * 2
    assert table.loc[("forget", "classification", "text"), "questions"] == 20
    assert table.loc[("retain", "generation", "image_text"), ["questions", "profiles", "images"]].tolist() == [20] * 3
    [sheet] = tables.sheets("table1_data", known)
    # forget people count once: 10 + 20 + 3 people; 10 + 10 + 20 + 3 portraits
    assert line(sheet.markdown(), "All")[:2] == ["33", "43"]
    assert "1,680 questions and answers about 30 of them and 12 more" in sheet.latex()


@pytest.mark.parametrize(
    ("given", "parameter", "title", "row"),
    [("people", "people", "people", "Retain"), ("famous", "celebrities", "celebrities", "Celebrity")],
)
def test_table_1_has_a_sheet_for_each_number_of_people(given, parameter, title, row):
    runs, shown = [], []
    for count in (20, 30):
        run = make("vanilla", **{**FEW, given: count})
        parameters = {**run.record["parameters"], parameter: count}
        runs.append(replace(run, record={**run.record, "run": f"vanilla-{count}", "parameters": parameters}))
        runs[-1] = but(runs[-1], answers=run.answers.assign(**columns_of(runs[-1].record)))
        shown.append(str(count - 10 if given == "people" else count))  # ten are to be forgotten
    few, many = tables.sheets("table1_data", Scores.of(runs))
    assert few.title.startswith(f"Data, 20 {title}: ") and many.title.startswith(f"Data, 30 {title}: ")
    assert [line(one.markdown(), row)[0] for one in (few, many)] == shown and few.label != many.label


def test_table_2_has_the_papers_layout(known):
    [sheet] = tables.sheets("table2_main", known)
    rows = ["Vanilla", "GA", "Grad. Diff.", "KL Min.", "NPO", "Prompting", "Oracle"]
    assert [(heading, [name for name, _ in block]) for heading, block in sheet.blocks] == [
        ("Unlearned on image + text", rows), ("Unlearned on text only", rows)
    ]  # fmt: skip
    assert len(sheet.columns) == 4 * 5 + 3 and sheet.columns[:2] == [
        ("Forget", "Letter % → °"),
        ("Forget", "Likelihood % →"),
    ]
    cell = sheet.frame.query(
        "method == 'ga' and modality == 'multimodal' and set == 'forget' and scoring == 'likelihood'"
    )
    [cell] = cell.to_dict("records")
    items = known.items.query("method == 'ga' and set == 'forget' and scoring == 'likelihood'")
    assert cell["value"] == pytest.approx(items["correct"].mean()) and cell["low"] < cell["value"] < cell["high"]
    assert (cell["n_items"], cell["n_profiles"], cell["n_replicates"]) == (40, 10, 1)
    value, low, high = (f"{100 * cell[name]:.1f}" for name in ("value", "low", "high"))
    assert line(sheet.markdown(), "GA")[1] == rf"{value} \[{low}, {high}\]"
    assert rf"{value}\\{{}}[{low},\,{high}]" in sheet.latex()
    assert (
        "People: Forget 10, Test 10, Retain 20, Celebrity 3. One run of each model: intervals are over people alone"
        in sheet.markdown()
    )


def test_missing_cells_are_empty_and_say_why(known):
    [sheet] = tables.sheets("table2_main", known)
    empty = sheet.frame[sheet.frame["value"].isna()]
    assert (empty["note"] != "").all() and (sheet.frame.loc[sheet.frame["value"].notna(), "note"] == "").all()

    def note(where: str) -> str:
        [one] = empty.query(where)["note"].unique()
        return one

    assert note("method == 'npo' and modality == 'unimodal'") == "There is no run of NPO (text only)."
    asked = note("method == 'ga' and set == 'test' and task == 'generation' and modality == 'multimodal'")
    assert asked == "The run has no such score on the test set."
    nothing = note("method == 'kl_min' and modality == 'multimodal' and set == 'celebrity'")
    assert nothing == "The run has no such score on the celebrity set."
    unscored = note("method == 'oracle' and metric == 'factuality' and set == 'retain'")
    assert unscored == "The run has no such score on the retain set."
    cells = line(sheet.markdown(), "text only**", "NPO")
    assert len(cells) == 23 and len(set(cells)) == 1 and cells[0].startswith("<sup>")
    for text in (sheet.markdown(), sheet.latex()):
        assert "There is no run of NPO (text only)." in text


def test_a_value_of_zero_is_printed_as_zero():
    scores = Scores.of([make("vanilla", lambda q: False, sets=("forget",), asked={"classification": 1, "cloze": 1})])
    [sheet] = tables.sheets("table2_main", scores)
    assert line(sheet.markdown(), "Vanilla")[4].startswith(r"0.0 \[")
    assert [heading for heading, _ in sheet.blocks] == ["No unlearned model"]


def test_columns_in_which_vanilla_is_below_its_goal_in_a_view_are_marked():
    """Vanilla knows everything, or with the image alone; at paper scale there are no goals."""
    whole, half = make("vanilla", lambda asked: True, **FEW), make("vanilla", lambda asked: asked.view != "text", **FEW)
    paper = replace(half, record={**half.record, "scale": "paper"})
    marked = []
    for run in (whole, half, paper):
        [sheet] = tables.sheets("table2_main", Scores.of([run]))
        marked.append({(over, head[:4]) for over, head in sheet.columns if head.endswith(grid.BELOW)})
        assert (grid.BELOW_NOTE in sheet.remarks) == bool(marked[-1])
    likelihood = {(over, "Like") for over in ("Forget", "Test", "Retain")}
    assert latex_text("Letter % ° →") == r"Letter \% \textdegree{} $\rightarrow$"
    assert not any(grid.BELOW in head for _, head in tables.sheets("table2_paper", Scores.of([half]))[0].columns)
    assert not marked[0] and not marked[2] and likelihood <= marked[1] <= {
        (over, head) for over in ("Forget", "Test", "Retain") for head in ("Lett", "Like", "Cloz")
    } - {("Test", "Cloz")}  # fmt: skip


def test_by_view_table_keeps_the_views_apart(known):
    table = frame("table2_by_view", known).query("set == 'forget' and scoring == 'likelihood' and method == 'kl_min'")
    values = table.set_index(["modality", "view"])["value"]
    assert values["multimodal", "image_text"] < values["multimodal", "text"]
    assert values["unimodal", "image_text"] > values["unimodal", "text"]
    shown = [text for _, text in tables.sheets("table2_by_view", known)[0].columns]
    assert [text.removesuffix(" °") for text in shown] == [
        one.label for one in metrics(table="scores") if not one.optional and "forget" in one.sets
    ]
    refused = ["Refused %" in [text for _, text in one.columns] for one in tables.sheets("table2_by_view", known)]
    assert refused == [False, False, True, True], "refusals are scored where nobody should refuse"


def test_cost_table_has_seconds_memory_and_steps(known):
    cost = frame("cost", known).set_index(["method", "modality"])
    values = cost.loc[("ga", "multimodal"), ["seconds", "peak_memory_mb", "trainable_parameters", "steps", "runs"]]
    assert values.tolist() == [3.25, 1402.6, 1234567, 40, 1]
    assert line(tables.sheets("cost", known)[0].markdown(), "GA (image + text)")[2] == "1,234,567"


def test_replicates_are_pooled_not_averaged():
    runs = [make("vanilla", draw=draw, sets=("forget",), **FEW) for draw in range(3)]
    runs += [make("ga", modality="multimodal", draw=draw, sets=("forget",), **FEW) for draw in range(2)]
    [sheet] = tables.sheets("table2_main", scores := Scores.of(runs))
    row = sheet.frame.query("method == 'ga' and scoring == 'likelihood' and set == 'forget'").iloc[0]
    asked = scores.items.query("method == 'ga' and scoring == 'likelihood'")
    assert row["value"] == pytest.approx(asked["correct"].mean()) and (row["n_items"], row["n_profiles"]) == (80, 20)
    assert "GA (image + text) 2; Vanilla 3" in sheet.markdown()


@pytest.mark.parametrize("method", ["ga", "mine"])
def test_one_run_alone_fills_what_it_can(method):
    """No table fails if others are missing, and what cannot be known is empty."""
    scores = Scores.of([make(method, lambda q: True, modality="multimodal" if method == "ga" else "none", **FEW)])
    for name in tables.TABLES:
        for sheet in tables.sheets(name, scores):
            assert sheet.markdown() and sheet.latex()
            cells = [cell for _, rows in sheet.blocks for _, row in rows for cell in row]
            assert all(text or reason for text, reason in cells), name
    [sheet] = tables.sheets("table2_main", scores)
    assert {"There is no run of Oracle."} <= set(sheet.footnotes()) and r"| 100.0 \[" in sheet.markdown()
    assert pd.api.types.is_integer_dtype(sheet.frame["n_items"])


def test_a_grid_gives_every_setting_a_row():
    asked = {"sets": ("forget",), "asked": {"classification": 2}}
    runs = [
        make("npo", modality="multimodal", settings={"beta": beta}, draw=d, **asked)
        for beta in (0.1, 0.4)
        for d in range(3)
    ]
    scores = Scores.of([*runs, *(make(name, draw=d, **asked) for name in ("vanilla", "oracle") for d in range(3))])
    [sheet] = tables.sheets("table2_main", scores)
    assert {"NPO, beta 0.1", "NPO, beta 0.4", "Vanilla"} <= {name for name, _ in sheet.blocks[0][1]}
    assert sheet.frame.query("method == 'npo'")["beta"].unique().tolist() == [0.1, 0.4]
    assert "Not ranked: runs of one method differ in beta." in tables.sheets("table_ranking", scores)[0].markdown()
    one = scores.where(beta=0.4)
    [sheet] = tables.sheets("table2_main", one)
    assert "NPO" in {name for name, _ in sheet.blocks[0][1]} and {run["method"] for run in one.runs} > {"npo", "oracle"}
    assert "differ in" not in tables.sheets("table_ranking", one)[0].markdown(), "one setting can be ranked"
    with pytest.raises(KitError, match="unknown beta of a run 0.5"):
        scores.where(beta=0.5)
    with pytest.raises(KitError, match="unknown parameter of the grid 'alpha'"):
        scores.where(alpha=1.0)


# -- gates and collapse -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_a_closed_gate_stands_in_brackets_and_is_explained(gated, name):
    """Vanilla's letters equal the oracle's; by likelihood it knows three times in four more."""
    rows = frame(name, gated).query("metric == 'accuracy' and value.notna()")
    on_forgotten = rows["set"].isin(("forget", "test"))
    assert set(rows.loc[on_forgotten & (rows["scoring"] == "letter"), "gate"]) == {"closed"}
    assert set(rows.loc[on_forgotten & (rows["scoring"] == "likelihood"), "gate"]) == {"open"}
    assert set(rows.loc[~on_forgotten, "gate"]) == {""}
    for sheet in tables.sheets(name, gated):
        bracketed = {start: set() for start in ("Letter", "Likelihood")}
        for column, (span, head) in enumerate(sheet.columns):
            texts = {cells[column][0] for _, block in sheet.blocks for _, cells in block} - {""}
            if head.split()[0].strip(",") in bracketed and span in ("", "Forget", "Test"):
                bracketed[head.split()[0].strip(",")] |= {text.startswith("(") for text in texts}
        gates = "retain" not in sheet.label and "celebrity" not in sheet.label
        assert bracketed == {"Letter": {gates}, "Likelihood": {False}}, sheet.label
        assert ("In brackets: gate closed" in sheet.markdown()) == gates
        assert ("Letter" in sheet.latex().partition("gate closed")[2]) == gates


def test_the_gate_table_says_which_gates_are_open(gated):
    [sheet] = tables.sheets("table_gate", gated)
    letter, likelihood = (line(sheet.markdown(), name) for name in ("Letter, points", "Likelihood, points"))
    assert all(", closed (" in cell for cell in letter)
    assert all(cell.endswith(", open (3 of 3)") for cell in likelihood), "in each replicate by itself as well"
    assert "No letter" not in sheet.markdown(), "a matter of form has no gate"
    rows = sheet.frame.query("scoring == 'likelihood' and view == 'both'")
    assert len(rows) == 1 and rows["low"].item() > 0


def test_each_vanilla_of_a_grid_has_its_own_gate():
    runs = []
    for exams, knows in ((0.8, True), (0.0, False)):
        runs.append(make("vanilla", lambda q, knows=knows: knows or q.set == "retain", exams=exams, **FEW))
        runs.append(make("oracle", lambda q: q.set == "retain", exams=exams, **FEW))
        runs.append(make("ga", lambda q: q.set == "retain", modality="multimodal", exams=exams, **FEW))
    scores = Scores.of(runs)
    cell = scores.cells.query("method == 'ga' and set == 'forget' and view == 'both' and scoring == 'likelihood'")
    cell = cell[(cell["metric"] == "accuracy") & (cell["against"] == "")]
    assert cell.set_index("exams")["gate"].to_dict() == {0.8: "open", 0.0: "closed"}
    alone = scores.run_scores().query("method == 'ga' and set == 'forget' and scoring == 'likelihood'")
    assert alone.groupby("exams")["gate"].unique().map(list).to_dict() == {0.0: ["closed"], 0.8: ["open"]}
    [sheet] = tables.sheets("table_gate", scores)
    said = {heading: dict(rows)["Likelihood, points"][-1][0] for heading, rows in sheet.blocks}
    assert said["Vanilla, exams 0.8"].endswith("open") and said["Vanilla, exams 0.0"].endswith("closed")
    unfinished = Scores.of([run for run in runs if run["method"] == "ga" or run.parameters["exams"] == 0.8]).cells
    rows = unfinished.query("method == 'ga' and set == 'forget' and against == '' and metric == 'accuracy'")
    assert set(rows.query("exams == 0.0")["gate"]) == {""}, "its own vanilla is not finished, so it has no gate yet"
    assert "open" in set(rows.query("exams == 0.8")["gate"])


def test_a_grid_over_a_number_of_unlearning_shares_vanilla_and_oracle():
    """0 stands for the preset in runs that unlearn nothing; sentences that only some runs have stop no table."""
    knows = {"vanilla": lambda q: q.set == "retain", "oracle": lambda q: q.set == "retain"}
    runs = [make(name, right, unlearn_batch_size=0, **FEW) for name, right in knows.items()]
    sized = {"modality": "multimodal", "taught": lambda member: 0.5, **FEW}
    runs += [make("ga", lambda q: q.set == "retain", unlearn_batch_size=size, **sized) for size in (4, 16)]
    scores = Scores.of(runs)
    cells = scores.cells.query("method == 'ga' and set == 'forget' and view == 'both' and scoring == 'likelihood'")
    cells = cells[(cells["metric"] == "accuracy") & (cells["against"] == "")]
    assert cells.set_index("unlearn_batch_size")["gate"].to_dict() == {4: "closed", 16: "closed"}
    assert [run["method"] for run in scores.where(unlearn_batch_size=4).runs] == ["ga", "oracle", "vanilla"]
    assert scores.ranking.refused == "runs of one method differ in unlearn_batch_size"


def test_letters_after_other_numbers_of_worked_examples_are_not_compared():
    runs = [make(name, lambda q: True, **FEW) for name in ("vanilla", "oracle")]
    scores = Scores.of([*runs, make("ga", lambda q: q.set != "forget", modality="multimodal", shots=0, **FEW)])
    assert scores.by == ["shots"]
    upstream = [make(name, protocol="upstream", shot_source="upstream", **FEW) for name in ("vanilla", "oracle")]
    assert Scores.of([*runs, *upstream]).by == [], "each protocol has a table of its own"
    cells = scores.cells.query("method == 'ga' and set == 'forget' and view == 'both' and metric == 'accuracy'")
    known = cells[cells["against"] == "oracle"].set_index(["task", "scoring"])["value"]
    assert known["classification", "likelihood"] == -1, "no example precedes this question"
    assert known[[("classification", "letter"), ("cloze", "")]].isna().all()


@pytest.mark.parametrize(
    ("name", "values"), [("shots", (0, 5)), ("eval_precision", (None, "bf16")), ("shot_seed", (0, 1))]
)
def test_models_that_are_asked_in_several_ways_are_compared_with_those_asked_alike(name, values):
    """Asked in one way, all know nothing; in the other, everything: there is no gap and no gate either way."""
    runs = []
    for value, knows in zip(values, (False, True), strict=True):
        for method, modality in (("vanilla", "none"), ("oracle", "none"), ("ga", "multimodal")):
            runs.append(make(method, lambda q, knows=knows: knows, modality=modality, **{name: value}, **FEW))
    cells = Scores.of(runs).cells.query("set == 'forget' and task == 'classification' and metric in ['accuracy', 'ks']")
    assert len(cells[cells["against"] == "oracle"]) and set(cells.loc[cells["against"] != "", "value"]) == {0}
    assert set(cells["gate"]) == {"closed"}


def test_letters_and_blanks_are_compared_only_after_as_many_examples():
    """Vanilla and the oracle were shown five alone: GA without examples is compared with them by likelihood."""
    runs = [make(name, lambda q, name=name: name == "vanilla", shots=5, **FEW) for name in ("vanilla", "oracle")]
    runs += [make("ga", lambda q: True, modality="multimodal", shots=shots, **FEW) for shots in (0, 5)]
    cells = Scores.of(runs).cells.query("method == 'ga' and set == 'forget' and against == 'oracle'")
    count = cells[cells["metric"] == "accuracy"].groupby(["shots", "task", "scoring"])["value"].count()
    assert count[0].tolist() == [0, 4, 0] and count[5].tolist() == [3, 4, 4], "letters are not compared across views"


def test_without_an_oracle_the_gate_is_unknown():
    runs = [
        make(method, modality=modality, sets=("forget",), **FEW)
        for method, modality in (("vanilla", "none"), ("ga", "multimodal"))
    ]
    [sheet] = tables.sheets("table2_main", scores := Scores.of(runs))
    assert set(sheet.frame["gate"]) == {""} and GATES_UNKNOWN in sheet.markdown()
    [sheet] = tables.sheets("table_gate", scores)
    assert "Vanilla or the oracle has no such answers." in sheet.markdown()


def test_a_model_that_writes_one_word_is_marked_wherever_it_is_named(gated):
    assert list(gated.unsound) == [("llava", "clean", 10, "npo", "canonical", "unimodal", "")]
    for name in [*CELLS, "cost", "table_health", "table_leakage", "table_forget_quality"]:
        for sheet in tables.sheets(name, gated):
            marked = {row for _, block in sheet.blocks for row, _ in block if "‡" in row}
            assert marked and all(row.startswith("NPO") for row in marked), name
            assert COLLAPSED_NOTE in sheet.remarks
            assert r"$\ddagger$" in sheet.latex() and "‡" not in sheet.latex()
        collapsed = frame(name, gated).groupby("method")["collapsed"].any()
        assert collapsed.index[collapsed].tolist() == ["npo"], name


def test_a_model_that_is_the_oracle_is_inside_and_one_that_forgot_nothing_is_outside(gated):
    rows = frame("table_oracle_gap", gated).query("set == 'forget' and view == 'both' and scoring == 'likelihood'")
    rows = rows.dropna(subset=["value"]).set_index("method")
    assert rows["verdict"].to_dict() == {"vanilla": "outside", "ga": "inside", "npo": "outside"}
    same = rows.loc["ga"]
    assert same["value"] == 0 and same["low"] < 0 < same["high"] <= same["margin"] == 0.1
    text = tables.sheets("table_oracle_gap", gated)[0].markdown()
    assert line(text, "GA (image + text)")[2].endswith(" =") and line(text, "Vanilla")[2].endswith(" ≠")
    assert "margin 10 points, 0.1 of ROUGE and BLEU, 1 point of factuality" in text
    assert set(frame("table_oracle_gap", gated)["view"]) == {"image_text", "text", "both"}


# -- forget quality, leakage, ranking ---------------------------------------------------------------------------


def test_forget_quality_says_what_is_missing(gated):
    [levels] = tables.sheets("table_forget_quality", gated)
    assert line(levels.markdown(), "GA, image + text")[1] == "0.00", "KS to the oracle, whose double it is"
    assert "It is the oracle." in levels.markdown()
    gap = levels.frame.query("method == 'ga' and against == 'oracle' and metric == 'truth_ratio' and view == 'text'")
    assert gap["value"].item() == pytest.approx(0), "the CSV has the differences to the oracle"
    assert "Not measured in these runs." in levels.markdown(), "there are no taught sentences"
    few = {"sets": ("forget",), "asked": {"classification": 1}, "famous": 1}
    scores = Scores.of(
        [
            make("vanilla", taught=lambda m: 0.9 if m == "forget" else 0.3, **few),
            make("oracle", taught=lambda _: 0.3, **few),
        ]
    )
    [levels] = tables.sheets("table_forget_quality", scores)
    heads = [head for _, head in levels.columns]
    assert line(levels.markdown(), "Vanilla, text")[heads.index("LOSS")].startswith("1.00")
    assert "1 % needs 300 fresh sentences: 20 there." in levels.markdown()
    assert {"zlib", "tpr_5_zlib"} <= set(levels.frame["metric"]), "the CSV has those that are not printed"
    other = {"task": "generation", "label": "Free ratio", "table": "quality", "knowledge": 0}
    registry.metric("truth_ratio", **other)(lambda items: pd.Series(0.5, items.index))
    try:
        [both] = tables.sheets("table_forget_quality", Scores.of(scores.runs))
    finally:
        registry.METRICS._entries.pop(("generation", "", "truth_ratio"))
    assert [head for _, head in both.columns] == [*heads, "Free ratio"], "one of the same name replaces nothing"
    counted = levels.frame.query("metric == 'auc_loss'")["n_profiles"].max()
    [said] = re.findall(r"People[^:]*: Forget (\d+)\.", levels.markdown())
    assert int(said) < counted, "fresh people are no forget people"


def test_the_leakage_table_is_trained_in_by_asked_in():
    in_text = lambda q: q.view == "text"  # noqa: E731
    models = {"vanilla": lambda q: True, "oracle": lambda q: False, "ga": in_text}
    few = {"sets": ("forget", "retain"), "asked": {"classification": 2}}
    runs = [
        make(name, right, modality="multimodal" if name == "ga" else "none", **few) for name, right in models.items()
    ]
    [sheet] = tables.sheets("table_leakage", scores := Scores.of(runs))
    image, text, across = line(sheet.markdown(), "Unlearned on image", "GA")[:3]
    assert image.startswith(r"+0.0 \[") and text.startswith(r"+100.0 \[") and across.startswith("+100.0")
    assert "| Oracle" not in sheet.markdown()


def test_the_ranking_shows_places_letters_and_who_has_none(gated):
    ranked, text = frame("table_ranking", gated), tables.sheets("table_ranking", gated)[0].markdown()
    place, kept = line(text, "GA")
    assert place == "1 A" and kept.split()[0] == f"{100 * ranked.query('place == 1')['value'].item():.0f}"
    assert (
        ranked.query("method == 'npo'")["place"].isna().all()
        and "Collapsed in 3 of 3; in the first of them 100 % of answers" in text
    )
    assert "Collapse is judged where a run ends, and the rank where half of the gap is closed" in text
    silent = [saying(make("prompting", draw=n, **FEW), "I cannot share that.", task="generation") for n in range(3)]
    [sheet] = tables.sheets("table_ranking", Scores.of([*gated.runs, *silent]))
    said = "Prompting ‡ 3 of 3 is not ranked: it trains nothing, so it has no path. It "
    assert any(remark.startswith(said) and "refuses everybody in 3 of 3" in remark for remark in sheet.remarks)


def test_the_pairs_table_has_the_difference_of_what_two_methods_keep(gated):
    runs, asked = [run for run in gated.runs if run["method"] != "npo"], FEW["asked"] | {"classification": 5}
    for draw in range(3):
        given = {"modality": "multimodal", "draw": draw, "famous": 3, "asked": asked}
        runs.append(make("grad_diff", realistic("grad_diff", "multimodal", draw), **given))
    scores = Scores.of(runs)
    kept = scores.kept.query("closed_in == 'trained' and what == 'kept'").set_index(["method", "place"])
    frame = tables.differences(scores)
    assert frame[["first", "second"]].drop_duplicates().values.tolist() == [["Grad. Diff.", "GA"]]
    [half] = frame[frame["place"] == 0.5].to_dict("records")
    ours, theirs = (np.array(kept.loc[(name, 0.5), "dots"]) for name in ("grad_diff", "ga"))
    assert half["n_replicates"] == half["of"] == 3 and half["value"] == pytest.approx((ours - theirs).mean())
    assert half["low"] < half["value"] < half["high"]
    shown = line(tables.sheets("table_pairs", scores)[0].markdown(), "Grad. Diff. minus GA")[1]
    assert shown.startswith(f"{100 * half['value']:+.0f} ".replace("-", "−"))
    assert tables.sheets("table_pairs", gated)[0].remarks == ["Not compared: no two methods have paths."]


def test_the_path_table_says_what_is_kept_and_what_is_never_reached(gated):
    trained, both = tables.sheets("table_path", gated)
    assert [head for head, _ in trained.columns[:4]] == ["At 25% closed", "At 50% closed", "At 75% closed", "Area"]
    at = gated.kept.query("closed_in == 'trained' and method == 'ga' and what == 'kept' and place == 0.5")
    value, low, high = (f"{100 * at[name].item():.0f}" for name in ("value", "low", "high"))
    assert line(trained.markdown(), "GA")[1] == rf"{value} \[{low}, {high}\]"
    # only the image view is unlearned, which is half of the gap of both views
    assert "values are interpolated. The two around half closed" in trained.remarks[-3]
    few = path.coarse(gated.points, gated.kept_by_person["trained"]).query("method == 'ga' and what == 'kept'")
    change, *ends = (f"{100 * few[name].item():+.0f}".replace("-", "−") for name in ("value", "low", "high"))
    assert f"limits: GA (image + text) {change} [{', '.join(ends)}], NPO (text only) " in trained.remarks[-2]
    dots = trained.frame.query("method == 'ga' and what == 'kept' and place == 0.5")["replicates"].item()
    assert dots == " ".join(f"{dot:.4f}" for dot in at["dots"].item()) and dots.count(" ") == 2, "three replicates"
    assert "Never reached." in both.footnotes() and "Never reached." not in trained.footnotes()


def test_what_is_interpolated_says_how_far_apart_the_points_lie(gated, monkeypatch):
    runs = [run.id for run in gated.runs if run["method"] == "ga"]
    ends = zip(runs, (0.6, 0.7, 0.4), strict=True)  # from .2 to beyond the half; the third never gets there
    curves = {run: path.Curve(np.arange(3), np.array([0.0, 0.2, end]), {}) for run, end in ends}
    monkeypatch.setattr(path, "curves", lambda *given: curves)
    said = "The two around half closed lie this far apart, in per cent of the gap (median): GA (image + text) 45."
    assert said in grid.interpolated(gated)
    monkeypatch.setattr(path, "curves", lambda *given: {})
    assert grid.interpolated(gated) == "Between two points of a path values are interpolated."


def test_a_step_after_unlearning_has_no_path_and_is_no_oracle():
    """Its run stores one point, its final answers: here an oracle that knows as much as vanilla."""
    models = [("vanilla", "none"), ("oracle", "none"), ("ga", "multimodal")]
    runs = [make(method, modality=modality, draw=draw, **FEW) for method, modality in models for draw in range(3)]
    plain = Scores.of(runs)
    for method, modality in (("ga", "multimodal"), ("oracle", "none")):
        for draw in range(3):
            own = make(method, lambda q: True, modality=modality, draw=draw, after="int4", **FEW)
            asked = along(own.answers, method, "none").assign(**columns_of(own.record))
            people = people_frames(own.record["people"]["fictitious"], FEW["famous"])
            runs.append(but(own, path=joined(asked, with_rivals(*people))))
    scores = Scores.of(runs)
    pd.testing.assert_frame_equal(scores.kept, plain.kept)
    [sheet] = tables.sheets("table_ranking", scores)
    [(_, rows)] = sheet.blocks
    assert dict(rows)["GA, int4"] == [("", "A step after unlearning trains nothing, so it has no path.")] * 2
    oracle = [figures.FIGURES.get("path")(one).axes[0].lines[-1].get_ydata().tolist() for one in (plain, scores)]
    assert oracle[0] == oracle[1]


def test_where_likelihood_was_never_asked_nothing_is_ranked_and_choices_are_not_judged(gated):
    """The gate of what is kept is unknown, and a model can be seen to have collapsed by its free answers alone."""
    letters = Scores.of([without(run, scoring="likelihood") for run in gated.runs])
    methods = letters.ranking.methods
    assert set(methods["standing"]) <= {"gate closed", "unsound"} and methods["place"].isna().all()
    assert methods.set_index("method").loc["ga", "note"] == UNKNOWN
    [note] = grid.collapse_note(letters, ["NPO ‡"])
    assert note == f"{COLLAPSED_NOTE} Choices were not judged: likelihood was not asked."
    assert grid.collapse_note(gated, ["NPO ‡"]) == [COLLAPSED_NOTE] and not grid.collapse_note(letters, ["NPO"])


def test_too_few_forget_sets_are_not_ranked(known):
    [sheet] = tables.sheets("table_ranking", known)
    assert "Not ranked: " in sheet.markdown() and r"\begin" not in sheet.latex() and sheet.frame.empty


# -- printing ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(known, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    tables.write_tables(known, folder, "results/x/runs")
    return folder


def test_every_table_comes_in_three_forms(written):
    assert {path.suffix for path in written.iterdir()} == {".csv", ".md", ".tex"}
    for kind, more in (("csv", set()), ("md", set()), ("tex", {"appendix"})):
        assert {path.stem for path in written.glob(f"*.{kind}")} == set(tables.TABLES) | more
    assert (written / "table2_main.md").read_text().startswith("<!-- made from results/x/runs; do not edit -->")


def test_latex_is_escaped_and_balanced(written):
    for file in written.glob("*.tex"):
        text = file.read_text().replace("sidewaystable", "table")
        if file.stem == "appendix":
            continue
        assert text.count(r"\begin{table*}") == text.count(r"\end{table*}")
        for one in text.splitlines():
            bare = one.replace(r"\%", "").replace(r"\_", "").replace(r"\&", "").replace(r"\#", "")
            assert "%" not in bare, one
            assert "#" not in bare and "±" not in bare
        for one in text.split(r"\begin{table*}")[1:]:
            width = int(one.split("*{")[1].split("}")[0])
            body = [x for x in one.splitlines() if x.endswith(r"\\") and "&" in x and "multicolumn" not in x]
            assert {x.count(" & ") for x in body} == {width}, file
    assert latex_text(r"50 % & a_b #1 {x} $5 ~^\ −3") == (
        r"50 \% \& a\_b \#1 \{x\} \$5 \textasciitilde{}\textasciicircum{}\textbackslash{} $-$3"
    )


def test_markdown_tables_are_rectangular(written):
    for file in written.glob("*.md"):
        for block in file.read_text().split("\n\n"):
            widths = {one.replace("\\|", "").count("|") for one in block.splitlines() if one.startswith("|")}
            assert len(widths) <= 1, file


def test_hostile_names_are_inert(tmp_path):
    name = '=HYPERLINK("x")|<img src=x>\n[a](javascript:b)`$x$\\input{y}%\u202eexe\x1b[31m'
    runs = [
        make(method, lambda q: False, sets=("forget",), asked={"classification": 1, "cloze": 1})
        for method in ("vanilla", name)
    ]
    made = tables.sheets(
        "table2_main", Scores.of([runs[0], replace(runs[1], record={**runs[1].record, "base_label": name})])
    )
    write_sheets(made, tmp_path / "x", "here")
    csv = pd.read_csv(tmp_path / "x.csv")
    shown = name.replace("\u202e", " ").replace("\x1b", " ")
    assert set(csv["method"]) >= {f"'{shown}", "vanilla"} and csv["value"].dtype == float
    markdown = (tmp_path / "x.md").read_text()
    assert (
        r"=HYPERLINK(\"x\")".replace(r"\"", '"') + r"\|\<img src=x> \[a\](javascript:b)\`\$x\$\\input{y}%" in markdown
    )
    assert r"\$x\$\textbackslash{}input\{y\}\%" in (tmp_path / "x.tex").read_text()
    rows = [("[ours]", ["1"]), ("*", ["2"]), ("plain", ["3"])]  # after a rule or \\, LaTeX reads these as options
    lines = Sheet("T", "t", "Row", [("", "a")], [("", rows)]).latex().splitlines()
    assert {"{}[ours] & 1 \\\\", "{}* & 2 \\\\", "plain & 3 \\\\"} <= set(lines)
    for kind in ("csv", "md", "tex"):  # these would turn the line around, or colour a terminal
        text = (tmp_path / f"x.{kind}").read_text()
        assert "exe" in text and all(character.isprintable() or character == "\n" for character in text), kind


def test_numbers_below_zero_stay_numbers_in_csv(tmp_path):
    write_csv(pd.DataFrame({"value": [-1.5, 2.0], "text": ["-1.5", "@x"], "count": [-1, 2]}), tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().splitlines() == ["value,text,count", "-1.5,'-1.5,-1", "2.0,'@x,2"]


def test_footnotes_have_letters_in_reading_order():
    rows = [("one", [("", "second"), ("1", "")]), ("two", [("", "first"), ("", "second")])]
    sheet = Sheet("T", "t", "Row", [("", "a"), ("", "b")], [("", rows)])
    assert sheet.footnotes() == {"second": "a", "first": "b"}
    assert (
        "| two | <sup>b</sup> | <sup>a</sup> |" in sheet.markdown() and r"\raisebox{0.5ex}{b}\,first" in sheet.latex()
    )


def test_a_metric_and_a_table_of_ones_own_appear_without_a_list_edited(monkeypatch):
    def words(items: pd.DataFrame) -> pd.Series:
        return items["answer"].str.split().str.len().clip(upper=20) / 20

    declared = {"label": "Words %", "task": "generation", "margin": 0.1, "table": "scores"}
    mine = registry.Metric(name="words", function=words, **declared)
    monkeypatch.setitem(registry.METRICS._entries, mine.key, mine)
    scores = Scores.of([make(name, sets=("forget",), **FEW) for name in ("vanilla", "oracle")])
    for name in ("table2_by_view", "table_oracle_gap", "table_gate"):
        assert "Words" in tables.sheets(name, scores)[0].markdown(), name

    def table(scores: Scores):
        columns = [tables.column(mine, set="forget", view="both")]
        yield tables.score_sheet(scores, "Mine", "mine", [("", scores.models())], columns, {"against": ""})

    monkeypatch.setitem(tables.TABLES._entries, "table_mine", table)
    [sheet] = tables.sheets("table_mine", scores)
    assert sheet.label == "mine-llava-10"
    assert line(sheet.markdown(), "Vanilla")[0].startswith(r"(80.0 \["), "16 of 20 words, as many as the oracle"


def test_a_main_metric_without_decimals_or_without_a_goal_is_printed(monkeypatch):
    """Two methods differ in the length of their answers; neither is better by a metric that shows no knowledge."""
    length = lambda items: items["answer"].str.len().clip(upper=100) / 100  # noqa: E731
    for name, declared in {"rounded": {"digits": 0}, "formal": {"knowledge": 0}}.items():
        declared = {"label": f"{name} %", "task": "generation", "margin": 0.1, "main": True, **declared}
        mine = registry.Metric(name=name, function=length, **declared)
        monkeypatch.setitem(registry.METRICS._entries, mine.key, mine)
    runs = [make(name, sets=("retain",), **FEW) for name in ("vanilla", "oracle")]
    runs += [make(name, modality="multimodal", sets=("retain",), **FEW) for name in ("ga", "kl_min")]
    runs[-1] = saying(runs[-1], "Nobody can say.", task="generation")
    [sheet] = tables.sheets("table2_paper", Scores.of(runs))
    marks = {}
    for (_, head), *cells in zip(sheet.columns, *(row for _, rows in sheet.blocks for _, row in rows), strict=True):
        marks.setdefault(head.split()[0], set()).update(why for text, why in cells if text)
    assert marks["rounded"] == {"", BEST, SECOND} and marks["formal"] == {""}
    assert any(
        re.fullmatch(r"\d+ \[\d+, \d+\]", text) for _, rows in sheet.blocks for _, row in rows for text, _ in row
    )


def test_a_metric_has_no_column_in_a_table_that_cannot_have_a_value_of_it(monkeypatch):
    """A difference of lengths says nothing (knowledge 0, no margin), and a metric of models has no pooled views."""
    length = lambda items: items["answer"].str.len().clip(upper=100) / 100  # noqa: E731

    def level(mine, oracles):
        return Interval(0.5, 0.4, 0.6, 2, 2), None if oracles[0] is None else Interval(0.0, 0.0, 0.0, 2, 2)

    for name, function, declared in (("length", length, {"knowledge": 0}), ("distinct", level, {"per": "model"})):
        mine = registry.Metric(name=name, function=function, label=name, task="generation", **declared)
        monkeypatch.setitem(registry.METRICS._entries, mine.key, mine)
    scores = Scores.of([make(name, sets=("forget",), **FEW) for name in ("vanilla", "oracle")])
    assert {"length", "distinct"} <= {head for _, head in next(iter(tables.sheets("table2_by_view", scores))).columns}
    for name in ("table_oracle_gap", "table_gate"):
        for sheet in tables.sheets(name, scores):
            assert "length" not in sheet.markdown() and "distinct" not in sheet.markdown(), name
    gaps = frame("table_oracle_gap", scores).query("metric == 'distinct' and method == 'vanilla' and set == 'forget'")
    assert set(gaps["view"]) == {"image_text", "text"} and gaps["value"].notna().all(), "the CSV has each view"


def test_the_mark_of_a_grid_is_measured_from_the_oracle_of_its_own_setting():
    """With exams .8 the oracle knows half; GA is like it, and KL Min. is like the other oracle, who knows nothing."""
    nobody, half = (lambda q: q.set == "retain"), (lambda q: q.set == "retain" or q.number == 0)
    runs = [make("vanilla", lambda q: True, exams=exams, **FEW) for exams in (0.2, 0.8)]
    runs += [make("oracle", nobody, exams=0.2, **FEW), make("oracle", half, exams=0.8, **FEW)]
    runs += [make(name, right, modality="multimodal", exams=0.8, **FEW) for name, right in
             (("ga", half), ("kl_min", nobody))]  # fmt: skip
    [sheet] = tables.sheets("table2_compact", Scores.of(runs))
    place = next(
        n for n, (over, head) in enumerate(sheet.columns) if over == "Forget" and head.startswith("Likelihood")
    )
    marks = {name: cells[place][1] for _, rows in sheet.blocks for name, cells in rows if "exams 0.8" in name}
    assert marks["GA, exams 0.8"] == BEST and marks["KL Min., exams 0.8"] == SECOND


def test_a_method_with_a_published_name_has_a_row_without_a_run(monkeypatch):
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    scores = Scores.of([make(name, sets=("forget",), **FEW) for name in ("vanilla", "oracle")])
    for name, printed in (("mine", ""), ("printed", "Printed")):
        declared = {"__module__": __name__, "name": name, "label": name, "published": printed}
        register(type(name.title(), (Method,), declared))
    [(_, models)] = tables.paper_rows(scores)
    assert not {"mine", "printed", "ga"} & {model[0] for model in models}, "nothing was unlearned"
    scores = Scores.of(
        [make(name, sets=("forget",), **FEW) for name in ("vanilla", "oracle")]
        + [make("ga", modality="multimodal", sets=("forget",), **FEW)]
    )
    [(_, models)] = tables.paper_rows(scores)
    names = {model[0]: model[2] for model in models}
    assert names["printed"] == names["npo"] == "multimodal" and names["prompting"] == "none" and "mine" not in names


# -- published figures ------------------------------------------------------------------------------------------


def test_published_figures_in_our_words_and_units():
    cells = published.cells(published.load())
    assert set(cells["method"]) == {"vanilla", "ga", "grad_diff", "kl_min", "npo"} and set(cells["base_model"]) == {
        "llava"
    }
    first = cells.query("method == 'vanilla' and set == 'forget' and metric == 'accuracy' and forget_ratio == 5").iloc[
        0
    ]
    assert first["value"] == pytest.approx(0.517) and (first["view"], first["modality"]) == ("both", "none")


# -- sources of the spread --------------------------------------------------------------------------------------


def test_runs_that_differ_in_a_seed_alone_are_one_replicate():
    """Four trainings with one forget set; in one of them GA writes one word."""
    runs = []
    for seed in range(4):
        for method, modality in (("vanilla", "none"), ("oracle", "none"), ("ga", "multimodal")):
            taught = {"taught": lambda member: 0.6 if member == "forget" else 0.5}
            run = make(method, modality=modality, train_seed=seed, sets=("forget", "retain"), **taught, **FEW)
            runs.append(saying(run, "The The The", task="generation") if method == "ga" and not seed else run)
    scores = Scores.of(runs)
    [sheet] = tables.sheets("table2_main", scores)
    said = "4 runs of each model in one replicate (one forget set): intervals are over people alone"
    assert said in sheet.markdown() and "replicates (" not in sheet.markdown()
    area = scores.cells.query("metric == 'auc_loss' and method == 'vanilla' and view == 'text' and against == ''")
    assert area["n_replicates"].item() == 1 and area["low"].item() > 0.5, "the units are people"
    assert {model[3]: bad[:2] for model, bad in scores.unsound.items()} == {"ga": (1, 4)}


def test_replicates_with_a_given_forget_set_are_compared_as_trainings():
    """Of three replicates with one file of ids, everybody is in each; nothing speaks of forget sets of their own."""
    runs = []
    for number in range(3):
        given = {"replicate": number, "train_seed": number, "forget_ids_file": "forget.json"}
        for method, modality in (("vanilla", "none"), ("oracle", "none"), ("ga", "multimodal")):
            right = realistic(method, modality, 0, number)
            runs.append(make(method, right, modality=modality, sets=("forget", "retain"), **given, **FEW))
    scores = Scores.of(runs)
    [sheet] = tables.sheets("table2_main", scores)
    said = "Intervals are over 3 replicates (each with trainings of its own; the forget set is one) and over people"
    assert said in sheet.markdown() and "its own forget set" not in sheet.markdown()
    cell = scores.cells.query(
        "method == 'ga' and set == 'forget' and metric == 'exact' and view == 'text' and against == ''"
    )
    forget = [run for run in runs if run["method"] == "ga"][0].record["forget_ids"]
    assert cell["n_replicates"].item() == 3 and cell["n_profiles"].item() == len(forget), "the same people three times"
    assert cell["low"].item() < cell["value"].item() < cell["high"].item()


def test_what_a_replicate_draws_is_told_apart_from_people_by_hand(gated):
    """On Retain all people recur, so the variance over replicates is that of their scores."""
    table = frame("table_variance", gated).set_index(["set", "scoring", "metric", "factor"])
    scores = gated.run_scores()
    at = (scores["set"] == "retain") & (scores["view"] == "both") & (scores["metric"] == "accuracy")
    values = scores[at & (scores["scoring"] == "likelihood") & scores["method"].isin(["ga", "npo"])]
    expected = np.mean([own["value"].var() for _, own in values.groupby("method")])
    found = table.loc["retain", "likelihood", "accuracy", "replicate"]
    assert found["levels"] == 3 and found["variance"] == pytest.approx(expected) and expected > 0
    people = table.loc["retain", "likelihood", "accuracy", "people"]
    assert people["sd"] == pytest.approx(
        (((values["high"] - values["low"]) / (2 * 2.093)) ** 2).mean() ** 0.5, rel=1e-3
    )
    assert set(values["n_profiles"]) == {20}, "Student's quantile of 19 degrees is 2.093, and not 1.96"
    [sheet] = tables.sheets("table_variance", gated)
    assert "those that spread most weigh most" in sheet.markdown()
    [(_, rows)] = sheet.blocks
    assert [name for name, _ in rows] == ["People", "All that a replicate draws"], "seeds follow the replicate's number"
    assert all(len(cells) == len(sheet.columns) for _, cells in rows)


def test_in_a_grid_over_data_seeds_the_celebrities_are_the_same_people():
    models = (("vanilla", "none"), ("oracle", "none"), ("ga", "multimodal"))
    scores = Scores.of([make(m, modality=trained, data_seed=seed, **FEW) for seed in (0, 1) for m, trained in models])
    cells = scores.cells.query("method == 'ga' and scoring == 'likelihood' and view == 'both' and against == ''")
    cells = cells[cells["metric"] == "accuracy"].set_index("set")["n_profiles"]
    assert cells.to_dict() == {"forget": 20, "test": 20, "retain": 40, "celebrity": 3}
    said = grid.asked_along(scores)
    assert said.startswith("People asked along a path, in each replicate: Forget 10, Test 10, Retain 20, Celebrity 3.")
    assert "over 2 replicates" in said and said.endswith("and over people; one base is fixed.")
    assert report.replicates(scores) == "2 replicates"


def test_models_of_a_grid_are_apart_in_every_table():
    few = {"people": 12, "famous": 4}
    rates = [make("ga", modality="multimodal", unlearn_lr=rate, **few) for rate in (0.001, 0.004)]
    scores = Scores.of([make("vanilla", **few), make("oracle", **few), *rates])
    assert scores.by == ["unlearn_lr"]
    apart = set()
    for name in tables.TABLES:
        text = "".join(sheet.markdown() for sheet in tables.sheets(name, scores))
        named = [f"unlearn\\_lr {rate}" in text for rate in (0.001, 0.004)]
        assert named[0] == named[1], name
        apart |= {name} if all(named) else set()
    assert apart >= {"cost", "table2_main", "table_oracle_gap", "table_path", "table_leakage", "table_health"}


def test_the_claim_has_a_row_a_setting():
    runs = [make(method, **FEW) for method in ("vanilla", "oracle")]
    for rate, modality in ((rate, one) for rate in (0.001, 0.004) for one in ("multimodal", "unimodal")):
        runs.append(make("ga", modality=modality, unlearn_lr=rate, **FEW))
    [sheet] = tables.sheets("table_claim", Scores.of(runs))
    [(_, rows)] = sheet.blocks
    rates = ("unlearn_lr 0.001", "unlearn_lr 0.004")
    assert [name for name, _ in rows] == [f"{kind}, {rate}" for kind in ("GA", "All methods") for rate in rates]


def test_a_verdict_is_the_whole_intervals(monkeypatch):
    """The paper claims: text only leaves less of free answers, image + text less of choices with the image."""
    ends = {"forget_free": [(-9, -1), (1, 9), (-9, 9)], "forget_image": [(-9, -1), (1, 9), (-9, 9)]}
    ends |= {path.KEPT: [(1, 9)] * 3}
    rows = [
        {"method": "all", "what": what, "place": place, "value": 0, "low": low / 100, "high": high / 100}
        for what, some in ends.items()
        for place, (low, high) in zip(path.PLACES, some, strict=True)
    ]
    frame = pd.DataFrame(rows).assign(n_replicates=3)
    monkeypatch.setattr(tables.path, "between_modalities", lambda *given: pd.concat([frame, frame.assign(method="ga")]))
    gates = pd.DataFrame([("generation", "", "exact", "both", "closed")], columns=[*KEY, "view", "gate"])
    choices = [("classification", "likelihood", "accuracy", "image_text", "open")]
    gates = pd.concat([gates, pd.DataFrame(choices, columns=gates.columns)])
    points = pd.DataFrame({"set": ["celebrity"]})
    scores = SimpleNamespace(kept_by_person={"both": None}, gates=gates, of_a_grid="", points=points)
    found = tables.verdicts(scores).reset_index()
    said = {name: rows["verdict"].tolist() for name, rows in found.groupby("compared")}
    shut = [f"{verdict} (gate closed)" for verdict in ("supported", "not supported", "undecided")]
    opened = ["not supported", "supported", "undecided"]
    assert said == {
        "left on Forget, free answers (paper: less after text only)": shut,
        "left on Forget, likelihood, image + text (paper: less after image + text)": opened,
        "kept on Retain and Celebrity": ["no claim"] * 3,
    }
    assert found["gap closed"].tolist() == ["25%"] * 3 + ["50%"] * 3 + ["75%"] * 3
    monkeypatch.setattr(tables.path, "between_modalities", lambda *given: pd.DataFrame())
    assert tables.verdicts(scores).empty
    scores.of_a_grid = "runs of one method differ in exams"
    assert tables.verdicts(scores)["verdict"].tolist() == ["not tested: runs of one method differ in exams"]


def test_an_edge_is_said_of_the_whole_interval(known, monkeypatch):
    model = {"method": "ga", "variant": "canonical", "modality": "multimodal", "after": ""}
    ends = {0.8: (0.2, 0.11, 0.3), 1.2: (0.0, -0.09, 0.09)}
    rows = [model | {"times": times, "value": v, "low": low, "high": high} for times, (v, low, high) in ends.items()]
    other = [model | {"modality": "unimodal", "times": 0.8, "value": np.nan, "low": np.nan, "high": np.nan}]
    other += [model | {"modality": "unimodal", "times": 1.2, "value": 0.1, "low": 0.0, "high": 0.2}]
    monkeypatch.setattr(tables.path, "edges", lambda *given: pd.DataFrame(rows + other))
    found = tables.edges(known)
    assert found.loc["GA (image + text)"].tolist() == ["+20 [+11, +30]: on an edge", "+0 [−9, +9]: hardly matters"]
    assert found.loc["GA (text only)"].tolist() == ["the path does not go so far", "+10 [+0, +20]: undecided"]
    monkeypatch.undo()
    assert len(tables.edges(known).columns) == 2, "of runs with paths"
    assert tables.edges(replace(known, points=path.no_points())).empty


def test_without_celebrities_nothing_is_said_of_them(known):
    scores = replace(known, points=known.points[known.points["set"] != "celebrity"])
    (first, *_), [pairs] = (tables.sheets(name, scores) for name in ("table_path", "table_pairs"))
    for sheet in (first, pairs):
        assert "Kept: likelihood about Retain, asked in both views." in sheet.markdown()
    assert "There is no path about these people beside an oracle's." in first.markdown()
    assert not any("celebrities" in part for part in report.paragraph(scores) if isinstance(part, str))


def test_what_varies_alone_within_a_replicate_is_a_source_of_its_own():
    """By hand: two scores that differ by d have the variance d² / 2; nothing is subtracted for the same people."""
    row = {"method": "ga", "variant": "canonical", "modality": "multimodal", "after": "", "view": "both"}
    row |= {"task": "classification", "scoring": "likelihood", "metric": "accuracy", "n_profiles": 10, "replicate": 0}
    row |= {"low": 0.1, "high": 0.9, "set": "forget", "train_seed": 0, "unlearn_seed": 0, "shot_seed": 0, "bits": ""}
    row["data_seed"] = 0
    drawn = [{"value": 0.5}, {"value": 0.7, "train_seed": 1}, {"value": 0.4, "bits": "other"}]
    known = tables.sources(pd.DataFrame([row | one | {"model": "GA"} for one in drawn])).set_index("factor")
    assert list(known.index) == ["people", "replicate", "train_seed", "bits"] and (known["set"] == "forget").all()
    assert known.loc["train_seed", "variance"] == pytest.approx(0.02)
    assert known.loc["bits", "variance"] == pytest.approx(0.005) and known.loc["bits", "levels"] == 2
    assert np.isnan(known.loc["replicate", "sd"]) and known.loc["people", "sd"] == pytest.approx(0.4 / 2.262157)


def test_the_error_of_people_is_subtracted_only_from_what_draws_them():
    """Two replicates (.5 and .7) by two orders (.1 more). The intervals are 2 · 2.262 · .1 wide: the error is .1."""
    row = {"method": "ga", "model": "GA", "view": "both", "n_profiles": 10, "data_seed": 0, "replicate": 0}
    row |= dict(zip(KEY, ("classification", "likelihood", "accuracy"), strict=True))
    own, same = 0.02 - 0.01, 0.02
    for given, drawn_by, set_name, expected in (
        (False, "replicate", "forget", own), (False, "replicate", "retain", same), (True, "replicate", "forget", same),
        (False, "data_seed", "forget", own), (False, "data_seed", "retain", own), (True, "data_seed", "retain", same),
    ):  # fmt: skip
        rows = [
            row | {"set": set_name, drawn_by: draw, "unlearn_seed": order}
            | {"value": value, "low": value - 0.2262, "high": value + 0.2262}
            for draw, order, value in ((0, 0, 0.5), (0, 1, 0.6), (1, 0, 0.7), (1, 1, 0.8))
        ]  # fmt: skip
        variance = tables.sources(pd.DataFrame(rows), given).set_index("factor")["variance"]
        assert variance["replicate"] == pytest.approx(expected, rel=1e-3)
        assert variance["unlearn_seed"] == pytest.approx(0.005)


def test_health_adds_up_and_its_reasons_stand_below(gated):
    table = frame("table_health", gated).dropna(subset=["value"])
    whole = table.groupby(["method", "modality", "set", "view"])["value"].sum()
    assert whole.to_numpy() == pytest.approx(1) and set(table["view"]) == {"image_text", "text", "both"}
    repeated = table.query("method == 'npo' and metric == 'repeated'")
    assert (repeated["value"] == 1).all() and repeated["why"].str.contains("100 %").all()
    text = tables.sheets("table_health", gated)[0].markdown()
    assert "‡ NPO (text only): collapsed in 3 of 3; in the first of them 100 % of answers broken (image + text)" in text
    assert "only their form shows gibberish" in text and line(text, "NPO (text only) ‡ 3 of 3, text")[4].startswith(
        "100.0"
    )


def test_published_figures_have_values_and_sources():
    figures = published.load()
    assert len(figures) == 287 and figures["source"].notna().all()
    assert set(figures["kind"]) == {"published", "re-evaluation", "reproduction"}
    issue = figures[figures["source"].str.contains("issue #20") & (figures["metric"] == "rougeL")]
    assert issue[issue["method"] == "GA"].set_index("set")["value"].to_dict() == {"Forget": 0.215, "Retain": 0.1788}
    assert figures["value"].notna().all() and figures["forget_ratio"].isin((5, 10, 15)).all()
