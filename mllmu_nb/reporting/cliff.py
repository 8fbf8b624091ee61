"""What the study of the cliff has left: a table, the setting that is chosen, and heat maps of forget beside retain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import statistics
from mllmu_nb.reporting import METHODS, MODALITIES, VIEWS, figures, health, in_order

# By how much less often the forget people's options are found than vanilla finds them. A method has to fall by a
# quarter on the reported people, who are others: with a bar of .3 here two of eight had not (on an earlier vanilla).
FALL = 0.35
MOST_BROKEN = 0.5
SETTING = ["method", "modality", "lr", "steps"]
CELL = ["set", "view", "measure"]
MEASURES = {"likelihood": ("classification", "correct"), "exact": ("generation", "exact")}
MEASURES |= {"broken": ("generation", "broken")}
TRAINED = {"multimodal": "image_text", "unimodal": "text"}
OUTSIDE = "outside the grid"
COLUMNS = [*SETTING, "passes", "diverged", *CELL, "value", "low", "high", "n_items", "n_profiles"]

Presets = Mapping[tuple[str, str], tuple[float, float]]  # (method, modality) → (rate, steps)


def read(folder: Path) -> pd.DataFrame:
    """The table that the study's command has written beside the answers."""
    return pd.read_csv(folder / "cliff.csv")


def compact(answers: pd.DataFrame) -> pd.DataFrame:
    """A study's answers without their words, of which only is kept whether they are ``broken``: no sentence at all."""
    free = answers["task"] == "generation"
    broken = answers["answer"].where(free, "sound").map(health.form_of) != ""
    kept = answers.drop(columns=["answer", "question_id"]).assign(broken=broken.astype(float).where(free))
    texts = [name for name in kept if not pd.api.types.is_numeric_dtype(kept[name])]
    return kept.astype(dict.fromkeys(texts, "category") | dict.fromkeys(["correct", "exact", "broken"], "float32"))


def measured(folder: Path) -> pd.DataFrame:
    """The same from the answers themselves."""
    return table(*(pd.read_parquet(folder / f"{name}.parquet") for name in ("answers", "settings")))


def table(answers: pd.DataFrame, settings: pd.DataFrame) -> pd.DataFrame:
    """What each setting leaves of forget and retain, pooled over the forget draws: long, a row a measure.

    ``value`` (0 to 1) with its 95 % interval over people ``low`` to ``high``; ``passes`` over the forget set that the
    steps are, and in how many draws training ``diverged``: those left no answer, and the rest is not all.
    """
    rows = []
    groups = {key: part for key, part in answers.groupby(SETTING, observed=True)}
    for key, trained in settings.groupby(SETTING, sort=False):
        told = {"passes": trained["passes"].mean(), "diverged": int((trained["diverged"] != "").sum())}
        asked = groups.get(key, answers.iloc[:0])
        for set_name in ("forget", "retain"):
            for view in VIEWS:
                here = asked[(asked["set"] == set_name) & (asked["view"] == view)]
                for measure, (task, column) in MEASURES.items():
                    cell = here[here["task"] == task]
                    found = statistics.interval(cell[column].astype(float), cell["profile"].astype(str))
                    at = dict(zip([*SETTING, *CELL], (*key, set_name, view, measure), strict=True))
                    rows.append(at | told | vars(found))
    return pd.DataFrame(rows, columns=COLUMNS)


def sides(found: pd.DataFrame) -> pd.DataFrame:
    """A row a setting: ``forget``, the likelihood of the forget people in the view that was trained, and ``fall``, by
    how much it is lower than vanilla's; ``retain``, that of the retain people in the view where it is lower;
    ``broken``, the share of broken free answers about them where that is higher; ``passes`` and ``diverged``."""
    start = found[found["modality"] == "none"].set_index(CELL)["value"]
    rows = []
    for key, cells in found[found["modality"] != "none"].groupby(SETTING, sort=False):
        by = cells.set_index(CELL)["value"]
        row = dict(zip(SETTING, key, strict=True)) | cells.iloc[0][["passes", "diverged"]].to_dict()
        trained = ("forget", TRAINED[row["modality"]], "likelihood")
        row["forget"], row["fall"] = by[trained], start[trained] - by[trained]
        row["retain"] = min(by["retain", view, "likelihood"] for view in VIEWS)
        row["broken"] = max(by["retain", view, "broken"] for view in VIEWS)
        rows.append(row)
    return pd.DataFrame(rows)


