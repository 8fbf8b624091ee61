"""The published layout: folders and columns, and all that is wrong with a folder that should have them.

:func:`problems` reads every file that a run needs and goes on after a fault, so that one report names them all. A
problem is ``fatal`` when the kit cannot read or score what it concerns; otherwise (a column that nobody reads is
missing or strange) it is only told.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mllmu_nb.data import reading
from mllmu_nb.data.schema import LETTERS
from mllmu_nb.errors import KitError

EVALUATION_REPOSITORY = "MLLMMU/MLLMU-Bench"
TRAINING_REPOSITORY = "MLLMMU/baseline_train_split"
EVALUATION = f"the data set {EVALUATION_REPOSITORY}"
TRAINING = f"the model repository {TRAINING_REPOSITORY}"
NEEDED = {"evaluation": EVALUATION, "training": f"ft_Data of {EVALUATION} or the splits of {TRAINING}"}
TYPES = {"image_text": "Image_Textual", "text": "Pure_Text"}
TASK_COLUMNS = ("Classification_Task", "Generation_Task", "Mask_Task")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_CHOICE = pa.struct(
    [
        ("Question", pa.string()),
        ("Options", pa.struct([(letter, pa.string()) for letter in LETTERS])),
        ("Correct_Answer", pa.string()),
    ]
)
_OPEN = pa.list_(pa.struct([("Question", pa.string()), ("Ground_Truth", pa.string()), ("Type", pa.string())]))
COLUMNS = {
    "image": IMAGE,
    "images": pa.list_(IMAGE),
    "ID": pa.string(),
    "Directory": pa.string(),
    "biography": pa.string(),
    "question": pa.string(),
    "answer": pa.string(),
    "Classification_Task": pa.struct([(f"{kind}_Questions", pa.list_(_CHOICE)) for kind in TYPES.values()]),
    "Generation_Task": _OPEN,
    "Mask_Task": _OPEN,
    "metadata": pa.string(),
}
UNREAD = ("Directory", "question", "answer")  # columns that the layout has and the kit does not read


def purpose(config: str, training: bool = False) -> str:
    """What a configuration is for: "training" or "evaluation". ``training``: it lies in the training repository."""
    return "training" if training or config == "ft_Data" else "evaluation"


def columns(config: str, training: bool = False) -> tuple[str, ...]:
    """The columns of a configuration, in their order."""
    if purpose(config, training) == "training":
        return ("image", "ID", "metadata")
    image = "images" if config == "Test_Set" else "image"
    directory = ("Directory",) if config in ("Full_Set", "Retain_Set") else ()
    return (image, "ID", *directory, "biography", "question", "answer", *TASK_COLUMNS)


def configs_in(folder: str | Path) -> list[str]:
    """Names of the configurations found in ``folder``."""
    folder = Path(folder)
    return sorted({path.parent.name for path in folder.glob("*/*.parquet")}) if folder.is_dir() else []


@dataclass(frozen=True)
class Problem:
    """One fault. ``row`` counts from 0, as pandas does, and is None where all of the file is meant."""

    file: str  # of the folder's name, the configuration and the file's name
    row: int | None
    id: str  # of the row's person, as the layout prints it
    column: str
    text: str
    fatal: bool = True

    def __str__(self) -> str:
        who = f" (ID {self.id})" if self.id else ""
        places = [
            self.file,
            "" if self.row is None else f"row {self.row}{who}",
            self.column and f"column {self.column}",
        ]
        return f"{', '.join(place for place in places if place)}: {self.text}"


@dataclass(frozen=True)
class Row:
    """One row of a configuration, and where it stands."""

    file: str
    number: int
    values: dict

    @property
    def id(self) -> str:
        return str(self.values.get("ID") or "")

    def problem(self, column: str, text: str) -> Problem:
        return Problem(self.file, self.number, self.id, column, text)


@dataclass
class Layout:
    """A folder of the layout as far as it could be read: rows by configuration, and the problems found on the way."""

    folder: Path
    name: str = ""  # how reports call the folder
    training: bool = False  # the folder follows the training repository
    configs: dict[str, list[Row]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    _partial: set[str] = field(default_factory=set)  # configurations of which a file is missing or unreadable
    _images: dict[bytes, str] = field(default_factory=dict)  # hash → fault, since most pictures stand in several files

    def __post_init__(self):
        self.folder = Path(self.folder)
        self.name = self.name or self.folder.name

    # -- files --------------------------------------------------------------------------------------------------

    def read(self, config: str, only: Sequence[str] = ()) -> list[Row]:
        """The rows of ``config``, all shards in order, every value checked; kept are the columns ``only`` (else all).

        Whatever is wrong is added to ``problems``: a missing configuration or shard, an unreadable file, columns,
        types, values.
        """
        rows: list[Row] = []
        for path in self._files(config):
            read = self._read_file(path, config, only)
            rows += read
            self._partial |= set() if read else {config}
        self._check_twice(rows)
        self.configs[config] = rows
        return rows

    def ids(self, config: str) -> dict[str, Row]:
        """ID → row of a configuration that was read."""
        return {row.id: row for row in self.configs.get(config, ()) if row.id}

    def _files(self, config: str) -> list[Path]:
        where, needed = f"{self.name}/{config}", NEEDED[purpose(config, self.training)]
        files = sorted((self.folder / config).glob("train-*-of-*.parquet"))
        if not self.folder.is_dir():
            if not self.problems:  # said once, and not for every configuration
                self._tell(
                    Problem(
                        str(self.folder), None, "", "", f"is no folder: {purpose(config, self.training)} needs {needed}"
                    )
                )
            return []
        if not files:
            has = ", ".join(configs_in(self.folder)) or "none"
            text = f"there is no config {config} (it has {has}): {purpose(config, self.training)} needs {needed}"
            self._tell(Problem(self.name, None, "", "", text))
            return []
        shards = files[0].stem.rsplit("-", 1)[1]
        if not re.fullmatch(r"\d{5}", shards) or not 1 <= int(shards) <= 10_000:
            self._tell(Problem(f"{where}/{files[0].name}", None, "", "", "is no name of the form train-00000-of-00001"))
            return []
        wanted = [f"train-{k:05d}-of-{shards}.parquet" for k in range(int(shards))]
        missing = sorted(set(wanted) - {path.name for path in files})
        if missing:
            self._partial.add(config)
            self._tell(Problem(where, None, "", "", f"lacks {', '.join(missing)}: download {config} again"))
        return [self.folder / config / name for name in wanted if name not in missing]

    def _read_file(self, path: Path, config: str, only: Sequence[str]) -> list[Row]:
        where = f"{self.name}/{config}/{path.name}"
        try:
            file = pq.ParquetFile(path)
            faulty = self._check_columns(file.schema_arrow, where, config)
            rows = []
            for batch in file.iter_batches(32):
                for values in batch.to_pylist():
                    row = Row(where, len(rows), values)
                    self._check_row(row, columns(config, self.training), faulty)
                    rows.append(Row(where, len(rows), {k: v for k, v in values.items() if not only or k in only}))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            self._tell(Problem(where, None, "", "", f"is no readable parquet file ({reason}): download it again"))
            return []
        if not rows:
            self._tell(Problem(where, None, "", "", "has no rows"))
        return rows

    def _tell(self, problem: Problem) -> None:
        self.problems.append(problem)

    # -- columns ------------------------------------------------------------------------------------------------

    def _check_columns(self, schema: pa.Schema, where: str, config: str) -> set[str]:
        """Tells what is wrong with the columns; returns those whose values cannot be looked at."""
        wanted, kind = columns(config, self.training), purpose(config, self.training)
        missing = [name for name in wanted if name not in schema.names]
        extra = [name for name in schema.names if name not in wanted]
        other = {"training": set(TASK_COLUMNS), "evaluation": {"metadata"}}[kind] & set(extra)
        if other and any(name not in UNREAD for name in missing):
            handed = {"training": "evaluation", "evaluation": "training"}[kind]
            text = f"missing (it has {', '.join(schema.names)}): this is {handed} data, and {kind} needs {NEEDED[kind]}"
            self._tell(Problem(where, None, "", ", ".join(missing), text))
        else:
            for name in missing:
                text = f"missing (it has {', '.join(schema.names)}): {kind} needs {NEEDED[kind]}"
                self._tell(Problem(where, None, "", name, text, name not in UNREAD))
            for name in extra:
                self._tell(Problem(where, None, "", name, "not a column of the layout", False))
        faulty = set(missing)
        for name in wanted:
            if name in missing:
                continue
            for path, text, fatal in _differences(schema.field(name).type, COLUMNS[name], name):
                fatal = fatal and name not in UNREAD
                self._tell(Problem(where, None, "", path, text, fatal))
                faulty |= {name} if fatal else set()
        return faulty

    # -- rows ---------------------------------------------------------------------------------------------------

    def _check_row(self, row: Row, names: Sequence[str], faulty: set[str]) -> None:
        for name in names:
            if name in faulty or name in UNREAD:
                continue
            for text in self._faults(name, row.values[name]):
                self._tell(row.problem(name, text))

    def _faults(self, column: str, value) -> Iterator[str]:
        if column in ("image", "images"):
            many = column == "images"
            if many and not value:
                yield "an empty list"
            for number, image in enumerate((value or ()) if many else [value]):
                fault = self._image_fault((image or {}).get("bytes"))
                if fault:
                    yield f"image {number} {fault}" if many else fault
        elif column == "Classification_Task":
            yield from _choice_faults(value or {})
        elif column in TASK_COLUMNS:
            yield from _open_faults(value or ())
        elif column == "metadata":
            try:
                reading.pairs_of(value, "")
            except KitError as error:
                yield str(error).removeprefix(": ")
        elif not (value or "").strip():
            yield "empty"

    def _image_fault(self, data: bytes | None) -> str:
        if not data:
            return "holds no image"
        key = hashlib.sha256(data).digest()
        if key not in self._images:
            self._images[key] = _undecodable(data)
        return self._images[key]

    def _check_twice(self, rows: Iterable[Row]) -> None:
        first: dict[str, Row] = {}
        for row in rows:
            if row.id and first.setdefault(row.id, row) is not row:
                self._tell(row.problem("ID", f"stands in row {first[row.id].number} of {_last(first[row.id])} already"))

    # -- configurations against each other ----------------------------------------------------------------------

    def check_people(self, pool: Iterable[str]) -> None:
        """Everybody of ``Full_Set`` has fine-tuning text and a Test row, and is scored or in ``pool``."""
        everybody, pool = self.ids("Full_Set"), set(pool)
        for config in ("ft_Data", "Test_Set"):
            found = self.ids(config)
            for identity, row in everybody.items() if found and config not in self._partial else ():
                if identity not in found:
                    self._tell(row.problem("ID", f"has no row in {config}: download {config} again"))
        for config, rows in self.configs.items():
            if not re.fullmatch(r"(forget|retain)_\d+", config) or not everybody or "Full_Set" in self._partial:
                continue
            for row in rows:
                if row.id and (row.id not in everybody or row.id in pool):
                    self._tell(row.problem("ID", "is nobody whom Full_Set scores: download both again"))

    def check_split(self, ratio: int) -> None:
        """Nobody is both to be forgotten and to be retained."""
        forget = self.ids(f"forget_{ratio}")
        for row in self.configs.get(f"retain_{100 - ratio}", ()):
            if row.id in forget:
                self._tell(row.problem("ID", f"is in both: row {forget[row.id].number} of forget_{ratio} has it too"))

    def check_against(self, evaluation: Layout, pool: Iterable[str]) -> None:
        """The training splits have the people of the evaluation splits; the pool's may be among them as well."""
        for config, rows in self.configs.items():
            wanted, found = evaluation.ids(config), self.ids(config)
            for row in rows if wanted else ():
                if row.id and row.id not in wanted and (row.id not in pool or config.startswith("forget_")):
                    self._tell(row.problem("ID", f"is not in {config} of {evaluation.name}: download both again"))
            for identity, row in wanted.items() if found else ():
                if identity not in found:
                    self._tell(row.problem("ID", f"is not in {config} of {self.name}: download both again"))


