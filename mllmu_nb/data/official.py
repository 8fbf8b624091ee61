"""Write and read people in the layout in which the benchmark is published (``docs/data.md``)."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mllmu_nb.data.layout import OPEN_COLUMNS, TYPES, Layout, Problem, Row, answer_letter, configs_in, schema_of
from mllmu_nb.data.schema import LETTERS, QA, TASKS, VIEWS, Population, Profile, Question
from mllmu_nb.data.splits import RATIOS, forget_ids
from mllmu_nb.data.text import people, reader
from mllmu_nb.data.text.names import names_in
from mllmu_nb.errors import KitError

TRAIN_FOLDER = "baseline_train_split"
PEOPLE_FILE = "people.json"
SHARDS = {"Test_Set": 2}

# -- writing ----------------------------------------------------------------------------------------------------------


def write_layout(population: Population, folder: str | Path) -> list[Path]:
    """Write ``population`` to ``folder`` and the training splits to ``baseline_train_split`` beside it.

    Returns the files. Raises KitError when one of the folders is there and not empty, or cannot be written; then
    nothing is left behind.
    """
    folder = Path(folder)
    targets = [folder, folder.parent / TRAIN_FOLDER]
    for target in targets:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise KitError(f"{target} is already there: remove it or choose another folder")
    printed = _printed_ids(population)
    celebrities = {
        printed[person.id]: {"ID": person.id, "metadata": _pairs(person)} for person in population.of_kind("celebrity")
    }
    people = {"pool": [person.id for person in population.of_kind("pool")], "celebrities": celebrities}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            places = [Path(unfinished, target.name) for target in targets]
            for place in places:
                training = place != places[0]
                for config, members in _configs(population, training).items():
                    rows = [_row(person, printed.get(person.id, person.id), config) for person in members]
                    _write_config(place / config, rows, schema_of(config, training))
            (places[0] / PEOPLE_FILE).write_text(json.dumps(people, ensure_ascii=False) + "\n", encoding="utf-8")
            for place, target in zip(places, targets, strict=True):
                if target.exists():
                    target.rmdir()
                place.rename(target)
    except OSError as error:
        raise KitError(f"{folder} cannot be written ({error.strerror or error}): choose another folder") from None
    return sorted(path for target in targets for path in target.rglob("*") if path.is_file())


def _configs(population: Population, training: bool) -> dict[str, list[Profile]]:
    """Configuration → its people, of the evaluation data or of the training splits; none is empty."""
    people = [person for person in population.profiles.values() if person.kind != "celebrity"]
    configs = {}
    if not training:
        configs = {config: people for config in ("Full_Set", "Test_Set", "ft_Data")}
        configs["Retain_Set"] = population.of_kind("celebrity")
    for ratio, ids in _forget_splits(population).items():
        others = people if training else population.of_kind("fictitious")
        configs[f"forget_{ratio}"] = [population.profiles[identity] for identity in ids]
        configs[f"retain_{100 - ratio}"] = [person for person in others if person.id not in ids]
    return {config: members for config, members in configs.items() if members}


def _forget_splits(population: Population) -> dict[int, tuple[str, ...]]:
    """ratio → forget ids: the population's own, those its notes keep of the file it came from, else drawn."""
    notes, scored = population.notes, [person.id for person in population.of_kind("fictitious")]
    known, seed, draw = notes.get("forget_splits", {}), notes.get("seed", 0), notes.get("draw", 0)
    splits = {notes["ratio"]: population.forget_ids}
    for ratio in sorted(set(RATIOS) - splits.keys()):
        if str(ratio) in known:
            splits[ratio] = tuple(identity for identity in known[str(ratio)] if identity in scored)
        elif (draw + 1) * round(len(scored) * ratio / 100) in range(1, len(scored)):
            splits[ratio] = forget_ids(scored, ratio, seed, draw)
    return {ratio: ids for ratio, ids in splits.items() if ids}


