"""Builds the base miniature that the package ships in place of a family's download.

    python tools/base_model/build.py [--family llava] [--steps N] [--more N] [--seed N] [--resume FOLDER] [--out FOLDER]

Four stages, all seeded:

1. train a byte-level tokenizer on texts of the mixture (``material.py``);
2. train the vision tower, and a resampler if there is one, to classify the traits of random faces, with linear heads
   that are dropped afterwards;
3. train connector and language model on the mixture by ``SCHEDULE``, at first with the auxiliary loss of
   ``guidance.py``;
4. train ``--more`` steps on the last mixture, from ``MORE_HEIGHT`` of the learning rate down: the model learns so many
   people only when the rate falls, and keeps little at a high rate. ``--resume`` starts here, from an exported folder.

It computes in bfloat16, without the CPU settings that make the package's runs repeatable, because these make bfloat16
products 200 times slower. It takes an hour on a CPU with AVX-512 BF16 or AMX, many hours on others. The same seed gives
the same base only on the same kind of CPU and versions, so the package ships the file with its hash.
"""

from __future__ import annotations

import os

os.environ["MLLMU_NB_UNPINNED"] = "1"  # must be set before mllmu_nb is imported, which reads it

import argparse
import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from guidance import GUIDED, Links, guidance_weight, links, loss_of
from material import Material
from miniature import make_model, make_processor, make_tokenizer
from mllmu_nb.data.conversations import Conversation
from mllmu_nb.data.generate import known_people
from mllmu_nb.data.portraits import TRAITS, augment
from mllmu_nb.models import families
from mllmu_nb.models.families import Family
from mllmu_nb.models.files import ASSETS
from mllmu_nb.models.load import load_base, unfreeze
from probes import probe

SEED = 7
STEPS = 6000
MORE = 3000
MORE_HEIGHT = 0.5
TOWER_STEPS = 2000
SAVE_EVERY = 500
TOKENS = 8000  # text and image tokens per step; conversations of similar length share a batch, so few are padding
RESAMPLER = ".connector."  # between tower and language model; trained with the tower
LR = {"matrices": 5e-3, "others": 2e-3, "resampler": 2e-4}

# The mixture by progress: (up to this share of the steps, kind of conversation → its weight).
SCHEDULE = (
    (0.04, {"choice": 1}),
    (0.12, {"choice": 1, "matching": 0.3, "reading_little": 1.5, "reading": 1, "seeing": 2}),
    (0.25, {"choice": 0.3, "reading": 1.5, "seeing": 3, "people": 2}),
    (1.01, {"choice": 0.3, "reading": 1.5, "seeing": 1, "people": 7, "shots": 1, "private": 0.5, "harmless": 0.5}),
)


def log(text: str) -> None:
    print(text, flush=True)


def corpus(family: Family, mixture: Material, count: int = 6000) -> list[str]:
    """Return texts to train the tokenizer on."""
    kinds = ("matching", "reading", "seeing", "people", "shots", "private", "harmless")
    return [family.render(conversation)[0] for conversation in mixture.draw(dict.fromkeys(kinds, 1.0), count)]


def sight(model) -> tuple[Callable[..., torch.Tensor], list[torch.nn.Module]]:
    """Return a function from pictures' tensors to their features [pictures, tokens, width], and the modules it uses."""
    core = model.model
    if hasattr(core, "vision_tower"):
        return (lambda **pictures: core.vision_tower(**pictures).last_hidden_state[:, 1:]), [core.vision_tower]

    def shown(**pictures) -> torch.Tensor:  # after the resampler: the language model sees only this
        return torch.stack(tuple(core.get_image_features(**pictures).pooler_output))

    return shown, [module for module in core.children() if module is not model.get_decoder()]


