"""The helper package behind the notebooks: data → models → training, unlearning → evaluation → reporting."""

import os
import warnings

__version__ = "0.1.0"

# Batches are a few short texts; threads for them cost more than they save, and ten times as much on busy cores.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Bars are drawn in text here; that a notebook could draw others with one more package is nothing to warn of.
warnings.filterwarnings("ignore", message="IProgress not found")
