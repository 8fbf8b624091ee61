"""Write and read the layout in which the benchmark is published on the Hugging Face hub.

The hub has two repositories of the same folder names: the data set ``MLLMMU/MLLMU-Bench`` holds what evaluation needs
and, in ``ft_Data``, the fine-tuning text; ``MLLMMU/baseline_train_split`` (a *model* repository) holds the forget and
retain people's fine-tuning text. Each configuration is ``CONFIG/train-0000k-of-0000n.parquet``. ``Retain_Set`` holds
the real celebrities, whatever its name says.

What the layout does not print is inferred on reading: the attribute a question asks for and its bare value. Its ids
may be the same for a fictitious person and a celebrity, so celebrities get a ``c`` in front here. People of the pool
stand in ``Full_Set`` and ``ft_Data`` like all others; ``pool.json`` beside the configurations names them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mllmu_nb.data import reading
from mllmu_nb.data.schema import LETTERS, QA, TASKS, VIEWS, Population, Profile, Question
from mllmu_nb.data.splits import RATIOS, forget_ids
from mllmu_nb.errors import KitError

EVALUATION = "the data set MLLMMU/MLLMU-Bench"
TRAINING = "the model repository MLLMMU/baseline_train_split"
TRAIN_FOLDER = "baseline_train_split"
POOL_FILE = "pool.json"
SHARDS = {"Test_Set": 2}
_TYPES = {"image_text": "Image_Textual", "text": "Pure_Text"}
_TASK_COLUMNS = ("Classification_Task", "Generation_Task", "Mask_Task")

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_CHOICE = pa.struct(
    [
        ("Question", pa.string()),
        ("Options", pa.struct([(letter, pa.string()) for letter in LETTERS])),
        ("Correct_Answer", pa.string()),
    ]
)
_OPEN = pa.list_(pa.struct([("Question", pa.string()), ("Ground_Truth", pa.string()), ("Type", pa.string())]))
_COLUMNS = {
    "image": _IMAGE,
    "images": pa.list_(_IMAGE),
    "ID": pa.string(),
    "Directory": pa.string(),
    "biography": pa.string(),
    "question": pa.string(),
    "answer": pa.string(),
    "Classification_Task": pa.struct([(f"{kind}_Questions", pa.list_(_CHOICE)) for kind in _TYPES.values()]),
    "Generation_Task": _OPEN,
    "Mask_Task": _OPEN,
    "metadata": pa.string(),
}


# ---------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------


def write_layout(population: Population, folder: str | Path) -> list[Path]:
    """Write ``population`` to ``folder`` and the training splits to ``baseline_train_split`` beside it.

    The forget split of the population's own ratio holds its forget ids. The other ratios' are those of the files it
    was read from, else drawn from its seed, where they leave somebody. The evaluation splits ``retain_*`` hold
    scored people only, the training splits the pool as well. Celebrities' fine-tuning text has no place in the
    layout and is not written.

    Returns the files. Raises KitError when one of the folders is there and not empty, or cannot be written; then
    nothing is left behind.
    """
    folder = Path(folder)
    targets = {folder: _evaluation_configs(population), folder.parent / TRAIN_FOLDER: _training_configs(population)}
    for target in targets:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise KitError(f"{target} is already there: remove it or choose another folder")
    pool = json.dumps([p.id for p in population.of_kind("pool")])
    parts = [target.with_name(target.name + ".part") for target in targets]
    try:
        for part, configs in zip(parts, targets.values(), strict=True):
            for config, rows in configs.items():
                _write_config(part / config, rows, SHARDS.get(config, 1))
        (parts[0] / POOL_FILE).write_text(pool + "\n", encoding="utf-8")
        for part, target in zip(parts, targets, strict=True):
            if target.exists():
                target.rmdir()
            part.rename(target)
    except OSError as error:
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
        raise KitError(f"{folder} cannot be written ({error.strerror or error}): choose another folder") from None
    return sorted(path for target in targets for path in target.rglob("*") if path.is_file())


def _forget_splits(population: Population) -> dict[int, tuple[str, ...]]:
    """ratio → forget ids: the population's own, those its notes keep of the file it came from, else drawn."""
    notes, scored = population.notes, [p.id for p in population.of_kind("fictitious")]
    share = 100 * len(population.forget_ids) / len(scored)
    own = notes.get("ratio") or min(RATIOS, key=lambda ratio: abs(ratio - share))
    known = notes.get("forget_splits", {})
    seed, draw = notes.get("seed", 0), notes.get("draw", 0)
    splits = {own: population.forget_ids}
    for ratio in sorted(set(RATIOS) - {own}):
        if str(ratio) in known:
            splits[ratio] = tuple(i for i in known[str(ratio)] if i in set(scored))
        elif (draw + 1) * round(len(scored) * ratio / 100) in range(1, len(scored)):
            splits[ratio] = forget_ids(scored, ratio, seed, draw)
    return {ratio: ids for ratio, ids in splits.items() if ids}


