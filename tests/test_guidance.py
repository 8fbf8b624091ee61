"""Building the base (tools/base_model): links point at the right tokens, and the loss is computed along them."""

import os
import subprocess
import sys
from math import log
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from guidance import GUIDED, MATCH, PREVIOUS, SAME, STATED, guidance_loss, guidance_weight, links, loss_of
from miniature import make_model, make_processor, make_tokenizer
from mllmu_nb.data.conversations import Conversation, Turn, prompt_of, shot_turn
from mllmu_nb.data.generate import known_people
from mllmu_nb.models import families

FACE = known_people()[0][0].portrait
CITIES = ("Oslo", "Riga", "Lima", "Cairo")
HOBBIES = ("sailing", "cave diving", "yoga", "juggling")
LAYERS, HEADS, WIDTH = 4, 4, 32

# For each case: the conversation and, for each multiple-choice turn, the right value, its letter and the text right
# before the statement of the value (None: not stated).
ASKED = prompt_of("letter", "Which hobby does Ada have?", options=HOBBIES)
STATED_TURN = Turn(f"Ada enjoys cave diving. Ada is tall.\n{ASKED}", "B")
PICTURED_TURN = Turn(prompt_of("letter", "What is Ada's hobby?", options=HOBBIES), "C", FACE)
SHOTS = tuple(shot_turn("Where was Bo born?", letter, image, CITIES) for letter, image in (("D", FACE), ("A", None)))
CASES = {
    "stated": (Conversation((STATED_TURN,)), [("cave diving", "B", "Ada enjoys")]),
    "unstated, by picture": (Conversation((PICTURED_TURN,)), [("yoga", "C", None)]),
    "behind a system prompt": (Conversation((STATED_TURN,), "Be kind."), [("cave diving", "B", "Ada enjoys")]),
    "behind other turns": (
        Conversation((Turn("Who?", "Ada.", FACE), STATED_TURN), "Be kind."),
        [("cave diving", "B", "Ada enjoys")],
    ),
    "behind shots": (
        Conversation((SHOTS[0], STATED_TURN)),
        [("Cairo", "D", None), ("cave diving", "B", "Ada enjoys")],
    ),
    "with shots and pictures": (Conversation((*SHOTS[:1], PICTURED_TURN)), [("Cairo", "D", None), ("yoga", "C", None)]),
    "not multiple choice": (Conversation((Turn("Who?", "Ada."), Turn("Which city?", "Oslo"))), []),
}


@pytest.fixture(scope="module", params=("llava", "idefics2"))
def family(request):
    return families.get(request.param)


@pytest.fixture(scope="module")
def processor(family):
    texts = [family.render(conversation)[0] for conversation, _ in CASES.values()]
    return make_processor(make_tokenizer(texts * 3, 400, family.name), family.name)


@pytest.fixture(scope="module")
def batch(family, processor):
    return family.encode(processor, [CASES["stated"][0], CASES["behind shots"][0]])


@pytest.fixture(scope="module")
def batch_links(family, processor):
    return links(family, processor, [CASES["stated"][0], CASES["behind shots"][0]])


