"""A stage: work that is done once for its inputs, and whose result appears whole or not at all.

The name of a stage's folder holds a hash of all that decides its content. A finished folder is found again and reused;
one that was interrupted never had that name.
"""

from __future__ import annotations

import ast
import contextlib
import contextvars
import fcntl
import importlib.util
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mllmu_nb import paths, provenance
from mllmu_nb.config import stable_hash
from mllmu_nb.errors import KitError

FORMAT = 1  # raised when the files of a stage change their form, so that older ones are made anew
RECORD = "provenance.json"


def code_hash(modules: Iterable[str]) -> str:
    """A hash of what the modules do: of their syntax tree without docstrings, so wording and layout change nothing.

    Someone who edits a method's file must not be shown the result of the old one.
    """
    return stable_hash([_meaning(module) for module in modules])


def place(name: str, inputs: Mapping[str, Any]) -> Path:
    """The folder of the stage with these inputs (plain values), whether it is there yet or not."""
    key = stable_hash({"stage": name, "format": FORMAT, **inputs})
    return paths.cache() / "stages" / f"{name}-{key}"


def stage(
    name: str, inputs: Mapping[str, Any], make: Callable[[Path], None], record: Mapping[str, Any] | None = None
) -> Path:
    """The folder in which ``make`` has put its files for these ``inputs``; made now unless it is there already.

    ``make`` is given an empty folder. Two processes that ask at once do the work once. ``record`` is written into the
    folder with the provenance. Raises KitError when the cache cannot be written.
    """
    folder = place(name, inputs)
    if folder.is_dir():
        return folder
    with lock(folder):
        if not folder.is_dir():
            with whole(folder) as partial, status(name):
                began = time.perf_counter()
                make(partial)
                seconds = round(time.perf_counter() - began, 3)
                told = provenance.record(**(record or {}), stage=name, key=folder.name, seconds=seconds)
                write_json(partial / RECORD, told)
    return folder


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds ``folder`` for this process. The lock is the system's: it falls with the process, however that ends."""
    locks = paths.writable(paths.cache() / "locks")
    with open(locks / f"{folder.parent.name}-{folder.name}", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the name ``folder``, and the place of an older one, once all of it is on the disk.

    It lies one level up, in ``.unfinished``: on the same disk, but not among the folders that look finished.
    The caller holds the :func:`lock`, so what is found there under this name was left by a process that was killed.
    """
    paths.writable(folder.parent)
    unfinished = paths.writable(folder.parent.parent / ".unfinished")
    for left in unfinished.glob(f"{folder.name}~*"):
        shutil.rmtree(left, ignore_errors=True)
    partial = unfinished / f"{folder.name}~new"
    partial.mkdir()
    try:
        yield partial
        _flush(partial)
        if folder.exists():
            os.replace(folder, unfinished / f"{folder.name}~old")  # a folder cannot replace a full one in one step
        os.replace(partial, folder)
        _flush_folder(folder.parent)
    finally:
        for left in (partial, unfinished / f"{folder.name}~old"):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def status(name: str) -> Iterator[None]:
    """Says that a stage is being made and for how long: in a terminal in lines, in a notebook below the cell.

    What a notebook keeps must be the same whether a stage was made or found, so there the line goes away in the end,
    and with it what the cell has put out before: a cell makes its stages first and speaks afterwards.
    """
    began = time.perf_counter()
    done = threading.Event()
    notebook = _in_notebook()
    if notebook:
        from IPython.display import clear_output, display

        line = display({"text/plain": f"{name}: being made .."}, raw=True, display_id=True)

        def tell():
            while not done.wait(2):
                spent = int(time.perf_counter() - began)
                line.update({"text/plain": f"{name}: being made .. {spent // 60}:{spent % 60:02d}"}, raw=True)

        clock = threading.Thread(target=contextvars.copy_context().run, args=(tell,), daemon=True)
        clock.start()
    elif sys.stderr.isatty():
        print(f"{name}: being made ..", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        done.set()
        if notebook:
            clock.join()
            clear_output()
        elif sys.stderr.isatty():
            print(f"{name}: {(time.perf_counter() - began) / 60:.1f} min", file=sys.stderr, flush=True)


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


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


@lru_cache  # as it was when this process first asked, and loaded it
def _meaning(module: str) -> str:
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node
        ):
            del node.body[0]
    return ast.dump(tree)
