"""What each difference between the released code and the methods' own papers changes: one at a time, all else equal.

A grid of ordinary runs, each one unlearning: the canonical method with the miniature's preset, or its variant with a
single piece of the released code in it (:mod:`~mllmu_nb.studies.released_code`); vanilla, people, learning rate and
length stay. Label modes differ in unlearning alone: vanilla was taught its answers. The runs lie in
``studies/differences``, apart from those that the main tables are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import pandas as pd

from mllmu_nb import paths, pipeline
from mllmu_nb.batches import steps_of
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import training_conversations
from mllmu_nb.errors import KitError
from mllmu_nb.reporting.runs import MODALITIES, Run, items_of, read_runs
from mllmu_nb.scoring.frames import PAIRED_ON, of_metric
from mllmu_nb.scoring.path import TRAINED_VIEW
from mllmu_nb.scoring.registry import by_key
from mllmu_nb.statistics.intervals import paired_difference
from mllmu_nb.studies import released_code  # noqa: F401  registers its variants
from mllmu_nb.training import TrainingDiverged

NAME = "differences"
SETS = ("forget", "retain")
MEASURES = {"likelihood": ("classification", "likelihood", "accuracy"), "exact": ("generation", "", "exact")}
KEYS = ["method", "variant", "modality", "set", "measure"]
NO_DIFFERENCE = "no difference shown"


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
    """Every canonical method and its variants, at the scale and about the people of ``config``."""
    models = [(method, "canonical") for method in dict.fromkeys(method for method, _ in PIECES)] + list(PIECES)
    return [
        whole_epochs(config.but(method=method, variant=variant, modality=modality, replicate=replicate))
        for replicate, (method, variant), modality in product(replicates, models, TRAINED_VIEW)
        if (variant, modality) != ("labels_upstream", "unimodal")  # without a picture the same as labels_text
    ]


def whole_epochs(config: Config) -> Config:
    """The same; where the method walks through whole epochs, as many as come closest to the canonical steps."""
    if not config.objective.passes or not config.unlearn_steps:
        return config
    asked = training_conversations(pipeline.population(config).members("forget"), config.modality)
    epochs = config.unlearn_steps / steps_of(asked, 1, config.unlearning.batch_size)
    return config.but(unlearn_steps=None, unlearn_epochs=float(max(1, round(epochs))))


def make(configs: Sequence[Config]) -> None:
    """Makes the runs that are missing. Stopped, it goes on from there; a training that diverges has no run."""
    folder = paths.study(paths.results(configs[0].scale), NAME)
    pipeline.write_people(configs[0], paths.people(folder))
    for number, config in enumerate(configs, start=1):
        print(f"[{number}/{len(configs)}] {config.run_id}", flush=True)
        try:
            pipeline.answered(config, at=paths.runs(folder) / config.run_id, sets=SETS).get()
        except TrainingDiverged as reason:
            print(f"    {reason}")


def read() -> list[Run]:
    """The runs that were made. KitError, with the command that makes them, where there are none."""
    folder = paths.study(paths.results("miniature"), NAME)
    if not any(paths.runs(folder).glob("*/")):
        raise KitError(f"there is no study yet: `python -m mllmu_nb study {NAME}` makes it")
    return read_runs(folder)


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """Each variant minus the canonical method, question by question, pooled over the replicates, each model asked in
    the view that it was trained on.

    A row a method, variant, modality, set and measure: ``canonical`` and ``released`` are the two means, ``value``
    their difference with its 95 % interval over people ``low`` to ``high``, all from -1 to 1; ``n_items``,
    ``n_profiles``, and ``verdict``: lower or higher where the interval excludes 0.
    """
    items = items_of(runs, [])
    items = items[items["view"] == items["modality"].map(TRAINED_VIEW)]
    parts = []
    for measure, (task, scoring, metric) in MEASURES.items():
        asked = of_metric(items, task, scoring)
        parts.append(asked.assign(measure=measure, score=asked[by_key()[task, scoring, metric].column]))
    scores = pd.concat(parts).dropna(subset=["score"])
    canonical, same = scores[scores["variant"] == "canonical"], [*PAIRED_ON, "method", "modality", "measure"]
    pairs = scores.merge(canonical[[*same, "score"]], on=same, suffixes=("", "_canonical"))
    rows = []
    for method, variant in PIECES:
        for key, cell in pairs[(pairs["method"] == method) & (pairs["variant"] == variant)].groupby(KEYS):
            gap = paired_difference(cell["score"], cell["score_canonical"], cell["profile"])
            verdict = "lower" if gap.high < 0 else "higher" if gap.low > 0 else NO_DIFFERENCE
            means = {"canonical": cell["score_canonical"].mean(), "released": cell["score"].mean()}
            rows.append(dict(zip(KEYS, key, strict=True)) | means | vars(gap) | {"verdict": verdict})
    return pd.DataFrame(rows)


def printed(changes: pd.DataFrame) -> pd.DataFrame:
    """The main table: a row a difference and modality, in per cent; ``26 → 31 (−2 to 12)`` is the canonical score, the
    other one and the interval of their difference."""
    rows = {}
    for (method, variant, modality), group in changes.groupby(["method", "variant", "modality"], sort=False):
        cells, differing = {}, []
        for one in group.to_dict("records"):
            name = f"{one['set'].capitalize()}, {one['measure']}"
            canonical, released, low, high = (
                f"{round(100 * one[end])}".replace("-", "−") for end in ("canonical", "released", "low", "high")
            )
            cells[name] = f"{canonical} → {released} ({low} to {high})"
            differing += [] if one["verdict"] == NO_DIFFERENCE else [f"{name} {one['verdict']}"]
        rows[(*PIECES[method, variant], MODALITIES[modality])] = cells | {
            "verdict": "; ".join(differing) or NO_DIFFERENCE
        }
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    names = ["difference", "in the paper", "in the released code", "unlearned on"]
    frame.index = pd.MultiIndex.from_tuples(list(rows), names=names)
    return frame
