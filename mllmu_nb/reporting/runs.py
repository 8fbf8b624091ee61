"""Reads finished runs from the folders ``runs`` and ``people`` of results, and scores them. Every table and figure
starts here."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd

from mllmu_nb import paths, unlearning
from mllmu_nb.config import YOURS, Config, stable_hash
from mllmu_nb.errors import KitError, choose
from mllmu_nb.scoring import judge, path
from mllmu_nb.scoring.frames import GROUP, MODEL, POOLED, RUN, SEEDS, has, joined, with_rivals
from mllmu_nb.scoring.gates import gates, missed, with_gate
from mllmu_nb.scoring.health import Unsound, judged, unsound
from mllmu_nb.scoring.ranking import Ranking, ranking
from mllmu_nb.scoring.registry import metrics
from mllmu_nb.scoring.score import cells, item_scores, run_scores
from mllmu_nb.scoring.summary import EXAMPLES
from mllmu_nb.stages import OF_A_RUN, RECORD, Stage, digest, is_whole, read_json, state

MODALITIES = {"multimodal": "image + text", "unimodal": "text only"}
REFERENCES = {"base": "Base", "vanilla": "Vanilla", "oracle": "Oracle"}
COLLAPSED = "‡"
OWN, COMMITTED = "your own run", "the committed reference run"
TAUGHT_BY = ("base_path", "adaptation", "replay", "exams", "train_steps", "train_lr", "schedule", "label_mode", "eos")
# The same, but left out of the hash at these values: records that are older than the parameters imply them.
TAUGHT_TOO: dict[str, Any] = {"base_revision": "", "vanilla_path": "", "vanilla_revision": "", "train_modality": "both"}
TAUGHT_TOO |= {"adapter_reach": "language", "adam": "torch", "adam_eps": 1e-8, "precision": None}
TAUGHT_TOO |= {"quantise_base": None, "micro_batch": 0, "checkpointing": False, "train_batch_size": 0}
OF_RECIPES = ("schedule", "precision", "micro_batch", "train_batch_size")  # of fine-tuning and unlearning alike
FRAMES = ("items", "cells", "judged", "points")
# Parameters that are columns of a run or of its answers already, or that change no score.
NOT_VARIED = {*RUN, "seed", "settings", "scoring", "eval_batch"}


@dataclass(frozen=True)
class Run:
    """One finished run: ``record`` is its provenance, ``train`` how its model was trained. Its frames are read when
    they are first used; None if the run has no such frame. ``answers`` and ``path`` are joined with their questions and
    the columns of the run; ``sentences`` and ``utility`` (answers about nobody) only with these columns."""

    folder: Path
    record: dict
    train: dict
    frames: dict[str, pd.DataFrame | None] = field(default_factory=dict)  # those read so far

    answers = property(lambda self: self._frame("answers"))
    sentences = property(lambda self: self._frame("sentences"))
    path = property(lambda self: self._frame("path"))
    utility = property(lambda self: self._frame("utility"))

    def _frame(self, name: str) -> pd.DataFrame | None:
        if name not in self.frames:
            self.frames[name] = _stored(self.folder, self.record, name)
        return self.frames[name]

    @property
    def id(self) -> str:
        return self.folder.name

    @cached_property
    def columns(self) -> dict[str, Any]:
        """The columns that say which run a row is of."""
        return columns_of(self.record)

    def __getitem__(self, column: str) -> Any:
        """A column of the run (``method``, ``modality``, ``forget_ratio`` ..)."""
        return self.columns[column]

    @property
    def parameters(self) -> dict[str, Any]:
        """Resolved parameters, the method's hyper-parameters among them."""
        return {**self.record["parameters"], **self.record["parameters"]["settings"]}

    @cached_property
    def items(self) -> pd.DataFrame:
        """The answers with one column per metric."""
        return item_scores(self.answers)

    def values(self, names: Iterable[str]) -> dict[str, Any]:
        """Parameters by name, "" for those that the run does not have; lists as text, so that they fit in a cell."""
        known = {name: value for name, value in self.parameters.items() if value is not None}
        if self["modality"] == "none":  # nothing was unlearned
            known.pop("unlearn_batch_size", None)
        known |= {name: str(value) for name, value in known.items() if isinstance(value, list | tuple | dict)}
        return {name: known.get(name, "") for name in names}

    @property
    def model(self) -> tuple:
        """(method, variant, modality, after)."""
        return tuple(self[column] for column in MODEL)

    @property
    def label(self) -> str:
        return label(*self.model)

    @property
    def base_label(self) -> str:
        """The printed name of the base model's family."""
        return self.record["base_label"]


