"""Batched answers against one-by-one answers, on every item of an evaluation, in float32.

    python benchmarks/parity.py [--method vanilla] [--protocol upstream] [--limit 3] [--batch-size 64]

Upstream asks one question at a time, without padding. The kit asks many at once, and what they begin with only once.
Both must answer alike. Where they do not, the model's two best choices must tie within ``TIE`` at the place where the
answers part, so that rounding decides; such items are listed. Any other difference ends with status 1.
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

import numpy as np
import torch

from mllmu_nb import run
from mllmu_nb.config import PROTOCOLS, Config
from mllmu_nb.data.schema import SETS
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import asked
from mllmu_nb.evaluation.draws import draw
from mllmu_nb.evaluation.engine import greedy, option_likelihoods
from mllmu_nb.evaluation.items import Part
from mllmu_nb.models.prompts import Conversation, encode

TIE = 1e-4  # of logits, and of mean log-likelihoods per token


class Difference(NamedTuple):
    """An item that is answered otherwise one by one; ``gap`` lies between the two best where the answers part."""

    item: str
    batched: str
    single: str
    gap: float


def compare(model, processor, part: Part, batch_size: int) -> tuple[list[Difference], float]:
    """The items of ``part`` that differ, and the largest difference between two likelihoods of an option (else 0)."""
    ways = len(part.talks) // max(len(part.items), 1)
    names = [f"{item.set} {item.question.id}" for item in part.items for _ in range(ways)]
    if part.options is not None:
        tables = [option_likelihoods(model, processor, part.talks, part.options, size) for size in (batch_size, 1)]
        found = []
        for name, many, one in zip(names, *tables, strict=True):
            if many.argmax() != one.argmax():
                best, second = sorted(one)[:-3:-1]
                found.append(Difference(name, f"option {many.argmax()}", f"option {one.argmax()}", best - second))
        return found, float(np.abs(tables[0] - tables[1]).max(initial=0.0))
    (texts, lengths), (alone, lengths_alone) = (
        greedy(model, processor, part.talks, part.tokens, size, until=part.until) for size in (batch_size, 1)
    )
    return [
        Difference(names[i], texts[i], alone[i], parting_gap(model, processor, part.talks[i], texts[i], part.tokens))
        for i in range(len(part.talks))
        if (texts[i], lengths[i]) != (alone[i], lengths_alone[i])
    ], 0.0


@torch.inference_mode()
def parting_gap(model, processor, talk: Conversation, text: str, tokens: int) -> float:
    """How far apart the two best tokens are where the model, asked alone and without a cache, leaves ``text``."""
    batch = encode(processor, [talk], eos=False, device=model.device)
    ids, written, gap = batch["input_ids"], [], float("inf")
    for _ in range(tokens):
        logits = model(input_ids=ids, pixel_values=batch.get("pixel_values"), use_cache=False).logits[0, -1].float()
        best, second = logits.topk(2).values.tolist()
        gap, token = best - second, int(logits.argmax())
        written.append(token)
        said = processor.tokenizer.decode(written, skip_special_tokens=True).strip()
        if token == processor.tokenizer.eos_token_id or not text.startswith(said):
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
    model, processor = run.model(config)
    asking = {"shots": config.shots, "protocol": config.protocol}
    drawing = {"shot_source": config.shot_source, "shot_seed": config.shot_seed, "family": config.base_model}
    known = run.population(config)
    drawn = draw(known, options.sets, **drawing, **asking)
    parts = asked(
        known, drawn, sets=options.sets, limit=options.limit, **asking
    )  # both scorings, whatever the protocol
    count, differences = 0, []
    for name, part in zip(("letter", "likelihood", "generation", "cloze"), parts, strict=True):
        found, apart = compare(model.float(), processor, part, options.batch_size)
        count, differences = count + len(part.talks), differences + found
        told = f", likelihoods at most {apart:.1e} apart" if part.options is not None else ""
        print(f"{name}: {len(part.talks)} asked, {len(found)} answered otherwise one by one{told}", flush=True)
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
