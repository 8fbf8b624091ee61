"""What each difference between the released code and the methods' own papers changes: one at a time, all else equal.

A setting is one unlearning: the canonical method with the miniature's preset, or its variant with a single piece of the
released code in it (:mod:`~mllmu_nb.studies.released_code`); vanilla, people, learning rate and length stay. Label
modes differ in unlearning alone: vanilla was taught its answers. Beside them, vanilla itself is asked about the forget
people after worked examples ("shots") from other sources, in many draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from mllmu_nb.batches import steps_of
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import training_conversations
from mllmu_nb.pipeline import population
from mllmu_nb.reporting import plots
from mllmu_nb.reporting.runs import MODALITIES
from mllmu_nb.scoring.path import TRAINED_VIEW
from mllmu_nb.statistics.intervals import interval, paired_difference
from mllmu_nb.studies.base import MEASURES, Measured, answers, label, only

SHOT_DRAWS = 20
SOURCES = {"none": "none", "pool": "clean: from the unscored pool", "upstream": "upstream: from those asked about"}
CHANCE = 25  # per cent, of four options
NO_DIFFERENCE = "no difference shown"
SHOWN = ("likelihood", "exact")
AFTER_SHOTS = ("letter", "cloze")
KEYS = ["method", "variant", "modality", "set", "measure"]


class Piece(NamedTuple):
    """How one variant is printed: what differs, and how it is in the paper and in the released code."""

    what: str
    paper: str
    released: str


PIECES = {
    ("grad_diff", "passes"): Piece("Grad. Diff., walk", "both terms in a step", "a pass up, one as long down"),
    ("grad_diff", "whole_passes"): Piece("Grad. Diff., walk", "both terms in a step", "a pass up, all retain down"),
    ("grad_diff", "labels_text"): Piece("Grad. Diff., labels", "answer", "all text"),
    ("grad_diff", "labels_upstream"): Piece("Grad. Diff., labels", "answer", "all text and image slots"),
    ("ga", "labels_text"): Piece("GA, labels", "answer", "all text"),
    ("ga", "labels_upstream"): Piece("GA, labels", "answer", "all text and image slots"),
    ("kl_min", "summed_kl"): Piece("KL Min., KL", "mean over answer tokens", "sum over all positions"),
    ("npo", "retain_epoch"): Piece("NPO, reference", "θ₀ (vanilla)", "θ_ref (one epoch on retain)"),
}


def grid(config: Config, replicates: Sequence[int]) -> list[Config]:
    """Every canonical method and its variants; then vanilla after the shots of each draw from each source."""
    models = [(method, "canonical") for method in dict.fromkeys(method for method, _ in PIECES)] + list(PIECES)
    trained = [
        whole_epochs(config.but(method=method, variant=variant, modality=modality, replicate=replicate))
        for replicate, (method, variant), modality in product(replicates, models, TRAINED_VIEW)
        if (variant, modality) != ("labels_upstream", "unimodal")  # without a picture the same as labels_text
    ]
    shots = [(source, seed) for source in SOURCES for seed in range(SHOT_DRAWS if source != "none" else 1)]
    plain = config.but(replicate=replicates[0], scoring="letter")
    return trained + [plain.but(shot_source=source, shot_seed=seed) for source, seed in shots]


def whole_epochs(config: Config) -> Config:
    """The same; where the method walks through whole epochs, as many as come closest to the canonical steps."""
    if not config.objective.passes or not config.unlearn_steps:
        return config
    asked = training_conversations(population(config).members("forget"), config.modality)
    epochs = config.unlearn_steps / steps_of(asked, 1, config.unlearning.batch_size)
    return config.but(unlearn_steps=None, unlearn_epochs=float(max(1, round(epochs))))


def table(measured: Measured) -> pd.DataFrame:
    """Each variant minus the canonical method, question by question, pooled over the replicates, each model asked in
    the view that it was trained on.

    A row a method, variant, modality, set and measure: ``canonical`` and ``released`` are the two means, ``value``
    their difference with its 95 % interval over people ``low`` to ``high``, all from -1 to 1; ``n_items``,
    ``n_profiles``, and ``verdict``: lower or higher where the interval excludes 0.
    """
    scores = measured.scores[measured.scores["view"] == measured.scores["modality"].map(TRAINED_VIEW)]
    scores = scores[scores["items"] > 0]
    canonical = only(scores, variant="canonical")
    same = ["method", "modality", "replicate", "set", "measure", "profile"]
    pairs = scores.merge(canonical[[*same, "score", "items"]], on=[*same, "items"], suffixes=("", "_canonical"))
    rows = []
    for piece in PIECES:
        groups = only(pairs, method=piece[0], variant=piece[1], measure=SHOWN).groupby(KEYS)
        for key, cell in groups:
            (ours, people), (theirs, _) = answers(cell), answers(cell, "score_canonical")
            gap = paired_difference(ours, theirs, people)
            verdict = "lower" if gap.high < 0 else "higher" if gap.low > 0 else NO_DIFFERENCE
            means = {"canonical": float(theirs.mean()), "released": float(ours.mean())}
            rows.append(dict(zip(KEYS, key, strict=True)) | means | vars(gap) | {"verdict": verdict})
    return pd.DataFrame(rows)


def printed(changes: pd.DataFrame) -> pd.DataFrame:
    """The main table: a row a difference and modality, in per cent; ``26 → 31 (−2 to 12)`` is the canonical score, the
    other one and the interval of their difference."""
    rows = {}
    for (method, variant, modality), group in changes.groupby(["method", "variant", "modality"], sort=False):
        piece, cells, differing = PIECES[method, variant], {}, []
        for set_name, measure in product(("forget", "retain"), SHOWN):
            name = _named(set_name, measure)
            for cell in only(group, set=set_name, measure=measure).itertuples():
                canonical, released, low, high = map(_whole, (cell.canonical, cell.released, cell.low, cell.high))
                cells[name] = f"{canonical} → {released} ({low} to {high})"
                differing += [] if cell.verdict == NO_DIFFERENCE else [f"{name} {cell.verdict}"]
        rows[(*piece, MODALITIES[modality])] = cells | {"verdict": "; ".join(differing) or NO_DIFFERENCE}
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    names = ["difference", "in the paper", "in the released code", "unlearned on"]
    frame.index = pd.MultiIndex.from_tuples(list(rows), names=names)
    return frame


@plots.styled
def figure(changes: pd.DataFrame) -> Figure:
    """The differences with their intervals: a row a variant, a column a set and metric."""
    panels = [_named(set_name, measure) for measure in SHOWN for set_name in ("forget", "retain")]
    rows = []
    for one in changes.to_dict("records"):
        piece = PIECES[one["method"], one["variant"]]
        look = plots.look(one["method"], modality=one["modality"])._asdict()
        places = {"panel": _named(one["set"], one["measure"]), "modality": one["modality"]}
        points = {name: 100 * one[name] for name in ("value", "low", "high")}
        rows.append({"piece": f"{piece.what}:\n{piece.released}", **places, **points, **look})
    frame = pd.DataFrame(rows)
    frame["panel"] = pd.Categorical(frame["panel"], panels)
    below = (
        "With the released code's way minus without, points.  Filled: unlearned and asked on image + text; hollow: on "
    )
    below += "text only"
    drawn = plots.forest(frame, y="piece", column="panel", dodge="modality", below=[below])
    drawn.set_figheight(drawn.get_figheight() + 0.1 * frame["piece"].nunique())  # names have two lines
    for panel in drawn.axes:
        panel.set_xlim(1.05 * frame["low"].min(), 1.05 * frame["high"].max())
    return drawn


def _named(set_name: str, measure: str) -> str:
    return f"{set_name.capitalize()}, {label(measure).lower()}"


def _whole(share: float) -> str:
    """A share in whole per cent, without a minus before nought."""
    return f"{round(100 * share)}".replace("-", "−")


# -- shots ------------------------------------------------------------------------------------------------------


def shots(measured: Measured) -> pd.DataFrame:
    """Vanilla's scores after the shots of every draw: a row a shot_source, shot_seed, measure and profile."""
    asked = only(measured.scores, method="vanilla", set="forget", measure=AFTER_SHOTS)
    keys = ["shot_source", "shot_seed", "measure", "profile"]
    return asked.groupby(keys, sort=False)[["score", "items"]].sum().reset_index()


