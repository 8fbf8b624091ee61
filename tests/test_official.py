"""What is written in the published layout comes back the same; the wrong repository is told from the right one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mllmu_nb.data import official
from mllmu_nb.data.generate import generate
from mllmu_nb.data.schema import LETTERS, QA, VIEWS, Population, Profile, Question
from mllmu_nb.errors import KitError

NAMES = "Tilda Quist|Kofi Falk|Nora Holm|Igor Weller|Vera Sorel|Hugo Kovac|Olga Brandt|Emil Thorne".split("|")
TOWNS = "Turku|Oulu|Pori|Kotka|Vaasa|Lahti|Rauma|Hanko".split("|")
JOBS = "judge|baker|miner|tailor|nurse|pilot|weaver|cook".split("|")


def profile(index: int, kind: str = "fictitious") -> Profile:
    """One of eight people with a question of every task, both views, and two test portraits."""
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
        portrait=f"portrait of {name}".encode() + bytes(range(256)),
        biography=f"{name} comes from {town}.\nA {job}.",
        qa=() if famous else qa,
        questions=tuple(questions),
        test_portraits=() if famous else (b"\x89PNG first", b"\xff\xd8 a JPEG"),
        test_questions=() if famous else asked_again,
    )


@pytest.fixture
def few() -> Population:
    """Five scored people, one of them to be forgotten, two of the pool and a celebrity whose number is also taken."""
    people = [profile(i) for i in range(5)] + [profile(5, "pool"), profile(6, "pool"), profile(7, "celebrity")]
    people[-1] = replace(
        people[-1], id="c001", questions=tuple(replace(q, profile="c001") for q in people[-1].questions)
    )
    return Population({p.id: p for p in people}, ("003",), {"ratio": 15})


@pytest.fixture
def written(few, tmp_path) -> Path:
    official.write_layout(few, tmp_path / "MLLMU-Bench")
    return tmp_path / "MLLMU-Bench"


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
        found = back.profiles[identity]
        if person.kind == "celebrity":  # the layout has neither their fine-tuning text nor a Test set
            assert (found.name, found.portrait, found.biography) == (person.name, person.portrait, person.biography)
            assert found.questions == person.questions and found.qa == ()
        else:
            assert found == person
    again = official.write_layout(back, tmp_path / "again" / "bench")
    first = sorted((tmp_path / "bench").rglob("*.parquet"))
    assert [pq.read_table(p) for p in first] == [
        pq.read_table(p) for p in again if p.parts[-3] == "bench" and p.suffix != ".json"
    ]


def test_folders_and_rows_are_those_of_the_hub(written):
    assert official.configs_in(written) == sorted(
        ["Full_Set", "Test_Set", "Retain_Set", "ft_Data", "forget_15", "retain_85"]  # 5 and 10 % of five are nobody
    )
    shards = sorted(p.name for p in (written / "Test_Set").iterdir())
    assert shards == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    ids = {
        c: [r["ID"] for r in rows(written / c / "train-00000-of-00001.parquet")]
        for c in official.configs_in(written)
        if c != "Test_Set"
    }
    assert ids["Full_Set"] == ids["ft_Data"] == [f"{i:03d}" for i in range(1, 8)]
    assert ids["Retain_Set"] == ["001"] and ids["forget_15"] == ["003"]
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


def test_the_datasets_library_sees_images(tmp_path):
    datasets = pytest.importorskip("datasets", reason="an extra check, only where the datasets library is installed")
    before = generate(seed=0, people=20, pool=0, celebrities=0)
    official.write_layout(before, tmp_path / "bench")
    found = datasets.Dataset.from_parquet(
        str(tmp_path / "bench" / "Full_Set" / "*.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert found[0]["image"].size == (64, 64)
    assert found[0]["Classification_Task"]["Pure_Text_Questions"][0]["Options"].keys() == set(LETTERS)


def test_unlike_things_under_a_letter_are_refused(few, tmp_path):
    wrong = replace(few.profiles["001"].questions[0], answer="E")
    people = few.profiles | {"001": replace(few.profiles["001"], questions=(wrong,))}
    official.write_layout(replace(few, profiles=people), tmp_path / "bench")
    with pytest.raises(KitError, match="ID 001: Correct_Answer 'E' is none of A, B, C, D"):
        official.read_layout(tmp_path / "bench", 15)


# ---------------------------------------------------------------------------------------------------------------
# The wrong repository, a half download, a folder in use
# ---------------------------------------------------------------------------------------------------------------


def test_the_training_repository_is_not_taken_for_the_evaluation_one(written):
    with pytest.raises(
        KitError, match=r"no config Full_Set \(it has forget_15, .*evaluation needs the data set MLLMMU/MLLMU-B"
    ):
        official.read_layout(written.parent / "baseline_train_split", 15)


def test_evaluation_data_is_not_taken_for_training_data(written):
    with pytest.raises(KitError, match=r"no column metadata .*training needs ft_Data of .*MLLMMU/baseline_train_split"):
        official.read_training(written, "forget_15")
    assert list(official.read_training(written.parent / "baseline_train_split", "forget_15")) == ["003"]


def test_training_rows_under_an_evaluation_name_are_told(written):
    good = written / "Full_Set" / "train-00000-of-00001.parquet"
    good.write_bytes((written / "ft_Data" / "train-00000-of-00001.parquet").read_bytes())
    with pytest.raises(KitError, match=r"Full_Set.* has no column biography, .* \(it has image, ID, metadata\)"):
        official.read_layout(written, 15)


def test_a_half_download_is_told(written):
    (written / "Test_Set" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(KitError, match=r"Test_Set lacks train-00001-of-00002\.parquet: download Test_Set again"):
        official.read_layout(written, 15)
    (written / "Test_Set" / "train-00001-of-00002.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(KitError, match=r"train-00001-of-00002\.parquet is no readable parquet file"):
        official.read_layout(written, 15)


def test_a_missing_ratio_or_folder_is_told(written, tmp_path):
    with pytest.raises(KitError, match=r"no config forget_5 \(it has .*forget_15"):
        official.read_layout(written, 5)
    with pytest.raises(KitError, match=r"nowhere has no config Full_Set \(it has nothing: it does not exist\)"):
        official.read_layout(tmp_path / "nowhere", 5)


def test_nothing_is_written_over(few, written):
    before = sorted(written.parent.rglob("*"))
    with pytest.raises(KitError, match="MLLMU-Bench is already there: remove it or choose another folder"):
        official.write_layout(few, written)
    assert sorted(written.parent.rglob("*")) == before


def test_an_unwritable_folder_leaves_nothing_behind(few, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(KitError, match="cannot be written"):
        official.write_layout(few, tmp_path / "file" / "bench")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
