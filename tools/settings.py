"""Chooses the unlearning settings of every method on other worlds: python tools/settings.py OUT.json [--worlds 101 102]

The rule, written down first; what was changed after trials stands in it:

1. A *world* is a population with another data seed, whole, with a vanilla and an oracle of its own. No person of a
   reported population is ever looked at.
2. A *point* is a learning rate and, where the method has one, its own weight (``WEIGHTS``). Every method and modality
   begins with five points: three rates at the middle weight, then two more weights at the rate that was chosen; without
   a weight, five rates. At a point the method is trained once a world at a constant rate, and asked along its path.
3. Its length is the number of steps at which half of the gap from vanilla to oracle is closed on Forget, in the view
   that is trained, by the mean of the worlds' curves. A point is trained for twice its length. One that gets there past
   5/8 of the training, or never, is trained again for the next longer length, and one that gets there within the first
   quarter for the next shorter one. The first length is the longer, the lower the rate. (Lengths of 10 and 20 were
   added when GA on image + text had been tried: at eight times the middle rate it needs nine steps, and the points of
   a path of 40 are too far apart to see its edge.)
4. Of the points with *no edge* (20 % more or fewer steps change Forget by at most 10 points on average), the one that
   keeps most there: likelihood about Retain and the celebrities, half each. Where every point has an edge, the one that
   keeps most of all, and the edge is the finding. (Until GA on image + text had been tried, it was the one with the
   smallest edge. Its seven points, from a quarter of the middle rate to sixteen times it, have edges of 19 to 26:
   two worlds do not tell them apart, and chance would choose.)
5. While the chosen rate or weight is the first or last of those tried, one more is tried beyond it, at most
   ``GROWTHS`` times each; then it is said to lie on the border. (``GROWTHS`` was 2 in the
   first search. The two of ten choices that lay on the border were continued with 4, decided before that.)

What is finished is not done again: trainings are stages in the cache, the file is written after every method, and a
choice on the border is continued from the points in the file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from mllmu_nb import inputs, pipeline
from mllmu_nb.config import Config
from mllmu_nb.evaluation import path as measuring
from mllmu_nb.scoring import path
from mllmu_nb.scoring.frames import joined, people_frames, with_rivals
from mllmu_nb.stages import Stage
from mllmu_nb.training import TrainingDiverged

WORLDS = (101, 102)  # data seeds
STEP = 2.0  # ratio of neighbouring values of a grid
RATES = (5e-4, 1e-3, 2e-3)
MORE_RATES = (2.5e-4, *RATES, 4e-3)  # for a method without a weight
# (method, variant) → the name of its weight ("": none), and the first values to try.
WEIGHTS = {
    ("ga", "canonical"): ("", ()),
    ("grad_diff", "canonical"): ("alpha", (1.0, 2.0, 4.0)),
    ("kl_min", "canonical"): ("alpha", (1.0, 2.0, 4.0)),
    ("npo", "canonical"): ("beta", (0.1, 0.2, 0.4)),
    ("npo", "retain"): ("alpha", (1.0, 2.0, 4.0)),
}
TARGET, EDGE, AROUND = 0.5, 0.10, 0.2
LENGTHS = (10, 20, 40, 80, 160, 320)  # optimizer steps that a point may be trained for
MIDDLE_LENGTH = 80  # the first length tried at the middle rate
GROWTHS = 4
Point = tuple[float, float]  # rate and weight; the weight is 0 if the method has none


def settings(method: str, variant: str, modality: str, point: Point, steps: int) -> dict:
    """Return the parameters of a point."""
    name, _ = WEIGHTS[method, variant]
    own = {"method": method, "variant": variant, "modality": modality}
    own |= {"unlearn_lr": point[0], "unlearn_steps": steps}
    return own | ({name: point[1]} if name else {})


def points_of(config: Config, stage: Stage) -> pd.DataFrame:
    """Return the answers along the path of a stage, by person, with the columns of ``config``'s run."""
    values = config.parameters()
    columns = {name: values[name] for name in (*path.PEOPLE, *path.MODEL) if name != "taught"}
    answers = pd.read_parquet(stage.get() / "path.parquet").assign(order=0, run=config.run_id, taught="", **columns)
    return path.by_person(joined(answers, with_rivals(*people_frames(inputs.population(config)))))


