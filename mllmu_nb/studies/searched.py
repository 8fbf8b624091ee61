"""Every method with the settings that were searched for it on other people: do the methods keep their order?

The reference run takes the learning rate and weight in the middle of each grid. ``tools/settings.py`` searched better
ones on two other populations, and its choices come with the kit. This study unlearns with both.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd

from mllmu_nb import paths, studies
from mllmu_nb.config import Config
from mllmu_nb.reporting.runs import Run, label, models_in_order
from mllmu_nb.reporting.sheet import Sheet
from mllmu_nb.stages import read_json

CHOICES = "settings_search.json"  # in the reference's folder


def choices() -> list[dict[str, Any]]:
    """The parameters that were chosen for each method and modality."""
    rows = read_json(paths.reference() / CHOICES)["choices"]
    return [
        {"method": row["method"], "variant": row["variant"], "modality": row["modality"]}
        | {"unlearn_lr": row["lr"], "unlearn_steps": row["steps"]}
        | ({row["weight_name"]: row["weight"]} if row["weight_name"] else {})
        for row in rows
    ]


def middle() -> list[dict[str, Any]]:
    """The parameters of the canonical methods in the reference run: the middle of their grids."""
    rows = []
    for one in choices():
        if one["variant"] == "canonical":
            plain = Config(method=one["method"], modality=one["modality"])
            rate, steps = plain.unlearning.lr, plain.unlearning.steps
            rows.append(one | {"unlearn_lr": rate, "unlearn_steps": steps} | dict(plain.settings))
    return rows


def grid(replicates: Sequence[int]) -> list[Config]:
    """Each choice and each middle in each replicate."""
    return [Config.from_parameters({"replicate": r, **one}) for r, one in product(replicates, choices() + middle())]


def compared(runs: Sequence[Run]) -> pd.DataFrame:
    """The searched settings beside the middle of the grids (:func:`mllmu_nb.studies.compared`). The study that comes
    with the kit has no runs of the middle, because they are those of the reference run."""
    ours, plain = _with(choices(), runs), _with(middle(), runs)
    return studies.compared(ours, plain or studies.canonical(ours))


def _with(settings: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> list[Run]:
    """The runs with one of these settings; a folder may also hold runs with those of an earlier search."""
    return [run for run in runs if any(run.values(one) == one for one in settings)]


def table(runs: Sequence[Run]) -> Sheet:
    """The table of :func:`compared`, with one row per method and one block per modality."""
    settings = {run.model: _settings(run) for run in _with(choices(), runs)}
    rows = {model: (label(model[0], model[1]), settings[model]) for model in models_in_order(settings)}
    title = "Settings, %: the middle of the grids → the searched ones"
    return studies.sheet("searched", title, ("Method", "rate, weight, steps"), rows, compared(runs))


def _settings(run: Run) -> str:
    weights = ", ".join(f"{name} {value:g}" for name, value in run.parameters["settings"].items())
    return ", ".join(filter(None, [f"{run.parameters['unlearn_lr']:g}", weights, str(run.train["steps"])]))
