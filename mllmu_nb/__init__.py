"""The helper package behind the notebooks: data → models → training ← unlearning → evaluation → scoring → reporting."""

import warnings

from mllmu_nb.pinning import pin

__version__ = "0.2.0"

pin()  # before torch is imported

# Progress is drawn as text; that a notebook could draw it as a widget with one more package needs no warning.
warnings.filterwarnings("ignore", message="IProgress not found")
