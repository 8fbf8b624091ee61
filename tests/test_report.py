"""The whole report, the README's tables, and your own model next to the references."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from fake_runs import but, make, saying, write

import readme
from mllmu_nb import inputs, paths, stages
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import report, runs, tables
from mllmu_nb.reporting.beside import Beside
from mllmu_nb.reporting.runs import Scores

FEW = {"asked": {"classification": 2, "generation": 1, "cloze": 1}, "famous": 2}
FIGURES = "losses_llava_10.png"


def few_runs() -> list[runs.Run]:
    return [make("vanilla", **FEW), make("oracle", **FEW), make("ga", modality="multimodal", **FEW)]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A results folder with three runs; figures have their own tests."""

    def draw(scores, people, folder, source):
        (folder / FIGURES).write_bytes(b"drawn")
        return [f"- `losses_llava_10`: {len(scores.runs)} runs, {len(people)} people"]

    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))
    monkeypatch.setattr(report.figures, "write_all", draw)
    write(paths.results("miniature"), *few_runs())
    return tmp_path


def test_the_report_writes_everything_and_names_its_runs(home):
    lines = []
    written = report.write_all("miniature", say=lines.append)
    assert len(lines) == 2 and lines[1].startswith(
        "Tables and figures of the 3 runs in results/miniature/runs (people people-3, base"
    )
    names = {str(path.relative_to(home)) for path in written}
    assert names >= {"results/miniature/scores.csv", "results/miniature/runs.csv", f"figures/miniature/{FIGURES}"}
    assert names >= {f"results/miniature/tables/{name}.csv" for name in tables.TABLES}
    assert names >= {f"results/miniature/tables/{name}" for name in ("results.md", "results.tex", "appendix.tex")}
    assert all(path.is_file() and path.stat().st_size for path in written)
    scores = pd.read_csv(home / "results/miniature/scores.csv")
    assert {"run", "value", "low", "high", "n_items", "n_profiles", "gate"} <= set(scores)
    assert set(scores["run"]) == set(pd.read_csv(home / "results/miniature/runs.csv")["run"])
    captions = (home / "figures/miniature/captions.md").read_text()
    assert captions.startswith("<!-- made from results/miniature/runs") and "3 runs, 0 people" in captions
    again = {path: path.read_bytes() for path in written}
    assert report.write_all("miniature", say=lines.append) == written
    assert all(path.read_bytes() == content for path, content in again.items()), "the same bytes"


def test_a_full_disk_leaves_the_earlier_report_as_it_was(home, monkeypatch):
    earlier = [home / "results/miniature/scores.csv", home / f"figures/miniature/{FIGURES}"]
    for path in earlier:
        paths.writable(path.parent)
        path.write_text("earlier")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report.figures, "write_all", full)  # after scores and tables have been written
    with pytest.raises(KitError, match=r"cannot write the report \(No space left on device\)"):
        report.write_all("miniature", say=str)
    assert [path.read_text() for path in earlier] == ["earlier", "earlier"]
    files = [path for path in home.rglob("*") if path.is_file() and not {"runs", "people", ".cache"} & set(path.parts)]
    assert sorted(files) == sorted(earlier), "nothing is left behind"


def test_what_a_killed_report_left_behind_is_cleared(home):
    left = home / "results" / "miniature" / report.TEMPORARY / "tables"
    left.mkdir(parents=True)
    (left / "table2_main.csv").write_text("half")
    written = report.write_all("miniature", say=str)
    assert not left.exists() and "half" not in (home / "results/miniature/tables/table2_main.csv").read_text()
    assert not any(report.TEMPORARY in path.parts for path in written)


def test_a_report_leaves_a_run_alone_that_is_being_made(home):
    """Another shard may be asking its model in the same results folder while this one writes its report."""
    run = paths.runs(paths.results("miniature")) / "ga-unimodal-00000000"
    with stages.replacing(run) as unfinished:
        (unfinished / "answers.parquet").write_text("half")
        asked = unfinished.with_name("another.asked")
        asked.mkdir()
        written = report.write_all("miniature", say=str)
        assert (unfinished / "answers.parquet").read_text() == "half" and asked.is_dir()
    assert (run / "answers.parquet").is_file() and not any("answers.parquet" in path.name for path in written)


def test_without_a_run_there_is_no_report(home):
    with pytest.raises(KitError, match="no finished run under .*paper"):
        report.write_all("paper", say=str)


# -- reading runs -----------------------------------------------------------------------------------------------


