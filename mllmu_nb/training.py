"""The training loop: :func:`train` makes vanilla, the oracle and every unlearned model; under ``accelerate launch`` in
one process per GPU (``docs/architecture.md``)."""

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import psutil
import torch
from accelerate.utils import reduce, send_to_device
from torch import Tensor

from mllmu_nb import pinning
from mllmu_nb.batches import Batch, finetuning_batches, finetuning_steps, unlearning_batches, unlearning_steps
from mllmu_nb.data.conversations import Conversation, Sets
from mllmu_nb.errors import KitError
from mllmu_nb.models import families
from mllmu_nb.models.checkpoint import Checkpoint
from mllmu_nb.models.score import labelled, score
from mllmu_nb.optimizers import make_optimizers, make_schedule
from mllmu_nb.parallel import average_over_processes, clip_, processes, shard, weights
from mllmu_nb.progress import progress_bar
from mllmu_nb.unlearning.base import Method, Recipe, ReferenceLogProbs, Scored, Step, terms_of

MIB = 2**20


class TrainingDiverged(KitError):
    """The loss or its gradient is no longer a finite number, or the loss rose too far above its first value."""


class FineTuning(Method):
    """L = ℓ̄, the mean over all supervised tokens of the batch, as in transformers; for vanilla and the oracle."""

    name, streams = "finetuning", ("train",)

    def loss(self, step):
        yield "nll", step.train.token_nll


