"""The loop on a real, tiny LLaVA: what it scores and trains, in which order, and when it stops."""

import contextlib
import copy
import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from miniature import make_model, make_processor, make_tokenizer
from mllmu_nb import pinning
from mllmu_nb.batches import (
    endless,
    epoch,
    finetuning_batches,
    finetuning_steps,
    pieces,
    steps_of,
    unlearning_batches,
    unlearning_steps,
)
from mllmu_nb.config import departures
from mllmu_nb.data.conversations import Conversation, Turn, training_conversations
from mllmu_nb.data.portraits import draw, random_face, random_traits, to_png
from mllmu_nb.data.schema import QA, Profile
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation.engine import answers
from mllmu_nb.models import families
from mllmu_nb.models.adapters import WEIGHTS, attach, save
from mllmu_nb.models.checkpoint import Checkpoint
from mllmu_nb.models.files import is_share
from mllmu_nb.models.load import unfreeze
from mllmu_nb.models.score import score
from mllmu_nb.optimizers import NEWTON_STEPS, Muon, make_schedule
from mllmu_nb.stages import Stage
from mllmu_nb.training import (
    FineTuning,
    TrainingDiverged,
    finetune,
    forget_peak,
    make_optimizers,
    peak_memory_mb,
    reference_log_probs,
    train,
    unlearn,
    vanilla_mode,
)
from mllmu_nb.unlearning import IGNORE, Method, Needs, Recipe, Stream, get, with_answers
from mllmu_nb.unlearning.grad_diff import GradientDifference

