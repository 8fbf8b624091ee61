"""Asking a model many questions at once: greedy answers, and the likelihood of given options.

What makes this fast without changing an answer, and why a padded row computes what it would compute alone, is in
``docs/architecture.md``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from mllmu_nb.data.conversations import Conversation
from mllmu_nb.errors import KitError
from mllmu_nb.models import families

COUNTED_AT_ONCE = 1024  # prompts
WORTH_SHARING = 16  # tokens; reading a shorter common beginning apart costs more than it saves
Progress = Callable[[int], object]


def answers(model, processor, conversations: Sequence[Conversation], **settings) -> list[str]:
    """The texts of :func:`greedy`."""
    return greedy(model, processor, conversations, **settings)[0]


def greedy(
    model,
    processor,
    conversations: Sequence[Conversation],
    max_new_tokens: int = 40,
    batch_size: int = 64,
    progress: Progress | None = None,
    until: str | None = None,
    beyond: bool = False,
) -> tuple[list[str], list[int]]:
    """The greedy answer to each open conversation, stripped, and how many tokens were generated, the closing one
    included. It ends at the end-of-sequence token, where the text ``until`` begins ("": nowhere; None: the family's
    word for the next turn), or after ``max_new_tokens``. ``progress`` is called with the number of conversations
    finished. Raises ``KitError`` when a prompt and its answer do not fit the model's context, unless told to go
    ``beyond`` it.
    """
    texts, lengths = [""] * len(conversations), [0] * len(conversations)
    tokenizer = processor.tokenizer
    until = families.of(model).next_turn if until is None else until
    with _evaluating(model):
        ends = _end_tokens(model, tokenizer)
        last = {number for token, number in tokenizer.get_vocab().items() if until[-1:] in token} if until else set()
        for indices in _batches(conversations, batch_size):
            asked = [conversations[i] for i in indices]
            state = _Prompts.of(model, processor, asked, -math.inf if beyond else max_new_tokens).read()
            written: list[list[int]] = [[] for _ in indices]
            going = list(range(len(indices)))
            for step in range(max_new_tokens):
                tokens = state.logits.argmax(-1)
                for row, token in enumerate(tokens.tolist()):
                    if row in going:
                        written[row].append(token)
                going = [row for row in going if not _finished(written[row], ends, until, last, tokenizer)]
                if not going or step == max_new_tokens - 1:
                    break
                state.extend(tokens[:, None])
            for row, index in enumerate(indices):
                kept = [token for token in written[row] if token not in ends]
                text = tokenizer.decode(kept, skip_special_tokens=True)
                texts[index] = (text.split(until)[0] if until else text).strip()
                lengths[index] = len(written[row])
            if progress:
                progress(len(indices))
    return texts, lengths


def option_likelihoods(
    model,
    processor,
    conversations: Sequence[Conversation],
    options: Sequence[Sequence[str]],
    batch_size: int = 64,
    progress: Progress | None = None,
    beyond: bool = False,
) -> np.ndarray:
    """Mean log-likelihood per token of each option as the answer, the closing token not counted, float64
    ``[conversations, options]``. Raises ``KitError`` for unequal numbers of options, or prompts ``beyond`` the context
    unless told to go there."""
    width = len(options[0]) if len(options) else 0
    if any(len(row) != width for row in options) or len(options) != len(conversations):
        raise KitError("every question needs the same number of options to be scored by likelihood")
    scores = np.full((len(conversations), width), np.nan)
    with _evaluating(model):
        for indices in _batches(conversations, batch_size):
            closed = [conversations[i].answered(option) for i in indices for option in options[i]]
            scores[indices] = _option_means(model, processor, closed, width, -math.inf if beyond else 0)
            if progress:
                progress(len(indices))
    return scores


def lengths(model, processor, conversations: Sequence[Conversation]) -> list[int]:
    """How many tokens of the context each conversation takes. Nothing is read by the model."""
    starts = range(0, len(conversations), COUNTED_AT_ONCE)
    count = families.of(model).token_counts
    return [n for start in starts for n in count(processor, conversations[start : start + COUNTED_AT_ONCE])]


def require_context(model, tokens: int, prompt: str) -> None:
    """Raise ``KitError`` when so many tokens do not fit the model's context."""
    context = families.of(model).context(model)
    if tokens > context:
        raise KitError(
            f"{prompt} with its answer takes {tokens} tokens and the context holds {context}: ask for fewer shots, or "
            "set long_prompts"
        )


