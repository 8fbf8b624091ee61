"""What :mod:`mllmu_nb.studies.differences` has measured, as a table and two figures, every number with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from mllmu_nb.evaluation import statistics
from mllmu_nb.reporting import MODALITIES, SETS, Measure, figures
from mllmu_nb.reporting.show import CHANCE

NOTHING = "no difference shown"


class Told(NamedTuple):
    """How one ingredient is printed: what differs, and how it is in the paper and in the released code."""

    what: str
    canonical: str
    released: str


TOLD = {
    ("grad_diff", "passes"): Told("Grad. Diff., walk", "both terms in a step", "a pass up, one as long down"),
    ("grad_diff", "whole_passes"): Told("Grad. Diff., walk", "both terms in a step", "a pass up, all retain down"),
    ("grad_diff", "labels_text"): Told("Grad. Diff., labels", "answer", "all text"),
    ("grad_diff", "labels_upstream"): Told("Grad. Diff., labels", "answer", "all text and image slots"),
    ("ga", "labels_text"): Told("GA, labels", "answer", "all text"),
    ("ga", "labels_upstream"): Told("GA, labels", "answer", "all text and image slots"),
    ("kl_min", "summed_kl"): Told("KL Min., KL", "mean over answer tokens", "sum over all positions"),
    ("npo", "retain_epoch"): Told("NPO, reference", "θ₀ (vanilla)", "θ_ref (one epoch on retain)"),
}
LIKELIHOOD = Measure("likelihood", "classification", "likelihood", "accuracy", 100, 1)
EXACT = Measure("exact", "generation", "", "exact", 100, 1)
MEASURES = (LIKELIHOOD, EXACT)
PAIRED_ON = ["forget_draw", "set", "task", "question_id"]
KEYS = ["method", "ingredient", "modality", "set", "measure"]
SOURCES = {"none": "none", "pool": "clean: from the unscored pool", "upstream": "upstream: from those asked about"}
TASKS = {"classification": "Letter", "cloze": "Cloze"}


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The answers of the unlearned models, and vanilla's after shots."""
    return pd.read_parquet(folder / "unlearned.parquet"), pd.read_parquet(folder / "shots.parquet")


def measured(folder: Path) -> pd.DataFrame:
    """The table of :func:`changes` from a study's folder."""
    return changes(read(folder)[0])


def changes(answers: pd.DataFrame) -> pd.DataFrame:
    """Each ingredient minus the canonical method, question by question, pooled over the forget draws.

    A row a method, ingredient, modality, set and measure: ``canonical`` and ``released`` are the two means, ``value``
    their difference with its 95 % interval over people ``low`` to ``high``, all from -1 to 1; ``n_items``,
    ``n_profiles``, and ``verdict``: lower or higher where the interval excludes 0.
    """
    rows = []
    for measure in MEASURES:
        asked = answers[(answers["task"] == measure.task) & (answers["scoring"] == measure.scoring)]
        asked = asked.assign(score=asked[measure.column].astype(float)).dropna(subset=["score"])
        canonical = asked[asked["ingredient"] == ""].drop(columns="ingredient")
        same = ["method", "modality", *PAIRED_ON]
        pairs = asked[asked["ingredient"] != ""].merge(
            canonical[[*same, "score"]], on=same, suffixes=("", "_canonical")
        )
        for key, group in pairs.groupby(["method", "ingredient", "modality", "set"], sort=False):
            scores = [group[name].to_numpy() for name in ("score", "score_canonical")]
            cell = statistics.paired_difference(*scores, group["profile"].to_numpy())
            means = dict(zip(("released", "canonical"), (float(score.mean()) for score in scores), strict=True))
            verdict = "lower" if cell.high < 0 else "higher" if cell.low > 0 else NOTHING
            rows.append(dict(zip(KEYS, (*key, measure.label), strict=True)) | means | vars(cell) | {"verdict": verdict})
    columns = [*KEYS, "canonical", "released", "value", "low", "high", "n_items", "n_profiles", "verdict"]
    table = pd.DataFrame(rows, columns=columns)
    order = {key: place for place, key in enumerate(TOLD)}
    place = [order[key] for key in zip(table["method"], table["ingredient"], strict=True)]
    table = table.assign(place=place).sort_values(["place", "modality", "set", "measure"], kind="stable")
    return table.drop(columns="place").reset_index(drop=True)