@pytest.mark.parametrize("case", CASES)
def test_links_join_the_tokens_that_they_name(family, processor, case):
    conversation, expected = CASES[case]
    longer = CASES["stated"][0]
    ids = family.encode(processor, [longer, conversation])["input_ids"][1]  # the second row, after a longer one
    batch_links = links(family, processor, [longer, conversation])
    match, stated, same = (
        [link for link in kind if link[0] == 1] for kind in (batch_links.match, batch_links.stated, batch_links.same)
    )

    def read(positions):
        return processor.tokenizer.decode(ids[positions], clean_up_tokenization_spaces=False)

    assert [read(targets).strip() for _, _, targets in match] == [value for value, _, _ in expected]
    assert [question for _, question, _ in stated] == [
        question for (_, question, _), (_, _, before) in zip(match, expected, strict=True) if before
    ]
    statements = {question: targets for _, question, targets in stated}
    expected_same = []
    for (_, question, targets), (value, letter, before) in zip(match, expected, strict=True):
        assert read(slice(0, question + 1)).endswith((":", "Correct Answer:")) and read(question + 1) == f" {letter}"
        assert read(slice(0, targets[0])).endswith(f"\n{letter}:") and read(targets) == f" {value}"
        assert targets == list(range(targets[0], targets[-1] + 1)) and targets[-1] < question
        if before:
            statement = statements[question]
            assert read(slice(0, statement[0])).endswith(before) and read(statement) == f" {value}"
        # the four options follow one another; each begins with a line break, its letter and a colon
        options = CITIES if value in CITIES else HOBBIES
        listed = "".join(f"\n{name}: {option}" for name, option in zip("ABCD", options, strict=True))
        block = [start for start in range(question) if read(slice(start, question)).startswith(listed)][-1]
        for name, option in zip("ABCD", options, strict=True):
            first = next(i for i in range(block, question) if read(slice(block, i)).endswith(f"\n{name}:"))
            count = next(n for n in range(1, question) if read(slice(first, first + n)) == f" {option}")
            same_value = [0] if name != letter else statements.get(question)
            expected_same += [(1, token, same_value) for token in range(first, first + count) if same_value]
    assert sorted(same) == sorted(expected_same)
    assert processor.tokenizer.convert_ids_to_tokens(ids[:1]) == ["<s>"], "the first token takes attention to nothing"


def test_pictures_count_with_all_their_tokens(family, processor):
    with_face, without = (
        links(family, processor, [Conversation((Turn(PICTURED_TURN.prompt, "C", image),))]).match[0]
        for image in (FACE, None)
    )
    more = 16 + {"llava": 1, "idefics2": 2}[family.name]  # a blank before the picture, or a token at either end of it
    assert with_face[1] - without[1] == more
    assert [a - b for a, b in zip(with_face[2], without[2], strict=True)] == [more] * len(without[2])


def fake_output(batch, attentions, states):
    """A model whose states are its logits, and its output: attentions by layer [B, H, T, T], states [B, T, V]."""
    hidden = [torch.zeros_like(states) for _ in range(LAYERS + 1)]
    hidden[LAYERS - 1] = states
    model = SimpleNamespace(get_decoder=lambda: SimpleNamespace(norm=torch.nn.Identity()), lm_head=torch.nn.Identity())
    return model, SimpleNamespace(attentions=attentions, hidden_states=hidden)


def perfect(batch, batch_links, vocabulary):
    """Return attentions along the links only, and states that predict the right values."""
    rows, length = batch["input_ids"].shape
    attentions = [torch.zeros(rows, HEADS, length, length) for _ in range(LAYERS)]
    for head, distance in enumerate(PREVIOUS):
        for row, real in enumerate(batch["attention_mask"].sum(-1).tolist()):
            positions = torch.arange(distance, real)
            attentions[0][row, head, positions, positions - distance] = 1  # padding gets nothing
    for kind, (layer, head) in ((batch_links.same, SAME), (batch_links.stated, STATED), (batch_links.match, MATCH)):
        for row, position, targets in kind:
            attentions[layer][row, head, position, targets] = 1 / len(targets)
    states = torch.zeros(rows, length, vocabulary)
    for row, question, targets in batch_links.match:
        states[row, question, batch["input_ids"][row, targets[0]]] = 30
    return attentions, states


def test_attention_on_the_links_costs_nothing_and_without_any_one_of_them_much(processor, batch, batch_links):
    attentions, states = perfect(batch, batch_links, len(processor.tokenizer))
    assert guidance_loss(*fake_output(batch, attentions, states), batch, batch_links).abs() < 1e-4
    for layer, head in (*((0, head) for head in range(len(PREVIOUS))), SAME, STATED, MATCH):
        without = [attention.clone() for attention in attentions]
        without[layer][:, head] = 0
        assert guidance_loss(*fake_output(batch, without, states), batch, batch_links) > 10, (layer, head)
    assert guidance_loss(*fake_output(batch, attentions, -states), batch, batch_links) > 10


