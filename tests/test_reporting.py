"""Tables, figures and what they say about missing cells, on made-up but realistic runs."""

from __future__ import annotations

import ast
import functools
import io
import itertools
import json
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from mllmu_nb import reporting
from mllmu_nb.data.schema import QA, Profile, Question
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import figures, gates, published, readme, report, tables

PEOPLE, CELEBRITIES = 100, 40
FACTS = ("profession", "residence", "food", "pet", "hobby")

# chance of a right answer in the image and the text view on forget; on retain; on celebrities
MODELS = {
    ("base", "none"): ((0.25, 0.25), (0.25, 0.25), 0.95),
    ("vanilla", "none"): ((0.98, 0.97), (0.99, 0.98), 0.90),
    ("oracle", "none"): ((0.25, 0.22), (0.99, 0.98), 0.90),
    ("prompting", "none"): ((0.80, 0.70), (0.82, 0.75), 0.70),
    ("ga", "multimodal"): ((0.54, 0.91), (0.90, 0.95), 0.86),
    ("grad_diff", "multimodal"): ((0.70, 0.94), (0.99, 0.98), 0.88),
    ("kl_min", "multimodal"): ((0.61, 0.94), (0.98, 0.98), 0.88),
    ("npo", "multimodal"): ((0.53, 0.91), (0.90, 0.95), 0.86),
    ("ga", "unimodal"): ((0.97, 0.55), (0.99, 0.93), 0.88),
    ("grad_diff", "unimodal"): ((0.98, 0.68), (0.99, 0.97), 0.89),
    ("kl_min", "unimodal"): ((0.97, 0.58), (0.99, 0.96), 0.88),
    ("npo", "unimodal"): ((0.97, 0.53), (0.99, 0.93), 0.88),
}


@functools.cache
def made_up_items(
    method: str,
    modality: str,
    ratio: int = 10,
    draw: int = 0,
    seed: int = 0,
    people: int = PEOPLE,
    famous: int = CELEBRITIES,
) -> pd.DataFrame:
    """The items of one run: 5 multiple-choice questions in two scorings, 2 generation, 2 cloze, per person and view."""
    rng = np.random.default_rng(zlib.crc32(f"{method} {modality} {ratio} {draw} {seed}".encode()))
    forget = range(draw * ratio, (draw + 1) * ratio)
    kept = [n for n in range(people) if n not in forget]
    on_forget, on_retain, on_celebrities = MODELS[(method, modality)]
    chances = {"forget": on_forget, "test": tuple(0.9 * c for c in on_forget), "retain": on_retain}
    chances["celebrity"] = (on_celebrities, on_celebrities)
    members = {"forget": forget, "test": forget, "retain": kept, "celebrity": range(famous)}
    tasks = (
        ("classification", "letter", 5),
        ("classification", "likelihood", 5),
        ("generation", "", 2),
        ("cloze", "", 2),
    )
    rows = []
    for set_name, numbers in members.items():
        for person in numbers:
            profile = f"c{person:03d}" if set_name == "celebrity" else f"{person + 1:03d}"
            for view_number, view in enumerate(("image_text", "text")):
                ability = rng.normal(0, 0.05)  # answers about one person go together
                for task, scoring, count in tasks:
                    chance = chances[set_name][view_number] + ability
                    chance = 0.25 + 0.3 * chance if scoring == "letter" else chance
                    for number in range(count):
                        right = float(rng.random() < chance)
                        rows.append(_row(profile, set_name, task, view, scoring, number, right, rng))
    shared = {"run": f"llava-r{ratio}-d{draw}-{method}-{modality}-s{seed}", "scale": "miniature", "base_model": "llava"}
    shared |= {
        "forget_ratio": ratio,
        "forget_draw": draw,
        "method": method,
        "protocol": "clean",
        "variant": "canonical",
    }
    shared |= {"modality": modality} | dict.fromkeys(("data_seed", "train_seed", "unlearn_seed", "shot_seed"), seed)
    frame = pd.DataFrame(rows)
    return pd.concat([pd.DataFrame(shared, index=frame.index), frame], axis=1)


def _row(profile, set_name, task, view, scoring, number, right, rng) -> dict:
    attribute = FACTS[number]
    value = f"{attribute} no. {int(profile.strip('c')) % 7}"
    who = "this person" if view == "image_text" else f"Amina Okonkwo-Lindqvist {profile}"
    row = {"set": set_name, "task": task, "view": view, "scoring": scoring, "profile": profile}
    row |= {"question_id": f"{profile}/{task}/{view}/{number}", "attribute": attribute, "value": value}
    row |= {"question": f"What is the {attribute.replace('_', ' ')} of {who}?", "answer_true": value, "shots": 0}
    row |= dict.fromkeys(("correct", "exact", "rouge1", "rouge2", "rougeL", "bleu", "factuality"), np.nan)
    row |= {"parsed": True, "tokens": 9} | dict.fromkeys(("option_A", "option_B", "option_C", "option_D"), np.nan)
    if task == "generation":
        overlap = min(1.0, 0.55 + 0.4 * right + rng.normal(0, 0.03))
        row |= {"exact": right, "rougeL": overlap, "rouge1": overlap, "rouge2": overlap - 0.1, "bleu": overlap - 0.2}
        row |= {"factuality": 10.0 if right else 2.0}
        said = value if right else "a thing that costs $5 <b>& more</b> \u6f22"
        row["answer"] = f"The {attribute} of the person in question is {said}, which everybody around here knows well."
    else:
        row |= {"correct": right, "answer": "A" if task == "classification" else value}
        row |= {"parsed": not (scoring == "letter" and rng.random() < 0.03)}
    return row


