"""The headline claim at equal retain: which modality of unlearning leaves less of the forget set, task by task.

Along a training, retain and forget scores fall together, and a model that has forgotten more may only have been trained
longer. So the two trainings of a method are compared where they keep equally much. *Retain* is the likelihood score of
the retain people, mean of the two views: the same yardstick for every task, and one that training moves. Between the
checkpoints forget is interpolated linearly over retain, and the difference, text only minus image + text, is averaged
over the retain values that both trainings pass through.

The interval resamples people, the same ones in all trainings and checkpoints (forget and retain people apart), and
takes Student's t on the resamples' spread, with as many degrees as there are forget people less one. Another vanilla
model or another order of unlearning is not in it: there is one training a method, modality and forget set. Each claim
is judged at 95 % by itself, without Holm's correction for how many there are.

Where vanilla is not shown to know more than the oracle there was nothing to forget: ``gate`` says so, and a verdict
behind a closed gate is none about forgetting.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import t as student

from mllmu_nb.errors import KitError
from mllmu_nb.reporting import METHODS, MODALITIES, VIEWS, figures, gates, in_order
from mllmu_nb.reporting.studies import MEASURES, gates_of

RESAMPLES = 2000
LOST = 0.05  # share of resamples whose trainings meet nowhere, above which there is no interval
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
POOLED = "all"
SIDES = ("unimodal", "multimodal")
COLUMNS = ["measure", "view", "method", "claimed", "unimodal", "multimodal", "value", "low", "high"]
COLUMNS += ["verdict", "gate", "retain_low", "retain_high", "n_profiles"]


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


class Walks(NamedTuple):
    """Sums of scores and numbers of items, each [methods, SIDES, points, people]."""

    scores: np.ndarray
    items: np.ndarray

    def means(self, weights: np.ndarray) -> np.ndarray:
        """[resamples, methods, SIDES, points], people counted ``weights`` [resamples, people] times."""
        sums, counts = (np.einsum("rn,mspn->rmsp", weights, part) for part in self)
        with np.errstate(invalid="ignore"):
            return sums / counts


def measured(folder: Path) -> pd.DataFrame:
    """The table of :func:`table` from a study's folder."""
    return table(read(folder), gates_of(folder))


def read(folder: Path) -> pd.DataFrame:
    """The answers along the trainings, summed by person."""
    return pd.read_parquet(folder / "people.parquet")