def test_one_s_own_results_come_first_then_the_reference(home, monkeypatch, tmp_path):
    reference = tmp_path / "checkout" / "results" / "reference"
    monkeypatch.setattr(runs.paths, "reference", lambda: reference)
    assert runs.which_results("miniature") == (paths.results("miniature"), runs.OWN)
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "elsewhere"))
    with pytest.raises(KitError, match="make reproduce"):
        runs.which_results("miniature")
    write(reference, make("vanilla", **FEW))
    assert runs.which_results("miniature") == (reference, runs.COMMITTED)
    with pytest.raises(KitError, match="no finished run"):
        runs.which_results("paper")


def test_what_is_read_is_what_was_written(home):
    stored, made = Scores.read(paths.results("miniature")), Scores.of(few_runs())
    pd.testing.assert_frame_equal(stored.cells, made.cells)
    pd.testing.assert_frame_equal(stored.judged, made.judged)


def test_the_order_of_runs_changes_no_number():
    """Intervals draw people in the order in which they come."""
    some = [make(name, draw=draw, sets=("forget",), **FEW) for name in ("vanilla", "oracle") for draw in range(3)]
    pd.testing.assert_frame_equal(Scores.of(some).cells, Scores.of(some[::-1]).cells)


def test_a_damaged_run_is_one_clear_line(home):
    folder = next(paths.runs(paths.results("miniature")).iterdir())
    (folder / "answers.parquet").write_bytes((folder / "answers.parquet").read_bytes()[:-9])
    with pytest.raises(KitError, match="was changed or cut off: make the run again"):
        Scores.read(paths.results("miniature"))
    (folder / "answers.parquet").unlink()
    with pytest.raises(KitError, match="it lacks answers.parquet or provenance.json"):
        runs.read_run(folder)


def test_a_number_in_words_says_in_how_many_replicates_and_has_no_limits_of_one():
    row = {"value": 0.98, "low": 0.961, "high": 0.99, "n_replicates": 3}
    assert report.per_cent(row) == report.per_cent(row | {"of": 3}) == "98 % [96, 99]"
    alone = row | {"low": float("nan"), "high": float("nan"), "n_replicates": 1, "of": 3}
    assert report.per_cent(alone) == "98 % (in 1 of 3 replicates)"


def test_the_results_in_words_count_the_replicates_of_each_model():
    some = [make("vanilla", draw=draw, **FEW) for draw in range(3)]
    some += [make("ga", modality="multimodal", draw=draw, **FEW) for draw in range(2)]
    assert report.replicates(Scores.of(some)) == "2 to 3 replicates"
    assert report.replicates(Scores.of(some[:1])) == "one replicate"


def test_the_results_in_words_leave_out_which_of_several_vanillas_knows_what():
    of_exams = [[make(name, exams=exams, **FEW) for name in ("vanilla", "oracle")] for exams in (0.2, 0.8)]
    one, several = ("".join(map(str, report.paragraph(Scores.of(some)))) for some in (of_exams[0], sum(of_exams, [])))
    assert one.startswith(" Vanilla picks the right option") and "Vanilla" not in several


def test_what_changes_no_score_makes_no_other_model_and_two_scorings_are_not_pooled():
    other = make("ga", modality="multimodal", draw=1, eval_batch=64, **FEW)
    assert Scores.of([make("ga", modality="multimodal", **FEW), other]).by == []
    with pytest.raises(KitError, match="would be pooled"):
        Scores.of([make("vanilla", scoring=scoring, **FEW) for scoring in ("letter", "both")])


def test_a_setting_that_is_a_list_tells_the_models_of_a_grid_apart():
    lists = [["q"], ["q", "v"]]
    made = [make("ga", modality="multimodal", after="relearn", settings={"modules": one}, **FEW) for one in lists]
    assert runs.items_of(made)["modules"].unique().tolist() == ["['q']", "['q', 'v']"]


def test_the_same_people_and_seeds_twice_are_refused():
    run = make("ga", modality="multimodal", **FEW)
    copy = but(replace(run, record={**run.record, "run": "copy"}), answers=run.answers.assign(run="copy"))
    with pytest.raises(KitError, match="copy are of one method with the same people and seeds"):
        Scores.of([run, copy])


