"""The parity benchmark: it counts every answer, and tells a tie from a difference."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mllmu_nb.data.generate import generate
from mllmu_nb.evaluation import asked
from mllmu_nb.evaluation.draws import draw
from mllmu_nb.models.miniature import make_model, make_processor, make_tokenizer
from mllmu_nb.models.prompts import encode, render

FILE = Path(__file__).parent.parent / "benchmarks" / "parity.py"


@pytest.fixture(scope="module")
def parity():
    spec = importlib.util.spec_from_file_location("parity", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parts():
    people = generate(seed=5, people=12, pool=6, celebrities=0, ratio=10)
    drawn = draw(people, ("forget",), shots=5, shot_source="pool", shot_seed=0)
    return asked(people, drawn, sets=("forget",))


@pytest.fixture(scope="module")
def processor(parts):
    return make_processor(make_tokenizer([render(talk)[0] for part in parts for talk in part.talks], 700))


@pytest.fixture(scope="module")
def model(processor):
    return make_model(processor.tokenizer, seed=2, width=64, layers=2).eval()


def test_a_small_evaluation_is_answered_alike(parity, parts, model, processor):
    assert [len(part.talks) for part in parts] == [10, 10, 4, 4]
    for part in parts:
        found, apart = parity.compare(model, processor, replace(part, tokens=min(part.tokens, 6)), 16)
        assert found == [] and apart < parity.TIE


def test_a_difference_is_found_and_its_gap_is_that_of_the_two_best(parity, parts, model, processor, monkeypatch):
    part = parts[2]
    right, honest = parity.greedy(model, processor, part.talks, 3, 1)[0], parity.greedy

    def lying(model, processor, talks, tokens, size, **settings):
        texts, lengths = honest(model, processor, talks, tokens, size, **settings)
        return (["!?" + texts[0], *texts[1:]] if size > 1 else texts), lengths

    monkeypatch.setattr(parity, "greedy", lying)
    (found,), _ = parity.compare(model, processor, replace(part, tokens=3), 16)
    batch = encode(processor, part.talks[:1], eos=False)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]).logits[0, -1]
    best, second = logits.topk(2).values.tolist()
    assert found.gap == pytest.approx(best - second, abs=1e-5)
    assert (found.batched, found.single) == ("!?" + right[0], right[0]) and found.item.startswith("forget 0")
