"""Checks that two results folders hold the same numbers: python tools/compare_reference.py BEFORE AFTER

A results folder has runs/*/answers.parquet with provenance.json. Runs of the same model are compared row by row:
answers, likelihoods, tokens, fluency, sentences read token by token, draws and losses. Scores come from scores.csv or,
if a folder has none, from the runs in both folders. Weights of models are compared if both caches exist. Runs may have
other names and columns another order, but no number may change. The tool prints a table and the differences. The exit
status is 1 if there is a difference, or nothing to compare.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mllmu_nb import paths
from mllmu_nb.reporting.runs import items_of, read_run
from mllmu_nb.scoring.score import run_scores

SEEDS = ("data_seed", "train_seed", "unlearn_seed", "shot_seed")
MODEL = ("base_model", "forget_ratio", "replicate", "method", "variant", "modality", "protocol", *SEEDS)
MODEL += ("people", "unlearn_steps", "unlearn_lr", "settings")  # settings: the method's hyper-parameters
TRAINING = ("base_model", "people", "pool", "data_seed", "train_seed", "adaptation", "replay", "train_steps")
# Parameters that distinguish the trained models of a cache, by stage.
STAGES = {"vanilla": TRAINING, "oracle": (*TRAINING, "forget_ratio", "replicate")}
STAGES |= {"retain_epoch": STAGES["oracle"], "unlearned": MODEL}
ROW = ["set", "task", "view", "scoring", "order", "question_id"]
OPTIONS = [f"option_{letter}" for letter in "ABCD"]
ANSWERS = [*ROW, "profile", "shots", "answer", *OPTIONS, "tokens", "fluency"]
CELL = ["set", "task", "view", "scoring", "metric"]
VALUES = ["value", "low", "high", "n_items", "n_profiles"]
SAME, MISSING = "same", "-"


def answers(run: Path) -> pd.DataFrame:
    """Read the answers of a run, sorted by ``ROW``."""
    rows = pd.read_parquet(run / "answers.parquet")
    words = dict.fromkeys(("set", "task", "view", "scoring", "profile"), str)
    return rows[ANSWERS].astype(words).sort_values(ROW, ignore_index=True)


def sentences(run: Path) -> pd.DataFrame | None:
    """Read what the model gives each token of the taught sentences; None if the run does not store it."""
    file = run / "sentences.parquet"
    return pd.read_parquet(file) if file.is_file() else None


def losses(run: Path) -> list[float]:
    return json.loads((run / "train.json").read_text())["losses"].get("loss", [])


def draws(run: Path) -> dict:
    return json.loads((run / "draws.json").read_text())


def runs(folder: Path) -> dict[tuple, Path]:
    """Return parameters of the model → the folder of its run."""
    found: dict[tuple, Path] = {}
    for run in sorted(path.parent for path in folder.glob("runs/*/provenance.json")):
        key = key_of(run, MODEL)
        if key in found:
            raise SystemExit(f"{found[key]} and {run} are runs of one model: compare folders that hold one of them")
        found[key] = run
    return found


def record(folder: Path) -> dict:
    return json.loads((folder / "provenance.json").read_text())


def key_of(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Return the values of these parameters; "None" for one that an older record lacks."""
    return tuple(str(record(folder)["parameters"].get(name)) for name in names)


def models(folder: Path) -> dict[tuple, str]:
    """Return (stage, parameters) → sha256 of the weights, for the models in the cache next to a results folder."""
    hashes = {}
    for place in sorted(path.parent for path in folder.parent.parent.glob(".cache/stages/*/provenance.json")):
        stage = place.name.rpartition("-")[0]
        if stage in STAGES:
            weights = b"".join(path.read_bytes() for path in sorted(place.glob("*.safetensors")))
            key = (stage, *key_of(place, STAGES[stage]))
            hashes[key] = hashlib.sha256(weights).hexdigest()[:16]
    return hashes


def differing(before: pd.DataFrame, after: pd.DataFrame) -> Iterator[str]:
    """Yield a line per difference of two frames with the same columns. Numbers must have equal bits; NaN equals NaN."""
    if len(before) != len(after):
        yield f"{len(before)} rows before, {len(after)} after"
        return
    for name in before.columns:
        pairs = zip(before[name].tolist(), after[name].tolist(), strict=True)
        others = [pair for pair in pairs if not _equal(*pair)]
        if others:
            yield f"{name} of {len(others)} rows, the first {others[0][0]!r:.60} → {others[0][1]!r:.60}"