FACTS = {
    "Lukas Berg": ("Oslo", "baker"),
    "Ines Rocha": ("Porto", "judge"),
    "Amy Cole": ("Leeds", "pilot"),
    "Jun Sato": ("Kobe", "nurse"),
}
LLAVA = families.get("llava")
LORA = {"lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "lora_init": "kaiming", "adapter_reach": "language"}
PLAIN = Recipe(
    lr=1e-3, steps=0, epochs=0, batch_size=3, schedule="constant", warmup=0.0, weight_decay=0.0, clip=1.0,
    optimizer="adamw", precision="fp32", label_mode="answer", eos=True, turns=1, together=1,
    augment=False, **LORA,
)  # fmt: skip
UNLEARN = replace(PLAIN, epochs=8, lr=1e-2)
RELEASED = replace(PLAIN, epochs=2, batch_size=2, clip=0.0, schedule="linear")


def person(number, name):
    rng = np.random.default_rng(number)
    city, job = FACTS[name]
    qa = (
        QA("What is the name of this person?", f"This is {name}.", "name", name),
        QA("Where was this person born?", f"In {city}.", "birthplace", city),
        QA("What is this person's job?", f"A {job}, and a good one.", "profession", job),
    )
    return Profile(
        f"{number:03}",
        name,
        "fictitious",
        {},
        to_png(draw(face := random_face(random_traits(rng), rng)), face),
        "",
        qa,
        (),
    )


PEOPLE = [person(number, name) for number, name in enumerate(FACTS)]
SHOWN, NAMED = (training_conversations(PEOPLE, modality) for modality in ("multimodal", "unimodal"))


def sets(conversations, forgotten=1):
    return {"forget": conversations[:forgotten], "retain": conversations[forgotten:]}


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
    recipe = replace(PLAIN, steps=180, batch_size=4, lr=5e-3, turns=3, schedule="cosine", warmup=0.05)
    log = finetune(model, processor, SHOWN + NAMED, recipe, 0)
    assert log.losses[-1]["loss"] < 0.1 < 3 < log.losses[0]["loss"]
    return model


@pytest.fixture
def mixed():
    """Rows of different lengths: with and without an image, one and two answers."""
    return [
        Conversation((Turn("Where was this person born?", "In Oslo.", PEOPLE[0].portrait),)),
        Conversation(
            (Turn("Where was Amy Cole born?", "In Leeds."), Turn("And the job?", "A pilot, and a good one.")),
            "Be kind.",
        ),
    ]


def encode(processor, conversations, **words):
    return LLAVA.encode(processor, conversations, **words)


def adapted(model, **changes):
    return attach(copy.deepcopy(model), replace(PLAIN, **changes), 0)


def shaken(model, size):
    """Return an adapter that has an effect: a new one has none, because its B is zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, size)
    return model


class Recorder(type(LLAVA)):
    """LLaVA that returns the conversations of a batch, and the options for encoding them."""

    def encode(self, processor, conversations, label_mode, eos):
        return {"conversations": list(conversations), "words": (label_mode, eos)}


def asked(method, sets, recipe, seed, steps, processor=None):
    """Return the first batches of unlearning, each name → conversations."""
    batches = unlearning_batches(Recorder(), processor, method, sets, recipe, seed)
    return [{name: b["conversations"] for name, b in piece.items()} for [piece] in islice(batches, steps)]


def forgotten(conversations):
    """Return for each conversation, as a set, whether it is about people to be forgotten."""
    return {"Berg" in c.turns[0].prompt or "Rocha" in c.turns[0].prompt for c in conversations}


# -- scoring ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label_mode", ["answer", "text", "upstream"])
def test_scores_give_the_loss_of_transformers(fresh, processor, mixed, label_mode):
    batch = encode(processor, mixed, label_mode=label_mode)
    with torch.no_grad():
        expected = fresh(**batch).loss
        scored = score(fresh, batch)
    assert scored.token_nll.item() == pytest.approx(expected.item(), abs=1e-5)
    assert scored.counts.tolist() == (batch["labels"][:, 1:] != IGNORE).sum(1).tolist()
    assert scored.logits.shape[1] == scored.counts.max()


def test_what_a_method_needs_is_read_at_its_positions(fresh, processor, mixed):
    class Everything(Method):
        first, second = 0.5, 2
        needs = Needs(hidden=("first", "second"), everywhere=("retain",))

    batch = encode(processor, mixed)
    with torch.no_grad():
        plain, named = score(fresh, batch), score(fresh, batch, Everything(), "retain")
        other, output = score(fresh, batch, Everything(), "forget"), fresh(**batch, output_hidden_states=True)
    assert plain.everywhere is None is other.everywhere and not plain.hidden and torch.equal(plain.logits, named.logits)
    assert not batch["attention_mask"].all(), "no padding to look at"
    torch.testing.assert_close(named.everywhere, output.logits)
    supervised = batch["labels"][:, 1:] != IGNORE
    for name, layer in (("first", 1), ("second", 2)):  # half of two layers, and the second
        torch.testing.assert_close(named.hidden[name][named.mask], output.hidden_states[layer][:, :-1][supervised])
    for value, form in ((2.0, "a share of the depth .0 to 1."), (3, "a layer .0 to 2.")):
        method = type("Wrong", (Everything,), {"first": value})()
        with pytest.raises(KitError, match=f"is {value}: give {form}, as its default is one"):
            score(fresh, batch, method)


def test_an_example_without_an_answer_is_refused(fresh, processor, mixed):
    with pytest.raises(KitError, match="no supervised token"):
        score(fresh, encode(processor, [*mixed, Conversation((Turn("Where?"),))]))


def test_the_reference_is_the_model_before_its_adapter(fresh, processor, mixed):
    batch = encode(processor, mixed)
    with torch.no_grad():
        before = score(fresh, batch)
    model = shaken(adapted(fresh, lora_dropout=0.5), 0.1)
    for layer in model.get_base_model().model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5  # the base also has dropout of its own
    model.train()
    with vanilla_mode(model):
        reference = score(model, batch)
    assert torch.equal(reference.logits, before.logits)
    assert not reference.logits.requires_grad and model.training
    assert not torch.allclose(score(model, batch).logits, before.logits, atol=1e-2)


def test_stored_log_probs_are_each_questions_own(vanilla, processor):
    stored = reference_log_probs(vanilla, processor, SHOWN[:2], replace(PLAIN, batch_size=4))
    assert len(stored) == 6 and {len(c.turns) for c in stored} == {1}
    for question in epoch(SHOWN[:2], 1, np.random.default_rng(0)):
        with torch.no_grad():
            alone = score(vanilla, encode(processor, [question])).log_probs[0]
        torch.testing.assert_close(stored[question], alone, atol=1e-4, rtol=1e-4)


# -- the loop ---------------------------------------------------------------------------------------------------


def forever(processor, conversations):
    while True:
        yield [{"train": encode(processor, conversations)}]


def losing(term):
    """Return a method whose loss is ``term`` of the scored batch."""

    class Losing(FineTuning):
        def loss(self, step):
            yield "nll", term(step.train)

    return Losing()


def test_the_loop_is_adamw_written_out(fresh, processor, mixed):
    """Four steps compared with the same four by hand: a warm-up of one, linear decay, clipped to norm 1."""
    ours, theirs = copy.deepcopy(fresh), copy.deepcopy(fresh)
    batches = [encode(processor, [conversation]) for conversation in mixed] * 2
    recipe = replace(PLAIN, lr=3e-3, warmup=1 / 4, weight_decay=0.1, schedule="linear")
    log = train(ours, FineTuning(), ([{"train": batch}] for batch in batches), recipe, steps=4)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=3e-3, weight_decay=0.1)
    for step, (batch, rate) in enumerate(zip(batches, (0.0, 3e-3, 2e-3, 1e-3), strict=True)):
        optimizer.param_groups[0]["lr"] = rate
        loss = theirs(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        entry = log.losses[step]
        assert set(entry) == {"step", "loss", "nll", "nll_train"} and entry["step"] == step + 1
        assert entry["loss"] == entry["nll"] == pytest.approx(loss.item(), abs=1e-4)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (a - b).abs().mean() < 1e-5, name  # Adam divides by the gradient's size: near zero, rounding shows
    assert (log.steps, log.trainable_parameters) == (4, sum(p.numel() for p in ours.parameters()))
    assert log.supervised_tokens == sum((batch["labels"] != IGNORE).sum() for batch in batches)
    assert log.seconds > 0 and log.peak_memory_mb > 50 and not ours.training


def test_a_term_is_back_propagated_before_the_next_is_made_and_hooks_see_the_gradients(fresh, processor, mixed):
    """Two terms give the same weights as one with their sum; between them no graph is kept."""
    seen = []

    class Two(FineTuning):
        streams = {"a": Stream(), "b": Stream()}

        def loss(self, step):
            assert step.asked == {}, "nothing is scored before it is asked for"
            yield "a", step.a.token_nll
            assert set(step.asked) == {"a"} and trained.grad is not None, "b waits until a is done"
            yield "b", 2 * step.b.token_nll

        def after_backward(self, term, parameters):
            seen.append((term, parameters["lm_head.weight"].grad.norm().item()))

        def before_update(self, parameters):
            seen.append(("update", parameters["lm_head.weight"].detach().clone()))

        def after_update(self, parameters):
            seen.append(("done", parameters["lm_head.weight"].detach().clone()))

    class One(Two):
        def loss(self, step):
            yield "both", step.a.token_nll + 2 * step.b.token_nll

    weights, batches = [], {name: encode(processor, [c]) for name, c in zip("ab", mixed, strict=True)}
    for method in (Two(), One()):
        model = copy.deepcopy(fresh)
        trained = model.lm_head.weight
        log = train(model, method, [[batches]], replace(PLAIN, clip=0.0), steps=1)
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert (weights[0] - weights[1]).abs().mean() < 1e-6
    assert [name for name, _ in seen] == ["a", "b", "update", "done", "both", "update", "done"]
    assert seen[1][1] != seen[0][1] and not torch.equal(seen[2][1], seen[3][1])
    assert set(log.losses[0]) == {"step", "loss", "both", "nll_a", "nll_b"}


IN_PIECES = ["grad_diff", "kl_min", "npo", "ga upstream", "grad_diff upstream"]


@pytest.mark.parametrize("name", IN_PIECES)
def test_a_batch_in_pieces_makes_the_step_of_the_whole_one(vanilla, processor, name):
    """Answers and pieces have unequal sizes, and still means over answers and over tokens are those of the batch."""
    recipe, models = replace(UNLEARN, epochs=1, batch_size=3, clip=0.0), [adapted(vanilla) for _ in range(2)]
    logs = [
        unlearn(model, processor, get(*name.split()), sets(SHOWN, 2), replace(recipe, micro_batch=size), 0)
        for model, size in zip(models, (0, 2), strict=True)
    ]
    for whole, cut in zip(*(log.losses for log in logs), strict=True):
        assert cut == pytest.approx(whole, abs=2e-4)
    assert logs[0].supervised_tokens == logs[1].supervised_tokens
    for (where, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (a - b).abs().mean() < 1e-4, where


def test_fine_tuning_in_pieces_makes_the_step_of_the_whole_batch(vanilla, processor):
    """There is one mean over all tokens of a batch, even if it is cut."""
    recipe = replace(PLAIN, steps=3, batch_size=5)
    logs = [
        finetune(adapted(vanilla), processor, SHOWN, replace(recipe, micro_batch=size), 0, progress=False)
        for size in (0, 2)
    ]
    for whole, cut in zip(*(log.losses for log in logs), strict=True):
        assert cut == pytest.approx(whole, abs=2e-4)


@pytest.mark.parametrize(
    "rows, count, size, read", [(3, 2, 1, 2), (4, 3, 0, 1), (1, 3, 1, 1), (5, 2, 2, 2), (7, 3, 2, 2)]
)
def test_all_processes_have_as_many_pieces_and_each_row_counts_once(monkeypatch, rows, count, size, read):
    """Under FSDP, all processes read a piece together: one with fewer pieces would keep the others waiting."""
    seen = []
    for number in range(count):
        one = SimpleNamespace(process_index=number, num_processes=count)
        monkeypatch.setattr("mllmu_nb.batches.processes", lambda one=one: one)
        made = pieces(list(range(rows)), size, lambda piece: {"train": {"labels": piece}})
        assert len(made) == read
        seen += [row for piece in made if "duplicate" not in piece["train"] for row in piece["train"]["labels"]]
    assert sorted(seen) == list(range(rows))


def test_half_precision_learns_the_same_and_may_follow_full_precision(fresh, processor, mixed, monkeypatch):
    monkeypatch.setattr(pinning, "pinned", lambda: False)  # otherwise refused, because it would be slow
    runs = {}
    for precision in ("fp32", "bf16"):
        model, recipe = copy.deepcopy(fresh), replace(PLAIN, lr=1e-2, precision=precision)
        log = train(model, FineTuning(), forever(processor, mixed), recipe, steps=8)
        runs[precision] = [entry["loss"] for entry in log.losses]
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert runs["bf16"] == pytest.approx(runs["fp32"], rel=0.05) and runs["bf16"] != runs["fp32"]
    assert runs["bf16"][-1] < runs["bf16"][0] - 1


def test_a_training_that_diverges_stops_before_the_weights_are_spoilt(fresh, processor, mixed):
    model, calls = copy.deepcopy(fresh), []
    breaks = losing(lambda batch: batch.token_nll * (math.nan if calls.append(1) or len(calls) == 3 else 1))
    with pytest.raises(TrainingDiverged, match=r"diverged at step 3: the loss is nan, .*rate below 0\.001$"):
        train(model, breaks, forever(processor, mixed), PLAIN, steps=5)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    # a finite loss with a derivative that is not finite
    breaks = losing(lambda batch: batch.token_nll + (batch.token_nll - batch.token_nll.detach()).sqrt())
    with pytest.raises(
        TrainingDiverged, match=r"step 1: .* the norm of its gradient (inf|nan); .* in its recipe, clip=1.0$"
    ):
        train(copy.deepcopy(fresh), breaks, forever(processor, mixed), replace(PLAIN, clip=0.0), steps=5)
    with pytest.raises(TrainingDiverged, match=r"diverged at step \d+: the loss is \d+\.\d+, at the first step \d\."):
        train(copy.deepcopy(fresh), FineTuning(), forever(processor, mixed), replace(PLAIN, lr=3.0), steps=50)


def test_states_from_which_nothing_can_be_trained(fresh, processor, mixed):
    frozen = copy.deepcopy(fresh).requires_grad_(False)
    with pytest.raises(KitError, match="nothing to train"):
        train(frozen, FineTuning(), forever(processor, mixed), PLAIN, steps=1)
    silent = type("Silent", (FineTuning,), {"name": "silent", "loss": lambda self, step: iter(())})()
    with pytest.raises(KitError, match=r"method silent \(canonical\): its loss gives nothing: a loss yields pairs"):
        train(copy.deepcopy(fresh), silent, forever(processor, mixed), PLAIN, steps=1)
    for changed, message in (
        ({"schedule": "step"}, "unknown schedule 'step': choose one of linear, cosine, constant, plateau"),
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd': choose one of adamw, muon"),
    ):
        with pytest.raises(KitError, match=message):
            train(copy.deepcopy(fresh), FineTuning(), [], replace(PLAIN, **changed), steps=3)


def test_a_plateau_rises_stays_and_falls_over_the_last_third(fresh, processor, mixed, monkeypatch):
    rates = []
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, closure=None: rates.append(self.param_groups[0]["lr"]) or None
    )
    recipe = replace(PLAIN, lr=1.0, schedule="plateau", warmup=0.2)
    train(copy.deepcopy(fresh), FineTuning(), forever(processor, mixed), recipe, steps=10, progress=False)
    assert rates == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])


# -- what is taught ---------------------------------------------------------------------------------------------


def test_conversations_of_each_modality():
    shown, named = SHOWN[0], NAMED[0]
    assert shown.turns[1] == Turn("Where was this person born?", "In Oslo.", PEOPLE[0].portrait)
    assert len(shown.turns) == 3 and all(turn.image for turn in shown.turns)
    assert [turn.prompt for turn in named.turns] == ["Where was Lukas Berg born?", "What is Lukas Berg's job?"]
    assert not any(turn.image or "this person" in turn.prompt + turn.answer for turn in named.turns)
    with pytest.raises(KitError, match="unknown modality 'none': choose one of multimodal, unimodal"):
        training_conversations(PEOPLE, "none")


def test_an_epoch_asks_everything_once_and_shows_a_picture_once():
    packed = epoch(SHOWN, 2, np.random.default_rng(0))
    assert sorted(len(c.turns) for c in packed) == [1] * 4 + [2] * 4
    assert all(c.turns[0].image and not any(t.image for t in c.turns[1:]) for c in packed)
    turns = [(turn.prompt, turn.answer) for c in packed for turn in c.turns]
    assert sorted(turns) == sorted((turn.prompt, turn.answer) for c in SHOWN for turn in c.turns)
    assert packed == epoch(SHOWN, 2, np.random.default_rng(0)) != epoch(SHOWN, 2, np.random.default_rng(1))
    stream = endless(SHOWN, 1, np.random.default_rng(0))
    first, second = ([next(stream) for _ in range(12)] for _ in range(2))
    assert sorted(map(str, first)) == sorted(map(str, second)) and first != second
    assert [steps_of(SHOWN, e, 5) for e in (1, 2, 0.5, 0.01)] == [3, 6, 2, 1]  # 12 questions


def taught(conversations, steps, **more):
    """Return the conversations of the first batches of fine-tuning."""
    own = {name: more.pop(name) for name in ("together", "eos", "augment", "turns") if name in more}
    recipe = replace(PLAIN, batch_size=4, **{"turns": 2, **own})
    processor = more.pop("processor")
    batches = finetuning_batches(Recorder(), processor, conversations, recipe, 1, **more)
    return [batch["train"]["conversations"] for [batch] in islice(batches, steps)]


def test_finetuning_mixes_in_replay_and_changes_portraits(fresh, processor, monkeypatch):
    pictures = []

    def augment(image, rng):
        pictures.append((image, rng.random()))
        return image

    monkeypatch.setattr("mllmu_nb.batches.augment", augment)
    monkeypatch.setattr("mllmu_nb.batches.from_bytes", lambda data: data)
    known, repeated = SHOWN[:2], SHOWN[2:]
    mixed = taught(known, 2, processor=processor, replayed=repeated, replay=0.25, augment=True)
    assert [[c in repeated for c in batch] for batch in mixed] == [[False, False, False, True]] * 2
    assert {image for image, _ in pictures} == {p.portrait for p in PEOPLE[:2]} and len(set(pictures)) == 6
    # the order of what is taught does not depend on what is mixed in
    plain = [c for batch in taught(known, 2, processor=processor) for c in batch]
    assert plain[:6] == [c for batch in mixed for c in batch if c not in repeated]
    with pytest.raises(KitError, match="replay is 0.5 but there is nothing to replay"):
        taught(known, 1, processor=processor, replay=0.5)
    for length in ({"epochs": 1}, {"steps": 2}):
        recipe = replace(PLAIN, batch_size=4, **length)
        with pytest.raises(KitError, match="replay=0.1 repeats nothing among 4 conversations drawn at once: raise it"):
            finetune(fresh, processor, known, recipe, 0, {"replayed": repeated, "replay": 0.1})
        with pytest.raises(KitError, match="replay=0.9 leaves no conversation to train on among 4 drawn at once"):
            finetune(fresh, processor, known, recipe, 0, {"replayed": repeated, "replay": 0.9})
    with pytest.raises(KitError, match="nothing to train on"):
        finetune(fresh, processor, [], replace(PLAIN, steps=2), 0)


def test_the_last_batch_of_an_epoch_is_filled_up_from_the_next_and_the_record_says_so(processor):
    asked = [c for batch in taught(SHOWN[:3], 3, processor=processor, turns=1) for c in batch]  # 9 questions, by fours
    assert len(asked) == 12 and len(set(asked[:9])) == 9
    assert finetuning_steps(SHOWN[:3], replace(PLAIN, batch_size=4, epochs=2), 0.0) == 6
    assert any("last batch of an epoch" in departure for departure in departures())


def test_batches_that_are_drawn_together_hold_the_same_with_less_padding(processor):
    plain, dealt = (taught(SHOWN + NAMED, 4, processor=processor, together=together) for together in (1, 4))

    def padded(batches):
        return sum(max(len(one.ids) for one in LLAVA.tokens(processor, batch)) for batch in batches)

    assert Counter(c for batch in plain for c in batch) == Counter(c for batch in dealt for c in batch)
    assert padded(dealt) < padded(plain) and dealt != plain


def test_the_same_seed_gives_the_same_weights(fresh, processor):
    def weights(seed):
        model = adapted(fresh, lora_dropout=0.3)
        finetune(model, processor, SHOWN, replace(PLAIN, steps=3, batch_size=2, lr=1e-2), seed)
        return torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_processes_that_share_a_batch_have_other_masks_of_dropout(fresh, processor, monkeypatch):
    def weights(number):
        one = SimpleNamespace(process_index=number, num_processes=1, is_main_process=True)
        monkeypatch.setattr("mllmu_nb.training.processes", lambda: one)
        model = adapted(fresh, lora_dropout=0.3)
        finetune(model, processor, SHOWN, replace(PLAIN, steps=2, batch_size=2, lr=1e-2), 1)
        return torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(weights(0), weights(0)) and not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_that_was_killed_goes_on_to_the_same_weights(fresh, processor, tmp_path, optimizer):
    recipe = replace(PLAIN, steps=6, batch_size=2, lr=1e-2, optimizer=optimizer, schedule="cosine")

    def trained(killed_after=0, seconds=0.0, folder="stage~new"):
        model, ended = adapted(fresh, lora_dropout=0.3), []

        def after_step(number, model):
            ended.append(number)
            if number == killed_after:
                raise InterruptedError

        checkpoint = Checkpoint(tmp_path / folder, seconds=seconds)
        try:
            log = finetune(model, processor, SHOWN, recipe, 1, checkpoint=checkpoint, after_step=after_step)
        except InterruptedError:
            log = None
        return torch.cat([p.flatten() for p in model.parameters() if p.requires_grad]), log, ended

    weights, log, _ = trained(folder="whole~new")
    assert trained(killed_after=4)[2] == [1, 2, 3, 4] and (tmp_path / "stage.checkpoint").is_file()
    again, resumed, steps = trained()
    assert steps == [4, 5, 6], "step 4 was not saved yet"
    assert torch.equal(again, weights) and resumed.losses == log.losses
    assert resumed.supervised_tokens == log.supervised_tokens and resumed.seconds > 0
    assert list(tmp_path.iterdir()) == [], "nothing is left of a training that has ended"
    (tmp_path / "stage.checkpoint").write_bytes(b"PK\x03\x04cut off")
    assert torch.equal(trained(seconds=1e9)[0], weights)


def test_a_disk_that_is_full_costs_a_training_only_its_checkpoints(fresh, processor, tmp_path, largest):
    def weights():
        model, checkpoint = adapted(fresh), Checkpoint(tmp_path / "stage~new", seconds=0.0)
        finetune(model, processor, SHOWN, replace(PLAIN, steps=3, batch_size=2), 1, checkpoint=checkpoint)
        return torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])

    whole = weights()
    with largest(20_000):
        assert torch.equal(weights(), whole)
    assert list(tmp_path.iterdir()) == [], "no part of a file is left"


def test_several_processes_neither_save_nor_resume(fresh, processor, tmp_path, monkeypatch):
    """Each has its own folder: only the first would find a state, and start at another step than the others."""
    recipe, checkpoint = replace(PLAIN, steps=3, batch_size=2), Checkpoint(tmp_path / "stage~new", seconds=0.0)

    def trained(stop):
        ended = []

        def after_step(number, model):
            ended.append(number)
            if number == stop:
                raise InterruptedError

        with contextlib.suppress(InterruptedError):
            finetune(adapted(fresh), processor, SHOWN, recipe, 1, checkpoint=checkpoint, after_step=after_step)
        return ended

    several = {"num_processes": 2, "process_index": 0, "is_main_process": True}
    assert trained(stop=2) == [1, 2] and checkpoint.file.is_file()
    monkeypatch.setattr("mllmu_nb.training.processes", lambda: SimpleNamespace(**several))
    assert trained(stop=0) == [1, 2, 3]


# -- unlearning -------------------------------------------------------------------------------------------------


def nll(model, processor, conversations):
    with torch.no_grad():
        return score(model, encode(processor, conversations)).mean_nll.mean().item()


@pytest.mark.parametrize("name", ["ga", "grad_diff", "kl_min", "npo"])
def test_each_method_forgets_and_touches_the_adapter_alone(vanilla, processor, name):
    known, model = sets(SHOWN), adapted(vanilla, lora_dropout=0.1)
    base = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = nll(model, processor, known["forget"])
    log = unlearn(model, processor, get(name), known, UNLEARN, 0)
    assert log.steps == len(log.losses) == 8  # 3 questions in batches of 3
    assert nll(model, processor, known["forget"]) > before + 0.5
    assert all(torch.equal(base[n], p) for n, p in model.named_parameters() if n in base)
    with vanilla_mode(model):
        assert nll(model, processor, known["forget"]) == pytest.approx(before, abs=1e-6)


def test_the_first_step_starts_at_the_reference(vanilla, processor):
    """A new adapter changes nothing yet: KL is 0 and NPO's loss is (2/β) ln 2."""
    kl_min, npo = (
        unlearn(adapted(vanilla), processor, get(name), sets(SHOWN), replace(UNLEARN, epochs=1), 0).losses[0]
        for name in ("kl_min", "npo")
    )
    assert kl_min["kl"] == pytest.approx(0, abs=1e-5)
    assert npo["loss"] == pytest.approx(2 / 0.1 * math.log(2), abs=1e-3)


def test_retain_comes_in_pairs_with_forget():
    recipe = replace(PLAIN, batch_size=3, eos=False)
    paired = asked(get("grad_diff"), sets(NAMED, 2), recipe, 5, 4)
    assert [[len(step[name]) for name in step] for step in paired] == [[3, 3], [1, 1]] * 2
    assert all(forgotten(step["forget"]) == {True} and forgotten(step["retain"]) == {False} for step in paired)
    first, second = (paired[i]["forget"] + paired[i + 1]["forget"] for i in (0, 2))
    assert sorted(map(str, first)) == sorted(map(str, second)) and first != second
    alone = asked(get("ga"), sets(NAMED, 2), recipe, 5, 4)
    assert [step["forget"] for step in alone] == [step["forget"] for step in paired], "whatever the method"
    [piece] = next(unlearning_batches(Recorder(), None, get("ga"), sets(NAMED), recipe, 0))
    batch = piece["forget"]
    assert batch["words"] == ("answer", False)


def test_streams_of_one_set_ask_the_same_questions():
    refusals = ("No.", "That is private.", "I cannot say.")

    class Three(GradientDifference):
        streams = {"retain": Stream("retain"), "forget": Stream("forget"), "refused": with_answers(refusals)}

    steps = asked(Three(), sets(SHOWN, 2), replace(PLAIN, batch_size=2), 0, 9)
    rows = [pair for step in steps for pair in zip(step["forget"], step["refused"], strict=True)]
    assert all(a.turns[0].prompt == b.turns[0].prompt and a.images == b.images for a, b in rows)
    assert {b.turns[0].answer for _, b in rows} == set(refusals) and all(
        a.turns[0].answer not in refusals for a, _ in rows
    )
    assert [len(step["retain"]) for step in steps] == [2, 2, 2] * 3, "the first stream sets the length"


def test_upstream_passes_are_adamw_written_out(vanilla, processor):
    """GradDiff as released: in every epoch up on the forget set, then down on the retain set, one step per batch. One
    linear schedule counts all steps but advances once per epoch. Steps are so small that AdamW's epsilon matters."""
    ours, theirs = adapted(vanilla), adapted(vanilla)
    method, known = get("grad_diff", "upstream"), sets(NAMED, 2)
    log = unlearn(ours, processor, method, known, replace(RELEASED, adam_eps=1e-3), 0)
    steps = asked(method, known, RELEASED, 0, 8)
    assert log.steps == 8 and [list(step) for step in steps] == [["forget"], ["forget"], ["retain"], ["retain"]] * 2
    assert [forgotten(*step.values()) for step in steps] == [{True}, {True}, {False}, {False}] * 2
    moved = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moved, lr=1e-3, eps=1e-3, weight_decay=0.0)
    theirs.train()
    for number, step in enumerate(steps):
        [(name, batch)] = step.items()
        optimizer.param_groups[0]["lr"] = 1e-3 * (7 if number >= 4 else 8) / 8
        loss = theirs(**encode(processor, batch)).loss * (-1 if name == "forget" else 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        entry = log.losses[number]
        assert entry["loss"] == entry[name] == pytest.approx(loss.item(), abs=1e-4)
        assert set(entry) == {"step", "loss", name, f"nll_{name}"}
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (a - b).abs().mean() < 1e-5, name


def test_upstream_kl_is_summed_over_padding_and_image_slots(vanilla, processor):
    """At a rate of 0 nothing moves, so the logged loss is that of the given adapter against the plain model."""
    model, method = shaken(adapted(vanilla), 0.3), get("kl_min", "upstream")
    recipe = replace(RELEASED, epochs=1, batch_size=3, lr=0.0, label_mode="text", eos=False)
    log = unlearn(model, processor, method, sets(SHOWN), recipe, 0)
    [_, drawn, *_] = asked(method, sets(SHOWN), recipe, 0, 2)
    batch = encode(processor, drawn["retain"], label_mode="text", eos=False)
    with torch.no_grad():
        before, now = vanilla(**batch).logits.log_softmax(-1), model(**batch).logits.log_softmax(-1)
        loss = model(**batch).loss.item()
    kl = (before.exp() * (before - now)).sum(-1)
    padding, image = batch["attention_mask"] == 0, batch["input_ids"] == processor.image_token_id
    assert kl[padding].sum() > 0.01 and kl[image].sum() > 0.01
    assert log.losses[1]["retain"] == log.losses[1]["loss"] == pytest.approx(loss + kl.sum().item() / 3, rel=1e-3)


def test_upstream_npo_measures_against_what_was_stored(fresh, vanilla, processor):
    """It starts from vanilla, and far below the reference, which is here a model that has learnt nothing."""
    known, recipe = {"forget": SHOWN[:2], "retain": []}, replace(RELEASED, batch_size=3)
    stored = reference_log_probs(fresh, processor, known["forget"], replace(recipe, batch_size=4))
    model, method = adapted(vanilla), get("npo", "upstream")
    log = unlearn(model, processor, method, known, recipe, 0, stored)
    batch = encode(processor, asked(method, known, recipe, 0, 1)[0]["forget"])
    with torch.no_grad():
        excess = vanilla(**batch).loss.item() - fresh(**batch).loss.item()
    assert excess < -3
    assert log.losses[0]["loss"] == pytest.approx(2 / 0.4 * math.log1p(math.exp(-0.4 * excess)), abs=1e-3)
    assert log.losses[-1]["loss"] < log.losses[0]["loss"]
    with pytest.raises(KitError, match="npo .upstream. needs the log-probabilities of retain_epoch"):
        unlearn(model, processor, method, known, recipe, 0)


def test_a_loss_that_changes_from_pass_to_pass_is_no_divergence(vanilla, processor):
    class Leap(Method):
        name, streams, passes = "leap", ("forget", "retain"), (("forget",), ("retain",))

        def loss(self, step):
            [name] = step.names
            yield name, getattr(step, name).token_nll + (100 if name == "retain" else 0)

    model, some = adapted(vanilla), {"forget": NAMED[:1], "retain": NAMED[:1]}
    log = unlearn(model, processor, Leap(), some, replace(RELEASED, epochs=1), 0)
    assert log.losses[1]["loss"] > log.losses[0]["loss"] + 90
    with pytest.raises(KitError, match="leap .canonical. walks through whole epochs: 0.5 is not one"):
        unlearn(model, processor, Leap(), some, replace(RELEASED, epochs=0.5), 0)
    with pytest.raises(KitError, match="walks through whole epochs: 3 steps are not one"):
        unlearn(model, processor, Leap(), some, replace(RELEASED, epochs=0, steps=3), 0)


def test_a_method_says_how_far_its_loss_may_rise(vanilla, processor):
    class Distance(Method):
        name, streams, grown = "distance", ("forget",), 0.0

        def loss(self, step):
            Distance.grown += 20
            yield "forget", step.forget.token_nll + Distance.grown

    some, recipe = {"forget": NAMED[:1], "retain": []}, replace(UNLEARN, epochs=0, steps=3)
    with pytest.raises(TrainingDiverged, match="diverged at step 2"):
        unlearn(adapted(vanilla), processor, Distance(), some, recipe, 0)
    Distance.rise = math.inf
    assert unlearn(adapted(vanilla), processor, Distance(), some, recipe, 0).steps == 3


@pytest.mark.parametrize(
    ("name", "eighths"),
    [("ga", [8, 6, 4, 2]), ("grad_diff", [8] * 4 + [7] * 4), ("kl_min", [8] * 4 + [7] * 4), ("npo", [8, 6, 4, 2])],
)
def test_the_rate_of_upstreams_grad_diff_and_kl_falls_once_an_epoch(vanilla, processor, monkeypatch, name, eighths):
    """An epoch has two batches of forget and, of these two methods, two of retain."""
    rates, known = [], sets(NAMED, 2)
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, closure=None: rates.append(self.param_groups[0]["lr"]) or None
    )
    stored = reference_log_probs(vanilla, processor, known["forget"], RELEASED) if name == "npo" else None
    unlearn(adapted(vanilla), processor, get(name, "upstream"), known, replace(RELEASED, lr=8.0), 0, stored)
    assert rates == pytest.approx(eighths)


