"""The published layout as an Arrow schema, and a reader that lists every fault of a folder (``docs/data.md``)."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
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
OPEN_COLUMNS = {"generation": "Generation_Task", "cloze": "Mask_Task"}
TASK_COLUMNS = {"Classification_Task", *OPEN_COLUMNS.values()}
UNREAD = {"Directory", "question", "answer", "path"}  # in the layout, but the kit does without

_TEXT = pa.string()
_IMAGE = pa.struct({"bytes": pa.binary(), "path": _TEXT})
_OPTIONS = pa.struct(dict.fromkeys(LETTERS, _TEXT))
_CHOICES = pa.list_(pa.struct({"Question": _TEXT, "Options": _OPTIONS, "Correct_Answer": _TEXT}))
_OPEN = pa.list_(pa.struct({"Question": _TEXT, "Ground_Truth": _TEXT, "Type": _TEXT}))
COLUMNS = {
    "image": _IMAGE,
    "images": pa.list_(_IMAGE),
    **dict.fromkeys(("ID", "Directory", "biography", "question", "answer"), _TEXT),
    "Classification_Task": pa.struct({f"{kind}_Questions": _CHOICES for kind in TYPES.values()}),
    **dict.fromkeys(OPEN_COLUMNS.values(), _OPEN),
    "metadata": _TEXT,
}


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
    """One fault; ``fatal`` where the kit cannot read or score what it concerns.

    ``row`` counts from 0, as pandas does, and is None where all of the file is meant.
    """

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


class LayoutError(KitError):
    """All ``problems`` of what is called ``name``: a line where there is one, else a line each below their number."""

    def __init__(self, name: str, problems: Sequence[Problem]):
        self.problems, lines = problems, [str(problem) for problem in problems]
        super().__init__("\n  ".join(lines if len(lines) == 1 else [f"{name} has {len(lines)} problems:", *lines]))


@dataclass(frozen=True)
class Row:
    """One row of a configuration, and where it stands."""

    file: str
    number: int
    values: dict

    @property
    def id(self) -> str:
        return self.values.get("ID") or ""

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
        if not self.folder.is_dir():
            raise KitError(f"{self.folder} is no folder: {self._needs('')}")

    def read(self, config: str) -> None:
        """Read and check all files of ``config``. Of the splits, only ID and ``metadata`` are kept."""
        for path in self._files(config):
            file = f"{self.name}/{config}/{path.name}"
            try:
                for row in self._rows(path, file, config):
                    other = self.people[config].setdefault(row.id, row)
                    if other is not row:
                        place = f"row {other.number} of {other.file.rpartition('/')[2]}"
                        self.problems.append(row.problem("ID", f"stands in {place} already"))
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                reason = str(error).partition("\n")[0]
                self.problems.append(Problem(file, f"is no readable parquet file ({reason}): download it again"))

    def stop_at_fatal(self, problems: Sequence[Problem]) -> None:
        """Raises LayoutError with all ``problems`` when one of them is fatal."""
        if any(problem.fatal for problem in problems):
            raise LayoutError(self.name, problems)

    def _needs(self, config: str) -> str:
        return TRAINING if self.training or config == "ft_Data" else EVALUATION

    def _files(self, config: str) -> list[Path]:
        files = {path.name: path for path in sorted((self.folder / config).glob("train-*.parquet"))}
        if not files:
            has = ", ".join(configs_in(self.folder)) or "none"
            text = f"there is no config {config} (it has {has}): {self._needs(config)}"
            self.problems.append(Problem(self.name, text))
            return []
        count = re.fullmatch(r"train-\d{5}-of-(0\d{4})\.parquet", next(iter(files)))
        shards = max(1, int(count[1])) if count else 1
        wanted = [f"train-{number:05d}-of-{shards:05d}.parquet" for number in range(shards)]
        if missing := [name for name in wanted if name not in files]:
            text = f"lacks {', '.join(missing)}: download {config} again"
            self.problems.append(Problem(f"{self.name}/{config}", text))
        return [files[name] for name in wanted if name in files]

    def _rows(self, path: Path, file: str, config: str) -> Iterator[Row]:
        """The rows of a file that have an ID; none where its columns have a fatal problem."""
        table, schema = pq.ParquetFile(path), schema_of(config, self.training)
        kind, names = pa.struct(schema), table.schema_arrow.names
        problems, confused = [], ""
        if missing := [name for name in schema.names if name not in names]:
            fatal = not UNREAD.issuperset(missing)
            content, marks = ("evaluation", TASK_COLUMNS) if "metadata" in schema.names else ("training", {"metadata"})
            confused = f"this is {content} data, and " if fatal and not marks.isdisjoint(names) else ""
            text = f"missing (it has {', '.join(names)}): {confused}{self._needs(config)}"
            problems = [Problem(file, text, column=", ".join(missing), fatal=fatal)]
        for column, text, fatal in () if confused else _type_faults("", kind, pa.struct(table.schema_arrow)):
            problems.append(Problem(file, text, column=column, fatal=fatal))
        if not table.metadata.num_rows:
            problems.append(Problem(file, "has no rows"))
        self.problems += problems
        if any(problem.fatal for problem in problems):
            return
        rows = (values for batch in table.iter_batches(32) for values in batch.to_pylist())
        for row in itertools.starmap(partial(Row, file), enumerate(rows)):
            self.problems += [row.problem(*fault) for fault in _value_faults("", kind, row.values)]
            if config.startswith(("forget_", "retain_")):
                row = replace(row, values={name: row.values.get(name) for name in ("ID", "metadata")})
            if row.id:
                yield row


def _kind(kind: pa.DataType) -> str:
    """Arrow's name of a type, without what is only another way to store it ("string" of large_string)."""
    stored = re.match(r"(?:dictionary<values=|large_|fixed_size_)*(string|binary|list|struct)", str(kind))
    return stored[1] if stored else str(kind)


