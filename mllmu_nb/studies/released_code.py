"""What each piece of the released code changes: compares canonical methods with variants that have one piece of it.

The study is a grid of ordinary runs, each one unlearning. A variant has the vanilla, people, learning rate, length and
hyper-parameters of the canonical method. Label modes differ in unlearning alone, because vanilla was taught its
answers. The runs are in ``studies/differences``, apart from those that the main tables are made of.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd

from mllmu_nb import inputs, pipeline, studies
from mllmu_nb.batches import steps_of
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import training_conversations
from mllmu_nb.reporting.grid import rows_by
from mllmu_nb.reporting.runs import Run, items_of, read_runs
from mllmu_nb.reporting.sheet import Sheet
from mllmu_nb.reporting.tables import UNLEARNED
from mllmu_nb.scoring.frames import LIKELIHOOD_KEY, PAIRED_ON, of_metric
from mllmu_nb.scoring.path import TRAINED_VIEW
from mllmu_nb.scoring.registry import by_key
from mllmu_nb.statistics.intervals import paired_difference
from mllmu_nb.unlearning.base import Needs, Recipe, Stream, register, summed_kl
from mllmu_nb.unlearning.ga import GradientAscent
from mllmu_nb.unlearning.grad_diff import GradientDifference
from mllmu_nb.unlearning.kl_min import KLMinimization
from mllmu_nb.unlearning.npo import NegativePreference

# method and variant → what differs, and how it is in the paper and in the released code
PIECES = {
    ("grad_diff", "passes"): ("Grad. Diff., order", "both terms in a step", "all forget, then as many retain"),
    ("grad_diff", "whole_passes"): ("Grad. Diff., order", "both terms in a step", "all forget, then all retain"),
    ("grad_diff", "labels_text"): ("Grad. Diff., labels", "answer", "all text"),
    ("grad_diff", "labels_upstream"): ("Grad. Diff., labels", "answer", "all text and image slots"),
    ("ga", "labels_text"): ("GA, labels", "answer", "all text"),
    ("ga", "labels_upstream"): ("GA, labels", "answer", "all text and image slots"),
    ("kl_min", "summed_kl"): ("KL Min., KL", "mean over answer tokens", "sum over all positions"),
    ("npo", "retain_epoch"): ("NPO, reference", "vanilla", "the base after one epoch on retain"),
}
SETS = ("forget", "retain")
MEASURES = {"likelihood": LIKELIHOOD_KEY, "exact": ("generation", "", "exact")}
KEYS = ["method", "variant", "modality", "set", "measure"]
NO_DIFFERENCE = "no difference shown"


# -- the variants -----------------------------------------------------------------------------------------------


@register
class SequentialGradientDifference(GradientDifference):
    """The canonical terms in separate steps: in every epoch first all forget questions, then all retain questions."""

    variant = "whole_passes"
    passes = (("forget",), ("retain",))

    def loss(self, step):
        if "forget" in step:
            yield "forget", -self.gamma * step.forget.mean_nll.mean()
        if "retain" in step:
            yield "retain", self.alpha * step.retain.mean_nll.mean()


@register
class EvenSequentialGradientDifference(SequentialGradientDifference):
    """The same with passes of equal length: after all forget questions, as many retain questions."""

    variant = "passes"
    streams = {"forget": Stream("forget"), "length": Stream("forget"), "retain": Stream("retain")}
    passes = (("forget",), ("length", "retain"))  # "length" ends the pass; the loss does not read it


@register
class SummedKLMinimization(KLMinimization):
    """The canonical objective, with its KL summed over every position and divided by the batch size."""

    variant = "summed_kl"
    needs = Needs(reference=("retain",), everywhere=("retain",))

    def loss(self, step):
        yield "forget", -step.forget.mean_nll.mean()
        yield "kl", self.alpha * summed_kl(step.reference.retain, step.retain)


@register
class RetainEpochPreference(NegativePreference):
    """The canonical objective against θ_ref, the base model after one epoch on the retain people, instead of θ_0."""

    variant = "retain_epoch"
    reference_model = "retain_epoch"


for _method in (GradientAscent, GradientDifference):
    for _mode in ("text", "upstream"):  # all text, with the question; and the image slots, too
        _recipe = Recipe(label_mode=_mode, source="MLLMU-Bench's code and README")
        _declared = {"variant": f"labels_{_mode}", "recipes": {"miniature": _recipe}}
        register(type(f"{_mode.title()}Label{_method.__name__}", (_method,), _declared))


# -- the runs ---------------------------------------------------------------------------------------------------


def grid(replicates: Sequence[int]) -> list[Config]:
    """Every canonical method and its variants, on image + text and on text."""
    models = [*dict.fromkeys((method, "canonical") for method, _ in PIECES), *PIECES]
    return [
        whole_epochs(Config(replicate=replicate, method=method, variant=variant, modality=modality))
        for replicate, (method, variant), modality in product(replicates, models, TRAINED_VIEW)
        if (variant, modality) != ("labels_upstream", "unimodal")  # without a picture the same as labels_text
    ]


def whole_epochs(config: Config) -> Config:
    """``config``; if its method needs whole epochs, with the number of epochs closest to the canonical steps."""
    if not config.objective.passes or not config.unlearn_steps:
        return config
    asked = training_conversations(inputs.population(config).members("forget"), config.modality)
    epochs = config.unlearn_steps / steps_of(asked, 1, config.unlearning.batch_size)
    return config.but(unlearn_steps=None, unlearn_epochs=float(max(1, round(epochs))))


def make(configs: Sequence[Config]) -> None:
    """Make the missing runs (:func:`mllmu_nb.studies.make`)."""
    studies.make("differences", configs, lambda config, at: pipeline.answered(config, at=at, sets=SETS))


def read() -> list[Run]:
    """The runs of the user's own study, else those that come with the kit. Raises KitError if there are none."""
    return read_runs(studies.folder_of("differences"))


