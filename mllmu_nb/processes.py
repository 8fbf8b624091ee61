"""Work in separate processes, which end when the process that started them ends."""

import multiprocessing
import os
import threading
from pathlib import Path

import psutil

from mllmu_nb.errors import KitError

CONTAINER = Path("/sys/fs/cgroup")  # its limits


def launched(name: str, usual: int) -> int:
    """A number that ``accelerate launch`` sets, such as WORLD_SIZE, else ``usual``. Raises KitError for any other
    text."""
    value = os.environ.get(name, "").strip()
    try:
        return int(value or usual)
    except ValueError:
        raise KitError(f"{name}={value!r} is no number: unset it, or leave it to `accelerate launch`") from None


def machine_cores() -> int:
    """The number of cores of the machine, or of a container's share of it."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = CONTAINER / "cpu.max"  # microseconds of all cores together, and the period in which they may be used
    given, period = limit.read_text().split() if limit.is_file() else ("max", "1")
    return count if given == "max" else max(1, min(count, int(given) // int(period)))


def machine_memory() -> int:
    """The bytes of the machine's memory, or of a container's share of it."""
    total, limit = psutil.virtual_memory().total, CONTAINER / "memory.max"
    given = limit.read_text().strip() if limit.is_file() else "max"
    return total if given == "max" else min(total, int(given))


def cores() -> int:
    """The number of cores that this process may use: the first number of OMP_NUM_THREADS, which a sweep sets for its
    runs, else all."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return (int(first) if first.isdecimal() else 0) or machine_cores()


def end_with_parent() -> None:
    """End this process when the process that started it has ended, for whatever reason."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
