"""The verdicts (same, within interval, off, missing), the anchor, exit codes and messages."""

import json
import shutil

import pandas as pd
import pytest

from mllmu_nb import __main__ as door
from mllmu_nb import paths, pipeline, stages
from mllmu_nb.commands import verify
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import published
from mllmu_nb.reporting.runs import read_run
from mllmu_nb.scoring.score import run_scores

SMALL = {"people": 8, "pool": 4, "celebrities": 4, "forget_ratio": 25, "shots": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_base):
    """A results folder with one run, of the base model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.mktemp("made")))
        pipeline.run(Config(method="base", base_path=str(tiny_base), **SMALL))
        return paths.results("miniature")


@pytest.fixture
def own(made, tmp_path, monkeypatch):
    """The run in your own results folder."""
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    monkeypatch.setattr(paths, "reference", lambda: tmp_path / "none")
    shutil.copytree(made, paths.results("miniature"))
    [run] = paths.runs(paths.results("miniature")).iterdir()
    return run


@pytest.fixture
def reference(made, tmp_path):
    """Another folder with the same run."""
    return shutil.copytree(made, tmp_path / "reference")


def count(reference):
    [run] = paths.runs(reference).iterdir()
    return len(run_scores(read_run(run).items))


def answer_otherwise(run, change):
    """Give the run other answers, as if its model had written them."""
    answers = change(pd.read_parquet(run / "answers.parquet"))
    answers.to_parquet(run / "answers.parquet", index=False)
    record = stages.read_json(run / stages.RECORD)
    stages.write_json(run / stages.RECORD, {**record, "files": stages.digests(run)})


def scores_of(value, low, high, **names):
    cell = {"run": "vanilla", "base_model": "llava", "forget_ratio": 5, "replicate": 0, "method": "vanilla"}
    cell |= {"variant": "upstream", "modality": "none", "seed": 0, "set": "forget", "task": "generation"}
    cell |= {"view": "image_text", "scoring": "", "metric": "rougeL", "value": value, "low": low, "high": high}
    return pd.DataFrame([{**cell, **names}])


@pytest.mark.parametrize(
    "mine, theirs, verdict",
    [
        ((0.5, 0.4, 0.6), (0.5, 0.4, 0.6), "same"),
        ((0.5 + 1e-12, 0.4, 0.6), (0.5, 0.4, 0.6), "same"),
        ((0.5, 0.4, 0.6), (0.6, 0.59, 0.61), "within interval"),  # theirs is in mine
        ((0.6, 0.59, 0.61), (0.5, 0.4, 0.6), "within interval"),  # mine is in theirs
        ((0.5, 0.4, 0.6), (0.7, 0.55, 0.85), "off"),  # the intervals overlap, but no value is in the other's
        ((0.5, 0.4, 0.6), None, "missing"),
    ],
)
def test_a_cell_gets_its_verdict(mine, theirs, verdict):
    other = scores_of(0.2, 0.1, 0.3, metric="bleu")
    left = other if theirs is None else pd.concat([scores_of(*mine), other])
    right = pd.concat([scores_of(*(theirs or mine)), other])
    cells = verify.compare(left, right).set_index("metric")["verdict"]
    assert cells["rougeL"] == verdict and cells["bleu"] == "same"


def test_what_the_reference_lacks_has_no_verdict():
    mine = pd.concat([scores_of(0.5, 0.4, 0.6), scores_of(0.3, 0.2, 0.4, metric="bleu")])
    cells = verify.compare(mine, scores_of(0.5, 0.4, 0.6))
    assert cells.set_index("metric")["verdict"].to_dict() == {"rougeL": "same", "bleu": ""}


def test_the_same_answers_are_the_same_everywhere(own, reference, capsys):
    assert door.main(["verify", "--against", str(reference)]) == 0
    said, cells = capsys.readouterr().out, count(reference)
    assert said.split()[:3] == ["verdict", "same", "run"] and said.split()[3:5] == [own.name, str(cells)]
    assert f"{cells} cells: {cells} same ({paths.cache() / 'verify-miniature.csv'})" in said
    assert set(pd.read_csv(paths.cache() / "verify-miniature.csv")["verdict"]) == {"same"}


def test_other_answers_are_off_and_the_record_says_what_differs(own, reference, capsys):
    def all_right(answers):
        asked = (answers["set"] == "retain") & (answers["scoring"] == "likelihood")
        right = read_run(own).answers["answer_true"].to_numpy()[asked]  # in the order of the answers
        options = [f"option_{letter}" for letter in "ABCD"]
        answers.loc[asked, options] = [[-1.0 if letter == true else -9.0 for letter in "ABCD"] for true in right]
        return answers

    answer_otherwise(own, all_right)
    record = stages.read_json(own / stages.RECORD)
    record["parameters"]["train_steps"], record["versions"]["torch"], record["cpu"] = 7, "1.0", "Made Up 3000"
    stages.write_json(own / stages.RECORD, record)
    assert door.main(["verify", "--against", str(reference)]) == 1
    said = capsys.readouterr().out
    assert f"{count(reference)} cells: " in said and "3 off" in said
    assert "made with train_steps 7 (reference: 1800)\n" in said and "made with torch '1.0' (reference: " in said
    assert "made with CPU maker 'Made' (reference: " in said and "CPUs of two makers have other bits" in said
    assert f"off {own.name} retain classification image_text likelihood accuracy 1.000 " in " ".join(said.split())


def test_a_measure_that_is_gone_is_missing(own, reference, capsys):
    answer_otherwise(own, lambda answers: answers[answers["task"] != "cloze"])
    assert door.main(["verify", "--against", str(reference)]) == 1
    said = capsys.readouterr().out
    assert f"missing {own.name} celebrity cloze text accuracy NaN NaN NaN 0." in " ".join(said.split())
    assert "12 missing" in said


def test_a_damaged_run_is_named(own, reference, capsys):
    answers = pd.read_parquet(own / "answers.parquet")
    answers.assign(answer="A").to_parquet(own / "answers.parquet", index=False)
    assert door.main(["verify", "--against", str(reference)]) == 2
    assert capsys.readouterr().err == f"error: a file of the run in {own} was changed or cut off: make the run again\n"


def test_the_reference_is_what_comes_with_the_project(own, made, monkeypatch, capsys):
    assert door.main(["verify"]) == 2
    none = f"error: {paths.reference()} has none of these runs: a run is found by its parameters\n"
    assert capsys.readouterr().err == none
    monkeypatch.setattr(paths, "reference", lambda: made)
    assert door.main(["verify"]) == 0
    assert f"{count(made)} same" in capsys.readouterr().out
    shutil.rmtree(own)  # without your own run, the reference's stored answers are scored again
    assert door.main(["verify"]) == 0
    said = capsys.readouterr().out
    assert f"{count(made)} same" in said
    assert "cells of the committed reference itself, since there is no run of yours: " in said


def test_a_broken_reference_is_named(own, reference, tmp_path, capsys):
    (tmp_path / "a file").write_bytes(bytes(range(256)))
    for name in ("nowhere", "a file"):
        assert door.main(["verify", "--against", str(tmp_path / name)]) == 2
        line = f"error: there are no runs in {tmp_path / name}: give a results folder with --against\n"
        assert capsys.readouterr() == ("", line)
    [run] = paths.runs(reference).iterdir()
    (run / "answers.parquet").write_bytes(b"")
    assert door.main(["verify", "--against", str(reference)]) == 2
    assert f"a file of the run in {run} was changed or cut off" in capsys.readouterr().err


def test_a_configuration_names_the_runs(own, reference, tiny_base, tmp_path, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text(json.dumps({**SMALL, "base_path": str(tiny_base), "grid": {"method": ["oracle", "base"]}}))
    oracle = Config(method="oracle", base_path=str(tiny_base), **SMALL).run_id
    assert door.main(["verify", str(grid), "--against", str(reference)]) == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"not made here: {oracle} (make them with python -m mllmu_nb sweep {grid})"
    grid.write_text("method: oracle\n")
    assert door.main(["verify", str(grid), "--against", str(reference)]) == 2
    assert "error: there is no run to compare" in capsys.readouterr().err


# -- published figures --------------------------------------------------------------------------------------------


def test_a_printed_cell_gets_the_best_verdict_of_its_sources():
    def verdict(value, low, high, **names):
        [cell] = verify.compare_published(scores_of(value, low, high, **names)).itertuples()
        return cell

    anchor = verdict(published.ANCHOR["value"] + 0.0049, 0.575, 0.576)
    assert anchor.verdict == "same" and "issues #11 and #20" in anchor.source
    names = {"task": "classification", "scoring": "letter", "metric": "accuracy", "view": "text"}
    assert verdict(0.475, 0.42, 0.52, **names).verdict == "same"  # 47.5 in one source
    between = verdict(0.55, 0.50, 0.60, **names)
    assert between.verdict == "within interval" and "issue #2" in between.source  # 58.26
    assert verdict(0.95, 0.90, 1.0, **names).verdict == "off"


def test_what_nobody_printed_stays_empty():
    with pytest.raises(KitError, match="no figure was published for these runs"):
        verify.compare_published(scores_of(0.5, 0.4, 0.6, base_model="idefics2"))
    with pytest.raises(KitError, match="no figure was published for these runs"):
        verify.compare_published(scores_of(0.5, 0.4, 0.6, method="ga", modality="unimodal"))


def test_cells_that_nobody_printed_are_kept_without_a_verdict():
    scores = pd.concat([scores_of(0.57, 0.3, 0.8), scores_of(0.4, 0.3, 0.5, metric="exact")])
    found = verify.compare_published(scores).set_index("metric")
    assert found.loc["exact", ["source", "verdict"]].tolist() == ["", ""]
    assert found.loc["exact", "value"] == 0.4 and found["verdict"].iloc[0] == "same"


def test_published_figures_in_the_kits_units():
    found = published.cells(published.load())
    assert found["value"].between(0, 1).all() and set(found["scoring"]) == {"", "letter"}
    paper = found[found["source"].str.startswith("MANU") & (found["method"] == "ga") & (found["set"] == "forget")]
    assert paper.set_index("metric")["value"].to_dict() == pytest.approx({"accuracy": 0.4440, "rougeL": 0.485})
    assert set(paper["view"]) == {"both"} and set(paper["modality"]) == {"multimodal"}
    anchors = found[(found["value"] == 0.5708) & (found["metric"] == "rougeL")]
    assert len(anchors) == 3 and set(anchors["method"]) == {"vanilla"}
    assert abs(published.ANCHOR["value"] - anchors["value"].iloc[0]) < 5e-5


def test_one_run_may_be_named_wherever_it_lies(own, reference, tmp_path, capsys):
    results = shutil.move(paths.results("miniature"), tmp_path / "elsewhere")
    run = paths.runs(results) / own.name
    assert door.main(["verify", "--run", str(run), "--against", str(reference)]) == 0
    assert f"{count(reference)} same" in capsys.readouterr().out
    assert door.main(["verify", "--run", str(tmp_path / "none")]) == 2
    assert "error: there is no finished run in" in capsys.readouterr().err
    assert door.main(["verify", str(tmp_path / "grid.yaml"), "--run", str(own)]) == 2
    assert "error: --run compares one finished run" in capsys.readouterr().err


def as_of_paper_scale(run, **record):
    stages.write_json(run / stages.RECORD, {**stages.read_json(run / stages.RECORD), "scale": "paper", **record})
    return ["verify", "--run", str(run)]


def test_generated_people_are_not_compared_with_published_figures(own, capsys):
    assert door.main(as_of_paper_scale(own)) == 2
    message = "is not about the published people, so published figures say nothing about it"
    assert capsys.readouterr().err == f"error: {own.name} {message}\n"


def test_at_paper_scale_the_published_people_are_compared(own, capsys):
    parameters = stages.read_json(own / stages.RECORD)["parameters"] | {"forget_ratio": 5, "method": "vanilla"}
    assert door.main(as_of_paper_scale(own, parameters=parameters, notes={"source": "official"})) == 1
    said = capsys.readouterr().out
    assert " off " in " ".join(said.split()) and " forget generation image_text rougeL " in " ".join(said.split())


def test_a_model_that_was_given_a_name_is_compared_by_its_folder(own, reference, capsys):
    """`evaluate --name` writes it so: its record has another name."""
    [theirs] = paths.runs(reference).iterdir()
    mine, other = own.rename(own.with_name("mine-none-0123abcd")), theirs.rename(theirs.with_name("mine-none-0123abcd"))
    record = stages.read_json(other / stages.RECORD)
    stages.write_json(other / stages.RECORD, {**record, "device": "another one"})
    assert record["run"] != mine.name
    assert door.main(["verify", "--run", str(mine), "--against", str(reference)]) == 0
    said = capsys.readouterr().out
    assert f"{count(reference)} same" in said and "(reference: 'another one')" in said