def test_uniform_attention_costs_what_is_computed_by_hand(processor, batch, batch_links):
    vocabulary = len(processor.tokenizer)
    (rows, length), real = batch["input_ids"].shape, batch["attention_mask"].sum(-1).tolist()
    causal = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]  # 1/(i+1) to each of i+1 tokens
    uniform = [causal.expand(rows, HEADS, -1, -1)] * LAYERS
    model, output = fake_output(batch, uniform, torch.zeros(rows, length, vocabulary))
    by_hand = log(vocabulary)  # logits for the right value are uniform
    for distance in (1, 2, 3):
        costs = [log(i + 1) for count in real for i in range(distance, count)]
        by_hand += sum(costs) / len(costs)
    for kind in (batch_links.same, batch_links.stated, batch_links.match):
        by_hand += sum(log((position + 1) / len(targets)) for _, position, targets in kind) / len(kind)
    assert guidance_loss(model, output, batch, batch_links).item() == pytest.approx(by_hand, abs=1e-3)


@pytest.fixture
def model(family, processor):
    return make_model(processor.tokenizer, 0, width=WIDTH, layers=LAYERS, heads=HEADS, family=family.name)


def test_gradients_reach_queries_and_keys_of_the_guided_heads(model, batch, batch_links):
    (loss_of(model, batch, batch_links, 1.0) - loss_of(model, batch)).backward()  # only the guidance
    layers, a_head = model.get_decoder().layers, WIDTH // HEADS
    guided = {0: range(len(PREVIOUS)), **{layer % LAYERS: [head] for layer, head in (SAME, STATED, MATCH)}}
    assert sorted(guided) == list(range(LAYERS))
    for number, heads in guided.items():
        for projection in (layers[number].self_attn.q_proj, layers[number].self_attn.k_proj):
            by_head = projection.weight.grad.reshape(HEADS, a_head * WIDTH).abs().amax(-1)
            assert all(by_head[head] > 1e-5 for head in heads), f"layer {number}: {by_head}"
    # the other heads of the last layer, and its output, are trained on the answers alone
    assert by_head[1:].max() < 1e-5 and layers[-1].self_attn.o_proj.weight.grad.abs().max() < 1e-5


def test_the_loss_is_that_of_the_answers_plus_the_weighted_guidance(model, batch, batch_links):
    with torch.no_grad():
        plain = loss_of(model, batch)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        shown = model.model(**inputs, use_cache=False, output_attentions=True, output_hidden_states=True)
        guidance = guidance_loss(model, shown, batch, batch_links)
        assert plain.item() == pytest.approx(model(**batch).loss.item(), abs=1e-4)
        assert loss_of(model, batch, batch_links, 0.25).item() == pytest.approx((plain + guidance / 4).item(), abs=1e-4)
        assert torch.equal(loss_of(model, batch, None, 0.0), plain)
        assert guidance > 1


def test_the_guidance_counts_in_full_fades_and_is_gone_before_the_end():
    full, none = GUIDED
    assert 0 < full < none < 1
    assert [guidance_weight(progress) for progress in (0, full / 2, full)] == [1, 1, 1]
    assert guidance_weight((full + none) / 2) == pytest.approx(0.5)
    assert guidance_weight(full + 0.25 * (none - full)) == pytest.approx(0.75)
    assert [guidance_weight(progress) for progress in (none, (1 + none) / 2, 1)] == [0, 0, 0]


def test_the_build_runs_without_the_settings_that_slow_bfloat16_down():
    """In its own process, because the setting would reach the notebooks' kernels from this one."""
    folder = Path(__file__).resolve().parents[1] / "tools" / "base_model"
    settings = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "MLLMU_NB_UNPINNED")
    environment = {name: value for name, value in os.environ.items() if name not in settings}
    code = f"import os, sys; sys.path.insert(0, sys.argv[1]); import build; print(*map(os.environ.get, {settings}))"
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "None", "None", "1"]