def spread(shots: pd.DataFrame) -> pd.DataFrame:
    """What the choice of the shots does to one and the same model's score on the forget set, a row a task and source.

    Over the draws: ``mean``, ``lowest``, ``highest`` and standard deviation ``sd``. Beside it ``low`` and ``high``, the
    95 % interval over people of the first draw alone, which is what one evaluation would report around ``first``.
    """
    rows = []
    for measure, source in product(AFTER_SHOTS, SOURCES):
        here = only(shots, measure=measure, shot_source=source)
        sums = here.groupby("shot_seed")[["score", "items"]].sum()
        means = sums["score"] / sums["items"]
        first = interval(*answers(only(here, shot_seed=means.index[0])))
        row = {"task": MEASURES[measure][0], "source": source, "draws": len(means), "mean": means.mean()}
        row |= {"lowest": means.min(), "highest": means.max(), "sd": means.std(ddof=1), "first": first.value}
        rows.append(row | {name: getattr(first, name) for name in ("low", "high", "n_items", "n_profiles")})
    return pd.DataFrame(rows)


def shot_changes(shots: pd.DataFrame) -> pd.DataFrame:
    """What each source of shots changes against none, and upstream's against the pool's, question by question.

    A question's score is its mean over the draws that asked it. Columns task, what, value, low, high, n_items,
    n_profiles.
    """
    means = shots.groupby(["shot_source", "measure", "profile"], sort=False)[["score", "items"]].mean().reset_index()
    rows = []
    for measure, (one, other) in product(AFTER_SHOTS, (("pool", "none"), ("upstream", "none"), ("upstream", "pool"))):
        a, b = (only(means, measure=measure, shot_source=source) for source in (one, other))
        pairs = a.merge(b, on=["profile", "items"], suffixes=("", "_other"))
        (ours, people), (theirs, _) = answers(pairs), answers(pairs, "score_other")
        gap = paired_difference(ours, theirs, people)
        rows.append({"task": MEASURES[measure][0], "what": f"{one} − {other}", **vars(gap)})
    return pd.DataFrame(rows)


