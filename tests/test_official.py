"""People written in the published layout come back the same; every fault of a folder is reported."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from mllmu_nb.data import official, portraits
from mllmu_nb.data.conversations import taught_turns
from mllmu_nb.data.generate import generate
from mllmu_nb.data.schema import LETTERS, QA, VIEWS, Population, Profile, Question
from mllmu_nb.errors import KitError

NAMES = "Tilda Quist|Kofi Falk|Nora Holm|Igor Weller|Vera Sorel|Hugo Kovac|Olga Brandt|Emil Thorne".split("|")
TOWNS = "Turku|Oulu|Pori|Kotka|Vaasa|Lahti|Rauma|Hanko".split("|")
JOBS = "judge|baker|miner|tailor|nurse|pilot|weaver|cook".split("|")


def picture(shade: int, form: str = "PNG") -> bytes:
    """Return a picture of four pixels in one grey."""
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (shade, shade, shade)).save(file, form)
    return file.getvalue()


def profile(index: int, kind: str = "fictitious") -> Profile:
    """Return one of eight people, with a question of every task, both views, and two test portraits."""
    identity = f"{'c' if kind == 'celebrity' else ''}{index + 1:03d}"
    name, town, job, height = NAMES[index], TOWNS[index], JOBS[index], f"{160 + index} cm"
    qa = (
        QA("What is this person's name?", f"This person's name is {name}.", "name", name),
        QA("Where was this person born?", f'This person was born in {town}, "by the sea".', "birthplace", f"{town}"),
        QA("What does this person do?", f"This person is a {job}.", "profession", job),
        QA("How tall is this person?", f"This person is {height} tall – così.", "height", height),
    )
    qa = (qa[0], replace(qa[1], answer=f"This person was born in {town}."), *qa[2:])
    questions = []
    for view in VIEWS:
        who = "this person" if view == "image_text" else name
        options = tuple(TOWNS[(index + shift) % 8] for shift in (1, 0, 2, 3))
        text = f"Where was {who} born?"
        questions.append(Question(identity, "classification", view, 0, text, "B", town, "birthplace", options))
        answer = f"{who[0].upper() + who[1:]} is a {job}."
        questions.append(Question(identity, "generation", view, 0, f"What does {who} do?", answer, job, "profession"))
        cloze = f"The height of {who} is __."
        questions.append(Question(identity, "cloze", view, 0, cloze, height, height, "height"))
    questions.sort(key=lambda q: ("classification", "generation", "cloze").index(q.task))
    asked_again = tuple(replace(q, text=q.text.replace("born", "really born")) for q in questions)
    famous = kind == "celebrity"
    attributes = {"name": name, "birthplace": town, "profession": job, "height": height}
    return Profile(
        id=identity,
        name=name,
        kind=kind,
        attributes=attributes,
        portrait=picture(index),
        biography=f"{name} comes from {town}.\nA {job}.",
        qa=() if famous else qa,
        questions=tuple(questions),
        test_portraits=() if famous else (picture(index + 100), picture(index + 200, "JPEG")),
        test_questions=() if famous else asked_again,
    )


def a_few() -> Population:
    """Five scored people (one to be forgotten), two of the pool, and a celebrity whose number somebody else has too."""
    people = [profile(i) for i in range(5)] + [profile(5, "pool"), profile(6, "pool"), profile(7, "celebrity")]
    people[-1] = replace(
        people[-1], id="c001", questions=tuple(replace(q, profile="c001") for q in people[-1].questions)
    )
    return Population({p.id: p for p in people}, ("003",), {"ratio": 15})


@pytest.fixture
def few() -> Population:
    return a_few()


@pytest.fixture
def written(few, tmp_path) -> Path:
    official.write_layout(few, tmp_path / "MLLMU-Bench")
    return tmp_path / "MLLMU-Bench"


def faults(folder: Path, training: Path | str = "") -> list[str]:
    """Return all problems of a folder, one per line."""
    try:
        official.read_layout(folder, 15, training)
    except KitError as error:
        lines = str(error).split("\n  ")
        return lines[1:] or lines
    return []


def rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_a_few_people_come_back_the_same(few, written):
    back = official.read_layout(written, 15)
    assert list(back.profiles) == list(few.profiles) and back.forget_ids == ("003",)
    for identity, before in few.profiles.items():
        assert back.profiles[identity] == before
    assert back.notes["not_understood"] == []


def test_generated_people_come_back_the_same(tmp_path):
    before = generate(seed=0, people=20, pool=8, celebrities=8)
    official.write_layout(before, tmp_path / "bench")
    back = official.read_layout(tmp_path / "bench", 10)
    assert list(back.profiles) == list(before.profiles) and back.forget_ids == before.forget_ids
    for identity, person in before.profiles.items():
        read = back.profiles[identity]
        if person.kind == "celebrity":  # the layout has no Test set for celebrities, and no code asks for one
            assert read == replace(person, test_portraits=(), test_questions=())
        else:
            assert read == person
    again = official.write_layout(back, tmp_path / "again" / "bench")
    first = sorted((tmp_path / "bench").rglob("*.parquet"))
    assert [pq.read_table(p) for p in first] == [
        pq.read_table(p) for p in again if p.parts[-3] == "bench" and p.suffix != ".json"
    ]


def test_folders_and_rows_are_those_of_the_hub(written):
    assert official.configs_in(written) == sorted(
        ["Full_Set", "Test_Set", "Retain_Set", "ft_Data", "forget_15", "retain_85"]  # 5 and 10 % of five: nobody
    )
    shards = sorted(p.name for p in (written / "Test_Set").iterdir())
    assert shards == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    ids = {
        c: [r["ID"] for r in rows(written / c / "train-00000-of-00001.parquet")]
        for c in official.configs_in(written)
        if c != "Test_Set"
    }
    assert ids["Full_Set"] == ids["ft_Data"] == [f"{i:03d}" for i in range(1, 8)]
    assert ids["Retain_Set"] == ["008"]  # with "001" the released scripts would confuse the celebrity with Tilda Quist
    assert ids["forget_15"] == ["003"]
    assert ids["retain_85"] == ["001", "002", "004", "005"]
    training = written.parent / "baseline_train_split"
    taught = rows(training / "retain_85" / "train-00000-of-00001.parquet")
    assert [r["ID"] for r in taught] == ["001", "002", "004", "005", "006", "007"]
    assert set(taught[0]) == {"image", "ID", "metadata"}


def test_columns_have_the_published_types(written):
    schema = pq.read_schema(written / "Full_Set" / "train-00000-of-00001.parquet")
    texts = ["biography", "question", "answer"]
    tasks = ["Classification_Task", "Generation_Task", "Mask_Task"]
    assert schema.names == ["image", "ID", "Directory", *texts, *tasks]
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    row = rows(written / "Full_Set" / "train-00000-of-00001.parquet")[0]
    choice = row["Classification_Task"]["Pure_Text_Questions"][0]
    assert set(row["Classification_Task"]) == {"Image_Textual_Questions", "Pure_Text_Questions"}
    assert choice["Question"] == "Where was Tilda Quist born?" and choice["Correct_Answer"] == "B"
    assert choice["Options"] == dict(zip(LETTERS, ("Oulu", "Turku", "Pori", "Kotka"), strict=True))
    assert row["Mask_Task"][0] == {
        "Question": "The height of this person is __.", "Ground_Truth": "160 cm", "Type": "Image_Textual",
    }  # fmt: skip
    test = pq.read_schema(written / "Test_Set" / "train-00000-of-00002.parquet")
    assert "image" not in test.names and pa.types.is_list(test.field("images").type)
    metadata = rows(written / "ft_Data" / "train-00000-of-00001.parquet")[0]["metadata"]
    assert json.loads(metadata)[0] == {
        "Question": "What is this person's name?", "Answer": "This person's name is Tilda Quist.",
    }  # fmt: skip


def test_the_datasets_library_reads_what_is_written(few, written, tmp_path):
    import datasets

    def load(config):
        return datasets.Dataset.from_parquet(str(written / config / "*.parquet"), cache_dir=str(tmp_path / "cache"))

    full, test = load("Full_Set"), load("Test_Set")
    assert list(full["ID"]) == list(test["ID"]) == [f"{i:03d}" for i in range(1, 8)]
    assert full[0]["image"].getpixel((0, 0)) == (0, 0, 0) and test[1]["images"][0].getpixel((0, 0)) == (101,) * 3
    assert full[0]["Classification_Task"]["Pure_Text_Questions"][0]["Options"]["B"] == "Turku"
    assert json.loads(load("ft_Data")[0]["metadata"])[3]["Answer"] == few.profiles["001"].qa[3].answer


# ---------------------------------------------------------------------------------------------------------------
# What is wrong with a folder
# ---------------------------------------------------------------------------------------------------------------

FULL = "Full_Set/train-00000-of-00001.parquet"
TEXT = "ft_Data/train-00000-of-00001.parquet"
SECOND = "Test_Set/train-00001-of-00002.parquet"


def change(path: Path, alter, row: int = 2) -> None:
    """Apply ``alter`` to one row of a file."""
    table = pq.read_table(path)
    content = table.to_pylist()
    alter(content[row])
    pq.write_table(pa.Table.from_pylist(content, schema=table.schema), path)


def rewrite_rows(path: Path, alter) -> None:
    """Replace the rows of a file."""
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(alter(table.to_pylist()), schema=table.schema), path)


def choice(row: dict) -> dict:
    return row["Classification_Task"]["Pure_Text_Questions"][0]


IN_ROW = [  # file, change of its third row, then place and beginning of the one problem
    (FULL, lambda r: choice(r)["Options"].update(dict.fromkeys(LETTERS, "Oulu")),
     "Classification_Task.Pure_Text_Questions[0]: its options are all the same"),
    (FULL, lambda r: choice(r).update(Correct_Answer="Berlin"),
     "Classification_Task.Pure_Text_Questions[0]: Correct_Answer 'Berlin' is none of A, B, C, D"),
    (FULL, lambda r: choice(r)["Options"].update(C=None),
     "Classification_Task.Pure_Text_Questions[0].Options.C: is empty"),
    (FULL, lambda r: r["Classification_Task"].update(Image_Textual_Questions=[]),
     "Classification_Task.Image_Textual_Questions: is empty"),
    (FULL, lambda r: r.update(Generation_Task=[]), "Generation_Task: is empty"),
    (FULL, lambda r: r["Mask_Task"][1].update(Type="Text"),
     "Mask_Task[1]: Type 'Text' is none of Image_Textual, Pure_Text"),
    (FULL, lambda r: r["Mask_Task"][1].update(Ground_Truth=" "), "Mask_Task[1].Ground_Truth: is empty"),
    (FULL, lambda r: r.update(image=None), "image: is empty"),
    (FULL, lambda r: r["image"].update(bytes=picture(9)[:40]), "image.bytes: the picture cannot be decoded ("),
    (FULL, lambda r: r["image"].update(bytes=bomb()), "image.bytes: the picture cannot be decoded ("),
    (TEXT, lambda r: r.update(metadata="[]"), "metadata: `metadata` holds no questions: "),
    (TEXT, lambda r: r.update(metadata="name: Nora"), "metadata: `metadata` is not JSON ("),
    (TEXT, lambda r: r.update(metadata=json.dumps([{"Question": "Who?", "Answer": "Ada \ud800"}])),  # half a character
     "metadata: entry 1 of `metadata` lacks Question or Answer as text: repair it"),
    (TEXT, lambda r: r.update(metadata=json.dumps([{"Question": "\udc80?", "Answer": "Ada"}])),
     "metadata: entry 1 of `metadata` lacks Question or Answer as text: repair it"),
]  # fmt: skip


@pytest.mark.parametrize("file, alter, text", IN_ROW)
def test_a_fault_in_a_row_is_reported_with_its_place(written, file, alter, text):
    change(written / file, alter)
    [problem] = faults(written)
    assert problem.startswith(f"MLLMU-Bench/{file}, row 2 (ID 003), column {text}")


def test_pictures_are_read_a_few_rows_at_a_time_and_rows_keep_their_number(few, written, monkeypatch):
    sizes, read = [], official.pq.ParquetFile.iter_batches

    def noted(file, *asked, **named):
        for batch in read(file, *asked, **named):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(official, "BATCH", 2)
    monkeypatch.setattr(official.pq.ParquetFile, "iter_batches", noted)
    change(written / FULL, lambda r: r.update(Generation_Task=[]), row=4)
    assert faults(written) == [f"MLLMU-Bench/{FULL}, row 4 (ID 005), column Generation_Task: is empty"]
    assert max(sizes) == 2 and sum(sizes) > len(few.profiles)


def test_what_published_data_may_have_is_read(few, written):
    change(written / FULL, lambda r: choice(r)["Options"].update(C="Oulu", D="Oulu"))
    change(written / FULL, lambda r: r["Mask_Task"][1].update(Question="The height?"))
    tasks = pq.read_table(written / FULL)["Classification_Task"].to_pylist()
    for entry in (entry for task in tasks for entries in task.values() for entry in entries):
        entry["Options"]["E"] = None  # happens if another question of the file has five options
    rewrite(written / FULL, Classification_Task=pa.array(tasks))
    rewrite(written / FULL, answer=None, age=pa.array(range(7)))  # columns that only other readers use
    ids = pq.read_table(written / FULL)["ID"].cast(pa.large_string())
    biographies = pq.read_table(written / FULL)["biography"].combine_chunks().dictionary_encode()
    rewrite(written / FULL, ID=ids, biography=biographies)  # other representations of a type
    assert list(official.read_layout(written, 15).profiles) == list(few.profiles)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [(" b", "B"), ("B: Oulu", "B"), ("D. x\ny", "D"), ("C)", "C"), ("C ", "C"), ("Berlin", ""), ("A nurse", ""),
     ("a teacher", ""), ("C-section", "")],
)  # fmt: skip
def test_the_text_of_an_option_is_no_letter(answer, letter):
    assert official.answer_letter(answer) == letter


def bomb() -> bytes:
    """Return a PNG header that claims ten thousand million pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def test_a_small_file_with_a_huge_picture_is_refused_before_it_is_decoded():
    Image.new("1", (8000, 8000)).save(file := io.BytesIO(), "PNG")
    assert len(file.getvalue()) < 20_000
    with pytest.raises(KitError, match=r"cannot be decoded \(DecompressionBombError, \d+ bytes\): replace it"):
        portraits.from_bytes(file.getvalue())