class _State:
    """What a model has read so far, row by row: keys and values, and which of their slots are real ``[rows, slots]``.

    ``logits`` [rows, V] predict the token that comes next.
    """

    def __init__(self, model, rows: int):
        self.model, self.cache, self.logits = model, DynamicCache(), None
        self.family = families.of(model)
        # transformers 5 renamed the argument; a model given the other name would swallow it and read without it
        self.argument = "cache" if "cache" in signature(type(model).forward).parameters else "past_key_values"
        self.mask = torch.zeros(rows, 0, dtype=torch.long, device=model.device)

    def extend(self, ids: torch.Tensor, mask=None, pictures: dict | None = None, keep: int = 1) -> torch.Tensor:
        """Read ``ids`` [rows, T]; ``mask`` [rows, T] marks the real ones. Returns logits [rows, keep (0: T), V]."""
        self.mask = torch.cat([self.mask, torch.ones_like(ids) if mask is None else mask], dim=1)
        logits = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=self.family.positions(self.mask)[:, -ids.shape[1] :],
            use_cache=True,
            logits_to_keep=keep,
            **{self.argument: self.cache},
            **(pictures or {}),
        ).logits.float()
        self.logits = logits[:, -1]
        return logits

    def spread(self, copies: int) -> None:
        """Repeat every row ``copies`` times."""
        self.cache.batch_repeat_interleave(copies)
        self.mask = self.mask.repeat_interleave(copies, dim=0)