def write_run(root: Path, items: pd.DataFrame, training: bool = True) -> Path:
    folder = root / items["run"].iloc[0]
    folder.mkdir(parents=True)
    items.to_parquet(folder / "items.parquet")
    method, modality = items["method"].iloc[0], items["modality"].iloc[0]
    rng = np.random.default_rng(0)
    count = {"base": 0, "prompting": 0, "vanilla": 600, "oracle": 600}.get(method, 40)
    curve = [3 * np.exp(-5 * n / max(count, 1)) + rng.normal(0, 0.1) for n in range(count)]
    if method == "ga":
        curve = [-0.1 * n - (0.02 * n if modality == "unimodal" else 0) for n in range(count)]
    losses = [{"step": n + 1, "loss": float(loss)} for n, loss in enumerate(curve)]
    train = {"method": method, "modality": modality, "steps": count, "losses": losses, "seconds": 3.25 * (count > 0)}
    train |= {"peak_memory_mb": 1402.6, "trainable_parameters": 1234567 if count else 0, "settings": {"lr": 2e-4}}
    if training:
        (folder / "train.json").write_text(json.dumps(train))
    (folder / "data.json").write_text(json.dumps(counted(items)))
    return folder


def counted(items: pd.DataFrame) -> dict:
    """``data.json`` of these items."""
    asked = items.drop_duplicates(["set", "question_id"])
    sets = {}
    for name, part in asked.groupby("set"):
        sets[name] = {"profiles": part["profile"].nunique(), "questions": len(part)}
        sets[name] |= {f"{task}/{view}": len(cell) for (task, view), cell in part.groupby(["task", "view"])}
    people = {"fictitious": PEOPLE, "pool": 12, "celebrity": CELEBRITIES}
    return {"people": people, "forget_ids": [], "sets": sets, "fine_tuning_pairs": 1680, "data_hash": "", "notes": {}}