def test_a_portraits_hash_is_that_of_its_pixels_not_of_its_encoding():
    image = portraits.from_bytes(picture(7))
    files = [io.BytesIO() for _ in range(3)]
    image.save(files[0], "PNG", compress_level=0)
    image.save(files[1], "BMP")
    image.convert("L").save(files[2], "PNG")
    assert {portraits.pixel_hash(file.getvalue()) for file in files} == {portraits.pixel_hash(picture(7))}
    pixels = b"(2, 2)" + bytes([7] * 12)
    assert portraits.pixel_hash(picture(7)) == hashlib.sha256(pixels).hexdigest()
    wide = io.BytesIO()
    image.resize((4, 1)).save(wide, "PNG")  # the same bytes in another shape
    assert portraits.pixel_hash(wide.getvalue()) != portraits.pixel_hash(picture(7)) != portraits.pixel_hash(picture(8))


def rewrite(path: Path, **columns) -> None:
    """Set a file's columns to other values, add columns, or drop those that are None."""
    table = pq.read_table(path)
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        if values is not None:
            table = table.append_column(name, values)
    pq.write_table(table, path)


def test_columns_that_are_missing_or_of_another_type_are_reported(written):
    entry = {"Type": "Pure_Text", "Question": "q __", "Ground_Truth": 1}
    rewrite(written / FULL, Mask_Task=pa.array([[entry]] * 7))
    assert len(problems := faults(written)) == 7
    assert problems[0].endswith("row 0 (ID 001), column Mask_Task[0].Ground_Truth: is int, not string")
    rewrite(written / FULL, biography=None, ID=None)
    [problem] = faults(written)
    assert problem.startswith(f"MLLMU-Bench/{FULL}, column ID, biography: missing (it has image, Directory, question")