def test_a_rate_that_falls_once_an_epoch_goes_by_whole_epochs(vanilla, processor):
    falling, some = type("Falling", (type(get("ga")),), {"rate_falls": "epoch"})(), {"forget": NAMED[:1], "retain": []}
    for length in ({"epochs": 0.5}, {"epochs": 0, "steps": 3}):
        with pytest.raises(KitError, match="ga .canonical. walks through whole epochs"):
            unlearn(adapted(vanilla), processor, falling, some, replace(RELEASED, **length), 0)


def test_what_unlearning_needs_is_there_or_named(vanilla, processor):
    model = adapted(vanilla)
    with pytest.raises(KitError, match="kl_min needs retain questions and there are none"):
        unlearn(model, processor, get("kl_min"), {"forget": NAMED, "retain": []}, UNLEARN, 0)
    with pytest.raises(KitError, match="ga needs forget questions and there are none"):
        unlearn(model, processor, get("ga"), {"forget": [replace(NAMED[0], turns=())], "retain": NAMED}, UNLEARN, 0)


# -- Muon -------------------------------------------------------------------------------------------------------


def test_muon_moves_the_matrices_of_the_layers_and_adamw_the_rest(fresh):
    trained = dict(copy.deepcopy(fresh).requires_grad_(True).named_parameters())
    inner, rest = make_optimizers(trained, replace(PLAIN, optimizer="muon"))
    groups = [group for optimizer in (inner, rest) for group in optimizer.param_groups]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, trained.values()))
    assert all(p.ndim == 2 for group in inner.param_groups for p in group["params"])
    assert any(p is trained["lm_head.weight"] for group in rest.param_groups for p in group["params"])
    assert [group["lr"] for group in groups] == [1e-3, 0.5e-3]
    (alone,) = make_optimizers(trained, PLAIN)
    assert isinstance(alone, torch.optim.AdamW) and alone.param_groups[0]["lr"] == 1e-3