def columns_of(record: dict) -> dict[str, Any]:
    """The columns that say which run a row is of; for a model that was made elsewhere, ``method`` is its ``name``."""
    parameters = {**record["parameters"], "run": record["run"], "scale": record["scale"], "taught": taught_by(record)}
    return {column: parameters[column] for column in RUN} | ({"method": record["name"]} if record.get("name") else {})


def taught_by(record: dict) -> str:
    """A hash of everything that determines the vanilla model of a run."""
    parameters = record["parameters"]
    if any(parameters.get(name) for name in OF_RECIPES):  # vanilla's own has only what changes its training
        known = {name: value for name, value in parameters.items() if name in Config.model_fields}
        known |= {"method": "vanilla", "modality": "none", "variant": None, "after": "", "settings": {}}
        known["adapter_path"] = ""
        parameters = parameters | Config.from_parameters(known).parameters()
    taught = [parameters.get(name) for name in TAUGHT_BY]
    taught += [[name, parameters[name]] for name, usual in TAUGHT_TOO.items() if parameters.get(name, usual) != usual]
    # folders of one name may differ
    taught += [record["base_hash"]] if parameters.get("base_path") else []
    taught += [record["vanilla_hash"]] if record.get("vanilla_hash") else []
    return stable_hash([record["data_hash"], *taught])


def _stored(folder: Path, record: dict, name: str) -> pd.DataFrame | None:
    """Read a frame of the run in ``folder``; None if it has none. Raises KitError if the file differs from the
    ``record``, or if the questions of its people cannot be read or lack some that it answers."""
    file, results = folder / f"{name}.parquet", folder.parent.parent
    if file.name not in record["files"]:
        return None
    if not file.is_file() or digest(file) != record["files"][file.name]:
        raise KitError(f"{file} was changed or removed after its run was read: start again")
    rows = pd.read_parquet(file).assign(**columns_of(record))
    if name not in ("answers", "path"):
        return rows
    people = paths.people(results) / record["data_hash"]
    try:
        files = [people.with_name(f"{people.name}{end}.parquet") for end in ("", "-facts")]
        known = _questions(*((file, state(file)) for file in files))
    except (OSError, ValueError) as error:
        raise KitError(f"the questions {people} cannot be read ({error}): make a run again, or copy them too") from None
    rows = joined(rows.assign(order=0) if name == "path" else rows, known)
    if rows["question"].isna().any():
        raise KitError(f"the run in {folder} answers questions that its people's table lacks: make the run again")
    return judge.with_grades(rows, results / judge.FILE) if name == "answers" else rows


@lru_cache(maxsize=8)  # most runs are about the same people
def _questions(*files: tuple[Path, tuple[int, ...]]) -> pd.DataFrame:
    """The questions about the people of some runs, from the two files that hold them, each with its state."""
    return with_rivals(*(pd.read_parquet(file) for file, _ in files))


def read_run(folder: Path) -> Run:
    """Read the finished run in ``folder``. Raises KitError if there is none, or if a file is not as it was written."""
    folder = folder.resolve()  # its people lie beside the folder above it
    if not (folder / "answers.parquet").is_file() or not (folder / RECORD).is_file():
        raise KitError(f"there is no finished run in {folder}: it lacks answers.parquet or {RECORD}")
    if not is_whole(folder, named=OF_A_RUN):
        raise KitError(f"a file of the run in {folder} was changed or cut off: make the run again")
    record = read_json(folder / RECORD)
    return Run(folder, record, read_json(folder / "train.json"))


def read_runs(results: Path) -> list[Run]:
    """Read all finished runs of ``results``, sorted by id. Raises KitError if there is none, or if one is damaged."""
    folders = sorted(path.parent for path in paths.runs(results).glob(f"*/{RECORD}"))
    if not folders:
        raise KitError(f"no finished run under {paths.runs(results)}: `make reproduce` makes them")
    return [read_run(folder) for folder in folders]


