"""Idefics2 and Qwen2.5-VL next to LLaVA: exact prompts, and the same numbers from batches as from the library."""

import copy
import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from miniature import make_model, make_processor, make_tokenizer
from mllmu_nb import checks, pipeline
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import Conversation, Turn, prompt_of, shot_turn
from mllmu_nb.data.generate import generate, known_people
from mllmu_nb.data.portraits import from_bytes, to_png
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation.ask import ask
from mllmu_nb.evaluation.draws import draw
from mllmu_nb.evaluation.engine import Prompts, answers, greedy, option_likelihoods
from mllmu_nb.evaluation.tasks import Asking
from mllmu_nb.models import families
from mllmu_nb.models.adapters import attach
from mllmu_nb.models.load import load_base
from mllmu_nb.models.score import score
from mllmu_nb.prediction import Estimate
from mllmu_nb.stages import read_json
from mllmu_nb.training import FineTuning, train
from mllmu_nb.unlearning import IGNORE

NAMES = [family.name for family in families.FAMILIES.values()]
SMALL = {"people": 8, "pool": 4, "celebrities": 4, "forget_ratio": 25, "replay": 0.0, "train_steps": 4}
CITIES = ("Oslo", "Riga", "Lima", "Cairo")
EDGE, PAD, END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"
IDEFICS2 = families.get("idefics2")


