"""The record of what made a result: code, versions, machine type and inputs. It names no person, host or folder."""

import platform
import re
import subprocess
from importlib import metadata
from typing import Any

from mllmu_nb import __version__, paths, pinning
from mllmu_nb.config import public
from mllmu_nb.processes import launched

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "numpy", "pandas", "pillow")


def record(**known: Any) -> dict[str, Any]:
    """The provenance of a result made now; ``known`` adds what the caller knows (parameters, seeds, hashes, scale)."""
    if "parameters" in known:
        known["parameters"] = public(known["parameters"])
    changed = _git("status", "--porcelain", "--", str(paths.PACKAGE))  # outputs of notebooks and results do not count
    code = {"commit": _git("rev-parse", "HEAD") or "unknown", "dirty": None if changed is None else bool(changed)}
    return {**code, "versions": versions(), **machine(), **known}


def machine() -> dict[str, Any]:
    """What decides the bits of a result: device, CPU ("" if the system does not name it), the kernels that torch chose,
    threads, processes that train together, and the variables that pin the bits."""
    import torch

    gpu, named = torch.cuda.is_available(), re.search(r"^model name.*?:(.*)", pinning.cpu(), re.MULTILINE)
    return {
        "device": torch.cuda.get_device_name() if gpu else f"cpu ({platform.machine()})",
        "cpu": named[1].strip() if named else "",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": launched("WORLD_SIZE", 1),
        "bits": pinning.settings(),
    }


def versions() -> dict[str, str]:
    """Package → installed version, Python and the kit included."""
    own = {"python": platform.python_version(), "mllmu_nb": __version__}
    return own | {name: metadata.version(name) for name in LIBRARIES}


def _git(*arguments: str) -> str | None:
    """What git prints about the folder that holds the package; None if git fails or there is no checkout."""
    folder = paths.PACKAGE.parent
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
