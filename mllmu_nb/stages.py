"""A stage is work that is done once for its inputs and its code. Its result is complete or absent
(``docs/architecture.md``, "Stages and keys")."""

import ast
import contextlib
import dis
import errno
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from mllmu_nb import paths, progress, provenance
from mllmu_nb.config import stable_hash
from mllmu_nb.errors import KitError
from mllmu_nb.processes import launched

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 2  # raise it when the files of a stage change their form, so that old ones are made again
RECORD = "provenance.json"
OF_A_RUN = ("run", "scale", "base_label", "parameters", "data_hash", "base_hash")  # what is read of a run's record
# Their code decides where a result is stored, whether it is made and how it is described, never its content; parameters
# are among the inputs.
NOT_CODE = {"config", "errors", "inputs", "paths", "pinning", "processes", "progress", "provenance", "registry"}
NOT_CODE |= {"stages", "scoring.anchor"}
INSTALLED = ("site-packages", "dist-packages")  # folders of what pip installs; its versions are recorded
# Errors of writing: no space, quota used up, file too large, read-only, or not allowed.
UNWRITABLE = {errno.ENOSPC, getattr(errno, "EDQUOT", None), errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class Stage:
    """Work that ``make`` does in an empty folder. The result depends on ``inputs`` (plain values), on the code of
    ``make`` and all that it imports, and on the code of the objects in ``uses`` (from a registry, such as a method).

    After the work, the values that ``record`` returns are written into the folder with the provenance. ``at`` is a
    folder outside the cache; its name does not hold the key.
    """

    name: str
    inputs: Mapping[str, Any]
    make: Callable[[Path], None]
    uses: tuple[Any, ...] = ()
    record: Callable[[], Mapping[str, Any]] = dict
    at: Path | None = None

    @cached_property
    def key(self) -> str:
        """The name of the work and of its folder in the cache."""
        code = code_of(self.make, *self.uses)
        return f"{self.name}-{stable_hash({'stage': self.name, 'format': FORMAT, 'code': code, **self.inputs})}"

    @property
    def folder(self) -> Path:
        """Where the stage's files are, or will be."""
        return self.at or paths.cache() / "stages" / self.key

    @property
    def finished(self) -> bool:
        """Whether the folder has this key and all files as they were written."""
        return is_whole(self.folder, self.key)

    def get(self) -> Path:
        """The folder, made now unless it is finished. If two processes ask at once, one of them does the work. Raises
        KitError if the cache cannot be written."""
        if self.finished:
            return self.folder
        if launched("WORLD_SIZE", 1) > 1 and launched("RANK", 0):  # of processes that train together, the first writes
            with tempfile.TemporaryDirectory() as unused:
                self.make(Path(unused))
            while not self.finished:
                time.sleep(0.2)
            return self.folder
        with lock(self.folder):
            if not self.finished:
                with replacing(self.folder) as unfinished, status(self.name):
                    began = time.perf_counter()
                    self.make(unfinished)
                    seconds = round(time.perf_counter() - began, 3)
                    written = {"stage": self.name, "key": self.key, "seconds": seconds, "files": digests(unfinished)}
                    write_json(unfinished / RECORD, provenance.record(**self.record(), **written))
        return self.folder


# -- files that are whole ---------------------------------------------------------------------------------------


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Name → size and sha256 of every file of a folder except its record."""
    return {path.name: digest(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD}


def add_file(folder: Path, name: str, write: Callable[[Path], None], **noted: Any) -> None:
    """Add the file that ``write`` makes to a finished stage, and enter it into the stage's record with the values in
    ``noted``. The stage keeps its key."""
    with lock(folder):
        write(part := folder / ".part")
        os.replace(part, folder / name)
        record = read_json(folder / RECORD)
        record["files"][name] = digest(folder / name)
        write_json(part, {**record, **noted})
        os.replace(part, folder / RECORD)


def is_whole(folder: Path, key: str = "", named: Iterable[str] = ()) -> bool:
    """Whether the folder's record lists at least one file, all of them are there as they were written, the record's key
    is ``key`` ("": any), and the record has all names in ``named``."""
    try:
        record = read_json(folder / RECORD)
        now = {name: digest(folder / name) for name in record["files"]}
        return bool(now) and now == record["files"] and key in ("", record["key"]) and record.keys() >= {*named}
    except (KitError, KeyError, TypeError, OSError):
        return False


def state(path: Path) -> tuple[int, ...]:
    """Size and times of the last change of a file's content and of its entry. They change with the file, even if
    somebody sets its time back."""
    known = path.stat()
    return known.st_size, known.st_mtime_ns, known.st_ctime_ns


def digest(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, read again only after its state has changed."""
    return _digest(path, state(path))


@cache
def _digest(path: Path, state: tuple[int, ...]) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": state[0], "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def lock(folder: Path) -> FileLock:
    """The lock of ``folder``, to be held with ``with``. The operating system releases it when the process ends, even if
    it is killed."""
    return FileLock(paths.writable(paths.cache() / "locks") / f"{folder.parent.name}-{folder.name}")


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to ``folder`` at the end and replaces an older one. Raises KitError
    if the disk is full or read-only.

    The temporary folder is one level up, in ``.unfinished``: on the same disk, but not among the finished folders. The
    caller holds the :func:`lock`, so a folder that is there already was left by a killed process.
    """
    folder = paths.writable(folder.parent).resolve() / folder.name  # the folder above may be a link to another disk
    beside = paths.writable(folder.parent.parent / ".unfinished")
    new, old = beside / f"{folder.name}~new", beside / f"{folder.name}~old"
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        if folder.exists():
            os.replace(folder, old)  # a folder cannot replace one with files in one step
        os.replace(new, folder)
    except OSError as error:
        # an error of a file elsewhere, or of a connection, is passed on
        elsewhere = error.filename and not Path(os.fsdecode(error.filename)).is_relative_to(folder.parent.parent)
        if error.errno not in UNWRITABLE or elsewhere:
            raise
        raise KitError(f"cannot write {folder} ({error.strerror}): free space, or set MLLMU_NB_OUT") from None
    finally:
        if old.exists() and not folder.exists():  # the last rename failed
            os.replace(old, folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, one line for each name or entry of the outer two levels. Raises ValueError for NaN and
    infinity."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    deeper = re.sub(r"\n {3,}", " ", text)  # never inside a string, where a line break is escaped
    path.write_text(re.sub(r"\n  ([]}])", r" \1", deeper) + "\n", encoding="utf-8")


def write_frame(path: Path, frame: "pd.DataFrame", **encoding: Any) -> None:
    """Write ``frame`` as Parquet, compressed by zstd. What pandas and Arrow add to describe the columns is left out: in
    files as small as a run's it is a third of the bytes. ``encoding``: as in ``pyarrow.parquet.write_table``."""
    import pyarrow.parquet

    plain = pyarrow.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    small = {"store_schema": False, "write_statistics": False, "compression": "zstd", "compression_level": 19}
    pyarrow.parquet.write_table(plain, path, **small, **encoding)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises KitError, naming the file, if it is missing or contains no object."""
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
    """Show that a stage is being made, in a terminal or below a notebook's cell. In a notebook, the line is blank in
    the end, and other output of the cell stays."""
    text, line = f"{name}: being made since {time.strftime('%H:%M')} ..", None
    if progress.live():
        from IPython.display import display

        line = display({"text/plain": text}, raw=True, display_id=True)
    elif sys.stderr and sys.stderr.isatty():  # None if it is closed
        print(text, file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if line:
            line.update({"text/plain": ""}, raw=True)


# -- the code that makes a result -------------------------------------------------------------------------------


def code_of(*roots: Any) -> dict[str, str]:
    """Name → code of everything that ``roots`` execute. For a function, this is its own code and all that it uses of
    its module. For anything else, it is the module or, for a class written in a notebook, what the class is made of.
    All modules of the kit, or of the roots' own packages, that these import are included."""
    used: dict[str, str] = {}
    for root in roots:
        if inspect.isfunction(root):
            _add_function(inspect.unwrap(root), used)
        elif inspect.ismodule(root):
            _add_module(root.__name__, used, root.__name__)
        else:
            kind = root if inspect.isclass(root) else type(root)
            _add_class(kind, used, kind.__module__)
    return used


def _add_class(kind: type, used: dict[str, str], home: str) -> None:
    """Add the module of a class or, if it was written in a notebook, all that it defines, and its bases."""
    key = f"{kind.__module__}:{kind.__qualname__}"
    if kind.__module__ != home or _path(home):
        _add_module(kind.__module__, used, home)
    elif key not in used:
        used[key] = " ".join(_content(base, used, home) for base in kind.__bases__)
        for name, value in vars(kind).items():
            written = inspect.isfunction(value) and value.__code__.co_filename != "<string>"  # not by @dataclass
            if written or not name.startswith("__"):
                used[f"{key}.{name} ="] = _content(value, used, home)


def _add_function(function: Callable, used: dict[str, str]) -> None:
    """Add a function, the functions and values of its module that it uses, and the modules that it imports."""
    home, key = function.__module__, f"{function.__module__}:{function.__qualname__}"
    if key in used:
        return
    try:
        imported, used[key] = _parsed(textwrap.dedent(inspect.getsource(function)), home)
        for name in imported:
            _add_module(name, used, home)
    except (OSError, SyntaxError):  # a lambda inside a longer expression
        used[key] = _instructions(function.__code__)
    for name in sorted(_globals_read(function.__code__) & function.__globals__.keys()):
        used[f"{home}:{name} ="] = _content(function.__globals__[name], used, home)


def _content(value: Any, used: dict[str, str], home: str, outer: tuple[int, ...] = ()) -> str:
    """The text of a value that the module ``home`` uses; adds the code of functions and classes in it. Of an object of
    another module that is no plain data, such as a registry, only the class counts. ``outer``: ids of containers."""
    value = inspect.unwrap(getattr(value, "__func__", value))  # for static methods and cached functions
    if id(value) in outer:
        return "itself"
    name = getattr(value, "__qualname__", type(value).__qualname__)
    parts: list[Any] = []
    if inspect.ismodule(value):
        _add_module(value.__name__, used, home)
    elif inspect.isfunction(value):
        parts = [cell.cell_contents for cell in value.__closure__ or ()]
        if value.__module__ == home:
            _add_function(value, used)
            parts += [value.__defaults__, value.__kwdefaults__]
        else:
            _add_module(value.__module__, used, home)
    elif inspect.isclass(value):
        _add_class(value, used, home)
    elif isinstance(value, property | cached_property | partial):
        parts = [getattr(value, part, None) for part in ("fget", "fset", "fdel", "func", "args", "keywords")]
    elif hasattr(value, "tolist") and hasattr(value, "dtype"):  # an array or a tensor: its own text is cut short
        return f"{value.dtype} {value.tolist()}"
    elif isinstance(value, Mapping):
        parts = [*value.items()]
    elif isinstance(value, list | tuple):
        parts = [*value]
    elif (module := getattr(value, "__module__", None)) is None:
        return _printed(value)
    else:
        _add_class(type(value), used, home)
        parts = [*getattr(value, "__dict__", {}).items()] if is_dataclass(value) or module == home else []
    return f"{name}({', '.join(_content(part, used, home, (*outer, id(value))) for part in parts)})"


def _add_module(module: str, used: dict[str, str], importer: str) -> None:
    """Add a module, its parent packages and all that they import, if it belongs to the kit or to the importer's
    package, or if it is in the same folder as that package and not installed."""
    top, _, rest = module.partition(".")
    path, place, package = _path(module), _place(module), importer.partition(".")[0]
    beside = place == (_place(importer) or Path.cwd()) and place.name not in INSTALLED  # a notebook has no file
    # beside the kit are its libraries, if they were installed by `pip install --target`, and nothing else it imports
    ours = top in ("mllmu_nb", package) or (beside and package != "mllmu_nb")
    if module in used or not path or not ours or (top == "mllmu_nb" and rest in NOT_CODE | {""}):
        return
    imported, used[module] = _source(path, module)
    for name in (module.rpartition(".")[0], *imported):  # "" is no module
        _add_module(name, used, module)


def _globals_read(code: CodeType) -> set[str]:
    """The global names that a piece of code and the functions inside it read."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return names.union(*(_globals_read(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def _instructions(code: CodeType) -> str:
    """The instructions of a piece of code and of the functions inside it, for code whose text cannot be read."""
    constants = [_instructions(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    return repr((code.co_code, code.co_names, constants))


def _printed(value: Any) -> str:
    """A value as text, without the address of an object."""
    return re.sub(" at 0x[0-9a-fA-F]+", "", pprint.pformat(value))  # Windows has capitals


@cache  # the text at the first call, as this process has loaded it
def _source(path: Path, module: str) -> tuple[list[str], str]:
    imported, text = _parsed(path.read_text(encoding="utf-8"), module)
    data = path.with_suffix(".yaml")
    return imported, text + (digest(data)["sha256"] if data.is_file() else "")


def _parsed(text: str, module: str) -> tuple[list[str], str]:
    """The names that some code of ``module`` imports, each of which may be a module, and the text of its syntax tree,
    without docstrings and ``if TYPE_CHECKING`` blocks."""
    tree, names, path = ast.parse(text), dict[str, None](), _path(module)
    package = module if path and path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            del node.body[: ast.get_docstring(node) is not None]
            node.body = [n for n in node.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test))]
    for node in ast.walk(tree):  # anew, since a walk has noted the children before they are removed
        if isinstance(node, ast.Import):
            names |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= dict.fromkeys([origin, *(f"{origin}.{alias.name}" for alias in node.names)])
    return list(names), _tree(tree)


def _tree(node: Any) -> str:
    """A syntax tree as text. Empty fields are left out, so that it is the same in every version of Python, which
    ``ast.dump`` and ``ast.unparse`` are not."""
    if isinstance(node, list):
        return f"[{', '.join(map(_tree, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [f"{name}={_tree(value)}" for name, value in ast.iter_fields(node) if value is not None and value != []]
    return f"{type(node).__name__}({', '.join(fields)})"


def _place(module: str) -> Path | None:
    """The folder that contains a module's outermost package; None if the module has no file."""
    path = _path(module)
    return path and path.parents[module.count(".") + (path.name == "__init__.py")]


@cache
def _path(module: str) -> Path | None:
    """A module's file; None if there is no such module, or no file (a folder without __init__.py)."""
    try:
        file = getattr(sys.modules.get(module), "__file__", None) or importlib.util.find_spec(module).origin
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(file) if file and file.endswith(".py") else None
