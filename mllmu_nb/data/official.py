"""Write and read the layout in which the benchmark is published on the Hugging Face hub.

The hub has two repositories of the same folder names: the data set ``MLLMMU/MLLMU-Bench`` holds what evaluation needs
and, in ``ft_Data``, the fine-tuning text; ``MLLMMU/baseline_train_split`` (a *model* repository) holds the forget and
retain people's fine-tuning text. Each configuration is ``CONFIG/train-0000k-of-0000n.parquet``. ``Retain_Set`` holds
the real celebrities, whatever its name says. :mod:`mllmu_nb.data.layout` has the columns and checks them.

What the layout does not print is inferred on reading: the attribute a question asks for and its bare value. A
celebrity's id may be a fictitious person's too, so celebrities get a ``c`` in front here. Such a pair of ids makes the
released scripts give celebrities somebody else's examples, so on writing celebrities are numbered past everybody else.
People of the pool stand in ``Full_Set`` and ``ft_Data`` like all others. ``people.json`` beside the configurations
keeps what the layout has no place for: who is of the pool, the celebrities' ids here, and what is said about them in
the form of fine-tuning text, which likelihood puts the options into.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mllmu_nb.data import reading
from mllmu_nb.data.layout import (
    COLUMNS,
    IMAGE,
    TASK_COLUMNS,
    TYPES,
    Layout,
    Problem,
    answer_letter,
    configs_in,
    report,
)
from mllmu_nb.data.schema import LETTERS, QA, TASKS, VIEWS, Population, Profile, Question
from mllmu_nb.data.splits import RATIOS, forget_ids
from mllmu_nb.errors import KitError

TRAIN_FOLDER = "baseline_train_split"
PEOPLE_FILE = "people.json"
SHARDS = {"Test_Set": 2}


# ---------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------


def write_layout(population: Population, folder: str | Path) -> list[Path]:
    """Write ``population`` to ``folder`` and the training splits to ``baseline_train_split`` beside it.

    The forget split of the population's own ratio holds its forget ids. The other ratios' are those of the files it
    was read from, else drawn from its seed, where they leave somebody. The evaluation splits ``retain_*`` hold
    scored people only, the training splits the pool as well. Celebrities' fine-tuning text goes to
    ``people.json``.

    Returns the files. Raises KitError when one of the folders is there and not empty, or cannot be written; then
    nothing is left behind.
    """
    folder = Path(folder)
    targets = {folder: _evaluation_configs(population), folder.parent / TRAIN_FOLDER: _training_configs(population)}
    for target in targets:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise KitError(f"{target} is already there: remove it or choose another folder")
    celebrities = {
        printed: {"ID": identity, "metadata": _pairs(population.profiles[identity])}
        for identity, printed in _printed_ids(population).items()
    }
    people = {"pool": [p.id for p in population.of_kind("pool")], "celebrities": celebrities}
    parts = [target.with_name(target.name + ".part") for target in targets]
    try:
        for part, configs in zip(parts, targets.values(), strict=True):
            for config, rows in configs.items():
                _write_config(part / config, rows, SHARDS.get(config, 1))
        (parts[0] / PEOPLE_FILE).write_text(json.dumps(people, ensure_ascii=False) + "\n", encoding="utf-8")
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
    profiles, printed = population.profiles, _printed_ids(population)
    fictitious = [p for p in profiles.values() if p.kind != "celebrity"]
    famous = [_evaluation_row(p, printed[p.id]) for p in population.of_kind("celebrity")]
    configs = {
        "Full_Set": [_evaluation_row(p) | {"Directory": f"Full_Set/{p.id}"} for p in fictitious],
        "Test_Set": [_test_row(p) for p in fictitious],
        "Retain_Set": [row | {"Directory": f"Retain_Set/{row['ID']}"} for row in famous],
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


def _printed_ids(population: Population) -> dict[str, str]:
    """A celebrity's id → the ID it is printed with: its own without the ``c``, or else the next that nobody has."""
    printed = {p.id: p.id.removeprefix("c") for p in population.of_kind("celebrity")}
    taken = population.profiles.keys() - printed.keys()
    if taken.isdisjoint(printed.values()) and len(set(printed.values())) == len(printed):
        return printed
    width = max(len(identity) for identity in taken)
    last = max((int(identity) for identity in taken if identity.isdecimal()), default=0)
    return {identity: f"{number:0{width}d}" for number, identity in enumerate(printed, start=last + 1)}


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
            for view, kind in TYPES.items()
        },
        "Generation_Task": [_open_question(q) for q in generation],
        "Mask_Task": [_open_question(q) for q in cloze],
    }