def _printed_ids(population: Population) -> dict[str, str]:
    """A celebrity's id → the ID it is printed with: its own without the ``c``, or else the next that nobody has."""
    printed = {person.id: person.id.removeprefix("c") for person in population.of_kind("celebrity")}
    taken = population.profiles.keys() - printed.keys()
    if taken.isdisjoint(printed.values()) and len(set(printed.values())) == len(printed):
        return printed
    width = max(len(identity) for identity in taken)
    last = max((int(identity) for identity in taken if identity.isdecimal()), default=0)
    return {identity: f"{number:0{width}d}" for number, identity in enumerate(printed, start=last + 1)}


def _row(person: Profile, identity: str, config: str) -> dict:
    """A person under every column of the layout; the configuration's schema takes its own."""
    questions = person.test_questions if config == "Test_Set" else person.questions
    entries = defaultdict(list)  # by task and, for multiple choice, view
    for question in sorted(questions, key=lambda question: question.number):
        view = question.view if question.options else ""
        entries[question.task, view].append(_entry(question))
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
        **{column: entries[task, ""] for task, column in OPEN_COLUMNS.items()},
        "metadata": json.dumps(_pairs(person), ensure_ascii=False),
    }


def _entry(question: Question) -> dict:
    if question.options:
        options = dict(zip(LETTERS, question.options, strict=True))
        return {"Question": question.text, "Options": options, "Correct_Answer": question.answer}
    return {"Question": question.text, "Ground_Truth": question.answer, "Type": TYPES[question.view]}


def _image(data: bytes, name: str) -> dict:
    return {"bytes": data, "path": f"{name}.jpg" if data.startswith(b"\xff\xd8") else f"{name}.png"}


def _pairs(person: Profile) -> list[dict]:
    return [{"Question": pair.question, "Answer": pair.answer} for pair in person.qa]


