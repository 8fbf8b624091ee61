"""Metrics: the name, printed form, direction and function of each. Scores, tables and figures read this registry;
docs/scoring.md ("A metric of your own") has an example."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

import mllmu_nb.scoring as package
from mllmu_nb.data.schema import SETS
from mllmu_nb.errors import KitError, choose
from mllmu_nb.registry import Registry, import_all
from mllmu_nb.scoring.frames import TAUGHT

TASKS = {"classification": "multiple choice", "generation": "generation", "cloze": "cloze", TAUGHT: "taught sentences"}
TABLES = ("scores", "health", "quality")
PER = ("answer", "model", "pair")
DOWN, LIKE_ORACLE, UP = "↓", "→", "↑"
FORGOTTEN = ("forget", "test")  # sets on which knowledge should fall; it should stay on the others
METRICS = Registry("metric")
LABELS: dict[str, tuple[str, str, str]] = {}  # printed label → key of its metric
NO_PAIR = "The {} or the model has no answer to these questions."


class NotMeasured(Exception):
    """Raised by a metric of models if it has no value; its text becomes the note of the empty cell."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric, keyed by (task, scoring, name)."""

    name: str
    label: str
    task: str  # classification, generation, cloze, or taught (sentences instead of answers)
    scoring: str = ""  # for multiple choice: letter or likelihood
    function: Callable = field(repr=False)
    per: str = "answer"  # one value per "answer", "model", or "pair" of a model and its oracle
    column: str = ""  # in the scored rows; by default, the name
    times: float = 100  # printed = times × value: 100 turns a share into per cent
    digits: int = 1
    bounds: tuple[float, float] = (0.0, 1.0)  # of a value; infinite if it has no bounds
    margin: float | None = None  # a gap to the oracle within ±margin counts as none; None: no verdict
    knowledge: int = 1  # 1: a higher score shows more knowledge, -1: a lower one, 0: neither, so it has no gate
    gate_of: str = ""  # use the gate of this metric (same task and scoring); by default, its own gate
    table: str = "scores"  # where it is printed: scores (and scores.csv), health, quality, or "" for nowhere
    main: bool = False  # printed in the main table
    by_fact: bool = False  # an answer is right or wrong about one fact, so the two views can be compared fact by fact
    optional: bool = False  # has no cells at all if no answer has a value
    sets: tuple[str, ...] = SETS

    def __post_init__(self):
        object.__setattr__(self, "column", self.column or self.name)
        owner = getattr(self.function, "func", self.function)  # the function in a functools.partial
        object.__setattr__(self, "__module__", owner.__module__)  # the registry tells owners apart by it
        choose("task", self.task, TASKS)
        if self.main and self.per != "answer":
            raise KitError(
                f"metric {self.name}: the main table pools the views, which takes per='answer': leave main out"
            )

    @property
    def key(self) -> tuple[str, str, str]:
        return self.task, self.scoring, self.name

    @property
    def heading(self) -> str:
        """The label without "%", if the unit is clear from elsewhere."""
        return self.label.removesuffix(" %")

    @property
    def shown_as_gap(self) -> str:
        """The label of a difference: in points if the score itself is in per cent."""
        return self.label.replace(" %", ", points")

    def goal(self, set_name: str) -> str:
        """The direction in which a good method moves on a set: → (to the oracle's value) if knowledge should fall, ↑ or
        ↓ if it should stay, "" for a metric that shows no knowledge."""
        if not self.knowledge:
            return ""
        return LIKE_ORACLE if set_name in FORGOTTEN else UP if self.knowledge > 0 else DOWN


def metric(name: str, **declared) -> Callable[[Callable], Callable]:
    """Register the decorated function as a metric. ``declared`` are the fields of :class:`Metric`; ``per`` decides what
    the function gets and returns. Raises KitError if another metric has the same label."""

    def register(function: Callable) -> Callable:
        entry = Metric(name=name, function=function, **declared)
        if entry.table != "quality":  # there, a heading over the columns tells equal labels apart
            owner = LABELS.get(entry.label, entry.key)
            if owner != entry.key:
                raise KitError(f"metric {name}: the label {entry.label!r} is used by {' '.join(filter(None, owner))}")
            LABELS[entry.label] = entry.key
        METRICS.add(entry.key, entry)
        return function

    return register


def each(items: pd.DataFrame, function: Callable, *columns: str) -> pd.Series:
    """Apply ``function`` to the columns' values of each row, once per distinct combination: many answers are equal."""
    rows = list(zip(*(items[column].tolist() for column in columns), strict=True))
    values = {row: function(*row) for row in dict.fromkeys(rows)}
    return pd.Series([values[row] for row in rows], items.index, dtype=float)


def metrics(**wanted) -> list[Metric]:
    """Return the metrics whose fields equal all of ``wanted`` (``table="scores"``, ``per=..``). The package's own come
    first, by module whatever the order of imports, then the others."""
    import_all(package.__name__)
    own = f"{package.__name__}."
    known = sorted(METRICS.values(), key=lambda one: (0, one.__module__) if one.__module__.startswith(own) else (1, ""))
    return [one for one in known if all(getattr(one, name) == value for name, value in wanted.items())]


def by_key() -> dict[tuple[str, str, str], Metric]:
    """(task, scoring, name) → metric."""
    return {one.key: one for one in metrics()}
