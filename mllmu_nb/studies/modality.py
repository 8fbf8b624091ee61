"""The paper's headline claim at equal retain: which modality of unlearning leaves less of the forget set, by task.

Each method unlearns the forget sets with its preset, once in each modality, and is asked at points of that one training
(:mod:`~mllmu_nb.studies.path`) and at its start, vanilla. Along a training, retain and forget scores fall together, and
a model that has forgotten more may only have been trained longer. So the two trainings of a method are compared where
they keep equally much. *Retain* is the likelihood score of the retain people, mean of the two views: the same yardstick
for every task, and one that training moves. Between the points forget is interpolated linearly over retain, and the
difference, text only minus image + text, is averaged over the retain values that both trainings pass through.

The interval resamples people, the same ones in all trainings and points (forget and retain people apart), and takes
Student's t on the resamples' spread, with as many degrees as there are forget people less one. Another vanilla model or
another order of unlearning is not in it (:mod:`~mllmu_nb.studies.variance` measures these): there is one training a
method, modality and forget set. Each claim is judged at 95 % by itself, without Holm's correction for their number.

Where vanilla is not shown to know more than the oracle there was nothing to forget: ``gate`` says so, and a verdict
behind a closed gate is none about forgetting.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import t as student

from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import plots
from mllmu_nb.reporting.runs import MODALITIES, in_order, method_label
from mllmu_nb.scoring.gates import AT, OPEN
from mllmu_nb.statistics.intervals import resample_counts
from mllmu_nb.studies import path
from mllmu_nb.studies.base import ASKED, MEASURES, METHODS, TRAINED_VIEW, Measured, Study, only, register

RESAMPLES = 2000
LOST = 0.05  # share of resamples whose trainings meet nowhere, above which there is no interval
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
POOLED = "all"
SIDES = ("unimodal", "multimodal")


class Claim(NamedTuple):
    """One part of the claim: which training is said to leave less, in a measure asked in a view."""

    measure: str
    view: str
    lower: str
    label: str


CLAIMS = (
    Claim("rougeL", "both", "unimodal", "Generation, ROUGE-L"),
    Claim("exact", "both", "unimodal", "Generation, exact"),
    Claim("cloze", "both", "unimodal", "Cloze"),
    Claim("letter", "image_text", "multimodal", "Classification with image, letter"),
    Claim("likelihood", "image_text", "multimodal", "Classification with image, likelihood"),
)


def grid(config: Config, draws: Sequence[int]) -> list[Config]:
    """Vanilla, and every method along its training in both modalities."""
    vanilla = [config.but(replicate=draw) for draw in draws]
    models = product(METHODS, TRAINED_VIEW, vanilla)
    trained = [one.but(method=method, modality=modality) for method, modality, one in models]
    return vanilla + [one.but(after="point", step=step) for one in trained for step in path.steps_of(one)]


def trainings(measured: Measured) -> pd.DataFrame:
    """The scores, each with the number of its ``point`` within the training, of which vanilla is the first."""
    models = only(measured.scores, modality=SIDES)
    start = only(measured.scores, method="vanilla").drop(columns=["method", "modality"])
    rows = pd.concat([start.merge(models[["method", "modality"]].drop_duplicates(), how="cross"), models])
    return rows.assign(point=rows.groupby(["method", "modality", "replicate"])["step"].rank("dense").astype(int))


def means(rows: pd.DataFrame, methods: Sequence[str], resamples: int = 0, seed: int = 0) -> np.ndarray:
    """Mean scores along trainings, [1 + resamples, methods, SIDES, points]: of all people, then of people drawn anew.

    Raises KitError where a training lacks a point that others have.
    """
    key = ["method", "modality", "point"]
    sums = rows.pivot_table(index=key, columns="profile", values=["score", "items"], aggfunc="sum", fill_value=0)
    index = pd.MultiIndex.from_product([methods, SIDES, sorted(rows["point"].unique())])
    if set(sums.index) != set(index):
        raise KitError("a training lacks a point or a modality: measure the study again")
    people = sums["score"].shape[1]
    weights = np.vstack([np.ones(people), resample_counts(people, resamples, seed)])
    shape = len(methods), len(SIDES), -1, people
    arrays = (sums[name].reindex(index).to_numpy(float).reshape(shape) for name in ("score", "items"))
    score, items = (np.einsum("rn,mspn->rmsp", weights, array) for array in arrays)
    with np.errstate(invalid="ignore"):
        return score / items


def table(measured: Measured, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """Forget after text-only minus forget after image + text unlearning, at equal retain: a row a measure, view and
    method, and one with all methods averaged (``all``).

    ``unimodal`` and ``multimodal`` are the two means over the retain values from ``retain_low`` to ``retain_high``,
    ``value`` their difference with its 95 % interval; NaN where the trainings have no retain value in common. Methods
    have their own ranges of retain, so ``all`` has none. A ``verdict`` stands where the claim says something
    (``claimed``: which training leaves less); ``gate`` is that of the measure and view, "" where it is not known.
    """
    scores = trainings(measured)
    methods = in_order(scores["method"])
    kept = means(only(scores, measure="likelihood", set="retain"), methods, resamples, seed)
    claims = {(claim.measure, claim.view): claim.lower for claim in CLAIMS}
    gates = {(*at, view): gate for *at, view, gate in measured.gates[[*AT, "gate"]].itertuples(index=False)}
    rows = []
    for measure, view in product(MEASURES, ASKED):
        asked = only(scores, measure=measure, set="forget", view=ASKED[view])
        if asked["items"].sum() == 0:
            continue
        people, claimed = asked["profile"].nunique(), claims.get((measure, view), "")
        left = means(asked, methods, resamples, seed + 1)
        levels = [[at_equal_retain(*pair) for pair in zip(*draw, strict=True)] for draw in zip(kept, left, strict=True)]
        levels = np.moveaxis(np.array(levels), 1, 0)  # [methods, 1 + resamples, 4]
        met = levels[np.isfinite(levels[:, 0]).all(1)]
        pooled = met.mean(0) if len(met) else np.full_like(levels[0], np.nan)
        pooled[:, 2:] = np.nan
        for method, mine in zip([*methods, POOLED], [*levels, pooled], strict=True):
            shared = {"measure": measure, "view": view, "method": method, "claimed": claimed}
            shared |= {"gate": gates.get((*MEASURES[measure], view), ""), "n_profiles": people}
            rows.append(shared | _difference(mine, people, claimed))
    return pd.DataFrame(rows)


def at_equal_retain(kept: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Mean forget of each of two trainings over the retain values that both pass through, and these values' ends.

    ``kept`` and ``left`` are the two trainings' retain and forget at their points, [2, points]. Between neighbouring
    retain values forget is linear; points that keep equally much count as their mean. [4]: two means, low and high end;
    NaN where no retain value is in common.

    The points are put in the order of their retain, not of time. Where a retain term brings back what was lost, retain
    goes down and up again, and the line then runs through points of the way down and of the way up by turns.
    """
    low, high = kept.min(1).max(), kept.max(1).min()
    if not low < high:
        return np.full(4, np.nan)
    lines = []
    for x, y in zip(kept, left, strict=True):
        at, where = np.unique(x, return_inverse=True)
        lines.append((at, np.bincount(where, y) / np.bincount(where)))
    # piecewise linear, so the trapezoid over all corners is exact
    corners = np.unique(np.clip(np.concatenate([at for at, _ in lines]), low, high))
    means = [np.trapezoid(np.interp(corners, *line), corners) / (high - low) for line in lines]
    return np.array([*means, low, high])


