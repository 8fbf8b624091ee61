"""Ask a model many questions at once: greedy answers, and the likelihood of given options.

``docs/architecture.md`` explains what makes this fast without changing an answer, and why a padded row gives the same
result as alone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from inspect import signature
from itertools import repeat
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from mllmu_nb.data.conversations import Conversation
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import attention
from mllmu_nb.models import families
from mllmu_nb.processes import cores, launched

ENCODED_AT_ONCE = 1024  # prompts
READ_AT_ONCE = 2048  # tokens; a layer's results for so many stay in a processor's cache
WORTH_SHARING = 16  # tokens; reading a shorter common beginning separately costs more than it saves
MOST_THREADS = 4  # more was never measured
THINNED = 0.75  # finished rows are dropped only when less than this share is left, since dropping copies the others
Progress = Callable[[int], object]
Options = Sequence[Sequence[str]]  # the options of each conversation
Chunks = Iterator[tuple[list[int], "State"]]  # prompts, by their indices, and the state after reading them


@dataclass(frozen=True)
class Prompts:
    """Conversations as token ids: one row per conversation, or one per option of it, and the position in each row where
    the last answer begins."""

    conversations: Sequence[Conversation]
    rows: list[np.ndarray]
    begins: list[int]

    @classmethod
    def of(cls, model, processor, conversations: Sequence[Conversation], options: Options | None = None) -> Prompts:
        """Encode conversations as the family of ``model`` writes them, with their ``options`` as answers if given."""
        family, written, alike = families.of(model), conversations, defaultdict(list)
        if options is not None:
            pairs = zip(conversations, options, strict=True)
            written = [conversation.answered(option) for conversation, given in pairs for option in given]
        for number, conversation in enumerate(written):  # the same earlier turns are encoded once
            alike[conversation.turns[:-1]].append(number)
        rows, begins = [np.empty(0)] * len(written), [0] * len(written)
        for numbers in alike.values():
            for start in range(0, len(numbers), ENCODED_AT_ONCE):
                some = numbers[start : start + ENCODED_AT_ONCE]
                for number, one in zip(some, family.tokens(processor, [written[n] for n in some]), strict=True):
                    rows[number] = one.ids.astype(np.int32)
                    # earlier turns have answers, too; an open prompt ends where its answer begins
                    answered = 0 if options is None else int(one.taught[::-1].cumprod().sum())
                    begins[number] = len(one.ids) - answered
        return cls(conversations, rows, begins)

    @property
    def width(self) -> int:
        """Rows per conversation."""
        return len(self.rows) // max(len(self.conversations), 1)

    def some(self, numbers: Sequence[int]) -> Prompts:
        """Return the prompts of the conversations with these numbers."""
        rows = [number * self.width + row for number in numbers for row in range(self.width)]
        own = [self.conversations[number] for number in numbers]
        return Prompts(own, [self.rows[row] for row in rows], [self.begins[row] for row in rows])

    def keys(self) -> list[str]:
        """Return a hash of what the model reads of each conversation: tokens and pictures."""
        read = []
        for number, conversation in enumerate(self.conversations):
            rows = self.rows[number * self.width : (number + 1) * self.width]
            whole = hashlib.sha256()
            for one in (*(row.tobytes() for row in rows), *_keys(conversation.images)):
                whole.update(len(one).to_bytes(8) + one)
            read.append(whole.hexdigest())
        return read

    def require_room(self, model, room: int = 0, names: Iterable[str] = repeat("a question")) -> None:
        """Raise ``KitError``, with the prompt's name, if the longest one and its answer do not fit the model's
        context."""
        if self.too_long(model, room):
            length, name = max(zip(map(len, self.rows), names, strict=False), key=itemgetter(0))
            raise KitError(
                f"the prompt of {name} with its answer takes {length + room} tokens and the context holds "
                f"{families.of(model).context(model)}: ask for fewer shots, or set long_prompts"
            )

    def too_long(self, model, room: int = 0) -> int:
        """Return how many prompts do not fit the model's context with ``room`` tokens for their answer."""
        context = families.of(model).context(model)
        return sum(len(row) + room > context for row in self.rows)


def answers(model, processor, conversations: Sequence[Conversation], **settings) -> list[str]:
    """Return the texts of :func:`greedy`."""
    return greedy(model, processor, conversations, **settings)[0]


