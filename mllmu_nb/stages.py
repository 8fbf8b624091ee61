"""A stage: work that is done once for its inputs, and whose result appears whole or not at all.

The name of a stage's folder holds a hash of all that decides its content: its inputs and the code that makes it. A
finished folder is used again; one that was interrupted never had that name; one whose files were changed is made anew.
"""

from __future__ import annotations

import ast
import contextlib
import contextvars
import dis
import hashlib
import importlib.util
import inspect
import json
import os
import pprint
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import CodeType
from typing import Any

from filelock import FileLock

from mllmu_nb import paths, provenance
from mllmu_nb.config import stable_hash
from mllmu_nb.errors import KitError

FORMAT = 2  # raised when the files of a stage change their form, so that older ones are made anew
RECORD = "provenance.json"
# Their code decides where a result lies and what is said about it, never what it is; parameters are among the inputs.
NOT_CODE = tuple(
    f"mllmu_nb{module}"
    for module in ("", ".config", ".errors", ".paths", ".pinning", ".provenance", ".registry", ".stages")
)


@dataclass(frozen=True)
class Stage:
    """Work that ``make`` does in an empty folder, decided by ``inputs`` (plain values), by the code of ``make`` and all
    that it imports, and by the code of what ``uses`` names (objects that a registry gave, such as a method).

    What ``record`` returns once the work is done is written into the folder with the provenance. ``at`` is a folder
    outside the cache, whose name does not hold the key.
    """

    name: str
    inputs: Mapping[str, Any]
    make: Callable[[Path], None]
    uses: tuple[Any, ...] = ()
    record: Callable[[], Mapping[str, Any]] = dict
    at: Path | None = None

    @cached_property
    def key(self) -> str:
        """Names the work; it is the name of a folder in the cache."""
        code = code_hash(self.make, *self.uses)
        return f"{self.name}-{stable_hash({'stage': self.name, 'format': FORMAT, 'code': code, **self.inputs})}"

    @property
    def folder(self) -> Path:
        """Where the stage's files are, or will be."""
        return self.at or paths.cache() / "stages" / self.key

    @property
    def finished(self) -> bool:
        """Whether the folder is there with the very files that were written."""
        return is_whole(self.folder, self.key)

    def get(self) -> Path:
        """The folder, made now unless it is finished. Two processes that ask at once do the work once. Raises KitError
        when the cache cannot be written."""
        if self.finished:
            return self.folder
        with lock(self.folder):
            if not self.finished:
                with whole(self.folder) as partial, status(self.name):
                    began = time.perf_counter()
                    self.make(partial)
                    seconds = round(time.perf_counter() - began, 3)
                    written = {"stage": self.name, "key": self.key, "seconds": seconds, "files": digests(partial)}
                    write_json(partial / RECORD, provenance.record(**self.record(), **written))
        return self.folder