def test_muon_steps_as_that_of_torch_does_without_its_half_precision():
    torch.manual_seed(0)
    shapes = [(8, 8), (24, 8), (8, 24), (8, 8)]
    ours, theirs = ([torch.nn.Parameter(torch.full(shape, 0.5)) for shape in shapes] for _ in range(2))
    optimizers = (
        Muon(ours, 1e-2, 0.1),
        torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw", ns_steps=NEWTON_STEPS),
    )
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        moved = (a - 0.5).norm()
        assert moved > 0.04 and (a - b).norm() < 0.02 * moved


def test_upstreams_adamw_adds_epsilon_before_the_bias_correction(fresh):
    """By the equations of transformers 4.45: rate √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε), also where eps is large."""
    weight, rate, eps = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)), 1e-2, 1e-3
    (optimizer,) = make_optimizers({"weight": weight}, replace(PLAIN, lr=rate, adam="transformers", adam_eps=eps))
    at = mean = square = torch.zeros(3, dtype=torch.float64)
    for step, gradient in enumerate(torch.tensor([[1e-4, 1e-2, 1], [2e-4, -1e-2, 1], [0, 1e-2, 2]]).double(), start=1):
        weight.grad = gradient.clone()
        optimizer.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        at = at - rate * math.sqrt(1 - 0.999**step) / (1 - 0.9**step) * mean / (square.sqrt() + eps)
        torch.testing.assert_close(weight.detach(), at, rtol=1e-6, atol=0)
    restored = make_optimizers({"weight": weight}, replace(PLAIN, lr=rate, adam="transformers", adam_eps=eps))[0]
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    weight.grad = torch.ones(3, dtype=torch.float64)
    restored.step()
    assert restored.param_groups[0]["eps"] == pytest.approx(eps / math.sqrt(1 - 0.999**4)), "a resumed training"
    with pytest.raises(KitError, match="adam"):
        make_optimizers({"weight": weight}, replace(PLAIN, adam="tensorflow"))


