"""Unlearning methods, one short file each. Every module here is imported."""

from mllmu_nb import registry
from mllmu_nb.unlearning.base import *  # noqa: F403
from mllmu_nb.unlearning.base import __all__  # noqa: F401

registry.import_all(__name__)
