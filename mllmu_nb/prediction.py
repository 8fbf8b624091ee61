"""Predicts the memory and hours of runs from the shapes of their models alone (``docs/architecture.md``, "Training").
The time of asking is counted by formula. What an allocator reserves and what kernels use inside is left out."""

import copy
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from statistics import mean
from typing import Any, NamedTuple
from unittest import mock

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import flop_registry
from transformers import AutoModelForImageTextToText

from mllmu_nb import inputs, pipeline
from mllmu_nb.batches import finetuning_steps, steps_of
from mllmu_nb.config import YOURS, Config
from mllmu_nb.data.conversations import MODALITIES, Conversation, Turn
from mllmu_nb.data.schema import LETTERS
from mllmu_nb.evaluation import engine, path
from mllmu_nb.evaluation.tasks import TOKENS, UPSTREAM_TOKENS
from mllmu_nb.models import adapters, families
from mllmu_nb.models.load import DTYPES, unfreeze
from mllmu_nb.training import FineTuning, back_propagate, keep_less, make_optimizers
from mllmu_nb.unlearning.base import IGNORE, Method, Recipe

GIB = 2**30
TEXT, SHORT = 64, 24  # tokens of a question with its answer (half of them), rounded up; in the miniature
STATES = 12  # bytes beside a trained fp32 parameter: its gradient and AdamW's two moments
NF4 = 0.5 + 4 / 64  # bytes of a number in 4 bits, with its share of a block's scale
LIBRARIES = 1 * GIB  # Python with torch and transformers, or a GPU's context: measured 0.5 to 0.9
DEPTH = 2  # layers to build if a model has more than 4: every further one adds the same
PUBLISHED = {"people": 500, "pairs": 7704, "celebrity": 153}  # of the paper's data, if it was not read
ASKED_ON_PATH = ("likelihood", "generation")
# A fine-tuning depends on its recipe and on these parameters: people, base, what is taught and how. Except for vanilla,
# it also depends on FORGOTTEN.
TAUGHT: tuple[str, ...] = ("people", "pool", "data_seed", "profiles_file", "data_source", "data_revision")
TAUGHT += ("base_model", "base_path", "base_revision", "quantise_base")
TAUGHT += ("adaptation", "replay", "exams", "train_modality", "train_seed")
FORGOTTEN = ("forget_ratio", "replicate", "forget_ids_file")
# Parameters of what follows unlearning, on which its training does not depend.
AFTERWARDS = ("after", "shots", "shot_source", "shot_seed", "scoring", "long_prompts", "eval_precision", "cyclic")
AFTERWARDS += ("draws_file",)
# Per person and view: questions, most worked examples before one, and how many times TEXT is read (with four options, a
# question is about twice as long).
ASKED = {"letter": (5, 5, 2), "likelihood": (5, 0, 2), "generation": (2, 0, 1), "cloze": (2, 4, 1)}

aten = torch.ops.aten