def which_results(scale: str) -> tuple[Path, str]:
    """The results to show and their name: the user's own if there are any, else the committed ones."""
    own = paths.results(scale)
    if any(paths.runs(own).glob(f"*/{RECORD}")):
        return own, OWN
    if scale == "miniature" and any(paths.runs(paths.reference()).glob(f"*/{RECORD}")):
        return paths.reference(), COMMITTED
    raise KitError(f"no finished run under {paths.runs(own)}: `make reproduce` makes them")


def made_of(records: Iterable[dict]) -> str:
    """Short hashes, as text, of what the runs of these records are made of: people, base model, and how vanilla was
    taught. Runs may be compared only if these are the same."""
    records = list(records)
    marks = {"people": [record["data_hash"] for record in records]}
    marks |= {"base": [record["base_hash"] for record in records], "vanilla": list(map(taught_by, records))}
    return ", ".join(f"{name} {' and '.join(sorted({one[:8] for one in some}))}" for name, some in marks.items())


def varied(runs: Sequence[Run]) -> list[str]:
    """The parameters in which runs of one model (method, variant, modality, after) differ, such as a rate in a grid."""
    models = [str([run[column] for column in (*GROUP, *MODEL)]) for run in runs]
    values = [{name: repr(v) for name, v in run.parameters.items() if name not in NOT_VARIED} for run in runs]
    several = pd.DataFrame(values).groupby(models).nunique().gt(1).any()
    # in one table, models that were asked with other worked examples are compared only with those asked alike
    groups = [str([run[column] for column in GROUP]) for run in runs]
    asked = pd.DataFrame(values).reindex(columns=EXAMPLES).groupby(groups).nunique().gt(1).any()
    return sorted({*several.index[several], *asked.index[asked]})


def items_of(runs: Sequence[Run], by: Sequence[str] | None = None) -> pd.DataFrame:
    """Scored answers of runs: one row per answer, one column per metric and per parameter ``by`` (or all varied)."""
    by = varied(runs) if by is None else by
    asked = [(run, rows) for run in runs for rows in (run.answers, run.utility) if rows is not None]
    return item_scores(pd.concat([rows.assign(**run.values(by)) for run, rows in asked], ignore_index=True))


