"""A stage: work that is done once for its inputs, and whose result appears whole or not at all.

The name of a stage's folder holds a hash of all that decides its content: its inputs and the code that makes it. A
finished folder is used again; one that was interrupted never had that name; one whose files were changed is made anew.
"""

from __future__ import annotations

import ast
import contextlib
import contextvars
import hashlib
import importlib.util
import inspect
import json
import os
import shutil
import symtable
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
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

    ``record`` is written into the folder with the provenance. ``at`` is a folder outside the cache, whose name does not
    hold the key.
    """

    name: str
    inputs: Mapping[str, Any]
    make: Callable[[Path], None]
    uses: tuple[Any, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
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
                    write_json(partial / RECORD, provenance.record(**self.record, **written))
        return self.folder


# -- files that are whole ---------------------------------------------------------------------------------------


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Name → size and sha256 of every file of a folder but its record."""
    return {path.name: _digest(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD}


def is_whole(folder: Path, key: str = "") -> bool:
    """Whether every file that the folder's record lists is there as it was written, and the record's key is ``key``."""
    if not folder.is_dir():
        return False
    try:
        record = read_json(folder / RECORD)
        same = all(_same(folder / name, digest) for name, digest in record["files"].items())
        return same and key in ("", record["key"])
    except (KitError, KeyError, TypeError, AttributeError):
        return False


def _digest(path: Path) -> dict[str, Any]:
    content = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**24):
            content.update(block)
    return {"bytes": path.stat().st_size, "sha256": content.hexdigest()}


def _same(path: Path, digest: Mapping[str, Any]) -> bool:
    if not path.is_file():
        return False
    state = path.stat()
    return state.st_size == digest["bytes"] and _hash_once(path, state.st_mtime_ns, state.st_size) == digest["sha256"]


@cache
def _hash_once(path: Path, changed: int, size: int) -> str:
    return _digest(path)["sha256"]


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds ``folder`` for this process. The lock is the system's: it falls with the process, however that ends."""
    locks = paths.writable(paths.cache() / "locks")
    with FileLock(locks / f"{folder.parent.name}-{folder.name}"):
        yield


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the name ``folder``, and the place of an older one, once all of it is on the disk.

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
        for path in sorted(partial.rglob("*")):
            if path.is_file():
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
        _flush_folder(partial)
        if folder.exists():
            os.replace(folder, unfinished / f"{folder.name}~old")  # a folder cannot replace a full one in one step
        os.replace(partial, folder)
        _flush_folder(folder.parent)
    except OSError as error:
        raise KitError(f"cannot write {folder} ({error.strerror or error}): free space, or set MLLMU_NB_OUT") from None
    finally:
        for left in (partial, unfinished / f"{folder.name}~old"):
            shutil.rmtree(left, ignore_errors=True)


def _flush_folder(folder: Path) -> None:
    if os.name != "nt":  # Windows has no handle of a folder
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON with a final newline; a number that is not one (NaN) is refused."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises KitError naming the file when it is missing or holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KitError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise KitError(f"cannot read {path}: it holds no names and values")
    return value


@contextlib.contextmanager
def status(name: str) -> Iterator[None]:
    """Says that a stage is being made and for how long: in a terminal in lines, in a notebook below the cell.

    What a notebook keeps must be the same whether a stage was made or was there, so there the line is removed in the
    end, and with it what the cell has put out before: a cell makes its stages first and prints afterwards.
    """
    began, done = time.perf_counter(), threading.Event()
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    notebook = shell is not None and hasattr(shell, "kernel")

    def spent() -> str:
        seconds = int(time.perf_counter() - began)
        return f"{seconds // 60}:{seconds % 60:02d}"

    if notebook:
        from IPython.display import clear_output, display

        line = display({"text/plain": f"{name}: being made .."}, raw=True, display_id=True)

        def show():
            while not done.wait(2):
                line.update({"text/plain": f"{name}: being made .. {spent()}"}, raw=True)

        clock = threading.Thread(target=contextvars.copy_context().run, args=(show,), daemon=True)
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
            print(f"{name}: {spent()}", file=sys.stderr, flush=True)


# -- the code that makes a result -------------------------------------------------------------------------------


def code_hash(*roots: Any) -> str:
    """A hash of what ``roots`` do: of a function, the definitions of its module that it uses; of these, and of the
    module of any other object, all modules of the kit or of their own package that they import, one after the other.

    Modules count by their syntax tree without docstrings, with the YAML file of the same name, so wording and layout
    change nothing. What a registry finds is not imported by name: adding a method's file changes no other's hash.
    """
    used: dict[str, str] = {}
    for root in roots:
        if inspect.isfunction(root):
            source = _source(root.__module__)
            _add_definition(source, source.function(root), used)
        else:
            _add_module((root if inspect.isclass(root) else type(root)).__module__, used)
    return stable_hash(sorted(used.items()))