# -- the table --------------------------------------------------------------------------------------------------


def changes(runs: Sequence[Run]) -> pd.DataFrame:
    """Each variant minus the canonical method, question by question, pooled over the replicates. Each model is asked in
    the view that it was trained on.

    There is one row per method, variant, modality, set and measure. ``canonical`` and ``released`` are the two means,
    ``value`` is their difference and ``low`` to ``high`` its 95 % interval, all from -1 to 1. The interval is over
    people, for several replicates over replicates crossed with people. There are also ``n_items``, ``n_profiles``,
    ``n_replicates``, and ``verdict``: lower or higher if the interval excludes 0.
    """
    items, rows = items_of(runs, []), []
    items = items[items["view"] == items["modality"].map(TRAINED_VIEW)]
    for measure, key in MEASURES.items():
        asked = of_metric(items, *key[:2])
        asked = asked.assign(measure=measure, score=asked[by_key()[key].column]).dropna(subset="score")
        canonical, same = asked[asked["variant"] == "canonical"], [*PAIRED_ON, "method", "modality"]
        pairs = asked.merge(canonical[[*same, "score"]], on=same, suffixes=("", "_canonical"))
        for at, pair in pairs[pairs["variant"] != "canonical"].groupby(KEYS):
            scores, replicates = (pair["score"], pair["score_canonical"]), pair["replicate"]
            gap = paired_difference(*scores, pair["profile"], replicates=replicates)
            verdict = "lower" if gap.high < 0 else "higher" if gap.low > 0 else NO_DIFFERENCE
            means = {"canonical": pair["score_canonical"].mean(), "released": pair["score"].mean()}
            rows.append(dict(zip(KEYS, at, strict=True)) | means | vars(gap) | {"verdict": verdict})
    return pd.DataFrame(rows)


def table() -> Sheet:
    """The :func:`change_table` of the runs that :func:`read` returns."""
    return change_table(read())


def change_table(runs: Sequence[Run]) -> Sheet:
    """The table of :func:`changes`, with one row per piece and one block per modality. ``26 → 31 (−2 to 12)`` is the
    canonical score, the variant's score and the interval of their difference."""
    frame, asked = changes(runs), list(product(SETS, MEASURES))
    known, models = rows_by(frame, KEYS), rows_by(frame, KEYS[:3])

    def row(method: str, variant: str, modality: str) -> tuple[str, list[tuple[str, str]]]:
        cells = [known.get((method, variant, modality, *at), {}) for at in asked]
        differing = [cell for cell in cells if cell.get("verdict", NO_DIFFERENCE) != NO_DIFFERENCE]
        said = "; ".join(f"{one['set'].capitalize()}, {one['measure']} {one['verdict']}" for one in differing)
        difference, *pieces = PIECES[method, variant]
        return difference, [(text, "") for text in (*pieces, *map(_change, cells), said or NO_DIFFERENCE)]

    asked_of = {one: [model for model in PIECES if (*model, one) in models] for one in TRAINED_VIEW}
    blocks = [(UNLEARNED[one], [row(*model, one) for model in some]) for one, some in asked_of.items()]
    scores = [(name.capitalize(), measure) for name, measure in asked]
    columns = [("", "in the paper"), ("", "in the released code"), *scores, ("", "verdict")]
    title = "What each piece of the released code changes, %: canonical → with it (95 % limits of the difference)"
    count = len({run["replicate"] for run in runs})
    over = f"{count} replicates, each with its own forget set, crossed with people" if count > 1 else "people alone"
    remarks = [f"Limits are over {over}." + " Another run of the method is not in them." * (count == 1)]
    return Sheet(title, "differences", "Difference", columns, [one for one in blocks if one[1]], remarks, frame)


def _change(cell: Mapping[str, Any]) -> str:
    if not cell:
        return ""
    numbers = (round(100 * cell[name]) for name in ("canonical", "released", "low", "high"))
    return "{} → {} ({} to {})".format(*numbers).replace("-", "−")