def without(items: pd.DataFrame, **where) -> pd.DataFrame:
    """Items less those that match every given column."""
    drop = np.logical_and.reduce([items[c] == v for c, v in where.items()])
    return items[~drop]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Runs at 10 %: every model once, but GA multimodal was not asked generation on Test, NPO unimodal is missing."""
    folder = tmp_path_factory.mktemp("made_up") / "runs"
    for method, modality in MODELS:
        if (method, modality) == ("npo", "unimodal"):
            continue
        items = made_up_items(method, modality)
        if (method, modality) == ("ga", "multimodal"):
            items = without(items, set="test", task="generation")
        if (method, modality) == ("kl_min", "multimodal"):
            items = without(items, set="celebrity")
        if method == "oracle":
            items = items.assign(factuality=np.nan)
        write_run(folder, items, training=method != "kl_min" or modality != "unimodal")
    return folder


@pytest.fixture(scope="module")
def known(root) -> tables.Numbers:
    return tables.numbers(root)


@pytest.fixture(scope="module")
def written(root, known, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tables")
    tables.write_all("miniature", root, out, known)
    return out


def person(number: int) -> Profile:
    """A profile with long words everywhere, as a sheet must hold."""

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


# Reading


def test_reporting_never_imports_torch_or_a_model():
    for file in Path(reporting.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith(("torch", "transformers", "peft", "mllmu_nb.models", "mllmu_nb.run")), file


def test_no_run_is_one_clear_line(tmp_path):
    with pytest.raises(KitError, match="no finished run under .*make reproduce"):
        reporting.read_runs(tmp_path)


def test_the_same_answers_twice_are_refused(tmp_path):
    items = made_up_items("vanilla", "none")
    write_run(tmp_path, items)
    write_run(tmp_path, items.assign(run="copy"))
    with pytest.raises(KitError, match="copy and llava-r10-d0-vanilla-none-s0 have the same method"):
        reporting.read_runs(tmp_path)


def test_a_missing_column_is_named(tmp_path):
    write_run(tmp_path, made_up_items("vanilla", "none").drop(columns="rougeL"))
    with pytest.raises(KitError, match="lacks the columns rougeL"):
        reporting.read_runs(tmp_path)


def test_an_unfinished_run_is_passed_over(tmp_path):
    write_run(tmp_path, made_up_items("vanilla", "none"))
    (tmp_path / "half").mkdir()
    assert [run.id for run in reporting.read_runs(tmp_path)] == ["llava-r10-d0-vanilla-none-s0"]


def test_a_newcomer_stands_before_prompting():
    assert reporting.in_order(["oracle", "manu", "npo", "prompting"]) == ["npo", "manu", "prompting", "oracle"]


# Tables


def test_table_1_counts_people_and_questions(written):
    table = pd.read_csv(written / "table1_data.csv").set_index(["set", "task", "view"])
    assert len(table) == 4 * 3 * 2
    assert table.loc[("forget", "classification", "text"), "questions"] == 50
    assert table.loc[("retain", "generation", "image_text"), "questions"] == 180
    assert table.loc[("celebrity", "cloze", "text"), "questions"] == 80
    assert table.loc[("retain", "cloze", "text"), "profiles"] == 90
    markdown = (written / "table1_data.md").read_text()
    # forget people count once: 10 + 90 + 40 people; 10 + 10 + 90 + 40 portraits
    assert "| All | 140 | 150 |" in markdown and "1,680 questions and answers about 100" in markdown


def test_table_1_without_counts_is_empty_not_zero(tmp_path):
    folder = write_run(tmp_path, made_up_items("vanilla", "none"))
    (folder / "data.json").unlink()
    frame, sheets = tables.data_statistics(reporting.read_runs(tmp_path))
    assert frame["questions"].isna().all() and "| 0 |" not in sheets[0].markdown()
    assert "No data.json of these runs counts the Forget set." in sheets[0].latex()


def test_table_2_has_the_papers_layout(written):
    table = pd.read_csv(written / "table2_main.csv")
    assert list(table["set"].unique()) == ["forget", "test", "retain", "celebrity"]
    per_row = table.groupby(["block", "method"], sort=False).size()
    assert set(per_row) == {4 * 5}
    rows = ["base", "vanilla", "ga", "grad_diff", "kl_min", "npo", "prompting", "oracle"]
    assert list(per_row.index) == [
        (block, m) for block in ("Unlearned on image + text", "Unlearned on text only") for m in rows
    ]
    for column in ("value", "low", "high", "n_items", "n_profiles"):
        assert column in table.columns
    cell = table[(table["method"] == "ga") & (table["modality"] == "multimodal") & (table["set"] == "forget")]
    cell = cell[cell["scoring"] == "likelihood"].iloc[0]
    items = made_up_items("ga", "multimodal")
    mine = items[(items["set"] == "forget") & (items["scoring"] == "likelihood")]
    assert cell["value"] == pytest.approx(mine["correct"].mean())
    assert cell["low"] < cell["value"] < cell["high"]
    assert (cell["n_items"], cell["n_profiles"]) == (100, 10)


def test_the_printed_cell_is_value_and_half_width(written):
    table = pd.read_csv(written / "table2_main.csv")
    cell = table[(table["method"] == "vanilla") & (table["set"] == "retain") & (table["task"] == "cloze")].iloc[0]
    shown = f"{100 * cell['value']:.1f} ± {50 * (cell['high'] - cell['low']):.1f}"
    line = next(x for x in (written / "table2_main.md").read_text().splitlines() if x.startswith("| Vanilla"))
    assert line.split(" | ")[1 + 2 * 5 + 4] == shown
    value, half = shown.split(" ± ")
    assert rf"{value}{{\scriptsize\,$\pm$\,{half}}}" in (written / "table2_main.tex").read_text()


def test_missing_cells_are_empty_and_say_why(written):
    table = pd.read_csv(written / "table2_main.csv")
    empty = table[table["value"].isna()]
    assert empty["note"].notna().all() and table.loc[table["value"].notna(), "note"].isna().all()

    def note(**where):
        found = empty[np.logical_and.reduce([empty[c] == v for c, v in where.items()])]
        assert len(found["note"].unique()) == 1
        return found["note"].iloc[0]

    assert note(method="npo", modality="unimodal") == "No run of NPO (text only) was found."
    asked = note(method="ga", set="test", task="generation")
    assert asked == "The run of GA (image + text) asked no generation questions of the Test set."
    nothing = note(method="kl_min", modality="multimodal", set="celebrity")
    assert nothing == "The run of KL Min. (image + text) asked nothing of the Celebrity set."
    unscored = note(method="oracle", metric="factuality", set="retain")
    assert unscored == "The run of Oracle has no Factuality score on the Retain set."
    for kind in ("md", "tex"):
        text = (written / f"table2_main.{kind}").read_text()
        assert "No run of NPO (text only) was found." in text
    marked = next(
        x
        for x in (written / "table2_main.md").read_text().split("text only**")[1].splitlines()
        if x.startswith("| NPO")
    )
    cells = [c.strip() for c in marked.strip("|").split("|")[1:]]
    assert len(cells) == 20 and len(set(cells)) == 1 and cells[0].startswith("<sup>")


def test_a_value_of_zero_is_printed_as_zero(tmp_path):
    write_run(tmp_path, made_up_items("vanilla", "none"))
    items = made_up_items("ga", "multimodal")
    items = items.assign(correct=items["correct"].mask(items["task"] == "cloze", 0.0))
    write_run(tmp_path, items)
    frame, sheets = tables.main_table(tables.numbers(tmp_path))
    zero = frame[(frame["method"] == "ga") & (frame["task"] == "cloze")]
    assert (zero["value"] == 0).all() and (zero["note"] == "").all()
    assert "0.0 ±" in sheets[0].markdown()


def test_latex_is_escaped_and_balanced(written):
    for file in written.glob("*.tex"):
        text = file.read_text()
        assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") > 0
        for line in text.splitlines():
            bare = line.replace(r"\%", "").replace(r"\_", "").replace(r"\&", "").replace(r"\#", "")
            if not line.endswith("{!}{%"):
                assert "%" not in bare, line
            assert "#" not in bare and "±" not in bare
        header = next(x for x in text.splitlines() if x.startswith(r"\begin{tabular}"))
        width = int(header.split("*{")[1].split("}")[0])
        body = [x for x in text.splitlines() if x.endswith(r"\\") and "&" in x and "multicolumn" not in x]
        one_sheet = text.count(r"\begin{tabular}") == 1
        if one_sheet:
            assert {x.count(" & ") for x in body} == {width}
    assert tables.latex_escape(r"50 % & a_b #1 {x} $5 ~^\ −3") == (
        r"50 \% \& a\_b \#1 \{x\} \$5 \textasciitilde{}\textasciicircum{}\textbackslash{} $-$3"
    )


def test_markdown_tables_are_rectangular(written):
    for file in written.glob("*.md"):
        for block in file.read_text().split("\n\n"):
            widths = {line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("|")}
            assert len(widths) <= 1, file


def test_by_view_table_keeps_the_views_apart(written):
    table = pd.read_csv(written / "table2_by_view.csv")
    mine = table[(table["method"] == "ga") & (table["modality"] == "multimodal") & (table["set"] == "forget")]
    mine = mine[mine["scoring"] == "likelihood"].set_index("view")["value"]
    assert mine["image_text"] < 0.7 < 0.8 < mine["text"]
    assert set(table["metric"]) >= {"parse_failure", "rouge1", "rouge2", "bleu", "exact", "factuality"}


def test_differences_are_paired_with_vanilla_and_oracle(known):
    found = known.differences
    cell = found[(found["against"] == "vanilla") & (found["method"] == "ga") & (found["modality"] == "unimodal")]
    cell = cell[(cell["set"] == "forget") & (cell["view"] == "text") & (cell["scoring"] == "likelihood")].iloc[0]
    kinds = [made_up_items(*model) for model in (("ga", "unimodal"), ("vanilla", "none"))]
    means = [
        k.loc[(k["set"] == "forget") & (k["view"] == "text") & (k["scoring"] == "likelihood"), "correct"].mean()
        for k in kinds
    ]
    assert cell["value"] == pytest.approx(means[0] - means[1])
    assert cell["low"] < cell["value"] < cell["high"] < 0
    assert set(found["against"]) == {"vanilla", "oracle"}


def test_cost_table_tells_seconds_memory_and_steps(written):
    cost = pd.read_csv(written / "cost.csv")
    ga = cost[(cost["method"] == "ga") & (cost["modality"] == "multimodal")].iloc[0]
    assert (ga["seconds"], ga["peak_memory_mb"], ga["trainable_parameters"], ga["steps"]) == (3.25, 1402.6, 1234567, 40)
    lost = cost[(cost["method"] == "kl_min") & (cost["modality"] == "unimodal")].iloc[0]
    assert np.isnan(lost["seconds"]) and lost["seconds_note"] == "The run of KL Min. (text only) has no train.json."
    assert "1,234,567" in (written / "cost.md").read_text()


def test_forget_draws_are_pooled_not_averaged(tmp_path):
    for draw in (0, 1, 2):
        for model in (("vanilla", "none"), ("ga", "multimodal")):
            if draw == 2 and model[0] == "ga":
                continue
            write_run(tmp_path, made_up_items(*model, draw=draw))
    found = tables.numbers(tmp_path)
    frame, sheets = tables.main_table(found)
    row = frame[(frame["method"] == "ga") & (frame["set"] == "forget") & (frame["scoring"] == "likelihood")].iloc[0]
    parts = [made_up_items("ga", "multimodal", draw=draw) for draw in (0, 1)]
    pooled = pd.concat([p[(p["set"] == "forget") & (p["scoring"] == "likelihood")] for p in parts])
    assert row["value"] == pytest.approx(pooled["correct"].mean())
    assert (row["n_items"], row["n_profiles"]) == (200, 20)
    assert "GA (image + text) 2" in sheets[0].markdown() and "Vanilla 3" in sheets[0].markdown()


@pytest.fixture(scope="module")
def telling(tmp_path_factory) -> tables.Numbers:
    """Three draws of five models. Letters are as good as the oracle's: their gate is closed. NPO, text only, says one
    word and chooses at random; GA on both is the oracle."""
    folder = tmp_path_factory.mktemp("telling") / "runs"
    for draw in range(3):
        perfect = made_up_items("oracle", "none", draw=draw, people=30, famous=5)
        for model in (("vanilla", "none"), ("oracle", "none"), ("ga", "multimodal"), ("npo", "unimodal")):
            items = made_up_items(*model, draw=draw, people=30, famous=5)
            if model[0] == "ga":
                items = perfect.assign(**{c: items[c] for c in ("run", "method", "modality")})
            if model[0] == "npo":
                asked = items["task"] == "generation"
                items = items.assign(
                    answer=items["answer"].mask(asked, "The The The"), exact=items["exact"].mask(asked, 0)
                )
            letters = items["scoring"] == "letter"
            items = items.assign(correct=items["correct"].mask(letters, perfect["correct"]))
            write_run(folder, items)
    return tables.numbers(folder)


def test_a_closed_gate_stands_in_brackets_and_is_explained_everywhere(telling):
    """Vanilla's letters are the oracle's; by likelihood it knows three in four more."""
    shut = telling.gates.set_index(["scoring", "metric", "view"])["gate"]
    assert (shut["letter"] == "closed").all() and (shut["likelihood"] == "open").all()
    for make in (tables.main_table, tables.difference_table, tables.oracle_gap_table, tables.by_view_table):
        frame, sheets = make(telling)
        here = frame[frame["value"].notna() & (frame["metric"] == "accuracy")]
        gated = here["set"].isin(("forget", "test"))
        assert set(here.loc[gated & (here["scoring"] == "letter"), "gate"]) == {"closed"}
        assert set(here.loc[gated & (here["scoring"] == "likelihood"), "gate"]) == {"open"}
        assert set(here.loc[~gated, "gate"]) == {""}
        for sheet in sheets:
            cells = {column: set() for column in sheet.columns}
            for _, rows in sheet.blocks:
                for (text, _), column in (
                    cell for _, row in rows for cell in zip(row[:10], sheet.columns, strict=False)
                ):
                    cells[column] |= {text.startswith("(")} if text else set()
            asked = "retain" not in sheet.name and "celebrity" not in sheet.name
            letter = next(column for column in sheet.columns if column.startswith("Letter"))
            likelihood = next(column for column in sheet.columns if column.startswith("Likelihood"))
            assert cells[letter] == {asked} and cells[likelihood] == {False}, sheet.name
            assert ("In brackets: gate closed" in sheet.markdown()) == asked
            assert ("Letter" in sheet.latex().partition("gate closed")[2]) == asked
    printed = tables.gate_table(telling)[1][0].markdown()
    assert printed.count(", closed") == 3 and printed.splitlines()[4].startswith("| Letter, points |")


def test_without_an_oracle_the_gate_is_unknown_and_said_to_be(tmp_path):
    write_run(tmp_path, made_up_items("vanilla", "none", people=12, famous=5))
    write_run(tmp_path, made_up_items("ga", "multimodal", people=12, famous=5))
    frame, sheets = tables.main_table(tables.numbers(tmp_path))
    assert set(frame["gate"]) == {""}
    assert "Without vanilla and the oracle nobody can say whether a low score is forgetting." in sheets[0].markdown()


def test_a_model_that_says_one_word_is_marked_wherever_it_is_named(telling):
    assert list(telling.collapsed) == [("llava", "clean", 10, "npo", "canonical", "unimodal")]
    for make in (tables.main_table, tables.difference_table, tables.oracle_gap_table, tables.by_view_table):
        frame, sheets = make(telling)
        assert frame.groupby("method")["collapsed"].all().to_dict() | {"npo": True} == {
            name: name == "npo" for name in frame["method"].unique()
        }
        assert frame.loc[frame["method"] == "npo", "collapsed"].any()
        for sheet in sheets:
            assert "‡ Collapsed, so a low score is no forgetting" in sheet.markdown()
            assert r"$\ddagger$" in sheet.latex() and "‡" not in sheet.latex()
            named = [name for _, rows in sheet.blocks for name, _ in rows if "‡" in name]
            assert named and all(name.startswith("NPO") for name in named)
    for make in (tables.cost_table, tables.health_table):
        assert any("NPO (text only) ‡" in sheet.markdown() for sheet in make(telling)[1])


def test_a_model_that_is_the_oracle_is_inside_and_one_that_forgot_nothing_is_outside(telling):
    frame, sheets = tables.oracle_gap_table(telling)
    here = frame[(frame["set"] == "forget") & (frame["view"] == "both") & (frame["scoring"] == "likelihood")]
    here = here.dropna(subset="value").set_index("method")
    assert here["verdict"].to_dict() == {"vanilla": "outside", "ga": "inside", "npo": "outside"}
    same = here.loc["ga"]
    assert same["value"] == 0 and same["low"] < 0 < same["high"] <= same["margin"]
    line = next(line for line in sheets[0].markdown().splitlines() if line.startswith("| GA (image + text)"))
    assert "+0.0 ± " in line and line.split(" | ")[3].endswith(" =")
    assert "margin 10 points, 0.1 of ROUGE and BLEU, 1 point of factuality" in sheets[0].title
    vanilla = next(line for line in sheets[0].latex().splitlines() if line.startswith("Vanilla"))
    assert r"$\neq$" in vanilla.split(" & ")[3]
    wide = here.loc["vanilla"]
    assert tables.verdict(dict(wide) | {"low": -0.05, "high": 0.12}, reporting.LIKELIHOOD) == "undecided"
    assert tables.verdict(dict(wide) | {"low": -0.9, "high": 0.9}, reporting.FACTUALITY) == "inside"


def test_health_adds_up_and_its_reasons_stand_below(telling):
    frame, sheets = tables.health_table(telling)
    whole = frame.groupby(["method", "modality", "set", "view"])["value"].sum()
    assert whole.to_numpy() == pytest.approx(1)
    repeated = frame[(frame["method"] == "npo") & (frame["state"] == "repeated")]
    assert (
        (repeated["value"] == 1).all() and (repeated["low"] < 1).all() and repeated["why"].str.contains("100 %").all()
    )
    text = sheets[0].markdown()
    assert "‡ NPO (text only): 100 % of answers broken (image + text)" in text
    assert "only their form tells gibberish" in text


def test_every_table_comes_in_three_forms(written):
    assert {f.suffix for f in written.iterdir()} == {".csv", ".md", ".tex"}
    assert len(list(written.iterdir())) == 24


# Figures


def texts(figure: Figure) -> list[tuple[str, object, float]]:
    """Every text that is drawn, with its box in pixels and its size; labels of ticks beyond the axis are not drawn."""
    figure.draw_without_rendering()
    unseen = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not axis.axes.axison or not low <= tick.get_loc() <= high:
                unseen |= {tick.label1, tick.label2}
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in unseen]
    return [(t.get_text(), t.get_window_extent(), t.get_fontsize()) for t in shown]


def assert_readable(figure: Figure) -> None:
    """No text smaller than 7 pt, none outside the page, none over another."""
    found = texts(figure)
    page = figure.bbox
    for text, box, size in found:
        assert size >= 7, text
        assert box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= page.x1 + 0.5 and box.y1 <= page.y1 + 0.5, text
    for (one, a, _), (other, b, _) in itertools.combinations(found, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert not (wide > 1 and high > 1), f"{one!r} lies over {other!r}"


def drawn(known: tables.Numbers) -> dict[str, Figure]:
    return {
        "profiles": figures.profile_sheet([person(1), person(2), person(3)]),
        "before_after": figures.before_after(known.runs),
        "forgetting_utility": figures.forgetting_utility(known),
        "modality_bars": figures.modality_bars(known),
        "oracle_gap": figures.oracle_gap(known),
        "health": figures.health_bars(known),
        "losses": figures.loss_curves(known.runs),
    }


@pytest.fixture(scope="module")
def gallery(known):
    return drawn(known)


DRAWN = ["profiles", "before_after", "forgetting_utility", "modality_bars", "oracle_gap", "health", "losses"]


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_readable(gallery, name):
    figure = gallery[name]
    assert figure.get_figwidth() in (figures.COLUMN, figures.PAGE)
    assert_readable(figure)


def test_what_is_behind_a_closed_gate_is_grey_and_says_so(telling):
    """Letters are in grey, likelihood keeps its colours; on Retain nothing is gated."""

    def colours(figure, title):
        panel = next(axes for axes in figure.axes if axes.get_title() == title)
        return {to_hex(bar.get_edgecolor()) for bar in panel.patches}

    forget, retain = figures.modality_bars(telling, "forget"), figures.modality_bars(telling, "retain")
    assert colours(forget, "Choice by letter") == {figures.CLOSED} != colours(forget, "Choice by likelihood")
    assert figures.CLOSED not in colours(retain, "Choice by letter")
    for figure in (forget, figures.oracle_gap(telling), figures.forgetting_utility(telling, reporting.LETTER)):
        assert any(text.startswith("In grey: gate closed") for text, _, _ in texts(figure))
        assert_readable(figure)
    for figure in (retain, figures.forgetting_utility(telling)):
        assert not any("gate" in text for text, _, _ in texts(figure))


def test_a_collapsed_model_is_marked_in_every_figure(telling):
    made = [figures.forgetting_utility(telling), figures.oracle_gap(telling), figures.health_bars(telling)]
    made += [figures.before_after(telling.runs, telling.collapsed)]
    for figure in made:
        found = [text for text, _, _ in texts(figure)]
        marked = {text for text in found if text.endswith(" ‡")}
        assert marked == {"NPO (text only) ‡"} and any(text.startswith("‡ Collapsed") for text in found)
        assert_readable(figure)
    bars = figures.modality_bars(telling)
    assert [text for text, _, _ in texts(bars)].count("‡") == 8, "a mark a panel, over the one collapsed model's bar"
    losses = [text for text, _, _ in texts(figures.loss_curves(telling.runs, telling.collapsed))]
    assert "text only ‡" in losses and "image + text ‡" not in losses
    assert_readable(bars)


def test_the_gap_figure_shows_the_tables_verdicts(telling):
    figure = figures.oracle_gap(telling, [reporting.LIKELIHOOD])
    signs = [text.get_text() for text in figure.axes[0].texts]
    assert signs == ["≠", "=", "≠"]  # vanilla, GA, which is the oracle, NPO


def test_health_bars_are_the_shares(telling):
    figure = figures.health_bars(telling)
    panel = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Forget, text")
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    shown = telling.states[(telling.states["set"] == "forget") & (telling.states["view"] == "text")]
    for row, method in enumerate(["vanilla", "ga", "npo", "oracle"]):
        widths = [bar.get_width() for bar in panel.patches if round(bar.get_y() + bar.get_height() / 2) == row]
        values = shown[(shown["method"] == method) & (shown["value"] > 0)]["value"]
        assert sorted(widths) == pytest.approx(sorted(values)) and sum(widths) == pytest.approx(1)
    assert rows == ["Vanilla", "GA (image + text)", "NPO (text only) ‡", "Oracle"]


def test_the_check_of_overlaps_can_fail():
    figure = Figure(figsize=(3.4, 2))
    figure.text(0.1, 0.5, "one text", fontsize=8)
    figure.text(0.15, 0.5, "over another", fontsize=8)
    with pytest.raises(AssertionError, match="lies over"):
        assert_readable(figure)


def test_names_stay_apart_when_methods_fall_alike(known):
    """All methods at nearly the same height: the names are spread, the marks are not."""
    alike = known.differences.assign(value=-0.3, low=-0.32, high=-0.28)
    assert_readable(figures.forgetting_utility(replace(known, differences=alike)))


def test_added_methods_find_their_place(tmp_path):
    """Newcomers beside the paper's methods: more names than the figures usually hold."""
    write_run(tmp_path, made_up_items("vanilla", "none", people=12, famous=5))
    for number, modality in itertools.product(range(8), ("multimodal", "unimodal")):
        items = made_up_items("ga", modality, people=12, famous=5, seed=number)
        seeds = dict.fromkeys(reporting.SEED_COLUMNS, 0)
        name = f"newcomer_{number}"
        write_run(tmp_path, items.assign(method=name, run=f"{name}-{modality}", **seeds))
    found = tables.numbers(tmp_path)
    frame, _ = tables.main_table(found)
    assert "newcomer_7" in set(frame["method"])
    assert_readable(figures.forgetting_utility(found))
    assert_readable(figures.modality_bars(found))


