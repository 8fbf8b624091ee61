"""Imported by the process from which a sweep's notebooks are forked: imports what they need, computes stage keys."""

# ruff: noqa: E402
import sys

sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema does without its grammar, which takes seconds to build

import ipykernel.kernelapp  # noqa: F401
import papermill  # noqa: F401
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from mllmu_nb import pipeline, training  # noqa: F401
from mllmu_nb.config import Config
from mllmu_nb.evaluation import ask, teacher_forced  # noqa: F401
from mllmu_nb.models import adapters, families, load  # noqa: F401
from mllmu_nb.models.files import ASSETS
from mllmu_nb.reporting import figures, show  # noqa: F401

for folder in ASSETS.glob("*-miniature"):  # transformers imports the classes of a family at their first use
    shape = AutoConfig.from_pretrained(folder)
    families.get(shape.model_type).load_processor(folder)
    with torch.device("meta"):
        AutoModelForImageTextToText.from_config(shape)

FEW = {"people": 12, "pool": 4, "celebrities": 12}
PARSED = pipeline.answered(Config(method="ga", modality="unimodal", **FEW)).key
