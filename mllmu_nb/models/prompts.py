"""What is said to a model: the benchmark's prompt wordings, rendered per family and turned into batches.

Wordings follow the released evaluation (multiple choice, cloze, generation and their few-shot blocks). Label modes
follow what reproductions ran into: with today's processors a mask of the padding alone supervises hundreds of image
slots, so ``answer`` is the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from mllmu_nb.data.portraits import from_bytes
from mllmu_nb.data.schema import LETTERS, Question
from mllmu_nb.errors import KitError

LABEL_MODES = ("answer", "text", "upstream")
KINDS = ("answer", "eos", "question", "image", "padding")  # of tokens
IGNORE = -100


@dataclass(frozen=True)
class Turn:
    """One exchange. ``prompt`` holds no role words; an empty ``answer`` is left open for the model.

    ``reply`` is the word before the answer: few-shot examples of the benchmark say "Correct Answer:" there.
    """

    prompt: str
    answer: str = ""
    image: bytes | Image.Image | None = None
    reply: str = "ASSISTANT:"


@dataclass(frozen=True)
class Conversation:
    """Turns in order, after an optional system prompt. Only the last turn may be open."""

    turns: tuple[Turn, ...]
    system: str = ""

    def answered(self, answer: str) -> Conversation:
        """The same conversation with its open end filled."""
        last = self.turns[-1]
        return Conversation((*self.turns[:-1], Turn(last.prompt, answer, last.image, last.reply)), self.system)


def _listed(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}: {option}" for letter, option in zip(LETTERS, options, strict=True))


def choice_prompt(text: str, options: Sequence[str]) -> str:
    """A multiple-choice question that asks for one letter."""
    return f"{text}\n{_listed(options)}\nJust give ONE letter representing the answer directly."


def cloze_prompt(text: str) -> str:
    """A sentence whose ``__`` is to be filled."""
    return (
        f"{text.replace('__', '[Blank]')}\nPlease **ONLY** provide the correct answer that should replace the [Blank]."
    )


def generation_prompt(text: str, view: str) -> str:
    """A free question; the text view's wording lacks "accurately", as upstream's does."""
    accurately = "accurately " if view == "image_text" else ""
    return f"{text}\nAnswer the question based on your trained knowledge in one sentence {accurately}in ENGLISH."


def choice_shot(text: str, options: Sequence[str], letter: str, image: bytes | None = None) -> Turn:
    """A solved multiple-choice example."""
    return Turn(f"Question: {text}\n{_listed(options)}", letter, image, "Correct Answer:")


def cloze_shot(text: str, value: str, image: bytes | None = None) -> Turn:
    """A solved cloze example."""
    return Turn(f"Question: {text.replace('__', '[Blank]')}", value, image, "Correct Answer:")


def question_of(question: Question, image: bytes | None, protocol: str = "clean") -> Turn:
    """The open turn that asks one evaluation question in its task's wording.

    ``upstream`` leaves a blank after the colon of a free question about a picture, and of no other.
    """
    if question.task == "classification":
        return Turn(choice_prompt(question.text, question.options), image=image)
    if question.task == "cloze":
        return Turn(cloze_prompt(question.text), image=image)
    blank = protocol == "upstream" and question.view == "image_text"
    reply = "ASSISTANT: " if blank else "ASSISTANT:"
    return Turn(generation_prompt(question.text, question.view), image=image, reply=reply)


def image_slot(processor) -> str:
    """The text that stands for one image: ``<image>`` as often as the processor's picture has tokens."""
    side = processor.image_processor.crop_size
    rows, columns = side["height"] // processor.patch_size, side["width"] // processor.patch_size
    count = rows * columns + processor.num_additional_image_tokens
    if processor.vision_feature_select_strategy == "default":
        count -= 1
    return processor.image_token * count


def render(conversation: Conversation, slot: str = "<image>", eos: str = "") -> tuple[str, list[tuple[int, int]]]:
    """A conversation as LLaVA-1.5 text, and the character spans of its answers (with the blank before them).

    ``{system} USER: <image>\\n{prompt}\\nASSISTANT: {answer}{eos}``; few-shot examples end with a line break. An open
    end stops at ``ASSISTANT:`` without a blank, so that the answer's first token carries it.
    """
    text, spans = (f"{conversation.system} " if conversation.system else ""), []
    for turn in conversation.turns:
        picture = "" if turn.image is None else slot
        # without a picture upstream's few-shot and choice prompts keep the line break after "USER:"
        text += f"USER: {picture}\n{turn.prompt}\n{turn.reply}" if picture else f"USER:\n{turn.prompt}\n{turn.reply}"
        if turn.answer:
            start = len(text)
            text += f" {turn.answer}{eos if turn.reply == 'ASSISTANT:' else ''}"
            spans.append((start, len(text)))
            if turn.reply != "ASSISTANT:":
                text += "\n"
    return text, spans