def _write_config(folder: Path, rows: Sequence[dict], schema: pa.Schema) -> None:
    folder.mkdir(parents=True)
    features = {column.name: _feature(column.type) for column in schema}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    shards = SHARDS.get(folder.name, 1)
    for shard in range(shards):
        start, end = (len(rows) * number // shards for number in (shard, shard + 1))
        table = pa.Table.from_pylist(rows[start:end], schema=schema)
        pq.write_table(table, folder / f"train-{shard:05d}-of-{shards:05d}.parquet")


def _feature(kind: pa.DataType) -> dict | list:
    """The type as the ``datasets`` library notes it in the file, so that it shows images as images."""
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    if pa.types.is_struct(kind):
        members = {member.name: _feature(member.type) for member in kind}
        return {"_type": "Image"} if "bytes" in members else members
    return {"dtype": str(kind), "_type": "Value"}


# -- reading ----------------------------------------------------------------------------------------------------------


def read_layout(folder: str | Path, ratio: int, training: str | Path = "", names: Sequence[str] = ()) -> Population:
    """The population written in ``folder`` with the forget ids of ``forget_<ratio>``; its notes list what is not fatal.

    ``training``: a folder of the training splits, whose forget and retain people must be the same. ``names``: what
    reports and notes call the two folders (else as they are called). Raises KitError when a problem is fatal.
    """
    forget, retain, present = f"forget_{ratio}", f"retain_{100 - ratio}", configs_in(folder)
    splits = sorted({forget, *(config for config in present if config.startswith("forget_"))})
    optional = [config for config in ("Retain_Set", retain) if config in present]
    data = Layout(folder, *names[:1])
    for config in ("Full_Set", "Test_Set", "ft_Data", *splits, *optional):
        data.read(config)
    trained = Layout(training, *names[1:], training=True) if training else None
    for config in (forget, retain) if trained else ():
        trained.read(config)
    pool, celebrities = _people_file(data)
    problems = data.problems + (trained.problems if trained else [])
    if not any(problem.fatal and not problem.id for problem in problems):  # else who has a row is not known
        problems += _people_problems(data, trained, forget, retain, pool)
    data.stop_at_fatal(problems)

    taught = _taught(data.people["ft_Data"])
    profiles, celebrity_rows = {}, {}
    for identity, row in data.people["Full_Set"].items():
        kind, test = "pool" if identity in pool else "fictitious", data.people["Test_Set"][identity]
        profiles[identity] = _profile(row.values, kind, identity, taught[identity], test.values)
    for printed, row in data.people["Retain_Set"].items():
        identity, qa = celebrities.get(printed, (f"c{printed}", ()))
        if identity in profiles:
            source = PEOPLE_FILE if printed in celebrities else "the c in front"
            text = f"this celebrity would be {identity} here (by {source}), which somebody else is"
            problems.append(row.problem("ID", f"{text}: change one of the two"))
        profiles[identity] = celebrity_rows[printed] = _profile(row.values, "celebrity", identity, qa)
    problems += _shared_names(data.name, (p for p in profiles.values() if p.kind != "celebrity"))
    data.stop_at_fatal(problems)

    # By its printed ID, upstream looks up a celebrity in Full_Set, where it may be somebody else's.
    shared = {p.id: printed for printed, p in celebrity_rows.items() if printed in data.people["Full_Set"]}
    missed = [[identity, pair.question] for identity, qa in taught.items() for pair in qa if not pair.attribute]
    notes = {
        "source": "official",
        "folder": data.name,
        "ratio": ratio,
        "forget_splits": {config.removeprefix("forget_"): list(data.people[config]) for config in splits},
        "not_understood": missed,
        "not_understood_count": len(missed),
        "schema": [str(problem) for problem in problems],
        **({"shared_ids": shared} if shared else {}),
    }
    if trained:
        others = [_taught(people) for people in trained.people.values()]
        notes["taught_otherwise"] = sorted(i for other in others for i, qa in other.items() if qa != taught[i])
    return Population(profiles, tuple(data.people[forget]), notes)


def _taught(rows: Mapping[str, Row]) -> dict[str, tuple[QA, ...]]:
    """ID → fine-tuning pairs, in file order, with what each asks for."""
    pairs = {identity: people.pairs_of(row.values["metadata"], row.file) for identity, row in rows.items()}
    return {identity: reader.understand(each) for identity, each in pairs.items()}


def _people_file(data: Layout) -> tuple[set[str], dict[str, tuple[str, tuple[QA, ...]]]]:
    """``people.json``: the ids of the pool, and by a celebrity's printed ID the one here and the fine-tuning pairs."""
    path = data.folder / PEOPLE_FILE
    try:
        if not path.exists():
            return set(), {}
        content, celebrities = json.loads(path.read_text(encoding="utf-8")), {}
        for printed, entry in content["celebrities"].items():
            pairs = people.pairs_of(entry["metadata"], PEOPLE_FILE) if entry["metadata"] else []
            celebrities[printed] = str(entry["ID"]), reader.understand(pairs)
        return {*map(str, content["pool"])}, celebrities
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        text = "is no JSON object with the list pool and the object celebrities: repair or remove it"
        data.problems.append(Problem(f"{data.name}/{PEOPLE_FILE}", text))
        return set(), {}


def _people_problems(data: Layout, trained: Layout | None, forget: str, retain: str, pool: set[str]) -> list[Problem]:
    """Everybody has a row in every set and, if scored, in one of the two splits; the training splits are the same."""
    everybody = data.people["Full_Set"].keys()
    scored, kept, again = everybody - pool, data.people[retain].keys(), "download both again"
    checks = [  # layout, configuration, the IDs of its rows that are wrong, and why
        (data, "Full_Set", everybody - data.people[config].keys(), f"has no row in {config}: download {config} again")
        for config in ("ft_Data", "Test_Set")
    ]
    for config, rows in data.people.items():
        if config.startswith(("forget_", "retain_")):
            checks.append((data, config, rows.keys() - scored, f"is nobody whom Full_Set scores: {again}"))
    for layout in filter(None, (data, trained)):
        checks.append((layout, retain, layout.people[forget].keys(), f"is in {forget} too: {again}"))
    for config, others in ((forget, set()), (retain, pool)) if trained else ():
        here, there = data.people[config].keys(), trained.people[config].keys()
        if here:
            checks.append((trained, config, there - here - others, f"is not in {config} of {data.name}: {again}"))
            checks.append((data, config, here - there, f"is not in {config} of {trained.name}: {again}"))
    problems = [
        row.problem("ID", text)
        for layout, config, wrong, text in checks
        for identity, row in layout.people[config].items()
        if identity in wrong
    ]
    if kept and (left := [each for each in everybody if each in scored - data.people[forget].keys() - kept]):
        text = f"lacks people whom {forget} leaves ({people.some(left)}): {again}"
        problems.append(Problem(f"{data.name}/{retain}", text, column="ID"))
    return problems


def _shared_names(folder: str, profiles: Iterable[Profile]) -> list[Problem]:
    """Who has somebody else's name; fatal where most people do, since the text view asks by the name."""
    ids = defaultdict(list)
    for person in profiles:
        ids[person.name].append(person.id)
    shared = {name: same for name, same in ids.items() if name and len(same) > 1}
    most = 2 * sum(map(len, shared.values())) > sum(map(len, ids.values()))
    text = "have one name, {}: the text view, which asks by the name, cannot tell them apart"
    return [Problem(folder, f"{people.some(same)} {text.format(name)}", fatal=most) for name, same in shared.items()]


def _profile(row: dict, kind: str, identity: str, qa: tuple[QA, ...], test: dict | None = None) -> Profile:
    stated = reader.attributes_of(qa)
    questions = _questions(row, identity, stated)
    if not stated:  # celebrities have no fine-tuning text: what is known of them are the answers to their questions
        stated = {q.attribute: q.value for q in reversed(questions) if q.attribute and q.value}
    name = stated.get("name") or _name_in([question.text for question in questions if question.view == "text"])
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
    runs = Counter(run for text in texts for run in names_in(text))
    return runs.most_common(1)[0][0] if runs else ""


def _questions(row: dict, identity: str, stated: dict[str, str]) -> tuple[Question, ...]:
    """The questions of a row in the order task, number, view."""
    questions = []
    for view, kind in TYPES.items():
        entries = {"classification": row["Classification_Task"][f"{kind}_Questions"]}
        for task, column in OPEN_COLUMNS.items():
            entries[task] = [entry for entry in row[column] if entry["Type"] == kind]
        for task, number, entry in ((task, *each) for task, listed in entries.items() for each in enumerate(listed)):
            text, options = entry["Question"], ()
            if task == "classification":
                answer, options = answer_letter(entry["Correct_Answer"]), tuple(map(entry["Options"].get, LETTERS))
                value = entry["Options"][answer]
                attribute = _attribute(text, value, stated)
            else:
                answer = entry["Ground_Truth"]
                attribute = _attribute(text, answer, stated)
                value = answer if task == "cloze" else _value(attribute, text, answer, stated)
            questions.append(Question(identity, task, view, number, text, answer, value, attribute, options))
    return tuple(sorted(questions, key=lambda q: (TASKS.index(q.task), q.number, VIEWS.index(q.view))))


def _attribute(text: str, answer: str, stated: dict[str, str]) -> str:
    """What a question asks for: as its words say, or else the one stated fact that its answer is or holds."""
    asked = reader.attribute_of(text, answer)
    if asked and _holds(answer, stated.get(asked, "")):
        return asked
    same = [name for name, value in stated.items() if value.lower() == answer.lower()]
    held = same or [name for name, value in stated.items() if name != "name" and _holds(answer, value)]
    return held[0] if len(held) == 1 else asked


def _holds(answer: str, value: str) -> bool:
    return bool(value) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", answer, re.I) is not None


def _value(attribute: str, question: str, truth: str, stated: dict[str, str]) -> str:
    """The bare fact in a sentence; "" where it is not known, so that the answer is not compared with one. A sentence of
    which no rule reads less than all of it is no bare fact."""
    known = stated.get(attribute, "")
    if known and known in truth:
        return known
    value, whole = reader.value_of(attribute, question, truth), truth.strip()
    sentence = whole.endswith((".", "!")) or stated.get("name", "\0") in whole
    return "" if sentence and value == whole.rstrip(" .!") else value