def end(config: Config, name: str) -> Stage:
    """Return a stage that measures a world's ``vanilla`` or ``oracle`` as a path of one point."""
    made = pipeline.finetuned(config, name)

    def make(folder: Path) -> None:
        model, processor = pipeline.filled(config, made)
        asked = measuring.questions(model, processor, inputs.population(config))
        measuring.write({0: measuring.point(model, processor, asked)}, folder / "path.parquet")

    return Stage("point", {"model": made.key, "forget": list(inputs.population(config).forget_ids)}, make)


def measured(worlds: Sequence[Config], given: Mapping) -> list[path.Curve] | None:
    """Return a point's curves, one per world; None if one diverged or a world's oracle knows as much as vanilla."""
    curves = []
    for world in worlds:
        config = world.but(**given)
        try:
            mine = points_of(config, pipeline.unlearned(config))
        except TrainingDiverged:
            return None
        theirs = points_of(world.but(method="oracle"), end(world, "oracle"))
        curves += path.curves(pd.concat([mine, theirs])).values()
    return curves if len(curves) == len(worlds) else None


def read(curves: Sequence[path.Curve], gap: float) -> dict:
    """Read the worlds' mean curve at the target: ``steps`` needed (missing: never reached), what is ``kept`` there, and
    ``edge``, the larger change of Forget (as a share) at 20 % fewer or more steps. ``gap``: vanilla to oracle."""
    steps = curves[0].steps.astype(float)
    closed = np.mean([one.closed for one in curves], axis=0)
    [weights] = path.crossings(closed, [TARGET])
    if np.isnan(weights).any():
        return {"reached": float(closed.max())}
    length = float(weights @ steps)
    around = np.interp([(1 - AROUND) * length, length, (1 + AROUND) * length], steps, closed)
    edge = gap * float(max(around[1] - around[0], around[2] - around[1]))
    sides = [np.mean([weights @ one.read[name][1] for one in curves]) for name in ("retain", "celebrity")]
    return {"steps": length, "kept": float(np.mean(sides)), "edge": edge, "reached": float(closed.max())}


def tried(worlds: Sequence[Config], method: str, variant: str, modality: str, point: Point) -> dict:
    """Try a point at the length that suits its rate, then at longer or shorter lengths if needed (rule 3)."""
    first = LENGTHS.index(MIDDLE_LENGTH) + round(np.log(RATES[1] / point[0]) / np.log(STEP))
    at, seen, row = min(max(first, 0), len(LENGTHS) - 1), set(), {}
    while at not in seen and 0 <= at < len(LENGTHS):
        seen.add(at)
        curves = measured(worlds, settings(method, variant, modality, point, LENGTHS[at]))
        if curves is None:  # keep the result of the length before
            return row or {"lr": point[0], "weight": point[1], "trained": LENGTHS[at], "diverged": True}
        row = {"lr": point[0], "weight": point[1], "trained": LENGTHS[at], "diverged": False}
        row |= read(curves, np.mean([_gap(world, modality) for world in worlds]))
        share = row.get("steps", np.inf) / LENGTHS[at]
        at += 1 if share > 1.25 else -1 if share < 0.5 else 0
    return row


def _gap(world: Config, modality: str) -> float:
    """The gap from vanilla to oracle on Forget, in the trained view."""
    view, ends = path.TRAINED_VIEW[modality], []
    for name in ("vanilla", "oracle"):
        rows = points_of(world.but(method=name), end(world, name))
        rows = rows[(rows["set"] == "forget") & (rows["view"] == view) & (rows["measure"] == path.LIKELIHOOD)]
        ends.append(rows["score"].sum() / rows["items"].sum())
    return ends[0] - ends[1]


