"""The verdicts: same, within interval, off, missing; the anchor; exit codes and what is said."""

import argparse
import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from mllmu_nb import __main__ as door
from mllmu_nb import paths, provenance
from mllmu_nb.commands import sweep, verify
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import statistics
from mllmu_nb.reporting import published, read_run

VANILLA = "llava-r10-d0-vanilla-none-s0"
COMMITTED = paths.checkout() / "results" / "miniature"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of one's own with the committed vanilla run in it."""
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    run = tmp_path / "out" / "results" / "miniature" / "runs" / VANILLA
    shutil.copytree(COMMITTED / "runs" / VANILLA, run)
    return run


@pytest.fixture
def reference(tmp_path):
    """A folder with the scores and the record of the committed vanilla run."""
    folder = tmp_path / "reference"
    shutil.copytree(COMMITTED / "runs" / VANILLA, folder / "runs" / VANILLA)
    scores = statistics.scores(read_run(COMMITTED / "runs" / VANILLA).items)
    scores.to_csv(folder / "scores.csv", index=False)
    return folder


def scores_of(value, low, high, **names):
    cell = {"base_model": "llava", "forget_ratio": 5, "forget_draw": 0, "method": "vanilla", "variant": "upstream"}
    cell |= {"modality": "none", "seed": 0, "set": "forget", "task": "generation", "view": "image_text", "scoring": ""}
    cell |= {"metric": "rougeL", "value": value, "low": low, "high": high, "n_items": 50, "n_profiles": 25}
    return pd.DataFrame([{**cell, **names}])


@pytest.mark.parametrize(
    "mine, theirs, verdict",
    [
        ((0.5, 0.4, 0.6), (0.5, 0.4, 0.6), "same"),
        ((0.5 + 1e-12, 0.4, 0.6), (0.5, 0.4, 0.6), "same"),
        ((0.5, 0.4, 0.6), (0.6, 0.59, 0.61), "within interval"),  # theirs lies in mine
        ((0.6, 0.59, 0.61), (0.5, 0.4, 0.6), "within interval"),  # mine lies in theirs
        ((0.5, 0.4, 0.6), (0.7, 0.55, 0.85), "off"),  # the intervals meet, no value lies in the other's
        ((0.5, 0.4, 0.6), None, "missing"),
    ],
)
def test_a_cell_gets_its_verdict(mine, theirs, verdict):
    other = scores_of(0.2, 0.1, 0.3, metric="bleu")
    left = other if theirs is None else pd.concat([scores_of(*mine), other])
    right = pd.concat([scores_of(*(theirs or mine)), other])
    found = verify.compare(left, right).set_index("metric")["verdict"]
    assert found["rougeL"] == verdict and found["bleu"] == "same"


def test_what_the_reference_lacks_has_no_verdict_and_other_models_are_left_out():
    mine = pd.concat([scores_of(0.5, 0.4, 0.6), scores_of(0.3, 0.2, 0.4, metric="bleu")])
    theirs = pd.concat([scores_of(0.5, 0.4, 0.6), scores_of(0.9, 0.8, 1.0, method="ga")])
    assert verify.compare(mine, theirs).set_index("metric")["verdict"].to_dict() == {"rougeL": "same", "bleu": ""}
    with pytest.raises(KitError, match="the reference has none of these models"):
        verify.compare(mine, scores_of(0.9, 0.8, 1.0, method="ga"))
    with pytest.raises(KitError, match="several cells bear the same name"):
        verify.compare(pd.concat([mine, mine]), theirs)


def test_the_same_answers_are_the_same_everywhere(own, reference, capsys):
    assert door.main(["verify", "--against", str(reference)]) == 0
    said = capsys.readouterr().out
    assert "120       0     0        0     0  Vanilla, llava, 10 %, draw 0, seed 0" in said
    assert f"120 cells: 120 same ({paths.cache() / 'verify-miniature.csv'})" in said
    assert set(pd.read_csv(paths.cache() / "verify-miniature.csv")["verdict"]) == {"same"}


def test_forgotten_people_are_off_and_the_record_says_what_differs(own, reference, capsys):
    items = pd.read_parquet(own / "items.parquet")
    wrong = (items["set"] == "forget") & (items["task"] == "classification") & (items["scoring"] == "likelihood")
    items.loc[wrong, "correct"] = np.zeros(wrong.sum())
    items.to_parquet(own / "items.parquet")
    record = json.loads((own / "provenance.json").read_text())
    record["parameters"]["train_steps"], record["versions"]["torch"] = 7, "1.0"
    (own / "provenance.json").write_text(json.dumps(record))
    assert door.main(["verify", "--against", str(reference)]) == 1
    said = capsys.readouterr().out
    assert "117       0     3        0     0  Vanilla" in said and "120 cells: 117 same, 3 off" in said
    assert "made with train_steps 7 (reference: 750)\n" in said and "made with torch '1.0' (reference: " in said
    assert "off: 10 vanilla none forget classification image_text likelihood accuracy: 0.000 [" in said


