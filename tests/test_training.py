"""The loop on a real, tiny LLaVA: what it scores, what it trains, in which order, and when it stops."""

import copy
import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mllmu_nb.data.portraits import draw, random_traits, to_png
from mllmu_nb.data.schema import QA, Profile
from mllmu_nb.errors import KitError
from mllmu_nb.models.load import attach_lora
from mllmu_nb.models.miniature import make_model, make_processor, make_tokenizer
from mllmu_nb.models.prompts import Conversation, Turn, encode, token_counts
from mllmu_nb.muon import STEPS, Muon, orthogonal
from mllmu_nb.training import (
    TrainingDiverged,
    _instructed,
    endless,
    epoch,
    finetune,
    label_scores,
    modality_conversations,
    processes,
    record,
    rules,
    steps_of,
    train,
    unlearn,
    vanilla_mode,
)
from mllmu_nb.unlearning import IGNORE, Method, get, mean_nll, token_log_probs, token_nll

FACTS = {
    "Lukas Berg": ("Oslo", "baker"),
    "Ines Rocha": ("Porto", "judge"),
    "Amy Cole": ("Leeds", "pilot"),
    "Jun Sato": ("Kobe", "nurse"),
}


def person(number, name):
    rng = np.random.default_rng(number)
    city, job = FACTS[name]
    qa = (
        QA("What is the name of this person?", f"This is {name}.", "name", name),
        QA("Where was this person born?", f"In {city}.", "birthplace", city),
        QA("What is this person's job?", f"A {job}, and a good one.", "profession", job),
    )
    return Profile(f"{number:03}", name, "fictitious", {}, to_png(draw(random_traits(rng), rng)), "", qa, ())


PEOPLE = [person(number, name) for number, name in enumerate(FACTS)]


@pytest.fixture(scope="module")
def processor():
    return make_processor(make_tokenizer([qa.question + qa.answer for p in PEOPLE for qa in p.qa] * 4, 400))


@pytest.fixture(scope="module")
def fresh(processor):
    return make_model(processor.tokenizer, 0, width=32, layers=2, heads=2).eval()


@pytest.fixture(scope="module")
def vanilla(fresh, processor):
    """A model that knows the four people in both views."""
    model = copy.deepcopy(fresh)
    data = modality_conversations(PEOPLE, "multimodal") + modality_conversations(PEOPLE, "unimodal")
    log = finetune(model, processor, data, steps=180, batch_size=4, lr=5e-3, turns=3, schedule="cosine", warmup=0.05)
    assert log.losses[-1]["loss"] < 0.1 < 3 < log.losses[0]["loss"]
    return model


@pytest.fixture
def mixed():
    """Rows of other lengths: with and without an image, one and two answers."""
    return [
        Conversation((Turn("Where was this person born?", "In Oslo.", PEOPLE[0].portrait),)),
        Conversation(
            (Turn("Where was Amy Cole born?", "In Leeds."), Turn("And the job?", "A pilot, and a good one.")),
            "Be kind.",
        ),
    ]


@pytest.mark.parametrize("label_mode", ["answer", "text", "upstream"])
def test_scores_give_the_loss_of_transformers(fresh, processor, mixed, label_mode):
    batch = encode(processor, mixed, label_mode=label_mode)
    with torch.no_grad():
        expected = fresh(**batch).loss
        scored = label_scores(fresh, batch)
    assert token_nll(scored).item() == pytest.approx(expected.item(), abs=1e-5)
    assert scored.counts.tolist() == (batch["labels"][:, 1:] != IGNORE).sum(1).tolist()
    assert scored.logits.shape[1] == scored.counts.max()


def test_scores_do_not_depend_on_the_padding_side_or_the_batch(fresh, processor, mixed):
    with torch.no_grad():
        together = label_scores(fresh, encode(processor, mixed))
        left = label_scores(fresh, encode(processor, mixed, padding_side="left"))
        alone = [label_scores(fresh, encode(processor, [c])) for c in mixed]
    torch.testing.assert_close(left.logits[left.mask], together.logits[together.mask], atol=1e-4, rtol=1e-4)
    for row, single in enumerate(alone):
        count = int(single.counts)
        assert together.labels[row, :count].tolist() == single.labels[0].tolist()
        torch.testing.assert_close(together.logits[row, :count], single.logits[0], atol=1e-4, rtol=1e-4)


