"""The cliff: how much is forgotten and how much kept at every learning rate and length, for every method alike.

A setting is one unlearning with the miniature's preset but for its rate and its number of optimizer steps. Every method
has as many rates and lengths as any other, on the same people. The forget sets of :data:`DRAWS` share nobody with those
that are reported at this ratio, so how far a setting lets the forget people fall was not chosen on those it is judged
by. No more than that is fresh: forget sets of another ratio are drawn anew and share some people with these, and who is
asked as kept is kept, or forgotten, in some reported run as well.

The budget counts rates and lengths only. Where the rates of a family of methods lie was placed by hand, and so was the
weight alpha of a retain term: 1, 2 and 4 were looked at on forget sets 5 and 6, where 1 kept far less when as much was
forgotten and 4 took longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import isnan, log, nan

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import plots
from mllmu_nb.reporting.runs import MODALITIES, in_order, method_label
from mllmu_nb.scoring.frames import VIEWS
from mllmu_nb.statistics.intervals import interval
from mllmu_nb.studies.base import TRAINED_VIEW, Measured, Study, answers, only, register

DRAWS = (5, 6, 7)  # forget sets that are never reported
# What ascends alone is over the edge in some forty steps; what a retain term holds takes longer to get there.
ALONE, HELD = ("ga", "npo"), ("grad_diff", "kl_min")
RATES = dict.fromkeys(ALONE, (1.5e-3, 2e-3, 3e-3, 4e-3)) | dict.fromkeys(HELD, (2e-3, 3e-3, 4e-3, 5e-3))
STEPS = dict.fromkeys(ALONE, (20, 30, 40)) | dict.fromkeys(HELD, (40, 60, 80))
# By how much less often the forget people's options are found than vanilla finds them. A method has to fall by a
# quarter on the reported people, who are others: with a bar of .3 here two of eight had not (on an earlier vanilla).
FALL = 0.35
MOST_BROKEN = 0.5
SETTING = ["method", "modality", "unlearn_lr", "unlearn_steps"]
CELL = ["set", "view", "measure"]
MEASURES = ("likelihood", "exact", "broken")
OUTSIDE = "outside the grid"

Presets = Mapping[tuple[str, str], tuple[float, float]]  # (method, modality) → (rate, steps)


def grid(config: Config, draws: Sequence[int] = DRAWS) -> list[Config]:
    """Vanilla, from which every setting starts, and every method at its rates and lengths: the same number each."""
    settings = [
        {"method": method, "modality": modality, "unlearn_lr": lr, "unlearn_steps": steps}
        for method in (*ALONE, *HELD)
        for modality in TRAINED_VIEW
        for lr in RATES[method]
        for steps in STEPS[method]
    ]
    return [config.but(replicate=draw, **setting) for setting in ({}, *settings) for draw in draws]


def table(measured: Measured) -> pd.DataFrame:
    """What each setting leaves of forget and retain, pooled over the forget draws: long, a row a set, view and measure.

    ``value`` (0 to 1) with its 95 % interval over people ``low`` to ``high``; ``passes`` over the forget set that the
    steps are, and in how many draws training ``diverged``: those left no answer, and the rest is not all.
    """
    rows = []
    groups = dict(list(measured.scores.groupby(SETTING)))
    for key, trained in measured.settings.groupby(SETTING, sort=False):
        known = {"passes": trained["passes"].mean(), "diverged": int((trained["diverged"] != "").sum())}
        asked = groups.get(key, measured.scores.iloc[:0])
        for cell in product(("forget", "retain"), VIEWS, MEASURES):
            at = dict(zip(CELL, cell, strict=True))
            score = interval(*answers(only(asked, **at)))
            rows.append({**dict(zip(SETTING, key, strict=True)), **known, **at, **vars(score)})
    return pd.DataFrame(rows)


def sides(cells: pd.DataFrame) -> pd.DataFrame:
    """A row a setting: ``forget``, the likelihood of the forget people in the view that was trained, and ``fall``, by
    how much it is lower than vanilla's; ``retain``, that of the retain people in the view where it is lower;
    ``broken``, the share of broken free answers about them where that is higher; ``passes`` and ``diverged``."""
    start = only(cells, modality="none").set_index(CELL)["value"]
    rows = []
    for key, setting in cells[cells["modality"] != "none"].groupby(SETTING, sort=False):
        by = setting.set_index(CELL)["value"]
        row = dict(zip(SETTING, key, strict=True)) | setting.iloc[0][["passes", "diverged"]].to_dict()
        trained = ("forget", TRAINED_VIEW[row["modality"]], "likelihood")
        row["forget"], row["fall"] = by[trained], start[trained] - by[trained]
        row["retain"] = min(by["retain", view, "likelihood"] for view in VIEWS)
        row["broken"] = max(by["retain", view, "broken"] for view in VIEWS)
        rows.append(row)
    return pd.DataFrame(rows)


def choose(cells: pd.DataFrame) -> pd.DataFrame:
    """The setting of each method and modality, by one rule.

    Of those after which the forget people's options are found less often by at least :data:`FALL` in the view that was
    trained, and whose free answers about the retain people are not broken in more than half, the one that keeps most of
    the retain people's options in the view where it keeps less. Where none is so, the one that falls furthest without
    breaking, or at all. A setting that diverged once is none. Rows as in :func:`sides`, and ``fit``: whether it falls
    so far unbroken.
    """
    chosen = []
    for (method, _), settings in sides(cells).groupby(["method", "modality"], sort=False):
        whole = settings[settings["diverged"] == 0]
        if whole.empty:
            raise KitError(f"every setting of {method} diverged: the rates are far too high")
        sound = whole[whole["broken"] <= MOST_BROKEN]
        fit = sound[sound["fall"] >= FALL]
        among, by = (fit, "retain") if len(fit) else (sound if len(sound) else whole, "fall")
        # equally good ones: the shorter, then the gentler
        order = [by, "unlearn_steps", "unlearn_lr"]
        best = among.sort_values(order, ascending=[False, True, True], kind="stable").iloc[0]
        chosen.append({**best.to_dict(), "fit": bool(len(fit))})
    return pd.DataFrame(chosen)


def printed(cells: pd.DataFrame, presets: Presets | None = None) -> pd.DataFrame:
    """The chosen settings as they are read: rate, length, and per cent of forget and retain.

    With ``presets``, (method, modality) → (rate, steps), also what the kit uses and where that lies on the grid.
    """
    rows, settings = {}, sides(cells)
    for one in choose(cells).itertuples():
        row = rows[method_label(one.method), MODALITIES[one.modality]] = {
            "rate": f"{one.unlearn_lr:.1e}",
            "steps": f"{one.unlearn_steps:.0f} ({one.passes:.1f} passes)",
            "forget, %": f"{100 * one.forget:.0f}",
            "retain, worse view, %": f"{100 * one.retain:.0f}",
            "": "" if one.fit else "no setting falls so far unbroken",
        }
        if used := (presets or {}).get((one.method, one.modality)):
            mine = only(settings, method=one.method, modality=one.modality)
            where = "as chosen" if used == (one.unlearn_lr, one.unlearn_steps) else _where(mine, *used)
            row["the kit's"] = f"{_named(*used)}: {where}"
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    frame.index = pd.MultiIndex.from_tuples(list(rows), names=["method", "unlearned on"])
    return frame


@plots.styled
def figure(cells: pd.DataFrame, modality: str, presets: Presets | None = None) -> Figure:
    """Forget (trained view) above retain (worse view) of every setting of ``modality``, a column a method, in per cent.

    The frame marks the chosen setting; the ring what ``presets`` say the kit uses, (method, modality) → (rate, steps).
    One that lies outside the grid has no ring but is named below. × marks a training that diverged.
    """
    settings = only(sides(cells), modality=modality)
    if settings.empty:
        raise KitError(f"the study has no setting unlearned on {MODALITIES.get(modality, modality)}")
    methods = in_order(settings["method"])
    used = {method: (presets or {}).get((method, modality)) for method in methods}
    by_method = {method: only(settings, method=method) for method in methods}
    outside = [m for m in methods if used[m] and _where(by_method[m], *used[m]) == OUTSIDE]
    figure, axes = plots.panels(2, len(methods), (plots.PAGE, 4.3))
    for column, method in enumerate(methods):
        mine = by_method[method]
        best = only(choose(cells), method=method, modality=modality).iloc[0]
        before = by_method[methods[column - 1]] if column else None
        for panel, side in zip(axes[:, column], ("forget", "retain"), strict=True):
            image = _map(panel, mine, side)
            x, y = _place(mine, best["unlearn_lr"], best["unlearn_steps"])
            frame = {"fill": False, "linewidth": 1.8, "edgecolor": plots.WRONG, "clip_on": False, "zorder": 3}
            panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **frame))
            if used[method]:
                for colour, width in (("white", 2.4), (plots.INK, 1)):
                    ring = {"markersize": 15, "markerfacecolor": "none", "markeredgewidth": width}
                    panel.plot(*_place(mine, *used[method]), "o", markeredgecolor=colour, **ring)
            if before is not None and set(mine["unlearn_steps"]) == set(before["unlearn_steps"]):
                panel.set_yticklabels([])  # as its neighbour's
        axes[0][column].set_title(method_label(method))
    axes[0][0].set_ylabel(f"Forget, {VIEWS[TRAINED_VIEW[modality]]}\nsteps (passes)")
    axes[1][0].set_ylabel("Retain, worse view\nsteps (passes)")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.01, aspect=30)
    bar.set_label("Right option likeliest, %")
    bar.outline.set_visible(False)
    below = "Learning rate, thousandths.  Frame: the chosen setting; ring: the kit's"
    if outside:
        named = "; ".join(f"{method_label(method)} {_named(*used[method])}" for method in outside)
        below += f"\nThe kit's setting lies outside the map, without a ring: {named}"
    figure.supxlabel(below, fontsize=plots.SMALL)
    return figure


def _map(panel: Axes, settings: pd.DataFrame, side: str):
    values = 100 * settings.pivot(index="unlearn_steps", columns="unlearn_lr", values=side)
    passes = settings.groupby("unlearn_steps")["passes"].mean()
    image = panel.imshow(values.to_numpy(), cmap="cividis", vmin=25, vmax=100, aspect="auto", origin="lower")
    for (y, x), value in np.ndenumerate(values.to_numpy()):
        text = "×" if isnan(value) else f"{value:.0f}"
        panel.text(x, y, text, ha="center", va="center", color="white" if value < 65 else "black")
    panel.set_xticks(range(values.shape[1]), [f"{1000 * lr:.2g}" for lr in values.columns])
    panel.set_yticks(range(values.shape[0]), [f"{steps:.0f} ({passes[steps]:.1f})" for steps in values.index])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return image


def _place(settings: pd.DataFrame, lr: float, steps: float) -> tuple[float, float]:
    """Where a rate and length lie among those of the grid, on logarithmic scales; NaN outside."""
    places = []
    for name, value in (("unlearn_lr", lr), ("unlearn_steps", steps)):
        axis = np.log(np.sort(settings[name].unique()))
        places.append(float(np.interp(log(value), axis, np.arange(len(axis)), left=nan, right=nan)))
    return tuple(places)


def _where(settings: pd.DataFrame, lr: float, steps: float) -> str:
    place = np.array(_place(settings, lr, steps))
    if np.isnan(place).any():
        return OUTSIDE
    return "on the grid" if np.allclose(place, place.round()) else "between its settings"


def _named(lr: float, steps: float) -> str:
    return f"{lr:.1e}, {steps:.0f} steps"


QUESTION = "learning rate by length: how much is forgotten, how much kept"
BY = ("unlearn_lr", "unlearn_steps")
STUDY = register(Study("cliff", QUESTION, grid, table, printed, DRAWS, BY, MEASURES, limit=30))