def printed(table: pd.DataFrame) -> pd.DataFrame:
    """The main table: a row a difference and modality, in per cent; ``26 → 31 (−2 to 12)`` is the canonical score, the
    other one and the interval of their difference."""
    rows = {}
    for key, group in table.groupby(["method", "ingredient", "modality"], sort=False):
        told, cells, differing = TOLD[key[:2]], {}, []
        for set_name in ("forget", "retain"):
            for measure in MEASURES:
                name = f"{SETS[set_name]}, {measure.label}"
                cell = group[(group["set"] == set_name) & (group["measure"] == measure.label)]
                if cell.empty:
                    continue
                cell = cell.iloc[0]
                canonical, released, low, high = (_whole(cell[c]) for c in ("canonical", "released", "low", "high"))
                cells[name] = f"{canonical} → {released} ({low} to {high})"
                differing += [] if cell["verdict"] == NOTHING else [f"{name} {cell['verdict']}"]
        cells["verdict"] = "; ".join(differing) or NOTHING
        rows[(told.what, told.canonical, told.released, MODALITIES[key[2]])] = cells
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    names = ["difference", "in the paper", "in the released code", "unlearned on"]
    frame.index = pd.MultiIndex.from_tuples(list(rows), names=names)
    return frame


def _whole(share: float) -> str:
    """A share in whole per cent, without a minus before nought."""
    return f"{round(100 * share)}".replace("-", "−")


@figures.styled
def figure(table: pd.DataFrame) -> Figure:
    """The differences with their intervals: a row an ingredient, a column a set and measure.

    Filled: unlearned and asked on image + text; hollow: on text only.
    """
    rows = [key for key in TOLD if ((table["method"] == key[0]) & (table["ingredient"] == key[1])).any()]
    panels = [(name, measure) for measure in MEASURES for name in ("forget", "retain")]
    result = Figure(figsize=(figures.PAGE, 0.75 + 0.36 * len(rows)), layout="constrained")
    axes = result.subplots(1, len(panels), sharex=True, sharey=True)
    for panel, (set_name, measure) in zip(axes, panels, strict=True):
        here = table[(table["set"] == set_name) & (table["measure"] == measure.label)]
        for (place, key), (offset, modality) in (
            (row, side) for row in enumerate(rows) for side in ((-0.17, "multimodal"), (0.17, "unimodal"))
        ):
            same = (here["method"] == key[0]) & (here["ingredient"] == key[1]) & (here["modality"] == modality)
            for cell in here[same].itertuples():
                value, low, high = (100 * end for end in (cell.value, cell.low, cell.high))
                colour = figures.look(key[0]).colour
                bar = {"xerr": [[value - low], [high - value]], "ecolor": colour, "elinewidth": 1.0, "capsize": 2.0}
                face = colour if modality == "multimodal" else "white"
                mark = {"marker": figures.look(key[0]).marker, "markersize": 3.4, "markeredgecolor": colour}
                panel.errorbar(value, place + offset, **bar, **mark, markerfacecolor=face, linestyle="none")
        panel.axvline(0, color=figures.INK, linewidth=0.7, zorder=0)
        panel.grid(axis="x", color=figures.PALE, linewidth=0.4)
        panel.set_title(f"{SETS[set_name]}, {measure.label}", fontsize=figures.NORMAL)
        panel.tick_params(axis="y", length=0)
        panel.set_xticks([-50, 0, 50, 100])
    names = [f"{TOLD[key].what}:\n{TOLD[key].released}" for key in rows]
    axes[0].set_yticks(range(len(rows)), names)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    result.supxlabel(
        "With the released code's way minus without, points.  Filled: unlearned and asked on image + text; "
        "hollow: on text only",
        fontsize=figures.SMALL,
    )
    seaborn.despine(result, left=True)
    return result


