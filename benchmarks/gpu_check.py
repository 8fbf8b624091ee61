"""Measures one GPU at the paper's scale, against the predictions of ``doctor`` and the released ways.

    python benchmarks/gpu_check.py [--bases llava idefics2] [--steps N] [--limit PEOPLE] [--tiny]

**We have not run it on a card so far, because we had none.** Without a GPU, or with ``--tiny``, the same code runs on
the shapes of the shipped miniatures, and its figures mean nothing.

The weights are random numbers, made on the card in the shape of LLaVA-1.5-7B and Idefics2-8B. The tokenizer is the
miniature's; pictures are as large as the published processors make them. Each training is the kit's own loop on
generated people, with an adapter on the frozen model: one warm-up step, in which operations are counted, then
``--steps`` timed steps. "Plain, seconds" is a step on the same batches in the way of the released code
(``training.py``: the library's processor and model, one graph for all terms, AdamW), after a warm-up step as well. It
is "–" for a method with a reference, which would need a second model in memory.

    utilisation = FLOPs of a step (matrix products and attention, with the backward pass through frozen layers)
                  / (seconds of a step × FLOP/s of one large matrix product in the same precision)

The first ``--limit`` people of each set are asked about by ``mllmu_nb.evaluation.ask``, and one by one by the library's
``generate`` (``released.py``). The time of all four sets of one model is extrapolated from the questions per second.
With random weights no answer ends early, so each has the full length. The goals are 45 % utilisation in training and
10 minutes for the four sets.
"""

from __future__ import annotations

import mllmu_nb  # noqa: F401, before torch: it pins the kernels

# isort: split
import argparse
import time
from dataclasses import replace
from functools import partial
from unittest import mock

import released
import torch
from accelerate.utils import send_to_device
from training import FINE_TUNING, METHODS, PlainWay
from transformers import AutoConfig, AutoModelForImageTextToText

from mllmu_nb import inputs, pipeline, prediction, provenance, training, unlearning
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import training_conversations
from mllmu_nb.data.schema import SETS
from mllmu_nb.evaluation.ask import ask, inquiries_of
from mllmu_nb.evaluation.tasks import Asking
from mllmu_nb.models import adapters
from mllmu_nb.models.files import ASSETS
from mllmu_nb.models.load import DTYPES

GIB, MIB = 2**30, 2**20
FOUR_SETS = 50 + 50 + 450 + 153  # people in the evaluation of one model at 10 %


def stand_in(config: Config, tiny: bool, device: str):
    """Return a model of random weights in the published shape (``tiny``: the miniature's), and its processor."""
    family, assets = inputs.family(config), ASSETS / f"{config.base_model}-miniature"
    processor = family.load_processor(str(assets), local_files_only=True)
    shape = AutoConfig.from_pretrained(assets)
    if not tiny:
        own, shape = shape, family.published_shape()
        shape.image_token_id, pictures = own.image_token_id, processor.image_processor
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(shape.text_config, name, getattr(own.text_config, name))
        if config.base_model == "llava":
            side = shape.vision_config.image_size
            pictures.size, pictures.crop_size = {"shortest_edge": side}, {"height": side, "width": side}
            processor.patch_size = shape.vision_config.patch_size
        else:
            pictures.size = {"shortest_edge": 378, "longest_edge": shape.vision_config.image_size}
            processor.image_seq_len = shape.perceiver_config.resampler_n_latents
    with torch.device(device):
        how = {"dtype": DTYPES[config.precision], "attn_implementation": "sdpa"}
        model = AutoModelForImageTextToText.from_config(shape, **how)
    return model.eval(), processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", nargs="+", default=["llava", "idefics2"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--tiny", action="store_true", help="the miniatures' shapes, as without a GPU")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tiny = options.tiny or device == "cpu"
    precision = "bf16" if device == "cuda" else "fp32"
    rate = prediction.assumed_rate(precision, here=True)
    most = rate.flops / prediction.SHARE
    print(f"{provenance.machine()['device']}: {most / 1e12:.3g} TFLOP/s in one large {precision} matrix product")
    print("utilisation = FLOPs of a step / (seconds of a step × FLOP/s of that matrix product)")
    for base in options.bases:
        config = Config(
            scale="paper", base_model=base, people=40, pool=0, celebrities=8, forget_ratio=10, precision=precision
        )
        model, processor = stand_in(config, tiny, device)
        estimate, label = prediction.Estimate(model.config, eager=False), inputs.family(config).label
        print(f"\n{label}, {estimate.parameters / 1e9:.3g} billion random weights{', tiny' * tiny}")
        trainings(config, model, processor, estimate, options.steps, rate, most)
        asking(config, model, processor, estimate, options.limit, rate)


