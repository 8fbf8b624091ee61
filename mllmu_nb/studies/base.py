"""What a study is: a grid of ordinary runs about a question, and the table and figures that are made of their scores.

A study's file registers a :class:`Study`; it is found because it lies in this package or is named by
MLLMU_NB_EXTENSIONS. Here is the rest: :func:`make` makes the runs that are missing, in ``<study>/runs``, apart from
those that the main tables are made of, and writes

- ``scores.parquet``: ``score``, the sum over ``items`` answers, for every setting (method, variant, modality,
  replicate, and the parameters in which the study's settings differ; 0 where a model has none), set, task, view,
  scoring, metric and profile;
- ``settings.csv``: the setting, ``unlearn_lr``, optimizer ``steps``, their ``passes`` over the forget set and
  ``supervised_tokens`` of every run, and in ``diverged`` why a training broke off. Such a run has no scores.

A study that comes with the project is stored in the same form, without its runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mllmu_nb import paths, pipeline, provenance, registry
from mllmu_nb.batches import steps_of, unlearning_steps
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import Conversation, training_conversations
from mllmu_nb.errors import KitError
from mllmu_nb.reporting.runs import read_run
from mllmu_nb.scoring.frames import GROUP, of_metric
from mllmu_nb.scoring.registry import by_key
from mllmu_nb.scoring.score import item_scores
from mllmu_nb.stages import RECORD, lock, read_json, write_json

SETTING = ["method", "variant", "modality", "replicate"]
# The metrics that studies look at → (task, scoring, metric).
MEASURES = {
    "likelihood": ("classification", "likelihood", "accuracy"),
    "letter": ("classification", "letter", "accuracy"),
    "rougeL": ("generation", "", "rougeL"),
    "exact": ("generation", "", "exact"),
    "cloze": ("cloze", "", "accuracy"),
    "broken": ("generation", "", "broken"),
}
STUDIES = registry.Registry("study")


@dataclass(frozen=True)
class Study:
    """A question asked with a grid.

    ``grid`` (config of vanilla, forget draws) → every setting; ``by``: the parameters in which they differ, beside
    those of :data:`SETTING`; ``draws``: the forget sets, unless others are named. ``table`` is made of what was
    measured, ``printed`` is how it is read. A setting is asked about ``sets`` (config), the first ``limit`` people of
    each: people are made alike, so the first of a set are as good as any drawn at random.
    """

    name: str
    question: str
    grid: Callable[[Config, Sequence[int]], list[Config]]
    table: Callable[[Measured], pd.DataFrame]
    printed: Callable[[pd.DataFrame], pd.DataFrame]
    draws: tuple[int, ...]
    by: tuple[str, ...] = ()
    measures: tuple[str, ...] = ("likelihood", "letter", "rougeL", "exact", "cloze")
    sets: Callable[[Config], Sequence[str]] = lambda config: ("forget", "retain")
    limit: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "__module__", self.grid.__module__)  # by which the registry tells owners apart

    @property
    def setting(self) -> list[str]:
        return [*SETTING, *self.by]

    def values(self, parameters: dict) -> dict:
        """What a run's parameters are in the columns of ``setting``."""
        return {name: 0 if parameters.get(name) is None else parameters[name] for name in self.setting}


def register(study: Study) -> Study:
    return STUDIES.add(study.name, study)


def studies() -> list[Study]:
    """Every study there is."""
    import mllmu_nb.studies as package

    registry.import_all(package)
    return STUDIES.values()


def get(name: str) -> Study:
    studies()
    return STUDIES.get(name)


# -- making one -------------------------------------------------------------------------------------------------


def make(study: Study, config: Config, draws: Sequence[int] = (), jobs: int = 1) -> Path:
    """The study's folder, made if need be: ``jobs`` runs at a time, each in a process of its own (one job: in this
    one). Stopped, it goes on from there. ``config`` says who the people are and how vanilla is trained; its method
    and forget draw are passed over. Raises KitError for another scale than the miniature's, where nobody could wait.
    """
    if config.scale != "miniature":
        raise KitError("studies are made on the miniature: set scale to 'miniature'")
    plain = config.but(method="vanilla", modality="none", variant=None, replicate=0)
    draws = list(draws or study.draws)
    grid = study.grid(plain, draws)
    folder = paths.study(paths.results(plain.scale), study.name)
    paths.writable(paths.runs(folder))
    pipeline.write_people(plain, paths.people(folder))
    for seed in sorted({one.train_seed for one in grid}):
        pipeline.finetuned(plain.but(train_seed=seed)).get()  # once, before two ask for it
    tasks = [(one, paths.runs(folder) / one.run_id, study.sets(one), study.limit) for one in grid]
    made = list(zip(grid, (task[1] for task in tasks), each(_run, tasks, jobs), strict=True))
    finished = [place for _, place, diverged in made if not diverged]
    record = {"replicates": draws, "parameters": plain.parameters(), "scale": plain.scale}
    record |= {"data_hash": pipeline.data_hash(plain), "base_hash": pipeline.base_hash(plain)}
    record["seconds"] = round(sum(read_json(place / RECORD)["seconds"] for place in finished), 1)
    runs = [run.answers.assign(**study.values(run.parameters)) for run in map(read_run, finished)]
    scores = by_person(item_scores(pd.concat(runs, ignore_index=True)), study.setting, study.measures)
    with lock(folder):
        scores.to_parquet(folder / "scores.parquet", index=False, compression="zstd")
        pd.DataFrame([_training(study, *one) for one in made]).to_csv(folder / "settings.csv", index=False)
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


