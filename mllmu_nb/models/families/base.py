"""A family of models: how conversations are written and encoded for it, and where adapters go."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import nan
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from mllmu_nb.data.conversations import Conversation, Turn
from mllmu_nb.data.portraits import from_bytes
from mllmu_nb.errors import KitError, choose
from mllmu_nb.registry import Registry
from mllmu_nb.unlearning.base import IGNORE

LABEL_MODES = ("answer", "text", "upstream")
TOKEN_KINDS = ("answer", "eos", "question", "image", "padding")
# What upstream's rule for adapters means to spare, whatever the family, and the layers that it reached under
# transformers 4.45.
SPARED = ("multi_modal_projector", "vision_model", "lm_head")
UPSTREAM = r".*\.(q|k|v|o|gate|up|down)_proj"
USUAL = 512  # pixels per side of a usual picture, where a model takes any size
Picture: TypeAlias = bytes | Image.Image


@dataclass
class Tokens:
    """A conversation token by token: ids [T]; the text, the spans of the answers there, and its ``encoding`` by the
    tokenizers library, each token of which stands for so many ``times`` [tokens of the text] in ids."""

    ids: np.ndarray
    text: str
    spans: list[tuple[int, int]]
    encoding: Any
    times: np.ndarray | int = 1

    @cached_property  # taking them from an encoding costs as much as encoding, and an open prompt needs none
    def characters(self) -> np.ndarray:
        """The characters (start, stop) of each token in the text [T, 2]."""
        return np.array(self.encoding.offsets).reshape(-1, 2).repeat(self.times, axis=0)

    @property
    def taught(self) -> np.ndarray:
        """Whether each token belongs to an answer [T]."""
        starts, stops = self.characters.T
        taught = np.zeros(len(self.ids), dtype=bool)
        for start, stop in self.spans:
            taught |= (start < stops) & (starts < stop)
        return taught


class Family:
    """A family of models. A subclass sets the class attributes and overrides what differs."""

    name: ClassVar[str] = ""  # the model_type that transformers gives it
    label: ClassVar[str] = ""
    hub: ClassVar[str] = ""  # the published base model
    released: ClassVar[str] = ""  # the published vanilla model
    anchor: ClassVar[float] = nan  # its ROUGE-L on forget 5 %, questions with image, in independent reports
    next_turn: ClassVar[str] = "USER:"  # how a model continues that never learnt to stop: its answer ends there
    language_linears: ClassVar[str] = ""  # pattern on full names: the language model's attention and MLP projections
    vision: ClassVar[str] = ""  # pattern on full names: what stays frozen in full fine-tuning
    whole: ClassVar[tuple[str, ...]] = ("lm_head",)  # modules that stay as they are where layers are held in 4 bits
    lmms_eval: ClassVar[str] = ""  # what lmms-eval calls it
    # People shown solved, by task; cloze shows two questions of each in a view.
    shot_people: ClassVar[dict[str, int]] = {"classification": 1, "cloze": 2}

    # -- what a family overrides

    def render(self, conversation: Conversation, slot: str, eos: str) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and the character spans of its answers. ``slot`` stands for one picture, ``eos``
        closes an answer ("": it is left open)."""
        raise NotImplementedError

    def slot(self, processor) -> str:
        """The text that stands for one picture; each image token in it becomes :meth:`image_tokens` of them."""
        return processor.image_token

    def image_tokens(self, processor, picture: Picture) -> int:
        """How many tokens an image token in the slot of ``picture`` becomes."""
        raise NotImplementedError

    def end(self, processor) -> str:
        """The token that closes an answer."""
        return processor.tokenizer.eos_token

    def pictures(self, processor, rows: Sequence[Sequence[Picture]]) -> dict[str, torch.Tensor]:
        """The tensors that the pictures of a batch become, one list of pictures per row; {} when there is none. Here:
        ``pixel_values`` [all pictures, 3, H, W], row after row; a picture that comes again is processed once."""
        if (shown := [image for row in rows for image in row]) and all(isinstance(one, bytes) for one in shown):
            return {"pixel_values": torch.stack([_pixels(processor.image_processor, picture) for picture in shown])}
        decoded, places = distinct(rows)
        if not decoded:
            return {}
        return {"pixel_values": processor.image_processor(images=decoded, return_tensors="pt")["pixel_values"][places]}

    def positions(self, model: torch.nn.Module, batch: dict[str, torch.Tensor], start: torch.Tensor) -> torch.Tensor:
        """Position ids [B, T] (or [axes, B, T]) of a batch that goes on at the positions ``start`` [B], with padding
        anywhere."""
        return (start[:, None] + batch["attention_mask"].cumsum(1) - 1).clamp(min=0)

    def load_processor(self, source: str, **origin):
        """The processor in a folder or on the hub; PIL, since torchvision's resizing gives other pixels."""
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(source, backend="pil", **origin)

    def asking(self, processor, protocol: str):
        """The processor that encodes the questions of an evaluation under ``protocol``."""
        return processor

    def published_shape(self):
        """The transformers configuration of the published base model, for when no file of it is at hand."""
        raise NotImplementedError

    def usual_tokens(self, shape) -> int:
        """Tokens of a usual picture, by a transformers configuration."""
        return shape.image_seq_length

    def parts(self, protocol: str) -> int:
        """Pictures that one is split into where it is asked about under ``protocol``."""
        return 1

    def usual_pictures(self, shape, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What :meth:`encode` adds to ``ids`` [B, T] where each row shows a usual picture; its numbers mean nothing."""
        side = shape.vision_config.image_size
        return {"pixel_values": torch.ones(len(ids), 3, side, side)}

    # -- what follows

    def picture_tokens(self, processor, pictures: Sequence[Picture]) -> int:
        """Image tokens that ``pictures`` take in a prompt."""
        each = self.slot(processor).count(processor.image_token)
        return each * sum(self.image_tokens(processor, picture) for picture in pictures)

    def context(self, model) -> int:
        """Tokens that the language model can read."""
        return model.config.get_text_config().max_position_embeddings

    def tokens(self, processor, conversations: Sequence[Conversation], eos: bool = False) -> list[Tokens]:
        """The conversations as tokens, those of their pictures included; answers are closed when ``eos``. Nothing is
        truncated."""
        slot, end = self.slot(processor), self.end(processor) if eos else ""
        each, rows = slot.count(processor.image_token), []
        rendered = [self.render(c, slot, end) for c in conversations]
        encodings = processor.tokenizer([text for text, _ in rendered], return_attention_mask=False).encodings
        for conversation, (text, spans), encoding in zip(conversations, rendered, encodings, strict=True):
            ids = np.array(encoding.ids)
            times: np.ndarray | int = 1
            if images := conversation.images:
                counts = [self.image_tokens(processor, image) for image in images]
                times = np.ones_like(ids)
                times[ids == processor.image_token_id] = np.repeat(counts, each)
            rows.append(Tokens(ids.repeat(times), text, spans, encoding, times))
        return rows

    def encode(
        self,
        processor,
        conversations: Sequence[Conversation],
        label_mode: str = "answer",
        eos: bool = True,
        padding_side: str = "right",
        device=None,
    ) -> dict[str, torch.Tensor]:
        """A batch: ``input_ids``, ``attention_mask``, ``labels`` [B, T] and the tensors of :meth:`pictures`; nothing is
        truncated. ``label_mode``: ``answer`` supervises the answers only (each with its end when ``eos``), ``text``
        every token of text, ``upstream`` everything but padding, image slots included."""
        choose("label_mode", label_mode, LABEL_MODES)
        rows = self.tokens(processor, conversations, eos)

        def padded(values: Iterable[np.ndarray], filling: int) -> torch.Tensor:
            return pad_sequence([torch.from_numpy(row) for row in values], True, filling, padding_side)

        ids = padded((row.ids for row in rows), processor.tokenizer.pad_token_id)
        mask = padded((np.ones_like(row.ids) for row in rows), 0)
        taught = padded((row.taught for row in rows), 0) if label_mode == "answer" else mask.bool()
        if label_mode == "text":
            taught &= ids != processor.image_token_id
        batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.where(taught, IGNORE)}
        batch |= self.pictures(processor, [c.images for c in conversations])
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def supervised(
        self, processor, conversations: Sequence[Conversation], label_mode: str = "answer"
    ) -> dict[str, tuple[int, int]]:
        """Of each kind of token, (supervised, in the batch). ``answer`` is without its closing ``eos``; ``question`` is
        all other text, role words included."""
        batch = self.encode(processor, conversations, label_mode)
        ids, padding = batch["input_ids"], batch["attention_mask"] == 0
        image = ids == processor.image_token_id
        answered = self.encode(processor, conversations)["labels"] != IGNORE
        closing = answered & (ids == processor.tokenizer.convert_tokens_to_ids(self.end(processor)))
        masks = (answered & ~closing, closing, ~(answered | image | padding), image, padding)
        learnt = batch["labels"] != IGNORE
        return {
            kind: (int((mask & learnt).sum()), int(mask.sum())) for kind, mask in zip(TOKEN_KINDS, masks, strict=True)
        }

    def adapter_pattern(self, model: torch.nn.Module, reach: str) -> str:
        """A pattern that matches the full paths of the linear layers with an adapter. ``language``: the language
        model's attention and MLP projections. ``upstream``: every layer of such a name, the vision tower's too, which
        is what upstream's rule gave under transformers 4.45. ``upstream_v5``: that rule applied to today's paths: every
        layer whose bare name one outside of :data:`SPARED` bears. Any other text is searched in the paths."""
        outside = (path for path in _linears(model) if not any(spared in path for spared in SPARED))
        names = sorted({path.rpartition(".")[2] for path in outside})
        known = {"language": self.language_linears, "upstream": UPSTREAM, "upstream_v5": rf".*\.({'|'.join(names)})"}
        return known.get(reach, rf".*(?:{reach}).*")

    def adapter_targets(self, model: torch.nn.Module, reach: str) -> list[str]:
        """Full paths of the linear layers that adapters sit on. KitError when there is none."""
        pattern = re.compile(self.adapter_pattern(model, reach))
        targets = [path for path in _linears(model) if pattern.fullmatch(path)]
        if not targets:
            raise KitError(f"no linear layer of this model matches adapter_reach {reach!r}")
        return targets


def chat(
    conversation: Conversation,
    eos: str,
    end: str,
    system: str,
    asked: Callable[[Turn], str],
    reply: str,
    blank: str = "",
) -> tuple[str, list[tuple[int, int]]]:
    """What a chat template makes of a conversation, for ``render``: ``system``, and for each turn what is ``asked``,
    ``end``, a line break, ``reply`` and, where there is one, the answer behind ``blank``. ``end`` stands behind earlier
    answers as well, taught if it is ``eos``."""
    text, spans = system, []
    for number, turn in enumerate(conversation.turns, start=1):
        text += f"{asked(turn)}{end}\n{reply}"
        if turn.answer:
            spans.append((len(text), len(text) + len(blank + turn.answer + eos)))
            text += blank + turn.answer + eos
            if number < len(conversation.turns):
                text += "\n" if eos else f"{end}\n"
    return text, spans


@lru_cache(maxsize=1024)  # a portrait comes again in every epoch, and a large one takes tens of ms
def _pixels(image_processor, picture: bytes) -> torch.Tensor:
    """What ``image_processor`` makes of one picture [3, H, W]."""
    return image_processor(images=from_bytes(picture), return_tensors="pt")["pixel_values"][0]


def distinct(rows: Sequence[Sequence[Picture]]) -> tuple[list[Image.Image], list[int]]:
    """The different pictures of a batch, opened, and the place among them of each that is shown, row after row."""
    images = [image for row in rows for image in row]
    keys = [image if isinstance(image, bytes) else id(image) for image in images]
    known = dict(zip(keys, images, strict=True))
    place = {key: number for number, key in enumerate(known)}
    opened = [from_bytes(image) if isinstance(image, bytes) else image for image in known.values()]
    return opened, [place[key] for key in keys]


FAMILIES = Registry("base_model")


def register(family: type[Family]) -> type[Family]:
    """Class decorator: makes a family known under its name."""
    return FAMILIES.add(family.name, family)


def get(name: str) -> Family:
    """The family of that name. Raises KitError naming those there are."""
    return FAMILIES.get(name)()


def of(model: torch.nn.Module) -> Family:
    """The family of a model, with an adapter on it or not."""
    return get(model.config.model_type)


def _linears(model: torch.nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
