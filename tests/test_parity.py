"""The parity benchmark counts every answer, and distinguishes a tie from a difference."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from miniature import make_model, make_processor, make_tokenizer
from mllmu_nb.data.generate import generate
from mllmu_nb.evaluation.ask import inquiries_of
from mllmu_nb.evaluation.draws import draw
from mllmu_nb.evaluation.tasks import Asking
from mllmu_nb.models import families

FILE = Path(__file__).parent.parent / "benchmarks" / "parity.py"
LLAVA = families.get("llava")


@pytest.fixture(scope="module")
def parity():
    spec = importlib.util.spec_from_file_location("parity", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def inquiries():
    people = generate(seed=5, people=12, pool=6, celebrities=0, ratio=10)
    draws = draw(people, ("forget",), shots=5, shot_source="pool", shot_seed=0)
    return inquiries_of(Asking(people, draws, shots=5), sets=("forget",))


@pytest.fixture(scope="module")
def processor(inquiries):
    texts = [LLAVA.render(conversation)[0] for inquiry in inquiries for conversation in inquiry.conversations]
    return make_processor(make_tokenizer(texts, 700))


@pytest.fixture(scope="module")
def model(processor):
    return make_model(processor.tokenizer, seed=2, width=64, layers=2).eval()


def test_a_small_evaluation_is_answered_alike(parity, inquiries, model, processor):
    assert [len(inquiry.conversations) for inquiry in inquiries] == [10, 10, 4, 4]
    for inquiry in inquiries:
        short = replace(inquiry, tokens=min(inquiry.tokens, 6))
        differences, apart = parity.compare(model, processor, short, 16)
        assert differences == [] and apart < parity.TIE


def test_the_gap_of_a_difference_is_that_of_the_two_best(parity, inquiries, model, processor, monkeypatch):
    inquiry = replace(inquiries[2], tokens=3)
    honest = parity.greedy
    right = honest(model, processor, inquiry.conversations, 3, 1)[0]

    def lying(model, processor, conversations, tokens, size, **settings):
        texts, lengths = honest(model, processor, conversations, tokens, size, **settings)
        return (["!?" + texts[0], *texts[1:]] if size > 1 else texts), lengths

    monkeypatch.setattr(parity, "greedy", lying)
    (difference,), _ = parity.compare(model, processor, inquiry, 16)
    batch = LLAVA.encode(processor, inquiry.conversations[:1], eos=False)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]).logits[0, -1]
    best, second = logits.topk(2).values.tolist()
    assert difference.gap == pytest.approx(best - second, abs=1e-5)
    assert (difference.batched, difference.single) == ("!?" + right[0], right[0])
    assert difference.item.startswith("forget 0")
