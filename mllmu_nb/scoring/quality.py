"""Forget quality by choices: how far the truth ratios of a model are distributed from those of the oracle.

Kolmogorov and Smirnov's p takes questions for independent, which those about one person are not. The Jensen-Shannon
distance says nothing where it is below ``js_chance``, which 95 % of draws stay below when it is left to chance, person
by person, which of the two models is which. Neither has an interval; both have the gate of the truth ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import nan

import numpy as np
import pandas as pd

from mllmu_nb.scoring.registry import NotMeasured, metric, no_pair
from mllmu_nb.statistics.intervals import Interval
from mllmu_nb.statistics.samples import jensen_shannon, ks

DISTANCES = {
    "ks": ("KS", 2, lambda ours, theirs, people: ks(ours, theirs)[0]),
    "ks_log10_p": ("log10 p", 1, lambda ours, theirs, people: ks(ours, theirs)[1]),
    "js": ("JS", 2, lambda *samples: jensen_shannon(*samples)[0]),
    "js_chance": ("JS by chance", 2, lambda *samples: jensen_shannon(*samples)[1]),
}


def distance(
    ours: Sequence[pd.DataFrame],
    theirs: Sequence[pd.DataFrame | None],
    function: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
) -> Interval:
    """``function`` of the truth ratios of the questions that the model and its oracle were both asked, and of whom."""
    columns, asked = ["question_id", "truth_ratio"], []
    for run, oracle in zip(ours, theirs, strict=True):
        if oracle is not None:
            pairs = run[[*columns, "person"]].merge(oracle[columns], on="question_id", suffixes=("", "_oracle"))
            asked.append(pairs.dropna())
    if not asked or (both := pd.concat(asked)).empty:
        raise NotMeasured(no_pair("oracle"))
    people = both["person"].to_numpy()
    value = function(both["truth_ratio"].to_numpy(), both["truth_ratio_oracle"].to_numpy(), people)
    return Interval(value, nan, nan, len(both), len(pd.unique(people)))


for _name, (_label, _digits, _function) in DISTANCES.items():
    metric(
        _name,
        label=_label,
        task="classification",
        scoring="likelihood",
        per="pair",
        times=1,
        digits=_digits,
        bounds=(-300, 0) if _name == "ks_log10_p" else (0, 1),
        gate_of="truth_ratio",
        table="quality",
        sets=("forget",),
    )(partial(distance, function=_function))