def greedy(
    model,
    processor,
    conversations: Sequence[Conversation] | Prompts,
    max_new_tokens: int = 40,
    batch_size: int = 64,
    progress: Progress | None = None,
    until: str | None = None,
    characters: int = 0,
) -> tuple[list[str], list[int]]:
    """Return the greedy answer to each open conversation, stripped, and how many tokens were generated, including the
    closing one. An answer ends at the end-of-sequence token, before the text ``until`` ("": nowhere; None: the family's
    word for the next turn), once it has so many ``characters`` (0: any number), or after ``max_new_tokens``.
    ``progress`` is called with the number of finished conversations. Raises ``KitError`` if a prompt and its answer do
    not fit the model's context; ``Prompts`` are asked whatever their length."""
    if isinstance(conversations, Prompts):
        prompts = conversations
    else:
        prompts = Prompts.of(model, processor, conversations)
        prompts.require_room(model, max_new_tokens)
    until = families.of(model).next_turn if until is None else until
    ending = _Ending(model, processor, until, max_new_tokens, characters)
    written: list[list[int]] = [[] for _ in prompts.rows]
    ended: set[int] = set()

    def write(state: State, indices: list[int]) -> list[int]:
        """Add a token to each answer that has not ended; return the rows of the state that continue."""
        going = []
        for row, (index, token) in enumerate(zip(indices, state.logits.argmax(-1).tolist(), strict=True)):
            if index not in ended:
                written[index].append(token)
                (ended.add(index) if ending.reached(written[index]) else going.append(row))
        return going

    def write_batch(chunks: Chunks) -> None:
        states, indices = [], []
        for some, state in chunks:
            if going := write(state, some):
                states.append(state.keep(going))
                indices += [some[row] for row in going]
        going, state = list(range(len(indices))), State.joined(states)
        while going:
            if len(going) < THINNED * len(indices):
                state, indices = state.keep(going), [indices[row] for row in going]
            state.extend(torch.tensor([[written[index][-1]] for index in indices], device=model.device))
            going = write(state, indices)

    with evaluating(model):
        _each(model, write_batch, _batches(model, processor, prompts, batch_size), progress)
    return [ending.text(one) for one in written], [len(one) for one in written]


