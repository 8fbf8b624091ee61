"""Compares the kit's evaluation with the released way of evaluating, and with a good use of the same library.

    python benchmarks/released.py [--protocol upstream] [--method base] [--limit PEOPLE] [--rounds N]

Three arms ask one model the same questions, in one process and one thread, taking turns. People, pictures (as the bytes
of their files) and the model are in memory beforehand.

- one by one: how MLLMU-Bench's evaluation works. For each question its pictures are decoded and processed with its text
  by the library's processor, and ``generate`` writes greedily, up to 50 tokens. The attention is the library's default.
  For multiple choice by likelihood, which the released code does not have, each option takes one forward pass.
- in batches: the same with the fast ways that the library offers: questions sorted by length, 32 at once, padded on the
  left, no more new tokens than the task asks for; options 64 at once.
- the kit: ``mllmu_nb.evaluation.ask``, including encoding.

Seconds are processor time, so that other work on the machine hardly counts. "Least to most" is over the rounds, and a
ratio is of two arms in one round. The limit below the table is the time to read the questions alone, without worked
examples, if the layers did nothing but matrix products at the speed of one large product. Answers must agree up to
where the kit stops, unless the two best tokens tie within ``parity.TIE``: such items are listed, and any other
difference ends with status 1.

The answers of "one by one" and of the kit are then scored by ``mllmu_nb.scoring``. A score that differs, where no tie
is listed, ends with status 1 too. Under ``clean`` the library writes up to 50 tokens and the kit fewer. So what it
writes is first cut where the kit stops: after as many tokens, or before the next question. An answer by letter is
scored as the library wrote it, though the kit stops after one character.

The last line compares the kit with one core and with all cores, by the clock: here other work on the machine counts.
"""

from __future__ import annotations

import mllmu_nb  # noqa: F401, before torch: it pins the kernels

# isort: split
import argparse
import io
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

import numpy as np
import pandas as pd
import torch
from parity import PROTOCOLS, TIE, parting_gap
from PIL import Image

from mllmu_nb import inputs, pipeline, provenance
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import Conversation
from mllmu_nb.data.schema import OPTIONS, SETS, Population
from mllmu_nb.evaluation.ask import ask, inquiries_of
from mllmu_nb.evaluation.engine import MOST_THREADS, Prompts
from mllmu_nb.evaluation.tasks import UPSTREAM_TOKENS, Asking, Inquiry
from mllmu_nb.models import families
from mllmu_nb.scoring.frames import TAUGHT, joined, people_frames, with_rivals
from mllmu_nb.scoring.registry import metrics
from mllmu_nb.scoring.score import item_scores

PLAIN, STRONG, KIT = "one by one", "in batches", "the kit"
AT_ONCE = {"generate": 32, "options": 64}
MOST_TIES = 0.002  # share of the answers


def encoded(model, processor, conversations: Sequence[Conversation], side: str, end="") -> dict[str, torch.Tensor]:
    """Encode conversations with the library's own processor, decoding pictures anew; ``end`` closes an answer."""
    render = families.of(model).render
    texts = [render(one, processor.image_token, end)[0] for one in conversations]
    images = [[Image.open(io.BytesIO(image)).convert("RGB") for image in one.images] for one in conversations]
    shown = {"images": [image for row in images for image in row]} if any(images) else {}
    return dict(processor(text=texts, **shown, return_tensors="pt", padding=True, padding_side=side))


@torch.inference_mode()
def written(model, processor, conversations: Sequence[Conversation], tokens: int, kept: int) -> list[str]:
    """Return the first ``kept`` tokens of the answers of ``generate``."""
    batch = encoded(model, processor, conversations, "left")
    start = batch["input_ids"].shape[1]
    ids = model.generate(**batch, max_new_tokens=tokens, do_sample=False)[:, start : start + kept]
    return [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]


@torch.inference_mode()
def likelihoods(model, processor, opened: Sequence[Conversation], options: Sequence[str]) -> list[float]:
    """Mean log-likelihood per token of each option as the answer to its question."""
    closed = [conversation.answered(option) for conversation, option in zip(opened, options, strict=True)]
    batch = encoded(model, processor, closed, "right")
    render, tokenizer = families.of(model).render, processor.tokenizer
    # count without pictures: they add as many tokens to the question as to the whole
    lengths = [
        [len(tokenizer(render(one, "", "")[0])["input_ids"]) for one in pair]
        for pair in zip(opened, closed, strict=True)
    ]
    ids, ends = batch["input_ids"], batch["attention_mask"].sum(1)
    log_probs = model(**batch).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return [
        float(row[end - 1 - (whole - question) : end - 1].mean())
        for row, end, (question, whole) in zip(log_probs, ends.tolist(), lengths, strict=True)
    ]


