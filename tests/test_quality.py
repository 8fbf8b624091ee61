"""Forget quality: what is read off a model token by token, and what is computed from it, against cases done by hand."""

import zlib

import numpy as np
import pandas as pd
import pytest
import torch

from mllmu_nb import run
from mllmu_nb.config import Config
from mllmu_nb.data.generate import fresh_people, generate
from mllmu_nb.data.reading import with_name
from mllmu_nb.data.schema import SETS
from mllmu_nb.evaluation import evaluate, tokens
from mllmu_nb.evaluation.draws import draw
from mllmu_nb.models.miniature import make_model, make_processor, make_tokenizer
from mllmu_nb.models.prompts import Conversation, Turn, encode, question_of
from mllmu_nb.unlearning import Scored

SYSTEM = "You never speak about people."


@pytest.fixture(scope="module")
def people():
    return generate(seed=5, people=12, pool=2, celebrities=4, ratio=10)


@pytest.fixture(scope="module")
def fresh():
    return fresh_people(5, 12, 2, 4, count=3)


@pytest.fixture(scope="module")
def processor(people):
    told = [text for p in people.profiles.values() for qa in p.qa for text in (f"{qa.question} {qa.answer}", p.name)]
    return make_processor(make_tokenizer(["USER: ASSISTANT: Answer in ONE sentence.", SYSTEM, *told], 700))


@pytest.fixture(scope="module")
def model(processor):
    return make_model(processor.tokenizer, seed=2, width=64, layers=2).eval()


@pytest.fixture(scope="module")
def asked(people, fresh):
    return {"forget": people.members("forget"), "fresh": fresh}


# what is written for each run


def alone(model, processor, talk: Conversation) -> tuple[list[float], list[bool], list[float]]:
    """Log p, rank one and Min-K++'s z of each answer token by one plain forward pass of one conversation."""
    batch = encode(processor, [talk], eos=False)
    labels = batch.pop("labels")[0]
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[0].double()
    found = []
    for place in torch.nonzero(labels != -100)[:, 0].tolist():
        p = torch.softmax(logits[place - 1], -1)
        mean = sum(float(q) * float(q.log()) for q in p)
        variance = sum(float(q) * (float(q.log()) - mean) ** 2 for q in p)
        value = float(p[labels[place]].log())
        found.append((value, bool(p.argmax() == labels[place]), (value - mean) / variance**0.5))
    return tuple(map(list, zip(*found, strict=True)))


def test_every_token_has_the_numbers_of_a_forward_pass_of_its_own(model, processor, asked):
    found = tokens.sentences(model, processor, asked, system=SYSTEM, batch_size=7)
    turns = {}
    for profiles in asked.values():
        for person in profiles:
            for number, qa in enumerate(person.qa):
                turns[f"{person.id}/finetuning/image_text/{number}"] = Turn(qa.question, qa.answer, person.portrait)
    seen = found[found["view"] == "image_text"].iloc[::5]
    assert set(seen["member"]) == {"forget", "fresh"}
    for row in seen.itertuples():
        log_probs, right, spread = alone(model, processor, Conversation((turns[row.question_id],), SYSTEM))
        assert row.log_probs.tolist() == pytest.approx(log_probs, abs=1e-4)
        assert row.right.tolist() == right and row.n_tokens == len(right)
        assert row.spread.tolist() == pytest.approx(spread, abs=1e-3)


def test_sentences_are_those_that_were_taught_in_both_views(model, processor, asked):
    found = tokens.sentences(model, processor, asked)
    assert found["question_id"].is_unique
    counts = found.groupby(["member", "view"]).size().to_dict()
    # without a picture nobody is asked for the name
    assert counts == {
        ("forget", "image_text"): 15,
        ("forget", "text"): 14,
        ("fresh", "image_text"): 45,
        ("fresh", "text"): 42,
    }
    pairs = found.assign(fact=found["question_id"].str.replace("image_text|text", "", regex=True))
    assert (pairs.groupby("fact")["attribute"].nunique() == 1).all()  # the same number asks for the same fact
    person = asked["forget"][0]
    named = found[found["question_id"] == f"{person.id}/finetuning/text/2"]["zlib_bytes"].item()
    assert named == len(zlib.compress(with_name(person.qa[2].answer, person.name).encode()))