def option_likelihoods(
    model,
    processor,
    conversations: Sequence[Conversation] | Prompts,
    options: Options = (),
    batch_size: int = 64,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return the mean log-likelihood per token of each option as the answer, without the closing token, as float64
    ``[conversations, options]``. Raises ``KitError`` for unequal numbers of options, an empty option or too long
    prompts; ``Prompts`` hold their options and are asked whatever their length."""
    if isinstance(conversations, Prompts):
        closed = conversations
    else:
        if len(options) != len(conversations) or len({len(row) for row in options}) > 1:
            raise KitError("every question needs the same number of options to be scored by likelihood")
        closed = Prompts.of(model, processor, conversations, options)
        closed.require_room(model)
    # What a question's options have in common is read once, the beginning of their answers included. Each part starts
    # with the last token before it, whose logits predict the first token to be scored.
    rows, shared, tails, starts, width = [], [], [], [], closed.width
    for number, conversation in enumerate(closed.conversations):
        own = slice(number * width, (number + 1) * width)
        answered, begins = closed.rows[own], closed.begins[own]
        if any(begin == len(row) for begin, row in zip(begins, answered, strict=True)):
            raise KitError(f"an option of {conversation.turns[-1].prompt!r} is empty and has no likelihood")
        common = min(_common(answered), *(len(row) - 1 for row in answered))
        cut = min(common, *begins) - 2
        rows.append(answered[0][:cut])
        shared.append(answered[0][cut:common])
        tails.append([row[common - 1 :] for row in answered])
        starts.append([begin - cut for begin in begins])
    questions = Prompts(closed.conversations, rows, [len(row) for row in rows])
    more = [len(beginning) + sum(map(len, rest)) for beginning, rest in zip(shared, tails, strict=True)]
    scores = np.full((len(rows), width), np.nan)

    def score_batch(chunks: Chunks) -> None:
        for indices, state in chunks:
            total, count = _scored(state, [shared[i] for i in indices], [min(starts[i]) for i in indices])
            for option in range(width):  # one after the other, because each needs keys and values of its own
                begins = [starts[i][option] - len(shared[i]) + 1 for i in indices]
                rest = _scored(state.fork(), [tails[i][option] for i in indices], begins)
                means = (total + rest[0]) / (count + rest[1])
                scores[indices, option] = means.double().cpu().numpy()

    with evaluating(model):
        _each(model, score_batch, _batches(model, processor, questions, batch_size, more), progress)
    return scores


def _scored(state: State, rows: Sequence[np.ndarray], begins: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Read all but the last token of ``rows``. Return the sum of the log-likelihoods of the tokens from the positions
    ``begins`` on, without the first token, and their number, both [rows]."""
    device = state.model.device
    ids, mask = _pad([row[:-1] for row in rows], "right", device)
    predicted, _ = _pad([row[1:] for row in rows], "right", device)
    logits = state.extend(ids, mask, 0)
    chosen = logits.gather(-1, predicted[..., None])[..., 0] - logits.logsumexp(-1)
    place = torch.arange(1, ids.shape[1] + 1, device=device)
    scored = (place >= torch.tensor(begins, device=device)[:, None]) & mask.bool()
    return chosen.masked_fill(~scored, 0.0).sum(1), scored.sum(1)


class State:
    """What a model has read so far, row by row: keys and values, which of their slots are real [rows, slots], and the
    next position [rows]. ``lent``: a single row that precedes all of them.

    ``logits`` [rows, V] predict the next token.
    """

    def __init__(self, model, rows: int, lent: State | None = None):
        self.model, self.lent, self.cache = model, lent, DynamicCache()
        self.logits: Any = None  # before anything is read
        self.mask = torch.zeros(rows, 0, dtype=torch.long, device=model.device)
        start = torch.zeros(rows, dtype=torch.long, device=model.device)
        self.next: torch.Tensor = start if lent is None else lent.next.expand(rows)

    def extend(self, ids: torch.Tensor, mask=None, keep: int = 1, **pictures: torch.Tensor) -> torch.Tensor:
        """Read ``ids`` [rows, T]; ``mask`` [rows, T] marks the real ones. Return logits [rows, keep (0: T), V]."""
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask, **pictures}
        positions = families.of(self.model).positions(self.model, batch, self.next)
        self.next = positions.reshape(-1, *ids.shape).amax((0, 2)) + 1
        self.mask = torch.cat([self.mask, batch["attention_mask"]], dim=1)
        # transformers 5 renamed the argument; a model would ignore the wrong name and read without the cache
        argument = "cache" if "cache" in signature(type(self.model).forward).parameters else "past_key_values"
        more = {argument: self.cache, "use_cache": True, "logits_to_keep": keep, **pictures}
        with attention.reading(self.model, self.lent and self.lent.cache, ids.shape[1] if keep == 1 else 0):
            output = self.model(input_ids=ids, attention_mask=self.mask, position_ids=positions, **more)
        logits = output.logits.float()
        self.logits = logits[:, -1]
        return logits

    def read(self, processor, rows: list[np.ndarray], images: Sequence[list] = ()) -> State:
        """Read ``rows`` of tokens and the pictures in them; return this state."""
        pictures = families.of(self.model).pictures(processor, images) if images else {}
        for name, tensor in pictures.items():
            pictures[name] = tensor.to(self.model.device, self.model.dtype if tensor.is_floating_point() else None)
        self.extend(*_pad(rows, "left", self.model.device), **pictures)
        return self

    def fork(self) -> State:
        """Return a state that continues from here, while this one stays: reading more makes new keys and values."""
        forked = State(self.model, len(self.mask), self.lent)
        forked.cache.layers = [copy(layer) for layer in self.cache.layers]
        forked.mask, forked.next = self.mask, self.next
        return forked

    def keep(self, rows: Sequence[int]) -> State:
        """Drop all but these rows, layer by layer, so that memory never holds the whole state twice. Return it."""
        index = torch.tensor(rows, device=self.model.device)
        self.cache.batch_select_indices(index)
        self.mask, self.next = self.mask[index], self.next[index]
        return self

    @classmethod
    def joined(cls, states: Sequence[State]) -> State | None:
        """Join the rows of several states that share ``lent``, padded on the left; return None for no states. Their
        own keys and values are released layer by layer."""
        if len(states) < 2:
            return states[0] if states else None
        slots = max(state.mask.shape[1] for state in states)
        gaps = [slots - state.mask.shape[1] for state in states]

        def stacked(parts: Iterable[torch.Tensor]) -> torch.Tensor:
            return torch.cat([pad(one, (0, 0, gap, 0)) for one, gap in zip(parts, gaps, strict=True)])

        whole = cls(states[0].model, 0, states[0].lent)
        whole.mask = torch.cat([pad(state.mask, (gap, 0)) for state, gap in zip(states, gaps, strict=True)])
        whole.next = torch.cat([state.next for state in states])
        for number, layers in enumerate(zip(*(state.cache.layers for state in states), strict=True)):
            whole.cache.update(stacked(one.keys for one in layers), stacked(one.values for one in layers), number)
            for one in layers:
                one.keys = one.values = None
        return whole