def test_scores_at_every_position_are_the_models_logits(fresh, processor, mixed):
    batch = encode(processor, mixed)
    with torch.no_grad():
        plain, all_over = label_scores(fresh, batch), label_scores(fresh, batch, everywhere=True)
        logits = fresh(**batch).logits
    assert plain.everywhere is None and torch.equal(plain.logits, all_over.logits)
    assert logits.shape[:2] == batch["input_ids"].shape and not batch["attention_mask"].all(), "no padding to look at"
    torch.testing.assert_close(all_over.everywhere, logits)


def test_an_example_without_an_answer_is_refused(fresh, processor, mixed):
    with pytest.raises(KitError, match="no supervised token"):
        label_scores(fresh, encode(processor, [*mixed, Conversation((Turn("Where?"),))]))


def test_the_reference_is_the_model_before_its_adapter(fresh, processor, mixed):
    batch = encode(processor, mixed)
    with torch.no_grad():
        before = label_scores(fresh, batch)
    adapted = attach_lora(copy.deepcopy(fresh), dropout=0.5)
    for layer in adapted.get_base_model().model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5  # the base has dropout of its own, too
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    adapted.train()
    with vanilla_mode(adapted):
        reference = label_scores(adapted, batch)
    assert torch.equal(reference.logits, before.logits)
    assert not reference.logits.requires_grad and adapted.training
    assert not torch.allclose(label_scores(adapted, batch).logits, before.logits, atol=1e-2)


def supervised(model, processor, conversations):
    with torch.no_grad():
        return mean_nll(label_scores(model, encode(processor, conversations))).item()


def objective(scored, reference):
    return token_nll(scored["train"]), {}


def forever(processor, conversations):
    while True:
        yield {"train": encode(processor, conversations)}


