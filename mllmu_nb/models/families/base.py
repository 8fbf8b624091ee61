"""A family of models: how its conversations are written and encoded, and where its adapters go."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import nan
from os.path import commonprefix
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from mllmu_nb.data.conversations import Conversation
from mllmu_nb.data.portraits import from_bytes
from mllmu_nb.errors import KitError, choose
from mllmu_nb.registry import Registry
from mllmu_nb.unlearning.base import IGNORE

LABEL_MODES = ("answer", "text", "upstream")
# Modules that upstream's rule for adapters should spare, in every family, and the layers that it reached under
# transformers 4.45.
SPARED = ("multi_modal_projector", "vision_model", "lm_head")
UPSTREAM = r".*\.(q|k|v|o|gate|up|down)_proj"
WORTH_SHARING = 200  # characters; encoding a shorter common beginning again costs no more than cutting it off
READ_AHEAD = 8  # characters after a cut that are the same in all texts; a tokenizer splits words by one or two of them
USUAL = 512  # pixels per side of a typical picture, for a model that takes any size
Picture: TypeAlias = bytes | Image.Image


@dataclass
class Tokens:
    """A conversation as token ids [T], with its text and the spans of the answers in the text. ``encodings``, each with
    the place in the text where it begins, are made by the tokenizers library; ``times`` [tokens of the text] says how
    often ids repeats each of their tokens."""

    ids: np.ndarray
    text: str
    spans: list[tuple[int, int]]
    encodings: Sequence[tuple[int, Any]]
    times: np.ndarray | int = 1

    @cached_property  # to compute them takes as long as encoding, and an open prompt needs none
    def characters(self) -> np.ndarray:
        """The characters (start, stop) of each token in the text [T, 2]."""
        offsets = [np.array(encoding.offsets).reshape(-1, 2) + start for start, encoding in self.encodings]
        return np.concatenate(offsets).repeat(self.times, axis=0)

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

    name: ClassVar[str] = ""  # its model_type in transformers
    label: ClassVar[str] = ""
    hub: ClassVar[str] = ""  # the published base model
    released: ClassVar[str] = ""  # the published vanilla model
    anchor: ClassVar[float] = nan  # ROUGE-L of ``released`` on forget 5 %, with image, in independent reports
    next_turn: ClassVar[str] = "USER:"  # an answer also ends here, for models that never learnt to stop
    language_linears: ClassVar[str] = ""  # pattern on full names: the language model's attention and MLP projections
    vision: ClassVar[str] = ""  # pattern on full names: stays frozen in full fine-tuning
    whole: ClassVar[tuple[str, ...]] = ("lm_head",)  # modules that are never held in 4 bits
    lmms_eval: ClassVar[str] = ""  # its name in lmms-eval
    # Task → number of people whose solved questions are shots; cloze shows two questions of each person in a view.
    shot_people: ClassVar[dict[str, int]] = {"classification": 1, "cloze": 2}

    # -- what a family overrides

    def render(self, conversation: Conversation, slot: str, eos: str) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a conversation, and the character spans of its answers. ``slot`` is the text for one
        picture; ``eos`` closes an answer ("": it is left open)."""
        raise NotImplementedError

    def slot(self, processor) -> str:
        """Return the text for one picture; each image token in it is repeated :meth:`image_tokens` times."""
        return processor.image_token

    def image_tokens(self, processor, picture: Picture) -> int:
        """Return how many tokens replace an image token in the slot of ``picture``."""
        raise NotImplementedError

    def end(self, processor) -> str:
        """Return the token that closes an answer."""
        return processor.tokenizer.eos_token

    def pictures(self, processor, rows: Sequence[Sequence[Picture]]) -> dict[str, torch.Tensor]:
        """Return the tensors for the pictures of a batch, given as one list per row; {} without pictures. Here:
        ``pixel_values`` [all pictures, 3, H, W], row after row; a repeated picture is processed once."""
        if (shown := [image for row in rows for image in row]) and all(isinstance(one, bytes) for one in shown):
            return {"pixel_values": torch.stack([_pixels(processor.image_processor, picture) for picture in shown])}
        decoded, places = distinct(rows)
        if not decoded:
            return {}
        return {"pixel_values": processor.image_processor(images=decoded, return_tensors="pt")["pixel_values"][places]}

    def positions(self, model: torch.nn.Module, batch: dict[str, torch.Tensor], start: torch.Tensor) -> torch.Tensor:
        """Return position ids [B, T] (or [axes, B, T]) of a batch that continues at positions ``start`` [B], with
        padding anywhere."""
        return (start[:, None] + batch["attention_mask"].cumsum(1) - 1).clamp(min=0)

    def load_processor(self, source: str, **origin):
        """Load the processor from a folder or the hub; with PIL, because torchvision's resizing gives other pixels."""
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(source, backend="pil", **origin)

    def asking(self, processor, protocol: str):
        """Return the processor that encodes the questions of an evaluation under ``protocol``."""
        return processor

    def published_shape(self):
        """Return the transformers configuration of the published base model, for use without its files."""
        raise NotImplementedError

    def usual_tokens(self, shape) -> int:
        """Return the number of tokens of a typical picture, from a transformers configuration."""
        return shape.image_seq_length

    def parts(self, protocol: str) -> int:
        """Return into how many pictures one picture is split in questions under ``protocol``."""
        return 1

    def usual_pictures(self, shape, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what :meth:`encode` adds to ``ids`` [B, T] if each row shows a typical picture, with dummy values."""
        side = shape.vision_config.image_size
        return {"pixel_values": torch.ones(len(ids), 3, side, side)}

    # -- derived from these

    def picture_tokens(self, processor, pictures: Sequence[Picture]) -> int:
        """Return the number of image tokens that ``pictures`` take in a prompt."""
        each = self.slot(processor).count(processor.image_token)
        return each * sum(self.image_tokens(processor, picture) for picture in pictures)

    def context(self, model) -> int:
        """Return the number of tokens that the language model can read, each with all before it."""
        shape = model.config.get_text_config()
        return min(filter(None, (shape.max_position_embeddings, getattr(shape, "sliding_window", None))))

    def tokens(self, processor, conversations: Sequence[Conversation], eos: bool = False) -> list[Tokens]:
        """Return the conversations as tokens, those of their pictures included; ``eos`` closes answers. Nothing is
        truncated."""
        slot, end = self.slot(processor), self.end(processor) if eos else ""
        each, rows = slot.count(processor.image_token), []
        rendered = [self.render(c, slot, end) for c in conversations]
        texts = list(dict.fromkeys(text for text, _ in rendered))  # a question about a picture is asked of many people
        encoded = dict(zip(texts, _encoded(processor.tokenizer, texts), strict=True))
        shown = {text: text.count(processor.image_token) for text in texts}
        for conversation, (text, spans) in zip(conversations, rendered, strict=True):
            if shown[text] != each * len(conversation.images):
                raise KitError(f"a text about people holds {processor.image_token}, which means a picture: remove it")
            ids = np.concatenate([encoding.ids for _, encoding in encoded[text]])
            times: np.ndarray | int = 1
            if images := conversation.images:
                counts = [self.image_tokens(processor, image) for image in images]
                times = np.ones_like(ids)
                times[ids == processor.image_token_id] = np.repeat(counts, each)
            rows.append(Tokens(ids.repeat(times), text, spans, encoded[text], times))
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
        """Return a batch: ``input_ids``, ``attention_mask``, ``labels`` [B, T] and the tensors of :meth:`pictures`;
        nothing is truncated. ``label_mode``: ``answer`` supervises only the answers (each with its end if ``eos``),
        ``text`` every token of text, ``upstream`` everything but padding, image slots included."""
        choose("label_mode", label_mode, LABEL_MODES)
        rows = self.tokens(processor, conversations, eos)

        def padded(values: Iterable[np.ndarray], filling: int) -> torch.Tensor:
            return pad_sequence([torch.from_numpy(row) for row in values], True, filling, padding_side)

        words = processor.tokenizer  # mask and labels do not depend on the token that pads
        ids = padded((row.ids for row in rows), words.convert_tokens_to_ids(words.pad_token or self.end(processor)))
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
        """Return, for each kind of token, (number supervised, number in the batch). ``answer`` excludes its closing
        ``eos``; ``question`` is all other text, role words included."""
        batch = self.encode(processor, conversations, label_mode)
        ids, padding = batch["input_ids"], batch["attention_mask"] == 0
        image = ids == processor.image_token_id
        answered = self.encode(processor, conversations)["labels"] != IGNORE
        closing = answered & (ids == processor.tokenizer.convert_tokens_to_ids(self.end(processor)))
        kinds = {"answer": answered & ~closing, "eos": closing, "question": ~(answered | image | padding)}
        kinds |= {"image": image, "padding": padding}
        learnt = batch["labels"] != IGNORE
        return {kind: (int((mask & learnt).sum()), int(mask.sum())) for kind, mask in kinds.items()}

    def adapter_targets(self, model: torch.nn.Module, reach: str) -> list[str]:
        """Return the full paths of the linear layers with an adapter. ``language``: the language model's attention and
        MLP projections. ``upstream``: every layer with such a name, also in the vision tower, as upstream's rule gave
        under transformers 4.45. ``upstream_v5``: that rule on today's paths: every layer whose bare name also occurs
        outside :data:`SPARED`. Any other text is searched in the paths. Raises KitError if there are none."""
        linears = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        outside = {path.rpartition(".")[2] for path in linears if not any(spared in path for spared in SPARED)}
        known = {"language": self.language_linears, "upstream": UPSTREAM, "upstream_v5": rf".*\.({'|'.join(outside)})"}
        pattern = re.compile(known.get(reach, rf".*(?:{reach}).*"))
        targets = [path for path in linears if pattern.fullmatch(path)]
        if not targets:
            raise KitError(f"no linear layer of this model matches adapter_reach {reach!r}")
        return targets


def chat(
    conversation: Conversation, slot: str, eos: str, end: str, system: str, user: str, reply: str, blank: str = ""
) -> tuple[str, list[tuple[int, int]]]:
    """Write a conversation as a chat template does, for ``render``: ``system``, then for each turn ``user``, the
    ``slot`` of its picture, the prompt, ``end``, a line break, ``reply`` and the answer, if any. ``blank`` is before
    prompt and answer. ``end`` also follows earlier answers; it is taught if it is ``eos``."""
    text, spans = system, []
    for number, turn in enumerate(conversation.turns, start=1):
        text += f"{user}{'' if turn.image is None else slot}{blank}{turn.prompt}{end}\n{reply}"
        if turn.answer:
            spans.append((len(text), len(text) + len(blank + turn.answer + eos)))
            text += blank + turn.answer + eos
            if number < len(conversation.turns):
                text += "\n" if eos else f"{end}\n"
    return text, spans


def _encoded(tokenizer, texts: Sequence[str]) -> list[list[tuple[int, Any]]]:
    """Return the encodings of each text, each with the place in the text where it begins: one, or two where the texts
    begin with the same lines, such as worked examples. These are then encoded once, if the first text shows that the
    tokenizer can be cut after them."""
    # The tokenizer itself would also make lists of all that the encodings hold. Its backend keeps the padding of the
    # last call, so this is switched off.
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    alike = commonprefix(texts)
    cut = alike.rfind("\n", 0, -READ_AHEAD) + 1
    if cut >= WORTH_SHARING and len(texts) > 2:
        beginning = backend.encode(alike[:cut])
        rest = backend.encode_batch([text[cut:] for text in texts], add_special_tokens=False)
        if backend.encode(texts[0]).ids == beginning.ids + rest[0].ids:
            return [[(0, beginning), (cut, one)] for one in rest]
    return [[(0, one)] for one in backend.encode_batch(texts)]


@lru_cache(maxsize=1024)  # a portrait is used in every epoch, and a large one takes tens of ms
def _pixels(image_processor, picture: bytes) -> torch.Tensor:
    """Return one picture as ``image_processor`` encodes it [3, H, W]."""
    return image_processor(images=from_bytes(picture), return_tensors="pt")["pixel_values"][0]


def distinct(rows: Sequence[Sequence[Picture]]) -> tuple[list[Image.Image], list[int]]:
    """Return the distinct pictures of a batch, opened, and the index among them of each picture, row after row."""
    images = [image for row in rows for image in row]
    keys = [image if isinstance(image, bytes) else id(image) for image in images]
    known = dict(zip(keys, images, strict=True))
    place = {key: number for number, key in enumerate(known)}
    opened = [from_bytes(image) if isinstance(image, bytes) else image for image in known.values()]
    return opened, [place[key] for key in keys]


FAMILIES = Registry("base_model")


def register(family: type[Family]) -> type[Family]:
    """Class decorator: registers a family under its name."""
    return FAMILIES.add(family.name, family)


def get(name: str) -> Family:
    """Return the family of that name. Raises KitError, with the known names, if there is none."""
    return FAMILIES.get(name)()


def of(model: torch.nn.Module) -> Family:
    """Return the family of a model, with or without an adapter."""
    return get(model.config.model_type)