class Tally(TorchDispatchMode):
    """Counts the computation inside the context: ``flops`` of matrix products and attention (two per multiplication
    with its addition), and ``peak``, the most bytes of tensors at one time, including those of the ``held`` modules.

    If a model is on the meta device, its inputs, such as labels, stay real until they meet a weight, because they
    decide what is computed. A number that is read after that is 0.
    """

    def __init__(self, *held: nn.Module):
        super().__init__()
        self.flops = self.peak = self.now = 0
        self._sizes: dict[int, int] = {}
        for module in held:
            self._hold([*module.parameters(), *module.buffers()])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:  # without autograd an operation may come undecomposed
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
        made = self._run(func, args, kwargs)
        if count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **kwargs, out_val=made)
        self._hold(tree_leaves(made))
        return made

    def _hold(self, tensors: Sequence[Any]) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self.now += self._sizes[key]
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._release, key).atexit = False

    def _release(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def _run(self, func, args, kwargs):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        empty = [tensor for tensor in tensors if tensor.is_meta]
        if func is aten._local_scalar_dense.default and empty:
            return torch.zeros((), dtype=args[0].dtype).item()
        if func is aten._to_copy.default and kwargs.get("device"):
            to = torch.device(kwargs["device"]).type
            if empty and to == "cpu":
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if not empty and to == "meta":
                return func(*args, **{**kwargs, "device": None})
        if empty and len(empty) < len(tensors):
            if isinstance(args[1] if len(args) > 1 else None, list | tuple):  # replace a mask by indices
                args = (args[0], [place for one in args[1] for place in _places(one)], *args[2:])
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        return func(*args, **kwargs)


def _places(index: Any) -> tuple:
    real_mask = isinstance(index, Tensor) and not index.is_meta and index.dtype == torch.bool
    return index.nonzero(as_tuple=True) if real_mask else (index,)


@contextmanager
def kernels(half: bool) -> Iterator[None]:
    """Inside the context, the meta device computes as a GPU does: attention keeps no scores and, with ``half``, the
    operations that fill the memory run as under ``torch.autocast``."""

    def cast(function: Callable, to: torch.dtype) -> Callable:
        def called(*given, **more):
            given, more = tree_map_only(Tensor, lambda t: t.to(to) if t.is_floating_point() else t, (given, more))
            return function(*given, **more)

        return called if half else function

    def attention(query, key, value, attn_mask=None, is_causal=False, scale=None, **more):
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
        if attn_mask is not None:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).expand(*query.shape[:3], key.shape[2])
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, True, 0.0, is_causal, scale=scale
        )[0]

    low, full = torch.bfloat16, torch.float32
    changed = {"scaled_dot_product_attention": cast(attention, low)}
    changed |= {name: cast(getattr(functional, name), low) for name in ("linear", "conv2d")}
    changed |= {name: cast(getattr(functional, name), full) for name in ("layer_norm", "softmax")}
    products = {name: cast(getattr(torch, name), low) for name in ("matmul", "bmm")}
    with mock.patch.multiple(functional, **changed), mock.patch.multiple(torch, **products):
        yield


class Rate(NamedTuple):
    """The speed of a device, in FLOP and in bytes per second."""

    flops: float
    bandwidth: float


Rates = Callable[[str], Rate]  # by precision
Counts = dict[str, float]  # by what is counted
SHARE = 0.4  # of a device's greatest rate, which runs are assumed to reach
# The greatest rates of an H100, by its data sheet.
H100 = {"fp32": Rate(67e12, 3.35e12), "bf16": Rate(989e12, 3.35e12), "fp16": Rate(989e12, 3.35e12)}


