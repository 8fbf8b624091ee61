"""Metrics: what each is called, how it is printed, which way it goes, and the function that computes it. Scores, tables
and figures take theirs from this registry; docs/scoring.md ("A metric of your own") shows one."""

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
FORGOTTEN = ("forget", "test")  # sets on which knowledge should go; it should stay on the others
METRICS = Registry("metric")
LABELS: dict[str, tuple[str, str, str]] = {}  # printed → the key of the metric that has it


NO_PAIR = "The {} or the model has no answer to these questions."


class NotMeasured(Exception):
    """Raised by a metric of models where it has no value; the text is the note of the empty cell."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric, keyed by (task, scoring, name)."""

    name: str
    label: str
    task: str  # classification, generation, cloze, or taught: sentences, not answers
    scoring: str = ""  # of multiple choice: letter or likelihood
    function: Callable = field(repr=False)
    per: str = "answer"  # or "model", or "pair" of a model and its oracle
    column: str = ""  # of the scored rows; the name where it is left out
    times: float = 100  # printed = times × value: 100 turns a share into per cent
    digits: int = 1
    bounds: tuple[float, float] = (0.0, 1.0)  # of a value; infinite where it has none
    margin: float | None = None  # a gap to the oracle within ±margin counts as none; None: no verdict
    knowledge: int = 1  # 1: a higher score shows more knowledge, -1: a lower one, 0: neither, so it has no gate
    gate_of: str = ""  # the metric of the same task and scoring whose gate it has; its own where it is left out
    table: str = "scores"  # where it is printed: scores (and scores.csv), health, quality, or "" for nowhere
    main: bool = False  # printed in the main table
    by_fact: bool = False  # an answer is right or wrong about one fact, so the two views can be compared fact by fact
    optional: bool = False  # has no cells at all where no answer has a value
    sets: tuple[str, ...] = SETS

    def __post_init__(self):
        object.__setattr__(self, "column", self.column or self.name)
        owner = getattr(self.function, "func", self.function)  # of a functools.partial, what it calls
        object.__setattr__(self, "__module__", owner.__module__)  # by which the registry tells owners apart
        choose("task", self.task, TASKS)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.task, self.scoring, self.name

    @property
    def heading(self) -> str:
        """The label where the unit is known from elsewhere."""
        return self.label.removesuffix(" %")

    @property
    def shown_as_gap(self) -> str:
        """The label over a difference: points, where the score itself is in per cent."""
        return self.label.replace(" %", ", points")

    def goal(self, set_name: str) -> str:
        """The direction of a good method on a set: → to the oracle's value if knowledge should go, ↑ or ↓ if it should
        stay, "" for a metric that shows no knowledge."""
        if not self.knowledge:
            return ""
        return LIKE_ORACLE if set_name in FORGOTTEN else UP if self.knowledge > 0 else DOWN


def metric(name: str, **declared) -> Callable[[Callable], Callable]:
    """Registers the function below it as a metric; ``declared`` are the fields of :class:`Metric`, of which ``per``
    decides what the function is given and returns. Raises KitError for a label that another metric has."""

    def register(function: Callable) -> Callable:
        entry = Metric(name=name, function=function, **declared)
        if entry.table != "quality":  # its headings stand below others that tell them apart
            owner = LABELS.get(entry.label, entry.key)
            if owner != entry.key:
                raise KitError(f"metric {name}: the label {entry.label!r} is used by {' '.join(filter(None, owner))}")
            LABELS[entry.label] = entry.key
        METRICS.add(entry.key, entry)
        return function

    return register


def each(items: pd.DataFrame, function: Callable, *columns: str) -> pd.Series:
    """``function`` of the columns' values in each row, called once for equal values: models answer alike."""
    rows = list(zip(*(items[column].tolist() for column in columns), strict=True))
    values = {row: function(*row) for row in dict.fromkeys(rows)}
    return pd.Series([values[row] for row in rows], items.index, dtype=float)


def metrics(**wanted) -> list[Metric]:
    """Every metric whose fields equal all of ``wanted`` (``table="scores"``, ``per=..``): the package's own by module,
    whatever was imported first, then others."""
    import_all(package.__name__)
    modules = {one.__module__ for one in METRICS.values()}
    place = {name: (0, name) if name.startswith(f"{package.__name__}.") else (1, "") for name in modules}
    known = sorted(METRICS.values(), key=lambda one: place[one.__module__])
    return [one for one in known if all(getattr(one, name) == value for name, value in wanted.items())]


def by_key() -> dict[tuple[str, str, str], Metric]:
    """(task, scoring, name) → metric."""
    return {one.key: one for one in metrics()}
