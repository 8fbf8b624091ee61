"""Where the spread of a score comes from: the forget set, vanilla's training, the order of unlearning, the shots.

One of the four is changed at a time around the run of seed 0, everything else equal (:data:`LEVELS`), for every method
in both modalities. :func:`~mllmu_nb.statistics.variance.variance_split` says what standard deviation each makes, the
methods and modalities taken together. Of the retain people those count whom no level forgets: the same throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import nan, sqrt

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import plots
from mllmu_nb.statistics.intervals import standard_error
from mllmu_nb.statistics.variance import variance_split
from mllmu_nb.studies.base import ASKED, MEASURES, METHODS, TRAINED_VIEW, Measured, Study, label, only, register

LEVELS = {"train_seed": (0, 1), "unlearn_seed": (0, 1, 2), "shot_seed": (0, 1, 2)}  # the first of each is the plain one
FACTORS = {
    "replicate": "forget set",
    "train_seed": "training of vanilla",
    "unlearn_seed": "order of unlearning",
    "shot_seed": "draw of the shots",
}
MODEL = "model"
SOURCES = {**FACTORS, MODEL: "method and modality"}  # the last for comparison: it is what one wants to see
CELL = ["set", "view", "measure"]
AFTER_SHOTS = ("letter", "cloze")


def grid(config: Config, draws: Sequence[int]) -> list[Config]:
    """The plain run of every method and modality, and those with one source of chance at another level."""
    levels = {"replicate": tuple(draws), **LEVELS}
    plain = {name: values[0] for name, values in levels.items()}
    changes = [{}, *({name: value} for name, values in levels.items() for value in values[1:])]
    return [
        config.but(method=method, modality=modality, **{**plain, **change})
        for method in METHODS
        for modality in TRAINED_VIEW
        for change in changes
    ]


def table(measured: Measured) -> pd.DataFrame:
    """The standard deviation that each source makes of each score: a row a set, view, measure and factor.

    ``sd`` with its 95 % limits ``low`` and ``high`` (shares of 1), ``levels`` how many were tried. What the sampling of
    people makes of it is taken off: where a level asks other people the error of the score, where all ask the same, as
    methods and modalities always do, that of the difference. Shots say nothing of what is asked without them.
    """
    rows = []
    for cell, runs in levels(measured.scores).groupby(CELL, sort=False):
        errors = dict.fromkeys(FACTORS, "se_paired") | {MODEL: "se_models"}
        if cell[0] == "forget":
            errors["replicate"] = "se"
        split = variance_split(runs, [*FACTORS, MODEL], "value", errors)
        if cell[2] not in AFTER_SHOTS:
            split = split[split["factor"] != "shot_seed"]
        rows += [dict(zip(CELL, cell, strict=True)) | row for row in split.to_dict("records")]
    frame = pd.DataFrame(rows)  # variance_split gives limits of the variance
    return frame.assign(low=np.sqrt(frame["low"]), high=np.sqrt(frame["high"]))


def levels(scores: pd.DataFrame) -> pd.DataFrame:
    """The score of each model at each level: a row a set, view (``both`` among them), measure, model and level.

    ``value``; ``se`` its standard error over people; ``se_paired`` that of its difference to the first level, over √2:
    NaN for the first level itself and where other people were asked. ``se_models`` is that of its difference to the
    mean of the ``k`` models at the same level, times √(k / (k - 1)), so that the mean of its squares is what sampling
    makes of the models' variance; NaN for a single one. KitError where a model lacks the first level.
    """
    scores = kept_throughout(scores.assign(model=scores["method"] + " " + scores["modality"]))
    first = tuple(scores[factor].min() for factor in FACTORS)
    rows = []
    for view in ASKED:
        asked = only(scores, view=ASKED[view]).groupby(["set", "measure", MODEL, *FACTORS, "profile"], sort=False)
        summed = asked[["score", "items"]].sum()
        summed = summed[summed["items"] > 0].reset_index()
        summed["apart"] = _apart(summed)
        for key, runs in summed.groupby(["set", "measure", MODEL], sort=False):
            by_level = {at: level.set_index("profile") for at, level in runs.groupby(list(FACTORS), sort=False)}
            if first not in by_level:
                raise KitError(f"{key[-1]} was not measured at the first level of all: measure the study again")
            for at, level in by_level.items():
                row = dict(zip(("set", "measure", MODEL, *FACTORS), (*key, *at), strict=True))
                rows.append(row | {"view": view} | _score(level, by_level[first]))
    return pd.DataFrame(rows)


def kept_throughout(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores without those retain people whom some level forgets. KitError where nobody is left."""
    retain = scores[scores["set"] == "retain"]
    asked = retain.groupby("profile")["replicate"].nunique()
    kept = asked.index[asked == retain["replicate"].nunique()]
    if len(retain) and kept.empty:
        raise KitError("the forget draws forget everybody: nobody is asked as kept throughout, take fewer draws")
    return scores[(scores["set"] != "retain") | scores["profile"].isin(kept)]