def test_a_measure_that_is_gone_is_missing(own, reference, capsys):
    items = pd.read_parquet(own / "items.parquet")
    items.assign(factuality=np.nan).to_parquet(own / "items.parquet")
    assert door.main(["verify", "--against", str(reference)]) == 1
    said = capsys.readouterr().out
    assert "missing: 10 vanilla none celebrity generation text factuality: no value, reference " in said
    assert "12 missing" in said


def test_the_reference_is_the_committed_one(own, tmp_path, monkeypatch, capsys):
    text = (COMMITTED / "scores.csv").read_text()
    monkeypatch.setattr(provenance, "committed", lambda path: text if path == "results/miniature/scores.csv" else None)
    assert door.main(["verify"]) == 0
    assert "120 cells: 120 same" in capsys.readouterr().out
    monkeypatch.setattr(provenance, "committed", lambda path: None)
    assert door.main(["verify"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no scores.csv in the commit's results/miniature: name a folder that holds one by --against\n"
    )


def test_what_is_committed_is_read_and_not_what_lies_there(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "mllmu_nb")
    assert provenance.committed("scores.csv") is None, "no checkout"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "scores.csv").write_text("as committed\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    (tmp_path / "scores.csv").write_text("as changed\n")
    assert provenance.committed("scores.csv") == "as committed"
    assert provenance.committed("none.csv") is None


@pytest.mark.parametrize("content, message", [("", "cannot be read: "), ("a,b\n1,2\n", "lacks the columns method, ")])
def test_a_broken_reference_is_named(own, tmp_path, content, message, capsys):
    (tmp_path / "scores.csv").write_text(content)
    assert door.main(["verify", "--against", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the reference's scores.csv " + message) and said.count("\n") == 1


def test_a_configuration_names_the_runs(own, reference, tmp_path, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text("grid: {method: [vanilla, base]}\n")
    assert door.main(["verify", str(grid), "--against", str(reference)]) == 0
    assert "not made here: llava-r10-d0-base-none-s0\n" in capsys.readouterr().out
    grid.write_text("method: oracle\n")
    assert door.main(["verify", str(grid), "--against", str(reference)]) == 2
    assert "error: none of the configuration's runs is in " in capsys.readouterr().err


def test_in_a_checkout_own_runs_are_told_from_committed_ones(own, monkeypatch, capsys):
    monkeypatch.setattr(paths, "committed_runs", lambda scale: own.parent)
    shutil.copytree(COMMITTED / "runs" / "llava-r10-d0-base-none-s0", own.parent / "llava-r10-d0-base-none-s0")
    assert len(verify.chosen("miniature", set())[1]) == 2
    assert capsys.readouterr().out.startswith("No run was made here: the stored answers of the committed ones")
    key = json.loads((own / "provenance.json").read_text())["key"]
    (paths.cache() / "stages" / key).mkdir(parents=True)
    assert [run.id for run in verify.chosen("miniature", set())[1]] == [VANILLA]


def test_a_rerun_starts_from_nothing_and_is_what_is_compared(own, reference, tmp_path, monkeypatch, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text("method: vanilla\n")
    old = paths.cache() / "rerun" / ".cache" / "stages"
    old.mkdir(parents=True)

    def swept(options):
        assert options == argparse.Namespace(config=grid, ratios=None, jobs=None, shard=None)
        assert not old.exists() and paths.root() == old.parents[1]
        if broken:
            return 1
        shutil.copytree(COMMITTED / "runs" / VANILLA, paths.runs("miniature") / VANILLA)
        return 0

    monkeypatch.setattr(sweep, "main", swept)
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))  # put back afterwards
    shutil.rmtree(own)
    broken = False
    assert door.main(["verify", str(grid), "--rerun", "--against", str(reference)]) == 0
    assert f"120 same ({tmp_path / 'out' / '.cache' / 'verify-miniature.csv'})" in capsys.readouterr().out
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    broken = True
    assert door.main(["verify", str(grid), "--rerun", "--against", str(reference)]) == 1
    assert door.main(["verify", "--rerun"]) == 2
    assert "--rerun needs the configuration file" in capsys.readouterr().err


# -- published figures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, verdict",
    [
        (0.5708306366835779, "same"),
        (0.5708306366835779 + 0.0049, "within 0.005"),
        (0.5708306366835779 - 0.0049, "within 0.005"),
        (0.5708306366835779 + 0.0051, "off"),
    ],
)
def test_the_anchor_comes_first(value, verdict):
    first = verify.compare_published(scores_of(value, 0.3, 0.8)).iloc[0]
    assert first["verdict"] == verdict and "issues #11 and #20" in first["source"]


def test_a_printed_cell_is_off_where_it_agrees_with_no_source():
    def verdict(value, low, high):
        names = {"task": "classification", "scoring": "letter", "metric": "accuracy", "view": "text"}
        found = verify.compare_published(scores_of(value, low, high, **names))
        assert list(found["verdict"])[0] == "", "the anchor was not measured"
        return found.iloc[1]

    assert verdict(0.475, 0.42, 0.52)["verdict"] == "same"  # 47.5 in one source
    between = verdict(0.55, 0.50, 0.60)
    assert between["verdict"] == "within interval" and "issue #2" in between["source"]  # 58.26
    assert "0.4667" in between["published"] and "0.5826" in between["published"]
    assert verdict(0.95, 0.90, 1.0)["verdict"] == "off"


def test_what_nobody_printed_stays_empty():
    with pytest.raises(KitError, match="no cell of these runs was published"):
        verify.compare_published(scores_of(0.5, 0.4, 0.6, base_model="idefics2"))
    with pytest.raises(KitError, match="no cell of these runs was published"):
        verify.compare_published(scores_of(0.5, 0.4, 0.6, method="ga", modality="unimodal"))


def test_cells_that_nobody_printed_are_kept_without_a_verdict():
    scores = pd.concat([scores_of(0.57, 0.3, 0.8), scores_of(0.4, 0.3, 0.5, metric="exact")])
    found = verify.compare_published(scores).set_index("metric")
    assert found.loc["exact", ["published", "source", "verdict"]].tolist() == ["", "", ""]
    assert found.loc["exact", "value"] == 0.4 and found["verdict"].iloc[0] == "within 0.005"


def test_published_figures_in_the_kits_units():
    found = published.cells(published.load())
    assert found["value"].between(0, 1).all() and set(found["scoring"]) == {"", "letter"}
    paper = found[found["source"].str.startswith("MANU") & (found["method"] == "ga") & (found["set"] == "forget")]
    assert paper.set_index("metric")["value"].to_dict() == pytest.approx({"accuracy": 0.4440, "rougeL": 0.485})
    assert set(paper["view"]) == {"both"} and set(paper["modality"]) == {"multimodal"}
    anchors = found[(found["value"] == 0.5708) & (found["metric"] == "rougeL")]
    assert len(anchors) == 3 and set(anchors["method"]) == {"vanilla"}
    assert abs(published.ANCHOR - anchors["value"].iloc[0]) < 5e-5


def test_one_run_may_be_named_wherever_it_lies(own, reference, tmp_path, capsys):
    shutil.move(own, tmp_path / "elsewhere")
    assert door.main(["verify", "--run", str(tmp_path / "elsewhere"), "--against", str(reference)]) == 0
    assert "120 cells: 120 same" in capsys.readouterr().out
    assert door.main(["verify", "--run", str(tmp_path / "none")]) == 2
    assert f"there is no finished run in {tmp_path / 'none'}: it has no items.parquet" in capsys.readouterr().err
    assert door.main(["verify", str(tmp_path / "grid.yaml"), "--run", str(own)]) == 2
    assert "error: --run names one finished run" in capsys.readouterr().err


def test_generated_people_are_not_compared_with_published_figures(own, tmp_path, capsys):
    paper = own.parents[2] / "paper" / "runs" / VANILLA
    shutil.copytree(own, paper)
    grid = tmp_path / "grid.yaml"
    grid.write_text("scale: paper\n")
    assert door.main(["verify", str(grid)]) == 2
    assert capsys.readouterr().err == (
        f"error: {VANILLA} is not about the published people, so published figures say nothing about it\n"
    )


def test_at_paper_scale_the_published_people_are_compared(own, tmp_path, capsys):
    paper = own.parents[2] / "paper" / "runs" / "llava-r5-d0-vanilla-none-s0"
    shutil.copytree(own, paper)
    data = json.loads((paper / "data.json").read_text())
    (paper / "data.json").write_text(json.dumps({**data, "notes": {"source": "official"}}))
    items = pd.read_parquet(paper / "items.parquet")
    items.assign(forget_ratio=5).to_parquet(paper / "items.parquet")
    grid = tmp_path / "grid.yaml"
    grid.write_text("scale: paper\nforget_ratio: 5\n")
    assert door.main(["verify", str(grid)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("No run under protocol upstream")
    assert said[1].startswith("off: 5 vanilla none forget generation image_text rougeL: ")
    assert "0.5708306366835779 (anchor; MLLMU-Bench repository, issues #11 and #20)" in said[1]