@dataclass
class _Prompts:
    """The rows of one batch, with the same earlier turns and number of pictures (see :func:`_batches`)."""

    model: Any
    processor: Any
    rows: list[list[int]]  # token ids without padding
    images: list[list]  # pictures of each row
    earlier: int  # pictures in the earlier turns
    answers: list[int]  # where the answer in each row begins

    @classmethod
    def of(cls, model, processor, conversations: list[Conversation], room: float = 0) -> _Prompts:
        """The prompts of conversations; ``room`` tokens of the model's context are kept for the answer."""
        batch = families.of(model).encode(processor, conversations, eos=False, padding_side="left", pictures=False)
        ids, labels, real = batch["input_ids"], batch["labels"], batch["attention_mask"].bool()
        rows = [row[keep].tolist() for row, keep in zip(ids, real, strict=True)]
        require_context(model, max(map(len, rows)) + room, "a prompt")
        # only the last turn's answer is asked for; earlier turns may carry labels of their own
        ends = [_trailing(kept[keep] != -100) for kept, keep in zip(labels, real, strict=True)]
        answers = [len(row) - end for row, end in zip(rows, ends, strict=True)]
        earlier = len(Conversation(conversations[0].turns[:-1]).images)
        return cls(model, processor, rows, [c.images for c in conversations], earlier, answers)

    def read(self) -> _State:
        """Read all rows; the state's logits predict what comes after each."""
        shared = self._shared_length() if len(self.rows) > 1 else 0
        state, device = _State(self.model, 1 if shared else len(self.rows)), self.model.device
        if shared:
            beginning, mask = _pad([self.rows[0][:shared]], "left", device)
            state.extend(beginning, mask, self._pictures([self.images[0][: self.earlier]]))
            state.spread(len(self.rows))
        rest, mask = _pad([row[shared:] for row in self.rows], "left", device)
        state.extend(rest, mask, self._pictures([row[self.earlier if shared else 0 :] for row in self.images]))
        return state

    def _shared_length(self) -> int:
        """How many tokens all rows begin with: the earlier pictures are among them, the question's own is not."""
        length = min(_common(self.rows), min(map(len, self.rows)) - 1)
        places = [place for place, token in enumerate(self.rows[0]) if token == self.model.config.image_token_id]
        if places:
            own = self.earlier * (len(places) // len(self.images[0]))
            if own and length <= places[own - 1]:
                return 0
            length = min([length, *places[own : own + 1]])
        return length if length >= WORTH_SHARING else 0

    def _pictures(self, rows: list[list]) -> dict[str, torch.Tensor]:
        tensors = families.of(self.model).pictures(self.processor, rows)
        return {
            name: tensor.to(self.model.device, self.model.dtype if tensor.is_floating_point() else None)
            for name, tensor in tensors.items()
        }


def _option_means(model, processor, closed: list[Conversation], width: int, room: float) -> np.ndarray:
    """Mean token log-likelihoods [questions, width] of answered conversations, ``width`` answers to each question. What
    they have in common is read once, but for its last token, whose logits predict the first one to be scored."""
    batch = _Prompts.of(model, processor, closed, room)
    rows, tails, starts = [], [], []
    for first in range(0, len(closed), width):
        answered, begins = batch.rows[first : first + width], batch.answers[first : first + width]
        if any(begin == len(row) for begin, row in zip(begins, answered, strict=True)):
            raise KitError(f"an option of {closed[first].turns[-1].prompt!r} is empty and has no likelihood")
        cut = min(_common(answered), *begins) - 1
        rows.append(answered[0][:cut])
        tails += [row[cut:] for row in answered]
        starts += [begin - cut for begin in begins]
    state = replace(batch, rows=rows, images=batch.images[::width]).read()
    state.spread(width)
    ids, mask = _pad(tails, "right", model.device)
    log_probs = state.extend(ids, mask, keep=0)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    place = torch.arange(1, ids.shape[1], device=ids.device)
    scored = (place >= torch.tensor(starts, device=ids.device)[:, None]) & mask[:, 1:].bool()
    means = log_probs.masked_fill(~scored, 0.0).sum(1) / scored.sum(1)
    return means.double().cpu().numpy().reshape(-1, width)


def _batches(conversations: Sequence[Conversation], size: int) -> Iterator[list[int]]:
    """Indices of conversations to be asked together: same earlier turns, as many pictures, about the same length."""
    groups = defaultdict(list)
    for index, conversation in enumerate(conversations):
        groups[conversation.system, conversation.turns[:-1], len(conversation.images)].append(index)
    for group in groups.values():
        group.sort(key=lambda index: len(conversations[index].turns[-1].prompt))
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _pad(rows: list[list[int]], side: str, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token rows as one rectangle and the mask of the real ones, both int64 [rows, longest]."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        where = slice(width - len(tokens), width) if side == "left" else slice(len(tokens))
        ids[row, where], mask[row, where] = torch.tensor(tokens, dtype=torch.long), 1
    return ids.to(device), mask.to(device)


def _common(rows: list[list[int]]) -> int:
    """How many tokens all rows begin with; what the first and the last in order share, all between them share."""
    first, last = min(rows), max(rows)
    return next((place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))


def _trailing(flags: torch.Tensor) -> int:
    """How many true values a row of flags ends with."""
    return int(flags.flip(0).long().cumprod(0).sum())


def _end_tokens(model, tokenizer) -> set[int]:
    named = model.generation_config.eos_token_id
    ends = named if isinstance(named, list) else [named]
    return {token for token in [*ends, tokenizer.eos_token_id] if token is not None}


def _finished(written: list[int], ends: set[int], until: str, last: set[int], tokenizer) -> bool:
    """Whether an answer has ended; ``last`` are the tokens that ``until`` may end in."""
    return written[-1] in ends or (written[-1] in last and until in tokenizer.decode(written[-12:]))


@contextmanager
def _evaluating(model):
    """No dropout and no gradients inside; the model's mode is put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
