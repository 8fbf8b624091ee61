"""The one loop: fine-tuning, the oracle and every unlearning method walk through :func:`train`.

Plain torch; under ``accelerate launch`` there is one process a GPU: each takes its share of every batch, and accelerate
averages the gradients at the end of a step, since a loss may need several forward passes through one model.
(Its ``Accelerator`` allows one precision a process, which a notebook that trains twice would run into.)
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count, islice

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce, send_to_device
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import get_scheduler

from mllmu_nb.data.reading import with_name
from mllmu_nb.data.schema import Profile
from mllmu_nb.errors import KitError
from mllmu_nb.models.load import count_trainable
from mllmu_nb.models.prompts import Conversation, Turn, encode, generation_prompt, token_counts
from mllmu_nb.muon import Muon
from mllmu_nb.unlearning import IGNORE, Method, Recorded, Scored, token_log_probs, token_nll

Batch = Mapping[str, Tensor]  # input_ids, attention_mask, labels [B, T], pixel_values; recorded [B, T'], see `record`
Objective = Callable[[dict[str, Scored], dict[str, Scored | Recorded]], tuple[Tensor, dict[str, float]]]

# As transformers names them. "plateau" (warmup, stable, decay) stays at its height and falls over the last DECAY.
SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant_with_warmup",
    "plateau": "warmup_stable_decay",
}
DECAY = 0.3
REST = 0.5  # of Muon's rate, for what AdamW moves beside it
DIVERGED = 10.0  # nats by which a loss that is being minimised may rise above its first value


class TrainingDiverged(KitError):
    """The loss or its gradient is not a number any more, or the loss rises without bound."""


@dataclass
class TrainLog:
    """What a training left behind: ``losses`` has one entry a step, {"step", "loss", parts in nats}."""

    losses: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    steps: int = 0
    trainable_parameters: int = 0
    supervised_tokens: int = 0


def label_scores(model, batch: Batch, everywhere: bool = False) -> Scored:
    """Logits at the supervised positions of a batch, and only there: [B, T', V], T' the most any row has.

    The backbone runs on the whole batch; the vocabulary projection, which would fill most of the memory, only where the
    next token is labelled, or also ``everywhere`` on request. Works on a plain model and through peft. Raises KitError
    when a row has no label.
    """
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "recorded")}
    states = core.model(**inputs, use_cache=False).last_hidden_state
    hidden = states[:, :-1]
    labels = batch["labels"][:, 1:]
    supervised = labels != IGNORE
    counts = supervised.sum(1)
    if not bool(counts.all()):
        raise KitError("an example has no supervised token: its answer is empty or its label mask is wrong")
    # A stable sort moves the labelled positions of a row to the front and keeps their order.
    positions = supervised.int().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    hidden = hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
    return Scored(core.lm_head(hidden), labels.gather(1, positions), core.lm_head(states) if everywhere else None)


@contextmanager
def vanilla_mode(model):
    """Inside, ``model`` is the frozen model it was before its adapter: adapter off, dropout off, no gradients."""
    was_training = model.training
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        yield
    model.train(was_training)


def train(
    model,
    batches: Iterable[Mapping[str, Batch]],
    objective: Objective,
    *,
    steps: int,
    lr: float,
    schedule: str = "linear",
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    seed: int = 0,
    reference: Sequence[str] = (),
    everywhere: Sequence[str] = (),
    rise: float = DIVERGED,
    accumulate: int = 1,
    precision: str = "no",
    optimizer: str = "adamw",
    progress: bool = True,
) -> TrainLog:
    """Minimise ``objective`` for ``steps`` steps of ``optimizer`` (:func:`rules`) over what requires a gradient.

    A step takes ``accumulate`` items of ``batches``, each a dict of named batches; the objective gets their
    :class:`Scored` (at all positions for the names in ``everywhere``) and, for the names in ``reference``, what the
    frozen vanilla model says, or what a batch has ``recorded`` of another one. ``schedule`` is one of SCHEDULES,
    ``warmup`` a share of the steps, ``clip`` the largest gradient norm (0: no clipping), ``precision`` "no" or "bf16"
    (autocast). The model stays on its device and is left in evaluation mode.
    Raises :class:`TrainingDiverged` naming step and value when the loss is no number or ``rise`` nats above its first
    value, KitError when there is nothing to train.
    """
    if precision not in ("no", "bf16"):
        raise KitError(f"unknown precision {precision!r}: choose no or bf16")
    if schedule not in SCHEDULES:
        raise KitError(f"unknown schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}")
    torch.manual_seed(seed)
    state = processes()
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16")
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise KitError("nothing to train: no parameter requires a gradient")
    movers = rules(model, optimizer, lr, weight_decay)
    more = {"num_decay_steps": round(DECAY * steps), "decay_type": "linear"} if schedule == "plateau" else {}
    schedulers = [get_scheduler(SCHEDULES[schedule], mover, round(warmup * steps), steps, more) for mover in movers]

    log = TrainLog(steps=steps, trainable_parameters=count_trainable(model))
    batches = iter(batches)
    started = time.perf_counter()
    model.train()
    shown = progress and state.is_main_process
    bar = tqdm(range(1, steps + 1), disable=None if shown else True, mininterval=1.0)  # None: quiet without a terminal
    for step in bar:
        pieces = list(islice(batches, accumulate))
        if len(pieces) < accumulate:
            raise KitError(f"the batches ended at step {step} of {steps}")
        values = []
        for piece in pieces:
            piece = send_to_device(dict(piece), model.device)
            with autocast:
                before = {}
                if named := [name for name in reference if name in piece]:
                    with vanilla_mode(model):
                        before = {name: label_scores(model, piece[name], name in everywhere) for name in named}
                scored = {name: label_scores(model, batch, name in everywhere) for name, batch in piece.items()}
                for name, batch in piece.items():
                    if "recorded" in batch:
                        before[name] = Recorded(batch["recorded"], scored[name].labels)
                loss, parts = objective(scored, before)
            (loss / accumulate).backward()
            values.append({"loss": loss.item(), **parts})
            log.supervised_tokens += sum(int(s.counts.sum()) for s in scored.values())

        if state.num_processes > 1:
            for parameter in trained:
                # an adapter on the vision tower has no gradient where no picture was shown
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = reduce(grad, "mean")
        mean = torch.tensor([[v[name] for name in values[0]] for v in values]).mean(0).to(model.device)
        numbers = dict(zip(values[0], reduce(mean, "mean").tolist(), strict=True))
        norm = torch.nn.utils.clip_grad_norm_(trained, clip or math.inf).item()
        log.losses.append({"step": step, **numbers})
        _stop_if_diverged(log.losses, norm, lr, clip, rise)

        for mover, scheduler in zip(movers, schedulers, strict=True):
            mover.step()
            scheduler.step()
            mover.zero_grad()
        bar.set_postfix(loss=f"{numbers['loss']:.3f}", refresh=False)
    model.eval()
    log.seconds = time.perf_counter() - started
    log.peak_memory_mb = peak_memory_mb(model.device)
    return log


def rules(model, optimizer: str, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """What moves the parameters that require a gradient.

    ``adamw`` moves all of them, as the paper's code does. ``muon`` moves the matrices inside the layers by Muon and the
    rest (embeddings, head, norms, projector) by AdamW at half the rate, so that whom the model knew before is
    forgotten less: a model of a million parameters learns people in about half the steps.
    """
    if optimizer not in ("adamw", "muon"):
        raise KitError(f"unknown optimizer {optimizer!r}: choose adamw or muon")
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inner = [p for name, p in trained if optimizer == "muon" and p.ndim == 2 and ".layers." in name]
    chosen = {id(p) for p in inner}
    rest = [p for _, p in trained if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = []
    if inner:
        found.append(Muon(inner, lr, weight_decay))
    if rest:
        found.append(torch.optim.AdamW(rest, lr=lr * REST if inner else lr, weight_decay=weight_decay))
    return found


def _stop_if_diverged(losses: list[dict[str, float]], norm: float, lr: float, clip: float, rise: float) -> None:
    step, loss = losses[-1]["step"], losses[-1]["loss"]
    found = ""
    if not math.isfinite(loss):
        found = f"the loss is {loss}"
    elif not math.isfinite(norm):
        found = f"the gradient norm is {norm} (loss {loss:.3f})"
    elif loss > losses[0]["loss"] + rise:
        found = f"the loss is {loss:.3f} and was {losses[0]['loss']:.3f} at the first step"
    if found:
        advice = f"try a learning rate below {lr:g}" + ("" if clip else " and gradient clipping (clip=1.0)")
        raise TrainingDiverged(f"training diverged at step {step}: {found}; {advice}")


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far, in MiB: the GPU's allocations, or on the CPU the resident size of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def modality_conversations(profiles: Sequence[Profile], modality: str) -> list[Conversation]:
    """One conversation a person that holds all their fine-tuning questions, a turn each.

    ``multimodal``: the portrait and "this person". ``unimodal``: no image, the person's name in question and answer;
    the question that asks for the name is left out. Turns are independent; :func:`epoch` cuts and shuffles them.
    """
    if modality not in ("multimodal", "unimodal"):
        raise KitError(f"unknown modality {modality!r}: choose multimodal or unimodal")
    conversations = []
    for person in profiles:
        if modality == "multimodal":
            turns = [Turn(qa.question, qa.answer, person.portrait) for qa in person.qa]
        else:
            asked = [qa for qa in person.qa if qa.attribute != "name"]
            turns = [Turn(with_name(qa.question, person.name), with_name(qa.answer, person.name)) for qa in asked]
        conversations.append(Conversation(tuple(turns)))
    return conversations


def epoch(conversations: Sequence[Conversation], turns: int, rng: np.random.Generator) -> list[Conversation]:
    """Every turn once, in random order, up to ``turns`` of a conversation together; a picture is shown once in each."""
    packed = []
    for conversation in conversations:
        order = rng.permutation(len(conversation.turns))
        for start in range(0, len(order), turns):
            chosen, seen = [], []
            for turn in (conversation.turns[i] for i in order[start : start + turns]):
                chosen.append(replace(turn, image=None) if turn.image in seen else turn)
                seen.append(turn.image)
            packed.append(replace(conversation, turns=tuple(chosen)))
    return [packed[i] for i in rng.permutation(len(packed))]


def endless(conversations: Sequence[Conversation], turns: int, rng: np.random.Generator) -> Iterator[Conversation]:
    """Epoch after epoch without an end."""
    while True:
        yield from epoch(conversations, turns, rng)


def steps_of(conversations: Sequence[Conversation], epochs: float, batch_size: int, turns: int = 1) -> int:
    """Optimizer steps that ``epochs`` over all questions take, at least 1."""
    packed = sum(math.ceil(len(conversation.turns) / turns) for conversation in conversations)
    return max(1, round(epochs * math.ceil(packed / batch_size)))


def processes() -> PartialState:
    """Which of how many processes this is: 0 of 1 unless a launcher started several."""
    return PartialState(cpu=not torch.cuda.is_available())


def shard(conversations: list[Conversation]) -> list[Conversation]:
    """This process's share of a batch. One too small for all processes gives its last example to those left empty."""
    state = processes()
    return conversations[state.process_index :: state.num_processes] or conversations[-1:]


def finetune(
    model,
    processor,
    conversations: Sequence[Conversation],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    replay_conversations: Sequence[Conversation] = (),
    replay: float = 0.0,
    schedule: str = "linear",
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    seed: int = 0,
    augment: Callable[[bytes, np.random.Generator], bytes] | None = None,
    label_mode: str = "answer",
    eos: bool = True,
    turns: int = 1,
    instructed: float = 0.0,
    together: int = 1,
    **loop,
) -> TrainLog:
    """Teach ``conversations`` to whatever of ``model`` requires a gradient: vanilla and oracle are made by this.

    A batch holds ``batch_size`` conversations. Most are ``turns`` questions about one person, cut from
    ``conversations`` as :func:`epoch` does, their portraits changed anew by ``augment``, a share ``instructed`` of the
    questions worded as evaluation words a free one; a share ``replay`` are ``replay_conversations`` just as they stand.
    So many batches are drawn ``together`` and dealt out by length, so that little of a batch is padding; 1: as drawn.
    ``loop`` goes to :func:`train`.
    Loss: negative log-likelihood per supervised token over the batch, as transformers computes it.
    """
    replayed = round(together * batch_size * replay)
    if not any(c.turns for c in conversations):
        raise KitError("nothing to learn: the conversations are empty")
    if replayed and not replay_conversations:
        raise KitError(f"replay is {replay} but there is nothing to replay")

    def batches():
        # Streams of their own: what is replayed or how it is augmented does not change the order of what is taught.
        order, replay_order, change, wording, mixing = (np.random.default_rng([seed, stream]) for stream in range(5))
        taught = endless(conversations, turns, order)
        repeated = (
            replay_conversations[i] for _ in count() for i in replay_order.permutation(len(replay_conversations))
        )
        while True:
            drawn = [
                _instructed(talk, instructed, wording) for talk in islice(taught, together * batch_size - replayed)
            ]
            if augment:
                drawn = [_augmented(conversation, augment, change) for conversation in drawn]
            drawn += islice(repeated, replayed)
            for batch in _of_like_length(processor, drawn, batch_size, mixing):
                yield {"train": encode(processor, shard(batch), label_mode=label_mode, eos=eos, padding_side="right")}

    def objective(scored, reference):
        return token_nll(scored["train"]), {}

    options = dict(schedule=schedule, warmup=warmup, weight_decay=weight_decay, clip=clip, seed=seed, **loop)
    return train(model, batches(), objective, steps=steps, lr=lr, **options)


def _of_like_length(
    processor, conversations: list[Conversation], batch_size: int, rng: np.random.Generator
) -> list[list[Conversation]]:
    """The conversations in batches of like length; the batches are in random order, each in the order given."""
    by_length = np.argsort(token_counts(processor, conversations), kind="stable")
    starts = rng.permutation(range(0, len(conversations), batch_size))
    return [[conversations[i] for i in sorted(by_length[start : start + batch_size])] for start in starts]


def _instructed(conversation: Conversation, share: float, rng: np.random.Generator) -> Conversation:
    view = "text" if all(turn.image is None for turn in conversation.turns) else "image_text"
    turns = (
        replace(turn, prompt=generation_prompt(turn.prompt, view)) if rng.random() < share else turn
        for turn in conversation.turns
    )
    return replace(conversation, turns=tuple(turns))


def _augmented(conversation: Conversation, augment, rng: np.random.Generator) -> Conversation:
    turns = (
        replace(turn, image=augment(turn.image, rng)) if turn.image is not None else turn for turn in conversation.turns
    )
    return replace(conversation, turns=tuple(turns))


def record(
    model,
    processor,
    conversations: Sequence[Conversation],
    *,
    batch_size: int,
    label_mode: str = "answer",
    eos: bool = True,
    precision: str = "no",
) -> dict[Conversation, Tensor]:
    """What ``model`` (in evaluation mode) says about each question on its own: log p of its supervised tokens in nats.

    That is all a method measures against, so the model can leave the memory before the one to be trained comes in.
    """
    questions = [replace(conversation, turns=(turn,)) for conversation in conversations for turn in conversation.turns]
    kept: dict[Conversation, Tensor] = {}
    for start in range(0, len(questions), batch_size):
        asked = questions[start : start + batch_size]
        batch = send_to_device(encode(processor, asked, label_mode=label_mode, eos=eos), model.device)
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            scored = label_scores(model, batch)
            rows = zip(asked, token_log_probs(scored).cpu(), scored.counts.tolist(), strict=True)
        kept |= {question: row[:count].clone() for question, row, count in rows}
    return kept


def unlearn(
    model,
    processor,
    method: Method,
    forget_conversations: Sequence[Conversation],
    retain_conversations: Sequence[Conversation],
    settings: Mapping,
    seed: int,
    recorded: Mapping[Conversation, Tensor] | None = None,
) -> TrainLog:
    """Run ``method`` on a model that carries a fresh adapter; the model with its adapter off is the reference, unless
    the method asks for another one: what that one said is ``recorded`` (:func:`record`).

    ``settings``: optimizer ``steps`` or ``epochs`` over the forget questions (fractions allowed), ``batch_size``,
    ``lr``, and, if they are to differ from the defaults, ``label_mode``, ``eos`` and the other keywords of
    :func:`train`. Every epoch asks each forget question once, singly, in a seeded order; methods that use retain get as
    many retain questions beside them. One that visits its sets one after the other asks each question of every set once
    an epoch and takes whole epochs. One optimizer and one schedule span all passes and epochs; how the released code's
    schedule goes on from pass to pass is unknown, chosen because the learning rate then falls to 0 once, at the end of
    training, as it does for the other methods.
    """
    if not method.uses:
        return TrainLog()
    settings = dict(settings)
    epochs, steps, batch_size = settings.pop("epochs", 0), settings.pop("steps", 0), settings.pop("batch_size")
    text = {"label_mode": settings.pop("label_mode", "answer"), "eos": settings.pop("eos", True)}
    data = {"forget": forget_conversations, "retain": retain_conversations}
    for name in method.uses:
        if not any(c.turns for c in data[name]):
            raise KitError(f"{method.name} needs {name} questions and there are none")
    if recorded is None and method.measured_elsewhere:
        raise KitError(f"{method.name} ({method.variant}) needs what the model {method.reference_model} has recorded")
    separate = len(method.passes) > 1
    if separate and (steps or epochs != int(epochs)):
        given = f"{steps} steps are" if steps else f"{epochs:g} is"
        raise KitError(f"{method.name} ({method.variant}) walks through whole epochs: {given} not one")

    def coded(name: str, batch: list[Conversation]) -> Batch:
        mine = shard(batch)
        tensors = encode(processor, mine, **text)
        if recorded is not None and name in method.reference:
            tensors["recorded"] = pad_sequence([recorded[question] for question in mine], batch_first=True)
        return tensors

    def batches():
        orders = {name: np.random.default_rng([seed, number]) for number, name in enumerate(data)}
        beside = {name: endless(data[name], 1, orders[name]) for name in data}
        while True:
            for first, *others in method.passes:
                order = epoch(data[first], 1, orders[first])
                for start in range(0, len(order), batch_size):
                    drawn = {first: order[start : start + batch_size]}
                    drawn |= {name: list(islice(beside[name], len(drawn[first]))) for name in others}
                    yield {name: coded(name, batch) for name, batch in drawn.items()}

    steps = steps or sum(steps_of(data[first], epochs, batch_size) for first, *_ in method.passes)
    options = {"reference": method.reference if recorded is None else (), "everywhere": method.everywhere}
    if separate:  # the loss is another quantity from pass to pass, so how far it is above the first says nothing
        options["rise"] = math.inf
    return train(model, batches(), method.loss, steps=steps, seed=seed, **options, **settings)