def _evaluation_configs(population: Population) -> dict[str, list[dict]]:
    profiles = population.profiles
    fictitious = [p for p in profiles.values() if p.kind != "celebrity"]
    configs = {
        "Full_Set": [_evaluation_row(p) | {"Directory": f"Full_Set/{p.id}"} for p in fictitious],
        "Test_Set": [_test_row(p) for p in fictitious],
        "Retain_Set": [
            _evaluation_row(p) | {"Directory": f"Retain_Set/{_printed_id(p)}"} for p in population.of_kind("celebrity")
        ],
        "ft_Data": [_training_row(p) for p in fictitious],
    }
    for ratio, ids in _forget_splits(population).items():
        kept = [p.id for p in population.of_kind("fictitious") if p.id not in set(ids)]
        configs[f"forget_{ratio}"] = [_evaluation_row(profiles[i]) for i in ids]
        configs[f"retain_{100 - ratio}"] = [_evaluation_row(profiles[i]) for i in kept]
    return {config: rows for config, rows in configs.items() if rows}


def _training_configs(population: Population) -> dict[str, list[dict]]:
    configs = {}
    for ratio, ids in _forget_splits(population).items():
        kept = [p for p in population.profiles.values() if p.kind != "celebrity" and p.id not in set(ids)]
        configs[f"forget_{ratio}"] = [_training_row(population.profiles[i]) for i in ids]
        configs[f"retain_{100 - ratio}"] = [_training_row(p) for p in kept]
    return configs


def _printed_id(profile: Profile) -> str:
    return profile.id.removeprefix("c") if profile.kind == "celebrity" else profile.id


def _image(data: bytes, name: str) -> dict:
    jpeg = data.startswith(b"\xff\xd8")
    return {"bytes": data, "path": f"{name}.jpg" if jpeg else f"{name}.png"}


def _tasks(questions: Iterable[Question]) -> dict:
    ordered = sorted(questions, key=lambda q: q.number)
    choices, generation, cloze = ([q for q in ordered if q.task == task] for task in TASKS)
    return {
        "Classification_Task": {
            f"{kind}_Questions": [
                {
                    "Question": q.text,
                    "Options": dict(zip(LETTERS, q.options, strict=True)),
                    "Correct_Answer": q.answer,
                }
                for q in choices
                if q.view == view
            ]
            for view, kind in _TYPES.items()
        },
        "Generation_Task": [_open_question(q) for q in generation],
        "Mask_Task": [_open_question(q) for q in cloze],
    }


def _open_question(question: Question) -> dict:
    return {"Question": question.text, "Ground_Truth": question.answer, "Type": _TYPES[question.view]}


def _evaluation_row(profile: Profile) -> dict:
    generation = [q for q in profile.questions if q.task == "generation" and q.view == "image_text"]
    first = [(q.text, q.answer) for q in generation] + [(pair.question, pair.answer) for pair in profile.qa]
    question, answer = first[0] if first else ("", "")
    texts = {"biography": profile.biography, "question": question, "answer": answer}
    identity = _printed_id(profile)
    return {"image": _image(profile.portrait, identity), "ID": identity, **texts, **_tasks(profile.questions)}


def _test_row(profile: Profile) -> dict:
    row = _evaluation_row(profile)
    del row["image"]
    images = [_image(data, f"{profile.id}_{number}") for number, data in enumerate(profile.test_portraits)]
    return {"images": images, **row, **_tasks(profile.test_questions)}


def _training_row(profile: Profile) -> dict:
    pairs = [{"Question": pair.question, "Answer": pair.answer} for pair in profile.qa]
    metadata = json.dumps(pairs, ensure_ascii=False)
    return {"image": _image(profile.portrait, profile.id), "ID": profile.id, "metadata": metadata}