def test_what_a_question_that_is_not_understood_asks_for_is_unknown(written):
    """The answer is a whole sentence: if that were the fact, no other wording would ever be exact or factual."""

    def ask(row):
        row["Generation_Task"][0].update(Question="What is remarkable?", Ground_Truth="Many people know the face.")

    change(written / FULL, ask)
    [remarkable] = [q for q in official.read_layout(written, 15).profiles["003"].questions if "remark" in q.text]
    assert (remarkable.answer, remarkable.attribute, remarkable.value) == ("Many people know the face.", "", "")


@pytest.mark.parametrize(
    ("truth", "value"),
    [
        ("Nora Holm teaches children music.", ""),  # the question is understood, but not the answer's fact
        ("Nora Holm never worked", ""),
        ("Nora Holm teaches the town’s children.", ""),
        ("Holm teaches children music", ""),
        ("He teaches children music", ""),
        ("She enjoys long walks by the sea", ""),
        ("Works as a juggler.", "juggler"),
        ("Juggler", "Juggler"),
    ],
)
def test_a_sentence_of_which_no_rule_reads_a_part_is_no_fact(written, truth, value):
    change(written / FULL, lambda row: row["Generation_Task"][1].update(Ground_Truth=truth))
    questions = official.read_layout(written, 15).profiles["003"].questions
    [asked] = [q for q in questions if (q.task, q.view) == ("generation", "text")]
    assert (asked.attribute, asked.answer, asked.value) == ("profession", truth, value)


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("Nora Holm", "father_name", "Ole Holm"),
        ("Nora Holm", "parents_name", "Nora and Ole Holm"),
        ("Santiago Ruiz", "birthplace", "Santiago de Chile"),
        ("Victoria Lund", "residence", "Victoria, Canada"),
        ("May Lund", "birth_date", "May 14, 1988"),
        ("", "profession", "Juggler"),
    ],
)
def test_a_fact_that_shares_a_word_with_the_name_stays_one(name, attribute, value):
    assert official._value(attribute, value, {"name": name}) == value


