"""CI's last check, tests/check_reproduce.py, finds errors in the output of a sweep (made from committed runs)."""

import shutil

import check_reproduce
import pandas as pd
import pytest

from mllmu_nb import paths
from mllmu_nb.reporting.runs import Scores, read_runs
from mllmu_nb.stages import read_json, write_json

GRID = {"grid": {"method": ["ga"], "modality": ["multimodal"]}}
MODELS = [("ga", "multimodal", 10, 0), ("oracle", "none", 10, 0)]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Return a folder with two runs of replicate 0, and GA's answers and scores."""
    results = tmp_path_factory.mktemp("outcome")
    (results / "people").symlink_to(paths.people(paths.reference()))
    for folder in sorted(paths.runs(paths.reference()).iterdir()):
        values = read_json(folder / "provenance.json")["parameters"] if (folder / "provenance.json").is_file() else {}
        model = tuple(values.get(name) for name in check_reproduce.MODEL)
        if model in MODELS and values["base_model"] == "llava" and values["protocol"] == "clean":
            shutil.copytree(folder, results / "runs" / folder.name)
    runs = sorted((results / "runs").iterdir())
    assert len(runs) == len(MODELS)
    Scores.of(read_runs(results)).run_scores().query("method == 'ga'").to_csv(results / "scores.csv", index=False)
    scores = pd.read_csv(results / "scores.csv").fillna({"scoring": "", "variant": ""})
    return runs, check_reproduce.read_run(runs[0]), scores


def wrong(outcome, change):
    """Return the problems found after ``change`` has altered the scores."""
    _, answers, scores = outcome
    return check_reproduce.check_scores(change(scores.copy()), answers, check_reproduce.expected_models(GRID))


def test_the_committed_scores_are_those_of_their_answers(outcome):
    assert wrong(outcome, lambda scores: scores) == []


def letters(scores):
    which = "set == 'forget' and task == 'classification' and scoring == 'letter' and view == 'text'"
    return scores.query(which).index[0]


@pytest.mark.parametrize(
    "change, line",
    [
        (lambda s: s.drop(columns="gate"), "lacks the columns gate"),
        (lambda s: s.drop(index=letters(s)), "0 rows instead of one"),
        (lambda s: pd.concat([s, s.loc[[letters(s)]]]), "2 rows instead of one"),
        (lambda s: s[s["method"] != "ga"], "no scores of ('ga'"),
        (lambda s: pd.concat([s, s.assign(method="npo")]), "which the grid does not ask for"),
        (lambda s: s.assign(value=s["value"].where(s.index != letters(s), s["value"] + 1e-3)), "in the answers"),
        (lambda s: s.assign(n_items=s["n_items"].where(s.index != letters(s), 1)), "in the answers"),
        (lambda s: s.assign(high=s["high"].where(s.index != letters(s), 1.1)), "does not hold within 0 to 1"),
        (lambda s: s.assign(low=s["low"].where(s.index != letters(s), s["high"])), "does not hold within"),
    ],
)
def test_a_changed_score_is_seen(outcome, change, line):
    found = wrong(outcome, change)
    assert found and all(line in one for one in found)


def test_a_changed_run_is_seen(outcome, tmp_path):
    folder = next(run for run in outcome[0] if run.name.startswith("oracle"))
    assert check_reproduce.check_run(folder) == []
    run = shutil.copytree(folder, tmp_path / folder.name)
    log = read_json(run / "train.json")
    write_json(run / "train.json", log | {"losses": {"loss": log["losses"]["loss"][::-1]}})
    found = check_reproduce.check_run(run)
    assert "train.json is not the file that was written" in found[0] and "the loss went from" in found[1]


def test_missing_files_and_blank_figures_are_seen(tmp_path):
    assert check_reproduce.check(GRID, tmp_path) == ["results/miniature has no runs and no scores.csv"]
    picture = tmp_path / "losses.png"
    check_reproduce.Image.new("RGB", (4, 4), "white").save(picture)
    found = check_reproduce.check_files(tmp_path, tmp_path, ("losses", "profiles"))
    assert "table2_main.csv is missing or empty" in found and "there is no figure profiles*" in found
    assert "losses.png is blank" in found and "losses.pdf is missing or no PDF" in found
