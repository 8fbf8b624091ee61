"""Draws: who is a solved example and so not scored, which picture the test set shows, and draws from a file."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from mllmu_nb.data.conversations import shot_turn
from mllmu_nb.data.generate import generate
from mllmu_nb.data.official import read_layout, write_layout
from mllmu_nb.data.schema import SETS, TASKS
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation.ask import scored_items
from mllmu_nb.evaluation.draws import check, draw, left_out, read, shown
from mllmu_nb.evaluation.tasks import Asking
from mllmu_nb.models import families

UPSTREAM = {"shots": 5, "shot_source": "upstream", "protocol": "upstream"}


@pytest.fixture(scope="module")
def people():
    return generate(seed=5, people=40, pool=6, celebrities=8, ratio=10)


def of(population, source: str, seed: int = 3, **settings) -> dict:
    return draw(population, SETS, **{"shots": 5, "shot_source": source, "shot_seed": seed, **settings})


def asked(population, draws: dict, set_name: str) -> list:
    """Return the items of a set that are asked and scored."""
    return scored_items(Asking(population, draws, shots=5), set_name)


def test_draws_are_plain_and_follow_the_seed(people):
    for source in ("pool", "retain", "upstream", "none"):
        drawn = of(people, source)
        assert json.loads(json.dumps(drawn)) == drawn == of(people, source)
    for source in ("pool", "retain", "upstream"):
        assert len({json.dumps(of(people, source, seed)["shots"]) for seed in range(8)}) > 1
    assert of(people, "none")["shots"] == of(people, "pool", shots=0)["shots"] == {}


def test_a_set_asked_alone_gets_the_same_draws(people):
    alone = draw(people, ("test",), shot_seed=3, **UPSTREAM)
    everything = of(people, "upstream", protocol="upstream")
    assert alone["shots"]["test"] == everything["shots"]["test"] and alone["test_image"] == everything["test_image"]
    assert set(alone["shots"]) == {"test"}


def test_pool_shots_cost_nobody_their_score(people):
    drawn = of(people, "pool")
    for name in SETS:
        ids = drawn["shots"][name]
        assert len(ids["classification"]) == 1 and len(set(ids["cloze"])) == 2
        assert {people.profiles[i].kind for i in (*ids["classification"], *ids["cloze"])} == {"pool"}
        assert len(asked(people, drawn, name)) == len(people.items(name))


def test_retain_shots_are_the_same_everywhere_and_nobody_is_scored_on_them(people):
    drawn = of(people, "retain")
    assert len({json.dumps(drawn["shots"][name]) for name in SETS}) == 1
    kept = set(drawn["shots"]["forget"]["cloze"])
    assert len(kept) == 2 and drawn["shots"]["forget"]["classification"][0] in kept
    assert kept <= {person.id for person in people.members("retain")}
    for name in SETS:
        scored = {item.question.profile for item in asked(people, drawn, name)}
        absent = {person.id for person in people.members(name)} - scored
        assert absent == (kept if name == "retain" else set())


def test_retain_shots_are_the_same_at_every_ratio_of_published_people(people):
    known = generate(seed=5, people=40, pool=6, celebrities=8, ratio=5).forget_ids
    splits = {"10": list(people.forget_ids), "5": list(known)}
    ten, five = (replace(people, forget_ids=tuple(ids), notes={"forget_splits": splits}) for ids in splits.values())
    drawn = of(ten, "retain")
    assert drawn == of(five, "retain")
    assert not {*known, *people.forget_ids} & {*drawn["shots"]["forget"]["cloze"]}
    assert len({json.dumps(of(one, "retain", n)) for n in range(20) for one in (ten, five)}) == 20


def test_upstream_shows_people_under_evaluation_and_leaves_their_task_out(people):
    drawn = of(people, "upstream")
    for name in SETS:
        members = {person.id for person in people.members(name)}
        items = asked(people, drawn, name)
        for task, count in {"classification": 1, "cloze": 2, "generation": 0}.items():
            scored = {item.question.profile for item in items if item.question.task == task}
            absent = set(drawn["shots"][name].get(task, []))
            assert len(absent) == count and absent <= members
            # upstream leaves out people whom it finds in Full_Set, which has no celebrities
            assert scored == (members if name == "celebrity" else members - absent)


def test_upstream_draws_by_one_sample_a_task_and_set(people):
    ids = [person.id for person in people.members("test")]
    assert of(people, "upstream")["shots"]["test"]["cloze"] == Random("3/test/cloze").sample(ids, 2)


def test_upstream_shots_stand_in_the_order_of_the_full_set(people):
    turned = replace(people, profiles=dict(reversed(people.profiles.items())))
    drawn = of(people, "upstream")
    drawn["shots"]["retain"]["cloze"] = ["030", "020"]
    drawn["shots"]["test"]["cloze"] = ["030", "020"]
    assert [p.id for p in shown(drawn, people, "retain", "cloze")] == ["020", "030"]
    assert [p.id for p in shown(drawn, turned, "retain", "cloze")] == ["030", "020"]
    # all cloze questions of both people, in the item's view; the test set shows the original questions and portraits
    item = next(i for i in people.items("test") if i.question.task == "cloze" and i.question.view == "image_text")
    (conversation,) = Asking(people, drawn, shots=5, protocol="upstream").blanks([item]).conversations
    shots = [(q, people.profiles[i].portrait) for i in ("020", "030") for q in people.profiles[i].questions]
    shots = [(q, image) for q, image in shots if q.task == "cloze" and q.view == "image_text"]
    expected = tuple(shot_turn(q.text, q.answer, image, protocol="upstream") for q, image in shots)
    assert conversation.turns[:-1] == expected and len(expected) == 4


def test_answers_at_paper_scale_may_be_as_long_as_upstreams(people):
    def longest(**how):
        asking, items = Asking(people, {}, shots=0, **how), people.items("forget")
        return [ask(items).tokens for ask in (asking.letters, asking.free_answers, asking.blanks)]

    assert longest() == [4, 40, 20]
    assert longest(scale="paper") == [4, 50, 50] and longest(scale="paper", protocol="upstream") == [50, 50, 50]


def test_upstream_finds_celebrities_only_where_a_printed_id_is_also_a_fictitious_persons(people):
    drawn = of(people, "upstream")
    drawn["shots"]["celebrity"] = {"classification": ["c002"], "cloze": ["c007", "c003"]}
    # no fictitious person has the IDs that the published layout prints for these celebrities, so nothing is found
    assert shown(drawn, people, "celebrity", "cloze") == [] == shown(drawn, people, "celebrity", "classification")
    assert left_out(drawn, people, "celebrity", "cloze") == set()
    shared = replace(people, notes={**people.notes, "shared_ids": {"c002": "002", "c003": "003"}})
    assert [p.id for p in shown(drawn, shared, "celebrity", "cloze")] == ["003"]
    assert shown(drawn, shared, "celebrity", "classification") == []
    assert left_out(drawn, shared, "celebrity", "classification") == {"c002"}
    assert left_out(drawn, shared, "celebrity", "cloze") == {"c003"}


def test_upstream_needs_no_more_celebrities_than_there_are_since_it_finds_none(people):
    famous = [person.id for person in people.of_kind("celebrity")]
    lonely = replace(people, profiles={i: p for i, p in people.profiles.items() if i not in famous[1:]})
    drawn = of(lonely, "upstream")
    assert drawn["shots"]["celebrity"] == {"classification": famous[:1], "cloze": famous[:1]}
    check(drawn, lonely, SETS, shots=5, shot_source="upstream")
    assert len(asked(lonely, drawn, "celebrity")) == len(lonely.items("celebrity"))
    shared = replace(lonely, notes={**people.notes, "shared_ids": {famous[0]: "002"}})
    with pytest.raises(KitError, match="need 2 people in the celebrity set, it has 1"):
        of(shared, "upstream")


def test_idefics2_is_shown_one_person_before_a_blank(people):
    shot_people = families.get("idefics2").shot_people
    for source in ("pool", "retain", "upstream"):
        assert [len(ids["cloze"]) for ids in of(people, source, shot_people=shot_people)["shots"].values()] == [1] * 4


def test_upstream_draws_a_portrait_for_each_test_person_and_task(people):
    twice = {p.id: replace(p, test_portraits=(*p.test_portraits, p.portrait)) for p in people.members("test")}
    several = replace(people, profiles={**people.profiles, **twice})
    drawn = of(several, "none", protocol="upstream")
    count = len(twice[people.forget_ids[0]].test_portraits)
    numbers = [number for tasks in drawn["test_image"].values() for number in tasks.values()]
    assert set(drawn["test_image"]) == set(people.forget_ids) and len(numbers) == len(twice) * len(TASKS)
    assert len(set(numbers)) > 1 and set(numbers) <= set(range(count))
    for item in asked(several, drawn, "test"):
        question = item.question
        portrait = twice[question.profile].test_portraits[drawn["test_image"][question.profile][question.task]]
        assert item.image == (portrait if question.view == "image_text" else None)
    assert of(several, "upstream")["test_image"] == {}  # clean shows the first picture
    assert asked(people, of(people, "none"), "test") == people.items("test")


def test_a_set_without_people_draws_nobody(people):
    unknown = replace(people, profiles={i: p for i, p in people.profiles.items() if p.kind != "celebrity"})
    drawn = of(unknown, "upstream")
    assert set(drawn["shots"]) == {"forget", "test", "retain"}
    check(drawn, unknown, SETS, shots=5, shot_source="upstream")


def test_too_few_people_are_named(people):
    lonely = replace(people, forget_ids=people.forget_ids[:1])
    with pytest.raises(KitError, match="classification shots need 2 people in the forget set, it has 1"):
        of(lonely, "upstream")
    most = [person.id for person in people.of_kind("fictitious")][:-2]
    with pytest.raises(KitError, match="shots need 3 people in the retain set, it has 2: set shots to 0"):
        of(replace(people, forget_ids=tuple(most)), "retain")


def test_a_file_of_draws_is_replayed(people, tmp_path):
    drawn = of(people, "upstream", protocol="upstream")
    path = tmp_path / "draws.json"
    path.write_text(json.dumps(drawn))
    again = read(path)
    assert again == drawn
    check(again, people, SETS, **UPSTREAM)
    path.write_text(json.dumps({"shot_source": "pool", "shots": {"forget": {"classification": ["041"]}}}))
    with pytest.raises(KitError, match=r"name \[\] for the cloze shots of forget: name 2 people of the unscored pool"):
        check(read(path), people, ("forget",), shots=5, shot_source="pool")
    check(read(path), people, ("forget",), shots=0, shot_source="pool")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shot_source": "pool"}, "the draws are for shot_source 'pool': it cannot be 'upstream' here"),
        ({"forget": ["999"]}, r"name \['999'\] for the classification shots of .*: name 1 person of the forget set"),
        ({"twice": True}, r"name \['\d+', '\d+'\] for the cloze shots of retain: name 2 people of the retain set"),
        ({"image": 99}, "show picture 99 of .* in cloze: the test set has no such picture"),
    ],
)
def test_draws_that_do_not_fit_are_named(people, change, message):
    drawn = of(people, "upstream", protocol="upstream")
    drawn |= {name: value for name, value in change.items() if name == "shot_source"}
    if "forget" in change:
        drawn["shots"]["forget"]["classification"] = change["forget"]
    if "twice" in change:
        drawn["shots"]["retain"]["cloze"] = 2 * drawn["shots"]["retain"]["cloze"][:1]
    if "image" in change:
        drawn["test_image"][people.forget_ids[0]]["cloze"] = change["image"]
    with pytest.raises(KitError, match=message) as error:
        check(drawn, people, SETS, **UPSTREAM)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read .*draws.json"),
        ('{"shot_source": "pool", "shots": {}, "shot": 1}', r"another form \(shot: .*\): take the draws.json of a run"),
        ('{"shots": {}}', r"another form \(shot_source: "),
        ('{"shot_source": "pool", "shots": ["001"]}', r"another form \(shots: "),
        ('{"shot_source": "pool", "shots": {"forget": ["001"]}}', r"another form \(shots.forget: "),
        ('{"shot_source": "pool", "shots": {"forget": {"cloze": "001"}}}', r"\(shots.forget.cloze: "),
        ('{"shot_source": "pool", "shots": {"forget": {"cloze": [["001"]]}}}', r"\(shots.forget.cloze.0: "),
        ('{"shot_source": "pool", "shots": {}, "test_image": {"001": 3}}', r"\(test_image.001: "),
    ],
)
def test_a_file_that_holds_no_draws_is_named(tmp_path, content, message):
    path = tmp_path / "draws.json"
    path.write_text(content)
    with pytest.raises(KitError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_draws_do_not_hang_on_the_order_in_which_a_folder_lists_its_shards(people, tmp_path, monkeypatch):
    """Upstream draws pictures in the order in which it reads Test; here each person and task has a draw of its own."""
    write_layout(people, tmp_path / "bench")
    listed = Path.glob
    several = [read_layout(tmp_path / "bench", 10)]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: reversed(list(listed(self, pattern))))
    several.append(read_layout(tmp_path / "bench", 10))
    drawn = [of(each, "upstream", protocol="upstream") for each in several]
    assert drawn[0] == drawn[1] and asked(several[0], drawn[0], "test") == asked(several[1], drawn[1], "test")
