"""Work in processes of their own, which end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone, however that ended."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def execute_notebook(notebook: Path, executed: Path, log: Path, given: Mapping[str, Any], threads: int) -> None:
    """Has papermill execute ``notebook`` in its own folder, with the parameters ``given``, and write ``executed``. What
    is printed goes to ``log``."""
    end_with_parent()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    import papermill

    papermill.execute_notebook(notebook, executed, dict(given), cwd=notebook.parent, progress_bar=False)