class Estimate:
    """Estimates for a model of ``shape`` (a transformers configuration), with ``eager`` attention or not.
    :meth:`answering` and :meth:`training` return GiB by content."""

    def __init__(self, shape, eager: bool):
        self.shape, self.eager, self.text = shape, eager, SHORT if eager else TEXT
        tower = "depth" if hasattr(shape.vision_config, "depth") else "num_hidden_layers"
        parts = ("text_config", "num_hidden_layers"), ("vision_config", tower)
        self.layers = {part: getattr(getattr(shape, part[0]), part[1]) for part in parts}
        self.model = self._built({}, "fp32")
        self.parameters = self.model.num_parameters()
        self.family = families.of(self.model)
        self.image_tokens = self.family.usual_tokens(shape)
        self._counted: dict[str, Counts] = {}  # what was measured, by key

    def answering(self, config: Config, on_path: bool = False) -> Counts:
        """GiB to ask a run's model or, ``on_path``, to ask it in the middle of its unlearning."""
        precision, size, protocol = _asked(config, on_path)
        shots = 0 if on_path else config.shots
        # answers are written after worked examples; options are compared without
        held = [self._held(size, shots, protocol, precision, False)]
        if on_path or config.scoring == "both":
            held.append(self._held(size, 0, protocol, precision, True))
        most = max(held, key=lambda one: one["peak"])
        element = DTYPES[precision].itemsize
        rest = most["peak"] - most["kept"] - self.parameters * element
        return self._gib(element, {"keys and values": most["kept"], "activations": rest})

    def _held(self, size: int, shots: int, protocol: str, precision: str, options: bool) -> Counts:
        """``peak`` bytes, and those of all keys and values (``kept``), when the engine's own code reads a batch of
        prompts of usual length: worked examples, pictures, and questions with their answers, or with ``options``."""
        parts, own = self.family.parts(protocol), self.shape.image_token_id
        image, words = parts * self.image_tokens, 2 * self.text

        def measured(model: nn.Module) -> Counts:
            peaks: Counts = {}

            def read(state: engine.State, rows: int, pictures: int, words: int, keep: int = 1) -> None:
                """Read ``words`` after each picture, or without any."""
                each = [own] * image * (pictures > 0) + [int(own == 0)] * words
                shown = torch.full((rows * pictures * parts, self.image_tokens), own)
                given = self.family.usual_pictures(self.shape, shown) if pictures else {}
                given = {name: t.to(model.dtype) if t.is_floating_point() else t for name, t in given.items()}
                tally.peak = tally.now
                state.extend(torch.tensor([each * max(pictures, 1)] * rows), None, keep, **given)
                peaks[f"read {len(peaks)}"] = tally.peak

            with engine.evaluating(model), kernels(False), Tally(model) as tally:
                weights, beginning, kept = tally.now, None, []
                if shots:
                    read(beginning := engine.State(model, 1), 1, shots, words)
                faces = -(-size // min(each for each, *_ in ASKED.values()))
                read(pictures := engine.State(model, faces, beginning), faces, 1, 0)
                # a question has several options, so fewer are read at once
                at_once = engine.READ_AT_ONCE // (words + options * len(LETTERS) * words // 4)
                for start in range(0, size, at_once):
                    rows = min(at_once, size - start)
                    kept.append(state := pictures.fork().keep([0] * rows))
                    read(state, rows, 0, words)
                    if options:
                        kept.append(option := state.fork())
                        read(option, rows, 0, words // 4, 0)
                        break  # its states are not kept
                return {**peaks, "kept": tally.now - weights}

        counts = self._at_full_depth(repr([size, shots, parts, precision, options]), measured, precision)
        return {"peak": max(counts.values()), "kept": counts["kept"]}

    def training(self, recipe: Recipe, full: bool, method: Method | None = None, quantised: bool = False) -> Counts:
        """GiB to train by ``recipe``: fine-tuning, or ``method``. ``quantised``: with layers in 4 bits."""
        method = method or FineTuning()
        steps = [self.step(recipe, full, method, names) for names in method.all_passes]
        peak = max(step["peak"] for step in steps)
        each = STATES if full else STATES + 4  # an adapter adds its weights
        states, element = steps[0]["trained"] * each, DTYPES[recipe.precision].itemsize
        kept = peak - self.parameters * element - states
        need = self._gib(element, {"trained with their states": states, "activations": kept})
        if quantised:
            layers = self.family.adapter_targets(self.model, "language")
            in_bits = sum(self.model.get_submodule(name).weight.numel() for name in layers)
            need["weights"] -= in_bits * (element - NF4) / GIB
        return need

    def step(self, recipe: Recipe, full: bool, method: Method | None = None, names=("train",), shown=True) -> Counts:
        """``peak`` bytes, ``flops`` and ``trained`` parameters of a step on batches of usual size of the streams
        ``names``. ``shown``: with pictures."""
        method, rows = method or FineTuning(), min(recipe.micro_batch or recipe.batch_size, recipe.batch_size)
        batch = self.batch(rows, recipe.turns, shown, recipe.label_mode)
        fed = {name: dict(batch) for name in names}
        if method.other_reference:  # stored beforehand, one number per supervised token
            most = int((batch["labels"][:, 1:] != IGNORE).sum(1).max())
            for name in set(names) & set(method.needs.reference):
                fed[name]["stored_log_probs"] = torch.zeros(rows, most)

        def measured(model: nn.Module) -> Counts:
            model = unfreeze(model) if full else adapters.attach(model, recipe, 0, method.trains)
            if recipe.checkpointing:
                keep_less(model)
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            with kernels(recipe.precision == "bf16"), Tally(model.train()) as tally:
                empty = tally.now
                back_propagate(model, [fed], method, trained, nullcontext())
                peak, before = tally.peak, tally.now
                for optimizer in make_optimizers(trained, recipe):
                    optimizer.step()
            # optimizer states are there from the second step on, gradients from the second piece on
            later = tally.now - before + (before - empty if rows < recipe.batch_size else 0)
            flops = tally.flops * recipe.batch_size / rows
            count = model.num_parameters(only_trainable=True)
            return {"peak": max(peak + later, tally.peak), "flops": flops, "trained": count}

        length = dict.fromkeys(("lr", "steps", "epochs", "schedule", "warmup"))
        key = repr([{**recipe.numbers(), **length}, full, method, names, shown])
        return self._at_full_depth(key, measured, recipe.precision)

    def flops(self, recipe: Recipe, *given: Any) -> float:
        """FLOPs of a :meth:`step`. They do not depend on the precision, so one count serves all."""
        return self.step(replace(recipe, precision="fp32"), *given)["flops"]

    def reading(self, shown: bool) -> float:
        """FLOPs of reading a usual question, with a picture or without."""
        batch = self.batch(1, 1, shown, "text")
        del batch["labels"]

        def measured(model: nn.Module) -> Counts:
            with torch.no_grad(), kernels(False), Tally(model.eval()) as tally:
                model(**send_to_device(batch, model.device), logits_to_keep=1)
            return {"flops": tally.flops}

        return self._at_full_depth(f"reading {shown}", measured, "fp32")["flops"]

    def asking(self, config: Config, people: Mapping[str, int], kinds: Sequence[str], rate: Rates) -> float:
        """Seconds in which a run's model answers the questions of these ``kinds`` about ``people`` (set → number).
        Worked examples are read once for all, a picture once per batch. To write a token also takes the time of reading
        all weights. Every answer has its greatest length."""
        on_path = kinds is ASKED_ON_PATH
        precision, size, protocol = _asked(config, on_path)
        upstream = protocol == "upstream"
        per_token, flops, written = self.reading(False) / self.text, 0.0, 0
        picture = self.family.parts(protocol) * (self.reading(True) - self.reading(False))
        for name, count in people.items():
            for kind in kinds:
                each, most, length = ASKED[kind]
                each *= len(LETTERS) if kind == "letter" and config.cyclic else 1
                examples = 0 if name == "celebrity" and upstream else min(config.shots, most)
                # an answer by letter ends at its first character that is not blank
                longest = UPSTREAM_TOKENS if upstream else TOKENS[config.scale].get(kind)
                tokens = {"letter": 2, "likelihood": 0}.get(kind, longest)
                starts = range(0, count * each, size)
                faces = sum(len({i // each for i in range(first, min(first + size, count * each))}) for first in starts)
                read = 2 * (examples * 2 * self.text + count * each * (length * self.text + tokens))  # in both views
                flops += read * per_token + (examples + faces) * picture
                written += 2 * len(starts) * tokens
        weights, device = self.parameters * DTYPES[precision].itemsize, rate(precision)
        return flops / device.flops + written * weights / device.bandwidth

    def batch(self, rows: int, turns: int, shown: bool, label_mode: str) -> dict[str, Tensor]:
        """A batch of conversations of usual length, as ``Family.encode`` makes it, but with meaningless tokens."""
        image = self.image_tokens if shown else 0
        own = self.shape.image_token_id
        ids = torch.full((rows, image + turns * self.text), int(own == 0))
        ids[:, :image] = own
        taught = torch.arange(ids.shape[1]) - image
        kept = (taught >= 0) | (label_mode == "upstream")
        if label_mode == "answer":
            kept &= taught % self.text >= self.text // 2
        pictures = self.family.usual_pictures(self.shape, ids) if shown else {}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.where(kept, IGNORE), **pictures}

    def _built(self, layers: Mapping[tuple[str, str], int], precision: str) -> nn.Module:
        """The model on the meta device, with these numbers of layers."""
        shape = copy.deepcopy(self.shape)
        for (part, name), count in layers.items():
            setattr(getattr(shape, part), name, count)
        how = {"attn_implementation": "eager" if self.eager else "sdpa", "dtype": DTYPES[precision]}
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(shape, **how)

    def _at_full_depth(self, key: str, measured: Callable[[nn.Module], Counts], precision: str) -> Counts:
        """What ``measured`` returns for the whole model, stored by ``key``. It is measured on models of :data:`DEPTH`
        layers and of one more, and extrapolated: every further layer adds the same."""
        if key in self._counted:
            return self._counted[key]
        shallow = max(self.layers.values()) <= 2 * DEPTH
        few = self.layers if shallow else {part: min(DEPTH, count) for part, count in self.layers.items()}
        with torch.random.fork_rng():
            base = measured(self._built(few, precision))
            whole = dict(base)
            for part, left in ((part, count - few[part]) for part, count in self.layers.items() if count > few[part]):
                more = measured(self._built({**few, part: few[part] + 1}, precision))
                whole = {name: value + left * (more[name] - base[name]) for name, value in whole.items()}
        self._counted[key] = whole
        return whole

    def _gib(self, element: int, more: Counts) -> Counts:
        held = {"weights": self.parameters * element, **more, "libraries": LIBRARIES}
        return {what: size / GIB for what, size in held.items()}


@cache
def assumed_rate(precision: str, here: bool) -> Rate:
    """The rate that runs are assumed to reach, :data:`SHARE` of the greatest. The greatest is an H100's by its data
    sheet or, if ``here``, what one large matrix product and one large copy reach on this device."""
    if not here:
        return Rate(*(SHARE * most for most in H100[precision]))
    gpu = torch.cuda.is_available()
    side, dtype = (8192, DTYPES[precision]) if gpu else (1024, torch.float32)
    matrix = torch.randn(side, side, device="cuda" if gpu else "cpu", dtype=dtype)
    timers = (Timer(work, globals={"matrix": matrix}) for work in ("matrix @ matrix", "matrix.clone()"))
    product, copied = (timer.timeit(5).median for timer in timers)
    return Rate(SHARE * 2 * side**3 / product, SHARE * 2 * matrix.nbytes / copied)


def _asked(config: Config, on_path: bool) -> tuple[str, int, str]:
    """The precision of a run's model when it is asked, how many questions at once, and the protocol they follow."""
    if on_path:
        return config.unlearning.precision, pipeline.asked_at_once(config, pipeline.PATH_BATCH), "clean"
    return config.eval_precision or "fp32", pipeline.asked_at_once(config), config.protocol


def hours(configs: Sequence[Config], estimate: Estimate, rate: Rates) -> dict[str, tuple[int, float]]:
    """Stage → how many of it these runs need, and their total hours at the ``rate`` of a precision. A training counts
    once, however many runs need it; answers count for each run, also those that runs share. Loading, scoring,
    and a reference's log-probabilities are not counted."""
    spent: dict[tuple, float] = {}  # seconds
    for config in configs:
        if config.trains:
            plain = config.but(**{name: Config.model_fields[name].default for name in AFTERWARDS})
            spent["unlearned", plain.run_id] = _unlearning(config, estimate, rate)
            start = config.hash_of((*TAUGHT, *FORGOTTEN, "vanilla_path", "system", "eval_batch"))
            start += repr((config.training, config.unlearning.precision))
            spent["path_start", start] = estimate.asking(config, path.PEOPLE, ASKED_ON_PATH, rate)
        for name in finetuned_for(config):
            forgotten = () if name == "vanilla" else FORGOTTEN
            key = config.hash_of((*TAUGHT, *forgotten)), repr(config.training)
            spent[name, *key] = _teaching(config, name, estimate, rate)
        spent["answers", config.run_id] = _answering(config, estimate, rate)
    stages: dict[str, list[float]] = defaultdict(list)
    for (name, *_), seconds in spent.items():
        stages[name].append(seconds / 3600)
    return {name: (len(each), sum(each)) for name, each in stages.items()}


def finetuned_for(config: Config) -> list[str]:
    """The models that a run needs and that are fine-tuned here: vanilla, the oracle, or upstream's reference."""
    if config.method == "oracle":
        return ["oracle"]
    given = config.method in ("base", YOURS) or config.vanilla_path
    other = config.objective.other_reference if config.trains else None
    return [name for name in (None if given else "vanilla", other) if name]


def _teaching(config: Config, name: str, estimate: Estimate, rate: Rates) -> float:
    """Seconds of the fine-tuning of vanilla, an oracle, or upstream's reference."""
    recipe = replace(config.training, steps=0, epochs=1) if name == "retain_epoch" else config.training
    sets = _people(config)
    taught = (sets["forget"] if name == "vanilla" else []) + sets["retain"] + sets["pool"]
    modalities = MODALITIES if config.train_modality == "both" else ["multimodal"]
    full = config.adaptation == "full"
    each = [estimate.flops(recipe, full, None, ("train",), modality == "multimodal") for modality in modalities]
    return finetuning_steps(taught * len(modalities), recipe, config.replay) * mean(each) / rate(recipe.precision).flops


def _unlearning(config: Config, estimate: Estimate, rate: Rates) -> float:
    """Seconds of an unlearning with the points of its path beyond the first."""
    method, recipe, sets, flops = config.objective, config.unlearning, _people(config), 0.0
    for names in method.all_passes:
        steps = recipe.steps or steps_of(sets[method.streams[names[0]].set], recipe.epochs, recipe.batch_size)
        flops += steps * estimate.flops(recipe, False, method, names, config.modality == "multimodal")
    beyond = path.BEYOND if recipe.schedule == "constant" else 1
    points = path.POINTS * estimate.asking(config, path.PEOPLE, ASKED_ON_PATH, rate)
    return beyond * flops / rate(recipe.precision).flops + points


def _answering(config: Config, estimate: Estimate, rate: Rates) -> float:
    """Seconds of a run's evaluation."""
    counts = {name: len(people) for name, people in _people(config).items() if name != "pool"}
    kinds = [kind for kind in ASKED if kind != "likelihood" or config.scoring == "both"]
    return estimate.asking(config, {**counts, "test": counts["forget"]}, kinds, rate)


def _people(config: Config) -> dict[str, list[Conversation]]:
    """Stand-ins for all people, by set, with as many turns as fine-tuning has questions about them. People on the hub
    are not read for this; their numbers are the paper's."""
    if inputs.unread(config):
        everybody = PUBLISHED["people"]
        forget, turns = round(everybody * config.forget_ratio / 100), round(PUBLISHED["pairs"] / everybody)
        counts = {"forget": forget, "retain": everybody - forget, "celebrity": PUBLISHED["celebrity"], "pool": 0}
        of = {name: [turns] * count for name, count in counts.items()}
    else:
        known = inputs.population(config)
        groups = {name: known.members(name) for name in ("forget", "retain", "celebrity")}
        of = {name: [len(p.qa) for p in people] for name, people in {**groups, "pool": known.of_kind("pool")}.items()}
    return {name: [Conversation((Turn(""),) * count) for count in turns] for name, turns in of.items()}
