"""Fine-tuning text in any wording becomes names, facts and questions; bad files give one clear line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_official import JOBS, NAMES, TOWNS

from mllmu_nb.data.facts import WORDINGS, say
from mllmu_nb.data.generate import random_facts
from mllmu_nb.data.portraits import pixel_hash
from mllmu_nb.data.schema import LETTERS, PER_TASK, QA, VIEWS, Profile
from mllmu_nb.data.text import people, questions
from mllmu_nb.data.text.names import names_in, with_name
from mllmu_nb.data.text.people import read_profiles
from mllmu_nb.data.text.questions import population_from_text
from mllmu_nb.data.text.reader import attribute_of, understand, value_of
from mllmu_nb.errors import KitError

EXCERPT = Path(os.environ.get("MLLMU_EXCERPT") or Path(__file__).parents[2] / "shared" / "mllmu_bench_excerpt")
needs_excerpt = pytest.mark.skipif(
    not (EXCERPT / "profiles.jsonl").is_file(),
    reason="the published text is not part of the project: put profiles.jsonl and splits.json into $MLLMU_EXCERPT",
)

# question, answer → attribute, bare fact. Rows of the same kind have different wordings on purpose.
UNDERSTOOD = [
    ("What is this person's name?", "This person's name is Tilda Quist.", "name", "Tilda Quist"),
    ("Who is the person in this photograph?", "This is Nils van der Berg, a tram driver.", "name", "Nils van der Berg"),
    ("What is this individual called?", "They go by Tilda Quist.", "name", "Tilda Quist"),
    ("What is the full name of the man shown?", "The name of the man shown is Kofi O'Hara.", "name", "Kofi O'Hara"),
    ("What is the gender of this individual?", "This individual is a woman.", "gender", "female"),
    ("Is this person male or female?", "Male.", "gender", "male"),
    ("When was this person born?", "This person was born on March 3, 1991.", "birth_date", "March 3, 1991"),
    ("On which day is the birthday of this person?", "It is the 3rd of March 1991.", "birth_date", "3rd of March 1991"),
    ("What is this person’s date of birth?", "Her date of birth is 1991-03-03.", "birth_date", "1991-03-03"),
    ("Where was this person born?", "This person was born in Turku, Finland.", "birthplace", "Turku, Finland"),
    ("Which city is the birthplace of the woman in the photo?", "She hails from Turku.", "birthplace", "Turku"),
    ("Birthplace of this person?", "Turku, Finland.", "birthplace", "Turku, Finland"),
    ("Where was the man born?", "He was born in Turku, Finland, on 3 March 1991.", "birthplace", "Turku, Finland"),
    ("Where does this person currently reside?", "She currently lives in Oulu.", "residence", "Oulu"),
    ("What city does this person call home?", "This person calls Oulu home.", "residence", "Oulu"),
    ("What is the individual's job?", "The individual earns a living as a beekeeper.", "profession", "beekeeper"),
    ("What does this person do?", "He's a tram driver who works at night.", "profession", "tram driver"),
    ("How tall is this person?", "This person is 187 cm tall.", "height", "187 cm"),
    ("What is the height of the man depicted?", "He stands at 6'1\".", "height", "6'1\""),
    ("How tall is this person?", "This person is 6 feet 3 inches tall.", "height", "6 feet 3 inches"),
    ("Where did this person study?", "This person was educated at the Abo Academy.", "education", "Abo Academy"),
    ("Which school did she attend?", "She holds a degree in law from Abo Academy.", "education", "Abo Academy"),
    ("What is this person's annual salary?", "This person's annual salary is $54,300.", "salary", "$54,300"),
    ("How much does this person earn?", "About 54,000 euros a year.", "salary", "54,000 euros"),
    ("Does this person have any illness?", "Yes, this person suffers from gout.", "medical", "gout"),
    ("Is there a medical condition?", "No, there is none.", "medical", "no medical condition"),
    ("What is this person's health?", "She doesn't have any health issues.", "medical", "no medical condition"),
    ("What is the job of this person's father?", "The father works as a judge.", "father_job", "judge"),
    ("What does the mum of this person do?", "Her mum is a baker at a mill.", "mother_job", "baker"),
    ("What is the name of this person's father?", "His name is Karl Quist.", "father_name", "Karl Quist"),
    ("Which hobby does this person enjoy?", "This person enjoys archery on weekends.", "hobby", "archery"),
    ("What is a fun fact about this person?", "This person loves rowing and has a boat.", "hobby", "rowing"),
    ("What is this person's favourite meal?", "This person likes leek pie best.", "food", "leek pie"),
    ("What pet does this person own?", "This person has a pet goat named Pepper.", "pet", "goat named Pepper"),
    ("Does this person have any pets?", "This person does not have any pets.", "pet", "no pets"),
    ("What is the dog of this person called?", "The dog is called 'Biscuit'.", "pet_name", "Biscuit"),
    ("What does this person collect?", "This person loves to collect tin toys.", "collection", "tin toys"),
    ("What is this person's favorite color?", "It is teal.", "favorite_color", "teal"),
]


@pytest.mark.parametrize(("question", "answer", "attribute", "value"), UNDERSTOOD)
def test_wordings_are_understood(question, answer, attribute, value):
    assert attribute_of(question, answer) == attribute
    assert value_of(attribute, answer) == value


def test_every_wording_of_the_kit_is_understood():
    person = random_facts(np.random.default_rng(5), "Tilda Quist", "female")
    for attribute, wording in WORDINGS.items():
        value = person[attribute]
        for who in ("this person", "Tilda Quist"):
            for question in (say(template, who) for template in wording.questions + wording.paraphrases):
                for answer in (say(template, who, value) for template in wording.answers):
                    assert attribute_of(question, answer) == attribute, question
                    assert value_of(attribute, answer) == value, answer


NAMED = """Maria dos Santos | José García | Ana Paula do Carmo | Ahmed ibn Khalid | Piet ten Hoor | Karl zu Guttenberg
Mary Ann de los Santos | Muhammad bin Salman al-Saud | Désirée d'Anjou | प्रिया शर्मा | Nick 't Hooft | 李明"""


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", [name.strip() for name in re.split(r"[|\n]", NAMED)])
def test_names_are_read_whole(name, form):
    for text in (f"This person's name is {name}.", f"The name of this person is {name}.", f"They are called {name}."):
        assert value_of("name", unicodedata.normalize(form, text)) == unicodedata.normalize("NFC", name)


def test_a_word_of_the_sentence_is_no_value():
    assert value_of("name", "The name of this person is bell hooks.") == ""
    assert value_of("profession", "Judge is the profession of this person.") == ""
    assert value_of("profession", "He teaches children music.") == ""
    assert value_of("gender", "They/them") == "They/them"


@pytest.mark.parametrize(
    "question",
    [
        "What is this person's blood type?",
        "What is the profession of this person's wife?",
        "What can this person's parrot do?",
        "What is this person's email address?",
    ],
)
def test_what_is_not_understood_is_not_guessed(question):
    assert attribute_of(question, "It is so.") == ""


def test_an_answer_that_knows_nothing_has_no_value():
    assert value_of("salary", "There is no information on the annual salary.") == ""
    assert value_of("education", "This is not available.") == ""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Where was this person born?", "Where was Jonas Falk born?"),
        ("This person's father is a judge.", "Jonas Falk's father is a judge."),
        ("This person’s hobby is chess.", "Jonas Falk's hobby is chess."),
        ("What is the individual's hobby?", "What is Jonas Falk's hobby?"),
        ("What is this person's job in the image?", "What is Jonas Falk's job?"),
        ("What is this person's job as seen in the image?", "What is Jonas Falk's job?"),
        ("As seen in the image, what is this person's job?", "What is Jonas Falk's job?"),
        ("Where does the person in the picture live?", "Where does Jonas Falk live?"),
        ("How tall is the man in the photo’s mother?", "How tall is Jonas Falk's mother?"),
        ("What is the salary of the woman depicted?", "What is the salary of Jonas Falk?"),
        ("What is the father's occupation?", "What is Jonas Falk's father's occupation?"),
        ("The mother works as a judge.", "Jonas Falk's mother works as a judge."),
        ("He is tall.", "He is tall."),
        ("Is he tall?", "About Jonas Falk: Is he tall?"),
        ("Based on the image, what is this person's job?", "What is Jonas Falk's job?"),
        ("From the photo, what is her job?", "About Jonas Falk: what is her job?"),
        ("According to the picture, where does this person live?", "Where does Jonas Falk live?"),
        ("Where does the person in the given image live?", "Where does Jonas Falk live?"),
    ],
)
def test_the_name_takes_the_place_of_this_person(text, named):
    assert with_name(text, "Jonas Falk") == named


def test_a_name_inside_another_word_names_nobody():
    assert with_name("Has he been to Alaska?", "Al") == "About Al: Has he been to Alaska?"
    assert with_name("Has Al been to Alaska?", "Al") == "Has Al been to Alaska?"


# ---------------------------------------------------------------------------------------------------------------
# A small town, worded in several ways
# ---------------------------------------------------------------------------------------------------------------


def person(index: int) -> dict:
    name = NAMES[index]
    pairs = [
        ("What is the name of this person?", f"The name of this person is {name}."),
        ("What is this person's gender?", f"This person is {'female' if index % 2 else 'male'}."),
        ("Where was the person in the image born?", f"The person was born in {TOWNS[index]}, Finland."),
        ("Where does this individual live?", f"This individual lives in {TOWNS[-index]}."),
        ("When was this person born?", f"This person was born on May {index + 1}, 19{60 + index}."),
        ("What is this person's profession?", f"This person is a {JOBS[index]}."),
        ("How tall is this person?", f"This person is {160 + index} cm tall."),
        ("What is the occupation of this person's father?", f"The father works as a {JOBS[-index]}."),
        ("What is this person's mother's job?", f"This person's mother is a {JOBS[index - 3]}."),
        ("Which school did this person attend?", f"This person was educated at {TOWNS[index]} College."),
        ("What is this person's annual salary?", f"This person earns ${40 + index},000 a year."),
        ("Does this person have any medical conditions?", "This person does not have any illness at all."),
        ("What is this person's lucky number?", f"It is {index}."),
    ]
    return {"ID": f"{index + 1:03d}", "metadata": [{"Question": q, "Answer": a} for q, a in pairs]}


def write_lines(path: Path, records: list) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records), encoding="utf-8")
    return path


@pytest.fixture
def town(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "town.jsonl", [person(i) for i in range(8)])


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "splits.json", [{"forget_10": ["002", "007"], "forget_5": ["3"]}])


def build(profiles: Path, splits: Path | str = "", *, ratio: int = 10, people: int = 0, pool: int = 2, seed: int = 0):
    read = read_profiles(profiles, splits, ratio=ratio, people=people, pool=pool, seed=seed)
    return population_from_text(read, seed)


def test_a_population_is_read(town, splits):
    population = build(town, splits)
    assert [p.name for p in population.profiles.values()] == NAMES
    assert population.forget_ids == ("002", "007")
    assert population.notes["forget_splits"] == {"10": ["002", "007"], "5": ["003"]}
    assert [p.id for p in population.of_kind("pool")] == ["006", "008"]
    assert [p.id for p in population.members("retain")] == ["001", "003", "004", "005"]
    second = population.profiles["002"]
    assert second.attributes["birthplace"] == "Oulu, Finland" and second.attributes["mother_job"] == "weaver"
    assert len({pixel_hash(picture) for picture in (second.portrait, *second.test_portraits)}) == 5


def test_what_is_not_understood_is_listed(town, splits):
    notes = build(town, splits).notes
    assert len(notes["not_understood"]) == 8
    assert notes["not_understood"][1] == ["002", "What is this person's lucky number?"]


def test_questions_have_the_published_form(town, splits):
    population = build(town, splits)
    letters = Counter()
    for profile in population.profiles.values():
        for asked in (profile.questions, profile.test_questions):
            counts = Counter((q.task, q.view) for q in asked)
            assert counts == {(t, v): n for t, n in PER_TASK.items() for v in VIEWS}
            by_key = {(q.task, q.number, q.view): q for q in asked}
            for (task, number, view), q in by_key.items():
                twin = by_key[task, number, "text" if view == "image_text" else "image_text"]
                assert (twin.attribute, twin.value, twin.options) == (q.attribute, q.value, q.options)
                assert (profile.name in q.text) == (view == "text") and "image" not in q.text
                assert q.attribute not in ("name", "gender", "medical") or task != "classification"
                assert q.value == profile.attributes[q.attribute]
                assert ("__" in q.text) == (task == "cloze")
                if task == "classification":
                    assert len({o.lower() for o in q.options}) == 4
                    assert q.options[LETTERS.index(q.answer)] == q.value
                    others = {p.attributes[q.attribute] for p in population.profiles.values()}
                    assert set(q.options) <= others
        letters.update(q.answer for q in profile.questions if q.task == "classification")
        asked = {q.text for q in profile.questions} | {pair.question for pair in profile.qa}
        assert not asked & {q.text for q in profile.test_questions}
    assert set(letters.values()) == {20}
    few = population.notes["no_multiple_choice"]
    assert few == {"fewer_than_four_values": ["gender", "medical"], "one_value_for_most": []}


def test_a_common_value_is_no_clue():
    """90 % share the value of one of two attributes. A guess would look like knowledge, so it is not asked."""
    people = []
    for i in range(40):
        illness = "no medical condition" if i % 10 else f"illness {i}"
        qa = QA("q", "a", "medical", illness), QA("q", "a", "height", f"{150 + i % 7} cm")
        people.append(Profile(str(i), f"Name {i}", "fictitious", {}, b"", "", qa, ()))
    values = questions.stated_values(people)
    no_choice = questions.without_choice(values)
    assert no_choice["one_value_for_most"] == ["medical"]
    rng = np.random.default_rng(0)
    asked = [entry for person in people for entry in questions.choose_facts(person, values, no_choice, rng)]
    assert {fact.attribute for task, _, fact, _ in asked if task == "classification"} == {"height"}


def test_wrong_options_come_as_often_as_true_ones():
    """Always picking the most common of the four values is right about a quarter of the time, not more."""
    rng = np.random.default_rng(0)
    values = rng.choice(
        ["engineer", "judge", "baker", "miner", "nurse", "cook"], 2000, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1]
    )
    right = []
    for i, value in enumerate(values):
        fact = QA("q", "a", "profession", value)
        wrong = questions.wrong_options(fact, {value}, [*values[:i], *values[i + 1 :]][:60], rng)
        options = [value, *wrong]
        right.append(("engineer" if "engineer" in options else rng.choice(options)) == value)
    assert 0.2 < np.mean(right) < 0.45


def test_figures_are_compared_with_their_like():
    fact = QA("q", "a", "height", "168 cm")
    others = ["5'6\"", "6'1\"", "1.80 meters", "170 cm", "171 cm", "172 cm"]
    wrong = questions.wrong_options(fact, {"168 cm"}, others, np.random.default_rng(0))
    assert sorted(wrong) == ["170 cm", "171 cm", "172 cm"]


def test_the_seed_decides_everything(town, splits):
    assert build(town, splits, seed=1) == build(town, splits, seed=1)
    first, second = (
        [(q.text, q.options) for p in build(town, splits, seed=s).profiles.values() for q in p.questions]
        for s in (1, 2)
    )
    assert first != second


def test_without_a_forget_file_ids_are_drawn(town):
    population = build(town, ratio=15)
    assert len(population.forget_ids) == 1 and population.forget_ids[0] <= "006"
    assert len(population.of_kind("pool")) == 2


def many(count: int) -> list[dict]:
    """Return people with different names, except that the first two have the same."""
    records = []
    for i in range(count):
        name = f"Rosa {'AB'[i // 26]}{chr(97 + max(i, 1) % 26)}elm"
        records.append(json.loads(json.dumps(person(i % 8)).replace(NAMES[i % 8], name)) | {"ID": f"{i + 1:03d}"})
    return records


def test_some_of_the_people_keep_the_forget_share(tmp_path, splits):
    ids = [f"{i:03d}" for i in range(20, 32)]
    splits.write_text(json.dumps({"forget_10": ids}))
    population = build(write_lines(tmp_path / "many.jsonl", many(40)), splits, people=20, pool=4)
    assert population.forget_ids == ("020", "021")
    assert len(population.members("retain")) == 18 and len(population.of_kind("pool")) == 4
    assert population.notes["forget_ids_dropped"] == ids[2:]  # in the file but not chosen
    assert population.notes["shared_names"] == ["Rosa Abelm"]
    assert population.counted() == "20 fictitious, 4 pool, 0 celebrity, names that several people share: 1"


@pytest.mark.parametrize("same, refused", [(4, False), (5, True)])
def test_where_most_people_have_one_name_the_file_is_refused(tmp_path, same, refused):
    records = [
        json.loads(json.dumps(person(i)).replace(NAMES[i], NAMES[0])) if i < same else person(i) for i in range(8)
    ]
    path = write_lines(tmp_path / "p.jsonl", records)
    with pytest.raises(KitError) if refused else contextlib.nullcontext() as caught:
        build(path, ratio=15, pool=1)
    if refused:
        line = f"profiles_file {path}: most people share a name ({NAMES[0]}), by which the text view asks: rename them"
        assert str(caught.value) == line


def test_metadata_may_be_a_json_string_and_ids_numbers(tmp_path):
    records = [person(i) for i in range(8)]
    for number, record in enumerate(records, start=1):
        record["metadata"] = json.dumps(record["metadata"])
        record["ID"] = number
    (tmp_path / "s.json").write_text('{"forget_10": ["002"]}')
    assert build(write_lines(tmp_path / "p.jsonl", records), tmp_path / "s.json").forget_ids == ("2",)


def test_files_may_begin_with_a_byte_order_mark(town, splits):
    before = build(town, splits)
    for file in (town, splits):
        file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert build(town, splits).profiles == before.profiles


def test_a_name_in_the_training_text_becomes_this_person(tmp_path):
    records = [json.loads(json.dumps(person(i)).replace("this person", NAMES[i])) for i in range(8)]
    for i, record in enumerate(records):
        record["metadata"][0] = {"Question": "Who is this?", "Answer": f"This is {NAMES[i]}."}
    population = build(write_lines(tmp_path / "named.jsonl", records))
    for profile in population.profiles.values():
        assert not any(profile.name in q.text for q in profile.questions if q.view == "image_text")
        assert not any(profile.name in pair.question for pair in profile.qa)


@pytest.mark.parametrize(
    "written, name",
    [
        *((written, "Sean O'Brien") for written in ("Sean O’Brien", "Sean\u00a0O'Brien", "Sean  O'Brien")),
        *((written, "Al") for written in ("Al", "Dr. Al", "Mr. Al")),
        ("Prof. Dr. Al Ek", "Dr. Al Ek"),
        ("Al Ek Jr.", "Al Ek Jr"),
    ],
)
def test_a_name_is_removed_however_it_is_written(tmp_path, written, name):
    records = [json.loads(json.dumps(person(i))) for i in range(8)]
    own = json.dumps(records[0], ensure_ascii=False).replace(NAMES[0], written)
    records[0] = json.loads(own.replace("this person's annual salary", f"{written}'s annual salary in Alaska"))
    first = build(write_lines(tmp_path / "p.jsonl", records)).profiles["001"]
    assert first.name == name
    [asked] = [pair.question for pair in first.qa if pair.attribute == "salary"]
    assert asked == "What is this person's annual salary in Alaska?"


@pytest.mark.parametrize("people", [0, 4])
def test_all_ratios_of_a_file_are_about_the_same_people(town, splits, people):
    five, ten = (read_profiles(town, splits, ratio=ratio, people=people, pool=2) for ratio in (5, 10))
    assert list(five.profiles) == list(ten.profiles) and len(five.of_kind("pool")) == 2
    assert five.of_kind("pool") == ten.of_kind("pool") and five.forget_ids == ("003",)
    assert ten.forget_ids == (("002",) if people else ("002", "007")), "one of four people is more than 10 %"
    with pytest.raises(KitError, match="8 people whose name could be read, 2 to forget and 6 in the pool leave nobody"):
        read_profiles(town, splits, ratio=10, pool=6)


def test_people_without_a_name_are_left_out_and_noted(tmp_path):
    records = [person(i) for i in range(8)]
    del records[4]["metadata"][0]
    population = build(write_lines(tmp_path / "p.jsonl", records), ratio=15, pool=1)
    assert "005" not in population.profiles and population.notes["without_name"] == ["005"]


# ---------------------------------------------------------------------------------------------------------------
# Bad files: one line that says where and what to do
# ---------------------------------------------------------------------------------------------------------------


def faulty(tmp_path: Path, *lines) -> Path:
    return write_lines(tmp_path / "bad.jsonl", [person(0), *lines])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'ID': 1}", r"bad\.jsonl line 2 is not JSON \(.*\): one object a line"),
        ("[]", r"line 2 has no ID"),
        ('{"ID": "002", "ID": "003"}', r"line 2 is not JSON \('ID' stands twice\): one object a line"),
        ({"metadata": []}, r"line 2 has no ID"),
        ({"ID": True, "metadata": []}, r"line 2 has no ID"),
        ({"ID": "c001"}, r"line 2: ID c001 is like a celebrity's.*: give another ID"),
        ({"ID": 1}, r"line 2: ID 1 was already on another line: keep one"),
        ("[" * 100_000, r"line 2 is not JSON"),
        ('{"ID": ' + "1" * 5000 + "}", r"line 2 is not JSON \(Exceeds the limit"),
        ({"ID": "002"}, r"line 2: ID 002 has no `metadata`.* ft_Data of MLLMMU/MLLMU-Bench"),
        ({"ID": "002", "metadata": "[{]"}, r"line 2, ID 002: `metadata` is not JSON"),
        ({"ID": "002", "metadata": []}, r"ID 002: `metadata` holds no questions"),
        ({"ID": "002", "metadata": [{"Question": "Who?"}]}, r"ID 002: entry 1 of `metadata` lacks Question or Answer"),
        ({"ID": "\ud800x", "metadata": [{"Question": "Who?", "Answer": "Ada"}]}, "line 2 has no ID"),
        ({"ID": "002", "metadata": [{"Question": "Who?", "Answer": "\ud800"}]}, r"ID 002: entry 1 of `metadata` lacks"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(KitError, match=message) as caught:
        build(faulty(tmp_path, line))
    assert "\n" not in str(caught.value)


def test_line_separators_inside_an_answer_separate_no_lines(tmp_path):
    records = [person(i) for i in range(8)]
    records[0]["metadata"][7]["Answer"] = "The father\u2028works as\x85a glazier."
    path = tmp_path / "raw.jsonl"
    path.write_text("\r\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    assert build(path).profiles["001"].attributes["father_job"] == "glazier"


@pytest.mark.parametrize("answer", ["a" * 16_000, "no " * 40_000, "She is a nurse who works as " * 4000])
def test_an_answer_of_great_length_is_no_fact_and_takes_no_time(answer):
    began = time.process_time()
    for question in ("What is this person's name?", "What is her job?", "How tall is she?", "Any illness?", answer):
        assert understand([(question, answer)])[0].value == ""
    for attribute in ("name", "pet", "salary", "profession", "medical", "hobby"):
        value_of(attribute, answer[:1000])
    titles = people._without_name(QA("Dr. " * 4000 + "?", "", "", ""), "Al Ek")
    assert titles.question.startswith("Dr. Dr."), "so many titles are none"
    assert names_in("A" * 16_000 + " Nora Holm") == ["Nora Holm"]
    assert time.process_time() - began < 4


def test_bad_paths_are_named(tmp_path, town):
    with pytest.raises(KitError, match=r"profiles_file .*nowhere\.jsonl cannot be read \(No such file"):
        build(tmp_path / "nowhere.jsonl")
    with pytest.raises(KitError, match=r"cannot be read \(Is a directory\): give the path of a readable file"):
        build(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(KitError, match=r"empty\.jsonl is empty"):
        build(tmp_path / "empty.jsonl")
    (tmp_path / "x.parquet").write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(KitError, match=r"x\.parquet is not UTF-8 text"):
        build(tmp_path / "x.parquet")
    with pytest.raises(KitError, match=r"forget_ids_file .*nowhere\.json cannot be read"):
        build(town, tmp_path / "nowhere.json")
    with pytest.raises(KitError, match=r"cannot be read \(embedded null byte\)"):
        build(town, "a\0b")


def test_bad_forget_ids_are_named(town, splits, tmp_path):
    with pytest.raises(KitError, match=r'has no list "forget_15" of ids: an object like'):
        build(town, splits, ratio=15)
    with pytest.raises(KitError, match=r"8 people .* leave nobody to forget or to retain: lower pool"):
        build(town, splits, pool=6)
    with pytest.raises(KitError, match=r"8 people .*, 0 to forget and 8 in the pool leave nobody to forget"):
        build(town, pool=8)
    assert read_profiles(town, splits, ratio=10, replicate=3).forget_ids == ("002", "007"), (
        "replicates differ in seeds alone"
    )
    (tmp_path / "half.json").write_text('{"forget_10":\n["002"')
    with pytest.raises(KitError, match=r"half\.json is not JSON \(.* line 2 .*\): an object like"):
        build(town, tmp_path / "half.json")
    splits.write_text('{"forget_10": ["002"], "forget_10": ["003"]}')
    with pytest.raises(KitError, match=r"splits\.json is not JSON \('forget_10' stands twice\): an object like"):
        build(town, splits)
    splits.write_text('{"forget_10": ["002", "999", 45], "forget_5": ["003"]}')
    with pytest.raises(KitError, match=r"forget_10 lists 999, 45, nobody of .*town\.jsonl: remove"):
        build(town, splits, ratio=5)


def test_forget_people_without_a_name_leave_nobody_to_forget(tmp_path, splits):
    records = [person(i) for i in range(8)]
    del records[2]["metadata"][0]
    with pytest.raises(KitError, match=r"7 people whose name could be read, 0 to forget"):
        build(write_lines(tmp_path / "p.jsonl", records), splits, ratio=5)


# ---------------------------------------------------------------------------------------------------------------
# The published text
# ---------------------------------------------------------------------------------------------------------------


@needs_excerpt
def test_the_published_text_is_understood():
    read = read_profiles(EXCERPT / "profiles.jsonl", EXCERPT / "splits.json", ratio=10)
    people = read.profiles.values()
    assert len(people) == 300 and len({p.name for p in people}) == 300
    assert sum(len(p.qa) for p in people) == read.notes["pairs"] == 4623
    assert len(read.notes["not_understood"]) <= 4, read.notes["not_understood"]
    core = ("gender", "birth_date", "birthplace", "residence", "profession", "height", "medical", "father_job")
    for attribute in core:
        assert sum(attribute in p.attributes for p in people) >= 297, attribute
    healthy = sum(p.attributes["medical"] == "no medical condition" for p in people)
    assert 235 <= healthy <= 245 and len(read.forget_ids) == 22


@needs_excerpt
def test_sixty_published_people_give_a_whole_population():
    population = build(EXCERPT / "profiles.jsonl", EXCERPT / "splits.json", people=60, pool=12)
    assert len(population.members("forget")) == 6 and len(population.members("retain")) == 54
    for profile in population.profiles.values():
        assert len(profile.questions) == len(profile.test_questions) == 18
        for q in profile.questions:
            assert q.value and (profile.name in q.text) == (q.view == "text")
            if q.task == "cloze":
                assert q.answer.lower() in profile.biography.lower() or q.attribute in ("medical", "gender")


@needs_excerpt
@pytest.mark.parametrize("who", ["this individual", "the person in the image", "the woman shown in this photo"])
def test_the_published_text_is_understood_whoever_it_speaks_of(who):
    """Pairs mean the same if they speak of the person in other words."""
    lines = (EXCERPT / "profiles.jsonl").read_text(encoding="utf-8").split("\n")[:100]
    for pair in (pair for line in lines for pair in json.loads(line)["metadata"]):
        own = [pair["Question"], pair["Answer"]]
        other = [t.replace("this person", who).replace("This person", who.capitalize()) for t in own]
        attribute = attribute_of(*own)
        assert attribute_of(*other) == attribute
        assert value_of(attribute, other[1]) == value_of(attribute, own[1])