def _in_order(runs: Iterable[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: [run[column] for column in RUN[1:]])


@dataclass(frozen=True)
class Scores:
    """The data of tables and figures: ``runs``, their scored ``items``, the long frame ``cells``, ``judged`` (which
    models have collapsed in which run), the ``points`` of paths, and ``by``, the parameters that a grid varies."""

    runs: list[Run]
    items: pd.DataFrame
    cells: pd.DataFrame
    judged: pd.DataFrame
    points: pd.DataFrame
    by: list[str]

    @classmethod
    def of(cls, runs: Sequence[Run], taught: bool = True) -> Scores:
        """Score ``runs`` and, if ``taught``, the fine-tuning sentences that their models have read."""
        # sort by values, not by id: the draws of a bootstrap depend on the order of the people
        runs = _in_order(runs)
        by = varied(runs)
        items = items_of(runs, by)
        sentences = [run.sentences.assign(**run.values(by)) for run in runs if taught and run.sentences is not None]
        sentences = pd.concat(sentences, ignore_index=True) if sentences else None
        points = [path.by_person(run.path).assign(**run.values(by)) for run in runs if run.path is not None]
        points = pd.concat(points or [path.no_points(by)], ignore_index=True)
        return cls(runs, items, cells(items, sentences, by), judged(items, by), points, by)

    @classmethod
    def read(cls, results: Path) -> Scores:
        """Score all runs of ``results``. Intervals take a while, so the frames are cached; the cache key covers the
        answers and all code that scores them."""
        runs = read_runs(results)
        if by := varied(runs):
            return cls.of(runs)  # not cached: their columns mix types, which a file cannot hold

        def make(folder: Path) -> None:
            scores = cls.of(runs)
            for name in FRAMES:
                getattr(scores, name).drop(columns="rivals", errors="ignore").to_parquet(folder / f"{name}.parquet")

        inputs: dict[str, Any] = {"runs": [[run.id, run.columns, run.record["files"]] for run in runs]}
        if not judge.replies(results / judge.FILE).empty:
            inputs["judge"] = stable_hash((results / judge.FILE).read_text(encoding="utf-8"))
        folder = Stage("scores", inputs, make, (cls, *_code_of_metrics())).get()
        items, cells, judged, points = (pd.read_parquet(folder / f"{name}.parquet") for name in FRAMES)
        return cls(_in_order(runs), items, cells.assign(dots=cells["dots"].map(tuple)), judged, points, by)

    @cached_property
    def groups(self) -> list[tuple[tuple, Scores]]:
        """The scores of each base model (the paper's first, then by name), protocol and forget ratio, with this key."""
        groups, first = [], Config.model_fields["base_model"].default
        keys = {tuple(run[column] for column in GROUP) for run in self.runs}
        for key in sorted(keys, key=lambda key: (key[0] != first, key)):
            runs = [run for run in self.runs if tuple(run[column] for column in GROUP) == key]
            frames = {name: getattr(self, name) for name in FRAMES}
            mine = {name: rows[has(rows, GROUP, key)] for name, rows in frames.items()}
            groups.append((key, replace(self, runs=runs, **mine)))
        return groups

    def where(self, **values: Any) -> Scores:
        """The scores of the runs that have these values of parameters that a grid varies, and of those without such a
        parameter, such as vanilla. Raises KitError for another parameter or a value that no run has."""
        for name, value in values.items():
            choose("parameter of the grid", name, self.by)
            choose(f"{name} of a run", value, list(dict.fromkeys(run.values([name])[name] for run in self.runs)))
        return Scores.of([run for run in self.runs if all(run.values([n])[n] in (v, "") for n, v in values.items())])

    def of_group(self, *key: Any) -> Scores:
        """The scores of one base model, protocol and forget ratio. Raises KitError, with the known ones, if there is
        none."""
        if key not in (groups := dict(self.groups)):
            raise KitError(f"no run of {key} among {sorted(groups)}: choose one of these")
        return groups[key]

    @property
    def group(self) -> dict[str, Any]:
        """Name → value of base model, protocol and forget ratio, which all these runs must share."""
        return {column: self.runs[0][column] for column in GROUP}

    @property
    def made_of(self) -> str:
        """What the runs are made of (:func:`made_of`)."""
        return made_of(run.record for run in self.runs)

    @cached_property
    def gates(self) -> pd.DataFrame:
        return gates(self.cells, self.by)

    @cached_property
    def missed(self) -> set[tuple[str, ...]]:
        """(set, task, scoring, metric) of each score in which vanilla is below its goal; only generated people under
        the protocol ``clean`` have goals."""
        first = self.runs[0]
        own = first["scale"] == "miniature" and not any(map(first.parameters.get, ("data_source", "profiles_file")))
        return missed(self.cells) if own and first["protocol"] == "clean" else set()

    @property
    def of_a_grid(self) -> str:
        """Why the methods of a grid are not compared; "" if none has several settings."""
        return f"runs of one method differ in {', '.join(self.by)}" if self.by else ""

    @cached_property
    def ranking(self) -> Ranking:
        if self.by:
            return Ranking(pd.DataFrame(), pd.DataFrame(), self.of_a_grid)
        return ranking(self.kept_by_person["trained"], self.unsound, self.gates)

    @cached_property
    def kept_by_person(self) -> dict[str, pd.DataFrame]:
        """What is kept of each person along the paths, by the view in which the gap counts: ``trained`` or ``both``."""
        return {view: path.kept_by_person(self.points, view, self.by) for view in ("trained", POOLED)}

    @cached_property
    def kept(self) -> pd.DataFrame:
        """The means of ``kept_by_person`` with intervals; the column ``closed_in`` is ``trained`` or ``both``."""
        frames = [path.kept(rows, self.by).assign(closed_in=view) for view, rows in self.kept_by_person.items()]
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def unsound(self) -> dict[tuple, Unsound]:
        """(base model, protocol, forget ratio, method, variant ..) → why, for each model that has collapsed or refuses
        everybody in at least one run."""
        return unsound(self.judged, self.by)

    def mark(self, model: tuple) -> str:
        """The sign after the name of an unsound model, with a space before it; "" for other models."""
        bad = self.unsound.get((*self.group.values(), *model))
        return "" if bad is None else f" {COLLAPSED}" + f" {bad.count} of {bad.runs}" * (bad.runs > 1)

    def run_scores(self) -> pd.DataFrame:
        """The rows of ``scores.csv``."""
        return with_gate(run_scores(self.items, self.by), self.gates, self.by)

    def models(self) -> list[tuple]:
        """(method, variant, modality, after, and the varied parameters) of every model, in the order of the tables."""
        return models_in_order(map(self.model_of, self.runs))

    def model_of(self, run: Run) -> tuple:
        return (*run.model, *run.values(self.by).values())

    @cached_property
    def called_alike(self) -> set[str]:
        """The methods that share their label with another method of these runs."""
        methods = {run["method"] for run in self.runs}
        labels = Counter(map(method_label, methods))
        return {method for method in methods if labels[method_label(method)] > 1}

    def name(self, model: tuple) -> str:
        """The printed name of a model, with the values of the varied parameters; methods that share a label also show
        the name under which they are registered."""
        values = [f"{name} {value}" for name, value in zip(self.by, model[len(MODEL) :], strict=True) if value != ""]
        own = [model[0]] if model[0] in self.called_alike else []
        return ", ".join([label(*model[: len(MODEL)]), *own, *values])

    def named(self, model: tuple, short: bool = False) -> str:
        """The :meth:`name`, with ‡ if the model is unsound; ``short`` leaves out the modality, given in the heading."""
        method, variant, modality, *rest = model
        return self.name((method, variant, "none" if short else modality, *rest)) + self.mark(model)


def _code_of_metrics() -> list[Any]:
    """The modules of all metrics; for a metric that is in no file, such as one in a notebook, its function."""
    owners = (getattr(metric.function, "func", metric.function) for metric in metrics())
    return [module if hasattr(module := sys.modules[own.__module__], "__file__") else own for own in owners]


def run_table(runs: Sequence[Run]) -> pd.DataFrame:
    """The table of runs, written with the scores: the columns of each run, and every parameter that varies."""
    table = pd.DataFrame([{**run.parameters, **run.columns} for run in runs]).drop(columns="settings")
    varying = [name for name in table if table[name].map(repr).nunique() > 1]
    return table[list(dict.fromkeys([*RUN, *SEEDS, *varying]))]


# -- names and order --------------------------------------------------------------------------------------------


def class_of(method: str, variant: str = "canonical") -> type[unlearning.Method]:
    """The class of a method; of its first variant if this one is unknown; the base class if the method is unknown."""
    classes = unlearning.variants(method)
    return classes.get(variant) or next(iter(classes.values()), unlearning.Method)


def method_label(method: str) -> str:
    """The printed name of a method; the method itself if it has no label."""
    return {**REFERENCES, YOURS: "Your model"}.get(method) or class_of(method).label or method


def label(method: str, variant: str = "canonical", modality: str = "none", after: str = "") -> str:
    """The printed name: ``GA``, ``GA (text only)``, ``NPO (upstream, image + text)``, ``GA, int4 (text only)``."""
    more = [variant] if variant not in ("", "canonical") else []
    more += [MODALITIES[modality]] if modality in MODALITIES else []
    name = f"{method_label(method)}, {after}" if after else method_label(method)
    return name + (f" ({', '.join(more)})" if more else "")


def models_in_order(models: Iterable[tuple]) -> list[tuple]:
    """(method, variant, modality ..), each once, in the order of the tables: base, vanilla, the unlearning methods by
    their ``order``, prompting, oracle; image + text before text only."""

    def place(model: tuple) -> tuple:
        method, variant, modality, *more = model
        rank = {"base": -2, "vanilla": -1, "oracle": 1000}.get(method) or class_of(method).order
        trained = ["none", *MODALITIES].index(modality)
        rest = [(value, "") if isinstance(value, int | float) else (inf, str(value)) for value in more]
        return rank, method, variant, trained, *rest

    return sorted(set(models), key=place)