def test_a_celebrity_whose_printed_id_is_also_a_persons_is_noted(few, written):
    assert "shared_ids" not in official.read_layout(written, 15).notes
    change(written / "Retain_Set/train-00000-of-00001.parquet", lambda row: row.update(ID="002"), row=0)
    assert official.read_layout(written, 15).notes["shared_ids"] == {"c002": "002"}


def test_a_fact_that_an_answer_leaves_open_is_no_attribute_of_a_celebrity(written):
    def ask(row):
        for entry in row["Generation_Task"]:
            entry["Ground_Truth"] = "There is no information on this."

    change(written / "Retain_Set/train-00000-of-00001.parquet", ask, row=0)
    celebrity = official.read_layout(written, 15).profiles["c001"]
    assert {q.value for q in celebrity.questions if q.task == "generation"} == {""}
    assert set(celebrity.attributes) == {"name", "birthplace", "height"}


def test_ids_that_are_lists_are_among_the_faults(written):
    rewrite(written / TEXT, ID=pa.array([[one] for one in pq.read_table(written / TEXT)["ID"].to_pylist()]))
    assert any(f"{TEXT}, row 0 (ID [" in fault and "column ID: " in fault for fault in faults(written))


def test_ids_that_come_twice_or_in_both_splits_or_nowhere_are_reported(written):
    change(written / "retain_85/train-00000-of-00001.parquet", lambda r: r.update(ID="003"))
    change(written / TEXT, lambda r: r.update(ID="099"), row=0)
    assert faults(written) == [
        f"MLLMU-Bench has people without a row in ft_Data (001): {official.REPAIR}",
        f"MLLMU-Bench has people in both forget_15 and retain_85 (003): {official.REPAIR}",
        f"MLLMU-Bench lacks people in forget_15 and retain_85 (004): {official.REPAIR}",
    ]
    change(written / "forget_15/train-00000-of-00001.parquet", lambda r: r.update(ID="006"), row=0)
    assert "MLLMU-Bench has people of forget_15 or retain_85 whom Full_Set does not score (006)" in faults(written)[1]
    change(written / FULL, lambda r: r.update(ID="002"))
    assert faults(written) == [f"MLLMU-Bench/{FULL}, row 2 (ID 002), column ID: is the ID of another row too"]