def _equal(before, after) -> bool:
    if isinstance(before, np.ndarray | list):
        return np.array_equal(before, after, equal_nan=np.asarray(before).dtype.kind == "f")
    return before == after or (before != before and after != after)


def compare_runs(before: Path, after: Path) -> tuple[dict[str, str], list[str]]:
    """Return the table row for two runs of one model, and a list of their differences."""
    problems = {"answers": list(differing(answers(before), answers(after)))}
    old, new = sentences(before), sentences(after)
    if old is not None and new is not None:
        problems["sentences"] = list(differing(old, new[list(old.columns)]))
    problems["draws"] = [] if draws(before) == draws(after) else ["other draws"]
    pairs = list(zip(losses(before), losses(after), strict=False))
    steps = [number + 1 for number, (one, other) in enumerate(pairs) if one != other]
    lengths = [] if len(losses(before)) == len(losses(after)) else ["another number of steps"]
    problems["losses"] = lengths + ([f"{len(steps)} steps, the first is {steps[0]}"] if steps else [])
    row = {name: "DIFFER" if found else SAME for name, found in problems.items()}
    return row, [f"{name}: {problem}" for name, found in problems.items() for problem in found]


def scores_in(folder: Path, other: Path) -> pd.DataFrame:
    """Read scores.csv of ``folder``. If it has none, like the reference, score its runs that are in both folders."""
    if (file := folder / "scores.csv").is_file():
        return pd.read_csv(file).fillna({"scoring": ""})
    shared = [run for run in sorted(paths.runs(folder).glob("*")) if (paths.runs(other) / run.name).is_dir()]
    scores = run_scores(items_of(list(map(read_run, shared)))) if shared else pd.DataFrame(columns=["run", *CELL])
    return scores.fillna({"scoring": ""})


def compare_scores(before: Path, after: Path, renamed: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return a line about scores.csv and a list of differences. Every score before must exist after. ``renamed``: run
    ID before → run ID after."""
    old, new, key = scores_in(before, after).replace({"run": renamed}), scores_in(after, before), ["run", *CELL]
    both = old.merge(new, "left", key, suffixes=("", " after"), indicator=True)
    there = both[both["_merge"] == "both"]
    if not len(there):
        return "scores.csv: no run in common", []
    lost = both.loc[(both["_merge"] != "both") & both["run"].isin(there["run"]), key]
    problems = [f"scores.csv: no {' '.join(map(str, row))}" for row in lost.itertuples(index=False)]
    for name in VALUES:
        pairs = there[[name, f"{name} after"]]
        other = pairs[~((pairs.iloc[:, 0] == pairs.iloc[:, 1]) | pairs.isna().all(axis=1))]
        if len(other):
            first = " ".join(map(str, there.loc[other.index[0], key]))
            values = " → ".join(map(str, other.iloc[0]))
            problems.append(f"scores.csv: {name} of {len(other)} cells, the first is {first}: {values}")
    return f"scores.csv: {len(there)} cells compared, {len(new) - len(there)} only after", problems


def main(before: str, after: str) -> int:
    folders = Path(before), Path(after)
    old, new = map(runs, folders)
    shared, table, problems = [key for key in old if key in new], [], []
    hashes = tuple(map(models, folders))
    for key in shared:
        row, found = compare_runs(old[key], new[key])
        table.append({"run": new[key].name, "rows": len(answers(new[key])), **row})
        problems += [f"{new[key].name}: {problem}" for problem in found]
    for key in (key for key in hashes[0] if key in hashes[1]):
        same = hashes[0][key] == hashes[1][key]
        name = " ".join(map(str, key[:1] if key[0] != "unlearned" else key[4:7]))
        table.append({"run": f"weights of {name}", "rows": hashes[1][key], "answers": SAME if same else "DIFFER"})
        problems += [] if same else [f"weights of {name}: {hashes[0][key]} → {hashes[1][key]}"]
    line, found = compare_scores(*folders, {record(old[key])["run"]: record(new[key])["run"] for key in shared})
    problems += found
    if table:
        print(pd.DataFrame(table).fillna(MISSING).to_string(index=False))
    print(f"{len(shared)} runs in both, {len(old) - len(shared)} only before, {len(new) - len(shared)} only after")
    print(line)
    print("\n".join(problems) or ("no difference" if table else "nothing to compare"))
    return 1 if problems or not table else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__.splitlines()[0])
    sys.exit(main(*sys.argv[1:]))
