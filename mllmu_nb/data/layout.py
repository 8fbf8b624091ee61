"""The published layout as an Arrow schema, and a reader that lists every fault of a folder (``docs/data.md``)."""

import re
from collections.abc import Hashable, Iterator
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
TYPES = {"image_text": "Image_Textual", "text": "Pure_Text"}  # view → its name in the layout
OPEN_COLUMNS = {"generation": "Generation_Task", "cloze": "Mask_Task"}
SHOWN = 20  # faults that a message lists
BATCH = 64  # rows read at once
TASK_COLUMNS = ("Classification_Task", *OPEN_COLUMNS.values())

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
    """Return the columns of a configuration; ``training``: it is in the training repository."""
    if training or config == "ft_Data":
        return pa.schema([(name, COLUMNS[name]) for name in ("image", "ID", "metadata")])
    absent = {"metadata", "image" if config == "Test_Set" else "images"}
    absent |= set() if config in ("Full_Set", "Retain_Set") else {"Directory"}
    return pa.schema([(name, kind) for name, kind in COLUMNS.items() if name not in absent])


def configs_in(folder: str | Path) -> list[str]:
    """Return the names of the configurations in ``folder``."""
    return sorted({path.parent.name for path in Path(folder).glob("*/*.parquet")})


def answer_letter(answer: str) -> str:
    """Return the letter of a ``Correct_Answer``: "B" for "B", "b" and "B: Oulu". Returns "" for other text, such as the
    options "Berlin" and "A nurse"."""
    letter = re.fullmatch(r"\s*([A-Da-d])\s*([:.)].*)?", answer, re.DOTALL)
    return letter[1].upper() if letter else ""


class Layout:
    """A folder of the layout. ``faults`` collects, one per line, everything that keeps the kit from reading or scoring
    it. ``name`` is the folder's name in messages; ``training``: it follows the training repository. Raises KitError if
    there is no such folder."""

    def __init__(self, folder: str | Path, name: str = "", training: bool = False):
        self.folder, self.training = Path(folder), training
        self.name = name or self.folder.name
        self.faults: list[str] = []
        if not self.folder.is_dir():
            raise KitError(f"{self.folder} is no folder: {TRAINING if training else EVALUATION}")

    def stop(self) -> None:
        """Raise KitError with the faults, if there are any: the first ``SHOWN`` of them, one per line."""
        if len(self.faults) > 1:
            lines = [f"{self.name} has {len(self.faults)} problems:", *self.faults[:SHOWN]]
            raise KitError("\n  ".join(lines + [".."] if len(self.faults) > SHOWN else lines))
        if self.faults:
            raise KitError(self.faults[0])

    def read(self, config: str) -> dict[str, dict]:
        """Return ID → row of a configuration, with the columns that the kit reads; ``metadata`` as pairs."""
        needs, wanted = EVALUATION, ["ID"]  # for the splits of the evaluation data
        if self.training or config == "ft_Data":
            needs, wanted = TRAINING, ["ID", "metadata"]
        elif not config.startswith(("forget_", "retain_")):
            wanted = ["ID", *(["images"] if config == "Test_Set" else ["image", "biography"]), *TASK_COLUMNS]
        files = sorted((self.folder / config).glob("train-*.parquet"))
        if not files:
            has = ", ".join(configs_in(self.folder)) or "none"
            self.faults.append(f"{self.name}: there is no config {config} (it has {has}): {needs}")
        elif (shards := re.search(r"-of-(\d+)", files[0].name)) and int(shards[1]) > len(files):
            text = f"has {len(files)} of {int(shards[1])} files: download it again"
            self.faults.append(f"{self.name}/{config}: {text}")
        rows: dict[str, dict] = {}
        for path in files:
            name = f"{self.name}/{config}/{path.name}"
            try:
                # so Arrow holds the pictures of one batch, not of the whole file, in addition to the kept rows
                file = pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
                there = file.schema_arrow.names
                extra = ["image"] if "metadata" in wanted and "image" in there else []  # to be compared
                if missing := [column for column in wanted if column not in there]:
                    text = f"column {', '.join(missing)}: missing (it has {', '.join(there)}): {needs}"
                    self.faults.append(f"{name}, {text}")
                    continue
                batches = file.iter_batches(BATCH, columns=wanted + extra)
                for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
                    where = f"{name}, row {number} (ID {row['ID']}), column"
                    self.faults += [f"{where} {fault}" for fault in _row_faults(row)]
                    if not isinstance(row["ID"], Hashable):
                        continue  # it is among the faults
                    if row["ID"] in rows:
                        self.faults.append(f"{where} ID: is the ID of another row too")
                    rows[row["ID"]] = row
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                reason = str(error).partition("\n")[0]
                self.faults.append(f"{name}: is no readable parquet file ({reason}): download it again")
            pa.default_memory_pool().release_unused()  # otherwise it keeps about 100 MB for the next file
        return rows


def _row_faults(row: dict) -> Iterator[str]:
    """Yield the faults of a row, with their place in it. If there are none, ``metadata`` is replaced by its pairs."""
    faults = [fault for name, value in row.items() for fault in _value_faults(name, COLUMNS[name], value)]
    if faults:
        yield from faults
    elif "metadata" in row:
        try:
            row["metadata"] = people.pairs_of(row["metadata"], "metadata")
        except KitError as error:
            yield str(error)
    elif "Classification_Task" in row:
        for kind, entries in row["Classification_Task"].items():
            for number, entry in enumerate(entries):
                place, letters = f"Classification_Task.{kind}[{number}]", ", ".join(LETTERS)
                if len({entry["Options"][letter].strip() for letter in LETTERS}) == 1:  # a file may have more options
                    yield f"{place}: its options are all the same"
                if not answer_letter(entry["Correct_Answer"]):
                    yield f"{place}: Correct_Answer {entry['Correct_Answer']!r} is none of {letters}"
        for column in OPEN_COLUMNS.values():
            for number, entry in enumerate(row[column]):
                if entry["Type"] not in TYPES.values():
                    yield f"{column}[{number}]: Type {entry['Type']!r} is none of {', '.join(TYPES.values())}"


def _value_faults(place: str, kind: pa.DataType, value: Any) -> Iterator[str]:
    """Yield a fault for each value that is empty, no picture, or of another type than ``kind``."""
    if not value or isinstance(value, str) and not value.strip():
        yield f"{place}: is empty"
    elif pa.types.is_struct(kind) and isinstance(value, dict):
        for member in kind:
            if member.name != "path":
                yield from _value_faults(f"{place}.{member.name}", member.type, value.get(member.name))
    elif pa.types.is_list(kind) and isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _value_faults(f"{place}[{number}]", kind.value_type, entry)
    elif pa.types.is_binary(kind) and isinstance(value, bytes):
        try:
            from_bytes(value)
        except KitError as error:
            yield f"{place}: {error}"
    elif not (pa.types.is_string(kind) and isinstance(value, str)):
        yield f"{place}: is {type(value).__name__}, not {kind}"
