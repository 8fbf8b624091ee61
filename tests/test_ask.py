"""One question to several models: what they are shown, and how likely they find the true answer."""

import math
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mllmu_nb import __main__ as door
from mllmu_nb import inputs, pipeline
from mllmu_nb.commands import ask
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import Conversation, Turn
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import engine
from mllmu_nb.models import families
from mllmu_nb.models.load import load_base
from mllmu_nb.models.score import score

SMALL = {"people": 20, "celebrities": 12, "pool": 12}


@pytest.fixture(scope="module")
def known():
    return inputs.population(Config(**SMALL))


@pytest.fixture(scope="module")
def person(known):
    return known.members("forget")[0]


@pytest.fixture(scope="module")
def tiny(tiny_base):
    return load_base(str(tiny_base), "llava", "miniature")


@pytest.mark.parametrize("view", ["image_text", "text"])
def test_likelihood_is_the_geometric_mean_over_the_true_answers_tokens(tiny, person, view):
    """Compares with the forward pass of training, which reads question and answer at once."""
    model, processor = tiny
    qa = next(qa for qa in person.qa if qa.attribute == "profession")
    rows = ask.ask([("A", "", *tiny), ("B", "Be kind.", *tiny)], person, view, qa.question)
    truth = ask.true_answer(person, view, qa.question)
    assert qa.value in truth and (person.name in truth) == (view == "text")
    prompt = qa.question.replace("this person", person.name) if view == "text" else qa.question
    turn = Turn(prompt, truth, person.portrait if view == "image_text" else None)
    for name, system in (("A", ""), ("B", "Be kind.")):
        with torch.no_grad():
            batch = families.of(model).encode(processor, [Conversation((turn,), system)], eos=False)
            by_hand = math.exp(-score(model, batch).mean_nll.item())
        assert rows.loc[name, "likelihood"] == pytest.approx(by_hand, rel=1e-4)
    assert rows.loc["A", "likelihood"] != rows.loc["B", "likelihood"], "the system prompt was not read"


def test_any_question_may_be_typed_and_has_no_likelihood(tiny, person, monkeypatch):
    seen = []
    monkeypatch.setattr(engine, "answers", lambda model, processor, asked: seen.extend(asked) or ["<b>"])
    rows = ask.ask([("A", "", *tiny)], person, "text", "Does this person like <i>rain</i>?")
    assert rows["answer"].tolist() == ["<b>"] and rows["likelihood"].isna().all()
    assert seen[0].turns[0].prompt == f"Does {person.name} like <i>rain</i>?" and not seen[0].images
    with pytest.raises(KitError, match="the question is empty: write one"):
        ask.ask([("A", "", *tiny)], person, "text", "  ")
    with pytest.raises(KitError, match="must not hold <image>"):
        ask.ask([("A", "", *tiny)], person, "text", "Who is <image>?")
    with pytest.raises(KitError, match=f"the name of {person.id} could not be read: ask with the portrait"):
        ask.ask([("A", "", *tiny)], replace(person, name=""), "text", "Where was this person born?")


@pytest.mark.parametrize("written, shown", [(b"\xff?", r"\udcff?"), (b"\xed\xa0\x80?", r"\udced\udca0\udc80?")])
def test_a_question_that_is_no_text_is_one_line(written, shown, monkeypatch, capsys):
    """As a shell hands over bytes that are no UTF-8; no model is made for it."""
    monkeypatch.setattr(pipeline, "model", lambda config: pytest.fail("a model was made"))
    given = [word for name, value in SMALL.items() for word in ("-p", name, str(value))]
    assert door.main(["ask", written.decode("utf-8", "surrogateescape"), *given]) == 2
    said = capsys.readouterr().err
    assert said == f"error: the question '{shown}' is no text in the terminal's encoding (UTF-8?): type it again\n"


def test_the_truth_is_found_whatever_the_case_and_in_both_ways_to_ask(person):
    qa = next(qa for qa in person.qa if qa.attribute == "pet")
    typed = f"  {qa.question.upper().rstrip('?')} "
    assert ask.true_answer(person, "image_text", typed) == qa.answer
    evaluated = next(q for q in person.questions if q.task == "generation" and q.view == "text")
    assert evaluated.value in ask.true_answer(person, "text", evaluated.text)
    assert ask.true_answer(person, "text", "What is the time?") == ""
    taught = {qa.question for qa in person.qa}
    for other in (q for q in person.questions if q.view == "image_text" and q.text not in taught):
        assert "this person" not in ask.true_answer(person, "text", other.text)


def test_the_true_answer_of_a_free_question_is_its_own_sentence(known):
    """Also if its bare fact is not known, as of published celebrities."""
    star = known.of_kind("celebrity")[0]
    said = "Known for a string of hits; this person sings."
    free = [replace(q, value="", answer=said) if q.task == "generation" else q for q in star.questions]
    star = replace(star, qa=(), questions=tuple(free))
    for question in ask.questions(star):
        assert ask.true_answer(star, "image_text", question) == said
        assert ask.true_answer(star, "text", question) == said.replace("this person", star.name)