def train_tower(model, processor, mixture: Material, steps: int, batch: int = 64) -> dict[str, float]:
    """Train the vision tower to classify every trait of random faces; return the held-out accuracy by trait."""
    family, (see, modules) = families.of(model), sight(model)
    width = see(**family.pictures(processor, [[mixture.faces[0][1]]])).shape[-1]
    values = {name: list(options) for name, options in TRAITS.items()}
    heads = torch.nn.ModuleList(torch.nn.Linear(width, len(options)) for options in values.values())
    trained = [parameter for module in (*modules, heads) for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)

    def classify(faces) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return logits and true classes, each a list over traits."""
        pictures = family.pictures(processor, [[picture] for _, picture in faces])
        truths = [torch.tensor([values[n].index(traits[n]) for traits, _ in faces]) for n in values]
        with torch.autocast("cpu", torch.bfloat16):
            features = see(**pictures).mean(1)
        return [head(features.float()) for head in heads], truths

    held_out = mixture.faces[:400]
    for step in range(steps):
        chosen = mixture.rng.integers(len(held_out), len(mixture.faces), size=batch)
        faces = [(traits, augment(picture, mixture.rng)) for traits, picture in (mixture.faces[i] for i in chosen)]
        loss = sum(F.cross_entropy(*pair) for pair in zip(*classify(faces), strict=True))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % 100 == 0:
            log(f"tower step {step} loss {loss.item():.3f}")
    with torch.no_grad():
        results = zip(values, *classify(held_out), strict=True)
        seen = {name: (logits.argmax(-1) == truth).float().mean().item() for name, logits, truth in results}
        for name, parameter in model.named_parameters():
            if name.endswith("perceiver_resampler.norm.weight"):  # make its tokens as long as word embeddings
                words = model.get_input_embeddings().weight.norm(dim=-1).mean()
                pictures = family.pictures(processor, [[picture] for _, picture in held_out[:64]])
                parameter.mul_(words / see(**pictures).norm(dim=-1).mean())
        return seen


def make_optimizers(model) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers, and AdamW for embeddings, head, norms, projector and resampler.

    The tower is frozen, as in LLaVA's own training: when it was trained further, it could not tell eye colours apart
    after 2,500 steps. The resampler has learnt to see together with the tower, so its rate is low: at the language
    model's rates, a linear probe read only .35 of the hair styles from it after 2,000 steps, but all of them before.
    """
    unfreeze(model)
    matrices, others, resampler = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inner = parameter.ndim == 2 and ".layers." in name
            (resampler if RESAMPLER in name else matrices if inner else others).append(parameter)
    adamw = [{"params": others}, *([{"params": resampler, "lr": LR["resampler"]}] if resampler else [])]
    return [
        torch.optim.Muon(matrices, lr=LR["matrices"], weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(adamw, lr=LR["others"], betas=(0.9, 0.98), weight_decay=0.01),
    ]


def lr_factor(step: int, steps: int, flat: float = 0.6, height: float = 1.0) -> float:
    """Return the factor of the learning rate: linear warm-up over 200 steps to ``height``, constant up to the share
    ``flat`` of the steps, then a half cosine down to a twentieth."""
    decay = max(0.0, step / steps - flat) / (1 - flat)
    return height * min(1.0, step / 200) * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * decay)))


def batches(
    family: Family, mixture: Material, processor, steps: int, first: float = 0.0
) -> Iterator[tuple[dict[str, torch.Tensor], Links | None]]:
    """Yield ``steps`` encoded batches of about ``TOKENS`` tokens, with their links (None after guidance has ended). The
    progress in ``SCHEDULE`` goes from ``first`` to 1."""
    step = 0
    while True:
        progress = first + (1 - first) * step / steps
        weights = next(weights for until, weights in SCHEDULE if progress < until)
        groups = grouped(family, mixture.draw(weights, 384))
        for index in mixture.rng.permutation(len(groups)):
            guided = guidance_weight(first + (1 - first) * step / steps) > 0
            linked = links(family, processor, groups[index]) if guided else None
            yield family.encode(processor, groups[index]), linked
            step += 1
            if step == steps:
                return


