"""The process from which a sweep's notebooks are forked imports this: all that they import, and the keys of stages."""

import ipykernel.kernelapp  # noqa: F401
import papermill  # noqa: F401
from transformers import (  # noqa: F401  transformers imports what is asked for, and no sooner
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    Idefics2ForConditionalGeneration,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from mllmu_nb import pipeline, training  # noqa: F401
from mllmu_nb.config import Config
from mllmu_nb.evaluation import ask, teacher_forced  # noqa: F401
from mllmu_nb.models import adapters, load  # noqa: F401
from mllmu_nb.reporting import figures, show  # noqa: F401

FEW = {"people": 12, "pool": 4, "celebrities": 12}
PARSED = pipeline.answered(Config(method="ga", modality="unimodal", **FEW)).key