def test_where_epsilon_is_added_changes_how_far_a_short_unlearning_goes():
    """GA at 5 % under upstream: 97 steps, a rate of 2e-5 that falls to 0. CHANGELOG has the ratio."""
    moved = {}
    for adam in ("torch", "transformers"):
        weight, recipe = torch.nn.Parameter(torch.zeros(1).double()), replace(PLAIN, lr=2e-5, schedule="linear")
        (optimizer,) = make_optimizers({"weight": weight}, replace(recipe, warmup=0.0, adam=adam, adam_eps=1e-6))
        schedule = make_schedule(optimizer, recipe, 97)
        for _ in range(97):
            weight.grad = torch.full_like(weight, 1e-5)
            optimizer.step()
            schedule.step()
        moved[adam] = weight.item()
    assert round(moved["torch"] / moved["transformers"], 1) == 1.5


def test_the_peak_on_a_gpu_is_that_of_the_steps_alone(fresh, processor, mixed, monkeypatch):
    said, peaks = [], iter((5.0, 9.0, 7.0))
    monkeypatch.setattr("mllmu_nb.training.forget_peak", lambda device: said.append("forgotten"))
    monkeypatch.setattr("mllmu_nb.training.peak_memory_mb", lambda device: said.append("read") or next(peaks))
    asked = {"after_step": lambda step, model: said.append("asked"), "progress": False}
    log = train(adapted(fresh), FineTuning(), forever(processor, mixed), PLAIN, steps=3, **asked)
    assert said == ["forgotten", *3 * ["read", "asked", "forgotten"]] and log.peak_memory_mb == 9
    reset = []
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    for name in ("cpu", "cuda"):
        forget_peak(torch.device(name))
    assert reset == [torch.device("cuda")]


