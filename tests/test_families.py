"""Families: exact prompts, label masks, pictures, and the modules that adapters change."""

import copy
import inspect
import json
import re
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from tokenizers import normalizers
from transformers import AutoModelForImageTextToText, CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from miniature import make_processor, make_tokenizer
from mllmu_nb import paths
from mllmu_nb.data.conversations import (
    Conversation,
    Turn,
    prompt_of,
    question_turn,
    shot_turn,
)
from mllmu_nb.data.generate import known_people
from mllmu_nb.data.portraits import from_bytes
from mllmu_nb.data.schema import VIEWS, Question
from mllmu_nb.errors import KitError
from mllmu_nb.models import families
from mllmu_nb.models.adapters import attach
from mllmu_nb.models.files import ASSETS
from mllmu_nb.unlearning import IGNORE, Recipe

FACE, OTHER = (person.portrait for person in known_people()[0][:2])
LLAVA = families.get("llava")
GOLDEN = Path(__file__).parent / f"adapter_reach_transformers{transformers.__version__.split('.')[0]}.json"


@pytest.fixture(scope="module")
def processor():
    return make_processor(make_tokenizer(["USER: Who is this person? ASSISTANT: This person is Ada."] * 50, 600))


@pytest.fixture
def conversations():
    """One question with a picture and one without."""
    return [
        Conversation((Turn("Who is this person?", "This person is Ada.", FACE),)),
        Conversation((Turn("Who?", "Ada."),)),
    ]


# -- wordings ---------------------------------------------------------------------------------------------------


def test_wordings_are_the_released_evaluation_s():
    options = ("Oslo", "Riga", "Lima", "Cairo")
    assert prompt_of("letter", "Where?", options=options) == (
        "Where?\nA: Oslo\nB: Riga\nC: Lima\nD: Cairo\nJust give ONE letter representing the answer directly."
    )
    assert prompt_of("cloze", "Born in __.") == (
        "Born in [Blank].\nPlease **ONLY** provide the correct answer that should replace the [Blank]."
    )
    worded = "Who?\nAnswer the question based on your trained knowledge in one sentence {}in ENGLISH."
    assert prompt_of("generation", "Who?", "image_text") == worded.format("accurately ")
    assert prompt_of("generation", "Who?", "text") == worded.format("")


def test_a_conversation_is_rendered_as_llava_reads_it():
    shot = shot_turn("Where?", "B", FACE, ("Oslo", "Riga", "Lima", "Cairo"))
    conversation = Conversation((shot, Turn("Who?", image=FACE), Turn("And?", "Ada.")), "Be kind.")
    text, spans = LLAVA.render(conversation, eos="</s>")
    assert text == (
        "Be kind. USER: <image>\nQuestion: Where?\nA: Oslo\nB: Riga\nC: Lima\nD: Cairo\nCorrect Answer: B\n"
        "USER: <image>\nWho?\nASSISTANT:USER:\nAnd?\nASSISTANT: Ada.</s>"
    )
    assert [text[a:b] for a, b in spans] == [" B", " Ada.</s>"]
    assert LLAVA.render(Conversation((Turn("Who?"),)))[0] == "USER:\nWho?\nASSISTANT:"
    opened = Conversation((Turn("Who?", image=FACE),), "Be kind.")
    assert opened.answered("Ada.") == Conversation((Turn("Who?", "Ada.", FACE),), "Be kind.")


