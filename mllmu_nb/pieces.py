"""Pieces of the released code, each as a variant of a canonical method; the study ``differences`` measures them. They
are apart from the study, because the code of a variant decides whether its runs are trained again."""

from itertools import product

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
    ("grad_diff", "reach_upstream"): ("Grad. Diff., adapters", "language model", "also vision tower"),
    ("ga", "labels_text"): ("GA, labels", "answer", "all text"),
    ("ga", "labels_upstream"): ("GA, labels", "answer", "all text and image slots"),
    ("ga", "reach_upstream"): ("GA, adapters", "language model", "also vision tower"),
    ("kl_min", "summed_kl"): ("KL Min., KL", "mean over answer tokens", "sum over all positions"),
    ("kl_min", "reach_upstream"): ("KL Min., adapters", "language model", "also vision tower"),
    ("npo", "retain_epoch"): ("NPO, reference", "vanilla", "the base after one epoch on retain"),
}


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


RECIPES = {
    "labels_text": {"label_mode": "text"},  # with the question
    "labels_upstream": {"label_mode": "upstream"},  # and the image slots, too
    "reach_upstream": {"adapter_reach": "upstream"},
}
for _method, _variant in product((GradientAscent, GradientDifference, KLMinimization), RECIPES):
    if (_method.name, _variant) in PIECES:
        _recipe = Recipe(**RECIPES[_variant], source="MLLMU-Bench's code and README")
        _declared = {"variant": _variant, "recipes": {"miniature": _recipe}}
        register(type(f"{_method.__name__}{_variant.title().replace('_', '')}", (_method,), _declared))