def choose(found: pd.DataFrame) -> pd.DataFrame:
    """The setting of each method and modality, by one rule. On whom, and how fresh they are:
    :mod:`mllmu_nb.studies.cliff`.

    Of those after which the forget people's options are found less often by at least :data:`FALL` in the view that was
    trained, and whose free answers about the retain people are not broken in more than half, the one that keeps most of
    the retain people's options in the view where it keeps less. Where none is so, the one that falls furthest without
    breaking, or at all. A setting that diverged once is none. Rows as in :func:`sides`, and ``fit``: whether it falls
    so far unbroken.
    """
    chosen = []
    for _, settings in sides(found).groupby(["method", "modality"], sort=False):
        whole = settings[settings["diverged"] == 0]
        if whole.empty:
            raise KitError(f"every setting of {settings['method'].iloc[0]} diverged: the rates are far too high")
        sound = whole[whole["broken"] <= MOST_BROKEN]
        fit = sound[sound["fall"] >= FALL]
        among, by = (fit, "retain") if len(fit) else (sound if len(sound) else whole, "fall")
        # equally good ones: the shorter, then the gentler
        best = among.sort_values([by, "steps", "lr"], ascending=[False, True, True], kind="stable")
        chosen.append({**best.iloc[0].to_dict(), "fit": bool(len(fit))})
    return pd.DataFrame(chosen)


def printed(found: pd.DataFrame, presets: Presets | None = None) -> pd.DataFrame:
    """The chosen settings as they are read: rate, length, and per cent of forget and retain.

    With ``presets``, (method, modality) → (rate, steps), also what the kit uses and where that lies on the grid.
    """
    rows, grid = {}, sides(found).groupby(["method", "modality"])
    for one in choose(found).itertuples():
        key = one.method, one.modality
        rows[METHODS.get(one.method, one.method), MODALITIES[one.modality]] = {
            "rate": f"{one.lr:.1e}",
            "steps": f"{one.steps:.0f} ({one.passes:.1f} passes)",
            "forget, %": f"{100 * one.forget:.0f}",
            "retain, worse view, %": f"{100 * one.retain:.0f}",
            "": "" if one.fit else "no setting falls so far unbroken",
        }
        if presets and key in presets:
            used = presets[key]
            where = "as chosen" if used == (one.lr, one.steps) else _where(grid.get_group(key), *used)
            rows[METHODS.get(one.method, one.method), MODALITIES[one.modality]]["the kit's"] = (
                f"{_named(*used)}: {where}"
            )
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    frame.index = pd.MultiIndex.from_tuples(list(rows), names=["method", "unlearned on"])
    return frame