def released(model, processor, inquiry: Inquiry, batched: bool) -> list:
    """Return what ``PLAIN`` or, if ``batched``, ``STRONG`` answers to an inquiry: texts, of as many tokens as the kit
    writes at most, or rows of likelihoods."""
    asked, options = inquiry.conversations, inquiry.options
    tokens = min(inquiry.tokens, UPSTREAM_TOKENS) if batched else UPSTREAM_TOKENS
    if options is not None:
        width = len(options[0])
        asked, flat = [one for one in asked for _ in range(width)], [option for row in options for option in row]
    order = sorted(range(len(asked)), key=lambda i: (len(asked[i].images), sum(len(t.prompt) for t in asked[i].turns)))
    size = AT_ONCE["generate" if options is None else "options"] if batched else 1
    results: list = [None] * len(asked)
    for start in range(0, len(order), size):
        some = order[start : start + size]
        conversations = [asked[i] for i in some]
        if options is None:
            given = written(model, processor, conversations, tokens, inquiry.tokens)
        else:
            given = likelihoods(model, processor, conversations, [flat[i] for i in some])
        for index, one in zip(some, given, strict=True):
            results[index] = one
    return results if options is None else np.reshape(results, (-1, width)).tolist()


def ended(model, inquiry: Inquiry, texts: Sequence[str]) -> list[str]:
    """Return answers of ``generate`` up to the text at which the kit stops."""
    until = families.of(model).next_turn if inquiry.until is None else inquiry.until
    return [text.split(until)[0].strip() if until else text for text in texts]