def test_the_loop_is_adamw_written_out(fresh, processor, mixed):
    """Four steps against the same four written by hand: a warm-up of one, linear decay, clipped to norm 1."""
    ours, theirs = copy.deepcopy(fresh), copy.deepcopy(fresh)
    batches = [encode(processor, [conversation]) for conversation in mixed] * 2
    given = ({"train": batch} for batch in batches)
    log = train(ours, given, objective, steps=4, lr=3e-3, warmup=1 / 4, weight_decay=0.1)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=3e-3, weight_decay=0.1)
    for step, (batch, rate) in enumerate(zip(batches, (0.0, 3e-3, 2e-3, 1e-3), strict=True)):
        optimizer.param_groups[0]["lr"] = rate
        loss = theirs(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        assert log.losses[step] == {"step": step + 1, "loss": pytest.approx(loss.item(), abs=1e-4)}
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (a - b).abs().mean() < 1e-5, name  # Adam divides by the gradient's size: near zero, rounding shows
    assert (log.steps, log.trainable_parameters) == (4, sum(p.numel() for p in ours.parameters()))
    assert log.supervised_tokens == sum((batch["labels"] != IGNORE).sum() for batch in batches)
    assert log.seconds > 0 and log.peak_memory_mb > 50 and not ours.training


def test_accumulated_batches_make_one_step(fresh, processor):
    """Two batches of one example are the batch of both, where their answers are equally long."""

    def faint(scored, reference):
        # Adam's step does not depend on the gradient's size, except below its epsilon of 1e-8.
        return 1e-8 * token_nll(scored["train"]), {}

    pair = [Conversation((Turn(f"Is it {word}?", "In Oslo.", PEOPLE[0].portrait),)) for word in ("so", "not")]
    whole, halves = copy.deepcopy(fresh), copy.deepcopy(fresh)
    options = {"steps": 1, "lr": 1e-2, "schedule": "constant", "clip": 0}
    train(whole, forever(processor, pair), faint, **options)
    parts = ({"train": encode(processor, [c])} for c in pair)
    log = train(halves, parts, faint, **options, accumulate=2)
    assert len(log.losses) == 1
    moved, apart = (
        torch.cat([(a - b).flatten() for a, b in zip(whole.parameters(), other.parameters(), strict=True)])
        .norm()
        .item()
        for other in (fresh, halves)
    )
    assert apart < 0.01 * moved


def test_half_precision_learns_the_same_and_may_follow_full_precision(fresh, processor, mixed):
    runs = {}
    for precision in ("no", "bf16"):
        model = copy.deepcopy(fresh)
        log = train(model, forever(processor, mixed), objective, steps=8, lr=1e-2, precision=precision)
        runs[precision] = [entry["loss"] for entry in log.losses]
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert runs["bf16"] == pytest.approx(runs["no"], rel=0.05) and runs["bf16"] != runs["no"]
    assert runs["bf16"][-1] < runs["bf16"][0] - 1
    with pytest.raises(KitError, match="unknown precision 'fp8': choose no or bf16"):
        train(copy.deepcopy(fresh), [], objective, steps=1, lr=1e-2, precision="fp8")


def test_a_loss_that_is_no_number_stops_before_the_weights_are_spoilt(fresh, processor, mixed):
    model = copy.deepcopy(fresh)
    calls = []

    def breaks(scored, reference):
        calls.append(1)
        return token_nll(scored["train"]) * (math.nan if len(calls) == 3 else 1), {}

    with pytest.raises(
        TrainingDiverged, match=r"diverged at step 3: the loss is nan; try a learning rate below 0\.001$"
    ):
        train(model, forever(processor, mixed), breaks, steps=5, lr=1e-3)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_gradient_that_is_no_number_stops_too(fresh, processor, mixed):
    def breaks(scored, reference):
        loss = token_nll(scored["train"])
        return loss + (loss - loss.detach()).sqrt(), {}  # finite, and its derivative is not

    with pytest.raises(TrainingDiverged, match=r"step 1: the gradient norm is (inf|nan) .*and gradient clipping"):
        train(copy.deepcopy(fresh), forever(processor, mixed), breaks, steps=5, lr=1e-3, clip=0)


def test_a_loss_that_rises_without_bound_stops(fresh, processor, mixed):
    with pytest.raises(
        TrainingDiverged, match=r"diverged at step \d+: the loss is \d+\.\d+ and was \d\.\d+ at the first"
    ):
        train(copy.deepcopy(fresh), forever(processor, mixed), objective, steps=50, lr=3.0, schedule="constant")


def test_states_from_which_nothing_can_be_trained(fresh, processor, mixed):
    frozen = copy.deepcopy(fresh).requires_grad_(False)
    with pytest.raises(KitError, match="nothing to train"):
        train(frozen, forever(processor, mixed), objective, steps=1, lr=1e-3)
    with pytest.raises(KitError, match="the batches ended at step 2 of 3"):
        train(copy.deepcopy(fresh), [{"train": encode(processor, mixed)}], objective, steps=3, lr=1e-3)
    with pytest.raises(KitError, match="unknown schedule 'step': choose one of linear, cosine, constant, plateau"):
        train(copy.deepcopy(fresh), [], objective, steps=3, lr=1e-3, schedule="step")


def test_conversations_of_each_modality():
    shown, told = (modality_conversations(PEOPLE[:1], m)[0] for m in ("multimodal", "unimodal"))
    assert shown.turns[1] == Turn("Where was this person born?", "In Oslo.", PEOPLE[0].portrait)
    assert len(shown.turns) == 3 and all(turn.image for turn in shown.turns)
    assert [turn.prompt for turn in told.turns] == ["Where was Lukas Berg born?", "What is Lukas Berg's job?"]
    assert not any(turn.image for turn in told.turns)
    assert not any("this person" in turn.prompt + turn.answer for turn in told.turns)
    with pytest.raises(KitError, match="unknown modality 'none': choose multimodal or unimodal"):
        modality_conversations(PEOPLE, "none")


def test_an_epoch_asks_everything_once_and_shows_a_picture_once():
    data = modality_conversations(PEOPLE, "multimodal")
    packed = epoch(data, 2, np.random.default_rng(0))
    assert sorted(len(c.turns) for c in packed) == [1] * 4 + [2] * 4 and len(packed) == steps_of(data, 1, 1, turns=2)
    assert all(c.turns[0].image and not any(t.image for t in c.turns[1:]) for c in packed)
    asked = [(turn.prompt, turn.answer) for c in packed for turn in c.turns]
    assert sorted(asked) == sorted((turn.prompt, turn.answer) for c in data for turn in c.turns)
    assert packed == epoch(data, 2, np.random.default_rng(0)) != epoch(data, 2, np.random.default_rng(1))
    stream = endless(data, 1, np.random.default_rng(0))
    first, second = ([next(stream) for _ in range(12)] for _ in range(2))
    assert sorted(map(str, first)) == sorted(map(str, second)) and first != second


def test_steps_of():
    data = modality_conversations(PEOPLE, "multimodal")  # 12 questions
    assert [steps_of(data, e, 5) for e in (1, 2, 0.5, 0.01)] == [3, 6, 2, 1]


def watched(monkeypatch):
    """Every batch of conversations that is encoded from here on."""
    seen = []

    def watch(processor, conversations, **options):
        seen.append((list(conversations), options))
        return encode(processor, conversations, **options)

    monkeypatch.setattr("mllmu_nb.training.encode", watch)
    return seen


def test_finetuning_mixes_in_replay_and_changes_portraits(fresh, processor, monkeypatch):
    seen = watched(monkeypatch)
    taught, repeated = (
        modality_conversations(PEOPLE[:2], "multimodal"),
        modality_conversations(PEOPLE[2:], "multimodal"),
    )
    pictures = []

    def augment(image, rng):
        pictures.append((image, rng.random()))
        return image

    def run(**changes):
        seen.clear()
        finetune(copy.deepcopy(fresh), processor, taught, steps=2, batch_size=4, lr=1e-3, turns=2, seed=1, **changes)
        return [batch for batch, _ in seen]

    mixed = run(replay_conversations=repeated, replay=0.25, augment=augment)
    assert [[c in repeated for c in batch] for batch in mixed] == [[False, False, False, True]] * 2
    assert {image for image, _ in pictures} == {p.portrait for p in PEOPLE[:2]} and len(set(pictures)) == 6
    assert seen[0][1] == {"label_mode": "answer", "eos": True, "padding_side": "right"}
    # the order of what is taught does not depend on what is mixed in
    assert [c for batch in run() for c in batch][:6] == [c for batch in mixed for c in batch if c not in repeated]
    with pytest.raises(KitError, match="replay is 0.5 but there is nothing to replay"):
        run(replay=0.5)
    with pytest.raises(KitError, match="nothing to learn"):
        finetune(fresh, processor, [], steps=2, batch_size=4, lr=1e-3)


def test_batches_that_are_drawn_together_hold_the_same_with_less_padding(fresh, processor, monkeypatch):
    seen = watched(monkeypatch)
    taught = modality_conversations(PEOPLE, "multimodal") + modality_conversations(PEOPLE, "unimodal")

    def run(together):
        seen.clear()
        options = {"steps": 4, "batch_size": 3, "lr": 1e-3, "turns": 2, "seed": 1, "together": together}
        finetune(copy.deepcopy(fresh), processor, taught, **options)
        return [batch for batch, _ in seen]

    def longest(batches):
        return sum(max(token_counts(processor, batch)) for batch in batches)

    plain, sorted_out = run(1), run(4)
    assert Counter(c for batch in plain for c in batch) == Counter(c for batch in sorted_out for c in batch)
    assert longest(sorted_out) < longest(plain) and sorted_out != plain


def test_the_same_seed_gives_the_same_weights(fresh, processor):
    def run(seed):
        model = attach_lora(copy.deepcopy(fresh), dropout=0.3)
        finetune(
            model, processor, modality_conversations(PEOPLE, "multimodal"), steps=3, batch_size=2, lr=1e-2, seed=seed
        )
        return torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


SETTINGS = {"epochs": 8, "batch_size": 3, "lr": 1e-2, "schedule": "constant"}


@pytest.mark.parametrize("name", ["ga", "grad_diff", "kl_min", "npo"])
def test_each_method_forgets_and_touches_the_adapter_alone(vanilla, processor, name):
    forget, retain = (modality_conversations(people, "multimodal") for people in (PEOPLE[:1], PEOPLE[1:]))
    model = attach_lora(copy.deepcopy(vanilla), dropout=0.1)
    base = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = supervised(model, processor, forget)
    log = unlearn(model, processor, get(name), forget, retain, SETTINGS, seed=0)
    assert log.steps == len(log.losses) == 8  # 3 questions in batches of 3
    assert supervised(model, processor, forget) > before + 0.5
    assert all(torch.equal(base[n], p) for n, p in model.named_parameters() if n in base)
    with vanilla_mode(model):
        assert supervised(model, processor, forget) == pytest.approx(before, abs=1e-6)


def test_the_first_step_starts_at_the_reference(vanilla, processor):
    """A fresh adapter changes nothing yet: KL is 0 and NPO's loss is (2/β) ln 2."""
    forget, retain = (modality_conversations(people, "multimodal") for people in (PEOPLE[:1], PEOPLE[1:]))
    settings = {**SETTINGS, "epochs": 1}
    logs = {
        name: unlearn(
            attach_lora(copy.deepcopy(vanilla), dropout=0.0), processor, get(name), forget, retain, settings, 0
        )
        for name in ("kl_min", "npo")
    }
    assert logs["kl_min"].losses[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert logs["npo"].losses[0]["loss"] == pytest.approx(2 / 0.1 * math.log(2), abs=1e-3)
    assert logs["npo"].losses[0]["ratio"] == pytest.approx(0, abs=1e-4)


def test_retain_comes_in_pairs_with_forget(vanilla, processor, monkeypatch):
    seen = watched(monkeypatch)
    forget, retain = (modality_conversations(people, "unimodal") for people in (PEOPLE[:2], PEOPLE[2:]))
    settings = {"epochs": 2, "batch_size": 3, "lr": 1e-4, "eos": False}

    def asked(name):
        seen.clear()
        unlearn(attach_lora(copy.deepcopy(vanilla)), processor, get(name), forget, retain, settings, 5)
        return [[c.turns[0].prompt for c in batch] for batch, _ in seen]

    paired = asked("grad_diff")
    assert [len(batch) for batch in paired] == [3, 3, 1, 1] * 2
    named = [{"Berg" in p or "Rocha" in p for p in batch} for batch in paired]
    assert named == [{True}, {False}] * 4
    assert sorted(paired[0] + paired[2]) == sorted(paired[4] + paired[6]) and paired[0] != paired[4]
    assert paired[::2] == asked("ga")  # forget comes in the same order whatever the method
    assert seen[0][1] == {"label_mode": "answer", "eos": False}


def test_a_variant_may_visit_its_sets_one_after_the_other(vanilla, processor, monkeypatch):
    class Separate(type(get("grad_diff"))):
        passes = (("forget",), ("retain",))

        def loss(self, scored, reference):
            (name,) = scored
            return (-1 if name == "forget" else 1) * mean_nll(scored[name]), {}

    seen = watched(monkeypatch)
    forget, retain = (modality_conversations(people, "unimodal") for people in (PEOPLE[:1], PEOPLE[1:]))
    model = attach_lora(copy.deepcopy(vanilla))
    log = unlearn(model, processor, Separate(), forget, retain, {"epochs": 2, "batch_size": 2, "lr": 1e-4}, 0)
    assert [len(batch) for batch, _ in seen] == [2, 2, 2, 2] * 2 and log.steps == 8  # 2 forget questions, then 6 others
    assert [entry["loss"] > 0 for entry in log.losses] == [False, True, True, True] * 2


UPSTREAM = {"epochs": 2, "batch_size": 2, "lr": 1e-3, "clip": 0}


def test_upstream_passes_are_adamw_written_out(vanilla, processor, monkeypatch):
    """GradDiff as released: every epoch up on the forget set, then down on the retain set, a step a batch, one linear
    schedule over all of them."""
    forget, retain = (modality_conversations(people, "unimodal") for people in (PEOPLE[:2], PEOPLE[2:]))
    ours, theirs = (attach_lora(copy.deepcopy(vanilla), dropout=0.0) for _ in range(2))
    seen, steps = watched(monkeypatch), []
    move = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a: steps.append(len(seen)) or move(self, *a))
    log = unlearn(ours, processor, get("grad_diff", "upstream"), forget, retain, UPSTREAM, 0)
    assert steps == list(range(1, 9)), "one batch a step: 2 epochs of 2 forget and 2 retain batches"
    lost = [{"Berg" in c.turns[0].prompt or "Rocha" in c.turns[0].prompt for c in batch} for batch, _ in seen]
    assert lost == [{True}, {True}, {False}, {False}] * 2
    assert [sorted(set(entry) - {"step", "loss"}) for entry in log.losses] == [["forget"]] * 2 + [["retain"]] * 2 + [
        ["forget"]
    ] * 2 + [["retain"]] * 2
    monkeypatch.undo()
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    theirs.train()
    for step, (batch, _) in enumerate(seen):
        optimizer.param_groups[0]["lr"] = 1e-3 * (8 - step) / 8
        loss = theirs(**encode(processor, batch)).loss
        optimizer.zero_grad()
        (-loss if step % 4 < 2 else loss).backward()
        optimizer.step()
        assert abs(log.losses[step]["loss"]) == pytest.approx(loss.item(), abs=1e-4)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (a - b).abs().mean() < 1e-5, name


def test_upstream_kl_is_summed_over_padding_and_image_slots(vanilla, processor, monkeypatch):
    """Nothing moves at a rate of 0, so the logged loss is that of the adapter as it stood, beside the plain model's."""
    forget, retain = (modality_conversations(people, "multimodal") for people in (PEOPLE[:1], PEOPLE[1:]))
    model = attach_lora(copy.deepcopy(vanilla), dropout=0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    seen = watched(monkeypatch)
    settings = {**UPSTREAM, "epochs": 1, "batch_size": 3, "lr": 0.0, "label_mode": "text", "eos": False}
    log = unlearn(model, processor, get("kl_min", "upstream"), forget, retain, settings, 0)
    monkeypatch.undo()
    batch = encode(processor, seen[1][0], label_mode="text", eos=False)
    with torch.no_grad():
        before, now = vanilla(**batch).logits.log_softmax(-1), model(**batch).logits.log_softmax(-1)
        loss = model(**batch).loss
    everywhere = (before.exp() * (before - now)).sum(-1)
    padding, image = batch["attention_mask"] == 0, batch["input_ids"] == processor.image_token_id
    assert everywhere[padding].sum() > 0.01 and everywhere[image].sum() > 0.01
    assert log.losses[1]["kl"] == pytest.approx(everywhere.sum().item() / 3, rel=1e-3)
    assert log.losses[1]["retain"] == pytest.approx(loss.item(), abs=1e-4)
    assert log.losses[1]["loss"] == pytest.approx(log.losses[1]["retain"] + log.losses[1]["kl"], rel=1e-5)


def test_a_recorded_model_gives_each_question_its_own_numbers(vanilla, processor):
    data = modality_conversations(PEOPLE[:2], "multimodal")
    kept = record(vanilla, processor, data, batch_size=4)
    assert len(kept) == 6 and {len(c.turns) for c in kept} == {1}
    for question in epoch(data, 1, np.random.default_rng(0)):
        with torch.no_grad():
            alone = token_log_probs(label_scores(vanilla, encode(processor, [question])))[0]
        torch.testing.assert_close(kept[question], alone, atol=1e-4, rtol=1e-4)


def test_upstream_npo_measures_against_what_was_recorded(fresh, vanilla, processor, monkeypatch):
    """It starts from vanilla, and far below the reference: here a model that has learnt nothing."""
    forget = modality_conversations(PEOPLE[:2], "multimodal")
    kept = record(fresh, processor, forget, batch_size=4)
    seen = watched(monkeypatch)
    model, method = attach_lora(copy.deepcopy(vanilla), dropout=0.0), get("npo", "upstream")
    log = unlearn(model, processor, method, forget, [], {**UPSTREAM, "batch_size": 3}, 0, kept)
    monkeypatch.undo()
    batch = encode(processor, seen[0][0])
    with torch.no_grad():
        excess = vanilla(**batch).loss.item() - fresh(**batch).loss.item()
    assert excess < -3 and log.losses[0]["excess"] == pytest.approx(excess, abs=1e-4)
    assert log.losses[0]["loss"] == pytest.approx(2 / 0.4 * math.log1p(math.exp(-0.4 * excess)), abs=1e-3)
    assert log.losses[-1]["excess"] > excess
    with pytest.raises(KitError, match="npo .upstream. needs what the model retain_epoch has recorded"):
        unlearn(model, processor, method, forget, [], UPSTREAM, 0)


def test_a_loss_that_changes_from_pass_to_pass_is_no_divergence(vanilla, processor):
    class Leap(Method):
        name, uses, passes = "leap", ("forget", "retain"), (("forget",), ("retain",))

        def loss(self, scored, reference):
            (name,) = scored
            return token_nll(scored[name]) + (100 if name == "retain" else 0), {}

    model, some = attach_lora(copy.deepcopy(vanilla)), modality_conversations(PEOPLE[:1], "unimodal")
    log = unlearn(model, processor, Leap(), some, some, {**UPSTREAM, "epochs": 1}, 0)
    assert log.losses[1]["loss"] > log.losses[0]["loss"] + 90
    with pytest.raises(KitError, match="leap .canonical. walks through whole epochs: 0.5 is not one"):
        unlearn(model, processor, Leap(), some, some, {**UPSTREAM, "epochs": 0.5}, 0)
    with pytest.raises(KitError, match="walks through whole epochs: 3 steps are not one"):
        unlearn(model, processor, Leap(), some, some, {**UPSTREAM, "epochs": 0, "steps": 3}, 0)


def test_what_unlearning_needs_is_there_or_named(vanilla, processor):
    some = modality_conversations(PEOPLE, "unimodal")
    log = unlearn(None, None, get("prompting"), some, some, SETTINGS, 0)
    assert (log.steps, log.losses, log.seconds) == (0, [], 0)
    model = attach_lora(copy.deepcopy(vanilla))
    with pytest.raises(KitError, match="kl_min needs retain questions and there are none"):
        unlearn(model, processor, get("kl_min"), some, [], SETTINGS, 0)
    with pytest.raises(KitError, match="ga needs forget questions and there are none"):
        unlearn(model, processor, get("ga"), [replace(some[0], turns=())], some, SETTINGS, 0)


def small_run(folder):
    """Two epochs of KL-Min; what it lost and where the adapter went."""
    processor = make_processor(make_tokenizer([qa.question + qa.answer for p in PEOPLE for qa in p.qa] * 4, 400))
    model = attach_lora(make_model(processor.tokenizer, 0, width=32, layers=2, heads=2), dropout=0.0)
    forget, retain = (modality_conversations(people, "multimodal") for people in (PEOPLE[:2], PEOPLE[2:]))
    settings = {"epochs": 2, "batch_size": 4, "lr": 1e-3, "schedule": "constant", "clip": 0}
    log = unlearn(model, processor, get("kl_min"), forget, retain, settings, 0)
    state = processes()
    moved = [p.double().sum().item() for p in model.parameters() if p.requires_grad]
    file = Path(folder) / f"{state.process_index}-of-{state.num_processes}.json"
    file.write_text(json.dumps([[entry["loss"] for entry in log.losses], moved]))


def test_two_processes_do_what_one_does(tmp_path):
    """A batch shared by two gives both the losses and the weights of one process that holds it all."""
    small_run(tmp_path)
    (tmp_path / "two.py").write_text(f"import {Path(__file__).stem} as test; test.small_run({str(tmp_path)!r})")
    here = Path(__file__).parent
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "two.py"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent)))}
    ended = subprocess.run(launch, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-2000:]
    one, first, second = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert first == second
    assert first[0] == pytest.approx(one[0], abs=1e-4) and first[1] == pytest.approx(one[1], abs=1e-3)