def report(name: str, found: Sequence[Problem]) -> str:
    """All problems in one text: a line where there is one, else a line each below their number."""
    if len(found) == 1:
        return str(found[0])
    return "\n  ".join([f"{name} has {len(found)} problems:", *map(str, found)])


def _last(row: Row) -> str:
    return row.file.rsplit("/", 1)[1]


def _undecodable(data: bytes) -> str:
    """Why ``data`` is no picture; "" when it is one."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.convert("RGB")
    except Exception as error:  # what a damaged file raises differs by format: OSError, SyntaxError, struct.error ..
        return f"cannot be decoded ({type(error).__name__}, {len(data)} bytes)"
    return ""


def _choice_faults(task: dict) -> Iterator[str]:
    for part in (f"{kind}_Questions" for kind in TYPES.values()):
        if not task.get(part):
            yield f"{part} is an empty list"
        for number, entry in enumerate(task.get(part) or ()):
            where, entry = f"{part} {number}", entry or {}
            if not (entry["Question"] or "").strip():
                yield f"{where}: Question is empty"
            options = [letter for letter in LETTERS if ((entry["Options"] or {}).get(letter) or "").strip()]
            if len(options) < len(LETTERS):
                yield f"{where}: option {', '.join(sorted(set(LETTERS) - set(options)))} is empty"
            if answer_letter(entry["Correct_Answer"]) not in options:
                yield f"{where}: Correct_Answer {entry['Correct_Answer']!r} is none of {', '.join(options)}"


def answer_letter(answer: str | None) -> str:
    """The letter of a ``Correct_Answer``: "B", also of "b" and "B: Oulu"; "" when there is none, as in "Berlin"."""
    found = re.match(r"\s*([A-Za-z])(?!\w)", answer or "")
    return found[1].upper() if found else ""


def _open_faults(entries: Sequence[dict]) -> Iterator[str]:
    if not entries:
        yield "an empty list"
    for number, entry in enumerate(entries):
        for name in ("Question", "Ground_Truth"):
            if not (entry[name] or "").strip():
                yield f"question {number}: {name} is empty"
        if entry["Type"] not in TYPES.values():
            yield f"question {number}: Type {entry['Type']!r} is none of {', '.join(TYPES.values())}"


def _differences(found: pa.DataType, wanted: pa.DataType, path: str) -> Iterator[tuple[str, str, bool]]:
    """Where a column's type is not the layout's, as (path in the column, what is wrong, whether that is fatal).

    Arrow's other spellings of a type (large, dictionary-encoded) are the same type.
    """
    if pa.types.is_dictionary(found):
        found = found.value_type
    if _kind(found) != _kind(wanted):
        yield path, f"is {_kind(found)}, not {_kind(wanted)}", True
    elif _kind(wanted) == "a list":
        yield from _differences(found.value_type, wanted.value_type, path)
    elif _kind(wanted) == "a struct":
        parts = {found.field(k).name: found.field(k).type for k in range(found.num_fields)}
        for k in range(wanted.num_fields):
            name = wanted.field(k).name
            if name in parts:
                yield from _differences(parts.pop(name), wanted.field(k).type, f"{path}.{name}")
            else:
                yield f"{path}.{name}", "missing", name != "path"
        for name in parts:
            yield f"{path}.{name}", "not a part of the layout", False


def _kind(found: pa.DataType) -> str:
    for kind, names in {
        "text": ("string", "large_string", "string_view"),
        "bytes": ("binary", "large_binary", "binary_view"),
    }.items():
        if str(found) in names:
            return kind
    if pa.types.is_struct(found):
        return "a struct"
    if pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found):
        return "a list"
    return str(found)