def picture(width: int, height: int, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return to_png(Image.fromarray(noise))


WIDE, TALL, FACE = picture(64, 32, 0), picture(32, 48, 1), known_people()[0][0].portrait


@pytest.fixture(scope="module", params=NAMES)
def family(request):
    return families.get(request.param)


@pytest.fixture(scope="module")
def tiny(family):
    """A random model whose attention depends more on position than a new one's; its processor keeps picture sizes."""
    return made(family)


def made(family):
    question = prompt_of("letter", "Where was this person born? USER: ASSISTANT:", options=CITIES)
    words = [question, "User: Assistant: system user"] * 3
    tokenizer = make_tokenizer(words, 500, family.name)
    processor = make_processor(tokenizer, family.name)
    if family.name == "idefics2":
        processor.image_processor.size = {"shortest_edge": 32, "longest_edge": 64}
    model = make_model(tokenizer, 3, width=64, layers=2, family=family.name).eval()
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                part.weight *= 4
        end = tokenizer.convert_tokens_to_ids(family.end(processor))
        model.lm_head.weight[end] *= 2.5  # some answers must end early
    return model, processor


def asked() -> list[Conversation]:
    """Return conversations with and without pictures of several sizes, worked examples and system prompts."""
    shots = [shot_turn("Where?", letter, image, CITIES) for letter, image in (("D", FACE), ("A", WIDE))]
    last = [Turn(prompt_of("letter", f"Where was {who} born?", options=CITIES), image=image) for who, image in PAIRS]
    plain = [Conversation((turn,), system) for turn in last for system in ("", "Be kind.")]
    return plain + [Conversation((*shots, turn)) for turn in last if turn.image]


PAIRS = (("Ann", None), ("this person", FACE), ("she", TALL), ("the pilot", WIDE), ("Bea", None), ("he", FACE))


def test_every_family_passes_its_check(family, tiny):
    checks.check_family(family, *tiny)


@pytest.mark.parametrize("protocol", ["clean", "upstream"])
def test_batched_answers_are_those_of_the_librarys_own_generation(family, tiny, protocol):
    """Under upstream, Idefics2 has LLaVA's prompts and split pictures."""
    model, processor = tiny[0], family.asking(tiny[1], protocol)
    conversations = [replace(conversation, protocol=protocol) for conversation in asked()]
    single, words = [], processor.tokenizer
    ends = [words.eos_token_id, words.convert_tokens_to_ids(family.end(processor))]
    for conversation in conversations:
        batch = family.encode(processor, [conversation], eos=False)
        del batch["labels"]
        written = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=ends)
        single.append(words.decode(written[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    assert answers(model, processor, conversations, max_new_tokens=8, batch_size=8, until="") == single
    assert len(set(single)) > 5 and len({len(text) for text in single}) > 2  # if alike, this would show nothing


def test_likelihoods_are_those_of_one_plain_forward_an_option(family, tiny):
    """Also for options that begin alike, and for one that is the beginning of the others."""
    model, processor = tiny
    kinds = [("Oslo", "a longer answer", "B", "no"), ("in Oslo", "in Oslo and Rome", "in Oslo, too", "in Oslo and")]
    kinds.append(
        tuple(f"As far as I know, this person lives in {place}." for place in ("Oslo", "Rome", "Bonn", "Lund"))
    )
    conversations, expected = asked(), []
    options = [kinds[number % 3] for number in range(len(conversations))]
    for conversation, own in zip(conversations, options, strict=True):
        for option in own:
            batch = family.encode(processor, [conversation.answered(option)], eos=False)
            # examples have labels too: those of the option follow the last token without a label
            labels = batch.pop("labels")[0]
            first = int((labels == IGNORE).nonzero()[-1]) + 1
            with torch.no_grad():
                log_probs = model(**batch, use_cache=False).logits[0].log_softmax(-1)
            chosen = log_probs[first - 1 : -1].gather(-1, labels[first:, None])
            expected.append(chosen.mean().item())
    table = option_likelihoods(model, processor, conversations, options, batch_size=8)
    np.testing.assert_allclose(table.ravel(), expected, atol=1e-4)


def test_the_loss_of_a_padded_batch_is_that_of_its_rows_and_the_librarys(family, tiny):
    model, processor = tiny
    closed = [conversation.answered("In Oslo." * number) for number, conversation in enumerate(asked(), start=1)]
    batch = family.encode(processor, closed)
    with torch.no_grad():
        together = score(model, batch)
        alone = [score(model, family.encode(processor, [one])) for one in closed]
        theirs = model(**batch, use_cache=False).loss
    torch.testing.assert_close(together.mean_nll, torch.cat([one.mean_nll for one in alone]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.token_nll, theirs, atol=1e-4, rtol=1e-4)


def test_checkpointing_moves_the_adapter_as_it_moves_without(family, tiny):
    """Only the adapter trains, in the first layer too: its B must move, by the same losses and to the same place."""
    model, processor = tiny
    recipe = Config(base_model=family.name, method="ga", modality="multimodal").unlearning
    recipe = replace(recipe, lora_r=2, lora_dropout=0.0, lr=1e-2)
    batch, losses, after = family.encode(processor, [one.answered("In Oslo.") for one in asked()]), [], []
    for checkpointing in (False, True):
        adapted, recipe = attach(copy.deepcopy(model), recipe, 0), replace(recipe, checkpointing=checkpointing)
        log = train(adapted, FineTuning(), [[{"train": batch}]] * 3, recipe, steps=3, progress=False)
        losses.append([entry["loss"] for entry in log.losses])
        after.append({name: p.detach() for name, p in adapted.named_parameters() if "lora_B" in name})
        assert {layer.gradient_checkpointing for layer in adapted.get_decoder().layers} == {checkpointing}
    assert losses[1] == pytest.approx(losses[0], abs=1e-4) and losses[0][-1] < losses[0][0] - 0.1
    assert all(weight.abs().max() > 0 for weight in after[1].values())
    assert all(torch.allclose(after[0][name], after[1][name], atol=1e-4) for name in after[0])


@pytest.mark.parametrize("name", sorted({*NAMES} - {"llava"}))
def test_a_family_is_trained_unlearned_and_asked(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    base = tmp_path / "base"
    model, processor = made(families.get(name))
    model.save_pretrained(base)
    processor.save_pretrained(base)
    weights = (base / "model.safetensors").read_bytes()
    (base / "recipe.json").write_text(json.dumps({"sha256": hashlib.sha256(weights).hexdigest()}))
    common = {"base_model": name, "base_path": str(base), **SMALL, "shots": 2, "unlearn_steps": 3}
    config = Config(method="grad_diff", modality="multimodal", **common)
    folder = pipeline.run(config)
    rows = pd.read_parquet(folder / "answers.parquet")
    assert set(rows["set"]) == {"forget", "retain", "test", "celebrity"} and rows["shots"].max() == 2
    assert np.isfinite(rows.loc[rows["scoring"] == "likelihood", "option_A"]).all()
    folder_of = {"vanilla": pipeline.finetuned(config).get(), "adapter": pipeline.unlearned(config).get()}
    assert len(read_json(folder_of["adapter"] / "train.json")["losses"]["loss"]) == 3
    adapter = load_file(folder_of["adapter"] / "adapter_model.safetensors")
    assert all(matrix.any() for key, matrix in adapter.items() if "lora_B" in key)  # each began with zeros
    taught, untaught = (load_file(one / "model.safetensors") for one in (folder_of["vanilla"], base))
    assert any(not torch.equal(weights, untaught[key]) for key, weights in taught.items() if key in untaught)
    assert read_json(folder / "provenance.json")["base_label"] == families.get(name).label


def test_a_processor_is_saved_as_one_that_others_load(family, tiny, tmp_path):
    """For a name that it does not know, transformers would return a bare tokenizer without a warning."""
    tiny[1].save_pretrained(tmp_path)
    named = read_json(tmp_path / "processor_config.json")["processor_class"]
    assert named in PROCESSOR_MAPPING_NAMES.values()
    if family.name != "qwen2_5_vl" or is_torchvision_available():
        assert type(AutoProcessor.from_pretrained(tmp_path)).__name__ == named
    again = family.load_processor(str(tmp_path))
    assert again.image_token == tiny[1].image_token


# -- Idefics2 -----------------------------------------------------------------------------------------------------


def shown(conversation: Conversation) -> list[Image.Image] | None:
    return [from_bytes(image) for image in conversation.images] or None


def templated(conversation: Conversation) -> str:
    """Write a conversation by the rule in the published processor_config.json, read by hand: a role and a colon, no
    space if a picture comes first, the end of an utterance and a line break."""
    written = f"System: {conversation.system}{END}\n" if conversation.system else ""
    for turn in conversation.turns:
        written += f"User:{PAD if turn.image else ' '}{turn.prompt}{END}\nAssistant:"
        written += f" {turn.answer}{END}\n" if turn.answer else ""
    return written.strip()


def test_idefics2_is_written_by_its_chat_template_and_encoded_as_its_processor_does():
    _, processor = made(IDEFICS2)
    shot = shot_turn("Where?", "B", FACE, CITIES)
    closed = Conversation((shot, Turn("Who?", "Ada.", FACE), Turn("And?", "Bo.")), "Be kind.")
    text, spans = IDEFICS2.render(closed, eos=END)
    listed = "\n".join(f"{letter}: {city}" for letter, city in zip("ABCD", CITIES, strict=True))
    assert text == (
        f"System: Be kind.{END}\nUser:<image> Question: Where?\n{listed}{END}\nAssistant: B{END}\n"
        f"User:<image> Who?{END}\nAssistant: Ada.{END}\nUser: And?{END}\nAssistant: Bo.{END}"
    )
    assert [text[a:b] for a, b in spans] == [f" B{END}", f" Ada.{END}", f" Bo.{END}"]
    opened = IDEFICS2.render(replace(closed, turns=(*closed.turns, Turn("Who?"))))
    assert opened[0] == f"{text}\nUser: Who?{END}\nAssistant:" and [opened[0][a:b] for a, b in opened[1]][0] == " B"
    for conversation in (closed, *asked()):
        theirs = processor(shown(conversation), templated(conversation), return_tensors="pt")
        ours = IDEFICS2.encode(processor, [conversation])
        assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
        for name in ("pixel_values", "pixel_attention_mask") if conversation.images else ():
            assert torch.equal(ours[name].flatten(0, 1), theirs[name].flatten(0, 1))


def test_idefics2_is_asked_by_upstream_with_llavas_prompts_and_split_pictures():
    """Training, in clean and upstream, uses its chat template and whole pictures."""
    model, processor = made(IDEFICS2)
    people = generate(seed=5, people=12, pool=6, celebrities=4, ratio=25)
    draws = draw(people, ("forget",), shots=1, shot_source="upstream", shot_people=IDEFICS2.shot_people, shot_seed=0)
    items = [item for item in people.items("forget") if item.question.task == "classification"]
    clean, upstream = (
        Asking(people, draws, 1, protocol).letters(items).conversations for protocol in ("clean", "upstream")
    )
    split = IDEFICS2.asking(processor, "upstream")
    assert IDEFICS2.asking(processor, "clean") is processor and not processor.image_processor.do_image_splitting
    assert IDEFICS2.render(clean[0])[0].startswith("User:")
    for conversation in upstream[::5]:
        text = families.get("llava").render(conversation)[0]
        assert text.startswith("USER:") and IDEFICS2.render(conversation, PAD)[0] == text
        theirs = split(shown(conversation), text, return_tensors="pt")
        ours = IDEFICS2.encode(split, [conversation])
        assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
        if conversation.images:
            assert IDEFICS2.slot(split) == EDGE + 5 * (PAD + EDGE)
            assert ours["pixel_values"].shape[:2] == (len(conversation.images), 5)
            assert torch.equal(ours["pixel_values"].flatten(0, 1), theirs["pixel_values"].flatten(0, 1))
    rows = ask(
        model,
        processor,
        people,
        sets=("forget",),
        shots=1,
        shot_source="upstream",
        scoring="letter",
        protocol="upstream",
        limit=2,
        progress=False,
    )
    assert len(rows) and not processor.image_processor.do_image_splitting
    config = Config(base_model="idefics2", protocol="upstream")
    assert config.training.eos and not Config(protocol="upstream").training.eos and "eos" not in config.deviations()


def test_idefics2s_closing_word_is_taught_and_ends_an_answer():
    model, processor = made(IDEFICS2)
    conversation = Conversation((Turn("Who?", "Ada.", FACE),))
    batch = IDEFICS2.encode(processor, [conversation], "text")
    end = processor.tokenizer.convert_tokens_to_ids(END)
    assert int(batch["labels"][0, -1]) == end != processor.tokenizer.eos_token_id
    assert not (batch["labels"] == processor.image_token_id).any()
    counted = IDEFICS2.supervised(processor, [conversation])
    assert counted["eos"] == (1, 1) and counted["image"] == (0, 16)
    model.generation_config.eos_token_id = None  # so that only the family knows it
    script = iter([5, 7, 8, end, 9])  # the token predicted after the picture comes first and is no answer

    def recite(head, states, logits):
        logits.zero_()[:, -1, next(script)] = 1

    model.lm_head.register_forward_hook(recite)
    assert greedy(model, processor, [conversation.answered("")], max_new_tokens=4)[1] == [3]


def test_a_miniature_that_does_not_come_with_the_kit_is_named():
    from mllmu_nb.models.files import ASSETS

    with pytest.raises(KitError, match="no miniature of qwen2_5_vl comes with the kit: `make base BASES=qwen2_5_vl`"):
        load_base(str(ASSETS / "qwen2_5_vl-miniature"), "qwen2_5_vl", "miniature")


# -- Qwen2.5-VL -----------------------------------------------------------------------------------------------------


def test_qwen_takes_as_many_tokens_as_a_picture_asks_for_and_counts_on_three_axes():
    qwen = families.get("qwen2_5_vl")
    model, processor = made(qwen)
    assert [qwen.image_tokens(processor, image) for image in (FACE, WIDE, TALL)] == [16, 8, 6]
    start, end = "<|im_start|>", "<|im_end|>"
    text, spans = qwen.render(Conversation((Turn("Who?", "Ada.", TALL),), "Be kind."), eos=end)
    assert text == (
        f"{start}system\nBe kind.{end}\n{start}user\n<|image_pad|>Who?{end}\n{start}assistant\nAda.{end}"
    ) and [text[a:b] for a, b in spans] == [f"Ada.{end}"]
    batch = qwen.encode(processor, [Conversation((Turn("Who?", image=TALL),))])
    before = int((batch["input_ids"][0] == processor.image_token_id).nonzero()[0])
    places = qwen.positions(model, batch, torch.tensor([7]))[:, 0, before - 1 : before + 8]
    at = before + 7  # two columns and three rows; then the text goes on from the larger coordinate
    assert (places - at).tolist() == [
        [-1, 0, 0, 0, 0, 0, 0, 3, 4],
        [-1, 0, 0, 1, 1, 2, 2, 3, 4],
        [-1, 0, 1, 0, 1, 0, 1, 3, 4],
    ]


def test_qwens_positions_of_text_are_those_of_the_library():
    """Padded on either side; there, a position means nothing."""
    qwen = families.get("qwen2_5_vl")
    model, _ = made(qwen)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 0]])
    ids = torch.full(mask.shape, model.config.image_token_id)  # written by a model
    start = torch.tensor([0, 5, 9])
    wanted = model.model.get_rope_index(ids, torch.zeros_like(ids), attention_mask=mask)[0] + start[:, None]
    given = qwen.positions(model, {"input_ids": ids, "attention_mask": mask}, start)
    assert given.shape == (3, 3, 4) and torch.equal(given[:, mask.bool()], wanted[:, mask.bool()])


def test_qwens_published_shape_has_its_published_size_and_takes_adapters():
    shape = families.get("qwen2_5_vl").published_shape()
    estimate = Estimate(shape, eager=False)
    assert estimate.parameters == 8_292_166_656  # the number that the hub states
    linears = 2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944)
    assert estimate.step(Config(scale="paper").training, full=False)["trained"] == 16 * 28 * linears
    assert estimate.image_tokens == 324


def test_prompts_that_leave_no_room_for_an_answer_are_named(family, tiny):
    model, processor = tiny
    rows = [family.encode(processor, [conversation])["input_ids"].numel() for conversation in asked()]
    model.config.get_text_config().max_position_embeddings, before = max(rows) + 2, family.context(model)
    try:
        prompts = Prompts.of(model, processor, asked())
        prompts.require_room(model, 2)
        with pytest.raises(KitError, match=f"the prompt of b with its answer takes {max(rows) + 3} tokens"):
            prompts.require_room(model, 3, ["b"] * len(rows))
        assert (prompts.too_long(model, 2), prompts.too_long(model, 3)) == (0, rows.count(max(rows)))
    finally:
        model.config.get_text_config().max_position_embeddings = before
