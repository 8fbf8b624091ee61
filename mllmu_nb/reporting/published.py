"""Published results of the benchmark, in ``published_results.csv``: one figure per row with its source, in the unit of
the source. Levels differ between sources, so compare within one source only. The paper's own Table 2 could not be read
in full: figures that are missing in the file are unknown."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from mllmu_nb.unlearning import METHODS

FILE = Path(__file__).with_name("published_results.csv")

# Three independent reports of the released LLaVA vanilla weights agree to the last digit: if you evaluate those weights
# and get another value, your setup differs. A vanilla that you trained yourself may differ because of its training.
ANCHOR = {"base_model": "llava", "forget_ratio": 5, "method": "vanilla", "modality": "none", "set": "forget"}
ANCHOR |= {"task": "generation", "view": "image_text", "scoring": "", "metric": "rougeL", "value": 0.5708306366835779}
ANCHOR |= {"rounding": 0.005, "source": "anchor; MLLMU-Bench repository, issues #11 and #20"}


class Counterpart(NamedTuple):
    """The kit's metric for a figure of a source: printed = ``times`` × value, rounded to about ``rounding``."""

    task: str
    scoring: str
    metric: str
    times: float
    rounding: float  # half a unit of the last digit that sources print, in units of the value


COUNTERPARTS = {
    "classification_acc": Counterpart("classification", "letter", "accuracy", 100, 5e-5),
    "cloze_acc": Counterpart("cloze", "", "accuracy", 100, 5e-5),
    "rouge": Counterpart("generation", "", "rougeL", 1, 5e-4),  # sources do not say which ROUGE; the paper's is ROUGE-L
    **{name: Counterpart("generation", "", name, 1, 5e-4) for name in ("rougeL", "rouge1", "rouge2", "bleu")},
}
OURS = {
    "base_model": {"LLaVA-1.5-7B": "llava"},
    "method": {"Vanilla": "vanilla", **{one.published: one.name for one in METHODS.values() if one.published}},
    "set": {"Forget": "forget", "Test": "test", "Retain": "retain", "Real Celebrity": "celebrity"},
    # a source that prints one figure per set and no view is taken to pool the views
    "view": {"image_text": "image_text", "text": "text", "pooled": "both", "unstated": "both"},
}


def load() -> pd.DataFrame:
    """Return every known figure: base_model, forget_ratio (per cent), method, set, view, metric, value (NaN if it is
    empty in the file), kind and source."""
    return pd.read_csv(FILE)


def cells(figures: pd.DataFrame) -> pd.DataFrame:
    """Return the figures of :func:`load` that the kit measures too, under the names and in the units of ``scores.csv``,
    with ``rounding`` and ``source``. Figures of other models, methods or metrics are left out. Sources name no
    modality; we take it to be image + text, the default of the released scripts."""
    named = figures.assign(**{column: figures[column].map(names) for column, names in OURS.items()})
    named = named[named["metric"].isin(COUNTERPARTS.keys())].dropna(subset=["value", *OURS])
    ours = pd.DataFrame([COUNTERPARTS[metric] for metric in named["metric"]], named.index, Counterpart._fields)
    named = named.assign(modality=named["method"].map(lambda name: "none" if name == "vanilla" else "multimodal"))
    named = named.assign(**ours.drop(columns="times"), value=named["value"] / ours["times"])
    columns = ["base_model", "forget_ratio", "method", "modality", "set", "task", "view", "scoring", "metric"]
    return named[[*columns, "value", "rounding", "source"]].reset_index(drop=True)