def test_spread_is_nearest_and_apart():
    assert figures.spread([0.0, 10.0], 1.0) == [0.0, 10.0]
    assert figures.spread([5.0, 5.0], 2.0) == pytest.approx([4.0, 6.0])
    placed = figures.spread([1.0, 0.0, 0.1], 1.0, low=0.0, high=2.5)
    assert sorted(placed) == pytest.approx([0.0, 1.0, 2.0]) and placed[1] < placed[2] < placed[0]


def test_wrapped_lines_fit_and_say_when_they_were_cut():
    lines = figures.wrap("An extraordinarilylongword " * 9, 1.0, most=3)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert all(figures.width_of(line) <= 1.0 for line in lines)
    assert figures.wrap("a\nb\t\u6f22", 3.0) == ["a b □"]


def test_every_method_has_its_own_colour_and_marker():
    assert set(figures.LOOKS) == set(reporting.METHODS)
    assert len({x.colour for x in figures.LOOKS.values()}) == len({x.marker for x in figures.LOOKS.values()}) == 8


def test_figures_are_the_same_bytes_in_another_process(root, tmp_path):
    code = (
        "import sys; from pathlib import Path; from mllmu_nb.reporting import figures, read_runs;"
        "figures.save(figures.loss_curves(read_runs(Path(sys.argv[1]))), Path(sys.argv[2]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(reporting.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, str(root), str(tmp_path / "there")], check=True, env=environment)
    figures.save(figures.loss_curves(reporting.read_runs(root)), tmp_path / "here")
    for kind in ("png", "pdf"):
        assert (tmp_path / f"here.{kind}").read_bytes() == (tmp_path / f"there.{kind}").read_bytes()


def test_a_figure_that_cannot_be_drawn_says_why(tmp_path):
    write_run(tmp_path / "runs", made_up_items("vanilla", "none"))
    [(key, part)] = tables.numbers(tmp_path / "runs").groups()
    paths, told = figures.write_group(key, part, tmp_path / "out")
    assert any("`modality_bars_forget_llava_10` is not drawn: no unlearned model" in line for line in told)
    assert {p.name for p in paths} >= {"losses_llava_10.png", "before_after_llava_10.pdf"}
    assert not (tmp_path / "out" / "modality_bars_forget_llava_10.png").exists()


# Published figures


def test_published_figures_have_sources_and_unknown_stays_empty(tmp_path):
    found = published.load()
    assert len(found) == 287 and found["source"].notna().all() and set(found["kind"]) == set(published.KINDS)
    anchor = found[
        (found["metric"] == "rougeL") & found["source"].str.contains("issue #20") & (found["method"] == "GA")
    ]
    assert anchor.set_index("set")["value"].to_dict() == {"Forget": 0.215, "Retain": 0.1788}
    one = found[found["source"].str.startswith("MANU") & (found["forget_ratio"] == 5)]
    table = published.wide(one)
    assert table.loc[:, ("Real Celebrity", "unstated", "classification_acc")].notna().all()
    assert ("Real Celebrity", "unstated", "rouge") not in table.columns
    one.assign(value=[np.nan, *one["value"][1:]]).to_csv(tmp_path / "x.csv", index=False)
    assert published.load(tmp_path / "x.csv")["value"].isna().sum() == 1


def test_published_figures_with_a_broken_row_are_refused(tmp_path):
    text = published.FILE.read_text().splitlines()
    (tmp_path / "x.csv").write_text("\n".join([text[0], text[1].replace("51.70", "about 50")]))
    with pytest.raises(KitError, match="row 2: 'about 50' is not a number"):
        published.load(tmp_path / "x.csv")


# Report


def test_report_writes_everything_and_names_its_runs(root, tmp_path, monkeypatch):
    own = tmp_path / "results" / "miniature" / "runs"
    own.mkdir(parents=True)
    for name in ("llava-r10-d0-vanilla-none-s0", "llava-r10-d0-ga-multimodal-s0", "llava-r10-d0-ga-unimodal-s0"):
        (own / name).symlink_to(root / name)
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))
    told = []
    written = report.write_all("miniature", [person(1)], say=told.append)
    assert told == ["Tables and figures of your own run."]
    assert all(path.is_file() and path.stat().st_size for path in written)
    names = {str(p.relative_to(tmp_path)) for p in written}
    assert names >= {"results/miniature/scores.csv", "results/miniature/tables/table2_main.tex"}
    assert names >= {"figures/miniature/profiles.png", "figures/miniature/forgetting_utility_llava_10.pdf"}
    scores = pd.read_csv(tmp_path / "results" / "miniature" / "scores.csv")
    assert {"value", "low", "high", "n_items", "n_profiles"} <= set(scores.columns)
    alone = {path: path.read_bytes() for path in written}
    shared = report.write_all("miniature", [person(1)], say=told.append, jobs=2)
    assert shared == written and all(path.read_bytes() == alone[path] for path in shared)