def best(rows: Sequence[Mapping]) -> Mapping | None:
    """Return the chosen one of the tried points, by rule 4; None if no point closes half of the gap."""
    there = [row for row in rows if "steps" in row]
    sound = [row for row in there if row["edge"] <= EDGE]
    return max(sound or there, key=lambda row: (row["kept"], -row["lr"]), default=None)


def along(values: Sequence[float], axis: int, point_of: Callable[[float], Point], rows: dict, trial: Callable) -> bool:
    """Try the points at ``values`` of a rate (``axis`` 0) or weight (1), and further ones while the best of them is the
    first or last (rule 5). Return whether the best lies inside. Fills ``rows``: point → its result, which
    may have other points too."""
    values = sorted({*values, *(point[axis] for point in rows if point_of(point[axis]) == point)})
    for growth in range(GROWTHS + 1):
        for point in map(point_of, values):
            if point not in rows:
                rows[point] = trial(point)
        chosen = best([rows[point] for point in map(point_of, values)])
        chosen_point = chosen and (chosen["lr"], chosen["weight"])
        if chosen_point not in (point_of(values[0]), point_of(values[-1])):
            return chosen is not None
        if growth < GROWTHS:
            low = chosen_point == point_of(values[0])
            values = [values[0] / STEP, *values] if low else [*values, values[-1] * STEP]
    return False


def search(
    worlds: Sequence[Config],
    method: str,
    variant: str,
    modality: str,
    known: Sequence[dict] = (),
) -> dict:
    """Return the choice for one method and modality, with all tried points. ``known``: results of points that are not
    tried again."""
    name, weights = WEIGHTS[method, variant]
    centre, rows = (weights[len(weights) // 2] if name else 0.0), {(row["lr"], row["weight"]): row for row in known}

    def trial(point: Point) -> dict:
        return tried(worlds, method, variant, modality, point)

    inside = along(RATES if name else MORE_RATES, 0, lambda rate: (rate, centre), rows, trial)
    if name and (chosen := best(list(rows.values()))):
        inside = along(weights, 1, lambda weight: (chosen["lr"], weight), rows, trial) and inside
    chosen = best(list(rows.values()))
    choice = {**(chosen or {}), "weight_name": name, "inside": inside, "points": list(rows.values())}
    if chosen:
        choice |= {"steps": round(chosen["steps"]), "has_edge": bool(chosen["edge"] > EDGE)}
    return {"method": method, "variant": variant, "modality": modality, **choice}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the file of choices; methods that it has are not tried again")
    parser.add_argument("--worlds", type=int, nargs="+", default=WORLDS, help="data seeds of the validation worlds")
    parser.add_argument("--only", nargs="+", help="methods, as ga or npo/retain")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="parameters of all runs, as YAML")
    options = parser.parse_args()
    fixed = dict(one.split("=", 1) for one in options.set)
    fixed = {name: yaml.safe_load(value) for name, value in fixed.items()}
    worlds = [Config.from_parameters({**fixed, "data_seed": seed, "train_seed": seed}) for seed in options.worlds]
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {"choices": []}
    known |= {"rule": __doc__, "worlds": list(options.worlds), "base_hash": inputs.base_hash(worlds[0])}
    chosen = {(one["method"], one["variant"], one["modality"]): one for one in known["choices"]}
    every = [(*name, modality) for name in WEIGHTS for modality in path.TRAINED_VIEW]
    for method, variant, modality in every:
        names = {method, f"{method}/{variant}"}
        before = chosen.get((method, variant, modality), {})
        if before.get("inside") or (options.only and not names & set(options.only)):
            continue
        choice = search(worlds, method, variant, modality, before.get("points", ()))
        chosen[method, variant, modality] = choice
        known["choices"] = [chosen[each] for each in every if each in chosen]
        options.out.write_text(json.dumps(known, indent=1, default=float) + "\n", encoding="utf-8")
        last = {name: value for name, value in choice.items() if name != "points"}
        print(json.dumps(last, default=float), flush=True)


if __name__ == "__main__":
    main()