@plots.styled
def shot_figure(shots: pd.DataFrame) -> Figure:
    """A dot a draw for each source of shots, above the interval over people that the first draw alone would report."""
    below = "Right about the forget people, %.  Dots: a draw each.  Bar: the interval over people that the first draw "
    figure, axes = plots.panels(
        1, len(AFTER_SHOTS), (plots.PAGE, 2.2), [f"{below}alone would report"], sharey=True, sharex=True
    )
    rng = np.random.default_rng(0)  # jitter, so that equal scores are seen to be several
    cells = spread(shots)
    for panel, measure in zip(axes[0], AFTER_SHOTS, strict=True):
        for place, source in enumerate(SOURCES):
            cell = only(cells, task=MEASURES[measure][0], source=source).iloc[0]
            ends = [100 * cell["low"], 100 * cell["high"]]
            panel.plot(ends, [place + 0.24] * 2, color=plots.INK, linewidth=1.1, marker="|", markersize=5)
            sums = only(shots, measure=measure, shot_source=source).groupby("shot_seed")[["score", "items"]].sum()
            jitter = rng.uniform(-0.14, 0.14, len(sums)) if len(sums) > 1 else 0.0
            dots = {"s": 13, "color": plots.RIGHT, "alpha": 0.65, "linewidth": 0}
            panel.scatter(100 * sums["score"] / sums["items"], np.full(len(sums), place - 0.08) + jitter, **dots)
        panel.set_title(label(measure))
        panel.grid(axis="x")
        panel.tick_params(axis="y", length=0)
    axes[0][0].axvline(CHANCE, color=plots.GREY, linewidth=0.7, linestyle=":", zorder=0)
    axes[0][0].text(CHANCE, -0.42, " chance", color=plots.GREY, fontsize=plots.SMALL)
    axes[0][0].set_yticks(range(len(SOURCES)), [text.replace(": ", ":\n") for text in SOURCES.values()])
    axes[0][0].set_ylim(len(SOURCES) - 0.5, -0.5)
    seaborn.despine(figure, left=True)
    return figure
