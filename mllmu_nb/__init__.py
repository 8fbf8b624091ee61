"""The helper package behind the notebooks: data → models → training, unlearning → evaluation → reporting."""

__version__ = "0.1.0"
