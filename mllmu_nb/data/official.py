"""Write and read people in the published layout of the benchmark, as an Arrow schema; a reader lists every fault of a
folder (``docs/data.md``)."""

import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mllmu_nb.data.portraits import from_bytes, pixel_hash
from mllmu_nb.data.schema import LETTERS, QA, RATIOS, TASKS, VIEWS, Population, Profile, Question, forget_ids
from mllmu_nb.data.text import people, reader
from mllmu_nb.data.text.names import PARTICLE, names_in, straight
from mllmu_nb.errors import KitError, few

EVALUATION_REPOSITORY = "MLLMMU/MLLMU-Bench"
TRAINING_REPOSITORY = "MLLMMU/baseline_train_split"
EVALUATION = f"evaluation needs the data set {EVALUATION_REPOSITORY}"
TRAINING = (
    f"training needs ft_Data of the data set {EVALUATION_REPOSITORY} or the splits of the model repository "
    f"{TRAINING_REPOSITORY}"
)
TYPES = {"image_text": "Image_Textual", "text": "Pure_Text"}  # view → its name in the layout
OPEN_COLUMNS = {"generation": "Generation_Task", "cloze": "Mask_Task"}
TRAIN_FOLDER = "baseline_train_split"
PEOPLE_FILE = "people.json"
REPAIR = "repair the folder, or download data set and training splits again"
SHOWN = 20  # faults that a message lists
BATCH = 64  # rows read at once
# how a question begins: no word of a name
_ASKS = re.compile(
    r"^(?:(?:in|at|on|of) )?(?:is|are|do|does|did|was|were|has|what|which|who|whose|where|when|how)\b", re.I
)

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


def schema_of(config: str) -> pa.Schema:
    """Return the columns of a configuration. Those of the training repository have the columns of ``ft_Data``."""
    if config == "ft_Data":
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


# -- writing ----------------------------------------------------------------------------------------------------------


def write_layout(population: Population, folder: str | Path) -> list[Path]:
    """Write ``population`` to ``folder`` and the training splits to ``baseline_train_split`` beside it; return the
    files. Each folder appears when it is complete. Raises KitError if one of them exists and is not empty, if both are
    the same, if they cannot be written, or if somebody lacks what the layout asks for."""
    targets = [Path(folder), Path(folder).parent / TRAIN_FOLDER]
    if targets[0] == targets[1]:
        raise KitError(f"{folder} is where the training splits are written: choose another name")
    for target in targets:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise KitError(f"{target} is already there: remove it or choose another folder")
    printed = _printed_ids(population)
    celebrities = {printed[p.id]: {"ID": p.id, "metadata": _pairs(p)} for p in population.of_kind("celebrity")}
    content = {"pool": [person.id for person in population.of_kind("pool")], "celebrities": celebrities}
    unfinished = [target.with_name(f"{target.name}~new") for target in targets]
    try:
        for new, training in zip(unfinished, (False, True), strict=True):
            shutil.rmtree(new, ignore_errors=True)  # of a killed process
            for config, members in _configs(population, training).items():
                rows = [_row(person, printed.get(person.id, person.id), config) for person in members]
                read = [{name: row[name] for name in _read_of(config)} for row in rows]
                if faults := [f"{row['ID']}: {fault}" for row in read for fault in _row_faults(row)]:
                    raise KitError(
                        f"{folder} cannot be written, {config} would have gaps ({few(faults)}): state more facts"
                    )
                _write_config(new / config, rows, schema_of("ft_Data" if training else config))
        (unfinished[0] / PEOPLE_FILE).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
        for new, target in zip(unfinished, targets, strict=True):
            if target.exists():
                target.rmdir()  # it is empty
            new.rename(target)
    except OSError as error:
        raise KitError(f"{folder} cannot be written ({error.strerror or error}): choose another folder") from None
    finally:
        for new in unfinished:
            shutil.rmtree(new, ignore_errors=True)
    return sorted(path for target in targets for path in target.rglob("*") if path.is_file())