def test_a_celebrity_who_would_have_a_persons_id_is_refused(written):
    people = {"pool": ["006", "007"], "celebrities": {"008": {"ID": "003", "metadata": []}}}
    (written / "people.json").write_text(json.dumps(people))
    assert faults(written) == ["MLLMU-Bench/Retain_Set: ID 008 would get the id 003, which another person has"]


HALF = [{"Question": "Who?", "Answer": "Ada \ud800"}]  # half a character, which no file can hold
CELEBRITIES = [{"ID": "c008", "metadata": HALF}, {"ID": "\udc80", "metadata": []}, 1]


@pytest.mark.parametrize(
    "text",
    [
        "[1",
        "[]",
        '{"pool": 3, "celebrities": {}}',
        '{"pool": "001", "celebrities": {}}',
        '{"pool": [6], "celebrities": {}}',
    ]
    + [json.dumps({"pool": [], "celebrities": {"008": entry}}) for entry in CELEBRITIES],
)
def test_a_people_file_that_cannot_be_read_is_one_line(written, text):
    (written / "people.json").write_text(text)
    with pytest.raises(KitError, match="MLLMU-Bench/people.json: is no JSON object with pool, a list of ids as text"):
        official.read_layout(written, 15)


def test_a_pool_has_only_people_of_the_full_set(written):
    content = json.loads((written / "people.json").read_text())
    (written / "people.json").write_text(json.dumps(content | {"pool": [*content["pool"], "900"]}))
    [line] = faults(written)
    assert line.startswith("MLLMU-Bench has people in the pool of people.json without a row in Full_Set (900): repair")


