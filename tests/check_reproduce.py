"""Check the output of `make reproduce`: python tests/check_reproduce.py GRID FOLDER.

GRID is the grid that was run (a YAML file of configs/). FOLDER has results/ and figures/ (MLLMU_NB_OUT, or the
checkout). Everything is read from the files, without the package. Scores with a one-line rule are computed again from
the stored answers; for the others, range and counts are checked. The check prints one line per problem; if there is a
problem, the exit status is 1.
"""

import hashlib
import json
import math
import sys
from itertools import product
from pathlib import Path

import pandas as pd
import yaml
from PIL import Image
from rouge_score.rouge_scorer import RougeScorer

MODEL = ("method", "modality", "forget_ratio", "replicate")  # these columns identify a model of a grid
Model = tuple[str, str, int, int]
TRAINED = {"ga", "grad_diff", "kl_min", "npo"}
SETS = ("forget", "test", "retain", "celebrity")
COLUMNS = (
    "run base_model forget_ratio replicate method protocol variant modality after data_seed train_seed unlearn_seed "
    "shot_seed set task view scoring metric value low high n_items n_profiles gate"
).split()
OPTIONS = [f"option_{letter}" for letter in "ABCD"]
ROUGE = RougeScorer(["rougeL"], use_stemmer=True)


def letter(row) -> bool:
    return row.answer.strip()[:1].upper() == row.answer_true


def likeliest(row) -> bool:
    options = [getattr(row, name) for name in OPTIONS]
    return "ABCD"[options.index(max(options))] == row.answer_true


def contained(row) -> bool:
    return row.answer_true.strip().lower() in row.answer.lower()


def rouge_l(row) -> float:
    return ROUGE.score(row.answer_true, row.answer)["rougeL"].fmeasure


# task, scoring, metric, function that scores an answer (None: takes more than a line), range of the score
MEASURES = (
    ("classification", "letter", "accuracy", letter, (0, 1)),
    ("classification", "likelihood", "accuracy", likeliest, (0, 1)),
    ("generation", "", "rougeL", rouge_l, (0, 1)),
    ("generation", "", "exact", None, (0, 1)),
    ("generation", "", "factuality", None, (1, 10)),
    ("cloze", "", "accuracy", contained, (0, 1)),
)
TABLES = ("table1_data", "table2_main", "table2_paper", "table2_compact", "table2_by_view", "table_oracle_gap", "cost")
FIGURES = ("profiles", "before_after", "forgetting_utility", "losses")  # how their names begin
ROUNDING = 1e-9  # error of a mean that is written to a file and read again


def read_run(run: Path) -> pd.DataFrame:
    """Read the answers of a run, with their questions and the run's parameters."""
    record = json.loads((run / "provenance.json").read_text())
    answers = pd.read_parquet(run / "answers.parquet")
    questions = pd.read_parquet(run.parent.parent / "people" / f"{record['data_hash']}.parquet")
    version = ["test" if name == "test" else "plain" for name in answers["set"]]
    questions = questions[["version", "question_id", "answer_true"]]
    answers = answers.assign(version=version).merge(questions, on=["version", "question_id"], validate="many_to_one")
    return answers.assign(**{name: record["parameters"][name] for name in MODEL})


def expected_models(grid: dict) -> set[Model]:
    """Return every model that the grid asks for."""
    axes = grid["grid"]
    ratios = axes.get("forget_ratio", [grid.get("forget_ratio", 10)])
    draws = axes.get("replicate", [grid.get("replicate", 0)])
    found = set()
    for method, ratio, draw in product(axes["method"], ratios, draws):
        found |= {(method, modality, ratio, draw) for modality in (axes["modality"] if method in TRAINED else ["none"])}
    return found


def check_scores(scores: pd.DataFrame, answers: pd.DataFrame, models: set[Model]) -> list[str]:
    """Check that every expected cell occurs once, within its range and interval, and is the mean of its answers."""
    if missing := [name for name in COLUMNS if name not in scores]:
        return [f"scores.csv lacks the columns {', '.join(missing)}"]
    wrong = []
    there = set(scores[list(MODEL)].itertuples(index=False, name=None))
    wrong += [f"no scores of {model}" for model in sorted(models - there)]
    wrong += [f"scores of {model}, which the grid does not ask for" for model in sorted(there - models)]
    for model in sorted(models & there):
        mine, given = (frame[(frame[list(MODEL)] == list(model)).all(axis=1)] for frame in (scores, answers))
        for set_name in SETS:
            for task, scoring, metric, worth, bounds in MEASURES:
                for view in ("image_text", "text", "both"):
                    name = f"{model} {set_name} {task} {scoring} {metric} {view}"
                    which = "set == @set_name and task == @task and scoring == @scoring"
                    cell = mine.query(f"{which} and metric == @metric and view == @view")
                    asked = given.query(which + ("" if view == "both" else " and view == @view"))
                    values = [worth(row) for row in asked.itertuples()] if worth else None
                    wrong += check_cell(name, cell, len(asked), values, bounds)
    return wrong


