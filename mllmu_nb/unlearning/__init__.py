"""Unlearning methods, one short file each, and the registry that names them.

Every module of this package is imported, and so are the modules outside it that the environment variable
MLLMU_NB_METHODS names (:func:`bring`), which :func:`register` methods of their own.
"""

import importlib
import os
import pkgutil

from mllmu_nb.errors import KitError
from mllmu_nb.unlearning.base import (
    IGNORE,
    METHODS,
    Method,
    Recorded,
    Scored,
    get,
    mean_kl,
    mean_nll,
    register,
    sequence_log_probs,
    summed_kl,
    token_log_probs,
    token_nll,
)

__all__ = ["IGNORE", "METHODS", "Method", "Recorded", "Scored", "get", "register"]
__all__ += ["mean_kl", "mean_nll", "sequence_log_probs", "summed_kl", "token_log_probs", "token_nll"]

OUTSIDE = "MLLMU_NB_METHODS"


def bring(modules: str) -> None:
    """Import modules outside the package, by dotted names with commas between them, so that their methods are known.

    Raises KitError naming the one that cannot be imported.
    """
    for name in filter(None, map(str.strip, modules.split(","))):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise KitError(f"{OUTSIDE} names {name!r}, which cannot be imported: {error}") from error


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
bring(os.environ.get(OUTSIDE, ""))