def _type_faults(column: str, wanted: pa.DataType, actual: pa.DataType) -> Iterator[tuple[str, str, bool]]:
    """Column, text and whether it is fatal, wherever a type is not that of the layout; "" for all of the file.

    Columns that the file itself lacks are left out: they are reported together.
    """
    if pa.types.is_null(actual):
        return  # every value is reported as empty
    if _kind(actual) != _kind(wanted):
        yield column, f"is {_kind(actual)}, not {_kind(wanted)}", True
    elif pa.types.is_list(wanted):
        yield from _type_faults(column, wanted.value_type, actual.value_type)
    elif pa.types.is_struct(wanted):
        members, others = ({member.name: member.type for member in struct} for struct in (wanted, actual))
        for name in members | others:
            inner = f"{column}.{name}".removeprefix(".")
            if name not in members:
                yield inner, "is not in the layout", False
            elif name in others and name not in UNREAD:
                yield from _type_faults(inner, members[name], others[name])
            elif name not in others and column:
                yield inner, "is missing", name not in UNREAD


def _value_faults(place: str, kind: pa.DataType, value: Any) -> Iterator[tuple[str, str, bool]]:
    """Place, text and whether it is fatal, of every fault of a value of type ``kind``; "" for all of the row."""
    column = re.sub(r"\[\d+\]", "", place)
    if not value or not isinstance(value, bytes | list | dict) and not value.strip():
        yield place, "is empty", True
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _value_faults(f"{place}[{number}]", kind.value_type, entry)
    elif isinstance(value, dict):
        read = [member for member in kind if member.name in value and member.name not in UNREAD]
        inner = [(f"{place}.{member.name}".removeprefix("."), member.type, value[member.name]) for member in read]
        faults = [fault for each in inner for fault in _value_faults(*each)]
        yield from faults or ((place, *fault) for fault in _question_faults(column, value))
    elif (isinstance(value, bytes) or column == "metadata") and (text := _content_fault(value)):
        yield place, text, True


def _question_faults(column: str, entry: dict) -> Iterator[tuple[str, bool]]:
    """What is wrong with a question whose texts are all there, and whether it is fatal; nothing for other structs."""
    if column.endswith("_Questions"):
        answer, options = entry["Correct_Answer"], {entry["Options"][letter].strip() for letter in LETTERS}
        if not answer_letter(answer):
            yield f"Correct_Answer {answer!r} is none of {', '.join(LETTERS)}", True
        if len(options) < len(LETTERS):
            yield f"distinct options: {len(options)} of {len(LETTERS)}", len(options) == 1
    if column in OPEN_COLUMNS.values() and entry["Type"] not in TYPES.values():
        yield f"Type {entry['Type']!r} is none of {', '.join(TYPES.values())}", True
    if column == OPEN_COLUMNS["cloze"] and "__" not in entry["Question"]:
        yield "the question has no blank __", False


@lru_cache(maxsize=4096)  # most pictures stand in several files
def _content_fault(content: bytes | str) -> str:
    """Why a picture cannot be decoded, or the text of ``metadata`` not be read; "" where it can."""
    try:
        from_bytes(content) if isinstance(content, bytes) else people.pairs_of(content, "")
    except KitError as error:
        return str(error).removeprefix(": ")
    return ""
