"""The helper package behind the notebooks: data → models → training ← unlearning → evaluation → scoring → reporting."""

from mllmu_nb.pinning import pin

__version__ = "0.2.0"

pin()  # before torch is imported