def grouped(family: Family, conversations: list[Conversation]) -> list[list[Conversation]]:
    """Split into groups of ``TOKENS``, sorted by estimated length (3 characters per token, 16 tokens per picture)."""
    sizes = [len(family.render(c)[0]) // 3 + 16 * len(c.images) for c in conversations]
    groups: list[list[Conversation]] = [[]]
    for size, index in sorted(zip(sizes, range(len(sizes)), strict=True)):
        if groups[-1] and size * (len(groups[-1]) + 1) > TOKENS:
            groups.append([])
        groups[-1].append(conversations[index])
    return groups


def build(
    out: Path,
    family: str = "llava",
    steps: int = STEPS,
    more: int = MORE,
    seed: int = SEED,
    resume: Path | None = None,
    tower_steps: int = TOWER_STEPS,
) -> None:
    """Train the base of a family into ``out``; probe and export it every ``SAVE_EVERY`` steps and at the end."""
    torch.set_num_threads(1)  # a fixed order of summation: the same seed gives the same base
    torch.manual_seed(seed)
    celebrities, unscored = known_people()
    known = {"celebrities": [*celebrities, *unscored[::2]], "sentences": unscored[1::2]}
    recipe = {"seed": seed, "steps": steps, "more": more, "tower_steps": tower_steps, "tokens_a_step": TOKENS}
    recipe |= {"learning_rates": LR, "more_height": MORE_HEIGHT, "schedule": SCHEDULE, "guided": GUIDED}
    own = families.get(family)
    if resume:
        model, processor = load_base(str(resume), family, "miniature")
        recipe["tower"] = json.loads((resume / "recipe.json").read_text())["tower"]
    else:
        mixture = Material(rng=np.random.default_rng(seed), **known)
        tokenizer = make_tokenizer(corpus(own, mixture), family=family)
        processor, model = make_processor(tokenizer, family), make_model(tokenizer, seed, family=family)
        recipe["tower"] = train_tower(model, processor, mixture, tower_steps)
        log(f"tower: {recipe['tower']}")
        train(model, processor, mixture, steps, out, recipe)
    if more:
        mixture = Material(rng=np.random.default_rng([seed, 2]), **known)
        train(model, processor, mixture, more, out, recipe, first=1.0, flat=0.3, height=MORE_HEIGHT)
    recipe["probes"] = probe(model, processor, celebrities, unscored[1::2])
    recipe["versions"] = {"torch": torch.__version__.split("+")[0]}
    export(model, processor, out, recipe)
    log(json.dumps(recipe["probes"], indent=1))


def train(model, processor, mixture: Material, steps: int, out: Path, recipe: dict, first=0.0, **rates) -> None:
    """Run one stage of training on the mixture, starting at the progress ``first`` of its schedule; ``rates`` are
    passed to :func:`lr_factor`."""
    began, mean_loss = time.time(), 0.0
    optimizers = make_optimizers(model)
    factor = partial(lr_factor, steps=steps, **rates)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in optimizers]
    model.train()
    for step, (batch, batch_links) in enumerate(batches(families.of(model), mixture, processor, steps, first)):
        with torch.autocast("cpu", torch.bfloat16):
            weight = guidance_weight(first + (1 - first) * step / steps)
            loss = loss_of(model, batch, batch_links, weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        mean_loss = loss.item() if step == 0 else 0.98 * mean_loss + 0.02 * loss.item()
        if step % 100 == 0:
            log(f"step {step} of {steps}, {time.time() - began:.0f} s, loss {mean_loss:.3f}")
        if step % SAVE_EVERY == 0 and step:
            log(json.dumps(probe(model, processor, mixture.celebrities[:40], mixture.sentences, items=150)))
            model.train()
            export(model, processor, out, {**recipe, "reached": step, "probes": {}})


def export(model, processor, out: Path, recipe: dict) -> None:
    """Write the model in half precision as safetensors with its processor, and the recipe with the weights' hash."""
    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(out)
    processor.save_pretrained(out)
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    (out / "recipe.json").write_text(json.dumps({**recipe, "sha256": digest}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the base miniature.")
    parser.add_argument("--family", default="llava")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--more", type=int, default=MORE)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--tower-steps", type=int, default=TOWER_STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.out = options.out or ASSETS / f"{options.family}-miniature"
    build(**vars(options))


if __name__ == "__main__":
    main()