def _write_config(folder: Path, rows: Sequence[dict], shards: int) -> None:
    folder.mkdir(parents=True)
    schema = pa.schema([(name, kind) for name, kind in _COLUMNS.items() if name in rows[0]])
    features = {name: _feature(schema.field(name).type) for name in schema.names}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for shard in range(shards):
        part = rows[len(rows) * shard // shards : len(rows) * (shard + 1) // shards]
        table = pa.Table.from_pylist(part, schema=schema)
        pq.write_table(table, folder / f"train-{shard:05d}-of-{shards:05d}.parquet")


def _feature(kind: pa.DataType) -> dict | list:
    """The type as the ``datasets`` library notes it in the file, so that it shows images as images."""
    if kind == _IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    if pa.types.is_struct(kind):
        return {kind.field(i).name: _feature(kind.field(i).type) for i in range(kind.num_fields)}
    return {"dtype": str(kind), "_type": "Value"}


# ---------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------


def configs_in(folder: str | Path) -> list[str]:
    """Names of the configurations found in ``folder``."""
    folder = Path(folder)
    return sorted({path.parent.name for path in folder.glob("*/*.parquet")}) if folder.is_dir() else []


def read_config(folder: str | Path, config: str, columns: Sequence[str], purpose: str) -> list[dict]:
    """Rows of one configuration, all shards in order, with (at least) ``columns``.

    ``purpose`` is "training" or "evaluation": a fault names the repository it needs. Raises KitError when folder,
    configuration, a shard or a column is missing, a file is no parquet, or an ID comes twice.
    """
    needed = {"training": f"ft_Data of {EVALUATION} or the splits of {TRAINING}", "evaluation": EVALUATION}[purpose]
    folder = Path(folder)
    files = sorted((folder / config).glob("train-*-of-*.parquet"))
    if not files:
        has = ", ".join(configs_in(folder)) or ("no configuration" if folder.is_dir() else "nothing: it does not exist")
        raise KitError(f"{folder} has no config {config} (it has {has}): {purpose} needs {needed}")
    shards = int(files[0].stem.rsplit("-", 1)[1])
    wanted = {f"train-{k:05d}-of-{shards:05d}.parquet" for k in range(shards)}
    missing = sorted(wanted - {path.name for path in files})
    if missing:
        raise KitError(f"{folder / config} lacks {', '.join(missing)}: download {config} again, all {shards} files")
    rows: list[dict] = []
    for name in sorted(wanted):
        path = folder / config / name
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0]
            raise KitError(f"{path} is no readable parquet file ({reason}): download it again") from None
        absent = [column for column in columns if column not in table.column_names]
        if absent:
            raise KitError(
                f"{path} has no column {', '.join(absent)} (it has {', '.join(table.column_names)}): "
                f"{purpose} needs {needed}"
            )
        rows += table.to_pylist()
    twice = [identity for identity, count in Counter(row["ID"] for row in rows).items() if count > 1]
    if twice:
        raise KitError(f"{folder / config}: ID {twice[0]} stands in two rows: keep one of them")
    return rows


def read_training(folder: str | Path, config: str = "ft_Data") -> dict[str, tuple[QA, ...]]:
    """ID → fine-tuning pairs of a configuration that has ``metadata``, in file order."""
    rows = read_config(folder, config, ("image", "ID", "metadata"), "training")
    where = Path(folder) / config
    return {
        row["ID"]: reading.understand(reading.pairs_of(row["metadata"], f"{where}, ID {row['ID']}")) for row in rows
    }


def read_layout(folder: str | Path, ratio: int) -> Population:
    """The population written in ``folder``; the forget ids are those of ``forget_<ratio>``.

    Raises KitError when a configuration or column is missing, naming the repository that has it.
    """
    folder = Path(folder)
    common = ("ID", "biography", *_TASK_COLUMNS)
    full = read_config(folder, "Full_Set", ("image", *common), "evaluation")
    test = {row["ID"]: row for row in read_config(folder, "Test_Set", ("images", *common), "evaluation")}
    famous = read_config(folder, "Retain_Set", ("image", *common), "evaluation") if _has(folder, "Retain_Set") else []
    splits = {
        name: _ids(folder, name) for name in {*configs_in(folder), f"forget_{ratio}"} if name.startswith("forget_")
    }
    forget = splits[f"forget_{ratio}"]
    taught = read_training(folder)
    pool = _pool(folder)
    profiles = {}
    for row in full:
        identity = row["ID"]
        for config, ids in (("ft_Data", taught), ("Test_Set", test)):
            if identity not in ids:
                raise KitError(f"{folder}: ID {identity} of Full_Set is missing in {config}: download {config} again")
        profile = _profile(row, "pool" if identity in pool else "fictitious", taught[identity], test[identity])
        profiles[identity] = profile
    unknown = [identity for identity in forget if identity not in profiles or identity in pool]
    if unknown:
        message = f"{folder}: forget_{ratio} has ID {unknown[0]}, whom Full_Set does not score"
        raise KitError(f"{message}: download both again")
    for row in famous:
        profiles["c" + row["ID"]] = _profile(row, "celebrity", (), None)
    missed = [[i, pair.question] for i, qa in taught.items() for pair in qa if not pair.attribute]
    notes = {"source": "official", "folder": folder.name, "ratio": ratio}
    notes |= {"forget_splits": {name.removeprefix("forget_"): list(ids) for name, ids in sorted(splits.items())}}
    notes |= {"not_understood": missed, "not_understood_count": len(missed)}
    return Population(profiles, forget, notes)


