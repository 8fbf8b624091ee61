"""Tables and figures from the files of finished runs; nothing on this floor loads a model.

A run is a folder ``results/<scale>/runs/<run id>`` with ``items.parquet`` (one row an answer), ``train.json`` (losses,
seconds, memory) and ``data.json`` (what the people and their questions were). This file reads them and keeps
the names and the order in which methods, sets and measures are printed; ``tables``, ``figures`` and ``report`` build
on it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from mllmu_nb.errors import KitError

METHODS = {
    "base": "Base",
    "vanilla": "Vanilla",
    "ga": "GA",
    "grad_diff": "Grad. Diff.",
    "kl_min": "KL Min.",
    "npo": "NPO",
    "prompting": "Prompting",
    "oracle": "Oracle",
}
REFERENCES = ("base", "vanilla", "prompting", "oracle")  # trained on no modality's forget data: rows of every block
MODALITIES = {"multimodal": "image + text", "unimodal": "text only"}
SETS = {"forget": "Forget", "test": "Test", "retain": "Retain", "celebrity": "Celebrity"}
VIEWS = {"image_text": "image + text", "text": "text"}
DOWN, UP = "↓", "↑"
DIRECTION = {"forget": DOWN, "test": DOWN, "retain": UP, "celebrity": UP}  # what a good unlearning method does


BASES = {"llava": "LLaVA", "idefics2": "Idefics2"}


class Measure(NamedTuple):
    """One printed column: where its values are, and how they are written (``times`` 100 turns a share into percent)."""

    label: str
    task: str
    scoring: str
    metric: str
    times: float
    digits: int

    @property
    def column(self) -> str:
        """The column of ``items.parquet`` whose mean it is (``parse_failure`` has none of its own)."""
        return "correct" if self.metric == "accuracy" else self.metric

    def of(self, items: pd.DataFrame) -> pd.Series:
        """Its value in each answer, [items]; NaN where it was not measured."""
        return 1.0 - items["parsed"] if self.metric == "parse_failure" else items[self.column].astype(float)

    @property
    def bounds(self) -> tuple[float, float]:
        """The range that a value can have."""
        return (1.0, 10.0) if self.metric == "factuality" else (0.0, 1.0)

    @property
    def margin(self) -> float:
        """A gap to the oracle that counts as none: 10 points of a share, 0.1 ROUGE or BLEU, 1 point of factuality."""
        return 1.0 if self.metric == "factuality" else 0.1


LETTER = Measure("Letter %", "classification", "letter", "accuracy", 100, 1)
LIKELIHOOD = Measure("Likelihood %", "classification", "likelihood", "accuracy", 100, 1)
ROUGE_L = Measure("ROUGE-L", "generation", "", "rougeL", 1, 3)
FACTUALITY = Measure("Factuality", "generation", "", "factuality", 1, 2)
EXACT = Measure("Exact %", "generation", "", "exact", 100, 1)
CLOZE = Measure("Cloze %", "cloze", "", "accuracy", 100, 1)
MAIN = (LETTER, LIKELIHOOD, ROUGE_L, FACTUALITY, CLOZE)
EVERYTHING = (
    LETTER,
    Measure("No letter %", "classification", "letter", "parse_failure", 100, 1),
    LIKELIHOOD,
    Measure("ROUGE-1", "generation", "", "rouge1", 1, 3),
    Measure("ROUGE-2", "generation", "", "rouge2", 1, 3),
    ROUGE_L,
    Measure("BLEU", "generation", "", "bleu", 1, 3),
    EXACT,
    FACTUALITY,
    CLOZE,
)

RUN_COLUMNS = ("run", "scale", "base_model", "forget_ratio", "forget_draw", "method", "protocol", "variant", "modality")
GROUP = ["base_model", "protocol", "forget_ratio"]  # what runs in one printed table have in common
SEED_COLUMNS = ("data_seed", "train_seed", "unlearn_seed", "shot_seed")
# one question to two models that learnt the same people with the same seeds
PAIRED_ON = [*GROUP, "forget_draw", "data_seed", "train_seed", "set", "question_id"]
ITEM_COLUMNS = ("set", "task", "view", "scoring", "profile", "question_id", "correct", "parsed", "exact", "rouge1")
ITEM_COLUMNS += ("rouge2", "rougeL", "bleu", "factuality")


@dataclass(frozen=True)
class Run:
    """One finished run: its answers and the two JSON files beside them (empty where a file is not there).

    ``tokens`` is what its model gives each token of the taught sentences; None for runs made before that was kept.
    """

    id: str
    items: pd.DataFrame
    train: dict
    data: dict
    tokens: pd.DataFrame | None = None

    def __getitem__(self, column: str):
        """A run-level column (``method``, ``modality``, ``forget_ratio`` ..), the same in every row of the items."""
        return self.items[column].iloc[0]


def read_runs(root: Path) -> list[Run]:
    """Every finished run under ``root``, in the order of their ids; a folder without ``items.parquet`` is unfinished.

    Raises KitError when there is none, when a file lacks a column, or when two runs hold the same answers twice.
    """
    found = [read_run(path.parent) for path in sorted(Path(root).glob("*/items.parquet"))]
    if not found:
        raise KitError(f"no finished run under {root}: `make reproduce` makes them")
    seen: dict[tuple, str] = {}
    for run in found:
        key = tuple(str(run[column]) for column in RUN_COLUMNS[2:] + SEED_COLUMNS)
        if key in seen:
            raise KitError(f"runs {seen[key]} and {run.id} have the same method, data and seeds: move one of them away")
        seen[key] = run.id
    return found


def read_run(folder: Path) -> Run:
    """The finished run in ``folder``. Raises KitError when there is none, or a file lacks a column or is no JSON."""
    if not (folder / "items.parquet").is_file():
        raise KitError(f"there is no finished run in {folder}: it has no items.parquet")
    items = pd.read_parquet(folder / "items.parquet")
    missing = [c for c in RUN_COLUMNS + SEED_COLUMNS + ITEM_COLUMNS if c not in items.columns]
    if missing:
        raise KitError(f"{folder / 'items.parquet'} lacks the columns {', '.join(missing)}: make the run again")
    if items.empty:
        raise KitError(f"{folder / 'items.parquet'} holds no answer: make the run again")
    items["scoring"] = items["scoring"].fillna("")
    if "fluency" not in items:  # runs made before it was measured
        items["fluency"] = float("nan")
    kept = folder / "tokens.parquet"
    tokens = pd.read_parquet(kept) if kept.is_file() else None
    return Run(folder.name, items, _read_json(folder / "train.json"), _read_json(folder / "data.json"), tokens)


def _read_json(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as problem:
        raise KitError(f"{path} is not readable JSON ({problem})") from problem


def all_items(runs: list[Run]) -> pd.DataFrame:
    """The answers of several runs as one frame."""
    return pd.concat([run.items for run in runs], ignore_index=True)


def persons(items: pd.DataFrame) -> pd.Series:
    """Who each row is about: profile "007" of another data seed is another person."""
    return items["data_seed"].astype(str) + ":" + items["profile"].astype(str)


def in_order(methods) -> list[str]:
    """Methods as tables print them: the known ones in the paper's order, a newcomer before prompting and oracle."""
    order = list(METHODS)
    newcomer = order.index("npo") + 0.5
    return sorted(set(methods), key=lambda name: (order.index(name) if name in order else newcomer, name))


def models_in_order(models) -> list[tuple[str, str, str]]:
    """The same for (method, variant, modality): image + text before text only."""
    models = set(models)
    methods, modalities = in_order(method for method, _, _ in models), ["none", *MODALITIES]
    return sorted(models, key=lambda model: (methods.index(model[0]), model[1], modalities.index(model[2])))


def label(method: str, variant: str = "canonical", modality: str = "none") -> str:
    """The printed name: ``GA``, ``GA (text only)``, ``NPO (upstream, image + text)``."""
    more = [variant] if variant not in ("", "canonical") else []
    more += [MODALITIES[modality]] if modality in MODALITIES else []
    return METHODS.get(method, method) + (f" ({', '.join(more)})" if more else "")