def test_people_of_no_name_and_without_a_row_are_counted(written):
    def unnamed(row):
        row["metadata"] = json.dumps(json.loads(row["metadata"])[1:])

    def renamed(row):
        for entry in (e for kind in ("Generation_Task", "Mask_Task") for e in row[kind]):
            entry["Question"] = entry["Question"].replace(NAMES[0], "Madonna")
        for entry in row["Classification_Task"]["Pure_Text_Questions"]:
            entry["Question"] = entry["Question"].replace(NAMES[0], "Madonna")

    change(written / TEXT, unnamed, row=0)
    change(written / FULL, renamed, row=0)
    rewrite_rows(written / TEXT, lambda rows: [*rows, {**rows[0], "ID": "900"}])
    read = official.read_layout(written, 15)
    assert read.notes["without_name"] == ["001"] and read.notes["without_row"] == ["900"]
    more = "people whose name could not be read: 1, people without a row in Full_Set, left out: 1"
    assert read.counted().endswith(more) and "900" not in read.profiles
    assert not list(taught_turns(read.profiles["001"], "unimodal"))
    assert list(taught_turns(read.profiles["001"], "multimodal"))


def test_people_with_gaps_are_not_written(few, tmp_path):
    short = replace(few.profiles["002"], questions=tuple(q for q in few.profiles["002"].questions if q.task != "cloze"))
    with pytest.raises(KitError, match="Full_Set would have gaps .002: Mask_Task: is empty.: state more facts"):
        official.write_layout(replace(few, profiles={**few.profiles, "002": short}), tmp_path / "bench")
    assert not list(tmp_path.iterdir())


def test_a_killed_export_is_no_obstacle(few, tmp_path):
    for left in ("bench~new", "baseline_train_split~new"):
        (tmp_path / left / "Full_Set").mkdir(parents=True)
    official.write_layout(few, tmp_path / "bench")
    assert {folder.name for folder in tmp_path.iterdir()} == {"bench", "baseline_train_split"}
    assert official.read_layout(tmp_path / "bench", 15).counted() == few.counted()