@dataclass(frozen=True)
class _Source:
    """A module's syntax tree without docstrings, its top-level definitions, and what its names import."""

    name: str
    tree: ast.Module
    data: str

    @cached_property
    def definitions(self) -> dict[str, ast.stmt]:
        named = {}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                named[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                named |= {n.id: node for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        return named

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """Local name → modules, of the imports at the top."""
        return _imports(self.tree.body, self.name)

    def function(self, function: Callable) -> ast.AST:
        line = function.__code__.co_firstlineno
        nodes = (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.Lambda))
        return next(n for n in nodes if line in (n.lineno, *(d.lineno for d in getattr(n, "decorator_list", ()))))


def _add_definition(source: _Source, node: ast.AST, used: dict[str, str]) -> None:
    """Adds a definition, those of its module that it names, and the modules that it imports."""
    key = f"{source.name}: {ast.dump(node)}"
    if key in used:
        return
    used[key] = ""
    inside = _imports([n for n in ast.walk(node) if isinstance(n, ast.stmt)], source.name)
    for module in (module for modules in inside.values() for module in modules):
        _add_module(module, used)
    for name in _names_of_module(node):
        if name in source.definitions:
            _add_definition(source, source.definitions[name], used)
        for module in source.imports.get(name, ()):
            _add_module(module, used)


def _names_of_module(node: ast.AST) -> set[str]:
    """The names that a definition takes from around it; a variable of its own that bears such a name is none."""

    def free(table: symtable.SymbolTable) -> set[str]:
        outermost = table.get_type() == "module"
        own = {s.get_name() for s in table.get_symbols() if (s.is_referenced() if outermost else s.is_global())}
        return own.union(*map(free, table.get_children()))

    return free(symtable.symtable(ast.unparse(node), "definition", "exec"))


def _add_module(module: str, used: dict[str, str]) -> None:
    """Adds a module, its parent packages and all that they import of the same top package."""
    if module in used or module in NOT_CODE or not _path(module):  # a folder without __init__.py has no code
        return
    source = _source(module)
    used[module] = ast.dump(source.tree) + source.data
    parent = module.rpartition(".")[0]
    if parent and parent not in NOT_CODE:
        _add_module(parent, used)
    for name in (name for names in _imports(ast.walk(source.tree), module).values() for name in names):
        _add_module(name, used)


def _imports(nodes, module: str) -> dict[str, set[str]]:
    """Local name → modules that import statements bring in, of those whose code counts (:func:`_counts`)."""
    named: dict[str, set[str]] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _counts(alias.name, module):
                    named.setdefault(alias.asname or alias.name.split(".")[0], set()).add(alias.name)
        elif isinstance(node, ast.ImportFrom):
            origin = _absolute(node, module)
            for alias in node.names if _counts(origin, module) else ():
                inner = f"{origin}.{alias.name}"
                named.setdefault(alias.asname or alias.name, set()).add(inner if _is_module(inner) else origin)
    return named


def _counts(name: str, module: str) -> bool:
    """Whether ``name``, which ``module`` imports, is of the kit, of its own package or a file beside its only file."""
    top, own = name.split(".")[0], module.split(".")[0]
    if top in ("mllmu_nb", own):
        return True
    single = "." not in module and _path(module).stem == module
    return single and _is_module(top) and (place := _path(top)) is not None and place.parent == _path(module).parent


def _absolute(node: ast.ImportFrom, module: str) -> str:
    """The full name of the module that ``from .. import`` names in ``module``."""
    if not node.level:
        return node.module
    package = module if _path(module).name == "__init__.py" else module.rpartition(".")[0]
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


@cache
def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@cache  # as it was when this process first asked, and loaded it
def _source(module: str) -> _Source:
    path = _path(module)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            del node.body[0]
        if isinstance(node, ast.Module | ast.FunctionDef):  # imported for annotations alone
            node.body = [n for n in node.body if not (isinstance(n, ast.If) and _name(n.test) == "TYPE_CHECKING")]
    data = path.with_suffix(".yaml")
    return _Source(module, tree, _digest(data)["sha256"] if data.is_file() else "")


def _path(module: str) -> Path | None:
    """A module's file; None where it has none."""
    file = getattr(sys.modules.get(module), "__file__", None) or importlib.util.find_spec(module).origin
    return Path(file) if file else None


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""