def _configs(population: Population, training: bool) -> dict[str, list[Profile]]:
    """Return configuration → its people, for the evaluation data or the training splits; none is empty."""
    trained = [person for person in population.profiles.values() if person.kind != "celebrity"]
    configs = {}
    if not training:
        configs = dict.fromkeys(("Full_Set", "Test_Set", "ft_Data"), trained)
        configs["Retain_Set"] = population.of_kind("celebrity")
    for ratio, ids in _forget_splits(population).items():
        others = trained if training else population.of_kind("fictitious")
        configs[f"forget_{ratio}"] = [population.profiles[identity] for identity in ids]
        configs[f"retain_{100 - ratio}"] = [person for person in others if person.id not in ids]
    return {config: members for config, members in configs.items() if members}


def _forget_splits(population: Population) -> dict[int, tuple[str, ...]]:
    """Return ratio → forget ids: the population's own, those of its file (kept in its notes), or else drawn ones."""
    notes, scored = population.notes, [person.id for person in population.of_kind("fictitious")]
    known, seed, replicate = notes.get("forget_splits", {}), notes.get("seed", 0), notes.get("replicate", 0)
    splits = {notes["ratio"]: population.forget_ids}
    for ratio in sorted({*RATIOS} - {notes["ratio"]}):
        if str(ratio) in known:
            splits[ratio] = tuple(identity for identity in known[str(ratio)] if identity in scored)
        elif (replicate + 1) * round(len(scored) * ratio / 100) in range(1, len(scored)):
            splits[ratio] = forget_ids(scored, ratio, seed, replicate)
    return {ratio: ids for ratio, ids in splits.items() if ids}


def _printed_ids(population: Population) -> dict[str, str]:
    """Return a celebrity's id → its printed ID: without ``c``; if any of these is taken, all get the next free
    numbers."""
    printed = {person.id: person.id.removeprefix("c") for person in population.of_kind("celebrity")}
    taken = population.profiles.keys() - printed.keys()
    if taken.isdisjoint(printed.values()):
        return printed
    width = max(len(identity) for identity in taken)
    last = max((int(identity) for identity in taken if identity.isdecimal()), default=0)
    return {identity: f"{number:0{width}d}" for number, identity in enumerate(printed, start=last + 1)}


def _row(person: Profile, identity: str, config: str) -> dict:
    """Return a person with every column of the layout; the schema of ``config`` selects its own columns."""
    questions = person.test_questions if config == "Test_Set" else person.questions
    entries = defaultdict(list)  # by task and, for multiple choice, view
    for q in sorted(questions, key=lambda question: question.number):
        if q.options:
            options = dict(zip(LETTERS, q.options, strict=True))
            entries[q.task, q.view].append({"Question": q.text, "Options": options, "Correct_Answer": q.answer})
        else:
            entries[q.task].append({"Question": q.text, "Ground_Truth": q.answer, "Type": TYPES[q.view]})
    free = [(q.text, q.answer) for q in person.questions if q.task == "generation" and q.view == "image_text"]
    first = (*free, *((pair.question, pair.answer) for pair in person.qa), ("", ""))[0]
    return {
        "image": _image(person.portrait, identity),
        "images": [_image(data, f"{identity}_{number}") for number, data in enumerate(person.test_portraits)],
        "ID": identity,
        "Directory": f"{config}/{identity}",
        "biography": person.biography,
        "question": first[0],
        "answer": first[1],
        "Classification_Task": {f"{kind}_Questions": entries["classification", view] for view, kind in TYPES.items()},
        **{column: entries[task] for task, column in OPEN_COLUMNS.items()},
        "metadata": json.dumps(_pairs(person), ensure_ascii=False),
    }


def _image(data: bytes, name: str) -> dict:
    return {"bytes": data, "path": f"{name}.jpg" if data.startswith(b"\xff\xd8") else f"{name}.png"}


def _pairs(person: Profile) -> list[dict]:
    return [{"Question": pair.question, "Answer": pair.answer} for pair in person.qa]