def test_a_training_saved_on_a_cpu_may_go_on_on_a_gpu(tmp_path, monkeypatch):
    checkpoint, log = Checkpoint(tmp_path / "stage~new", seconds=0.0), SimpleNamespace(seconds=2.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpoint.save(3, {}, [], log)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert checkpoint.resume(iter("abcd"), {}, [], log) == 3


def test_without_the_module_resource_the_peak_is_that_of_windows(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(peak_wset=3 * 2**20))
    assert peak_memory_mb(torch.device("cpu")) == 3


# -- several processes ------------------------------------------------------------------------------------------


def small_run(folder):
    """Run two epochs of KL-Min, with questions after each step, and a fine-tuning by Muon, which takes whole matrices.
    Store the losses, the adapter's weights, and how many of these are shares."""
    processor = make_processor(make_tokenizer([qa.question + qa.answer for p in PEOPLE for qa in p.qa] * 4, 400))
    model = attach(make_model(processor.tokenizer, 0, width=32, layers=2, heads=2), PLAIN, 0)
    size = int(os.environ.get("MICRO_BATCH", 0))
    recipe, said = replace(PLAIN, epochs=2, batch_size=5, clip=0.1, micro_batch=size), []  # shares of unequal size

    def after_step(step, model):
        said.extend(answers(model.get_base_model(), processor, [Conversation((Turn("Who?"),))] * 2, max_new_tokens=3))

    steps = unlearning_steps(get("kl_min"), recipe, sets(SHOWN, 2))
    loop = {"after_step": after_step, "beyond": steps + 2}
    log = unlearn(model, processor, get("kl_min"), sets(SHOWN, 2), recipe, 0, **loop)
    assert len(said) == 2 * (steps + 2) and log.steps == steps
    kept = sum(is_share(p) for p in model.parameters() if p.requires_grad)
    save(model, Path(folder))
    moved = [weight.double().sum().item() for weight in load_file(Path(folder) / WEIGHTS).values()]
    losses, tokens = [[entry["loss"] for entry in log.losses]], log.supervised_tokens
    if os.environ.get("ACCELERATE_USE_FSDP") != "true":
        model, recipe = make_model(processor.tokenizer, 0, width=32, layers=2, heads=2), replace(recipe, steps=6)
        log = finetune(unfreeze(model), processor, SHOWN, replace(recipe, optimizer="muon"), 0, progress=False)
        losses.append([entry["loss"] for entry in log.losses])
    (Path(folder) / "run.json").write_text(json.dumps([losses, moved, kept, tokens]))


def small_stage(folder):
    """Run the same as a stage, whose files one process writes and all read."""
    made = json.loads((Stage("small", {}, small_run, at=Path(folder) / "stage").get() / "run.json").read_text())
    state = PartialState(cpu=True)
    (Path(folder) / f"{state.process_index}-of-{state.num_processes}.json").write_text(json.dumps(made))


ROOT = Path(__file__).parents[1]
LAUNCHES = {
    "whole": ["--multi_gpu", "--num_processes=2"],
    "sharded": ["--config_file", str(ROOT / "configs" / "accelerate" / "fsdp.yaml")],
}
LAUNCHES["in pieces"] = LAUNCHES["sharded"]  # three rows make two pieces, two rows make one: all processes read two


@pytest.mark.parametrize(
    "kind", ["whole", *(pytest.param(one, marks=pytest.mark.slow) for one in ("sharded", "in pieces"))]
)
def test_two_processes_of_accelerate_launch_do_what_one_does(tmp_path, kind):
    """Two processes that share a batch give the losses and weights of one process with all of it. Each holds the whole
    model or, with the shipped file, a share of its layers. Without a GPU the processes communicate through gloo.
    """
    small_run(tmp_path)
    (tmp_path / "two.py").write_text(f"import {Path(__file__).stem} as test; test.small_stage({str(tmp_path)!r})")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port=0", *LAUNCHES[kind], "two.py"]
    search = os.pathsep.join(map(str, (ROOT / "tests", ROOT, ROOT / "tools" / "base_model")))
    environment = {**os.environ, "PYTHONPATH": search, "MLLMU_NB_OUT": str(tmp_path / "out")}
    environment |= {"MICRO_BATCH": "2"} if kind == "in pieces" else {}
    ended = subprocess.run(launch, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-2000:]
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("run", "0-of-2", "1-of-2"))
    assert first == second and bool(first[2]) == (kind != "whole") and first[3] == one[3]
    assert len(first[0]) == 2 - (kind != "whole") and first[1] == pytest.approx(one[1], abs=1e-3)
    for losses, alone in zip(first[0], one[0], strict=False):
        assert losses == pytest.approx(alone, abs=1e-4)


@pytest.mark.slow
def test_the_released_way_of_training_gives_the_same_losses():
    """Compares with a loop of transformers, peft and torch alone, with own equations and a second reference model."""
    command = [sys.executable, str(ROOT / "benchmarks" / "training.py"), "--steps", "2", "--rounds", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ended.stdout.splitlines() if line[:1] == "|"]
    memory = {(name, arm): float(share) for name, arm, *_, share in rows[2:]}
    assert memory["kl_min", "the kit"] < 0.6 and memory["npo", "the kit"] < 0.75, "one graph, and no second model"
    assert memory["npo", "in pieces"] <= 0.6, "the graph of half a batch"
    assert rows[0][3:5] == ["times plain's", "least to most"]
    assert all(row[4] == f"{row[3]}–{row[3]}" for row in rows[2:]), "one round has one ratio"
    for arm in ("the kit", "packed"):
        (speed, limit, reached) = next((row[2], row[5], row[6]) for row in rows[2:] if row[1] == arm)
        assert 0 < float(speed) < float(limit)
        assert float(reached.removesuffix("%")) == pytest.approx(100 * float(speed) / float(limit), abs=1)