def _each(model, work: Callable[[Chunks], None], batches: Iterable[tuple[list[int], Chunks]], progress) -> None:
    """Do ``work`` with the chunks of every batch; where a batch takes one core, several at once in threads. No batch
    depends on another, so the results are the same."""

    def done(batch: list[int], chunks: Chunks) -> int:
        with torch.inference_mode():  # every thread has a mode of its own
            work(chunks)
        return len(batch)

    finish = progress or (lambda count: None)
    if (threads := _threads(model)) == 1:
        for one in batches:
            finish(done(*one))
        return
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[int]] = deque()
        try:
            for one in batches:
                running.append(pool.submit(done, *one))
                if len(running) > 2 * threads:  # the batches wait here, since each holds what was read for it
                    finish(running.popleft().result())
            for future in running:
                finish(future.result())
        except BaseException:  # Ctrl-C, too, waits for the batches that have begun, and for no other
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _threads(model) -> int:
    """Return how many batches may be done at once: the number of cores that this process may use, for a miniature on a
    CPU. A larger model uses all cores for one batch, and the hooks of a model in shares bear no second thread."""
    one_core = model.device.type == "cpu" and torch.get_num_threads() == 1
    return min(cores(), MOST_THREADS) if one_core and launched("WORLD_SIZE", 1) == 1 else 1


def _batches(
    model, processor, prompts: Prompts, size: int, more: Sequence[int] | None = None
) -> Iterator[tuple[list[int], Chunks]]:
    """Yield batches of ``size`` prompts: their indices, and an iterator over chunks (indices, state after reading). A
    chunk has about ``READ_AT_ONCE`` tokens, including those that are read after each prompt (``more``).

    The prompts of a batch have the same earlier turns and number of pictures; those with the same picture are adjacent.
    Neither a batch nor a chunk depends on the order of the prompts.
    """
    groups, shown = defaultdict(list), [one.images for one in prompts.conversations]
    for index, one in enumerate(prompts.conversations):
        groups[replace(one, turns=one.turns[:-1]), len(shown[index])].append(index)
    for (earlier, _), group in groups.items():
        rows, images = prompts.rows, shown
        # big-endian bytes are sorted like lists of numbers, and take less memory
        order = [i for *_, i in sorted((_keys(images[i]), rows[i].astype(">u4").tobytes(), i) for i in group)]
        beginning, shared = None, _shared_length(model, processor, [rows[i] for i in group], earlier)
        if shared:
            count, first = len(earlier.images), group[0]
            beginning = State(model, 1).read(processor, [rows[first][:shared]], [images[first][:count]])
            rows, images = [row[shared:] for row in rows], [pictures[count:] for pictures in images]
        for start in range(0, len(group), size):
            batch = order[start : start + size]
            yield batch, _chunks(model, processor, beginning, batch, rows, images, more or [0] * len(rows))


