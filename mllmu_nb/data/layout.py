"""The published layout as an Arrow schema, and a checker that lists every fault of a folder.

The hub has two repositories with folders of the same names: the data set holds what evaluation needs and, in
``ft_Data``, the fine-tuning text; the *model* repository holds the fine-tuning text of the forget and retain people.
Each configuration is ``CONFIG/train-0000k-of-0000n.parquet``; ``Retain_Set`` holds the celebrities.

A problem is ``fatal`` where the kit cannot read or score what it concerns. What published data may have here and there
(a column that nobody reads is missing, two options are equal, a cloze has no blank) is reported and read as it stands.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mllmu_nb.data.portraits import from_bytes
from mllmu_nb.data.schema import LETTERS
from mllmu_nb.data.text import people
from mllmu_nb.errors import KitError

EVALUATION_REPOSITORY = "MLLMMU/MLLMU-Bench"
TRAINING_REPOSITORY = "MLLMMU/baseline_train_split"
EVALUATION = f"evaluation needs the data set {EVALUATION_REPOSITORY}"
TRAINING = (
    f"training needs ft_Data of the data set {EVALUATION_REPOSITORY} or the splits of the model repository "
    f"{TRAINING_REPOSITORY}"
)
TYPES = {"image_text": "Image_Textual", "text": "Pure_Text"}  # view → the layout's name of it
TASK_COLUMNS = ("Classification_Task", "Generation_Task", "Mask_Task")
UNREAD = ("Directory", "question", "answer", "path")  # in the layout, but the kit does without

_TEXT = pa.string()
_IMAGE = pa.struct({"bytes": pa.binary(), "path": _TEXT})
_OPTIONS = pa.struct(dict.fromkeys(LETTERS, _TEXT))
_CHOICES = pa.list_(pa.struct({"Question": _TEXT, "Options": _OPTIONS, "Correct_Answer": _TEXT}))
_OPEN = pa.list_(pa.struct({"Question": _TEXT, "Ground_Truth": _TEXT, "Type": _TEXT}))
COLUMNS = {
    "image": _IMAGE,
    "images": pa.list_(_IMAGE),
    "ID": _TEXT,
    "Directory": _TEXT,
    "biography": _TEXT,
    "question": _TEXT,
    "answer": _TEXT,
    "Classification_Task": pa.struct({f"{kind}_Questions": _CHOICES for kind in TYPES.values()}),
    "Generation_Task": _OPEN,
    "Mask_Task": _OPEN,
    "metadata": _TEXT,
}
_NAMES = {str: "text", bytes: "bytes", list: "a list", dict: "a struct"}


def schema_of(config: str, training: bool = False) -> pa.Schema:
    """The columns of a configuration; ``training``: it lies in the training repository."""
    if training or config == "ft_Data":
        return pa.schema([(name, COLUMNS[name]) for name in ("image", "ID", "metadata")])
    absent = {"metadata", "image" if config == "Test_Set" else "images"}
    absent |= set() if config in ("Full_Set", "Retain_Set") else {"Directory"}
    return pa.schema([(name, kind) for name, kind in COLUMNS.items() if name not in absent])


def configs_in(folder: str | Path) -> list[str]:
    """Names of the configurations that ``folder`` has."""
    return sorted({path.parent.name for path in Path(folder).glob("*/*.parquet")})


def answer_letter(answer: str) -> str:
    """The letter of a ``Correct_Answer``: "B", also of "b" and "B: Oulu"; "" when there is none, as in "Berlin"."""
    letter = re.match(r"\s*([A-Da-d])(?!\w)", answer)
    return letter[1].upper() if letter else ""


@dataclass(frozen=True)
class Problem:
    """One fault. ``row`` counts from 0, as pandas does, and is None where all of the file is meant."""

    file: str  # the folder's name, the configuration and the file's name
    text: str
    row: int | None = None
    id: str = ""  # of the row's person, as the layout prints it
    column: str = ""  # and the place in it, such as Mask_Task[1].Type
    fatal: bool = True

    def __str__(self) -> str:
        row = f", row {self.row}" if self.row is not None else ""
        person, column = f" (ID {self.id})" if self.id else "", f", column {self.column}" if self.column else ""
        return f"{self.file}{row}{person}{column}: {self.text}"


def report(name: str, problems: Sequence[Problem]) -> str:
    """All problems in one text: a line where there is one, else a line each below their number."""
    if len(problems) == 1:
        return str(problems[0])
    return "\n  ".join([f"{name} has {len(problems)} problems:", *map(str, problems)])


@dataclass(frozen=True)
class Row:
    """One row of a configuration, and where it stands."""

    file: str
    number: int
    values: dict

    @property
    def id(self) -> str:
        return str(self.values.get("ID") or "")

    def problem(self, column: str, text: str, fatal: bool = True) -> Problem:
        return Problem(self.file, text, self.number, self.id, column, fatal)


class Layout:
    """A folder of the layout as far as it could be read: ``people``, configuration → ID → row, and the ``problems``.

    ``name`` is what reports call the folder; ``training``: it follows the training repository. Raises KitError when
    there is no such folder.
    """

    def __init__(self, folder: str | Path, name: str = "", training: bool = False):
        self.folder, self.training = Path(folder), training
        self.name = name or self.folder.name
        self.people: dict[str, dict[str, Row]] = defaultdict(dict)
        self.problems: list[Problem] = []
        self._incomplete: set[str] = set()  # configurations with a file missing or unreadable
        if not self.folder.is_dir():
            raise KitError(f"{self.folder} is no folder: {self._needs('')}")

    def read(self, config: str, keep: Sequence[str] = ()) -> None:
        """Read and check all files of ``config``; its rows get the columns ``keep`` (all when empty)."""
        people = self.people[config]
        for path in self._files(config):
            file = f"{self.name}/{config}/{path.name}"
            try:
                rows = self._read_file(path, file, config, keep)
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                reason = str(error).partition("\n")[0]
                self._skip(config, file, f"is no readable parquet file ({reason}): download it again")
                continue
            for row in rows:
                other = people.setdefault(row.id, row)
                if other is not row:
                    place = f"row {other.number} of {other.file.rpartition('/')[2]}"
                    self.problems.append(row.problem("ID", f"stands in {place} already"))

    def has(self, config: str, identity: str) -> bool:
        """Whether somebody has a row in ``config``; taken for granted where it was not read, or not wholly."""
        return identity in self.people[config] or not self.people[config] or config in self._incomplete

    def report(self, rows: Iterable[Row], text: str) -> None:
        """Add a fatal problem with the ID of each row."""
        self.problems += [row.problem("ID", text) for row in rows]

    def _skip(self, config: str, file: str, text: str, column: str = "") -> None:
        self._incomplete.add(config)
        self.problems.append(Problem(file, text, column=column))

    def _needs(self, config: str) -> str:
        return TRAINING if self.training or config == "ft_Data" else EVALUATION

    def _files(self, config: str) -> list[Path]:
        files = sorted((self.folder / config).glob("train-*.parquet"))
        if not files:
            has = ", ".join(configs_in(self.folder)) or "none"
            self._skip(config, self.name, f"there is no config {config} (it has {has}): {self._needs(config)}")
            return []
        shards = re.fullmatch(r"train-\d{5}-of-(?!00000)(0\d{4})", files[0].stem)
        if not shards:
            file = f"{self.name}/{config}/{files[0].name}"
            self._skip(config, file, "is no name of the form train-00000-of-00001.parquet")
            return []
        wanted = [f"train-{number:05d}-of-{shards[1]}.parquet" for number in range(int(shards[1]))]
        missing = sorted(set(wanted) - {path.name for path in files})
        if missing:
            self._skip(config, f"{self.name}/{config}", f"lacks {', '.join(missing)}: download {config} again")
        return [path for path in files if path.name in wanted]

    def _read_file(self, path: Path, file: str, config: str, keep: Sequence[str]) -> list[Row]:
        table, schema = pq.ParquetFile(path), schema_of(config, self.training)
        row_type = pa.struct(schema)
        columns = table.schema_arrow.names
        missing = [name for name in schema.names if name not in columns]
        text = f"missing (it has {', '.join(columns)}): "
        handed, marks = ("evaluation", TASK_COLUMNS) if "metadata" in schema.names else ("training", ["metadata"])
        if set(missing) - set(UNREAD) and set(marks) & set(columns):
            text += f"this is {handed} data, and {self._needs(config)}"
            self._skip(config, file, text, ", ".join(missing))
            return []
        text += self._needs(config)
        problems = {Problem(file, text, column=name, fatal=name not in UNREAD): None for name in missing}
        rows: list[Row] = []
        for batch in table.iter_batches(32):
            for values in batch.to_pylist():
                row = Row(file, len(rows), values)
                problems |= dict.fromkeys(_faults(row, "", row_type, values))  # one of a whole column once
                rows.append(Row(file, row.number, {name: values.get(name) for name in keep or columns}))
        self.problems += problems
        if not rows:
            self._skip(config, file, "has no rows")
        if any(problem.fatal and problem.row is None for problem in problems):
            self._incomplete.add(config)
            return []
        return [row for row in rows if row.id]


def _faults(row: Row, place: str, kind: pa.DataType, value: Any) -> Iterator[Problem]:
    """Every fault of a value that stands at ``place`` in the row ("" for all of it) and should be of type ``kind``."""
    column = re.sub(r"\[\d+\]", "", place)
    wanted = {pa.ListType: list, pa.StructType: dict}.get(type(kind)) or (bytes if kind == pa.binary() else str)
    bare = value.strip() if isinstance(value, str) else value
    if bare is None or bare in ("", b"", []):
        yield row.problem(place, "is empty")
    elif not isinstance(value, wanted):
        name = _NAMES.get(type(value), type(value).__name__)
        yield Problem(row.file, f"is {name}, not {_NAMES[wanted]}", column=column)
    elif wanted is list:
        for number, entry in enumerate(value):
            yield from _faults(row, f"{place}[{number}]", kind.value_type, entry)
    elif wanted is dict:
        members, problems = {member.name: member.type for member in kind}, []
        for name in dict.fromkeys([*members, *value]):
            inner_place, inner_column = (f"{outer}.{name}".removeprefix(".") for outer in (place, column))
            if name not in members:
                problems.append(Problem(row.file, "is not in the layout", column=inner_column, fatal=False))
            elif name in value and name not in UNREAD:
                problems += _faults(row, inner_place, members[name], value[name])
            elif place and name not in value:  # a missing column of the file is reported before any row is read
                problems.append(Problem(row.file, "is missing", column=inner_column, fatal=name not in UNREAD))
        yield from problems
        if not any(problem.fatal for problem in problems):
            yield from (row.problem(place, *fault) for fault in _question_faults(column, value))
    elif (wanted is bytes or column == "metadata") and (text := _content_fault(value)):
        yield row.problem(place, text)


def _question_faults(column: str, entry: dict) -> Iterator[tuple[str, bool]]:
    """What is wrong with a question whose texts are all there, and whether it is fatal; nothing for other structs."""
    if column.endswith("_Questions"):
        answer, options = entry["Correct_Answer"], {entry["Options"][letter].strip() for letter in LETTERS}
        if not answer_letter(answer):
            yield f"Correct_Answer {answer!r} is none of {', '.join(LETTERS)}", True
        if len(options) < len(LETTERS):
            yield f"distinct options: {len(options)} of {len(LETTERS)}", len(options) == 1
    if column in TASK_COLUMNS[1:] and entry["Type"] not in TYPES.values():
        yield f"Type {entry['Type']!r} is none of {', '.join(TYPES.values())}", True
    if column == "Mask_Task" and "__" not in entry["Question"]:
        yield "the question has no blank __", False


@lru_cache(maxsize=4096)  # most pictures stand in several files
def _content_fault(content: bytes | str) -> str:
    """Why a picture cannot be decoded, or the text of ``metadata`` not be read; "" where it can."""
    try:
        from_bytes(content) if isinstance(content, bytes) else people.pairs_of(content, "")
    except (KitError, RecursionError) as error:
        return str(error).removeprefix(": ")
    return ""