@figures.styled
def figure(found: pd.DataFrame, modality: str, presets: Presets | None = None) -> Figure:
    """Forget (trained view) above retain (worse view) of every setting of ``modality``, a column a method, in per cent.

    The frame marks the chosen setting; the ring what ``presets`` say the kit uses, (method, modality) → (rate, steps).
    One that lies outside the grid has no ring but is named below.
    """
    here = sides(found)
    here = here[here["modality"] == modality]
    if here.empty:
        raise KitError(f"the study has no setting unlearned on {MODALITIES.get(modality, modality)}")
    methods, best = in_order(here["method"]), choose(found).set_index(["method", "modality"])
    result = Figure(figsize=(figures.PAGE, 4.3), layout="constrained")
    axes = result.subplots(2, len(methods), squeeze=False)
    names = ("forget", f"Forget, {VIEWS[TRAINED[modality]]}"), ("retain", "Retain, worse view")
    outside = []
    for column, method in enumerate(methods):
        settings, used = here[here["method"] == method], (presets or {}).get((method, modality))
        if used and _where(settings, *used) == OUTSIDE:
            outside.append(f"{METHODS.get(method, method)} {_named(*used)}")
        for row, (name, title) in enumerate(names):
            panel = axes[row][column]
            image = _map(panel, settings, name)
            chosen = best.loc[(method, modality)]
            _frame(panel, settings, chosen["lr"], chosen["steps"])
            if used:
                _ring(panel, settings, *used)
            if row == 0:
                panel.set_title(METHODS.get(method, method), fontsize=figures.NORMAL)
            if column == 0:
                panel.set_ylabel(f"{title}\nsteps (passes)")
            elif set(settings["steps"]) == set(here.loc[here["method"] == methods[column - 1], "steps"]):
                panel.set_yticklabels([])  # as its neighbour's
    bar = result.colorbar(image, ax=axes, shrink=0.6, pad=0.01, aspect=30)
    bar.set_label("Right option likeliest, %", fontsize=figures.SMALL)
    bar.outline.set_visible(False)
    below = "Learning rate, thousandths.  Frame: the chosen setting; ring: the kit's"
    if outside:
        below += f"\nThe kit's setting lies outside the map, without a ring: {'; '.join(outside)}"
    result.supxlabel(below, fontsize=figures.SMALL)
    return result


def _map(panel: Axes, settings: pd.DataFrame, name: str):
    grid = 100 * settings.pivot(index="steps", columns="lr", values=name)
    passes = settings.groupby("steps")["passes"].mean()
    image = panel.imshow(grid.to_numpy(), cmap="cividis", vmin=25, vmax=100, aspect="auto", origin="lower")
    for (y, x), value in np.ndenumerate(grid.to_numpy()):
        text = "×" if math.isnan(value) else f"{value:.0f}"  # × no training came to its end
        panel.text(x, y, text, ha="center", va="center", color="white" if value < 65 else "black")
    panel.set_xticks(range(grid.shape[1]), [f"{1000 * lr:.2g}" for lr in grid.columns])
    panel.set_yticks(range(grid.shape[0]), [f"{steps} ({passes[steps]:.1f})" for steps in grid.index])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return image


def _place(values: pd.Series, value: float) -> float:
    """Where ``value`` lies among the ordered values of an axis, on a logarithmic scale; NaN outside them."""
    axis = np.log(np.sort(values.unique()))
    return float(np.interp(math.log(value), axis, np.arange(len(axis)), left=math.nan, right=math.nan))


def _where(settings: pd.DataFrame, lr: float, steps: float) -> str:
    """Where a rate and length lie on the grid of some settings."""
    place = np.array([_place(settings["lr"], lr), _place(settings["steps"], steps)])
    if np.isnan(place).any():
        return OUTSIDE
    return "on the grid" if np.allclose(place, place.round()) else "between its settings"


def _named(lr: float, steps: float) -> str:
    return f"{lr:.1e}, {steps:.0f} steps"


def _frame(panel: Axes, settings: pd.DataFrame, lr: float, steps: float) -> None:
    x, y = _place(settings["lr"], lr), _place(settings["steps"], steps)
    look = {"fill": False, "linewidth": 1.8, "edgecolor": figures.WRONG, "clip_on": False, "zorder": 3}
    panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **look))


def _ring(panel: Axes, settings: pd.DataFrame, lr: float, steps: float) -> None:
    x, y = _place(settings["lr"], lr), _place(settings["steps"], steps)
    panel.plot(x, y, "o", markersize=15, markerfacecolor="none", markeredgecolor="white", markeredgewidth=2.4)
    panel.plot(x, y, "o", markersize=15, markerfacecolor="none", markeredgecolor=figures.INK, markeredgewidth=1)
