"""A family of models (LLaVA, Idefics2 ..): how conversations are written and encoded for it, and where adapters go."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import nan
from typing import Any, ClassVar

import numpy as np
import torch

from mllmu_nb.data.conversations import Conversation
from mllmu_nb.data.portraits import from_bytes
from mllmu_nb.errors import KitError, choose
from mllmu_nb.registry import Registry

LABEL_MODES = ("answer", "text", "upstream")
TOKEN_KINDS = ("answer", "eos", "question", "image", "padding")
IGNORE = -100
# What upstream's rule for adapters means to spare; it then takes every module of a bare name that occurs elsewhere.
SPARED = ("multi_modal_projector", "vision_model", "lm_head")
# The bare names that rule found under transformers 4.45, upstream's, in LLaVA-1.5 and Idefics2 alike.
FOUND = tuple(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))


class Family:
    """A family of models. A subclass sets the class attributes and overrides what differs; see ``llava.py``."""

    name: ClassVar[str] = ""  # the model_type that transformers gives it
    label: ClassVar[str] = ""
    hub: ClassVar[str] = ""  # the published base model
    released: ClassVar[str] = ""  # the published vanilla model
    anchor: ClassVar[float] = nan  # its ROUGE-L on forget 5 %, questions with image, in independent reports
    next_turn: ClassVar[str] = "USER:"  # what a model goes on with that never learnt to stop: its answer ends there
    language_linears: ClassVar[str] = ""  # pattern on full names: the language model's attention and MLP projections
    vision: ClassVar[str] = ""  # pattern on full names: what stays frozen in full fine-tuning
    shot_people: ClassVar[dict[str, int]] = {"classification": 1, "cloze": 2}  # people shown solved, by task

    # -- what a family overrides

    def render(self, conversation: Conversation, slot: str, eos: str) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and the character spans of its answers. ``slot`` stands for one picture."""
        raise KitError(f"base_model {self.name!r} can be loaded, but its prompts are not written yet: take 'llava'")

    def image_tokens(self, processor) -> int:
        """Tokens that one picture takes."""
        raise NotImplementedError

    def pictures(self, processor, rows: Sequence[Sequence[Any]]) -> dict[str, torch.Tensor]:
        """The tensors that the pictures of a batch become, a list of pictures a row; {} when there is none. Here:
        ``pixel_values`` [all pictures, 3, H, W], row after row; a picture that comes again is processed once."""
        images = [image for row in rows for image in row]
        if not images:
            return {}
        keys = [image if isinstance(image, bytes) else id(image) for image in images]
        distinct = dict(zip(keys, images, strict=True))
        place = {key: number for number, key in enumerate(distinct)}
        decoded = [from_bytes(image) if isinstance(image, bytes) else image for image in distinct.values()]
        pixels = processor.image_processor(images=decoded, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels[[place[key] for key in keys]]}

    def positions(self, mask: torch.Tensor) -> torch.Tensor:
        """Position ids [B, T] for an attention mask [B, T] with padding anywhere."""
        return (mask.cumsum(1) - 1).clamp(min=0)

    def prepare(self, processor) -> None:
        """Changes to a processor that was just loaded."""

    def published_shape(self):
        """The transformers configuration of the published base model, for when no file of it is at hand."""
        raise NotImplementedError

    # -- what follows

    def slot(self, processor) -> str:
        """The text that stands for one picture once it is expanded."""
        return processor.image_token * self.image_tokens(processor)

    def context(self, model) -> int:
        """Tokens that the language model can read."""
        return model.config.get_text_config().max_position_embeddings

    def token_counts(self, processor, conversations: Sequence[Conversation]) -> list[int]:
        """How many tokens of the context each conversation takes, those of its pictures included."""
        texts = [self.render(c, processor.image_token, "")[0] for c in conversations]
        coded = processor.tokenizer(texts)["input_ids"] if texts else []
        more = self.image_tokens(processor) - 1
        return [len(ids) + len(c.images) * more for ids, c in zip(coded, conversations, strict=True)]

    def encode(
        self,
        processor,
        conversations: Sequence[Conversation],
        label_mode: str = "answer",
        eos: bool = True,
        padding_side: str = "right",
        device=None,
        pictures: bool = True,
    ) -> dict[str, torch.Tensor]:
        """A batch: ``input_ids``, ``attention_mask``, ``labels`` [B, T] and the tensors of :meth:`pictures`; nothing is
        truncated. ``label_mode``: ``answer`` supervises the answers only (each with its end-of-sequence token when
        ``eos``), ``text`` every token of text, ``upstream`` everything but padding, image slots included."""
        choose("label_mode", label_mode, LABEL_MODES)
        tokenizer = processor.tokenizer
        slot, end = self.slot(processor), tokenizer.eos_token if eos else ""
        rendered = [self.render(c, slot, end) for c in conversations]
        padding = {"padding": True, "padding_side": padding_side}
        coded = tokenizer([text for text, _ in rendered], return_offsets_mapping=True, **padding)
        ids, mask = torch.tensor(coded["input_ids"]), torch.tensor(coded["attention_mask"])
        starts, stops = torch.from_numpy(np.array(coded["offset_mapping"])).unbind(-1)  # faster than torch.tensor
        taught = torch.zeros_like(mask, dtype=torch.bool) if label_mode == "answer" else mask.bool()
        for row, (_, spans) in enumerate(rendered if label_mode == "answer" else ()):
            for start, stop in spans:
                taught[row] |= (start < stops[row]) & (starts[row] < stop)
        if label_mode == "text":
            taught &= ids != processor.image_token_id
        batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.where(taught, IGNORE)}
        if pictures:
            batch |= self.pictures(processor, [c.images for c in conversations])
        return {name: tensor.to(device) for name, tensor in batch.items()} if device is not None else batch

    def supervised(
        self, processor, conversations: Sequence[Conversation], label_mode: str = "answer", eos: bool = True
    ) -> dict[str, tuple[int, int]]:
        """Of each kind of token, (supervised, in the batch). ``answer`` is without its closing ``eos``; ``question`` is
        all other text, role words included."""
        batch = self.encode(processor, conversations, label_mode, eos)
        ids, padding = batch["input_ids"], batch["attention_mask"] == 0
        image = ids == processor.image_token_id
        answered = self.encode(processor, conversations, "answer", eos)["labels"] != IGNORE
        closing = answered & (ids == processor.tokenizer.eos_token_id)
        masks = (answered & ~closing, closing, ~(answered | image | padding), image, padding)
        learnt = batch["labels"] != IGNORE
        return {
            kind: (int((mask & learnt).sum()), int(mask.sum())) for kind, mask in zip(TOKEN_KINDS, masks, strict=True)
        }

    def adapter_pattern(self, model: torch.nn.Module, reach: str) -> str:
        """A pattern that matches the full paths of the linear layers with an adapter. ``language``: the language
        model's attention and MLP projections. ``upstream``: every layer of one of the names :data:`FOUND`, those of the
        vision tower too. ``upstream_v5``: the rule that found them, applied to the modules as they are called now:
        every layer whose bare name is also borne by one outside of :data:`SPARED`. Any other text is searched in the
        paths."""
        if reach == "language":
            return self.language_linears
        if reach == "upstream":
            return rf".*\.({'|'.join(FOUND)})"
        if reach == "upstream_v5":
            paths = [path for path in _linears(model) if not any(spared in path for spared in SPARED)]
            return rf".*\.({'|'.join(sorted({path.rsplit('.', 1)[-1] for path in paths}))})"
        return rf".*(?:{reach}).*"

    def adapter_targets(self, model: torch.nn.Module, reach: str) -> list[str]:
        """Full paths of the linear layers that adapters sit on. KitError when there is none."""
        pattern = re.compile(self.adapter_pattern(model, reach))
        targets = [path for path in _linears(model) if pattern.fullmatch(path)]
        if not targets:
            raise KitError(f"no linear layer of this model matches adapter_reach {reach!r}")
        return targets


def _linears(model: torch.nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


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