def test_people_of_one_name_are_noted(written):
    change(written / TEXT, lambda row: row.update(metadata=row["metadata"].replace(NAMES[0], NAMES[2])), row=0)
    read = official.read_layout(written, 15)
    assert read.notes["shared_names"] == [NAMES[2]]
    assert read.counted() == "5 fictitious, 2 pool, 1 celebrity, names that several people share: 1"


def test_where_most_people_have_one_name_the_folder_is_refused(written):
    def rename(count):
        for row in range(count):
            change(written / TEXT, lambda r, i=row: r.update(metadata=r["metadata"].replace(NAMES[i], "Ada Lund")), row)

    rename(3)  # of seven
    assert faults(written) == []
    rename(4)
    line = "MLLMU-Bench: most people share a name (Ada Lund), by which the text view asks: rename them"
    assert faults(written) == [line]


def test_a_cloze_without_a_blank_is_counted(few, written):
    assert official.read_layout(written, 15).notes["without_blank"] == 0
    for file in (FULL, SECOND):
        change(written / file, lambda row: row["Mask_Task"][0].update(Question="How tall is this person?"))
    read = official.read_layout(written, 15)
    assert read.notes["without_blank"] == 2
    assert read.counted() == f"{few.counted()}, cloze questions without a blank: 2"


def test_questions_with_equal_options_are_counted(few, written):
    """If two or three of the four are equal, the question can still be asked; spaces around make no difference."""
    assert official.read_layout(written, 15).notes["same_options"] == 0
    for file, same in ((FULL, "BC"), (SECOND, "ACD")):
        change(written / file, lambda row, same=same: choice(row)["Options"].update(dict.fromkeys(same, "Oulu")))
    change(written / FULL, lambda row: choice(row)["Options"].update(B="Oulu", C="Oulu "), row=0)
    read = official.read_layout(written, 15)
    assert read.notes["same_options"] == 3
    assert read.counted() == f"{few.counted()}, multiple-choice questions with equal options: 3"


def test_everything_that_is_wrong_is_in_one_report(written):
    change(written / FULL, lambda r: choice(r).update(Correct_Answer="E"), row=0)
    change(written / FULL, lambda r: r["image"].update(bytes=b"no picture"), row=4)
    change(written / SECOND, lambda r: r["images"][1].update(bytes=b"no picture"))
    (written / "Test_Set/train-00000-of-00002.parquet").write_bytes(b"PAR1 cut off")
    change(written / TEXT, lambda r: r.update(metadata="{}"))
    with pytest.raises(KitError) as error:
        official.read_layout(written, 15)
    first, *lines = str(error.value).split("\n")
    assert first == "MLLMU-Bench has 5 problems:"
    assert [line.split(":")[0].strip() for line in lines] == [
        f"MLLMU-Bench/{FULL}, row 0 (ID 001), column Classification_Task.Pure_Text_Questions[0]",
        f"MLLMU-Bench/{FULL}, row 4 (ID 005), column image.bytes",
        "MLLMU-Bench/Test_Set/train-00000-of-00002.parquet",
        f"MLLMU-Bench/{SECOND}, row 2 (ID 006), column images[1].bytes",
        f"MLLMU-Bench/{TEXT}, row 2 (ID 003), column metadata",
    ]


def test_portraits_of_training_data_are_held_against_those_of_the_evaluation(written):
    """By their pixels: another encoding of the same picture is the same picture."""
    training = written.parent / "baseline_train_split"
    assert official.read_layout(written, 15, training).notes["shown_otherwise"] == []

    def encoded(picture: bytes, negative: bool) -> bytes:
        image, file = Image.open(io.BytesIO(picture)).convert("RGB"), io.BytesIO()
        (ImageOps.invert(image) if negative else image).save(file, "PNG", compress_level=0)
        return file.getvalue()

    for row, other in ((1, False), (2, True)):
        change(written / TEXT, lambda r, o=other: r["image"].update(bytes=encoded(r["image"]["bytes"], o)), row)
    assert official.read_layout(written, 15).notes["shown_otherwise"] == ["003"]
    file = training / "retain_85/train-00000-of-00001.parquet"
    change(file, lambda r: r["image"].update(bytes=encoded(r["image"]["bytes"], True)))
    known = official.read_layout(written, 15, training)
    assert known.notes["shown_otherwise"] == ["003", "004"]
    assert known.counted().endswith("people with another portrait in training data: 2")