def _ids(folder: Path, config: str) -> tuple[str, ...]:
    return tuple(row["ID"] for row in read_config(folder, config, ("ID", "Mask_Task"), "evaluation"))


def _has(folder: Path, config: str) -> bool:
    return config in configs_in(folder)


def _pool(folder: Path) -> set[str]:
    path = folder / POOL_FILE
    if not path.is_file():
        return set()
    try:
        return set(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise KitError(f"{path} is no JSON list of ids: repair or remove it") from None


def _profile(row: dict, kind: str, qa: tuple[QA, ...], test: dict | None) -> Profile:
    identity = ("c" if kind == "celebrity" else "") + row["ID"]
    stated = reading.attributes_of(qa)
    questions = _questions(row, identity, stated)
    if not stated:  # celebrities have no fine-tuning text: what is known of them are the answers to their questions
        stated = {q.attribute: q.value for q in reversed(questions) if q.attribute}
    name = stated.get("name") or _name_in([q.text for q in questions if q.view == "text"])
    return Profile(
        id=identity,
        name=name,
        kind=kind,
        attributes=stated if "name" in stated else {"name": name, **stated},
        portrait=row["image"]["bytes"],
        biography=row["biography"],
        qa=qa,
        questions=questions,
        test_portraits=tuple(image["bytes"] for image in test["images"]) if test else (),
        test_questions=_questions(test, identity, stated) if test else (),
    )


def _name_in(texts: Sequence[str]) -> str:
    """The name in most of the text view's questions: the commonest run of two or more capitalised words."""
    runs = Counter(run for text in texts for run in reading.names_in(text))
    return runs.most_common(1)[0][0] if runs else ""


def _questions(row: dict, identity: str, stated: dict[str, str]) -> tuple[Question, ...]:
    """The questions of a row in the order task, number, view."""
    found = []
    for view, kind in _TYPES.items():
        for number, entry in enumerate(row["Classification_Task"][f"{kind}_Questions"] or ()):
            letter = (entry["Correct_Answer"] or "").strip()[:1].upper()
            if letter not in LETTERS:
                message = f"ID {row['ID']}: Correct_Answer {entry['Correct_Answer']!r} is none of A, B, C, D"
                raise KitError(f"{message}: repair the row")
            options = tuple(entry["Options"][key] for key in LETTERS)
            value = options[LETTERS.index(letter)]
            attribute = _attribute(entry["Question"], value, stated)
            found.append(
                Question(identity, "classification", view, number, entry["Question"], letter, value, attribute, options)
            )
        for task, column in zip(TASKS[1:], _TASK_COLUMNS[1:], strict=True):
            entries = [entry for entry in row[column] or () if entry["Type"] == kind]
            for number, entry in enumerate(entries):
                text, truth = entry["Question"], entry["Ground_Truth"]
                attribute = _attribute(text, truth, stated)
                value = truth if task == "cloze" else _value(attribute, text, truth, stated)
                found.append(Question(identity, task, view, number, text, truth, value, attribute))
    return tuple(sorted(found, key=lambda q: (TASKS.index(q.task), q.number, VIEWS.index(q.view))))


def _attribute(text: str, answer: str, stated: dict[str, str]) -> str:
    """What a question asks for: as its words say, or else the one stated fact that its answer is or holds."""
    asked = reading.attribute_of(text, answer)
    if asked and _holds(answer, stated.get(asked, "")):
        return asked
    same = [name for name, value in stated.items() if value.lower() == answer.lower()]
    held = same or [name for name, value in stated.items() if name != "name" and _holds(answer, value)]
    return held[0] if len(held) == 1 else asked


def _holds(answer: str, value: str) -> bool:
    return bool(value) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", answer, re.I) is not None


def _value(attribute: str, question: str, truth: str, stated: dict[str, str]) -> str:
    known = stated.get(attribute, "")
    return known if known and known in truth else reading.value_of(attribute, question, truth) or truth
