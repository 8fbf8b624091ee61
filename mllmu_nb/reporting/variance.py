"""Which choices of chance a score hangs on: its spread split into forget set, training, unlearning order and shots.

A score of an unlearned model is one of many it could have been. Here each source of chance was changed alone
(:mod:`mllmu_nb.studies.variance`), and :func:`~mllmu_nb.evaluation.statistics.variance_split` says what standard
deviation each makes, the methods and modalities taken together.
"""

from __future__ import annotations

from math import nan, sqrt
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import statistics
from mllmu_nb.reporting import SETS, VIEWS, figures
from mllmu_nb.reporting.studies import MEASURES

FACTORS = {
    "forget_draw": "forget set",
    "train_seed": "training of vanilla",
    "unlearn_seed": "order of unlearning",
    "shot_seed": "draw of the shots",
}
MODEL = "model"
SOURCES = {**FACTORS, MODEL: "method and modality"}  # the last for comparison: it is what one wants to see
SHOWN = ("letter", "cloze")  # what shots precede
ASKED = ("forget", "retain")
CELL = ["set", "view", "measure"]
COLUMNS = [*CELL, "factor", "levels", "variance", "sd", "low", "high"]


def measured(folder: Path) -> pd.DataFrame:
    """The table of :func:`table` from a study's folder."""
    return table(pd.read_parquet(folder / "people.parquet"))


def table(people: pd.DataFrame) -> pd.DataFrame:
    """The standard deviation that each source makes of each score: a row a set, view, measure and factor.

    ``sd`` with its 95 % limits ``low`` and ``high`` (shares of 1), ``levels`` how many were tried. What the sampling of
    people makes of it is taken off: where a level asks other people the error of the score, where all ask the same, as
    methods and modalities always do, that of the difference. Shots say nothing of what is asked without them.
    """
    found = scores(people)
    rows = []
    for cell, runs in found.groupby(CELL, sort=False):
        errors = dict.fromkeys(FACTORS, "se_paired") | {MODEL: "se_models"}
        if cell[0] == "forget":
            errors["forget_draw"] = "se"
        split = statistics.variance_split(runs, [*FACTORS, MODEL], "value", errors)
        split = split if cell[2] in SHOWN else split[split["factor"] != "shot_seed"]
        rows += [dict(zip(CELL, cell, strict=True)) | row for row in split.to_dict("records")]
    # variance_split gives limits of the variance
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.assign(low=np.sqrt(frame["low"]), high=np.sqrt(frame["high"]))


def scores(people: pd.DataFrame) -> pd.DataFrame:
    """The score of each model at each level: a row a set, view (``both`` among them), measure, model and level.

    ``value``; ``se`` its standard error over people; ``se_paired`` that of its difference to the first level, over √2:
    NaN for the first level itself and where other people were asked. ``se_models`` is that of its difference to the
    mean of the ``k`` models at the same level, times √(k / (k - 1)), so that the mean of its squares is what sampling
    makes of the models' variance; NaN for a single one. KitError where a model lacks the first level.
    """
    people = people.astype({name: str for name in people.select_dtypes("category")})
    people = people.assign(model=people["method"] + " " + people["modality"])
    first = {factor: people[factor].min() for factor in FACTORS}
    rows = []
    for view in (*VIEWS, "both"):
        asked = people if view == "both" else people[people["view"] == view]
        summed = asked.groupby(["set", "measure", MODEL, *FACTORS, "profile"], sort=False)[["score", "items"]].sum()
        summed = summed[summed["items"] > 0].reset_index()
        summed["apart"] = _apart(summed)
        for (set_name, measure, model), runs in summed.groupby(["set", "measure", MODEL], sort=False):
            levels = {key: level.set_index("profile") for key, level in runs.groupby(list(FACTORS), sort=False)}
            plain = levels.get(tuple(first.values()))
            if plain is None:
                raise KitError(f"{model} was not measured at the first level of all: measure the study again")
            for key, level in levels.items():
                row = {"set": set_name, "view": view, "measure": measure, MODEL: model}
                rows.append(row | dict(zip(FACTORS, key, strict=True)) | _score(level, plain))
    return pd.DataFrame(rows)