def _write_config(folder: Path, rows: Sequence[dict], schema: pa.Schema) -> None:
    folder.mkdir(parents=True)
    features = {column.name: _feature(column.type) for column in schema}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    shards = 2 if folder.name == "Test_Set" else 1
    for shard in range(shards):
        start, end = (len(rows) * number // shards for number in (shard, shard + 1))
        table = pa.Table.from_pylist(rows[start:end], schema=schema)
        pq.write_table(table, folder / f"train-{shard:05d}-of-{shards:05d}.parquet")


def _feature(kind: pa.DataType) -> dict | list:
    """Return the type as the ``datasets`` library notes it in the file, so that it shows images as images."""
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    if pa.types.is_struct(kind):
        members = {member.name: _feature(member.type) for member in kind}
        return {"_type": "Image"} if "bytes" in members else members
    return {"dtype": str(kind), "_type": "Value"}


# -- what is wrong with a folder ---------------------------------------------------------------------------------------


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
        needs = TRAINING if self.training or config == "ft_Data" else EVALUATION
        wanted = _read_of("ft_Data" if self.training else config)
        files = sorted((self.folder / config).glob("train-*.parquet"))
        if not files:
            there = configs_in(self.folder)
            lacks = f"there is no config {config} (it has {', '.join(there) or 'none'})"
            lacks = f"{config} has no file train-*.parquet" if config in there else lacks
            self.faults.append(f"{self.name}: {lacks}: {needs}")
        elif (shards := re.search(r"-of-(\d+)", files[0].name)) and int(shards[1]) > len(files):
            self.faults.append(f"{self.name}/{config}: has {len(files)} of {int(shards[1])} files: download it again")
        rows: dict[str, dict] = {}
        for path in files:
            name = f"{self.name}/{config}/{path.name}"
            try:
                # so Arrow holds the pictures of one batch, not of the whole file, in addition to the kept rows
                file = pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
                there = file.schema_arrow.names
                if missing := ", ".join(column for column in wanted if column not in there):
                    self.faults.append(f"{name}, column {missing}: missing (it has {', '.join(there)}): {needs}")
                    continue
                extra = ["image"] if "metadata" in wanted and "image" in there else []  # to be compared
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


def _read_of(config: str) -> list[str]:
    """Return the columns of a configuration that the kit reads."""
    if config == "ft_Data":
        return ["ID", "metadata"]
    if config.startswith(("forget_", "retain_")):  # the splits of the evaluation data
        return ["ID"]
    shown = ["images"] if config == "Test_Set" else ["image", "biography"]
    return ["ID", *shown, "Classification_Task", *OPEN_COLUMNS.values()]


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


# -- reading ----------------------------------------------------------------------------------------------------------


def read_layout(folder: str | Path, ratio: int, training: str | Path = "", names: Sequence[str] = ()) -> Population:
    """Return the population in ``folder`` with the forget ids of ``forget_<ratio>``; its notes list what is unusual.

    ``training``: a folder of the training splits, which must have the same forget and retain people. ``names``: names
    of the two folders in reports and notes (default: their own). Raises KitError with all faults.
    """
    forget, retain, present = f"forget_{ratio}", f"retain_{100 - ratio}", configs_in(folder)
    data = Layout(folder, *names[:1])
    full, test, text = (data.read(config) for config in ("Full_Set", "Test_Set", "ft_Data"))
    splits = {c: data.read(c) for c in sorted({forget, *(c for c in present if c.startswith("forget_"))})}
    kept, famous = (data.read(config) if config in present else {} for config in (retain, "Retain_Set"))
    pool, celebrities = _people_file(data)
    trained = {}
    if training:
        other = Layout(training, *names[1:], training=True)
        trained = {config: other.read(config) for config in (forget, retain)}
        data.faults += other.faults
    data.stop()

    scored, to_forget, to_retain = full.keys() - pool, splits[forget].keys(), kept.keys()
    wrong = {
        "has people without a row in ft_Data": full.keys() - text.keys(),
        "has people without a row in Test_Set": full.keys() - test.keys(),
        f"has people of {forget} or {retain} whom Full_Set does not score": (to_forget | to_retain) - scored,
        f"has people in both {forget} and {retain}": to_forget & to_retain,
        f"lacks people in {forget} and {retain}": scored - to_forget - to_retain if kept else (),
        f"has people in the pool of {PEOPLE_FILE} without a row in Full_Set": pool - full.keys(),
    }
    for config, rows in trained.items():
        expected = to_forget if config == forget else scored - to_forget
        wrong[f"has other people in {config} than {other.name}"] = (expected ^ rows.keys()) - pool
    data.faults += [f"{data.name} {what} ({few(sorted(ids))}): {REPAIR}" for what, ids in wrong.items() if ids]
    data.stop()

    taught = {identity: reader.understand(row["metadata"]) for identity, row in text.items()}
    profiles, shared = {}, {}
    for identity, row in full.items():
        kind = "pool" if identity in pool else "fictitious"
        profiles[identity] = _profile(row, kind, identity, taught[identity], test[identity])
    for printed, row in famous.items():
        identity, qa = celebrities.get(printed, (f"c{printed}", ()))
        if identity in profiles:
            taken = f"ID {printed} would get the id {identity}, which another person has"
            data.faults.append(f"{data.name}/Retain_Set: {taken}")
        profiles[identity] = _profile(row, "celebrity", identity, qa)
        if printed in full:  # upstream looks up a celebrity in Full_Set by its printed ID
            shared[identity] = printed
    data.stop()
    named = {p.id: p.name for p in profiles.values() if p.kind != "celebrity"}
    same = people.shared_names(list(named.values()), data.name)
    asked = [q for person in profiles.values() for q in (*person.questions, *person.test_questions)]
    notes = {
        "source": "official",
        "folder": data.name,
        "ratio": ratio,
        "forget_splits": {config.removeprefix("forget_"): list(rows) for config, rows in splits.items()},
        "not_understood": [[i, pair.question] for i, qa in taught.items() for pair in qa if not pair.attribute],
        "same_options": sum(len({option.strip() for option in q.options}) < len(q.options) for q in asked),
        "without_blank": sum(q.task == "cloze" and "__" not in q.text for q in asked),
        "without_name": [identity for identity, name in named.items() if not name],
        "without_row": sorted((text.keys() | test.keys()) - full.keys()),
        **({"shared_ids": shared} if shared else {}),
        **({"shared_names": same} if same else {}),
    }
    others = [(i, row) for rows in trained.values() for i, row in rows.items()]
    if trained:
        notes["taught_otherwise"] = sorted(i for i, row in others if row["metadata"] != text[i]["metadata"])
    shown = [(i, row) for i, row in [*text.items(), *others] if i in full]
    notes["shown_otherwise"] = sorted({i for i, row in shown if _differs(row, full[i])})
    return Population(profiles, tuple(splits[forget]), notes)


def _differs(row: dict, other: dict) -> bool:
    """Whether a row for training shows another picture; it may have none."""
    own, theirs = row.get("image", other["image"])["bytes"], other["image"]["bytes"]
    return own != theirs and pixel_hash(own) != pixel_hash(theirs)


def _people_file(data: Layout) -> tuple[set[str], dict[str, tuple[str, tuple[QA, ...]]]]:
    """Read ``people.json``: the ids of the pool, and a celebrity's printed ID → the kit's id and fine-tuning pairs."""
    path = data.folder / PEOPLE_FILE
    if not path.exists():
        return set(), {}
    try:
        content, celebrities = json.loads(path.read_text(encoding="utf-8")), {}
        for printed, entry in content["celebrities"].items():
            pairs = people.pairs_of(entry["metadata"], PEOPLE_FILE) if entry["metadata"] else []
            if people.HALVES.search(identity := str(entry["ID"])):
                raise ValueError(identity)
            celebrities[printed] = identity, reader.understand(pairs)
        if not isinstance(pool := content["pool"], list) or not all(isinstance(identity, str) for identity in pool):
            raise TypeError
        return set(pool), celebrities
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        text = "is no JSON object with pool, a list of ids as text, and the object celebrities: repair or remove it"
        data.faults.append(f"{data.name}/{PEOPLE_FILE}: {text}")
        return set(), {}


def _profile(row: dict, kind: str, identity: str, qa: tuple[QA, ...], test: dict | None = None) -> Profile:
    stated = reader.attributes_of(qa)
    questions = _questions(row, identity, stated)
    if not stated:  # celebrities have no fine-tuning text: the answers to their questions are their facts
        stated = {q.attribute: q.value for q in reversed(questions) if q.attribute and q.value}
    if "name" not in stated:  # the commonest run of two or more capitalised words in the text view's questions
        texts = [_ASKS.sub("", q.text) for q in questions if q.view == "text"]
        runs = Counter(run for text in texts for run in names_in(text))
        stated = {"name": runs.most_common(1)[0][0] if runs else "", **stated}
    portrait, biography, tested = row["image"]["bytes"], row["biography"], ()
    if test:
        tested = tuple(image["bytes"] for image in test["images"]), _questions(test, identity, stated)
    return Profile(identity, stated["name"], kind, stated, portrait, biography, qa, questions, *tested)


def _questions(row: dict, identity: str, stated: dict[str, str]) -> tuple[Question, ...]:
    questions = []
    for view, kind in TYPES.items():
        for number, entry in enumerate(row["Classification_Task"][f"{kind}_Questions"]):
            text, letter = entry["Question"], answer_letter(entry["Correct_Answer"])
            options, value = tuple(map(entry["Options"].get, LETTERS)), entry["Options"][letter]
            asked = _attribute(text, value, stated)
            questions.append(Question(identity, "classification", view, number, text, letter, value, asked, options))
        for task, column in OPEN_COLUMNS.items():
            for number, entry in enumerate(entry for entry in row[column] if entry["Type"] == kind):
                text, truth = entry["Question"], entry["Ground_Truth"]
                asked = _attribute(text, truth, stated)
                value = truth if task == "cloze" else _value(asked, truth, stated)
                questions.append(Question(identity, task, view, number, text, truth, value, asked))
    return tuple(sorted(questions, key=lambda q: (TASKS.index(q.task), q.number, VIEWS.index(q.view))))


def _attribute(text: str, answer: str, stated: dict[str, str]) -> str:
    """Return what a question asks for, by its words. If its answer does not contain that fact, return the one stated
    fact that the answer equals or contains, if there is exactly one."""
    asked = reader.attribute_of(text, answer)
    if _holds(answer, stated.get(asked, "")):
        return asked
    same = [name for name, value in stated.items() if value.lower() == answer.lower()]
    held = same or [name for name, value in stated.items() if name != "name" and _holds(answer, value)]
    return held[0] if len(held) == 1 else asked


def _holds(answer: str, value: str) -> bool:
    return bool(value) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", answer, re.I) is not None


def _value(attribute: str, truth: str, stated: dict[str, str]) -> str:
    """Return the bare fact in a sentence; "" if it is unknown, so that the answer is not compared with one. If the
    rules take the whole sentence as the value, it is no bare fact."""
    known = stated.get(attribute, "")
    if _holds(truth, known):
        return known
    value, whole, name = reader.value_of(attribute, truth), straight(truth), straight(stated.get("name", ""))
    # the whole name, or a part of it before what looks like a verb; relatives and places may have the same part
    part = rf"^(?:{'|'.join(map(re.escape, name.split()))}) (?!(?:{PARTICLE}|and|in) )[a-z]"
    sentence = whole.endswith((".", "!")) or (name and re.search(f"{re.escape(name)}|{part}", whole))
    return "" if sentence and value == whole.rstrip(" .!") else value