def test_upstreams_prompts_are_written_to_the_letter():
    """From what is known of the released evaluation: its shots, blanks and line breaks."""
    instruction = "Please **ONLY** provide the correct answer that should replace the [Blank]."
    shots = tuple(shot_turn("Born in __.", "Oslo", image, protocol="upstream") for image in (FACE, None))
    options = ("Oslo", "Riga", "Lima", "Cairo")
    ask = partial(Question, "001", number=0, answer="A", value="Oslo")
    for shot, view, image in zip(shots, VIEWS, (FACE, None), strict=True):
        slot, gap = ("<image>\n", " ") if image else ("", "\n")
        blank = question_turn(ask(task="cloze", view=view, text="Lives in __."), image, "upstream")
        assert LLAVA.render(Conversation((shot, blank)))[0] == (
            f"USER:{slot or gap}Born in [Blank].\n{instruction}\nCorrect Answer: Oslo\n"
            f"USER:{gap}{slot}Lives in [Blank].\n{instruction}\nASSISTANT:"
        )
        solved = shot_turn("Where?", "B", image, options)
        choice = question_turn(ask(task="classification", view=view, text="Who?", options=options), image, "upstream")
        listed = "A: Oslo\nB: Riga\nC: Lima\nD: Cairo\n"
        assert LLAVA.render(Conversation((solved, choice)))[0] == (
            f"USER:{gap}{slot}Question: Where?\n{listed}Correct Answer: B\n"
            f"USER:{gap}{slot}Who?\n{listed}Just give ONE letter representing the answer directly.\nASSISTANT:"
        )
    free = [
        question_turn(ask(task="generation", view=v, text="Who?"), i, "upstream")
        for v, i in zip(VIEWS, (FACE, None), strict=True)
    ]
    worded = "Who?\nAnswer the question based on your trained knowledge in one sentence {}in ENGLISH.\nASSISTANT:{}"
    texts = [LLAVA.render(Conversation((turn,)))[0] for turn in free]
    assert texts == [f"USER: <image>\n{worded.format('accurately ', ' ')}", f"USER: {worded.format('', '')}"]


def test_a_family_that_is_unknown_is_named():
    with pytest.raises(KitError, match="unknown base_model 'lava': did you mean 'llava'"):
        families.get("lava")


# -- what is encoded --------------------------------------------------------------------------------------------


def test_a_picture_that_comes_again_is_the_same_as_read_alone(processor):
    opened = from_bytes(OTHER)
    shown = [FACE, OTHER, FACE, opened, opened]
    together = LLAVA.pictures(processor, [shown[:2], [], shown[2:]])["pixel_values"]
    alone = [LLAVA.pictures(processor, [[image]])["pixel_values"] for image in shown]
    assert (together == torch.cat(alone)).all() and not (together[0] == together[1]).all()
    assert LLAVA.pictures(processor, [[], []]) == {}


def test_the_image_slot_is_what_the_processor_itself_makes(processor):
    text = processor(text="USER: <image>\nWho?", images=from_bytes(FACE), return_tensors="pt")
    assert int((text["input_ids"] == processor.image_token_id).sum()) == 16 == LLAVA.image_tokens(processor, FACE)
    ours = LLAVA.encode(processor, [Conversation((Turn("Who?", image=FACE),))])
    assert (ours["pixel_values"] == text["pixel_values"]).all() and LLAVA.slot(processor) == "<image>"


def test_label_modes_supervise_what_they_say(processor, conversations):
    batches = {mode: LLAVA.encode(processor, conversations, mode) for mode in ("answer", "text", "upstream")}
    ids, mask = batches["answer"]["input_ids"], batches["answer"]["attention_mask"]
    words = processor.tokenizer
    for row, answer in enumerate((" This person is Ada.</s>", " Ada.</s>")):
        labels = batches["answer"]["labels"][row]
        assert words.decode(labels[labels != IGNORE]) == answer
    images = ids == processor.image_token_id
    assert int(images.sum()) == 16
    assert ((batches["upstream"]["labels"] != IGNORE) == mask.bool()).all()  # the tokens of a picture are supervised
    assert ((batches["text"]["labels"] != IGNORE) == (mask.bool() & ~images)).all()
    assert words.decode(LLAVA.encode(processor, conversations, eos=False)["labels"][0][-1:].clamp(min=0)) != "</s>"
    with pytest.raises(KitError, match="unknown label_mode 'all': choose one of answer, text, upstream"):
        LLAVA.encode(processor, conversations, "all")


def test_label_modes_are_counted_by_kind_of_token(processor, conversations):
    counted = {mode: LLAVA.supervised(processor, conversations, mode) for mode in ("answer", "text", "upstream")}
    assert [counted[mode]["image"] for mode in counted] == [(0, 16), (0, 16), (16, 16)]
    assert [kinds["eos"] for kinds in counted.values()] == [(2, 2)] * 3
    question = counted["text"]["question"]
    assert question[0] == question[1] > 0 == counted["answer"]["question"][0]
    assert all(kinds["padding"][0] == 0 for kinds in counted.values())


def test_a_tokenizer_without_a_padding_token_pads_with_its_end(processor, conversations):
    usual, bare = LLAVA.encode(processor, conversations), copy.deepcopy(processor)
    bare.tokenizer.pad_token = None
    batch = LLAVA.encode(bare, conversations)
    padding = batch["attention_mask"] == 0
    assert padding.any() and (batch["input_ids"][padding] == bare.tokenizer.eos_token_id).all()
    for name in ("attention_mask", "labels"):
        assert torch.equal(batch[name], usual[name])
    assert torch.equal(batch["input_ids"][~padding], usual["input_ids"][~padding])


