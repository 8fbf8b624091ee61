"""Compares the kit's training with the released way of training: seconds, and bytes of tensors.

    python benchmarks/training.py [--methods NAME ..] [--steps N] [--rounds N]

Two arms train an adapter of the shipped base on the same batches of four single questions with their pictures, in one
process and one thread, taking turns. Their losses must agree within ``CLOSE`` at every step, else the exit status is 1.

- plain: how MLLMU-Bench's code works. In each step the library's processor encodes texts and pictures, which are
  decoded anew, and the model gives the logits of every position. A method with a reference has a second model in
  memory. The graphs of all terms are kept until one backward pass.
- the kit: ``mllmu_nb.training.unlearn`` or ``finetune``; "in pieces", with ``micro_batch: 2``.

"packed" is fine-tuning in batches of vanilla's recipe: 12 conversations of up to four questions about one picture.
These are other batches, so the losses are not compared.

The limit is the questions a second if the kit did nothing but its own matrix products and attention (``Tally`` counts
them, with padding and the backward pass), at the speed of one large product. "Reached" is an arm's share of it. The
limit of "packed" is that of its own batches; the other arms have the limit of "the kit".

Seconds are processor time, so that other work on the machine hardly counts. "Least to most" is of the ratio, over the
rounds. Memory is the peak of all tensors at once, weights included, measured in a separate run.
"""

from __future__ import annotations

import mllmu_nb  # noqa: F401, before torch: it pins the kernels

# isort: split
import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from statistics import median
from typing import NamedTuple

import torch
from accelerate.utils import send_to_device
from released import encoded, product_rate, ratios
from torch.nn.functional import cross_entropy, logsigmoid

from mllmu_nb import batches, inputs, provenance, training
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import Conversation, Sets, training_conversations
from mllmu_nb.models import adapters, families, load
from mllmu_nb.prediction import Tally
from mllmu_nb.unlearning.base import IGNORE, Method, Recipe

CLOSE = 1e-4
FINE_TUNING = "fine-tuning"
METHODS = (FINE_TUNING, "ga", "grad_diff", "kl_min", "npo")
PLAIN, KIT, PIECES, PACKED = "plain", "the kit", "in pieces", "packed"
SINGLE = {"batch_size": 4, "turns": 1, "together": 1}
Batches = Mapping[str, Mapping[str, torch.Tensor]]


class Outcome(NamedTuple):
    """Result of one training: processor ``seconds``, ``losses`` of its steps, ``peak`` bytes and ``flops`` (0 if not
    counted)."""

    seconds: float
    losses: list[float]
    peak: int
    flops: int