def spread(shots: pd.DataFrame) -> pd.DataFrame:
    """What the choice of the shots does to one and the same model's score on the forget set, a row a task and source.

    Over the draws: ``mean``, ``lowest``, ``highest`` and standard deviation ``sd``. Beside it ``low`` and ``high``, the
    95 % interval over people of the first draw alone, which is what one evaluation would report around ``first``.
    """
    rows = []
    for (task, source), group in shots.groupby(["task", "source"], sort=False):
        means = group.groupby("shot_seed")["correct"].mean()
        first = group[group["shot_seed"] == means.index[0]]
        cell = statistics.interval(first["correct"].to_numpy(float), first["profile"].to_numpy())
        told = {"draws": len(means), "mean": means.mean(), "lowest": means.min(), "highest": means.max()}
        told |= {"sd": means.std(ddof=1), "first": cell.value, "low": cell.low, "high": cell.high}
        rows.append({"task": task, "source": source, **told, "n_items": cell.n_items, "n_profiles": cell.n_profiles})
    table = pd.DataFrame(rows)
    order = {name: place for place, name in enumerate([*TASKS, *SOURCES])}
    return table.sort_values(["task", "source"], key=lambda c: c.map(order), kind="stable").reset_index(drop=True)


def shot_changes(shots: pd.DataFrame) -> pd.DataFrame:
    """What each source of shots changes against none, and upstream's against the pool's, question by question.

    A question's score is its mean over the draws that asked it. Columns task, what, value, low, high, n_items,
    n_profiles.
    """
    keys = ["source", "task", "profile", "question_id"]
    scores = shots.groupby(keys, as_index=False)["correct"].mean()
    rows = []
    for task in TASKS:
        for one, other in (("pool", "none"), ("upstream", "none"), ("upstream", "pool")):
            a, b = (scores[(scores["task"] == task) & (scores["source"] == name)] for name in (one, other))
            pairs = a.merge(b, on=["profile", "question_id"])
            columns = (pairs[name].to_numpy() for name in ("correct_x", "correct_y", "profile"))
            rows.append({"task": task, "what": f"{one} − {other}", **vars(statistics.paired_difference(*columns))})
    return pd.DataFrame(rows)


@figures.styled
def shot_figure(shots: pd.DataFrame) -> Figure:
    """A dot a draw for each source of shots, above the interval over people that the first draw alone would report."""
    table = spread(shots)
    result = Figure(figsize=(figures.PAGE, 2.4), layout="constrained")
    axes = result.subplots(1, len(TASKS), sharey=True)
    rng = np.random.default_rng(0)  # jitter, so that equal scores are seen to be several
    for panel, (task, name) in zip(axes, TASKS.items(), strict=True):
        for place, source in enumerate(SOURCES):
            cell = table[(table["task"] == task) & (table["source"] == source)].iloc[0]
            ends = [100 * cell["low"], 100 * cell["high"]]
            panel.plot(ends, [place + 0.24] * 2, color=figures.INK, linewidth=1.1, marker="|", markersize=5)
            here = shots[(shots["task"] == task) & (shots["source"] == source)]
            means = 100 * here.groupby("shot_seed")["correct"].mean().to_numpy()
            heights = place - 0.08 + (rng.uniform(-0.14, 0.14, len(means)) if len(means) > 1 else np.zeros(1))
            panel.scatter(means, heights, s=13, color=figures.RIGHT, alpha=0.65, linewidth=0)
        panel.set_title(name, fontsize=figures.NORMAL)
        panel.set_xlim(-2, 100 * table["high"].max() + 10)
        if task == "classification":
            panel.axvline(CHANCE, color=figures.GREY, linewidth=0.7, linestyle=":", zorder=0)
            panel.text(CHANCE, -0.42, " chance", color=figures.GREY, fontsize=figures.SMALL)
        panel.grid(axis="x", color=figures.PALE, linewidth=0.4)
        panel.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(SOURCES)), [text.replace(": ", ":\n") for text in SOURCES.values()])
    axes[0].set_ylim(len(SOURCES) - 0.5, -0.5)
    result.supxlabel(
        "Right about the forget people, %.  Dots: a draw each.  Bar: the interval over people that the first draw "
        "alone would report",
        fontsize=figures.SMALL,
    )
    seaborn.despine(result, left=True)
    return result