def token_counts(processor, conversations: Sequence[Conversation]) -> list[int]:
    """How many tokens of a model's context each conversation takes, the slots of its pictures included."""
    slots = len(image_slot(processor)) // len(processor.image_token)
    texts = [render(c, processor.image_token)[0] for c in conversations]
    pictures = [sum(turn.image is not None for turn in c.turns) for c in conversations]
    coded = processor.tokenizer(texts)["input_ids"] if texts else []
    return [len(ids) + count * (slots - 1) for ids, count in zip(coded, pictures, strict=True)]


def encode(
    processor,
    conversations: Sequence[Conversation],
    label_mode: str = "answer",
    eos: bool = True,
    padding_side: str = "right",
    device=None,
) -> dict[str, torch.Tensor]:
    """A batch: ``input_ids``, ``attention_mask``, ``labels`` [B, T] and ``pixel_values`` [images, 3, H, W] if any.

    ``label_mode``: ``answer`` supervises the answers only (each with its end-of-sequence token when ``eos``),
    ``text`` every token of text, ``upstream`` everything but padding, image slots included. Never truncates.
    """
    if label_mode not in LABEL_MODES:
        raise KitError(f"unknown label_mode {label_mode!r}: choose one of {', '.join(LABEL_MODES)}")
    tokenizer = processor.tokenizer
    slot, end = image_slot(processor), tokenizer.eos_token if eos else ""
    rendered = [render(c, slot, end) for c in conversations]
    coded = tokenizer([text for text, _ in rendered], return_offsets_mapping=True)
    length = max(len(ids) for ids in coded["input_ids"])
    shape = (len(rendered), length)
    ids = torch.full(shape, tokenizer.pad_token_id)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE)
    for row, (_, spans) in enumerate(rendered):
        tokens, offsets = coded["input_ids"][row], coded["offset_mapping"][row]
        where = slice(0, len(tokens)) if padding_side == "right" else slice(length - len(tokens), length)
        ids[row, where] = torch.tensor(tokens)
        mask[row, where] = 1
        if label_mode == "answer":
            starts, stops = np.array(offsets).T
            kept = np.zeros(len(tokens), bool)
            for start, stop in spans:
                kept |= (start < stops) & (starts < stop)
            labels[row, where] = torch.from_numpy(np.where(kept, tokens, IGNORE))
        else:
            labels[row, where] = torch.tensor(tokens)
    if label_mode == "text":
        labels[ids == processor.image_token_id] = IGNORE
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    images = [turn.image for c in conversations for turn in c.turns if turn.image is not None]
    if images:
        batch["pixel_values"] = _pixels(processor, images)
    return {k: v.to(device) for k, v in batch.items()} if device is not None else batch


def _pixels(processor, images: Sequence[bytes | Image.Image]) -> torch.Tensor:
    """What the image processor makes of each picture [images, 3, H, W]; one that comes again is read once."""
    keys = [image if isinstance(image, bytes) else id(image) for image in images]
    distinct = dict(zip(keys, images, strict=True))
    place = {key: number for number, key in enumerate(distinct)}
    read = [from_bytes(image) if isinstance(image, bytes) else image for image in distinct.values()]
    return processor.image_processor(images=read, return_tensors="pt")["pixel_values"][[place[key] for key in keys]]


def supervised(
    processor, conversations: Sequence[Conversation], label_mode: str = "answer", eos: bool = True
) -> dict[str, tuple[int, int]]:
    """How many tokens of each kind a batch supervises, and how many of that kind it holds, in the order of KINDS.

    ``answer`` without its closing ``eos``; ``question`` is all other text, role words and the beginning token with it.
    """
    batch = encode(processor, conversations, label_mode, eos)
    ids, padding = batch["input_ids"], batch["attention_mask"] == 0
    image = ids == processor.image_token_id
    answered = encode(processor, conversations, "answer", eos)["labels"] != IGNORE
    closing = answered & (ids == processor.tokenizer.eos_token_id)
    parts = (answered & ~closing, closing, ~(answered | image | padding), image, padding)
    learnt = batch["labels"] != IGNORE
    return {kind: (int((part & learnt).sum()), int(part.sum())) for kind, part in zip(KINDS, parts, strict=True)}
