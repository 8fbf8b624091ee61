"""A stage: work that is done once for its inputs, and whose result appears whole or not at all.

The name of a stage's folder holds a hash of all that decides its content. A finished folder is found again and reused;
one that was interrupted never had that name.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mllmu_nb import paths, provenance
from mllmu_nb.config import stable_hash
from mllmu_nb.errors import KitError

# Raised by hand when the files of a stage change their form, so that older ones are made anew.
FORMAT = {"vanilla": 1, "oracle": 1, "unlearned": 1}
PARTIAL = ".partial-"
RECORD = "provenance.json"


def code_hash(modules: Iterable[str]) -> str:
    """A hash of what the modules do: of their syntax tree without docstrings, so wording and layout change nothing.

    Someone who edits a method's file must not be shown the result of the old one.
    """
    return stable_hash([_meaning(module) for module in modules])


def key(name: str, inputs: Mapping[str, Any]) -> str:
    """The hash that stands for a stage with these inputs (plain values)."""
    return stable_hash({"stage": name, "format": FORMAT.get(name, 1), **inputs})


def place(name: str, inputs: Mapping[str, Any]) -> Path:
    """The folder of the stage, whether it is there yet or not."""
    return paths.cache() / "stages" / f"{name}-{key(name, inputs)}"


def stage(name: str, inputs: Mapping[str, Any], make: Callable[[Path], None], record: Mapping[str, Any] = {}) -> Path:
    """The folder in which ``make`` has put its files for these ``inputs``; made now unless it is there already.

    ``make`` is given an empty folder. Two processes that ask at once do the work once. ``record`` is written into the
    folder with the provenance. Raises KitError when the cache cannot be written.
    """
    folder = place(name, inputs)
    if not folder.is_dir():
        with lock(folder):
            if not folder.is_dir():
                with whole(folder) as partial:
                    began = time.perf_counter()
                    make(partial)
                    seconds = time.perf_counter() - began
                    told = provenance.record(**record, inputs=dict(inputs), seconds=round(seconds, 3))
                    write_json(partial / RECORD, told)
    return folder


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds ``folder`` for this process. The lock is the system's own: it falls when the process does, however it ends."""
    paths.writable(folder.parent)
    with open(folder.parent / f".{folder.name}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its name, and the place of an older one, once all is on the disk.

    The caller holds the :func:`lock`, so temporary folders found here were left by a process that was killed.
    """
    paths.writable(folder.parent)
    for left in folder.parent.glob(f".{folder.name}{PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True)
    partial = folder.parent / f".{folder.name}{PARTIAL}{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        yield partial
        _flush(partial)
        if folder.exists():
            # A folder cannot replace a full one in one step: the old one steps aside under a name that is swept up.
            os.replace(folder, folder.parent / f".{folder.name}{PARTIAL}old")
        os.replace(partial, folder)
        _flush_folder(folder.parent)
        shutil.rmtree(folder.parent / f".{folder.name}{PARTIAL}old", ignore_errors=True)
    except OSError as error:
        if error.errno is None or error.filename is None:
            raise
        raise KitError(f"cannot write {error.filename} ({error.strerror})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON with a final newline; a number that is not one (NaN) is refused."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Raises KitError naming the file when it is missing or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KitError(f"cannot read {path}: {error}") from None


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _meaning(module: str) -> str:
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            if isinstance(body[0].value.value, str):
                del body[0]
    return ast.dump(tree)