def table(
    people: pd.DataFrame, known: pd.DataFrame | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Forget after text-only minus forget after image + text unlearning, at equal retain: a row a measure, view and
    method, and one with all methods averaged (``all``).

    ``unimodal`` and ``multimodal`` are the two means over the retain values from ``retain_low`` to ``retain_high``,
    ``value`` their difference with its 95 % interval; NaN where the trainings have no retain value in common. Methods
    have their own ranges of retain, so ``all`` has none. A ``verdict`` stands where the claim says something
    (``claimed``: which training leaves less); ``gate`` is that of the measure and view in ``known``
    (:func:`~mllmu_nb.reporting.studies.gates_of`), "" where it has none.
    """
    people = _numbered(people)
    methods = in_order(people["method"])
    retain = people[(people["set"] == "retain") & (people["measure"] == "likelihood")]
    kept = _walks(retain, methods)
    kept_means = kept.means(_weights(kept.scores.shape[-1], resamples, seed))
    claims = {(claim.measure, claim.view): claim.lower for claim in CLAIMS}
    gate = (
        {} if known is None else {tuple(at): state for *at, state in known[[*gates.AT, "gate"]].itertuples(index=False)}
    )
    rows = []
    for measure in MEASURES:
        for view in (*VIEWS, "both"):
            asked = people[(people["set"] == "forget") & (people["measure"] == measure)]
            asked = asked if view == "both" else asked[asked["view"] == view]
            if asked["items"].sum() == 0:
                continue
            left = _walks(asked, methods)
            count = left.scores.shape[-1]
            levels = _levels(kept_means, left.means(_weights(count, resamples, seed + 1)))
            claimed = claims.get((measure, view), "")
            shared = {"measure": measure, "view": view, "claimed": claimed, "n_profiles": count}
            shared["gate"] = gate.get((*MEASURES[measure][1:4], view), "")
            for name, mine in _with_pooled(levels, methods):
                rows.append({**shared, "method": name} | _cell(mine, count, claimed))
    found = pd.DataFrame(rows, columns=COLUMNS)
    found.loc[found["method"] == POOLED, ["retain_low", "retain_high"]] = np.nan
    return found


def verdict(low: float, high: float, claimed: str) -> str:
    """What the interval of (text only minus image + text) says of the claim that ``claimed`` leaves less."""
    if not claimed:
        return ""
    if claimed == "multimodal":
        low, high = -high, -low
    return SUPPORTED if high < 0 else NOT_SUPPORTED if low > 0 else UNDECIDED


def spoken(verdict: str, gate: str) -> str:
    """A verdict with what it hangs on: ``supported (gate closed)`` has no knowledge behind it that could have gone."""
    return verdict if gate == gates.OPEN else f"{verdict} (gate {gate or 'not known'})"


def printed(found: pd.DataFrame) -> pd.DataFrame:
    """The claims as they are read, all methods averaged, in per cent and points."""
    rows = {}
    for claim in CLAIMS:
        here = found[(found["measure"] == claim.measure) & (found["view"] == claim.view)]
        for one in here[here["method"] == POOLED].itertuples():
            rows[claim.label] = {
                "said to leave less": MODALITIES[claim.lower],
                "text only, %": f"{100 * one.unimodal:.0f}",
                "image + text, %": f"{100 * one.multimodal:.0f}",
                "difference": f"{100 * one.value:+.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})",
                "verdict": spoken(one.verdict, one.gate),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


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


@figures.styled
def figure(found: pd.DataFrame) -> Figure:
    """The differences with their intervals: a group a claim, its methods above their mean. The pale side is the one
    the claim points to; the heading says the verdict, and where the gate is not open."""
    methods = [*in_order(set(found["method"]) - {POOLED}), POOLED]
    claims = [c for c in CLAIMS if ((found["measure"] == c.measure) & (found["view"] == c.view)).any()]
    step = len(methods) + 1.4
    result = Figure(figsize=(figures.PAGE, 0.7 + 0.155 * step * len(claims)), layout="constrained")
    axes = result.subplots()
    reach = max(10.0, 100 * found[["low", "high"]].abs().max().max() * 1.04)
    ticks, names = [], []
    for number, claim in enumerate(claims):
        here = found[(found["measure"] == claim.measure) & (found["view"] == claim.view)].set_index("method")
        top = number * step
        sides = (-reach, 0) if claim.lower == "unimodal" else (0, reach)
        axes.fill_betweenx([top - 1.4, top + len(methods) - 0.4], *sides, color=figures.PALE, alpha=0.45, linewidth=0)
        axes.plot([0, 0], [top - 0.5, top + len(methods) - 0.4], color=figures.INK, linewidth=0.7)
        told = spoken(*here.loc[POOLED, ["verdict", "gate"]]) if POOLED in here.index else ""
        axes.text(-reach, top - 0.95, f" {claim.label}: {told}", va="center", fontweight="bold")
        for place, method in enumerate(methods):
            ticks.append(top + place)
            names.append("all methods" if method == POOLED else METHODS.get(method, method))
            if method in here.index and np.isfinite(here.loc[method, "value"]):
                _bar(axes, here.loc[method], top + place, method)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(len(claims) * step - 1.4, -1.5)
    axes.set_yticks(ticks, names)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("Forget after text only minus after image + text, points, at equal retain.  Pale: as claimed")
    seaborn.despine(result, left=True)
    return result


@figures.styled
def curves(people: pd.DataFrame) -> Figure:
    """Forget against retain along each training: a row a method, a column a claim, draws pooled, in per cent.

    Filled, solid: unlearned on image + text; hollow, dashed: on text only. Both start at vanilla, on the right.
    """
    people = _numbered(people)
    methods = in_order(people["method"])
    retain = _walks(people[(people["set"] == "retain") & (people["measure"] == "likelihood")], methods)
    x = 100 * retain.means(np.ones((1, retain.scores.shape[-1])))[0]
    result = Figure(figsize=(figures.PAGE, 0.8 + 1.15 * len(methods)), layout="constrained")
    axes = result.subplots(len(methods), len(CLAIMS), sharex=True, sharey=True, squeeze=False)
    for column, claim in enumerate(CLAIMS):
        asked = people[(people["set"] == "forget") & (people["measure"] == claim.measure)]
        asked = asked if claim.view == "both" else asked[asked["view"] == claim.view]
        forget = _walks(asked, methods)
        y = 100 * forget.means(np.ones((1, forget.scores.shape[-1])))[0]
        for row, method in enumerate(methods):
            panel, look = axes[row][column], figures.look(method)
            for side, modality in enumerate(SIDES):
                face, line = ("white", "--") if modality == "unimodal" else (look.colour, "-")
                order = np.argsort(x[row, side], kind="stable")
                mark = {"marker": look.marker, "markersize": 3.2, "markerfacecolor": face, "linewidth": 0.9}
                panel.plot(x[row, side][order], y[row, side][order], line, color=look.colour, **mark)
            panel.grid(color=figures.PALE, linewidth=0.4)
            if row == 0:
                panel.set_title(claim.label.replace(", ", ",\n").replace(" with", "\nwith"), fontsize=figures.SMALL)
            if column == 0:
                panel.set_ylabel(METHODS.get(method, method))
    result.supylabel("Forget, %", fontsize=figures.SMALL)
    result.supxlabel("Retain, likelihood, mean of both views, %", fontsize=figures.SMALL)
    ink = {"color": figures.INK, "marker": "o", "markersize": 3.2, "linewidth": 0.9}
    handles = [Line2D([], [], **ink), Line2D([], [], **ink, linestyle="--", markerfacecolor="white")]
    names = [f"unlearned on {MODALITIES[name]}" for name in ("multimodal", "unimodal")]
    result.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    seaborn.despine(result)
    return result


# ------------------------------------------------------------------------------------------------------------- inside


def _numbered(people: pd.DataFrame) -> pd.DataFrame:
    """The rows with their checkpoint's number within its training (``point``), texts as plain text."""
    texts = {name: str for name in people.select_dtypes("category")}
    point = people.groupby(["method", "modality", "forget_draw"], observed=True)["step"].rank("dense").astype(int)
    return people.astype(texts).assign(point=point)


def _walks(rows: pd.DataFrame, methods: list[str]) -> Walks:
    """The sums behind every score of some rows; KitError where a training lacks a checkpoint that others have."""
    index = pd.MultiIndex.from_product([methods, SIDES, sorted(rows["point"].unique())])
    names = ["method", "modality", "point"]
    found = []
    for column in Walks._fields:
        wide = rows.pivot_table(index=names, columns="profile", values=_COLUMN[column], aggfunc="sum", fill_value=0)
        if set(wide.index) != set(index):
            raise KitError("a training lacks a checkpoint or a modality: measure the study again")
        found.append(wide.reindex(index).to_numpy(float).reshape(len(methods), len(SIDES), -1, wide.shape[1]))
    return Walks(*found)


_COLUMN = {"scores": "score", "items": "items"}


def _weights(people: int, resamples: int, seed: int) -> np.ndarray:
    """How often each person counts, [1 + resamples, people]: once in the first row, as drawn in the others."""
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=resamples)
    return np.vstack([np.ones(people), drawn])


