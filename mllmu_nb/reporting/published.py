"""What others printed about the benchmark: figures of the paper, of re-evaluations and of reproductions.

``published_results.csv`` holds facts with their source, one a row, in the unit in which the source prints them
(accuracies in percent, ROUGE from 0 to 1). Levels differ between sources, so compare within one source only. The
paper's own Table 2 could not be read in full: what is not in the file is unknown and stays empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mllmu_nb.errors import KitError

FILE = Path(__file__).with_name("published_results.csv")
COLUMNS = ("base_model", "forget_ratio", "method", "set", "view", "metric", "value", "kind", "source")
LIST = ["source", "base_model", "forget_ratio", "set", "view", "metric"]  # what the figures of one list share

# Three independent reports of the released LLaVA vanilla weights agree to the last digit: whoever evaluates those
# weights and gets another value has set something up differently. An own vanilla may differ by its training.
ANCHOR = 0.5708306366835779
ANCHOR_WITHIN = 0.005
ANCHOR_SOURCE = "MLLMU-Bench repository, issues #11 and #20"
ANCHOR_CELL = {
    "base_model": "llava",
    "forget_ratio": 5,
    "method": "vanilla",
    "set": "forget",
    "task": "generation",
    "view": "image_text",
    "metric": "rougeL",
}


class Counterpart(NamedTuple):
    """Where the kit keeps what a source prints: printed = ``times`` × value, rounded to about ``rounding``."""

    task: str
    scoring: str
    metric: str
    times: float
    rounding: float  # of the value, half a unit of the last digit that sources print


COUNTERPARTS = {
    "classification_acc": Counterpart("classification", "letter", "accuracy", 100, 5e-5),
    "cloze_acc": Counterpart("cloze", "", "accuracy", 100, 5e-5),
    "rouge": Counterpart("generation", "", "rougeL", 1, 5e-4),  # which ROUGE is not said; the paper's is ROUGE-L
    **{name: Counterpart("generation", "", name, 1, 5e-4) for name in ("rougeL", "rouge1", "rouge2", "bleu")},
}
OURS = {
    "base_model": {"LLaVA-1.5-7B": "llava"},
    "method": {"Vanilla": "vanilla", "GA": "ga", "Grad. Diff.": "grad_diff", "KL_Min": "kl_min", "NPO": "npo"},
    "set": {"Forget": "forget", "Test": "test", "Retain": "retain", "Real Celebrity": "celebrity"},
    # one figure for a set, and no word on the view, is taken for the pooled one
    "view": {"image_text": "image_text", "text": "text", "pooled": "both", "unstated": "both"},
}


def load(path: Path = FILE) -> pd.DataFrame:
    """Every known figure: COLUMNS, with ``forget_ratio`` in percent and ``value`` NaN where the file leaves it empty.

    Raises KitError when a column is missing, a value is no number or a row has no source.
    """
    figures = pd.read_csv(path)
    missing = [column for column in COLUMNS if column not in figures.columns]
    if missing:
        raise KitError(f"{path} lacks the columns {', '.join(missing)}")
    values = pd.to_numeric(figures["value"], errors="coerce")
    broken = figures["value"].notna() & values.isna()
    if broken.any():
        raise KitError(f"{path}, row {broken.idxmax() + 2}: {figures['value'][broken.idxmax()]!r} is not a number")
    if figures["source"].isna().any():
        raise KitError(f"{path}, row {figures['source'].isna().idxmax() + 2}: a figure needs its source")
    return figures[list(COLUMNS)].assign(value=values, forget_ratio=figures["forget_ratio"].astype(int))


def cells(figures: pd.DataFrame) -> pd.DataFrame:
    """The figures of :func:`load` that have a counterpart among the kit's, under the names of ``scores.csv``.

    Columns: base_model, forget_ratio, method, modality, set, task, view, scoring, metric, value (in the kit's unit),
    rounding, source. Left out is what names another model, method or metric. Sources name no modality; they unlearn
    on image + text, as the released scripts do unless they are asked otherwise.
    """
    named = figures.dropna(subset=["value"])
    named = named.assign(**{column: named[column].map(names) for column, names in OURS.items()})
    named = named[named["metric"].isin(COUNTERPARTS.keys())].dropna(subset=list(OURS))
    ours = pd.DataFrame([COUNTERPARTS[metric] for metric in named["metric"]], named.index, Counterpart._fields)
    named = named.assign(modality=named["method"].map(lambda name: "none" if name == "vanilla" else "multimodal"))
    named = named.assign(**ours.drop(columns="times"), value=named["value"] / ours["times"])
    columns = ["base_model", "forget_ratio", "method", "modality", "set", "task", "view", "scoring", "metric"]
    return named[[*columns, "value", "rounding", "source"]].reset_index(drop=True)


def lists(figures: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame, str]]:
    """The lists of unlearning methods that others printed: LIST as the source has it; a row a method of ours, in the
    words of ``scores.csv``, empty where our scores have no such cell; and then why. Vanilla is no unlearning method."""
    methods = figures["method"].map({name: ours for name, ours in OURS["method"].items() if ours != "vanilla"})
    printed = figures.assign(method=methods).dropna(subset=["value", "method"])
    result = []
    for names, rows in printed.groupby(LIST, sort=True):
        at = dict(zip(LIST, names, strict=True))
        where = {column: OURS[column].get(at[column]) for column in ("set", "view")}
        counterpart = COUNTERPARTS.get(at["metric"])
        why = "" if counterpart and all(where.values()) else f"{at['metric'].split(' (')[0]} has no counterpart here"
        fields = {} if why else {name: getattr(counterpart, name) for name in ("task", "scoring", "metric")}
        result.append((at, rows[["method", "value"]].assign(**where, **fields), why))
    return result
