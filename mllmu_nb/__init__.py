"""The helper package behind the notebooks: data → models → training, unlearning → evaluation → reporting."""

import warnings

__version__ = "0.1.0"

# Bars are drawn in text here; that a notebook could draw others with one more package is nothing to warn of.
warnings.filterwarnings("ignore", message="IProgress not found")
