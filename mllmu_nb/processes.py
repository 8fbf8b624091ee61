"""Work in separate processes, which end when the process that started them ends."""

import multiprocessing
import os
import threading

from mllmu_nb.errors import KitError


def launched(name: str, usual: int) -> int:
    """A number that ``accelerate launch`` sets, such as WORLD_SIZE, else ``usual``. Raises KitError for any other
    text."""
    value = os.environ.get(name, "").strip()
    try:
        return int(value or usual)
    except ValueError:
        raise KitError(f"{name}={value!r} is no number: unset it, or leave it to `accelerate launch`") from None


def cores() -> int:
    """The number of cores that this process may use: the first number of OMP_NUM_THREADS, which a sweep sets for its
    runs, else all."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return (int(first) if first.isdecimal() else 0) or os.cpu_count() or 1


def end_with_parent() -> None:
    """End this process when the process that started it has ended, for whatever reason."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
