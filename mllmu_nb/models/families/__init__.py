"""Families of models, one file each. Every module here is imported."""

from mllmu_nb import registry
from mllmu_nb.models.families.base import FAMILIES, LABEL_MODES, Family, get, of, register

__all__ = ["FAMILIES", "LABEL_MODES", "Family", "get", "of", "register"]

registry.import_all(__name__)