def _open_question(question: Question) -> dict:
    return {"Question": question.text, "Ground_Truth": question.answer, "Type": TYPES[question.view]}


def _evaluation_row(profile: Profile, printed: str = "") -> dict:
    generation = [q for q in profile.questions if q.task == "generation" and q.view == "image_text"]
    first = [(q.text, q.answer) for q in generation] + [(pair.question, pair.answer) for pair in profile.qa]
    question, answer = first[0] if first else ("", "")
    texts = {"biography": profile.biography, "question": question, "answer": answer}
    identity = printed or profile.id
    return {"image": _image(profile.portrait, identity), "ID": identity, **texts, **_tasks(profile.questions)}


def _test_row(profile: Profile) -> dict:
    row = _evaluation_row(profile)
    del row["image"]
    images = [_image(data, f"{profile.id}_{number}") for number, data in enumerate(profile.test_portraits)]
    return {"images": images, **row, **_tasks(profile.test_questions)}


def _training_row(profile: Profile) -> dict:
    metadata = json.dumps(_pairs(profile), ensure_ascii=False)
    return {"image": _image(profile.portrait, profile.id), "ID": profile.id, "metadata": metadata}


def _pairs(profile: Profile) -> list[dict]:
    return [{"Question": pair.question, "Answer": pair.answer} for pair in profile.qa]


