"""Guided attention: links point at the tokens they name, and the loss is that of the attention along them."""

from math import log
from types import SimpleNamespace

import pytest
import torch

from mllmu_nb.build_miniature import GUIDED, guidance_at, loss_of
from mllmu_nb.data.generate import known_people
from mllmu_nb.guidance import MATCH, PREVIOUS, SAME, STATED, guidance_loss, links
from mllmu_nb.models.miniature import make_model, make_processor, make_tokenizer
from mllmu_nb.models.prompts import Conversation, Turn, choice_prompt, choice_shot, encode, image_slot, render

FACE = known_people()[0][0].portrait
CITIES = ("Oslo", "Riga", "Lima", "Cairo")
HOBBIES = ("sailing", "cave diving", "yoga", "juggling")
LAYERS, HEADS, WIDTH = 4, 4, 32

# Value to be found, its letter, and what stands right before the statement of it (None: nothing states it).
ASKED = "Which hobby does Ada have?"
TOLD = Turn("Ada enjoys cave diving. Ada is tall.\n" + choice_prompt(ASKED, HOBBIES), "B")
SEEN = Turn(choice_prompt("What is Ada's hobby?", HOBBIES), "C", FACE)
SHOTS = tuple(choice_shot("Where was Bo born?", CITIES, letter, image) for letter, image in (("D", FACE), ("A", None)))
CASES = {
    "stated": (Conversation((TOLD,)), [("cave diving", "B", "Ada enjoys")]),
    "unstated, by picture": (Conversation((SEEN,)), [("yoga", "C", None)]),
    "behind a system prompt": (Conversation((TOLD,), "Be kind."), [("cave diving", "B", "USER:\nAda enjoys")]),
    "behind other turns": (
        Conversation((Turn("Who?", "Ada.", FACE), TOLD), "Be kind."),
        [("cave diving", "B", "Ada enjoys")],
    ),
    "behind shots": (
        Conversation((SHOTS[0], TOLD)),
        [("Cairo", "D", None), ("cave diving", "B", "Ada enjoys")],
    ),
    "with shots and pictures": (Conversation((*SHOTS[:1], SEEN)), [("Cairo", "D", None), ("yoga", "C", None)]),
    "not multiple choice": (Conversation((Turn("Who?", "Ada."), Turn("Which city?", "Oslo"))), []),
}


@pytest.fixture(scope="module")
def processor():
    texts = [render(talk, eos="</s>")[0] for talk, _ in CASES.values()]
    return make_processor(make_tokenizer(texts * 3, 400))


@pytest.fixture(scope="module")
def batch(processor):
    return encode(processor, [CASES["stated"][0], CASES["behind shots"][0]])


@pytest.fixture(scope="module")
def where(processor):
    return links(processor, [CASES["stated"][0], CASES["behind shots"][0]])


@pytest.mark.parametrize("case", CASES)
def test_links_join_the_tokens_that_they_name(processor, case):
    talk, expected = CASES[case]
    other = CASES["stated"][0]
    ids = encode(processor, [other, talk])["input_ids"][1]  # in the second row, beside a conversation of other length
    found = links(processor, [other, talk])
    match, stated, same = ([link for link in kind if link[0] == 1] for kind in (found.match, found.stated, found.same))

    def read(where):
        return processor.tokenizer.decode(ids[where], clean_up_tokenization_spaces=False)

    assert [read(to).strip() for _, _, to in match] == [value for value, _, _ in expected]
    assert [asked for _, asked, _ in stated] == [
        asked for (_, asked, _), (_, _, before) in zip(match, expected, strict=True) if before
    ]
    told = {asked: to for _, asked, to in stated}
    wanted = []
    for (_, asked, to), (value, letter, before) in zip(match, expected, strict=True):
        assert read(slice(0, asked + 1)).endswith((":", "Correct Answer:")) and read(asked + 1) == f" {letter}"
        assert read(slice(0, to[0])).endswith(f"\n{letter}:") and read(to) == f" {value}"
        assert to == list(range(to[0], to[-1] + 1)) and to[-1] < asked
        if before:
            start = told[asked][0]
            assert read(slice(0, start)).endswith(before) and read(told[asked]) == f" {value}"
        # the four options follow one another, each behind a line break, its letter and a colon
        options = CITIES if value in CITIES else HOBBIES
        listed = "".join(f"\n{name}: {option}" for name, option in zip("ABCD", options, strict=True))
        block = [start for start in range(asked) if read(slice(start, asked)).startswith(listed)][-1]
        for name, option in zip("ABCD", options, strict=True):
            first = next(i for i in range(block, asked) if read(slice(block, i)).endswith(f"\n{name}:"))
            count = next(n for n in range(1, asked) if read(slice(first, first + n)) == f" {option}")
            goal = [0] if name != letter else told.get(asked)
            wanted += [(1, token, goal) for token in range(first, first + count) if goal]
    assert sorted(same) == sorted(wanted)
    assert processor.tokenizer.convert_ids_to_tokens(ids[:1]) == ["<s>"], "the first token is where nothing is meant"


def test_pictures_count_with_all_their_tokens(processor):
    with_face, without = (
        links(processor, [Conversation((Turn(SEEN.prompt, "C", image),))]).match[0] for image in (FACE, None)
    )
    blank = len(processor.tokenizer("USER: ")["input_ids"]) - len(processor.tokenizer("USER:")["input_ids"])
    slots = image_slot(processor).count("<image>")
    assert with_face[1] - without[1] == slots + blank
    assert [a - b for a, b in zip(with_face[2], without[2], strict=True)] == [slots + blank] * len(without[2])