def _run(task: tuple[Config, Path, Sequence[str], int | None]) -> str:
    """Makes one run; returns why its training diverged, or an empty text."""
    from mllmu_nb.training import TrainingDiverged

    studies()  # so that a study's own variants and steps are registered in this process as well
    config, at, sets, limit = task
    try:
        pipeline.answered(config, at=at, sets=sets, limit=limit).get()
    except TrainingDiverged as reason:
        return str(reason)
    return ""


def _training(study: Study, config: Config, folder: Path, diverged: str) -> dict:
    """A row of settings.csv."""
    row = study.values(config.parameters() | config.settings) | {"unlearn_lr": config.unlearn_lr or 0}
    row |= {"steps": 0, "passes": 0.0, "supervised_tokens": 0, "diverged": diverged}
    if config.trains:
        sets = conversations(config)
        row["steps"] = unlearning_steps(config.objective, config.unlearning, sets)
        row["passes"] = row["steps"] / steps_of(sets["forget"], 1, config.unlearning.batch_size)
        row["supervised_tokens"] = 0 if diverged else read_json(folder / "train.json")["supervised_tokens"]
    return row


def conversations(config: Config) -> dict[str, list[Conversation]]:
    """What ``config`` unlearns and what it keeps, by set."""
    known = pipeline.population(config)
    return {name: training_conversations(known.members(name), config.modality) for name in ("forget", "retain")}


def by_person(items: pd.DataFrame, setting: Sequence[str], measures: Iterable[str]) -> pd.DataFrame:
    """Scored answers (a row an answer) as rows of scores.parquet. What an answer has no value for counts as no item."""
    known, key, parts = by_key(), [*setting, "set", "task", "view", "scoring", "metric", "profile"], []
    for task, scoring, metric in map(MEASURES.get, measures):
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

    @property
    def committed(self) -> bool:
        """Whether it is the study that comes with the project."""
        return self.folder.is_relative_to(paths.reference())

    def is_of(self, record: dict) -> bool:
        """Whether a run could stand beside the study: same base model, protocol, ratio and training seed."""
        ours, theirs = self.record["parameters"], record["parameters"]
        return all(str(ours[name]) == str(theirs[name]) for name in (*GROUP, "train_seed"))


def read(name: str, scale: str = "miniature") -> Measured:
    """One's own study, else the one that comes with the project. KitError without both."""
    for results in (paths.results(scale), *([paths.reference()] if scale == "miniature" else [])):
        folder = paths.study(results, name)
        if (folder / RECORD).is_file():
            scores = pd.read_parquet(folder / "scores.parquet")
            settings = pd.read_csv(folder / "settings.csv", dtype={"diverged": str}).fillna({"diverged": ""})
            names = {key: name for name, key in MEASURES.items()}
            measures = [names.get(key, key[-1]) for key in zip(scores.task, scores.scoring, scores.metric, strict=True)]
            return Measured(folder, read_json(folder / RECORD), scores.assign(measure=measures), settings)
    command = f"python -m mllmu_nb study {name}"
    raise KitError(f"the study {name} is not there at scale {scale}: `{command}` makes it on the miniature")


def provenance_line(measured: Measured) -> str:
    """Whose study it is, and before all else whether its vanilla is an older one than that of the runs beside it:
    taught other people, from another base, or for another time."""
    whose = "the study that comes with the project" if measured.committed else "your own study"
    line = f"{whose}, forget draws {measured.record['replicates']}"
    results = paths.reference() if measured.committed else paths.results(measured.record["scale"])
    records = map(read_json, sorted(paths.runs(results).glob(f"vanilla-*/{RECORD}")))
    if (vanilla := next(filter(measured.is_of, records), None)) is None:
        return line
    ours, theirs = ({**one, **one["parameters"]} for one in (measured.record, vanilla))
    names = [name for name in ("data_hash", "base_hash", "train_steps") if ours[name] != theirs[name]]
    older = ", ".join(f"{name} {ours[name]} (now {theirs[name]})" for name in names)
    return f"made with an older vanilla: {older}; {line}" if older else line


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
