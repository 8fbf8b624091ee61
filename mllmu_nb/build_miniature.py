"""Builds the base miniature that the package ships: the stand-in for downloading LLaVA.

    python -m mllmu_nb.build_miniature [--steps N] [--out FOLDER]

Three stages, all seeded, counted in steps:

1. a byte-level tokenizer on the texts of the mixture;
2. the vision tower learns to tell the traits of random faces (a linear head each, thrown away afterwards);
3. projector and language model learn the mixture of :mod:`mllmu_nb.mixture`: choosing what was just named, then facts
   to read and faces to see, then everything; at first :mod:`mllmu_nb.guidance` shows it where to look.

It computes in half precision: an hour on a CPU with instructions for it (AVX-512 BF16, AMX), many hours on others.
It stands outside the arrow data → models → training: it trains and probes, and no run calls it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from mllmu_nb.data.generate import known_people
from mllmu_nb.data.portraits import TRAITS, augment
from mllmu_nb.guidance import Links, guidance_loss, links
from mllmu_nb.mixture import Mixture, corpus
from mllmu_nb.models.miniature import SHIPPED, make_model, make_processor, make_tokenizer
from mllmu_nb.models.prompts import IGNORE, encode, render

SEED = 7
STEPS = 6000
TOKENS = 8000  # text and image tokens a step, nearly all of them unpadded: conversations of like length go together
LR = {"matrices": 5e-3, "others": 2e-3}  # Muon for the matrices of the transformers, AdamW for the rest

# The mixture by progress: (until this share of the steps, kind → share of the conversations).
SCHEDULE = (
    (0.04, {"choice": 1}),
    (0.12, {"choice": 1, "matching": 0.3, "reading_little": 1.5, "reading": 1, "seeing": 2}),
    (0.25, {"choice": 0.3, "reading": 1.5, "seeing": 3, "people": 2}),
    (1.01, {"choice": 0.3, "reading": 1.5, "seeing": 1, "people": 5, "shots": 0.7, "private": 0.5, "harmless": 0.5}),
)
GUIDED = (0.5, 0.8)  # the guidance counts in full up to the first share of the steps and no longer from the second on


def weights_at(progress: float) -> dict[str, float]:
    """Shares of the kinds of conversation at a progress from 0 to 1."""
    return next(weights for until, weights in SCHEDULE if progress < until)


def guidance_at(progress: float) -> float:
    """Weight of the guidance at a progress from 0 to 1."""
    full, none = GUIDED
    return min(1.0, max(0.0, (none - progress) / (none - full)))


def train_tower(model, processor, mixture: Mixture, steps: int = 2000, batch: int = 64, log=print) -> dict[str, float]:
    """Teach the vision tower every trait of random faces; returns held-out accuracy by trait."""
    tower = model.model.vision_tower
    names = list(TRAITS)
    values = {name: list(TRAITS[name]) for name in names}
    heads = torch.nn.ModuleList(torch.nn.Linear(tower.config.hidden_size, len(values[n])) for n in names)
    optimizer = torch.optim.AdamW([*tower.parameters(), *heads.parameters()], lr=2e-3, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)

    def look(faces):
        pictures = processor.image_processor(images=[p for _, p in faces], return_tensors="pt")["pixel_values"]
        targets = [torch.tensor([values[n].index(traits[n]) for traits, _ in faces]) for n in names]
        with torch.autocast("cpu", torch.bfloat16):
            features = tower(pictures).last_hidden_state[:, 1:].mean(1)
        return [head(features.float()) for head in heads], targets

    held_out = mixture.faces[:400]
    for step in range(steps):
        picked = mixture.rng.integers(400, len(mixture.faces), size=batch)
        guesses, targets = look([(mixture.faces[i][0], augment(mixture.faces[i][1], mixture.rng)) for i in picked])
        loss = sum(F.cross_entropy(g, t) for g, t in zip(guesses, targets, strict=True))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*tower.parameters(), *heads.parameters()], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        plan.step()
        if step % 100 == 0:
            log(f"tower step {step} loss {loss.item():.3f}")
    with torch.no_grad():
        guesses, targets = look(held_out)
    return {n: (g.argmax(-1) == t).float().mean().item() for n, g, t in zip(names, guesses, targets, strict=True)}


def optimizers(model) -> list[torch.optim.Optimizer]:
    """Muon for the square-ish weights of the language model, AdamW for embeddings, head, norms and projector.

    The tower stays as it has learnt to see, as in LLaVA's own training: left free it had lost the eyes by step 2,500.
    """
    model.model.vision_tower.requires_grad_(False)
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = parameter.ndim == 2 and ".layers." in name
        (matrices if inner else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=LR["matrices"], weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LR["others"], betas=(0.9, 0.98), weight_decay=0.01),
    ]


def loss_of(model, batch, where: Links | None = None, weight: float = 0.0) -> torch.Tensor:
    """Mean negative log-likelihood of the answers' tokens, and ``weight`` times the guidance along ``where``.

    The vocabulary is only spread out where a token is asked.
    """
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    shown = dict.fromkeys(("output_attentions", "output_hidden_states"), weight > 0)
    output = model.model(**inputs, use_cache=False, **shown)
    labels = batch["labels"][:, 1:]
    asked = labels != IGNORE
    loss = F.cross_entropy(model.lm_head(output.last_hidden_state[:, :-1][asked]).float(), labels[asked])
    return loss + weight * guidance_loss(model, output, batch, where) if weight else loss


def batches(mixture: Mixture, processor, steps: int):
    """``steps`` encoded batches of about ``TOKENS`` tokens with their links, conversations of like length together."""
    step = 0
    while True:
        drawn = mixture.draw(weights_at(step / steps), 384)
        sized = sorted(
            ((len(render(c)[0]) // 3 + 16 * sum(t.image is not None for t in c.turns), i) for i, c in enumerate(drawn))
        )
        groups, group = [], []
        for size, index in sized:
            if group and size * (len(group) + 1) > TOKENS:
                groups.append(group)
                group = []
            group.append(drawn[index])
        groups.append(group)
        for index in mixture.rng.permutation(len(groups)):
            guided = guidance_at(step / steps) > 0
            yield encode(processor, groups[index]), links(processor, groups[index]) if guided else None
            step += 1
            if step == steps:
                return


def build(out: Path, steps: int = STEPS, seed: int = SEED, tower_steps: int = 2000, log=print, save_every: int = 500):
    """Train the base into ``out``; a checkpoint is exported every ``save_every`` steps, the probes run at the end."""
    from mllmu_nb.probes import probe

    torch.set_num_threads(1)  # sums in one order: the same seed makes the same base
    torch.manual_seed(seed)
    began = time.time()
    famous, others = known_people()
    mixture = Mixture([*famous, *others], np.random.default_rng(seed))
    tokenizer = make_tokenizer(corpus(mixture))
    processor = make_processor(tokenizer)
    model = make_model(tokenizer, seed)
    traits = train_tower(model, processor, mixture, tower_steps, log=log)
    log(f"tower after {time.time() - began:.0f} s: {traits}")
    rules = optimizers(model)
    rates = [group["lr"] for rule in rules for group in rule.param_groups]
    mean = 0.0
    for step, (batch, where) in enumerate(batches(mixture, processor, steps)):
        progress = step / steps
        # up in 200 steps, flat for 60 %, down to a twentieth along a half cosine
        shape = min(1.0, step / 200) * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * max(0.0, progress - 0.6) / 0.4)))
        for group, rate in zip((g for r in rules for g in r.param_groups), rates, strict=True):
            group["lr"] = rate * shape
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batch, where, guidance_at(progress))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for rule in rules:
            rule.step()
            rule.zero_grad()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if step % 100 == 0:
            log(f"step {step} of {steps}, {time.time() - began:.0f} s, loss {mean:.3f}")
        if step % save_every == 0 and step:
            log(json.dumps(probe(model, processor, famous, items=150)))
            export(model, processor, out, {"seed": seed, "steps": step, "of": steps, "probes": {}})
    recipe = {
        "seed": seed,
        "steps": steps,
        "tower_steps": tower_steps,
        "tokens_a_step": TOKENS,
        "learning_rates": LR,
        "schedule": [[until, shares] for until, shares in SCHEDULE],
        "guided": GUIDED,
        "tower": traits,
        "probes": probe(model, processor, famous),
        "versions": {"torch": torch.__version__.split("+")[0]},
    }
    export(model, processor, out, recipe)
    log(f"done in {time.time() - began:.0f} s: {json.dumps(recipe['probes'], indent=1)}")


def export(model, processor, out: Path, recipe: dict) -> None:
    """Write the model in half precision as safetensors with its processor, and the recipe with the weights' hash."""
    import copy

    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(out)
    processor.save_pretrained(out)
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    (out / "recipe.json").write_text(json.dumps({**recipe, "sha256": digest}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the base miniature.")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    choice = parser.parse_args()
    build(choice.out, choice.steps, choice.seed, log=lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