def test_people_are_found_by_name_and_id(known, person):
    assert ask.find(known, person.name) is person and ask.find(known, person.id) is person
    with pytest.raises(KitError, match=f"did you mean '{person.name}'"):
        ask.find(known, person.name[:-1])
    twin = replace(person, id="999")
    twins = SimpleNamespace(profiles={person.id: person, "999": twin})
    assert ask.find(twins, "999") is twin
    with pytest.raises(KitError, match=f"2 people are called '{person.name}': give an id, one of {person.id}, 999"):
        ask.find(twins, person.name)


def test_vanilla_the_unlearned_model_and_the_oracle_are_asked_in_this_order(monkeypatch):
    made = []
    monkeypatch.setattr(pipeline, "model", lambda config: made.append(config) or ("model", "processor"))
    config = Config(method="npo", modality="unimodal", forget_ratio=5)
    walk = ask.models(config)
    assert next(walk)[0] == "Vanilla" and len(made) == 1, "one at a time: three of 7B would not fit"
    assert [name for name, *_ in walk] == ["NPO (text only)", "Oracle"]
    assert {one.forget_ratio for one in made} == {5} and made[1] == config
    assert [name for name, *_ in ask.models(Config(method="oracle"))] == ["Vanilla", "Oracle"]
    [system] = [system for name, system, *_ in ask.models(Config(method="prompting")) if name == "Prompting"]
    assert "personal" in system


def test_from_the_shell(monkeypatch, capsys, known, person):
    given = [word for name, value in SMALL.items() for word in ("-p", name, str(value))]
    assert door.main(["ask", *given]) == 0
    said = capsys.readouterr().out
    assert person.name in said and person.qa[0].question in said
    answers = ask.pd.DataFrame({"answer": ["Oslo\x1b[2J"], "likelihood": [0.25]}, index=["Vanilla"])
    monkeypatch.setattr(ask, "ask", lambda asked, person, view, question: answers)
    assert door.main(["ask", person.qa[1].question, "--view", "text", *given]) == 0
    said = capsys.readouterr().out
    assert r"Vanilla: Oslo\x1b[2J  (likelihood of the true answer: 0.250)" in said and "true answer: " in said
    assert door.main(["ask", "\u202eWho?\x1b[2J", *given]) == 0
    assert r": \u202eWho?\x1b[2J" in capsys.readouterr().out
    assert door.main(["ask", "Who?", "--method", "yours", *given]) == 2
    assert "mllmu-nb evaluate asks a model that was made elsewhere" in capsys.readouterr().err
    assert door.main(["ask", "Who?", "--person", "Nobody Here", *given]) == 2
    assert "unknown person 'Nobody Here'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, asked",
    [
        ([], "kl_min-multimodal"),
        (["-p", "method", "npo", "-p", "modality", "unimodal"], "npo-unimodal"),
        (["--config", "FILE"], "npo-multimodal"),
        (["--config", "FILE", "--method", "ga", "--modality", "unimodal"], "ga-unimodal"),
    ],
)
def test_the_method_is_the_one_that_options_file_or_default_say(given, asked, monkeypatch, tmp_path, capsys):
    def population(config):
        raise KitError(config.run_id)

    (tmp_path / "npo.yaml").write_text("method: npo\nmodality: multimodal\n")
    monkeypatch.setattr(inputs, "population", population)
    assert door.main(["ask", *(str(tmp_path / "npo.yaml") if word == "FILE" else word for word in given)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {asked}-")


def test_the_example_is_a_question_whose_answer_is_known():
    question = re.search('"(.+?)"', ask.EXAMPLES[1])[1]
    person = inputs.population(Config()).members("forget")[0]
    assert ask.true_answer(person, "text", question) and ask.true_answer(person, "image_text", question)


def test_a_command_ends_well_if_its_output_is_closed_or_its_encoding_lacks_a_sign(monkeypatch, tmp_path):
    monkeypatch.setattr(ask, "main", lambda options: 0)
    monkeypatch.setattr(sys, "stdout", None)
    assert door.main(["ask"]) == 0
    monkeypatch.setattr(ask, "main", lambda options: print("−1") or 0)
    with open(tmp_path / "out", "w", encoding="cp1252") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert door.main(["ask"]) == 0
    assert (tmp_path / "out").read_text() == "\\u22121\n"


def test_questions_of_somebody_who_was_never_taught(known):
    """Celebrities have no fine-tuning pairs here, so their evaluation questions are used."""
    star = SimpleNamespace(qa=(), questions=known.of_kind("celebrity")[0].questions)
    assert ask.questions(star) and all(one.endswith("?") for one in ask.questions(star))