def test_a_plateau_rises_stays_and_falls_over_the_last_third(fresh, processor, mixed, monkeypatch):
    rates = []
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, closure=None: rates.append(self.param_groups[0]["lr"]) or None
    )
    model, options = copy.deepcopy(fresh).requires_grad_(True), {"schedule": "plateau", "warmup": 0.2}
    train(model, forever(processor, mixed), objective, steps=10, lr=1.0, progress=False, **options)
    assert rates == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])


def test_muon_moves_the_matrices_of_the_layers_and_adamw_the_rest(fresh):
    model = copy.deepcopy(fresh).requires_grad_(True)
    inner, rest = rules(model, "muon", 1e-3, 0.0)
    moved = [p for mover in (inner, rest) for group in mover.param_groups for p in group["params"]]
    assert sorted(map(id, moved)) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim == 2 for group in inner.param_groups for p in group["params"])
    assert any(p is model.lm_head.weight for group in rest.param_groups for p in group["params"])
    assert [group["lr"] for mover in (inner, rest) for group in mover.param_groups] == [1e-3, 0.5e-3]
    (alone,) = rules(model, "adamw", 1e-3, 0.0)
    assert isinstance(alone, torch.optim.AdamW) and alone.param_groups[0]["lr"] == 1e-3
    with pytest.raises(KitError, match="unknown optimizer 'sgd': choose adamw or muon"):
        rules(model, "sgd", 1e-3, 0.0)