def _difference(levels: np.ndarray, people: int, claimed: str) -> dict:
    """The columns of a row, from [1 + resamples, 4] of :func:`at_equal_retain`."""
    first, resampled = levels[0], levels[1:, 0] - levels[1:, 1]
    known = resampled[np.isfinite(resampled)]
    value = first[0] - first[1]
    reach = np.nan
    if np.isfinite(value) and people > 1 and len(known) >= (1 - LOST) * len(resampled):
        reach = student.ppf(0.975, people - 1) * known.std(ddof=1)
    row = dict(zip((*SIDES, "retain_low", "retain_high"), map(float, first), strict=True))
    row |= {"value": value, "low": value - reach, "high": value + reach}
    return row | {"verdict": verdict(row["low"], row["high"], claimed)}


def verdict(low: float, high: float, claimed: str) -> str:
    """What the interval of (text only minus image + text) says of the claim that ``claimed`` leaves less."""
    if not claimed:
        return ""
    if claimed == "multimodal":
        low, high = -high, -low
    return SUPPORTED if high < 0 else NOT_SUPPORTED if low > 0 else UNDECIDED


def with_gate(verdict: str, gate: str) -> str:
    """A verdict with what it hangs on: ``supported (gate closed)`` has no knowledge behind it that could have gone."""
    return verdict if gate == OPEN else f"{verdict} (gate {gate or 'not known'})"