@dataclass
class PlainWay:
    """Training by one method as ``PLAIN`` does it, on the conversations of ``sets``."""

    name: str
    method: Method
    recipe: Recipe
    sets: Sets

    def drawn(self, model, processor) -> list[dict[str, tuple[Sequence[Conversation], torch.Tensor]]]:
        """Return what the kit's loop reads at each step: stream → its conversations and their labels."""
        asked: list[Sequence[Conversation]] = []

        class Listening(type(families.of(model))):
            def encode(self, processor, conversations, *more, **named):
                asked.append(conversations)
                return super().encode(processor, conversations, *more, **named)

        family, recipe = Listening(), self.recipe
        if self.name == FINE_TUNING:
            steps: Iterator = batches.finetuning_batches(family, processor, self.sets["retain"], recipe, 0)
        else:
            steps = batches.unlearning_batches(family, processor, self.method, self.sets, recipe, 0)
        result = []
        for [streams] in islice(steps, recipe.steps):
            labels = [batch["labels"] for batch in streams.values()]
            result.append(dict(zip(streams, zip(asked, labels, strict=True), strict=True)))
            asked.clear()
        return result

    def plain(self, model, processor, reference, drawn) -> list[float]:
        """Train on what was :meth:`drawn` and return the losses. Does not support ``micro_batch`` or other optimizers
        than torch's AdamW."""
        recipe, end = self.recipe, families.of(model).end(processor)
        trained = [one for one in model.train().parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(trained, recipe.lr, eps=recipe.adam_eps or 1e-8, weight_decay=recipe.weight_decay)
        schedule = training.make_schedule(optimizer, recipe, recipe.steps)
        losses = []
        for streams in drawn:
            read = {name: encoded(model, processor, some, "right", end) for name, (some, _) in streams.items()}
            labels = {name: labels[:, 1:] for name, (_, labels) in streams.items()}
            read, labels = send_to_device((read, labels), model.device)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                loss = self.loss(model, reference, read, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, recipe.clip or inf)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    def loss(self, model, reference, read: Batches, labels: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the loss again by its equation, from the logits of all positions."""
        logits = {name: model(**batch).logits[:, :-1] for name, batch in read.items()}
        with torch.no_grad():
            before = {name: reference(**read[name]).logits[:, :-1] for name in self.method.needs.reference}
        if self.name == FINE_TUNING:
            return cross_entropy(logits["train"].transpose(1, 2), labels["train"])

        def log_p(of: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
            return -cross_entropy(of[name].transpose(1, 2), labels[name], reduction="none").sum(1)

        if self.name == "npo":
            ratio = log_p(logits, "forget") - log_p(before, "forget")
            return -2 / self.method.beta * logsigmoid(-self.method.beta * ratio).mean()
        answered = {name: one != IGNORE for name, one in labels.items()}
        mean = {name: (log_p(logits, name) / answered[name].sum(1)).mean() for name in labels}
        if self.name == "ga":
            return mean["forget"]
        if self.name == "grad_diff":
            return mean["forget"] - self.method.alpha * mean["retain"]
        old, new = before["retain"].log_softmax(-1), logits["retain"].log_softmax(-1)
        divergence = (old.exp() * (old - new)).sum(-1) * answered["retain"]
        return mean["forget"] + self.method.alpha * (divergence.sum(1) / answered["retain"].sum(1)).mean()


class Work(PlainWay):
    """One method on the shipped base."""

    def __init__(self, name: str, steps: int):
        tuned = name == FINE_TUNING
        self.config = Config(method="base") if tuned else Config(method=name, modality="multimodal")
        recipe = self.config.training if tuned else self.config.unlearning
        self.packing = {field: getattr(recipe, field) for field in SINGLE}
        recipe = replace(recipe, steps=steps, optimizer="adamw", augment=False, **SINGLE)
        known = inputs.population(self.config)
        sets = {one: training_conversations(known.members(one), "multimodal") for one in ("forget", "retain")}
        super().__init__(name, training.FineTuning() if tuned else self.config.objective, recipe, sets)

    def questions(self, packed: bool) -> int:
        shape = self.packing if packed else SINGLE
        streams = len(self.method.streams)
        return self.recipe.steps * streams * shape["batch_size"] * shape["turns"]

    def model(self):
        """Return the base with a fresh adapter, and its processor."""
        model, processor = load.load_base(*inputs.base_of(self.config), "fp32")
        return adapters.attach(model, self.recipe, 0, self.method.trains), processor

    def run(self, arm: str, counted: bool = False) -> Outcome:
        model, processor = self.model()
        reference = self.model()[0].eval() if arm == PLAIN and self.method.needs.reference else None
        drawn = self.drawn(model, processor) if arm == PLAIN else []
        with Tally(*filter(None, (model, reference))) if counted else nullcontext() as tally:
            began = time.process_time()
            if arm == PLAIN:
                losses = self.plain(model, processor, reference, drawn)
            else:
                changed = {PACKED: self.packing, PIECES: {"micro_batch": 2}}.get(arm, {})
                losses = self.kit(model, processor, replace(self.recipe, **changed))
            seconds = time.process_time() - began
        return Outcome(seconds, losses, *((tally.peak, tally.flops) if tally else (0, 0)))

    def kit(self, model, processor, recipe: Recipe) -> list[float]:
        if self.name == FINE_TUNING:
            log = training.finetune(model, processor, self.sets["retain"], recipe, 0, progress=False)
        else:
            log = training.unlearn(model, processor, self.method, self.sets, recipe, 0, progress=False)
        return [row["loss"] for row in log.losses]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    machine, apart = provenance.machine(), 0.0
    print(f"{machine['cpu']}, {machine['capability']}, one thread; {options.steps} steps, {options.rounds} rounds")
    columns = "questions a second | times plain's | least to most | limit | reached | MiB of tensors | times plain's"
    print(f"| method | arm | {columns} |\n|---|---{'|---:' * 7}|", flush=True)
    for name in options.methods:
        work, rates = Work(name, options.steps), defaultdict(list)
        arms = (PLAIN, KIT, PIECES, *([PACKED] if name == FINE_TUNING else []))
        for _ in range(options.rounds):
            for arm in arms:
                rates[arm].append(work.questions(arm == PACKED) / work.run(arm).seconds)
        counted = {arm: work.run(arm, counted=True) for arm in arms}
        for arm in (KIT, PIECES):
            pairs = zip(counted[PLAIN].losses, counted[arm].losses, strict=True)
            apart = max(apart, *(abs(plain - own) / abs(plain) for plain, own in pairs))
        rate = product_rate()
        for arm, each in rates.items():
            own = arm == PACKED
            limit = work.questions(own) * rate / counted[arm if own else KIT].flops
            speed = f"{median(each):.0f} | {ratios(each, rates[PLAIN])} | {limit:.0f} | {median(each) / limit:.0%}"
            peak, smaller = counted[arm].peak, counted[arm].peak / counted[PLAIN].peak
            print(f"| {name} | {arm} | {speed} | {peak / 2**20:.0f} | {smaller:.2f} |", flush=True)
    print(f"losses differ by at most {apart:.1e} of their value")
    return int(apart > CLOSE)


if __name__ == "__main__":
    sys.exit(main())
