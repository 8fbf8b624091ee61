"""What a study is made with: a grid of ordinary runs about one question, and what they scored, summed by person.

:func:`make` makes the runs that are missing, in ``studies/differences/runs``, apart from those that the main tables are
made of, and writes

- ``scores.parquet``: ``score``, the sum over ``items`` answers, for every SETTING, set, task, view, scoring, metric and
  profile;
- ``settings.csv``: every SETTING with optimizer ``steps`` and ``supervised_tokens``, and in ``diverged`` why a training
  broke off. Such a run has no scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mllmu_nb import paths, pipeline, provenance
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting.runs import made_of, read_run
from mllmu_nb.scoring.frames import of_metric
from mllmu_nb.scoring.registry import by_key
from mllmu_nb.scoring.score import item_scores
from mllmu_nb.stages import RECORD, lock, read_json, write_json
from mllmu_nb.studies import released_code  # noqa: F401  its variants, in every process

NAME = "differences"
SETTING = ["method", "variant", "modality", "replicate", "shot_source", "shot_seed"]
# Measure → (task, scoring, metric).
MEASURES = {
    "likelihood": ("classification", "likelihood", "accuracy"),
    "letter": ("classification", "letter", "accuracy"),
    "exact": ("generation", "", "exact"),
    "cloze": ("cloze", "", "accuracy"),
}


def make(grid: Sequence[Config], jobs: int = 1, limit: int | None = None) -> Path:
    """The study's folder, made if need be: ``jobs`` runs at a time, each in a process of its own (one job: in this
    one). Stopped, it goes on from there. Vanilla is asked about the forget people, other models about the retain people
    as well, ``limit`` (all) of each."""
    plain = grid[0].but(method="vanilla", variant=None, modality="none", replicate=0)
    folder = paths.study(paths.results(plain.scale), NAME)
    paths.writable(paths.runs(folder))
    pipeline.write_people(plain, paths.people(folder))
    for seed in sorted({one.train_seed for one in grid}):
        pipeline.finetuned(plain.but(train_seed=seed)).get()  # once, before two ask for it
    tasks = [(one, paths.runs(folder) / one.run_id, limit) for one in grid]
    made = list(zip(grid, (place for _, place, _ in tasks), each(_run, tasks, jobs), strict=True))
    finished = [place for _, place, diverged in made if not diverged]
    record = {"replicates": sorted({one.replicate for one in grid}), "scale": plain.scale, **_vanilla(plain)}
    record["seconds"] = round(sum(read_json(place / RECORD)["seconds"] for place in finished), 1)
    runs = [
        run.answers.assign(**dict(zip(SETTING, run.values(SETTING), strict=True))) for run in map(read_run, finished)
    ]
    with lock(folder):
        scores = by_person(item_scores(pd.concat(runs, ignore_index=True)))
        scores.to_parquet(folder / "scores.parquet", index=False, compression="zstd")
        pd.DataFrame([_training(*one) for one in made]).to_csv(folder / "settings.csv", index=False)
        write_json(folder / RECORD, provenance.record(**record))
    return folder


def each(work: Callable, tasks: Sequence, jobs: int) -> list:
    """What ``work`` makes of every task, in their order. Stopped, it lets go of the tasks that have not begun."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from tqdm import tqdm

    bar = {"total": len(tasks), "unit": "run", "disable": None, "mininterval": 1.0}
    if jobs == 1:
        return list(tqdm(map(work, tasks), **bar))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=pipeline.end_with_parent) as pool:
        try:
            return list(tqdm(pool.map(work, tasks), **bar))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run(task: tuple[Config, Path, int | None]) -> str:
    """Makes one run; returns why its training diverged, or an empty text."""
    from mllmu_nb.training import TrainingDiverged

    config, at, limit = task
    try:
        sets = ("forget", "retain") if config.trains else ("forget",)
        pipeline.answered(config, at=at, sets=sets, limit=limit).get()
    except TrainingDiverged as reason:
        return str(reason)
    return ""


