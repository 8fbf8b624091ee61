"""Asking a model many questions at once: greedy answers and the likelihood of given options.

Three things make this fast without changing an answer. Questions of about the same length share a batch. What all
prompts of a batch begin with, the worked examples before the question, is read once and its keys and values are lent
to every row. And an option is read on top of its question's keys and values, so that four options cost little more
than one. Rows are padded in the middle or on the left, never on the right of an open prompt; every call carries an
explicit attention mask and explicit positions, so a padded row computes what it would compute alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature

import numpy as np
import torch
from transformers import DynamicCache, LlavaForConditionalGeneration

from mllmu_nb.errors import KitError
from mllmu_nb.models.prompts import Conversation, encode, token_counts

NEXT_TURN = "USER:"  # a model that never learnt to stop goes on with the next question; its answer ends there
COUNTED_AT_ONCE = 1024  # prompts
WORTH_SHARING = 16  # tokens; reading a shorter common beginning apart costs more than it saves
# transformers 5 renamed the argument; a model given the other name would swallow it and read without what came before
CACHE = next(
    n for n in ("cache", "past_key_values") if n in signature(LlavaForConditionalGeneration.forward).parameters
)
Progress = Callable[[int], object]


def answers(model, processor, conversations: Sequence[Conversation], **settings) -> list[str]:
    """The texts that :func:`greedy` finds."""
    return greedy(model, processor, conversations, **settings)[0]


def greedy(
    model,
    processor,
    conversations: Sequence[Conversation],
    max_new_tokens: int = 40,
    batch_size: int = 64,
    progress: Progress | None = None,
    until: str = NEXT_TURN,
) -> tuple[list[str], list[int]]:
    """The greedy answer to each open conversation, stripped, in the order given, and how many tokens were generated
    for it, the closing one included.

    An answer ends at the end-of-sequence token, where the text ``until`` begins ("": nowhere), or after
    ``max_new_tokens``. ``progress`` is called with the number of conversations just finished. Raises ``KitError`` when
    a prompt and its answer do not fit the model's context.
    """
    texts, lengths = [""] * len(conversations), [0] * len(conversations)
    tokenizer = processor.tokenizer
    with _evaluating(model):
        ends = _end_tokens(model, tokenizer)
        last = {number for token, number in tokenizer.get_vocab().items() if until[-1:] in token} if until else set()
        for indices in _batches(conversations, batch_size):
            state = _encode(model, processor, [conversations[i] for i in indices], max_new_tokens).read()
            written: list[list[int]] = [[] for _ in indices]
            going = list(range(len(indices)))
            for step in range(max_new_tokens):
                tokens = state.logits.argmax(-1)
                for row in going:
                    written[row].append(int(tokens[row]))
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
) -> np.ndarray:
    """Mean log-likelihood per token of each option as the answer, float64 ``[conversations, options]``.

    Every question must bring the same number of options. The closing token is not scored: an option is judged by its
    own words only. Raises ``KitError`` when a prompt with its longest option does not fit the model's context.
    """
    width = len(options[0]) if len(options) else 0
    if any(len(row) != width for row in options) or len(options) != len(conversations):
        raise KitError("every question needs the same number of options to be scored by likelihood")
    scores = np.full((len(conversations), width), np.nan)
    with _evaluating(model):
        for indices in _batches(conversations, batch_size):
            closed = [conversations[i].answered(option) for i in indices for option in options[i]]
            scores[indices] = _score(model, processor, closed, width)
            if progress:
                progress(len(indices))
    return scores


def require_room(model, processor, conversations: Sequence[Conversation], names: Sequence[str], room: int = 0) -> None:
    """Raise ``KitError`` naming the longest conversation when it, with ``room`` tokens for its answer, does not fit
    the model's context. Nothing is read by the model. ``names`` [conversations] say what each one asks."""
    longest, asked = 0, ""
    for start in range(0, len(conversations), COUNTED_AT_ONCE):
        part = slice(start, start + COUNTED_AT_ONCE)
        longest, asked = max(
            [(longest, asked), *zip(token_counts(processor, conversations[part]), names[part], strict=True)]
        )
    _require_context(model, longest + room, f"the prompt of {asked}")


