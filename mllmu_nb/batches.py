"""Makes the batches of training: cuts, shuffles, changes, encodes. Each random choice has its own random stream."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mllmu_nb.data.conversations import Conversation, Sets
from mllmu_nb.data.portraits import augment, from_bytes
from mllmu_nb.errors import KitError
from mllmu_nb.models.families import Family
from mllmu_nb.parallel import processes
from mllmu_nb.unlearning.base import Method, Recipe

# input_ids, attention_mask, labels [B, T], pictures; stored_log_probs [B, T'] if stored; duplicate if another piece
# counts these rows
Batch = Mapping[str, Tensor]
ORDERS = {"forget": 0, "retain": 1}  # number of each set's random stream


def epoch(conversations: Sequence[Conversation], turns: int, rng: np.random.Generator) -> list[Conversation]:
    """Every turn once, in random order, up to ``turns`` of a conversation together, which show a picture only once."""
    packed = []
    for conversation in conversations:
        order = rng.permutation(len(conversation.turns))
        for start in range(0, len(order), turns):
            chosen, shown = [], []
            for turn in (conversation.turns[i] for i in order[start : start + turns]):
                chosen.append(replace(turn, image=None) if turn.image in shown else turn)
                shown.append(turn.image)
            packed.append(replace(conversation, turns=tuple(chosen)))
    return [packed[i] for i in rng.permutation(len(packed))]


def endless(conversations: Sequence[Conversation], turns: int, rng: np.random.Generator) -> Iterator[Conversation]:
    """Yield epoch after epoch without an end."""
    while True:
        yield from epoch(conversations, turns, rng)


def steps_of(conversations: Sequence[Conversation], epochs: float, batch_size: int) -> int:
    """The number of optimizer steps for ``epochs`` passes over all single questions, at least 1."""
    questions = sum(len(conversation.turns) for conversation in conversations)
    return max(1, round(epochs * math.ceil(questions / batch_size)))


def pieces(rows: Sequence, size: int, encode: Callable[[Sequence], dict[str, Batch]]) -> list[dict[str, Batch]]:
    """Encode this process's share of the ``rows`` of a batch in pieces of ``size`` rows, to be read one after the
    other (0: in one piece). All processes return the same number of pieces, since under FSDP they read together. If a
    process has too few rows, its last row (or the batch's) is read again, as a ``duplicate`` that does not count."""
    number, count = processes().process_index, processes().num_processes
    most = math.ceil(len(rows) / count)  # rows of a process
    own_rows, size = rows[number::count], size or most
    cut = [own_rows[start : start + size] for start in range(0, most, size)]
    encoded = [encode(piece or own_rows[-1:] or rows[-1:]) for piece in cut]
    more = [{} if piece else {"duplicate": torch.ones(1)} for piece in cut]
    pairs = zip(encoded, more, strict=True)
    return [{name: {**batch, **mark} for name, batch in piece.items()} for piece, mark in pairs]


def finetuning_steps(conversations: Sequence[Conversation], recipe: Recipe, replay: float) -> int:
    """Optimizer steps of fine-tuning: the recipe's, else those of its epochs. An epoch teaches every turn once."""
    if recipe.steps:
        return recipe.steps
    taught = recipe.together * sum(math.ceil(len(c.turns) / recipe.turns) for c in conversations)
    return round(recipe.epochs) * math.ceil(taught / _taught_at_once(recipe, replay))


def _taught_at_once(recipe: Recipe, replay: float) -> int:
    """The number of conversations drawn at once that are not replayed. Raises KitError if none or, with ``replay``, all
    of them are."""
    drawn = recipe.together * recipe.batch_size
    taught = drawn - round(drawn * replay)
    if replay and taught == drawn:
        raise KitError(
            f"replay={replay} repeats nothing among {drawn} conversations drawn at once: raise it, or take 0"
        )
    if not taught:
        raise KitError(f"replay={replay} leaves no conversation to train on among {drawn} drawn at once: lower it")
    return taught


def finetuning_batches(
    family: Family,
    processor: Any,
    conversations: Sequence[Conversation],
    recipe: Recipe,
    seed: int,
    replayed: Sequence[Conversation] = (),
    replay: float = 0.0,
    exams: Callable[[Conversation, np.random.Generator], Conversation] | None = None,
) -> Iterator[list[dict[str, Batch]]]:
    """Yield batches of ``recipe.batch_size`` conversations under the name "train", in :func:`pieces`. A conversation
    has up to ``recipe.turns`` questions about one person. ``exams`` asks them in other forms, and the recipe may change
    portraits anew each time. A share ``replay`` of the conversations are ``replayed``, unchanged. ``recipe.together``
    batches are drawn at once and sorted by length, so there is little padding."""
    taught_at_once = _taught_at_once(recipe, replay)
    replayed_at_once = recipe.together * recipe.batch_size - taught_at_once
    if not any(c.turns for c in conversations):
        raise KitError("nothing to train on: there are no conversations")
    if replayed_at_once and not replayed:
        raise KitError(f"replay is {replay} but there is nothing to replay")
    # Each choice has its own stream, so replay and augmentation do not change the order of what is taught.
    order, replay_order, change, wording, mixing = (np.random.default_rng([seed, stream]) for stream in range(5))
    taught = endless(conversations, recipe.turns, order)
    replays = (replayed[i] for _ in count() for i in replay_order.permutation(len(replayed)))

    def encoded(piece: Sequence[Conversation]) -> dict[str, Batch]:
        return {"train": family.encode(processor, piece, recipe.label_mode, recipe.eos)}

    while True:
        drawn = list(islice(taught, taught_at_once))
        if exams:
            drawn = [exams(conversation, wording) for conversation in drawn]
        if recipe.augment:
            drawn = [_augmented(conversation, change) for conversation in drawn]
        drawn += islice(replays, replayed_at_once)
        by_length = np.argsort([len(one.ids) for one in family.tokens(processor, drawn)], kind="stable")
        for start in mixing.permutation(range(0, len(drawn), recipe.batch_size)):
            batch = [drawn[i] for i in sorted(by_length[start : start + recipe.batch_size])]
            yield pieces(batch, recipe.micro_batch, encoded)


def _augmented(conversation: Conversation, rng: np.random.Generator) -> Conversation:
    turns = (replace(t, image=augment(from_bytes(t.image), rng)) if t.image else t for t in conversation.turns)
    return replace(conversation, turns=tuple(turns))


def unlearning_steps(method: Method, recipe: Recipe, sets: Sets) -> int:
    """The optimizer steps of unlearning: the recipe's steps, else those of its epochs over the first stream of each
    pass. Raises KitError as :meth:`Method.check_length` does."""
    method.check_length(recipe.steps, recipe.epochs)
    firsts = [sets[method.streams[names[0]].set] for names in method.all_passes]
    return recipe.steps or sum(steps_of(first, recipe.epochs, recipe.batch_size) for first in firsts)


def unlearning_batches(
    family: Family, processor, method: Method, sets: Sets, recipe: Recipe, seed: int, stored: Mapping | None = None
) -> Iterator[list[dict[str, Batch]]]:
    """Yield batches of single questions for the streams of ``method``, in :func:`pieces`, without an end. An epoch
    asks each question of a pass's first set once, in seeded order, with as many questions of each other set.
    ``stored``: question → the reference's log-probabilities, for the streams in ``needs.reference``."""
    streams = method.streams
    for name in {stream.set for stream in streams.values()}:
        if not any(c.turns for c in sets[name]):
            raise KitError(f"{method.name} needs {name} questions and there are none")
    rngs = {name: np.random.default_rng([seed, number]) for name, number in ORDERS.items()}
    beside = {name: endless(sets[name], 1, rngs[name]) for name in ORDERS}

    def encoded(names: Sequence[str], piece: Sequence[Mapping[str, Conversation]]) -> dict[str, Batch]:
        batches = {}
        for name, stream in ((name, streams[name]) for name in names):
            asked = [stream.changed(row[stream.set]) for row in piece]
            batches[name] = family.encode(processor, asked, recipe.label_mode, recipe.eos)
            if stored is not None and name in method.needs.reference:
                batches[name]["stored_log_probs"] = pad_sequence([stored[one] for one in asked], batch_first=True)
        return batches

    while True:
        for names in method.all_passes:
            first = streams[names[0]].set
            order = epoch(sets[first], 1, rngs[first])
            for start in range(0, len(order), recipe.batch_size):
                drawn = {first: order[start : start + recipe.batch_size]}
                for other in dict.fromkeys(streams[name].set for name in names[1:]):
                    if other != first:
                        drawn[other] = list(islice(beside[other], len(drawn[first])))
                rows = [dict(zip(drawn, row, strict=True)) for row in zip(*drawn.values(), strict=True)]
                yield pieces(rows, recipe.micro_batch, partial(encoded, names))