def printed(found: pd.DataFrame) -> pd.DataFrame:
    """Standard deviations in points with their limits, both views together: a row a source, a column a score."""
    here = found[(found["view"] == "both") & found["sd"].notna()]
    text = [f"{100 * row.sd:.1f} ({100 * row.low:.1f} to {100 * row.high:.1f})" for row in here.itertuples()]
    names = here["set"].map(SETS) + ", " + here["measure"].map(lambda name: MEASURES[name].label.removesuffix(" %"))
    wide = here.assign(text=text, score=names, source=here["factor"].map(SOURCES))
    wide = wide.pivot(index="source", columns="score", values="text").fillna("")
    return wide.reindex(index=[name for name in SOURCES.values() if name in wide.index], columns=dict.fromkeys(names))


@figures.styled
def figure(found: pd.DataFrame) -> Figure:
    """The standard deviation of each source with its 95 % limits, both views together: a row a set, a column a measure.

    An arrow: the limit lies beyond the axis. With three or five levels limits are wide.
    """
    here = found[(found["view"] == "both") & found["sd"].notna()]
    measures = [name for name in MEASURES if (here["measure"] == name).any()]
    result = Figure(figsize=(figures.PAGE, 3.3), layout="constrained")
    axes = result.subplots(len(ASKED), len(measures), sharex=True, sharey=True, squeeze=False)
    reach = max(1.0, 100 * here["sd"].max() * 1.8)
    for row, set_name in enumerate(ASKED):
        for column, measure in enumerate(measures):
            panel = axes[row][column]
            cell = here[(here["set"] == set_name) & (here["measure"] == measure)].set_index("factor")
            for place, factor in enumerate(SOURCES):
                if factor not in cell.index:
                    panel.text(reach * 0.03, place, "–", va="center", color=figures.GREY)
                    continue
                value, low, high = (100 * cell.loc[factor, name] for name in ("sd", "low", "high"))
                colour = figures.GREY if factor == MODEL else figures.RIGHT
                panel.plot([low, min(high, reach)], [place, place], color=colour, linewidth=1.1)
                panel.plot(value, place, "o", color=colour, markersize=3.6)
                if high > reach:
                    panel.plot(reach, place, ">", color=colour, markersize=3.6, clip_on=False)
            panel.set_xlim(0, reach)
            panel.grid(axis="x", color=figures.PALE, linewidth=0.4)
            panel.tick_params(axis="y", length=0)
            if row == 0:
                panel.set_title(MEASURES[measure].label.removesuffix(" %"), fontsize=figures.NORMAL)
        axes[row][0].set_ylabel(SETS[set_name])
        axes[row][0].set_yticks(range(len(SOURCES)), SOURCES.values())
    axes[0][0].set_ylim(len(SOURCES) - 0.5, -0.5)
    result.supxlabel(
        "Standard deviation, points, with its 95 % limits (arrow: beyond the axis).  –: shots are not shown there",
        fontsize=figures.SMALL,
    )
    seaborn.despine(result, left=True)
    return result


# ------------------------------------------------------------------------------------------------------------- inside


def _apart(summed: pd.DataFrame) -> pd.Series:
    """What each row's score differs by from the mean of the ``k`` models about this person, times √(k / (k - 1))."""
    alike = summed.groupby(["set", "measure", *FACTORS, "profile"], sort=False)["score"]
    models = alike.transform("size")
    return (summed["score"] - alike.transform("mean")) * np.sqrt(models / (models - 1).where(models > 1))


def _score(level: pd.DataFrame, plain: pd.DataFrame) -> dict[str, float]:
    sums, counts = level["score"].to_numpy(), level["items"].to_numpy(float)
    alone = statistics.standard_error(sums, counts) if len(level) > 1 else nan
    paired = nan
    if level is not plain and len(level) > 1 and set(level.index) == set(plain.index):
        other = plain.reindex(level.index)
        paired = statistics.standard_error(sums - other["score"].to_numpy(), counts) / sqrt(2)
    apart = statistics.standard_error(level["apart"].to_numpy(), counts) if len(level) > 1 else nan
    return {"value": float(sums.sum() / counts.sum()), "se": alone, "se_paired": paired, "se_models": apart}