def trainings(config, model, processor, estimate, steps: int, rate: prediction.Rate, most: float) -> None:
    """Print a table of fine-tuning and each method, measured, predicted, and done the plain way."""
    known = inputs.population(config)
    columns = "seconds a step | predicted | plain, seconds | peak GiB | predicted | TFLOP | predicted | utilisation"
    print(f"| training | {columns} |\n|---|{'---:|' * 8}")
    for name in ("vanilla", *(name for name in unlearning.names() if unlearning.get(name).streams)):
        one = config if name == "vanilla" else config.but(method=name, modality="multimodal")
        recipe, method = (one.unlearning, one.objective) if one.trains else (one.training, None)
        sets = {of: training_conversations(known.members(of), "multimodal") for of in ("forget", "retain")}
        model = adapters.attach(model, recipe, 0, method.trains if method else "")

        what = (method, sets) if method else (sets["retain"],)
        loop = partial(
            training.unlearn if method else training.finetune, model, processor, *what, progress=False, seed=0
        )
        with prediction.Tally() as tally:
            loop(recipe=replace(recipe, epochs=0, steps=1))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        log = loop(recipe=replace(recipe, epochs=0, steps=steps))
        seconds, peak = log.seconds / steps, log.peak_memory_mb * MIB / GIB
        named = (name, method) if method else (FINE_TUNING, training.FineTuning())
        plain = plain_seconds(PlainWay(*named, replace(recipe, epochs=0, steps=steps), sets), model, processor)
        needs = estimate.training(recipe, False, method)
        names = method.all_passes[0] if method else ("train",)
        flops = estimate.step(recipe, False, method, names)["flops"]
        print(
            f"| {name} | {seconds:.3f} | {flops / rate.flops:.3f} | {plain} | {peak:.1f} | {sum(needs.values()):.1f} | "
            f"{tally.flops / 1e12:.3g} | {flops / 1e12:.3g} | {tally.flops / seconds / most:.0%} |"
        )
        model = model.unload()


def plain_seconds(way: PlainWay, model, processor) -> str:
    """Return the seconds of a step done the plain way, after a warm-up step, or why there are none."""
    if way.name not in METHODS or way.method.needs.reference:
        return "–"
    drawn = way.drawn(model, processor)
    try:
        way.plain(model, processor, None, drawn[:1])
        began = time.perf_counter()
        way.plain(model, processor, None, drawn)
        return f"{(time.perf_counter() - began) / len(drawn):.3f}"
    except torch.cuda.OutOfMemoryError:  # it keeps the graphs and logits of all terms
        return "out of memory"
    finally:
        model.eval()


def asking(config, model, processor, estimate, limit: int, rate: prediction.Rate) -> None:
    """Print questions per second and minutes of four sets, by the kit and one by one, and the kit's peak memory."""
    known = inputs.population(config)
    how = {name: getattr(config, name) for name in pipeline.ASKING}
    drawn = inputs.draws_of(config, SETS)
    size = pipeline.asked_at_once(config)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    rows = ask(model, processor, known, limit=limit, draws=drawn, batch_size=size, progress=False, **how)
    kit = len(rows) / (time.perf_counter() - began)
    peak = training.peak_memory_mb(model.device) * MIB / GIB
    needs = sum(estimate.answering(config.but(eval_precision=config.precision)).values())

    usual = released.encoded
    asking = Asking(known, drawn, config.shots, config.protocol, scale=config.scale)
    inquiries = inquiries_of(asking, scoring=config.scoring, limit=limit)
    with mock.patch.object(released, "encoded", lambda *given: send_to_device(usual(*given), model.device)):
        began = time.perf_counter()
        for inquiry in inquiries:
            released.released(model, processor, inquiry, False)
        plain = len(rows) / (time.perf_counter() - began)
    people = {**dict.fromkeys(("forget", "test"), 50), "retain": 450, "celebrity": 153}
    kinds, each = list(prediction.ASKED), sum(count for count, *_ in prediction.ASKED.values())
    predicted = estimate.asking(config, people, kinds, lambda precision: rate) / 60
    minutes = [2 * each * FOUR_SETS / speed / 60 for speed in (kit, plain)]
    print(
        f"\nasking {len(rows)} questions: {kit:.1f} a second, one by one {plain:.1f}: {kit / plain:.1f} times as fast"
    )
    print(f"four sets: {minutes[0]:.1f} minutes ({predicted:.1f} predicted), one by one {minutes[1]:.1f}")
    print(f"peak {peak:.1f} GiB ({needs:.1f} predicted)")


if __name__ == "__main__":
    main()
