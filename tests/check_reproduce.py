"""Check what `make reproduce` left behind: python tests/check_reproduce.py GRID FOLDER.

GRID is the grid that was run (a YAML file of configs/), FOLDER what holds results/ and figures/ (MLLMU_NB_OUT, or the
checkout). Everything is read from the files, without the package, and scores are computed again from the answers.
What is wrong is listed, one line each, and the exit status is 1.
"""

import json
import math
import sys
from itertools import product
from pathlib import Path

import pandas as pd
import yaml
from PIL import Image

MODEL = ("method", "modality", "forget_ratio", "forget_draw")  # what tells the models of a grid apart
Model = tuple[str, str, int, int]
TRAINED = {"ga", "grad_diff", "kl_min", "npo"}
SETS = ("forget", "test", "retain", "celebrity")
COLUMNS = (
    "base_model forget_ratio forget_draw method protocol variant modality seed data_seed train_seed unlearn_seed "
    "shot_seed set task view scoring metric value low high n_items n_profiles gate"
).split()
# task, scoring, metric, the column of the items that it is the mean of, its range
MEASURES = (
    ("classification", "letter", "accuracy", "correct", (0, 1)),
    ("classification", "likelihood", "accuracy", "correct", (0, 1)),
    ("generation", "", "rougeL", "rougeL", (0, 1)),
    ("generation", "", "exact", "exact", (0, 1)),
    ("generation", "", "factuality", "factuality", (1, 10)),
    ("cloze", "", "accuracy", "correct", (0, 1)),
)
TABLES = ("table1_data", "table2_main", "table2_by_view", "table2_differences", "cost")
FIGURES = ("profiles", "before_after", "forgetting_utility", "losses")  # beginnings of their names
ROUNDING = 1e-9  # of a mean that is written to a file and read back


def expected_models(grid: dict) -> set[Model]:
    """Every model the grid asks for."""
    axes = grid["grid"]
    ratios = axes.get("forget_ratio", [grid.get("forget_ratio", 10)])
    draws = axes.get("forget_draw", [grid.get("forget_draw", 0)])
    found = set()
    for method, ratio, draw in product(axes["method"], ratios, draws):
        found |= {(method, modality, ratio, draw) for modality in (axes["modality"] if method in TRAINED else ["none"])}
    return found


def check_scores(scores: pd.DataFrame, items: pd.DataFrame, models: set[Model]) -> list[str]:
    """Every expected cell is there once, within its range and interval, and is the mean of its answers."""
    if list(scores.columns) != COLUMNS:
        return [f"scores.csv has the columns {list(scores.columns)}"]
    wrong = []
    there = set(scores[list(MODEL)].itertuples(index=False, name=None))
    wrong += [f"no scores of {model}" for model in sorted(models - there)]
    wrong += [f"scores of {model}, which the grid does not ask for" for model in sorted(there - models)]
    for model in sorted(models & there):
        mine, answers = (frame[(frame[list(MODEL)] == list(model)).all(axis=1)] for frame in (scores, items))
        for set_name in SETS:
            for task, scoring, metric, column, bounds in MEASURES:
                for view in ("image_text", "text", "both"):
                    name = f"{model} {set_name} {task} {scoring} {metric} {view}"
                    which = "set == @set_name and task == @task and scoring == @scoring"
                    cell = mine.query(f"{which} and metric == @metric and view == @view")
                    asked = answers.query(which)
                    asked = asked if view == "both" else asked[asked["view"] == view]
                    wrong += check_cell(name, cell, asked[column], bounds)
    return wrong


def check_cell(name: str, cell: pd.DataFrame, answers: pd.Series, bounds: tuple[float, float]) -> list[str]:
    if len(cell) != 1:
        return [f"{name}: {len(cell)} rows instead of one"]
    row, (least, most) = cell.iloc[0], bounds
    if not least <= row["low"] <= row["value"] <= row["high"] <= most:
        return [f"{name}: {row['low']} ≤ {row['value']} ≤ {row['high']} does not hold within {least} to {most}"]
    if row["metric"] == "accuracy" and row["value"] in (0, 1) and row["low"] == row["high"]:
        return [f"{name}: all answers alike, but that is no certainty and the interval has no width"]
    if row["n_items"] != len(answers) or abs(row["value"] - answers.mean()) > ROUNDING:
        return [f"{name}: {row['value']} of {row['n_items']}, but {answers.mean()} of {len(answers)} in the items"]
    return []


def check_training(run: Path) -> list[str]:
    """A model that was trained has finite losses, one that was not has none; fine-tuning must have learnt something."""
    log, provenance = json.loads((run / "train.json").read_text()), json.loads((run / "provenance.json").read_text())
    losses, method = [step["loss"] for step in log["losses"]], log["method"]
    wrong = [] if provenance else [f"{run.name}: provenance.json is empty"]
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
    """Tables as CSV, Markdown and LaTeX; figures as PNG and PDF, readable and not blank."""
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
    """What is wrong with the outcome of ``grid`` in ``folder``; empty when all is well."""
    scale = grid.get("scale", "miniature")
    results = folder / "results" / scale
    runs = sorted(path.parent for path in results.glob("runs/*/items.parquet"))
    missing = [
        name for name, there in (("runs", runs), ("scores.csv", (results / "scores.csv").is_file())) if not there
    ]
    if missing:
        return [f"results/{scale} has no {' and no '.join(missing)}"]
    items = pd.concat([pd.read_parquet(run / "items.parquet") for run in runs], ignore_index=True)
    # an empty cell of `scoring` means that there is only one way to score; an empty number is a missing one
    scores = pd.read_csv(results / "scores.csv").fillna({"scoring": "", "variant": ""})
    models = expected_models(grid)
    compares = {"multimodal", "unimodal"} <= {modality for _, modality, *_ in models}
    drawn = FIGURES + ("modality_bars_forget", "modality_bars_retain") * compares
    wrong = [line for run in runs for line in check_training(run)]
    return wrong + check_scores(scores, items, models) + check_files(results, folder / "figures" / scale, drawn)


def main(grid_file: str, folder: str) -> int:
    wrong = check(yaml.safe_load(Path(grid_file).read_text()), Path(folder))
    print("\n".join(wrong) or f"the outcome of {grid_file} is complete and adds up")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