def _write_config(folder: Path, rows: Sequence[dict], shards: int) -> None:
    folder.mkdir(parents=True)
    schema = pa.schema([(name, kind) for name, kind in COLUMNS.items() if name in rows[0]])
    features = {name: _feature(schema.field(name).type) for name in schema.names}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for shard in range(shards):
        part = rows[len(rows) * shard // shards : len(rows) * (shard + 1) // shards]
        table = pa.Table.from_pylist(part, schema=schema)
        pq.write_table(table, folder / f"train-{shard:05d}-of-{shards:05d}.parquet")


def _feature(kind: pa.DataType) -> dict | list:
    """The type as the ``datasets`` library notes it in the file, so that it shows images as images."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    if pa.types.is_struct(kind):
        return {kind.field(i).name: _feature(kind.field(i).type) for i in range(kind.num_fields)}
    return {"dtype": str(kind), "_type": "Value"}


# ---------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class People:
    """What ``people.json`` says: who is of the pool, and by a celebrity's printed id the one here and the pairs."""

    pool: frozenset[str] = frozenset()
    celebrities: Mapping[str, tuple[str, tuple[QA, ...]]] = field(default_factory=dict)


def read_training(folder: str | Path, config: str = "ft_Data") -> dict[str, tuple[QA, ...]]:
    """ID → fine-tuning pairs of a configuration that has ``metadata``, in file order.

    Raises KitError with all that is wrong, such as evaluation data, naming the repository that is needed.
    """
    layout = Layout(folder, training=config != "ft_Data")
    layout.read(config)
    _refuse(layout.name, layout.problems)
    return _taught(layout, config)


def problems(
    folder: str | Path, ratio: int, training: str | Path = "", *, name: str = "", training_name: str = ""
) -> list[Problem]:
    """All that is wrong with what :func:`read_layout` would read; empty where it is sound."""
    evaluation, trained, _ = _read(folder, ratio, training, name, training_name)
    return evaluation.problems + (trained.problems if trained else [])


def read_layout(
    folder: str | Path, ratio: int, training: str | Path = "", *, name: str = "", training_name: str = ""
) -> Population:
    """The population written in ``folder``; the forget ids are those of ``forget_<ratio>``.

    ``training``: a folder of the training splits, whose forget and retain people must be the same. What is taught
    comes from ``ft_Data``; where a training split has another text, the notes name the person. ``name`` and
    ``training_name`` are what reports and notes call the folders (their own names when empty).

    Raises KitError with a report of all problems, when one of them is fatal.
    """
    evaluation, trained, people = _read(folder, ratio, training, name, training_name)
    found = evaluation.problems + (trained.problems if trained else [])
    _refuse(evaluation.name, found)
    taught, test = _taught(evaluation, "ft_Data"), evaluation.ids("Test_Set")
    profiles = {}
    for row in evaluation.configs["Full_Set"]:
        kind = "pool" if row.id in people.pool else "fictitious"
        profiles[row.id] = _profile(row.values, kind, row.id, taught[row.id], test[row.id].values)
    for row in evaluation.configs.get("Retain_Set", ()):
        identity, qa = people.celebrities.get(row.id, ("c" + row.id, ()))
        profiles[identity] = _profile(row.values, "celebrity", identity, qa, None)
    splits = {config: list(evaluation.ids(config)) for config in evaluation.configs if config.startswith("forget_")}
    missed = [[i, pair.question] for i, qa in taught.items() for pair in qa if not pair.attribute]
    notes = {"source": "official", "folder": evaluation.name, "ratio": ratio}
    notes |= {"forget_splits": {config.removeprefix("forget_"): ids for config, ids in sorted(splits.items())}}
    notes |= {"not_understood": missed, "not_understood_count": len(missed), "schema": [str(p) for p in found]}
    if trained:
        other = {i: pairs for config in trained.configs for i, pairs in _taught(trained, config).items()}
        notes["taught_otherwise"] = sorted(i for i, pairs in other.items() if pairs != taught[i])
    return Population(profiles, tuple(splits[f"forget_{ratio}"]), notes)


def _read(
    folder: str | Path, ratio: int, training: str | Path, name: str, training_name: str
) -> tuple[Layout, Layout | None, People]:
    """Everything that a run at ``ratio`` needs, checked."""
    evaluation = Layout(folder, name)
    for config in ("Full_Set", "Test_Set", "ft_Data"):
        evaluation.read(config)
    present = configs_in(folder)
    if "Retain_Set" in present:
        evaluation.read("Retain_Set")
    splits = {config for config in present if config.startswith("forget_") or config == f"retain_{100 - ratio}"}
    for config in sorted(splits | {f"forget_{ratio}"}):
        evaluation.read(config, only=("ID",))
    people = _people(evaluation)
    evaluation.check_people(people.pool)
    evaluation.check_split(ratio)
    if not training:
        return evaluation, None, people
    trained = Layout(training, training_name, training=True)
    for config in (f"forget_{ratio}", f"retain_{100 - ratio}"):
        trained.read(config, only=("ID", "metadata"))
    trained.check_split(ratio)
    trained.check_against(evaluation, people.pool)
    return evaluation, trained, people


def _refuse(name: str, found: Sequence[Problem]) -> None:
    if any(problem.fatal for problem in found):
        raise KitError(report(name, found))


def _taught(layout: Layout, config: str) -> dict[str, tuple[QA, ...]]:
    return {
        row.id: reading.understand(reading.pairs_of(row.values["metadata"], row.file)) for row in layout.configs[config]
    }


def _people(layout: Layout) -> People:
    path = layout.folder / PEOPLE_FILE
    if not path.is_file():
        return People()
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        celebrities = {}
        for printed, entry in told["celebrities"].items():
            pairs = reading.pairs_of(entry["metadata"], PEOPLE_FILE) if entry["metadata"] else []
            celebrities[printed] = str(entry["ID"]), reading.understand(pairs)
        return People(frozenset(told["pool"]), celebrities)
    except (ValueError, TypeError, KeyError, AttributeError):
        text = "is no JSON object with the list pool and the object celebrities: repair or remove it"
        layout.problems.append(Problem(f"{layout.name}/{PEOPLE_FILE}", None, "", "", text))
        return People()


def _profile(row: dict, kind: str, identity: str, qa: tuple[QA, ...], test: dict | None) -> Profile:
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
    for view, kind in TYPES.items():
        for number, entry in enumerate(row["Classification_Task"][f"{kind}_Questions"] or ()):
            letter = answer_letter(entry["Correct_Answer"])
            options = tuple(entry["Options"][key] for key in LETTERS)
            value = options[LETTERS.index(letter)]
            attribute = _attribute(entry["Question"], value, stated)
            found.append(
                Question(identity, "classification", view, number, entry["Question"], letter, value, attribute, options)
            )
        for task, column in zip(TASKS[1:], TASK_COLUMNS[1:], strict=True):
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