def test_newcomers_stand_before_prompting_and_steps_after_unlearning_behind_their_model():
    some = [(name, "canonical", "none", "") for name in ("oracle", "manu", "npo", "prompting")]
    assert [model[0] for model in runs.models_in_order(some)] == ["npo", "manu", "prompting", "oracle"]
    models = [
        ("ga", "canonical", "unimodal", ""),
        ("ga", "canonical", "multimodal", "int4"),
        ("vanilla", "canonical", "none", ""),
    ]
    assert runs.models_in_order([*models, ("ga", "canonical", "multimodal", "")]) == [
        models[2], ("ga", "canonical", "multimodal", ""), models[1], models[0]
    ]  # fmt: skip


# -- README -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collapsed() -> Scores:
    """NPO on text gives everybody the same answer; in text, the oracle knows as much as vanilla."""
    some = [make("vanilla", lambda q: True, **FEW), make("oracle", lambda q: q.view == "text", **FEW)]
    return Scores.of([*some, saying(make("npo", modality="unimodal", **FEW), "The The The", task="generation")])


def test_the_readmes_table_marks_what_is_closed_and_what_has_collapsed(collapsed):
    table = readme.main_table(collapsed)
    cells = next(line for line in table.splitlines() if line.startswith("| NPO (text only) ‡")).split(" | ")[1:]
    assert [cell.startswith("(") for cell in cells] == [False, True, False, True, *[False] * 5]
    assert cells[-1] == " |", "there is no gap in text that could be closed"
    assert "‡ The model has collapsed or refuses" in table and "gate closed" in table and "Likelihood (text)" in table
    title, heads = table.split("\n\n")[:2]
    assert (
        title.startswith(f"**{collapsed.runs[0].base_label}**, one replicate. ") and "not at equal forgetting" in title
    )
    assert heads.startswith("| Method | Forget<br>image + text |"), "no title but the base"


def test_the_readmes_table_says_how_much_of_the_gap_is_closed_by_hand():
    """GA on text answers one of two text questions rightly; the oracle knows neither."""
    some = [make("vanilla", lambda q: True, **FEW), make("oracle", lambda q: q.set != "forget", **FEW)]
    ga = make("ga", lambda q: q.view != "text" or q.number == 0, modality="unimodal", **FEW)
    table = readme.main_table(Scores.of([*some, ga]))
    [row] = [line for line in table.splitlines() if line.startswith("| GA (text only)")]
    assert row.endswith(" | 50 |"), "one replicate has no limits"
    others = [line for line in table.splitlines() if line.startswith(("| Vanilla", "| Oracle"))]
    assert len(others) == 2 and all(line.endswith(" |  |") for line in others), "of a model that unlearns alone"


def test_the_share_that_is_closed_has_limits_over_replicates():
    """GA on text answers one of two text questions rightly, in one of three replicates both."""
    some = []
    for draw in range(3):
        few = {**FEW, "draw": draw}
        some += [make("vanilla", lambda q: True, **few), make("oracle", lambda q: q.set != "forget", **few)]
        known = (0, 1) if draw == 2 else (0,)
        some.append(
            make("ga", lambda q, known=known: q.view != "text" or q.number in known, modality="unimodal", **few)
        )
    [said] = readme.closed(Scores.of(some)).values()
    # shares .5, .5 and 0: mean 1/3, standard error 1/6, t(2) = 4.303
    assert said == f"33 [{100 * (1 / 3 - 4.303 / 6):.0f}, {100 * (1 / 3 + 4.303 / 6):.0f}]"


def test_the_readmes_finding_is_the_best_method_beside_ascent(monkeypatch):
    pairs = pd.DataFrame({"first": ["KL Min.", "NPO"], "second": ["GA", "KL Min."], "value": 0.2, "low": 0.1})
    pairs = pairs.assign(high=0.25, place=0.5, modality="multimodal")
    monkeypatch.setattr(readme, "differences", lambda scores: pairs)

    def kept(**values):
        rows = [{"method": m, "value": v, "low": v - 0.1, "high": v + 0.05} for m, v in values.items()]
        rows = pd.DataFrame(rows).assign(closed_in="trained", what="kept", place=0.5, modality="multimodal")
        rows = rows.assign(n_replicates=1, of=1)
        rows = pd.concat([rows, rows.assign(value=rows["value"] / 2, what="free")]).assign(
            variant="canonical", after=""
        )
        rows = pd.concat([rows, rows.assign(value=rows["what"].map({"kept": 0.96, "free": 0.93}), place=0.0)])
        group = {"base_model": "llava", "protocol": "clean", "forget_ratio": 10}
        vanilla = make("vanilla", **FEW)
        one = SimpleNamespace(kept=rows, by=[], runs=[vanilla], group=group, model_of=lambda run: run.model)
        return SimpleNamespace(groups=[(("llava", "clean", 10), one)])

    said = readme.finding(kept(ga=0.7, kl_min=0.9, npo=0.65))
    assert "picks the right option in 70 % [60, 75] of the questions about others after gradient ascent" in said
    assert "and in 90 % [80, 95] after KL Min.; before unlearning, it was 96 %" in said
    stated = "state the fact in 35 % [60, 75] after gradient ascent and in 45 % [80, 95] after KL Min."
    assert f"{stated}; before, it was 93 %" in said
    assert "the difference is +20 [+10, +25] points" in said
    assert "10 Retain people and 10 celebrities" in said
    assert said.count("**") == 2 and "one replicate" in said
    assert "no method is shown to keep more" in readme.finding(kept(ga=0.9, kl_min=0.7))
    assert "no method is shown to keep more" in readme.finding(kept(kl_min=0.7))
    said = readme.finding(kept(kl_min=0.7, npo=0.9))
    assert "in 70 % [60, 75] of the questions about others after KL Min." in said, "the first of the tables"