def printed(spread: pd.DataFrame) -> pd.DataFrame:
    """Standard deviations in points with their limits, both views together: a row a source, a column a score."""
    here = spread[(spread["view"] == "both") & spread["sd"].notna()]
    text = [f"{100 * row.sd:.1f} ({100 * row.low:.1f} to {100 * row.high:.1f})" for row in here.itertuples()]
    names = here["set"].str.capitalize() + ", " + here["measure"].map(label)
    wide = here.assign(text=text, score=names, source=here["factor"].map(SOURCES))
    wide = wide.pivot(index="source", columns="score", values="text").fillna("")
    return wide.reindex(index=[name for name in SOURCES.values() if name in wide.index], columns=dict.fromkeys(names))


@plots.styled
def figure(spread: pd.DataFrame) -> Figure:
    """The standard deviation of each source with its 95 % limits, both views together: a row a set, a column a measure.

    With two or three levels limits are wide: an arrow where one lies beyond the axis.
    """
    here = spread[(spread["view"] == "both") & spread["sd"].notna()]
    names = [label(name) for name in MEASURES if (here["measure"] == name).any()]
    reach = max(1.0, 180 * here["sd"].max())
    frame = here.assign(
        **{name: (100 * here[name]).clip(upper=reach) for name in ("sd", "low", "high")},
        source=pd.Categorical(here["factor"].map(SOURCES), SOURCES.values()),
        panel=pd.Categorical(here["measure"].map(label), names),
        asked=pd.Categorical(here["set"].str.capitalize(), ["Forget", "Retain"]),
        colour=here["factor"].map(lambda factor: plots.GREY if factor == MODEL else plots.RIGHT),
    )
    below = "Standard deviation, points, with its 95 % limits (arrow: beyond the axis).  –: shots are not shown there"
    drawn = plots.forest(frame, x="sd", y="source", row="asked", column="panel", below=[below])
    places = product(frame["asked"].cat.remove_unused_categories().cat.categories, names)
    for panel, (asked, name) in zip(drawn.axes, places, strict=True):
        high = only(frame, asked=asked, panel=name).set_index("source")["high"]
        for place, source in enumerate(frame["source"].cat.remove_unused_categories().cat.categories):
            if source not in high.index:
                panel.text(0.03 * reach, place, "–", va="center", color=plots.GREY)
            elif high[source] == reach:
                panel.plot(reach, place, ">", color=plots.GREY, markersize=3.6, clip_on=False)
        panel.set_xlim(0, reach)
    return drawn


def _apart(summed: pd.DataFrame) -> pd.Series:
    """What each row's score differs by from the mean of the ``k`` models about this person, times √(k / (k - 1))."""
    alike = summed.groupby(["set", "measure", *FACTORS, "profile"], sort=False)["score"]
    models = alike.transform("size")
    return (summed["score"] - alike.transform("mean")) * np.sqrt(models / (models - 1).where(models > 1))


def _score(level: pd.DataFrame, plain: pd.DataFrame) -> dict[str, float]:
    sums, counts = level["score"].to_numpy(), level["items"].to_numpy(float)
    several, paired = len(level) > 1, nan
    if level is not plain and several and set(level.index) == set(plain.index):
        paired = standard_error(sums - plain["score"].reindex(level.index).to_numpy(), counts) / sqrt(2)
    errors = (standard_error(column, counts) if several else nan for column in (sums, level["apart"].to_numpy()))
    return {
        "value": float(sums.sum() / counts.sum()),
        **dict(zip(("se", "se_models"), errors, strict=True)),
        "se_paired": paired,
    }


QUESTION = "how much forget set, training, unlearning order and shots each make of a score's spread"
STUDY = register(Study("variance", QUESTION, grid, table, printed, draws=(0, 1, 2), by=tuple(LEVELS)))