@dataclass
class TrainLog:
    """The result of a training. ``losses`` has one entry per step, {"step", "loss", one value per term, and
    ``nll_<stream>``: the mean over the stream's answers, in nats per token}."""

    losses: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    steps: int = 0
    trainable_parameters: int = 0
    supervised_tokens: int = 0

    def record(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The record that is stored with the model: the log, and those ``settings`` that are not None. Its losses are
        columns, name → one value per step, or None at steps that do not have this term."""
        rounded: dict[str, Any] = {"seconds": round(self.seconds, 3), "peak_memory_mb": round(self.peak_memory_mb, 1)}
        names = [name for name in dict.fromkeys(chain.from_iterable(self.losses)) if name != "step"]
        # nine digits tell all numbers in single precision apart
        rounded["losses"] = {
            name: [float(f"{step[name]:.9g}") if name in step else None for step in self.losses] for name in names
        }
        return {**vars(self), **rounded, "settings": {name: v for name, v in settings.items() if v is not None}}


def train(
    model,
    method: Method,
    batches: Iterable[Sequence[Mapping[str, Batch]]],
    recipe: Recipe,
    *,
    steps: int,
    seed: int = 0,
    rise: float = Method.rise,
    rate_every: int = 1,
    progress: bool = True,
    after_step: Callable[[int, Any], None] | None = None,
    beyond: int = 0,
    checkpoint: Checkpoint | None = None,
) -> TrainLog:
    """Minimise ``method.loss`` for ``steps`` optimizer steps over all parameters that require a gradient.

    A step reads one item of ``batches``, a list of pieces that are dicts of named batches, weighted so that a mean over
    answers, or over tokens, is the mean over the whole batch (``parallel.weights``). The learning rate changes every
    ``rate_every`` steps. ``after_step(step, model)`` is called after each step; its time does not count. A single
    process continues the training that ``checkpoint`` has saved. If ``beyond`` is above ``steps``, training continues
    to it for ``after_step``. These steps are not in the log. If they diverge, training just ends. In both cases the
    model gets back the weights that it had after ``steps``. Raises :class:`TrainingDiverged` if loss or gradient is not
    finite, or the loss is ``rise`` above its first value.
    """
    state, autocast = processes(), _autocast(recipe, model.device)
    torch.manual_seed(seed + state.process_index)  # each process has other masks of dropout
    several = state.num_processes > 1
    # only one process would find the file, and continue from another step than the others
    kept = Checkpoint() if several or not checkpoint else checkpoint
    if several and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard(model, recipe)
    if recipe.checkpointing:
        keep_less(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizers = make_optimizers(trained, recipe)
    schedules = [make_schedule(optimizer, recipe, steps) for optimizer in optimizers]
    log = TrainLog(steps=steps, trainable_parameters=model.num_parameters(only_trainable=True))
    batches, optimizers_and_schedules = iter(batches), [*optimizers, *schedules]
    done = kept.resume(batches, trained, optimizers_and_schedules, log)
    started = time.perf_counter() - log.seconds
    forget_peak(model.device)
    model.train()
    ahead, shown = range(done + 1, max(steps, beyond) + 1), progress and state.is_main_process
    for number in progress_bar(ahead, desc="steps", shown=shown):
        terms, tokens = back_propagate(model, next(batches), method, trained, autocast)
        norm = clip_(trained.values(), recipe.clip or math.inf)
        first = log.losses[0] if log.losses else terms
        if problem := divergence(terms["loss"], first["loss"], rise, norm, recipe):
            if number > steps:
                break
            raise TrainingDiverged(f"training diverged at step {number}: {problem}")

        method.before_update(trained)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            if number % rate_every == 0:
                schedule.step()
            optimizer.zero_grad()
        method.after_update(trained)
        if number == steps < beyond:
            kept.also["ended"] = {name: p.detach().clone() for name, p in trained.items()}
        if number <= steps:
            log.losses.append({"step": number, **terms})
            log.supervised_tokens += tokens
            log.seconds = time.perf_counter() - started
            log.peak_memory_mb = max(log.peak_memory_mb, peak_memory_mb(model.device))
        if after_step:
            paused = time.perf_counter()
            after_step(number, model)
            forget_peak(model.device)
            started += time.perf_counter() - paused
        kept.save(number, trained, optimizers_and_schedules, log)
    model.eval()
    with torch.no_grad():
        for name, ended in kept.also.get("ended", {}).items():
            trained[name].copy_(ended)
    kept.remove()
    return log


def divergence(loss: float, first: float, rise: float, norm: float, recipe: Recipe) -> str:
    """What is wrong with a ``loss`` whose gradient has this ``norm``, and what to do; "" if training goes well."""
    if math.isfinite(loss) and math.isfinite(norm) and loss <= first + rise:
        return ""
    advice = f"try a learning rate below {recipe.lr:g}" + ("" if recipe.clip else " and, in its recipe, clip=1.0")
    return f"the loss is {loss:.3f}, at the first step {first:.3f}, and the norm of its gradient {norm:.3g}; {advice}"


def back_propagate(
    model, pieces: Sequence[Mapping[str, Batch]], method: Method, trained: Mapping[str, Tensor], autocast
) -> tuple[dict[str, float], int]:
    """Add up the gradients of a batch, one term of one piece at a time, so that only one graph is in memory. Returns
    the loss, its terms and the nats per token of each stream (means over all pieces), and the number of supervised
    tokens; all of them over all processes."""
    shares, per_row = weights(pieces, model.device)
    values, tokens = [], 0
    for piece, share in zip(pieces, shares, strict=True):
        step = scored(model, send_to_device(dict(piece), model.device), method, autocast, per_row)
        terms: dict[str, float] = {}
        for name, term in terms_of(method, step):
            (term * share).backward()
            method.after_backward(name, trained)
            terms[name] = term.item()
        nll = {f"nll_{name}": batch.mean_nll.mean().item() for name, batch in step.asked.items()}
        values.append({"loss": sum(terms.values()), **terms, **nll})
        tokens += sum(int(batch.counts.sum()) for batch in step.asked.values()) if share else 0
    table = torch.tensor([list(row.values()) for row in values], dtype=torch.float64)
    mean = (torch.tensor(shares, dtype=torch.float64) @ table).float()
    if processes().num_processes > 1:
        mean = average_over_processes(mean.to(model.device), trained.values())
        tokens = int(reduce(torch.tensor(tokens, device=model.device), "sum"))
    return dict(zip(values[0], mean.tolist(), strict=True)), tokens


def scored(model, batches: Mapping[str, Batch], method: Method, autocast, per_row: Mapping[str, float] = {}) -> Step:
    """The step of ``batches``; ``model`` scores each when it is first read. The reference is the log-probabilities that
    a batch has stored, else the model with its adapter switched off. ``per_row``: see ``parallel.weights``."""

    def read(name: str) -> Scored:
        with autocast:
            return replace(score(model, batches[name], method, name), per_row=per_row.get(name))

    def refer(name: str) -> Scored | ReferenceLogProbs:
        if "stored_log_probs" in batches[name]:
            return ReferenceLogProbs(batches[name]["stored_log_probs"], labelled(batches[name])[1], per_row.get(name))
        with vanilla_mode(model):
            return read(name)

    return Step(read, batches, Step(refer, [name for name in method.needs.reference if name in batches]))


@contextmanager
def vanilla_mode(model):
    """Inside this context, ``model`` is the frozen model without its adapter: adapter off, dropout off, no
    gradients."""
    was_training = model.training
    model.eval()
    # peft's own context, disable_adapter, counts all weights first, in every step
    model.base_model.disable_adapter_layers()
    try:
        with torch.no_grad():
            yield
    finally:
        model.base_model.enable_adapter_layers()
        model.train(was_training)


def keep_less(model) -> None:
    """Make the layers keep only their inputs and compute the rest again in the backward pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about a new name that the oldest transformers lacks
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()  # else the output of a frozen first layer has no graph for the backward pass


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: the GPU's allocations since :func:`forget_peak`; on a CPU the largest resident size in the
    whole life of the process, so work before the training counts too."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 2**10


def forget_peak(device: torch.device) -> None:
    """Make :func:`peak_memory_mb` start again, on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The context of the forward pass: half precision if the recipe says so (KitError on a CPU with pinned bits)."""
    half = recipe.precision == "bf16"
    if half and device.type == "cpu" and pinning.pinned():
        raise KitError(
            "bf16 on a CPU whose bits are pinned is about 200 times slower than float32: "
            f"set precision to fp32, or {pinning.UNPINNED}=1 before Python starts"
        )
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def finetune(
    model, processor, conversations: Sequence[Conversation], recipe: Recipe, seed: int, material: Mapping = {}, **loop
) -> TrainLog:
    """Fine-tune the parameters of ``model`` that require a gradient on ``conversations``. ``material``: further
    arguments of :func:`finetuning_batches` by name; ``loop``: of :func:`train`."""
    batches = finetuning_batches(families.of(model), processor, conversations, recipe, seed, **material)
    steps = finetuning_steps(conversations, recipe, material.get("replay", 0.0))
    return train(model, FineTuning(), batches, recipe, steps=steps, seed=seed, **loop)


def unlearn(
    model, processor, method: Method, sets: Sets, recipe: Recipe, seed: int, stored: Mapping | None = None, **loop: Any
) -> TrainLog:
    """Run ``method`` on a model with a fresh adapter, with the conversations of the ``sets`` forget and retain.
    ``stored``: the log-probabilities of a reference other than the model without its adapter
    (:func:`reference_log_probs`)."""
    if stored is None and method.other_reference:
        raise KitError(f"{method.name} ({method.variant}) needs the log-probabilities of {method.reference_model}")
    steps = unlearning_steps(method, recipe, sets)
    batches = unlearning_batches(families.of(model), processor, method, sets, recipe, seed, stored)
    # A retain term with a larger weight moves the loss more; if passes alternate, the loss is another quantity in each.
    rise = math.inf if method.passes else method.rise * max(1.0, getattr(method, "alpha", 1.0))
    once = {"rise": rise, "rate_every": steps // int(recipe.epochs) if method.rate_falls == "epoch" else 1}
    return train(model, method, batches, recipe, steps=steps, seed=seed, **{**once, **loop})


def reference_log_probs(model, processor, asked: Sequence[Conversation], recipe: Recipe) -> dict[Conversation, Tensor]:
    """Question → log p in nats that ``model`` gives its supervised tokens. A method needs nothing else from its
    reference, so the reference can be removed from memory before the model to be trained is loaded."""
    stored: dict[Conversation, Tensor] = {}
    questions = [replace(conversation, turns=(turn,)) for conversation in asked for turn in conversation.turns]
    for start in range(0, len(questions), recipe.batch_size):
        some = questions[start : start + recipe.batch_size]
        batch = send_to_device(families.of(model).encode(processor, some, recipe.label_mode, recipe.eos), model.device)
        with torch.no_grad(), _autocast(recipe, model.device):
            answers = score(model, batch)
            log_probs, counts = answers.log_probs.cpu(), answers.counts.tolist()
        rows = zip(some, log_probs, counts, strict=True)
        stored |= {question: row[:count].clone() for question, row, count in rows}
    return stored