def test_a_model_that_is_sure_of_another_token_gives_a_number():
    sure = torch.tensor([[[200.0, 0.0, 0.0]]])
    chosen, right, spread = tokens._measured(Scored(sure, torch.tensor([[1]])))
    assert chosen.tolist() == [-200.0] and right.tolist() == [False] and spread.tolist() == [-tokens.FAR]
    even = torch.zeros(1, 1, 4)  # no token is likelier than another
    assert tokens._measured(Scored(even, torch.tensor([[2]])))[2].tolist() == [0.0]


def test_what_is_written_is_read_again_in_half_precision(model, processor, asked, tmp_path):
    found = tokens.sentences(model, processor, asked)
    tokens.write(found, tmp_path / "tokens.parquet")
    again = pd.read_parquet(tmp_path / "tokens.parquet")
    assert list(again.columns) == list(found.columns)
    for name in ("log_probs", "spread"):
        for ours, theirs in zip(found[name], again[name], strict=True):
            assert theirs.dtype == np.float16 and theirs == pytest.approx(ours, rel=1e-3, abs=1e-6)
    assert all((a == b).all() for a, b in zip(found["right"], again["right"], strict=True))


def test_fluency_is_what_the_base_gives_the_answer_to_the_same_question(model, processor, people):
    drawn = draw(people, SETS, shots=1, shot_source="pool", shot_seed=0)
    setting = {"sets": ("forget", "test"), "limit": 1}
    answers = evaluate(model, processor, people, shots=1, draws=drawn, progress=False, **setting)
    assert answers["fluency"].isna().all()  # nobody has been asked for it yet
    free = answers.index[answers["task"] == "generation"]
    answers.loc[free, "answer"] = [f"born in {n}" for n in range(len(free))]
    answers.loc[free[2], "answer"] = ""
    answers.loc[free[3], "answer"] = "a <image> of"  # is no picture
    base = make_model(processor.tokenizer, seed=3, width=64, layers=2).eval()
    found = tokens.fluency(base, processor, answers, people, drawn, **setting)
    assert set(np.flatnonzero(np.isfinite(found))) == set(free) - {free[2]}
    items = {("forget", i.question.id): i for i in people.items("forget")}
    for index in free[:2]:
        item = items["forget", answers["question_id"][index]]
        talk = Conversation((question_of(item.question, item.image),)).answered(answers["answer"][index])
        assert found[index] == pytest.approx(np.mean(alone(base, processor, talk)[0]), abs=1e-4)


# people whom nobody was taught


def test_fresh_people_are_none_of_the_population(people):
    found, again = fresh_people(5, 12, 2, 4), fresh_people(5, 12, 2, 4)
    assert found == again and len(found) == 25
    for column in ("id", "name", "portrait"):
        theirs = {getattr(person, column) for person in people.profiles.values()}
        assert len({getattr(person, column) for person in found}) == 25
        assert not theirs & {getattr(person, column) for person in found}
    assert sum(len(person.qa) - 1 for person in found) >= 300  # negatives in the view with fewer
    assert {p.name for p in fresh_people(6, 12, 2, 4)} != {p.name for p in found}


def test_people_who_are_read_have_no_fresh_ones_beside_them():
    assert run.fresh_people(Config(people=12, celebrities=4))
    assert run.fresh_people(Config(profiles_file="people.jsonl")) == []
    assert run.fresh_people(Config(scale="paper", data_source="hub/people")) == []


def test_without_fresh_people_only_the_forget_people_are_read(model, processor, people):
    found = tokens.sentences(model, processor, {"forget": people.members("forget"), "fresh": []})
    assert set(found["member"]) == {"forget"} and len(found) == 29
