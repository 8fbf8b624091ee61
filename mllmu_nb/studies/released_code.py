"""What each piece of the released code changes: compares canonical methods with variants that have one piece of it.

The study is a grid of unlearnings. A variant has the vanilla, people, learning rate, hyper-parameters and, rounded, the
passes over the forget set of the canonical method. Label modes differ in unlearning alone, because vanilla was taught
its answers.
"""

from collections.abc import Sequence
from itertools import product

import pandas as pd

from mllmu_nb import inputs, studies
from mllmu_nb.batches import steps_of
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import training_conversations
from mllmu_nb.reporting.runs import Run
from mllmu_nb.reporting.sheet import Sheet
from mllmu_nb.scoring.path import TRAINED_VIEW
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


# -- the table --------------------------------------------------------------------------------------------------


def complete(runs: Sequence[Run]) -> list[Run]:
    """A study's ``runs`` with the canonical ones, which in the kit's own study are those of the reference run."""
    return list(runs) if any(run["variant"] == "canonical" for run in runs) else [*runs, *studies.canonical(runs)]


def compared(runs: Sequence[Run]) -> pd.DataFrame:
    """Each variant beside the canonical method (:func:`mllmu_nb.studies.compared`)."""
    pieces = [run for run in runs if run["variant"] != "canonical"]
    canonical = [run for run in complete(runs) if run["variant"] == "canonical"]
    return studies.compared(pieces, canonical, ("method", "modality"))


def table(runs: Sequence[Run]) -> Sheet:
    """The table of :func:`compared`, with one row per piece and one block per modality."""
    models = {run.model for run in runs}
    rows = {
        model: pieces
        for (method, variant), pieces in PIECES.items()
        for modality in TRAINED_VIEW
        if (model := (method, variant, modality, "")) in models
    }
    title = "What each piece of the released code changes, %: canonical method → with it"
    first = ("Difference", "in the paper", "in the released code")
    return studies.sheet("differences", title, first, rows, compared(runs))
