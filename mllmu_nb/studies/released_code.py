"""The canonical methods with one piece of the released code in each: variants of which no baseline is made, only the
study :mod:`~mllmu_nb.studies.differences`. Rate, length and hyper-parameters are those of the canonical method."""

from mllmu_nb.unlearning.base import Needs, Recipe, Stream, register, summed_kl
from mllmu_nb.unlearning.ga import GradientAscent
from mllmu_nb.unlearning.grad_diff import GradientDifference
from mllmu_nb.unlearning.kl_min import KLMinimization
from mllmu_nb.unlearning.npo import NegativePreference


@register
class SequentialGradientDifference(GradientDifference):
    """The canonical terms in steps of their own: all through forget, then all through retain, in every epoch."""

    variant = "whole_passes"
    passes = (("forget",), ("retain",))

    def loss(self, step):
        if "forget" in step:
            yield "forget", -self.gamma * step.forget.mean_nll.mean()
        if "retain" in step:
            yield "retain", self.alpha * step.retain.mean_nll.mean()


@register
class EvenSequentialGradientDifference(SequentialGradientDifference):
    """The same with a way down as long as the way up: as many retain questions as there are to forget."""

    variant = "passes"
    streams = {"forget": Stream("forget"), "length": Stream("forget"), "retain": Stream("retain")}
    passes = (("forget",), ("length", "retain"))  # "length" ends the pass; the loss does not read it


@register
class SummedKLMinimization(KLMinimization):
    """The canonical objective, its KL summed over every position and divided by the batch size."""

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
    for _mode in ("text", "upstream"):  # all text, the question too; and the slots of the picture as well
        _recipe = Recipe(label_mode=_mode, source="MLLMU-Bench's code and README")
        _declared = {"variant": f"labels_{_mode}", "recipes": {"miniature": _recipe}}
        register(type(f"{_mode.title()}Label{_method.__name__}", (_method,), _declared))