def test_training_splits_are_held_against_the_evaluation_data(written):
    training = written.parent / "baseline_train_split"
    assert official.read_layout(written, 15, training).notes["taught_otherwise"] == []
    file = training / "retain_85/train-00000-of-00001.parquet"
    pairs = json.dumps([{"Question": "What is this person's name?", "Answer": "This person's name is Nora Holm."}])
    change(file, lambda r: r.update(metadata=pairs))
    assert official.read_layout(written, 15, training).notes["taught_otherwise"] == ["004"]
    assert "people with another text in a training split: 1" in official.read_layout(written, 15, training).counted()
    change(file, lambda r: r.update(ID="003"))
    change(training / "forget_15/train-00000-of-00001.parquet", lambda r: r.update(ID="001"), row=0)
    assert faults(written, training) == [
        f"MLLMU-Bench has other people in forget_15 than baseline_train_split (001, 003): {official.REPAIR}",
        f"MLLMU-Bench has other people in retain_85 than baseline_train_split (003, 004): {official.REPAIR}",
    ]


# ---------------------------------------------------------------------------------------------------------------
# The wrong repository, a half download, a folder in use
# ---------------------------------------------------------------------------------------------------------------


def test_the_two_repositories_are_not_taken_for_each_other(written):
    problems = faults(written, written)
    assert len(problems) == 2
    assert all("metadata: missing (" in p and "training needs ft_Data of the data set" in p for p in problems)
    match = r"no config Full_Set \(it has forget_15, .*evaluation needs the data set MLLMMU/MLLMU-B"
    with pytest.raises(KitError, match=match):
        official.read_layout(written.parent / "baseline_train_split", 15)


def test_a_half_download_is_reported(written):
    (written / SECOND).write_bytes(b"PAR1 cut off")
    with pytest.raises(KitError, match=r"train-00001-of-00002\.parquet: is no readable parquet file"):
        official.read_layout(written, 15)
    (written / SECOND).unlink()
    with pytest.raises(KitError, match=r"^MLLMU-Bench/Test_Set: has 1 of 2 files: download it again"):
        official.read_layout(written, 15)


def test_text_that_is_no_utf_8_is_reported(written):
    invalid = pa.array([b"\xff\xfe"] * 7, pa.binary()).buffers()
    rewrite(written / FULL, biography=pa.Array.from_buffers(pa.string(), 7, invalid))
    with pytest.raises(KitError, match=r"^MLLMU-Bench/Full_Set/.*: is no readable parquet file \('utf-8' codec can't"):
        official.read_layout(written, 15)


def test_a_missing_ratio_or_folder_is_reported(written, tmp_path):
    with pytest.raises(KitError, match=r"no config forget_5 \(it has .*forget_15"):
        official.read_layout(written, 5)
    with pytest.raises(KitError, match=r"nowhere is no folder: evaluation needs the data set"):
        official.read_layout(tmp_path / "nowhere", 5)
    for config in ("Full_Set", "Retain_Set"):
        next((written / config).iterdir()).rename(written / config / "people.parquet")
    problems = faults(written)
    assert len(problems) == 2
    assert all(f"MLLMU-Bench: {c} has no file train-*.parquet" in "".join(problems) for c in ("Full_Set", "Retain_Set"))


def test_nothing_is_written_over(few, written):
    before = sorted(written.parent.rglob("*"))
    with pytest.raises(KitError, match="MLLMU-Bench is already there: remove it or choose another folder"):
        official.write_layout(few, written)
    assert sorted(written.parent.rglob("*")) == before


def test_people_do_not_go_where_the_training_splits_go(few, tmp_path):
    with pytest.raises(KitError, match="baseline_train_split is where the training splits are written: choose another"):
        official.write_layout(few, tmp_path / "baseline_train_split")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_one_line(few, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(KitError, match="cannot be written"):
        official.write_layout(few, tmp_path / "file" / "bench")