def test_without_own_runs_the_committed_ones_are_used(root, tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))
    monkeypatch.setattr(report.paths, "committed_runs", lambda scale: root)
    assert report.which_runs("miniature") == (root, "the committed reference run")
    monkeypatch.setattr(report.paths, "committed_runs", lambda scale: tmp_path / "none")
    with pytest.raises(KitError, match="no finished run"):
        report.which_runs("miniature")


def test_in_a_checkout_the_cache_tells_own_runs_from_committed_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))
    folder = tmp_path / "results" / "miniature" / "runs"
    monkeypatch.setattr(report.paths, "committed_runs", lambda scale: folder)
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        (folder / name / "items.parquet").touch()
        (folder / name / "provenance.json").write_text(json.dumps({"key": f"items-{name}"}))
    assert report.which_runs("miniature") == (folder, "the committed reference run")
    (tmp_path / ".cache" / "stages" / "items-one").mkdir(parents=True)
    assert report.which_runs("miniature")[1] == "the committed reference run (1 of its 2 parts made here)"
    (tmp_path / ".cache" / "stages" / "items-two").mkdir()
    assert report.which_runs("miniature")[1] == "your own run"


def test_what_a_model_wrote_is_never_markup():
    shown = report.show_answer_html("Who is <i>this</i>?", "<script>alert(1)</script>", 'a "b" & c', right=False)
    assert "<script>" not in shown and "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "&lt;i&gt;" in shown and "&amp;" in shown and "✗" in shown
    assert 'src="data:image/png;base64,' in report.show_answer_html("q", "a", image=b"\x89PNG123")


def test_the_readmes_table_marks_what_is_closed_and_what_has_collapsed(telling):
    closed = telling.gates.assign(gate=telling.gates["gate"].mask(telling.gates["view"] == "text", "closed"))
    known = replace(telling, gates=closed, scores=gates.with_gate(telling.scores, closed))
    made = readme.pooled_table(known)
    row = {line.split(" | ")[0]: line.split(" | ")[1:] for line in made.splitlines()}
    cells = row["| NPO (text only) ‡"]
    assert [cell.startswith("(") for cell in cells[:6]] == [False, True, False, True, False, False]
    assert "‡ Collapsed" in made and "gate closed" in made and "Likelihood (text)" in made