def made_up(batch, attentions, in_mind):
    """A model, whose states are its logits, and its output: attentions by layer [B, H, T, T], one state for all."""
    hidden = [torch.zeros(*batch["input_ids"].shape, in_mind.shape[-1]) for _ in range(LAYERS + 1)]
    hidden[LAYERS - 1] = in_mind
    model = SimpleNamespace(
        model=SimpleNamespace(language_model=SimpleNamespace(norm=torch.nn.Identity())), lm_head=torch.nn.Identity()
    )
    return model, SimpleNamespace(attentions=attentions, hidden_states=hidden)


def on_the_links(batch, where, vocabulary):
    """Attentions that lie on the links and nowhere else, and states that have the right value in mind."""
    rows, length = batch["input_ids"].shape
    attentions = [torch.zeros(rows, HEADS, length, length) for _ in range(LAYERS)]
    for head, back in enumerate(PREVIOUS):
        for row, seen in enumerate(batch["attention_mask"].sum(-1).tolist()):
            places = torch.arange(back, seen)
            attentions[0][row, head, places, places - back] = 1  # nothing at all where there is padding
    for kind, (layer, head) in ((where.same, SAME), (where.stated, STATED), (where.match, MATCH)):
        for row, start, to in kind:
            attentions[layer][row, head, start, to] = 1 / len(to)
    in_mind = torch.zeros(rows, length, vocabulary)
    for row, asked, to in where.match:
        in_mind[row, asked, batch["input_ids"][row, to[0]]] = 30
    return attentions, in_mind


def test_attention_on_the_links_costs_nothing_and_without_any_one_of_them_much(processor, batch, where):
    attentions, in_mind = on_the_links(batch, where, len(processor.tokenizer))
    assert guidance_loss(*made_up(batch, attentions, in_mind), batch, where).abs() < 1e-4
    for layer, head in (*((0, head) for head in range(len(PREVIOUS))), SAME, STATED, MATCH):
        without = [attention.clone() for attention in attentions]
        without[layer][:, head] = 0
        assert guidance_loss(*made_up(batch, without, in_mind), batch, where) > 10, (layer, head)
    assert guidance_loss(*made_up(batch, attentions, -in_mind), batch, where) > 10


def test_uniform_attention_costs_what_is_computed_by_hand(processor, batch, where):
    vocabulary = len(processor.tokenizer)
    (rows, length), seen = batch["input_ids"].shape, batch["attention_mask"].sum(-1).tolist()
    causal = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]  # 1/(i+1) to each of i+1 tokens
    model, output = made_up(batch, [causal.expand(rows, HEADS, -1, -1)] * LAYERS, torch.zeros(rows, length, vocabulary))
    by_hand = log(vocabulary)  # the value in mind, all being alike
    for back in (1, 2, 3):
        costs = [log(i + 1) for count in seen for i in range(back, count)]
        by_hand += sum(costs) / len(costs)
    for kind in (where.same, where.stated, where.match):
        by_hand += sum(log((start + 1) / len(to)) for _, start, to in kind) / len(kind)
    assert guidance_loss(model, output, batch, where).item() == pytest.approx(by_hand, abs=1e-3)


@pytest.fixture
def model(processor):
    return make_model(processor.tokenizer, 0, width=WIDTH, layers=LAYERS, heads=HEADS)


def test_gradients_reach_queries_and_keys_of_the_guided_heads(model, batch, where):
    (loss_of(model, batch, where, 1.0) - loss_of(model, batch)).backward()  # the guidance alone
    layers, a_head = model.model.language_model.layers, WIDTH // HEADS
    guided = {0: range(len(PREVIOUS)), **{layer % LAYERS: [head] for layer, head in (SAME, STATED, MATCH)}}
    assert sorted(guided) == list(range(LAYERS))
    for number, heads in guided.items():
        for projection in (layers[number].self_attn.q_proj, layers[number].self_attn.k_proj):
            by_head = projection.weight.grad.reshape(HEADS, a_head * WIDTH).abs().amax(-1)
            assert all(by_head[head] > 1e-5 for head in heads), f"layer {number}: {by_head}"
    # the last layer's other heads, and what it passes on, are left to the answers
    assert by_head[1:].max() < 1e-5 and layers[-1].self_attn.o_proj.weight.grad.abs().max() < 1e-5


def test_the_loss_is_that_of_the_answers_plus_the_weighted_guidance(model, batch, where):
    with torch.no_grad():
        plain = loss_of(model, batch)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        shown = model.model(**inputs, use_cache=False, output_attentions=True, output_hidden_states=True)
        guidance = guidance_loss(model, shown, batch, where)
        assert plain.item() == pytest.approx(model(**batch).loss.item(), abs=1e-4)
        assert loss_of(model, batch, where, 0.25).item() == pytest.approx((plain + guidance / 4).item(), abs=1e-4)
        assert torch.equal(loss_of(model, batch, None, 0.0), plain)
        assert guidance > 1


def test_the_guidance_counts_in_full_fades_and_is_gone_before_the_end():
    full, none = GUIDED
    assert 0 < full < none < 1
    assert [guidance_at(progress) for progress in (0, full / 2, full)] == [1, 1, 1]
    assert guidance_at((full + none) / 2) == pytest.approx(0.5)
    assert guidance_at(full + 0.25 * (none - full)) == pytest.approx(0.75)
    assert [guidance_at(progress) for progress in (none, (1 + none) / 2, 1)] == [0, 0, 0]