def _chunks(
    model, processor, beginning: State | None, batch: list[int], rows: list, images: list, more: Sequence[int]
) -> Chunks:
    """Yield the prompts of a batch by length, with the state after reading them. Each continues from ``beginning`` with
    its pictures, which are read once for all questions about them, and then with its own words."""
    pictures_read, picture_of, words = None, {}, {i: rows[i] for i in batch}
    if images[batch[0]]:
        image_token = model.config.image_token_id
        cuts = {i: int(np.flatnonzero(rows[i] == image_token)[-1]) + 1 for i in batch}
        keys = {i: (_keys(images[i]), rows[i][: cuts[i]].tobytes()) for i in batch}
        firsts = list({key: i for i, key in keys.items()}.values())  # one prompt for each picture
        beginnings = [rows[i][: cuts[i]] for i in firsts]
        pictures_read = State(model, len(firsts), beginning).read(processor, beginnings, [images[i] for i in firsts])
        number = {keys[i]: place for place, i in enumerate(firsts)}
        picture_of = {i: number[keys[i]] for i in batch}
        words = {i: rows[i][cuts[i] :] for i in batch}
    by_length = sorted(batch, key=lambda i: len(words[i]))  # stable: prompts of one length keep the batch's order
    for some in _cut(by_length, [len(words[i]) + more[i] for i in by_length]):
        if pictures_read:
            state = pictures_read.fork().keep([picture_of[i] for i in some])
        else:
            state = State(model, len(some), beginning)
        yield some, state.read(processor, [words[i] for i in some])


def _shared_length(model, processor, rows: list[np.ndarray], earlier: Conversation) -> int:
    """Return how many tokens all rows share at the start: with all earlier pictures, without the question's own."""
    length = min(_common(rows), min(map(len, rows)) - 1)
    places = np.flatnonzero(rows[0] == model.config.image_token_id)
    if len(places):
        shown = families.of(model).picture_tokens(processor, earlier.images)
        if shown and length <= places[shown - 1]:
            return 0
        length = min([length, *places[shown : shown + 1].tolist()])
    return length if length >= WORTH_SHARING and len(rows) > 1 else 0


def _cut(indices: list[int], tokens: list[int]) -> Iterator[list[int]]:
    """Yield the indices in order, in parts of at most ``READ_AT_ONCE`` tokens, or of one index."""
    part: list[int] = []
    total = 0
    for index, count in zip(indices, tokens, strict=True):
        if part and total + count > READ_AT_ONCE:
            yield part
            part, total = [], 0
        part, total = [*part, index], total + count
    yield part


def _keys(images: Sequence) -> tuple[bytes, ...]:
    """Return the bytes by which pictures are compared and sorted."""
    return tuple(image if isinstance(image, bytes) else image.tobytes() for image in images)


def _pad(rows: Sequence[np.ndarray], side: str, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token rows as one rectangle, and the mask of the real tokens, both int64 [rows, longest]."""
    ids = pad_sequence([torch.from_numpy(row).long() for row in rows], True, -1, side).to(device)
    return ids.clamp(min=0), (ids >= 0).long()


def _common(rows: Sequence[np.ndarray]) -> int:
    """Return how many tokens all rows share at the beginning."""
    shortest = min(map(len, rows))
    alike = np.all([row[:shortest] == rows[0][:shortest] for row in rows], axis=0)
    return int(alike.cumprod().sum())


class _Ending:
    """Decides where an answer ends."""

    def __init__(self, model, processor, until: str, tokens: int, characters: int):
        named, self.tokenizer = model.generation_config.eos_token_id, processor.tokenizer
        own = self.tokenizer.convert_tokens_to_ids(families.of(model).end(processor))
        self.ends = {*(named if isinstance(named, list) else [named]), own, self.tokenizer.eos_token_id} - {None}
        # the tokens that ``until`` may end in
        self.last = {n for token, n in self.tokenizer.get_vocab().items() if until and until[-1] in token}
        self.until, self.tokens, self.characters = until, tokens, characters

    def reached(self, written: list[int]) -> bool:
        if len(written) >= self.tokens or written[-1] in self.ends:
            return True
        if written[-1] in self.last and self.until in self.tokenizer.decode(written[-12:]):
            return True
        if not self.characters:
            return False
        text = self.tokenizer.decode(written, skip_special_tokens=True).strip()
        return len(text) >= self.characters and not self.until.startswith(text)  # else ``until`` may be beginning

    def text(self, written: list[int]) -> str:
        """Return the answer without the text that ended it."""
        text = self.tokenizer.decode([t for t in written if t not in self.ends], skip_special_tokens=True)
        return (text.split(self.until)[0] if self.until else text).strip()


@contextmanager
def evaluating(model):
    """Inside this context there are no dropout and no gradients, and attention can share beginnings. Afterwards the
    model has its own mode and attention again."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), attention.sharing(model):
            yield
    finally:
        model.train(was_training)