def check_cell(name: str, cell: pd.DataFrame, count: int, values: list | None, bounds: tuple) -> list[str]:
    """Check one cell. ``values`` are the scores of the ``count`` answers; None if they are not computed here."""
    if len(cell) != 1:
        return [f"{name}: {len(cell)} rows instead of one"]
    row, (least, most) = cell.iloc[0], bounds
    if not least <= row["low"] <= row["value"] <= row["high"] <= most:
        return [f"{name}: {row['low']} ≤ {row['value']} ≤ {row['high']} does not hold within {least} to {most}"]
    if row["metric"] == "accuracy" and row["value"] in (0, 1) and row["low"] == row["high"]:
        return [f"{name}: all answers alike, but that is no certainty and the interval has no width"]
    mean = sum(values) / count if values else row["value"]
    if row["n_items"] != count or abs(row["value"] - mean) > ROUNDING:
        return [f"{name}: {row['value']} of {row['n_items']}, but {mean} of {count} in the answers"]
    return []


def check_run(run: Path) -> list[str]:
    """Check that the files are those in the record, that a trained model has finite losses and an untrained one none,
    and that fine-tuning reduced the loss."""
    log, record = json.loads((run / "train.json").read_text()), json.loads((run / "provenance.json").read_text())
    losses, method = log["losses"].get("loss", []), log["method"]
    wrong = [
        f"{run.name}: {name} is not the file that was written"
        for name, written in record["files"].items()
        if hashlib.sha256((run / name).read_bytes()).hexdigest() != written["sha256"]
    ]
    wrong += [f"{run.name}: the record has no {name}" for name in ("commit", "versions", "bits") if not record[name]]
    if method in TRAINED | {"vanilla", "oracle"}:
        if not losses or log["steps"] < 1 or log["trainable_parameters"] < 1 or not all(map(math.isfinite, losses)):
            wrong.append(f"{run.name}: train.json shows no sound training")
        elif method in {"vanilla", "oracle"}:
            few = max(1, len(losses) // 5)
            before, after = sum(losses[:few]) / few, sum(losses[-few:]) / few
            wrong += [] if after < before else [f"{run.name}: the loss went from {before} to {after}"]
    elif losses or log["steps"]:
        wrong.append(f"{run.name}: {method} trains nothing, but train.json shows steps")
    return wrong


def check_files(results: Path, figures: Path, wanted_figures: tuple[str, ...]) -> list[str]:
    """Check for tables as CSV, Markdown and LaTeX, and for figures as PNG and PDF, readable and not blank."""
    wanted = [results / "tables" / f"{stem}.{kind}" for stem in TABLES for kind in ("csv", "md", "tex")]
    wrong = [f"{path.name} is missing or empty" for path in wanted if not path.is_file() or not path.stat().st_size]
    pictures = sorted(figures.glob("*.png"))
    wrong += [f"there is no figure {name}*" for name in wanted_figures if not list(figures.glob(f"{name}*.png"))]
    for picture in pictures:
        with Image.open(picture) as image:
            darkest, lightest = image.convert("L").getextrema()
        if darkest == lightest:
            wrong.append(f"{picture.name} is blank")
        twin = picture.with_suffix(".pdf")
        if not twin.is_file() or not twin.read_bytes().startswith(b"%PDF"):
            wrong.append(f"{twin.name} is missing or no PDF")
    return wrong


def check(grid: dict, folder: Path) -> list[str]:
    """Return a line for each problem in the output of ``grid`` in ``folder``."""
    scale = grid.get("scale", "miniature")
    results = folder / "results" / scale
    runs = sorted(path.parent for path in results.glob("runs/*/answers.parquet"))
    there = {"runs": runs, "scores.csv": (results / "scores.csv").is_file()}
    if missing := [name for name, found in there.items() if not found]:
        return [f"results/{scale} has no {' and no '.join(missing)}"]
    answers = pd.concat([read_run(run) for run in runs], ignore_index=True)
    # an empty `scoring` means that there is only one way to score; an empty number is a missing value
    scores = pd.read_csv(results / "scores.csv").fillna({"scoring": "", "variant": ""})
    models = expected_models(grid)
    wrong = [line for run in runs for line in check_run(run)]
    return wrong + check_scores(scores, answers, models) + check_files(results, folder / "figures" / scale, FIGURES)


def main(grid_file: str, folder: str) -> int:
    wrong = check(yaml.safe_load(Path(grid_file).read_text()), Path(folder))
    print("\n".join(wrong) or f"the outcome of {grid_file} is complete and adds up")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