def differences(model, processor, inquiry: Inquiry, plain: Sequence, kit: Sequence):
    """Return (number, item, one by one, the kit, gap) of each question that the kit answers differently. Texts in
    ``plain`` are :func:`ended`."""
    found = []
    for number, (theirs, ours) in enumerate(zip(plain, kit, strict=True)):
        item, conversation = inquiry.items[number // inquiry.orders], inquiry.conversations[number]
        if inquiry.options is not None:
            best, second = sorted(theirs)[:-3:-1]
            if int(np.argmax(theirs)) != int(np.argmax(ours)):
                found.append((number, item.question.id, np.argmax(theirs), np.argmax(ours), best - second))
            continue
        begins = theirs.startswith(ours) and bool(theirs) == bool(ours)
        if not (begins if inquiry.scoring == "letter" else theirs == ours):
            gap = parting_gap(model, processor, conversation, ours, inquiry.tokens)
            found.append((number, item.question.id, theirs, ours, gap))
    return found


def scores(rows: pd.DataFrame, known: Population) -> pd.DataFrame:
    """Return the scores of answers: one row per answer, one column per metric, NaN where the metric is of another
    task."""
    columns = dict.fromkeys(one.column for one in metrics(per="answer") if one.task != TAUGHT)
    return item_scores(joined(rows, with_rivals(*people_frames(known))))[list(columns)]


def ratios(over: Sequence[float], under: Sequence[float]) -> str:
    """Return two cells of a table: the median of the rounds' ratios, and the least to the most of them."""
    each = [one / other for one, other in zip(over, under, strict=True)]
    return f"{median(each):.2f} | {min(each):.2f}–{max(each):.2f}"


def limit_of(model, processor, inquiries: Sequence[Inquiry]) -> tuple[int, float, float]:
    """Return the tokens of the questions without earlier turns, the FLOPs of a token in the layers, and the FLOP/s of
    one large matrix product."""
    family, heads, tokens = families.of(model), {}, 0
    for inquiry in inquiries:
        for one, row in zip(
            inquiry.conversations, Prompts.of(model, processor, inquiry.conversations).rows, strict=True
        ):
            earlier = Conversation(one.turns[:-1], one.system)
            if earlier not in heads:
                heads[earlier] = len(Prompts.of(model, processor, [earlier]).rows[0]) if earlier.turns else 0
            tokens += len(row) - heads[earlier]
    layers = re.compile(family.language_linears)
    flops = 2 * sum(m.weight.numel() for name, m in model.named_modules() if layers.fullmatch(name))
    return tokens, flops, product_rate()


def product_rate() -> float:
    """Return the FLOP/s of one large matrix product."""
    matrix = torch.randn(1024, 1024)
    spent = []
    for _ in range(12):
        began = time.process_time()
        matrix @ matrix
        spent.append(time.process_time() - began)
    return 2 * 1024**3 / median(spent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="base", help="base (the shipped model, nothing to train), vanilla, oracle")
    parser.add_argument("--protocol", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS)
    parser.add_argument("--limit", type=int, help="only the first so many people of each set")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    machine, different = provenance.machine(), 0
    print(f"{machine['cpu']}, {machine['capability']}, one thread; {options.method}; limit {options.limit}")
    for protocol in options.protocol:
        different += compare(Config(method=options.method, protocol=protocol), options.limit, options.rounds)
    return min(different, 1)


def compare(config: Config, limit: int | None, rounds: int) -> int:
    """Measure one protocol and print it; return how many answers differ without a tie."""
    model, processor = pipeline.model(config)
    default = "sdpa", model.config.get_text_config()._attn_implementation
    known = inputs.population(config)
    draws = inputs.draws_of(config, SETS)
    asking = Asking(known, draws, config.shots, config.protocol)
    inquiries = inquiries_of(asking, scoring=config.scoring, limit=limit)
    how = {name: getattr(config, name) for name in pipeline.ASKING} | {"batch_size": pipeline.asked_at_once(config)}
    seconds, given = defaultdict(list), {}

    def asked():
        return ask(model, processor, known, limit=limit, draws=draws, progress=False, **how)

    os.environ["OMP_NUM_THREADS"] = "1"
    for _ in range(rounds):
        for arm in (PLAIN, STRONG, KIT):
            model.set_attn_implementation(default[arm == KIT])
            began = time.process_time()
            if arm == KIT:
                rows = asked()
            else:
                given[arm] = [released(model, processor, one, arm == STRONG) for one in inquiries]
            seconds[arm].append(time.process_time() - began)
    questions = sum(len(one.conversations) for one in inquiries)
    print(f"\n{config.protocol}: {questions} questions, {rounds} rounds")
    print("| arm | seconds | least to most | the kit is faster by | least to most |\n|---|---:|---:|---:|---:|")
    for arm, spent in seconds.items():
        faster = ratios(spent, seconds[KIT])
        print(f"| {arm} | {median(spent):.2f} | {min(spent):.2f}–{max(spent):.2f} | {faster} |")
    tokens, flops, rate = limit_of(model, processor, inquiries)
    factors = f"{tokens} question tokens × {flops / 1e6:.2f} MFLOP / {rate / 1e9:.0f} GFLOP/s"
    print(f"limit: {factors} = {tokens * flops / rate:.2f} s")
    clock, cores = defaultdict(list), min(os.cpu_count() or 1, MOST_THREADS)
    for _ in range(rounds):
        for threads in (1, cores):
            os.environ["OMP_NUM_THREADS"] = str(threads)
            began = time.perf_counter()
            pd.testing.assert_frame_equal(asked(), rows, check_exact=True)
            clock[threads].append(time.perf_counter() - began)
    ratio, spread = ratios(clock[1], clock[cores]).split(" | ")
    spent = f"{median(clock[1]):.2f} s with one core, {median(clock[cores]):.2f} s with {cores}"
    print(f"by the clock: {spent}, {ratio} times as fast ({spread}), the same answers")
    return printed_differences(model, processor, known, inquiries, given[PLAIN], rows)


def printed_differences(model, processor, known: Population, inquiries: Sequence[Inquiry], plain, rows) -> int:
    """List the questions that are answered differently, and the scores that differ. Return how many of both are no
    ties; if more than ``MOST_TIES`` of the answers differ, ties count too."""
    found, parts, start = [], [], 0
    for inquiry, theirs in zip(inquiries, plain, strict=True):
        own = rows.iloc[start : start + len(theirs)]
        if inquiry.options is None:
            theirs, ours = ended(model, inquiry, theirs), own["answer"].tolist()
            parts.append(own.assign(answer=theirs))
        else:
            ours = own[list(OPTIONS)].to_numpy().tolist()
            parts.append(own.assign(**dict(zip(OPTIONS, np.transpose(theirs), strict=True))))
        found += [(start + n, *more) for n, *more in differences(model, processor, inquiry, theirs, ours)]
        start += len(theirs)
    ties = {number for number, *_, gap in found if gap <= TIE}
    for number, name, theirs, ours, gap in found:
        print(f"{'tie' if number in ties else 'DIFFERENT'} ({gap:.1e}): {name}: {theirs!r} / {ours!r}")
    others = len(found) - len(ties)
    print(f"{len(rows)} answers: {len(found)} differ ({len(found) / len(rows):.2%}), {others} of them without a tie")
    by_plain, by_kit = (scores(one, known) for one in (pd.concat(parts), rows))
    # likelihoods of the same option may differ by rounding
    apart = ~np.isclose(by_plain, by_kit, rtol=0, atol=TIE, equal_nan=True)
    for number, column in np.argwhere(apart):
        kind, name = "tie" if number in ties else "DIFFERENT", rows["question_id"][number]
        values = f"{by_plain.iat[number, column]:.4g} / {by_kit.iat[number, column]:.4g}"
        print(f"{kind}, score: {name}: {by_kit.columns[column]} {values}")
    if not apart.any():
        print(f"scores of {len(rows)} answers: the same")
    unlike = sum(number not in ties for number in np.flatnonzero(apart.any(axis=1)))
    return unlike + (others if len(found) <= MOST_TIES * len(rows) else len(found))


if __name__ == "__main__":
    sys.exit(main())
