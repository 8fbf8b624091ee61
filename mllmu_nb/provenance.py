"""What made a result: code, versions, machine type and inputs. Nothing that names a person, a host or a folder."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import PurePath
from typing import Any

from mllmu_nb import __version__, paths

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "numpy", "pandas", "pillow")
# Parameters that hold a path: only its last part is recorded.
PATHS = ("base_path", "adapter_path", "profiles_file", "forget_ids_file", "data_source", "draws_file")


def record(**told: Any) -> dict[str, Any]:
    """The provenance of a result made now; ``told`` adds what the caller knows (parameters, seeds, hashes, scale)."""
    if "parameters" in told:
        told["parameters"] = public(told["parameters"])
    return {"commit": commit(), "dirty": dirty(), "versions": versions(), "device": device(), **told}


def public(parameters: dict[str, Any]) -> dict[str, Any]:
    """``parameters`` with every path cut down to its last part; names on the hub, which only data_source has, stay."""
    told = {k: PurePath(v).name if k in PATHS and v else v for k, v in parameters.items()}
    if told.get("data_source"):
        parts = parameters["data_source"].split(",")
        told["data_source"] = ",".join(part if _on_hub(part) else PurePath(part).name for part in parts)
    return told


def _on_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith(("/", ".", "~"))


def commit() -> str:
    """The checkout's commit, or "unknown" outside a repository."""
    return _git("rev-parse", "HEAD") or "unknown"


def dirty() -> bool | None:
    """Whether code differs from the commit (notebooks' outputs and results do not count); None where nobody can say."""
    changed = _git("status", "--porcelain", "--", str(paths.PACKAGE))
    return None if changed is None else bool(changed)


def committed(path: str) -> str | None:
    """A file of the checkout, named from its top, as the commit holds it; None where there is none, or no git."""
    return _git("show", f"HEAD:./{path}")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "mllmu_nb": __version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def device() -> str:
    """The name of the GPU, or "cpu" with its architecture."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})"


def _git(*arguments: str) -> str | None:
    """What git prints about the folder that holds the package; None where that is no checkout or git is missing."""
    if not (paths.PACKAGE.parent / ".git").exists():
        return None
    try:
        told = subprocess.run(
            ["git", "-C", str(paths.PACKAGE.parent), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() if told.returncode == 0 else None