def _training(config: Config, folder: Path, diverged: str) -> dict:
    """A row of settings.csv."""
    parameters = config.parameters()
    log = {} if diverged else read_json(folder / "train.json")
    row = {name: parameters[name] for name in SETTING}
    return row | {name: log.get(name, 0) for name in ("steps", "supervised_tokens")} | {"diverged": diverged}


def by_person(items: pd.DataFrame) -> pd.DataFrame:
    """Scored answers (a row an answer) as rows of scores.parquet. What an answer has no value for counts as no item."""
    known, key, parts = by_key(), [*SETTING, "set", "task", "view", "scoring", "metric", "profile"], []
    for task, scoring, metric in MEASURES.values():
        asked = of_metric(items, task, scoring)
        score = asked[known[task, scoring, metric].column].astype(float)
        rows = asked.assign(metric=metric, score=score, items=score.notna().astype(int))
        parts.append(rows.groupby(key, sort=False, observed=True)[["score", "items"]].sum())
    return pd.concat(parts).reset_index()


# -- reading one ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What a study has measured: ``record`` is how it was made, ``scores`` and ``settings`` are described above. A
    score's ``measure`` is its name in :data:`MEASURES`."""

    folder: Path
    record: dict
    scores: pd.DataFrame
    settings: pd.DataFrame


def read() -> Measured:
    """One's own study, else the one that comes with the project. KitError, with the command that makes it, where there
    is none, or none of the vanilla that the kit makes now: of other people, from another base, or taught otherwise."""
    now = made_of([_vanilla(Config())])
    for results in (paths.results("miniature"), paths.reference()):
        folder = paths.study(results, NAME)
        if (folder / RECORD).is_file() and made_of([record := read_json(folder / RECORD)]) == now:
            scores = pd.read_parquet(folder / "scores.parquet")
            settings = pd.read_csv(folder / "settings.csv", dtype={"diverged": str}).fillna({"diverged": ""})
            names = {key: name for name, key in MEASURES.items()}
            measures = [names[key] for key in zip(scores["task"], scores["scoring"], scores["metric"], strict=True)]
            return Measured(folder, record, scores.assign(measure=measures), settings)
    raise KitError(f"there is no study of this vanilla yet: `python -m mllmu_nb study {NAME}` makes it")


def _vanilla(config: Config) -> dict:
    """What a record says of the vanilla that runs start from."""
    hashes = {"data_hash": pipeline.data_hash(config), "base_hash": pipeline.base_hash(config)}
    return {"parameters": provenance.public(config.parameters()), **hashes}


# -- queries ----------------------------------------------------------------------------------------------------


def only(rows: pd.DataFrame, **values) -> pd.DataFrame:
    """The rows with these values in these columns; of a tuple, with one of these."""
    for name, value in values.items():
        rows = rows[rows[name].isin(value) if isinstance(value, tuple) else rows[name] == value]
    return rows


def label(measure: str) -> str:
    """A measure as it is printed, without its unit."""
    return by_key()[MEASURES[measure]].label.removesuffix(" %")


def answers(rows: pd.DataFrame, score: str = "score") -> tuple[np.ndarray, np.ndarray]:
    """(values, profiles), an entry an item, with the sums of ``rows``: a whole sum as so many ones, else as its mean.

    Intervals are made of people's sums, and look at values only to see whether all of them are 0 or 1.
    """
    counts, sums = rows["items"].to_numpy(int), rows[score].to_numpy(float)
    place = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    ones = np.where((sums == sums.round()) & (sums <= counts), sums, np.nan)
    values = np.where(np.isnan(ones), sums / np.maximum(counts, 1), 0.0)
    return np.repeat(values, counts) + (place < np.repeat(ones, counts)), np.repeat(rows["profile"].to_numpy(), counts)
