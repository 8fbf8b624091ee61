"""The one kind of error a user is meant to read: a single line that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

TYPES = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "True or False",
    "dict": "a table of names and values",
    "finite": "a finite number",
}
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
HINTS = {  # for values that YAML reads as another type than was meant
    ("float", str): " (in YAML write 1.0e-5 or 1.0e+5: without the point or the sign it is text)",
    ("string", bool): " (in YAML put yes and no in quotes)",
    **dict.fromkeys([("string", int), ("string", float), ("string", date)], " (in YAML put it in quotes)"),
}
MOST_LISTED = 40  # choices in a message


class KitError(ValueError):
    """Bad input, or a state in which the kit cannot continue. Commands print the message and exit with status 2."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


def choose(name: str, value: Any, known: Iterable[Any], hint: str = "") -> None:
    """Raise KitError, with the nearest or the first choices and ``hint``, if ``value`` is not one of ``known``."""
    known = list(dict.fromkeys(known))
    if value not in known:
        near = difflib.get_close_matches(str(value), list(map(str, known)), n=1)
        more = f" and {len(known) - MOST_LISTED} more" if len(known) > MOST_LISTED else ""
        listed = f"choose one of {', '.join(map(str, known[:MOST_LISTED]))}{more}" if known else "there is none"
        raise KitError(f"unknown {name} {value!r}: {f'did you mean {near[0]!r}?' if near else listed + hint}")


def few(names: Sequence[str]) -> str:
    """The first three of ``names``, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def invalid(error: ValidationError, name: str = "") -> KitError:
    """A KitError with pydantic's first problem in one line, about a parameter or about the value called ``name``."""
    first = error.errors()[0]
    name, value, kind = name or str(first["loc"][0]), first["input"], first["type"].split("_")[0]
    shown = f"the text {value!r}" if isinstance(value, str) else f"{value!r:.60}"
    if kind == "literal":
        return KitError(f"unknown {name} {value!r}: choose {first['ctx']['expected']}")
    limits = [f"{LIMITS[key]} {limit:.10g}" for key, limit in first.get("ctx", {}).items() if key in LIMITS]
    wanted = limits[0] if limits else TYPES.get(kind, first["msg"])
    return KitError(f"{name} must be {wanted}, not {shown}{HINTS.get((kind, type(value)), '')}")