def printed(gaps: pd.DataFrame) -> pd.DataFrame:
    """The claims as they are read, all methods averaged, in per cent and points."""
    rows = {}
    for claim in CLAIMS:
        for one in only(gaps, measure=claim.measure, view=claim.view, method=POOLED).itertuples():
            rows[claim.label] = {
                "said to leave less": MODALITIES[claim.lower],
                "text only, %": f"{100 * one.unimodal:.0f}",
                "image + text, %": f"{100 * one.multimodal:.0f}",
                "difference": f"{100 * one.value:+.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})",
                "verdict": with_gate(one.verdict, one.gate),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


@plots.styled
def figure(gaps: pd.DataFrame) -> Figure:
    """The differences with their intervals: a panel a claim, its methods above their mean. The pale side is the one
    the claim points to; the heading says the verdict, and where the gate is not open."""
    keys, claims = ["measure", "view"], pd.DataFrame(CLAIMS)
    rows = claims.merge(gaps, on=keys)
    looks = pd.DataFrame([plots.look(one) if one != POOLED else plots.Look(plots.INK, "o") for one in rows["method"]])
    points = {name: 100 * rows[name] for name in ("value", "low", "high")}
    names = rows["method"].map(lambda method: "all methods" if method == POOLED else method_label(method))
    below = "Forget after text only minus after image + text, points, at equal retain.  Pale: as claimed"
    drawn = plots.forest(rows.assign(name=names, **points, **looks), y="name", row="measure", below=[below])
    pooled = only(rows, method=POOLED).to_dict("records")
    for panel, one in zip(drawn.axes, pooled, strict=True):
        panel.set_ylabel("")
        panel.set_title(f"{one['label']}: {with_gate(one['verdict'], one['gate'])}", loc="left")
        ends = panel.get_xlim()
        side = (ends[0], 0) if one["lower"] == "unimodal" else (0, ends[1])
        panel.axvspan(*side, color=plots.PALE, alpha=0.45, linewidth=0, zorder=0)
        panel.set_xlim(ends)
    return drawn


@plots.styled
def curves(measured: Measured) -> Figure:
    """Forget against retain along each training: a row a method, a column a claim, draws pooled, in per cent.

    Filled, solid: unlearned on image + text; hollow, dashed: on text only. Both start at vanilla, on the right.
    """
    scores = trainings(measured)
    methods = in_order(scores["method"])
    kept = 100 * means(only(scores, measure="likelihood", set="retain"), methods)[0]
    size = plots.PAGE, 0.8 + 1.15 * len(methods)
    figure, axes = plots.panels(len(methods), len(CLAIMS), size, sharex=True, sharey=True)
    mark = {"markersize": 3.2, "linewidth": 0.9}
    for column, claim in enumerate(CLAIMS):
        left = 100 * means(only(scores, measure=claim.measure, set="forget", view=ASKED[claim.view]), methods)[0]
        for (row, method), (side, modality) in product(enumerate(methods), enumerate(SIDES)):
            look, order = plots.look(method, modality=modality), np.argsort(kept[row, side], kind="stable")
            face = {"color": look.colour, "markerfacecolor": look.colour if look.filled else "white"}
            line = f"{'-' if look.filled else '--'}{look.marker}"
            axes[row][column].plot(kept[row, side][order], left[row, side][order], line, **face, **mark)
            axes[row][column].grid(True)
        title = claim.label.replace(", ", ",\n").replace(" with", "\nwith")
        axes[0][column].set_title(title, fontsize=plots.SMALL)
    for panel, method in zip(axes[:, 0], methods, strict=True):
        panel.set_ylabel(method_label(method))
    figure.supylabel("Forget, %", fontsize=plots.SMALL)
    figure.supxlabel("Retain, likelihood, mean of both views, %", fontsize=plots.SMALL)
    faces = {"multimodal": {}, "unimodal": {"linestyle": "--", "markerfacecolor": "white"}}
    handles = [Line2D([], [], color=plots.INK, marker="o", **mark, **face) for face in faces.values()]
    names = [f"unlearned on {MODALITIES[name]}" for name in faces]
    figure.legend(handles, names, loc="outside upper center", ncols=2)
    seaborn.despine(figure)
    return figure


QUESTION = "the paper's headline claim, at equal retain"
STUDY = register(Study("modality", QUESTION, grid, table, printed, draws=(0, 1, 2), by=("step",), limit=30))
