"""Unlearning methods, one short file each, and the registry that names them."""

from mllmu_nb.unlearning import ga, grad_diff, kl_min, npo, prompting
from mllmu_nb.unlearning.base import IGNORE, METHODS, Method, Scored, get, register

__all__ = ["IGNORE", "METHODS", "Method", "Scored", "ga", "get", "grad_diff", "kl_min", "npo", "prompting", "register"]