class _State:
    """What a model has read so far, row by row: keys and values, and which of their slots are real ``[rows, slots]``.

    ``logits`` [rows, V] predict the token that comes next.
    """

    def __init__(self, model, rows: int):
        self.model, self.cache, self.logits = model, DynamicCache(), None
        self.mask = torch.zeros(rows, 0, dtype=torch.long, device=model.device)

    def extend(self, ids: torch.Tensor, mask=None, pictures: dict | None = None, keep: int = 1) -> torch.Tensor:
        """Read ``ids`` [rows, T]; ``mask`` [rows, T] marks the real ones. Returns logits [rows, keep (0: T), V]."""
        self.mask = torch.cat([self.mask, torch.ones_like(ids) if mask is None else mask], dim=1)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=keep,
            **{CACHE: self.cache},
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
    """The rows of one batch. All have the same earlier turns and the same number of pictures (see ``_batches``).

    ``pictures`` holds the tensors that belong to the pictures, ``[rows, pictures of a row, ...]``; ``earlier`` is how
    many of a row's pictures stand in the earlier turns; ``listed`` says that the model takes all pictures of a batch
    as one list (LLaVA) and not row by row (Idefics2); ``answers`` is where the answer in each row begins.
    """

    model: torch.nn.Module
    rows: list[list[int]]
    pictures: dict[str, torch.Tensor]
    earlier: int
    listed: bool
    answers: list[int]

    def read(self) -> _State:
        """Read all rows; the state's logits predict what comes after each."""
        shared = self._shared_length() if len(self.rows) > 1 else 0
        state = _State(self.model, 1 if shared else len(self.rows))
        if shared:
            beginning, mask = _pad([self.rows[0][:shared]], "left", self.model.device)
            state.extend(beginning, mask, self._pictures(slice(1), slice(self.earlier)))
            state.spread(len(self.rows))
        rest, mask = _pad([row[shared:] for row in self.rows], "left", self.model.device)
        state.extend(rest, mask, self._pictures(slice(None), slice(self.earlier if shared else 0, None)))
        return state

    def _shared_length(self) -> int:
        """How many tokens all rows begin with: the earlier pictures are among them, the question's own is not."""
        length = _common(self.rows)
        length = min(length, min(map(len, self.rows)) - 1)
        places = [place for place, token in enumerate(self.rows[0]) if token == self.model.config.image_token_id]
        if places:
            own = self.earlier * (len(places) // self.pictures["pixel_values"].shape[1])
            if own and length <= places[own - 1]:
                return 0
            length = min([length, *places[own : own + 1]])
        return length if length >= WORTH_SHARING else 0

    def _pictures(self, rows: slice, which: slice) -> dict[str, torch.Tensor]:
        chosen = {name: values[rows, which] for name, values in self.pictures.items()}
        if any(values.shape[1] == 0 for values in chosen.values()):
            return {}
        return {name: values.flatten(0, 1) if self.listed else values for name, values in chosen.items()}


def _encode(model, processor, conversations: list[Conversation], room: int = 0) -> _Prompts:
    """The prompts of one batch; ``room`` tokens of the model's context are kept for the answer."""
    batch = encode(processor, conversations, eos=False, padding_side="left", device=model.device)
    ids, labels, real = batch["input_ids"], batch["labels"], batch["attention_mask"].bool()
    rows = [row[keep].tolist() for row, keep in zip(ids, real, strict=True)]
    _require_context(model, max(map(len, rows)) + room, "a prompt")
    # only the last turn's answer is asked for; earlier turns may carry labels of their own
    answers = [len(row) - _trailing(kept[keep] != -100) for row, kept, keep in zip(rows, labels, real, strict=True)]
    each = _picture_count(conversations[0].turns)
    pictures = {name: batch[name] for name in ("pixel_values", "pixel_attention_mask") if name in batch}
    listed = bool(pictures) and pictures["pixel_values"].ndim == 4
    if listed:
        pictures = {name: values.unflatten(0, (len(rows), each)) for name, values in pictures.items()}
    if pictures:
        pictures["pixel_values"] = pictures["pixel_values"].to(model.dtype)
    return _Prompts(model, rows, pictures, _picture_count(conversations[0].turns[:-1]), listed, answers)


def _score(model, processor, closed: list[Conversation], width: int) -> np.ndarray:
    """Mean token log-likelihoods [questions, width] of answered conversations, ``width`` answers to each question.

    What the answers of one question have in common is read once, except for its last token: reading starts from
    there for each answer, since that token's logits predict the first one to be scored.
    """
    batch = _encode(model, processor, closed)
    rows, tails, starts = [], [], []
    for first in range(0, len(closed), width):
        answered, begins = batch.rows[first : first + width], batch.answers[first : first + width]
        if any(begin == len(row) for begin, row in zip(begins, answered, strict=True)):
            raise KitError(f"an option of {closed[first].turns[-1].prompt!r} is empty and has no likelihood")
        cut = min(_common(answered), *begins) - 1
        rows.append(answered[0][:cut])
        tails += [row[cut:] for row in answered]
        starts += [begin - cut for begin in begins]
    pictures = {name: values[::width] for name, values in batch.pictures.items()}
    state = replace(batch, rows=rows, pictures=pictures).read()
    state.spread(width)
    ids, mask = _pad(tails, "right", model.device)
    found = state.extend(ids, mask, keep=0)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    place = torch.arange(1, ids.shape[1], device=ids.device)
    scored = (place >= torch.tensor(starts, device=ids.device)[:, None]) & mask[:, 1:].bool()
    means = found.masked_fill(~scored, 0.0).sum(1) / scored.sum(1)
    return means.double().cpu().numpy().reshape(-1, width)


# ------------------------------------------------------------------------------------------------------- small things


def _require_context(model, tokens: int, prompt: str) -> None:
    context = model.config.get_text_config().max_position_embeddings
    if tokens > context:
        raise KitError(
            f"{prompt} with its answer takes {tokens} tokens and the context holds {context}: ask for fewer shots"
        )


def _batches(conversations: Sequence[Conversation], size: int) -> Iterator[list[int]]:
    """Indices of conversations to be asked together: same earlier turns, as many pictures, about the same length."""
    groups = defaultdict(list)
    for index, talk in enumerate(conversations):
        groups[talk.system, talk.turns[:-1], _picture_count(talk.turns)].append(index)
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


def _picture_count(turns: Iterable) -> int:
    return sum(turn.image is not None for turn in turns)


def _end_tokens(model, tokenizer) -> set[int]:
    named = model.generation_config.eos_token_id
    found = named if isinstance(named, list) else [named]
    return {token for token in [*found, tokenizer.eos_token_id] if token is not None}


def _finished(written: list[int], ends: set[int], until: str, last: set[int], tokenizer) -> bool:
    """Whether an answer has ended; ``last`` are the tokens that ``until`` may end in."""
    if written[-1] in ends:
        return True
    return written[-1] in last and until in tokenizer.decode(written[-12:])


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
