"""Unlearning methods, one short file each. Every module here is imported, and so are the extensions."""

from mllmu_nb import registry
from mllmu_nb.unlearning.base import (
    IGNORE,
    METHODS,
    Method,
    Needs,
    Recipe,
    ReferenceLogProbs,
    Scored,
    Step,
    Stream,
    get,
    mean_kl,
    names,
    register,
    summed_kl,
    variants,
    with_answers,
)

__all__ = ["IGNORE", "METHODS", "Method", "Needs", "Recipe", "ReferenceLogProbs", "Scored", "Step", "Stream", "get"]
__all__ += ["mean_kl", "names", "register", "summed_kl", "variants", "with_answers"]

registry.import_all(__import__(__name__, fromlist=["base"]))
