"""Imported by the process from which a sweep's notebooks are forked: imports what they need, loads the bases,
computes stage keys."""

# ruff: noqa: E402
import contextlib
import sys

sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema does without its grammar, which takes seconds to build

import ipykernel.kernelapp  # noqa: F401
import papermill  # noqa: F401

from mllmu_nb import pipeline, training  # noqa: F401
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import ask, teacher_forced  # noqa: F401
from mllmu_nb.models import adapters, load  # noqa: F401
from mllmu_nb.models.files import ASSETS, model_type
from mllmu_nb.reporting import figures, show  # noqa: F401

for folder in ASSETS.glob("*-miniature"):
    with contextlib.suppress(KitError):  # who needs a damaged one reports it
        load.load_base(str(folder), model_type(folder), "miniature")

FEW = {"people": 12, "pool": 4, "celebrities": 12}
PARSED = pipeline.answered(Config(method="ga", modality="unimodal", **FEW)).key