def test_badges_are_those_of_the_projects_place_and_none_without_one():
    assert readme.badges("") == ""
    shown = readme.badges("https://example.org/owner/name")
    assert "https://example.org/owner/name/actions" in shown and "/gh/owner/name/HEAD" in shown
    assert "(https://colab.research.google.com/github/owner/name/blob/main/notebooks/00_start_here.ipynb)" in shown


def test_the_readmes_map_takes_minutes_from_the_runs_and_the_rest_from_the_notebooks(tmp_path):
    for name, makes in (("03_ga", "the run `ga`: an adapter"), ("09_tables", "tables"), ("99_more", "nothing")):
        rows = f"| **makes** | {makes} |\n| **in the paper** | paper's {name} |\n"
        rows += "| **minutes** | miniature, two cores: about 2; paper scale: 60 |"
        source = f"# {name[:2]} · Title of {name}\n\n| | |\n|---|---|\n{rows}"
        (tmp_path / f"{name}.ipynb").write_text(json.dumps({"cells": [{"source": [source]}]}))
    some = [
        make("ga", modality=modality, draw=draw, **FEW) for modality in ("multimodal", "unimodal") for draw in (0, 1)
    ]
    for run in some:
        run.record["seconds"] = 120 if run["replicate"] == 0 else 9999
    table = readme.map_table(some, sorted(tmp_path.glob("*.ipynb")))
    ascent, tables_, *_ = lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:4]]
    assert ascent[:2] == ["Paper's 03_ga", "[03_ga](notebooks/03_ga.ipynb)"] and "99_more" not in table
    assert [line[-1] for line in lines] == ["2.0", "about 2"], "two runs of 120 s side by side; what the notebook says"
    assert ascent[3] == "44.4 %" and tables_[3] == "", "as published_results.csv has it, and nothing of a whole table"
    assert "[table2_main.csv](results/reference/tables/table2_main.csv)" in ascent[2]


def test_filling_replaces_what_stands_between_the_marks():
    text = "a\n<!-- map -->\nold\n<!-- end -->\nb\n<!-- main table -->\nkept\n<!-- end -->\n"
    assert readme.fill(text, "map", r"new \1" + "\n") == text.replace("old", r"new \1")


# -- your own model ---------------------------------------------------------------------------------------------


def test_a_model_of_ones_own_stands_beside_the_references():
    vanilla, oracle = make("vanilla", lambda q: True, **FEW), make("oracle", lambda q: q.scoring == "letter", **FEW)
    own = make("mine", lambda q: q.set != "forget" or q.view == "text", train_seed=7, **FEW)
    beside = Beside(own, vanilla, oracle)
    assert beside.score_table().loc[("Forget", "text"), "Likelihood %"].startswith("100.0 [")
    assert beside.score_table().loc[("Forget", "image + text"), "Letter %"].startswith("(0.0 ["), "the gate is closed"
    assert beside.score_table("vanilla").loc[("Forget", "both"), "Likelihood, points"].startswith("−50.0 [")
    assert beside.score_table("oracle").loc[("Retain", "both"), "Likelihood, points"].startswith("+100.0 [")
    assert list(beside.score_table().index.levels[1]) and set(beside.cells["method"]) == {"mine"}
    [line] = beside.remarks()
    assert line.startswith("In brackets: gate closed") and "Letter (image + text)" in line and "Likelihood" not in line