def test_a_picture_of_true_size_takes_576_tokens(processor):
    """In LLaVA-1.5, a picture has 336 pixels per side, in patches of 14."""
    pictures = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    true = LlavaProcessor(
        pictures,
        processor.tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    given = true(text="USER: <image>\nWho?", images=from_bytes(FACE), return_tensors="pt")
    assert int((given["input_ids"] == true.image_token_id).sum()) == 576 == LLAVA.image_tokens(true, FACE)


def test_text_that_holds_the_image_token_is_refused(processor):
    for turn in (Turn("<image>\nWho is this?", "Ann.", FACE), Turn("Who is <image>?", "Ann.")):
        with pytest.raises(KitError, match="a text about people holds <image>, which means a picture: remove it"):
            families.get("llava").encode(processor, [Conversation((turn,))])


def test_padding_on_the_left_moves_the_rows_and_nothing_else(processor, conversations):
    right, left = (LLAVA.encode(processor, conversations, padding_side=side) for side in ("right", "left"))
    for row in range(2):
        for name in ("input_ids", "labels"):
            a, b = (batch[name][row][batch["attention_mask"][row] == 1] for batch in (right, left))
            assert (a == b).all()
    assert left["attention_mask"][1, 0] == 0 and right["attention_mask"][1, -1] == 0
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    positions = LLAVA.positions(None, {"attention_mask": mask}, torch.tensor([0, 5]))
    assert positions.tolist() == [[0, 0, 0, 1, 2], [5, 6, 7, 7, 7]]


def test_tokens_do_not_depend_on_who_called_the_tokenizer_before_or_on_their_neighbours(processor, conversations):
    alone = [LLAVA.tokens(processor, [one])[0] for one in conversations]
    processor.tokenizer(
        ["Who?", "Who is this person?"], padding=True, padding_side="left", truncation=True, max_length=3
    )
    together = LLAVA.tokens(processor, [*conversations, *conversations])  # each text twice
    for one, other in zip([*alone, *alone], together, strict=True):
        assert one.ids.tolist() == other.ids.tolist() and one.taught.tolist() == other.taught.tolist()


@pytest.mark.parametrize("kind", ["own", "llama"])
def test_worked_examples_are_encoded_once_with_the_same_tokens(processor, kind):
    """A tokenizer that begins each text in its own way, as Llama's, is not cut."""
    words = copy.deepcopy(processor.tokenizer)
    if kind == "llama":
        words.backend_tokenizer.normalizer = normalizers.Prepend("~")
    own, encoded = make_processor(words), []

    class Counting:
        def __getattr__(self, name):
            return getattr(words.backend_tokenizer, name)

        def encode_batch(self, texts, **how):
            encoded.extend(texts)
            return words.backend_tokenizer.encode_batch(texts, **how)

    shots = [shot_turn(f"Who is {n}?", "B", FACE, ("Oslo", "Riga", "Lima", "Cairo")) for n in range(5)]
    asked = [Conversation((*shots, Turn(f"Where is {n}?", "Here.\n Or there.", FACE))) for n in range(4)]
    alone = [LLAVA.tokens(own, [one], eos=True)[0] for one in asked]
    own.tokenizer = SimpleNamespace(backend_tokenizer=Counting(), eos_token=words.eos_token)
    together = LLAVA.tokens(own, asked, eos=True)
    for one, other in zip(alone, together, strict=True):
        assert one.ids.tolist() == other.ids.tolist() and one.characters.tolist() == other.characters.tolist()
        assert one.taught.tolist() == other.taught.tolist() and one.taught.any()
    whole = sum(len(one.text) for one in alone)
    assert sum(map(len, encoded)) < 0.2 * whole if kind == "own" else sum(map(len, encoded[-4:])) == whole


def test_no_text_is_unknown_to_the_shipped_tokenizer():
    words = PreTrainedTokenizerFast.from_pretrained(ASSETS / "llava-miniature")
    text = "Zoë Łukasz 李 🦉 naïve\t§ 5'11\""
    assert words.decode(words(text, add_special_tokens=False)["input_ids"]) == text


# -- the modules that adapters change, on the published models in their true shapes, without weights -----------

# By hand: r 16 × (inputs + outputs) of each matrix × layers. Both language models have 32 layers of width 4096.
LLAMA = 16 * 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
CLIP_QKV = 16 * 24 * 3 * (1024 + 1024)
CLIP_REST = 16 * 24 * ((1024 + 1024) + 2 * (1024 + 4096))
MISTRAL = 16 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
PROJECTION = 16 * (2 * (1152 + 14336) + (14336 + 4096))
PERCEIVER = 16 * 3 * (2 * (4096 + 1536) + 2 * (4096 + 384) + 3 * (4096 + 16384))
SIGLIP_QKV = 16 * 27 * 3 * (1152 + 1152)
# Qwen2.5-VL-7B: 28 layers of width 3584 with keys and values of width 512; a tower of 32 layers, and its merger.
QWEN = 16 * 28 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
QWEN_TOWER_MLP = 16 * 32 * 3 * (1280 + 3420)
QWEN_TOWER_REST = 16 * (32 * ((1280 + 3840) + (1280 + 1280)) + (5120 + 5120) + (5120 + 3584))


def published(name):
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(families.get(name).published_shape())


@pytest.mark.parametrize(
    ("name", "reach", "count"),
    [
        ("llava", "language", LLAMA),
        ("llava", "upstream", LLAMA + CLIP_QKV),
        ("llava", "upstream_v5", LLAMA + CLIP_QKV + CLIP_REST),
        ("idefics2", "language", MISTRAL),
        ("idefics2", "upstream", MISTRAL + PROJECTION + PERCEIVER + SIGLIP_QKV),
        ("idefics2", "upstream_v5", MISTRAL + PROJECTION + PERCEIVER + SIGLIP_QKV),
        ("qwen2_5_vl", "language", QWEN),
        ("qwen2_5_vl", "upstream", QWEN + QWEN_TOWER_MLP),
        ("qwen2_5_vl", "upstream_v5", QWEN + QWEN_TOWER_MLP + QWEN_TOWER_REST),
    ],
)
def test_adapters_have_as_many_parameters_as_counted_by_hand(name, reach, count):
    three = LLAMA, LLAMA + CLIP_QKV, LLAMA + CLIP_QKV + CLIP_REST
    assert three == (39_976_960, 42_336_256, 47_054_848)  # the published numbers
    recipe = Recipe(lora_r=16, lora_alpha=16, lora_dropout=0.0, lora_init="gaussian", adapter_reach=reach)
    with torch.device("meta"):
        assert attach(published(name), recipe, 0).num_parameters(only_trainable=True) == count


@pytest.mark.parametrize(("name", "model"), [("llava", "llava_7b"), ("idefics2", "idefics2_8b")])
def test_what_each_reach_touches_is_known_for_this_transformers(name, model):
    """If a release renames modules, upstream's rule changes: this fails, and the new list belongs in a new file."""
    plain, family = published(name), families.get(name)
    for reach, known in json.loads(GOLDEN.read_text(encoding="utf-8"))[model].items():
        targets = family.adapter_targets(plain, reach)
        assert Counter(re.sub(r"\.\d+\.", ".*.", path) for path in targets) == known


# -- everything about a family is in its own file -----------------------------------------------------------------

ELSEWHERE = {
    "config.py": ["llava"],  # the default of base_model
    "reporting/published.py": ["llava"],  # the published scores are about it
    "presets/protocols.yaml": [
        "idefics2",
        "Idefics2",
    ],  # the released code treats it specially
    # the released code's rule for adapters uses these words for every family
    "models/families/base.py": ["vision_model", "multi_modal_projector"],
}


def test_no_other_file_names_a_family_its_classes_or_its_modules():
    own, words = {}, set()
    for family in families.FAMILIES.values():
        file = Path(inspect.getfile(family))
        shape = type(family().published_shape()).__name__.removesuffix("Config")
        own[file.name] = {family.name, shape, family.lmms_eval, *family.whole} - {"lm_head", "connector", "visual"}
        words |= own[file.name]
    named = {}
    for file in sorted(path for kind in ("*.py", "*.yaml") for path in paths.PACKAGE.rglob(kind)):
        text = file.read_text(encoding="utf-8")
        if file.name not in own:
            used = [word for word in words if re.search(rf"(?<![-\w]){word}(?=[A-Z\W])", text)]
            named |= {file.relative_to(paths.PACKAGE).as_posix(): sorted(used)} if used else {}
    assert named == {name: sorted(words) for name, words in ELSEWHERE.items()}