def _levels(kept: np.ndarray, left: np.ndarray) -> np.ndarray:
    """:func:`at_equal_retain` of every resample and method: [resamples, methods, 4]."""
    shape = kept.shape[:2]
    pairs = zip(kept.reshape(-1, *kept.shape[2:]), left.reshape(-1, *left.shape[2:]), strict=True)
    return np.array([at_equal_retain(*pair) for pair in pairs]).reshape(*shape, 4)


def _with_pooled(levels: np.ndarray, methods: list[str]) -> list[tuple[str, np.ndarray]]:
    """Name and [resamples, 4] of every method and of the mean of those that can be compared."""
    each = [(name, levels[:, number]) for number, name in enumerate(methods)]
    met = [mine for _, mine in each if np.isfinite(mine[0]).all()]
    pooled = np.mean(met, axis=0) if met else np.full_like(levels[:, 0], np.nan)
    return [*each, (POOLED, pooled)]


def _cell(levels: np.ndarray, people: int, claimed: str) -> dict:
    first, differences = levels[0], levels[1:, 0] - levels[1:, 1]
    known = differences[np.isfinite(differences)]
    value, low, high = first[0] - first[1], np.nan, np.nan
    if np.isfinite(value) and people > 1 and len(known) >= (1 - LOST) * len(differences):
        reach = student.ppf(0.975, people - 1) * known.std(ddof=1)
        low, high = value - reach, value + reach
    ends = dict(zip((*SIDES, "retain_low", "retain_high"), map(float, first), strict=True))
    return {**ends, "value": value, "low": low, "high": high, "verdict": verdict(low, high, claimed)}


def _bar(axes, cell: pd.Series, place: float, method: str) -> None:
    value, low, high = (100 * cell[name] for name in ("value", "low", "high"))
    colour = figures.INK if method == POOLED else figures.look(method).colour
    mark = {"marker": "o" if method == POOLED else figures.look(method).marker, "markersize": 4}
    ends = [[value - low], [high - value]] if np.isfinite(low) else None
    axes.errorbar(value, place, xerr=ends, color=colour, elinewidth=1.1, capsize=2, linestyle="none", **mark)