def test_a_model_of_ones_own_that_has_collapsed_is_called_so():
    vanilla, oracle = make("vanilla", lambda q: True, **FEW), make("oracle", lambda q: q.set != "forget", **FEW)
    oracle = saying(oracle, "Nobody can say.", task="generation", set="forget")
    own = saying(make("mine", lambda q: True, **FEW), "The The The", task="generation")
    opened, collapsed = Beside(own, vanilla, oracle).remarks()
    assert opened.startswith("Vanilla answers better") and "in every metric that was asked: scores" in opened
    assert "100 % of answers broken" in collapsed


def test_without_references_the_scores_stand_alone_and_say_so():
    beside = Beside(make("mine", lambda q: True, sets=("forget",), **FEW), make("vanilla", **FEW))
    assert beside.remarks() == ["Without oracle nobody can say whether a low score is forgetting."]
    assert beside.score_table("oracle").empty and set(beside.score_table().index.get_level_values("set")) == {"Forget"}


OTHERWISE = {"base_revision": "v1", "vanilla_path": "there", "vanilla_revision": "v2", "train_modality": "multimodal"}
OTHERWISE |= {
    "adapter_reach": "upstream",
    "adam": "transformers",
    "adam_eps": 1e-6,
    "precision": "bf16",
    "quantise_base": "nf4",
}
OTHERWISE |= {"micro_batch": 2, "checkpointing": True, "train_lr": 1e-4, "exams": 0.0}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_vanilla_that_was_made_otherwise_is_another_one(name):
    """Models are compared with their own vanilla. If a record lacks a later parameter, its default counts."""
    record = make("vanilla", lambda question: True).record
    plain = {key: value for key, value in record["parameters"].items() if key not in runs.TAUGHT_TOO}
    assert runs.taught_by(record) == runs.taught_by({**record, "parameters": plain})
    assert runs.taught_by({**record, "parameters": {**plain, name: OTHERWISE[name]}}) != runs.taught_by(record)
    folders = {runs.taught_by({**record, "vanilla_hash": hashed}) for hashed in ("", "a", "b")}
    assert len(folders) == 3 and runs.taught_by(record) in folders, "folders of one name with other weights"


def test_a_vanilla_of_a_base_with_other_weights_is_another_one():
    shipped, own = (make("vanilla", lambda question: True, base_path=path).record for path in ("", "base"))
    taught = [runs.taught_by({**record, "base_hash": of}) for record in (shipped, own) for of in ("a", "b")]
    assert taught[0] == taught[1] and len(set(taught)) == 3, "the shipped base is known by its family"


@pytest.mark.parametrize(
    "given", [{"schedule": "plateau"}, {"train_batch_size": 4, "unlearn_batch_size": 8, "micro_batch": 4}]
)
def test_what_changes_unlearning_alone_makes_no_other_vanilla(given):
    vanilla, ga = (Config(**model, **given) for model in ({}, {"method": "ga", "modality": "multimodal"}))
    assert vanilla.training == ga.training and vanilla.parameters() != ga.parameters()
    records = [{"parameters": one.parameters(), "data_hash": "", "base_hash": ""} for one in (vanilla, ga)]
    assert runs.taught_by(records[0]) == runs.taught_by(records[1])


def test_runs_whose_forget_set_was_changed_cannot_stand_in_one_table(out):
    ga, vanilla = Config(method="ga", modality="unimodal"), Config()
    [folder] = write(paths.results("miniature"), make("ga", modality="unimodal", **FEW))
    record = stages.read_json(folder / stages.RECORD) | {"parameters": ga.parameters()}
    record |= {"data_hash": inputs.data_hash(ga), "forget_ids": list(inputs.population(ga).forget_ids)}
    stages.write_json(folder / stages.RECORD, record)
    inputs.check_comparable([vanilla])
    stages.write_json(folder / stages.RECORD, {**record, "forget_ids": ["001"]})
    with pytest.raises(KitError, match="have other people to be forgotten and cannot stand in one table"):
        inputs.check_comparable([vanilla])
    inputs.check_comparable([vanilla.but(replicate=1)])


def test_a_run_that_changes_after_it_was_looked_up_is_not_left_out(tmp_path):
    folders = write(tmp_path, make("vanilla", **FEW), make("oracle", **FEW))
    looked_up = runs.read_runs(tmp_path)
    shutil.rmtree(folders[0])
    with pytest.raises(KitError, match="answers.parquet was changed or removed after its run was read"):
        Scores.of(looked_up)
