"""A stage: work that is done once for its inputs, and whose result appears whole or not at all.

The name of a stage's folder holds a hash of all that decides its content: its inputs and the code that makes it. A
finished folder is used again; one that was interrupted never had that name; one whose files were changed is made anew.
"""

from __future__ import annotations

import ast
import contextlib
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
import tempfile
import textwrap
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
# Their code decides where a result lies, whether it is made and what is said about it, never what it is; parameters are
# among the inputs.
NOT_CODE = {"config", "errors", "inputs", "paths", "pinning", "processes", "progress", "provenance", "registry"}
NOT_CODE |= {"stages", "scoring.anchor"}


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
        if int(os.environ.get("RANK", 0)):  # of several processes that train together, the first one writes
            with tempfile.TemporaryDirectory() as unused:
                self.make(Path(unused))
            while not self.finished:
                time.sleep(0.2)
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
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD]
    return {path.name: digest(path) for path in files}


def add_file(folder: Path, name: str, write: Callable[[Path], None], **noted: Any) -> None:
    """Puts the file that ``write`` makes beside those of a finished stage and enters it into the stage's record, with
    what is ``noted``; the stage keeps its key."""
    with lock(folder):
        write(part := folder / ".part")
        os.replace(part, folder / name)
        record = read_json(folder / RECORD)
        record["files"][name] = digest(folder / name)
        write_json(part, {**record, **noted})
        os.replace(part, folder / RECORD)


def is_whole(folder: Path, key: str = "") -> bool:
    """Whether every file that the folder's record lists is there as it was written, and the record's key is ``key``."""
    try:
        record = read_json(folder / RECORD)
        now = {name: digest(folder / name) for name in record["files"]}
        return now == record["files"] and key in ("", record["key"])
    except (KitError, KeyError, TypeError, OSError):
        return False


def state(path: Path) -> tuple[int, ...]:
    """What changes when a file does, whoever sets its time back: size, and times of its content and of its entry."""
    known = path.stat()
    return known.st_size, known.st_mtime_ns, known.st_ctime_ns


def digest(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, read once while its state is the same."""
    return _digest(path, state(path))


@cache
def _digest(path: Path, state: tuple[int, ...]) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": state[0], "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


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
    partial, old = unfinished / f"{folder.name}~new", unfinished / f"{folder.name}~old"
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            os.replace(folder, old)  # a folder cannot replace a full one in one step
        os.replace(partial, folder)
    except OSError as error:
        raise KitError(f"cannot write {folder} ({error.strerror or error}): free space, or set MLLMU_NB_OUT") from None
    finally:
        for left in (partial, old):
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
    """Says that a stage is being made: in a terminal, or below a notebook's cell, where it is cleared in the end, so
    that a notebook's output does not depend on what was finished before."""
    text = f"{name}: being made since {time.strftime('%H:%M')} .."
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if notebook := hasattr(shell, "kernel"):
        print(text)
    elif sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if notebook:
            from IPython.display import clear_output

            clear_output()


# -- the code that makes a result -------------------------------------------------------------------------------


def code_hash(*roots: Any) -> str:
    """A hash of the :func:`code_of` all ``roots``."""
    return stable_hash(code_of(*roots))


def code_of(*roots: Any) -> dict[str, str]:
    """What ``roots`` run, by name: of a function its own code and what it uses of its module; of these, of a module and
    of that of any other object, all modules of the kit or of their own package that they import, one after the other.

    A module is its syntax tree without docstrings and the YAML file of the same name. Entries of a registry are not
    imported by name: adding a method's file changes no other's code.
    """
    used: dict[str, str] = {}
    for root in roots:
        kind = root if inspect.isclass(root) else type(root)
        module = root.__name__ if inspect.ismodule(root) else kind.__module__
        if inspect.isfunction(root):
            _add_function(root, used)
        elif _path(module):
            _add_module(module, used, module)
        else:
            _add_class(kind, used)
    return used


def _add_class(kind: type, used: dict[str, str]) -> None:
    """Adds a class that stands in no file, such as one written in a notebook: what it defines."""
    for name, value in vars(kind).items():
        if inspect.isfunction(value) and inspect.unwrap(value).__code__.co_filename != "<string>":  # of a dataclass
            _add_function(value, used)
        elif not name.startswith("__") and not inspect.isroutine(value):
            used[f"{kind.__module__}:{kind.__qualname__}.{name}"] = _printed(value)


def _add_function(function: Callable, used: dict[str, str]) -> None:
    """Adds a function, the functions and values of its module that it uses, and the modules that it imports."""
    function = inspect.unwrap(function)
    home, key = function.__module__, f"{function.__module__}:{function.__qualname__}"
    if key in used:
        return
    tree, used[key] = _parsed(textwrap.dedent(inspect.getsource(function)))
    _add_imports(tree, used, home)
    for name in _globals_read(function.__code__) & function.__globals__.keys():
        value = function.__globals__[name]
        module = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
        if module == home and inspect.isfunction(inspect.unwrap(value)):
            _add_function(value, used)
        elif module:
            _add_module(module, used, home)
        else:
            used[f"{home}:{name}"] = _printed(value)


def _add_module(module: str, used: dict[str, str], importer: str) -> None:
    """Adds a module, its parent packages and all that they import, where it is of the kit, of the importer's package,
    or a file beside an importer that is a single file."""
    top, _, rest = module.partition(".")
    path, home = _path(module), _path(importer)
    beside = "." not in importer and path and home and path.parent == home.parent  # a notebook has no file
    ours = top in ("mllmu_nb", importer.partition(".")[0]) or beside
    if module in used or not path or not ours or (top == "mllmu_nb" and rest in NOT_CODE | {""}):
        return
    tree, used[module] = _source(path)
    if "." in module:
        _add_module(module.rpartition(".")[0], used, module)
    _add_imports(tree, used, module)


def _add_imports(tree: ast.AST, used: dict[str, str], importer: str) -> None:
    """Adds every module that a piece of code imports."""
    path = _path(importer)
    package = importer if path and path.name == "__init__.py" else importer.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            _add_module(name, used, importer)


def _globals_read(code: CodeType) -> set[str]:
    """The global names that a piece of code and the functions inside it read."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return names.union(*(_globals_read(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def _printed(value: Any) -> str:
    """A value as text, without the address of an object."""
    return re.sub(" at 0x[0-9a-f]+", "", pprint.pformat(value))


@cache  # as it was when this process first asked, and loaded it
def _source(path: Path) -> tuple[ast.AST, str]:
    tree, text = _parsed(path.read_text(encoding="utf-8"))
    data = path.with_suffix(".yaml")
    return tree, text + (digest(data)["sha256"] if data.is_file() else "")


def _parsed(text: str) -> tuple[ast.AST, str]:
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
