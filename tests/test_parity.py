"""The benchmarks that compare answers count every answer and score, and distinguish a tie from a difference."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from miniature import make_model, make_processor, make_tokenizer
from mllmu_nb.data.generate import generate
from mllmu_nb.evaluation.ask import ask, inquiries_of
from mllmu_nb.evaluation.draws import draw
from mllmu_nb.evaluation.tasks import Asking
from mllmu_nb.models import families

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
LLAVA = families.get("llava")


def benchmark(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parity():
    return benchmark("parity")


@pytest.fixture(scope="module")
def released():
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(BENCHMARKS)  # it imports its neighbour
        return benchmark("released")


@pytest.fixture(scope="module")
def people():
    return generate(seed=5, people=12, pool=6, celebrities=0, ratio=10)


@pytest.fixture(scope="module")
def inquiries(people):
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


@pytest.fixture(scope="module")
def answered(released, people, inquiries, model, processor):
    """What the library itself answers, up to 50 tokens, and the kit's rows."""
    plain = [released.released(model, processor, inquiry, batched=False) for inquiry in inquiries]
    rows = ask(model, processor, people, sets=("forget",), progress=False)
    return plain, rows


def test_scores_of_the_released_way_are_those_of_the_kit(
    released, people, inquiries, model, processor, answered, capsys
):
    plain, rows = answered
    assert released.printed_differences(model, processor, people, inquiries, plain, rows) == 0
    assert capsys.readouterr().out.endswith(f"scores of {len(rows)} answers: the same\n")
    scores = released.scores(rows, people)
    measured = ["correct", "truth_ratio", "rougeL", "exact"]
    assert scores[measured].notna().sum().tolist() == [24, 10, 4, 4]


def test_a_score_that_differs_is_listed_though_the_same_option_is_chosen(
    released, people, inquiries, model, processor, answered, capsys
):
    plain, rows = [list(one) for one in answered[0]], answered[1]
    best = max(plain[1][0])
    plain[1][0] = [one if one == best else one - 1 for one in plain[1][0]]
    assert released.printed_differences(model, processor, people, inquiries, plain, rows) == 1
    out = capsys.readouterr().out
    assert "28 answers: 0 differ" in out and "the same" not in out
    assert f"DIFFERENT, score: {rows['question_id'][10]}: truth_ratio " in out


def test_a_tie_in_the_answers_is_one_in_the_scores(
    released, people, inquiries, model, processor, answered, capsys, monkeypatch
):
    plain, rows = [list(one) for one in answered[0]], answered[1]
    monkeypatch.setattr(released, "MOST_TIES", 1)
    right = "ABCD".index(inquiries[1].items[0].question.answer)
    kit = rows.copy()
    kit.loc[10, list(released.OPTIONS)] = [-1.0 - (place == right) / 2**15 for place in range(4)]
    plain[1][0] = [-1.0 + (place == right) / 2**15 for place in range(4)]
    assert released.printed_differences(model, processor, people, inquiries, plain, kit) == 0
    out = capsys.readouterr().out
    assert "1 differ" in out and f"tie, score: {rows['question_id'][10]}: correct 1 / 0\n" in out


def test_the_released_way_is_cut_where_the_kit_stops(released, inquiries, model, processor):
    asked = inquiries[2].conversations[:2]
    long, short = (released.written(model, processor, asked, 12, kept) for kept in (12, 3))
    assert all(whole.startswith(cut) and len(cut) < len(whole) for whole, cut in zip(long, short, strict=True))
    assert released.ended(model, inquiries[2], ["It is red. USER: and", "blue"]) == ["It is red.", "blue"]


def test_ratios_are_of_the_same_round(released):
    # the seconds' own extremes would give 1 to 4
    assert released.ratios([2.0, 4.0, 3.0], [1.0, 2.0, 1.0]) == "2.00 | 2.00–3.00"
