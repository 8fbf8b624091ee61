"""The same bits on every CPU of one maker that has AVX2: three environment variables, set when this package is
imported, choose torch's AVX2 kernels everywhere (``docs/architecture.md``, "Pinned bits")."""

import os
import platform
import sys
import warnings
from pathlib import Path

UNPINNED = "MLLMU_NB_UNPINNED"  # set to anything: for building bases, whose bfloat16 is 200 times slower when pinned


def cpu() -> str:
    """What the operating system says of the CPU; on Linux, with its maker and its instructions."""
    description = Path("/proc/cpuinfo")
    return description.read_text() if description.is_file() else platform.processor()


INTEL = "GenuineIntel" in cpu()
# On an Intel CPU, MKL's strict kernels give the same bits wherever numbers lie in memory. On an AMD CPU it ignores the
# word, and has other kernels for some shapes, whatever is set: the bits of the two makers differ.
VARIABLES = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2,STRICT" if INTEL else "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}


def pin() -> None:
    """Set the variables that are not set yet. Warns in one line if torch is loaded and may have chosen its kernels."""
    if os.environ.get(UNPINNED) or not _has_avx2():
        return
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing and "torch" in sys.modules:
        warnings.warn(
            "torch was imported before mllmu_nb, so results may differ in bits from those of other CPUs: "
            "import mllmu_nb first",
            stacklevel=3,
        )
    for name in missing:
        os.environ[name] = VARIABLES[name]


def settings() -> dict[str, str]:
    """The current values of the variables that decide the bits; "" if one is not set."""
    return {name: os.environ.get(name, "") for name in VARIABLES}


def pinned() -> bool:
    """Whether all these variables have the values that pin the bits."""
    return all(os.environ.get(name, "").lower() == value.lower() for name, value in VARIABLES.items())


def _has_avx2() -> bool:
    """Whether the CPU has AVX2: without it, AVX2 kernels crash. Only Linux tells; elsewhere x86 counts as yes."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return " avx2" in cpu() if sys.platform == "linux" else True
