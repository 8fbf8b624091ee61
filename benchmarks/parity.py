"""Compares batched answers with one-by-one answers, on every item of an evaluation, in float32.

    python benchmarks/parity.py [--method vanilla] [--protocol upstream] [--limit 3] [--batch-size 64]

Upstream asks one question at a time, without padding. The kit asks many at once, and reads common beginnings once.
Both must give the same answers. If they differ, the model's two best choices must tie within ``TIE`` at the first token
that differs, so that rounding decides; such items are listed. Any other difference ends with status 1.
"""

from __future__ import annotations

import mllmu_nb  # noqa: F401, before torch: it pins the kernels

# isort: split
import argparse
import sys
from typing import NamedTuple

import numpy as np
import torch

from mllmu_nb import inputs, pipeline
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import Conversation
from mllmu_nb.data.schema import SETS
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation.ask import inquiries_of
from mllmu_nb.evaluation.engine import greedy, option_likelihoods
from mllmu_nb.evaluation.tasks import Asking, Inquiry
from mllmu_nb.models import families

PROTOCOLS = ("clean", "upstream")
TIE = 1e-4  # of logits, and of mean log-likelihoods per token


class Difference(NamedTuple):
    """An item that is answered differently one by one. ``gap``: between the two best choices where the answers part."""

    item: str
    batched: str
    single: str
    gap: float


def compare(model, processor, inquiry: Inquiry, batch_size: int) -> tuple[list[Difference], float]:
    """Return the items that differ, and the largest difference between two likelihoods of an option (0 for texts)."""
    names = [f"{item.set} {item.question.id}" for item in inquiry.items for _ in range(inquiry.orders)]
    sizes, asked = (batch_size, 1), inquiry.conversations
    if inquiry.options is not None:
        tables = [option_likelihoods(model, processor, asked, inquiry.options, size) for size in sizes]
        differences = []
        for name, many, one in zip(names, *tables, strict=True):
            if many.argmax() != one.argmax():
                best, second = sorted(one)[:-3:-1]
                chosen = f"option {many.argmax()}", f"option {one.argmax()}"
                differences.append(Difference(name, *chosen, best - second))
        return differences, float(np.abs(tables[0] - tables[1]).max(initial=0.0))
    (texts, lengths), (alone, lengths_alone) = (
        greedy(model, processor, asked, inquiry.tokens, size, until=inquiry.until) for size in sizes
    )
    return [
        Difference(names[i], texts[i], alone[i], parting_gap(model, processor, asked[i], texts[i], inquiry.tokens))
        for i in range(len(asked))
        if (texts[i], lengths[i]) != (alone[i], lengths_alone[i])
    ], 0.0


@torch.inference_mode()
def parting_gap(model, processor, conversation: Conversation, text: str, tokens: int) -> float:
    """The gap between the two best tokens where the model, asked alone without a cache, first departs from ``text``."""
    batch = families.of(model).encode(processor, [conversation], eos=False, device=model.device)
    pictures = {name: tensor for name, tensor in batch.items() if name not in ("input_ids", "attention_mask", "labels")}
    ids, written, gap = batch["input_ids"], [], float("inf")
    for _ in range(tokens):
        logits = model(input_ids=ids, use_cache=False, **pictures).logits[0, -1].float()
        best, second = logits.topk(2).values.tolist()
        gap, token = best - second, int(logits.argmax())
        written.append(token)
        so_far = processor.tokenizer.decode(written, skip_special_tokens=True).strip()
        if token == processor.tokenizer.eos_token_id or not text.startswith(so_far):
            break
        ids = torch.cat([ids, ids.new_tensor([[token]])], dim=1)
    return gap


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="base", help="base (the shipped model, nothing to train), vanilla, oracle")
    parser.add_argument("--protocol", default="clean", choices=PROTOCOLS)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, metavar="SET")
    parser.add_argument("--limit", type=int, help="only the first so many people of each set")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    config = Config(method=options.method, protocol=options.protocol)
    model, processor = pipeline.model(config)
    known = inputs.population(config)
    asking = Asking(known, inputs.draws_of(config, options.sets), config.shots, config.protocol)
    inquiries = inquiries_of(asking, sets=options.sets, limit=options.limit)  # both scorings, in either protocol
    count, differences = 0, []
    for name, inquiry in zip(("letter", "likelihood", "generation", "cloze"), inquiries, strict=True):
        own, apart = compare(model.float(), processor, inquiry, options.batch_size)
        count, differences = count + len(inquiry.conversations), differences + own
        more = f", likelihoods at most {apart:.1e} apart" if inquiry.options is not None else ""
        print(f"{name}: {len(inquiry.conversations)} asked, {len(own)} answered otherwise one by one{more}", flush=True)
    others = [difference for difference in differences if not difference.gap <= TIE]
    for difference in differences:
        kind = "tie" if difference.gap <= TIE else "DIFFERENT"
        print(f"{kind} ({difference.gap:.1e}): {difference.item}: {difference.batched!r} / {difference.single!r}")
    equal, ties = count - len(differences), len(differences) - len(others)
    sizes = f"in batches of {options.batch_size} and one by one"
    print(f"{count} answers {sizes}: {equal} equal, {ties} ties, {len(others)} different")
    return 1 if others else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KitError as error:
        sys.exit(f"error: {error}")