def test_muon_steps_as_that_of_torch_does_without_its_half_precision():
    torch.manual_seed(0)
    shapes = [(8, 8), (24, 8), (8, 24), (8, 8)]
    ours, theirs = ([torch.nn.Parameter(torch.full(shape, 0.5)) for shape in shapes] for _ in range(2))
    movers = (
        Muon(ours, 1e-2, 0.1),
        torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw", ns_steps=STEPS),
    )
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        for mover in movers:
            mover.step()
    for a, b in zip(ours, theirs, strict=True):
        moved = (a - 0.5).norm()
        assert moved > 0.04 and (a - b).norm() < 0.02 * moved


def test_muon_turns_a_matrix_into_an_orthogonal_one():
    matrices = torch.randn(3, 6, 20, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(orthogonal(matrices.mT), orthogonal(matrices).mT)
    sizes = torch.linalg.svdvals(orthogonal(matrices))
    assert sizes.min() > 0.6 and sizes.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    nearest = u @ v
    assert (torch.nn.functional.cosine_similarity(orthogonal(matrices).flatten(1), nearest.flatten(1)) > 0.97).all()


def test_a_share_of_the_questions_carries_the_instruction_for_a_free_answer():
    seen = Conversation(tuple(Turn(f"Question {n}?", "Yes.", b"picture" if n == 0 else None) for n in range(400)))
    rng = np.random.default_rng(0)
    asked = _instructed(seen, 0.25, rng).turns
    changed = [turn for turn, before in zip(asked, seen.turns, strict=True) if turn.prompt != before.prompt]
    assert 70 < len(changed) < 130 and [t.answer for t in asked] == [t.answer for t in seen.turns]
    assert all("in one sentence accurately in ENGLISH" in turn.prompt for turn in changed)
    named = Conversation((Turn("Who is Ann?", "Ann."),))
    assert "accurately" not in _instructed(named, 1.0, rng).turns[0].prompt
    assert _instructed(named, 0.0, rng) == named