# -- files that are whole ---------------------------------------------------------------------------------------


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Name → size and sha256 of every file of a folder but its record."""
    return {path.name: _digest(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD}


def is_whole(folder: Path, key: str = "") -> bool:
    """Whether every file that the folder's record lists is there as it was written, and the record's key is ``key``."""
    try:
        record = read_json(folder / RECORD)
        files = {folder / name: digest for name, digest in record["files"].items()}
        same = all(_digest_once(path, *state(path)) == digest for path, digest in files.items())
        return same and key in ("", record["key"])
    except (KitError, KeyError, TypeError, AttributeError, OSError):
        return False


def state(path: Path) -> tuple[int, ...]:
    """What changes when a file does, whoever sets its time back: size, and times of its content and of its entry."""
    known = path.stat()
    return known.st_size, known.st_mtime_ns, known.st_ctime_ns


@cache
def _digest_once(path: Path, *state: int) -> dict[str, Any]:
    return _digest(path)


def _digest(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds ``folder`` for this process. The lock is the system's: it falls with the process, however that ends."""
    locks = paths.writable(paths.cache() / "locks")
    with FileLock(locks / f"{folder.parent.name}-{folder.name}"):
        yield


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the name ``folder``, and the place of an older one, once all of it is written.

    It lies one level up, in ``.unfinished``: on the same disk, but not among the folders that look finished.
    The caller holds the :func:`lock`, so what is there under this name was left by a process that was killed.
    """
    paths.writable(folder.parent)
    unfinished = paths.writable(folder.parent.parent / ".unfinished")
    for left in unfinished.glob(f"{folder.name}~*"):
        shutil.rmtree(left, ignore_errors=True)
    partial = unfinished / f"{folder.name}~new"
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            os.replace(folder, unfinished / f"{folder.name}~old")  # a folder cannot replace a full one in one step
        os.replace(partial, folder)
    except OSError as error:
        raise KitError(f"cannot write {folder} ({error.strerror or error}): free space, or set MLLMU_NB_OUT") from None
    finally:
        for left in (partial, unfinished / f"{folder.name}~old"):
            shutil.rmtree(left, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON with a final newline; a number that is not one (NaN) is refused."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises KitError naming the file when it is missing or holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise KitError(f"cannot read {path}: {reason}") from None
    if not isinstance(value, dict):
        raise KitError(f"cannot read {path}: it holds no names and values")
    return value


@contextlib.contextmanager
def status(name: str) -> Iterator[None]:
    """Says that a stage is being made and for how long: in a terminal in lines, in a notebook below the cell, where it
    is cleared in the end, so that a notebook's output does not depend on what was finished before."""
    began, done = time.perf_counter(), threading.Event()
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    notebook, terminal = hasattr(shell, "kernel"), sys.stderr.isatty()

    def text(prefix: str = "") -> str:
        minutes, seconds = divmod(int(time.perf_counter() - began), 60)
        return f"{name}: {prefix}{minutes}:{seconds:02d}"

    if notebook:
        from IPython.display import clear_output, display

        line = display({"text/plain": text("being made .. ")}, raw=True, display_id=True)

        def show():
            while not done.wait(2):
                line.update({"text/plain": text("being made .. ")}, raw=True)

        clock = threading.Thread(target=contextvars.copy_context().run, args=(show,), daemon=True)
        clock.start()
    elif terminal:
        print(f"{name}: being made ..", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        done.set()
        if notebook:
            clock.join()
            clear_output()
        elif terminal:
            print(text(), file=sys.stderr, flush=True)


# -- the code that makes a result -------------------------------------------------------------------------------


def code_hash(*roots: Any) -> str:
    """A hash of the :func:`code_of` all ``roots``."""
    return stable_hash(sorted(code_of(*roots).items()))


def code_of(*roots: Any) -> dict[str, str]:
    """What ``roots`` run, by name: of a function its own code and what it uses of its module; of these, and of the
    module of any other object, all modules of the kit or of their own package that they import, one after the other.

    A module is its syntax tree without docstrings and the YAML file of the same name. Entries of a registry are not
    imported by name: adding a method's file changes no other's code.
    """
    used: dict[str, str] = {}
    for root in roots:
        if inspect.isfunction(root):
            _add_function(root, used)
        else:
            one = root if inspect.isclass(root) else type(root)
            _add_module(one.__module__, used, one.__module__)
            if not _path(one.__module__):
                _add_class(one, used)
    return used


def _add_class(one: type, used: dict[str, str]) -> None:
    """Adds a class that stands in no file, such as one written in a notebook: what it defines."""
    for name, value in vars(one).items():
        if inspect.isfunction(value) and inspect.unwrap(value).__code__.co_filename != "<string>":  # of a dataclass
            _add_function(value, used)
        elif not name.startswith("__") and not inspect.isroutine(value):
            used[f"{one.__module__}:{one.__qualname__}.{name}"] = re.sub(" at 0x[0-9a-f]+", "", pprint.pformat(value))


def _add_function(function: Callable, used: dict[str, str]) -> None:
    """Adds a function, the functions and values of its module that it uses, and the modules that it imports."""
    function = inspect.unwrap(function)
    home, key = function.__module__, f"{function.__module__}:{function.__qualname__}"
    if key in used:
        return
    used[key] = _tree(textwrap.dedent(inspect.getsource(function)))[1]
    for name, origin in _names(function.__code__):
        if origin:
            _add_module(origin, used, home)
            _add_module(f"{origin}.{name}", used, home)
        if name not in function.__globals__:  # imported here, or a builtin
            continue
        value = function.__globals__[name]
        module = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
        if module == home and inspect.isfunction(inspect.unwrap(value)):
            _add_function(value, used)
        elif module:
            _add_module(module, used, home)
        else:
            used[f"{home}:{name}"] = re.sub(" at 0x[0-9a-f]+", "", pprint.pformat(value))


def _names(code: CodeType) -> Iterator[tuple[str, str]]:
    """The global names that code and the functions inside it read, and (name, module) of what they import."""
    origin = ""
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_GLOBAL":
            yield step.argval, ""
        elif step.opname == "IMPORT_NAME":
            origin = step.argval
            yield "", origin
        elif step.opname == "IMPORT_FROM":
            yield step.argval, origin
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _add_module(module: str, used: dict[str, str], importer: str) -> None:
    """Adds a module, its parent packages and all that they import, where it is of the kit, of the importer's package,
    or a file beside an importer that is a single file."""
    top, own, path, home = module.split(".")[0], importer.split(".")[0], _path(module), _path(importer)
    beside = "." not in importer and path and home and path.parent == home.parent  # a notebook has no file
    if module in used or module in NOT_CODE or not path or not (top in ("mllmu_nb", own) or beside):
        return
    tree, used[module] = _source(module)
    if "." in module:
        _add_module(module.rpartition(".")[0], used, module)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            origin = importlib.util.resolve_name(relative, package) if node.level else node.module
            names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            _add_module(name, used, module)


@cache  # as it was when this process first asked, and loaded it
def _source(module: str) -> tuple[ast.Module, str]:
    path = _path(module)
    tree, text = _tree(path.read_text(encoding="utf-8"))
    data = path.with_suffix(".yaml")
    return tree, text + (_digest(data)["sha256"] if data.is_file() else "")


def _tree(text: str) -> tuple[ast.Module, str]:
    """The syntax tree of some code, without docstrings and imports for annotations alone, and its text."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            del node.body[: ast.get_docstring(node) is not None]
            node.body = [n for n in node.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test))]
    return tree, ast.dump(tree)


@cache
def _path(module: str) -> Path | None:
    """A module's file; None where there is no such module, or no file (a folder without __init__.py)."""
    try:
        file = getattr(sys.modules.get(module), "__file__", None) or importlib.util.find_spec(module).origin
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(file) if file and file.endswith(".py") else None
