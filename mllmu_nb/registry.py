"""Registries of what can be added: methods, families, metrics and steps after unlearning register themselves on import
(``docs/architecture.md``, "Adding something")."""

import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Hashable, Iterator
from typing import Any

from mllmu_nb.errors import KitError, choose

EXTENSIONS = "MLLMU_NB_EXTENSIONS"


class Registry:
    """Entries by key (a name or a tuple of names), in the order of their addition, including those of extensions.
    ``kind`` is for messages."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[Any, Any] = {}

    def add(self, key: Any, entry: Any) -> Any:
        """Add and return ``entry``. An entry of the same module (reloaded) is replaced. Raises KitError for a key
        that another module has taken."""
        other = self._entries.get(key)
        if other is not None and other.__module__ != entry.__module__:
            raise KitError(f"{self.kind} {_printed(key)} is registered already, by {other.__module__}")
        self._entries[key] = entry
        return entry

    def get(self, key: Any) -> Any:
        """The entry. Raises KitError, with the nearest or the first keys, if there is none."""
        if key not in self:
            choose(self.kind, _printed(key), map(_printed, self))
        return self._entries[key]

    def __contains__(self, key: Any) -> bool:
        load_extensions()
        return isinstance(key, Hashable) and key in self._entries

    def __iter__(self) -> Iterator[Any]:
        load_extensions()
        return iter(self._entries)

    def values(self) -> list[Any]:
        return [self._entries[key] for key in self]


def _printed(key: Any) -> str:
    return " ".join(str(part) for part in key if part) if isinstance(key, tuple) else str(key)


def import_all(package: str) -> None:
    """Import every module of a package, so that what they define is registered."""
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        importlib.import_module(f"{package}.{module.name}")


def load_extensions() -> None:
    """Import the modules that MLLMU_NB_EXTENSIONS names, separated by commas. Raises KitError if an import fails, with
    the file and the line."""
    for name in filter(None, map(str.strip, os.environ.get(EXTENSIONS, "").split(","))):
        if name in sys.modules:  # or being imported just now
            continue
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # any failure; an exit would look like a success
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
            place = f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""
            # these messages are clear without the kind of the error
            kind = "" if isinstance(error, ImportError | SyntaxError | KitError) else f"{type(error).__name__}: "
            said = f"{place}{kind}{' '.join(str(error).split())}"
            if name.endswith(".py") or (isinstance(error, ModuleNotFoundError) and error.name == name):
                said += "; name the module without .py, with the absolute path of its folder in PYTHONPATH"
            raise KitError(f"{EXTENSIONS} names {name!r}, which cannot be imported: {said}") from error
