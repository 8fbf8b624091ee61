"""The parameters of a run: typed, checked, with presets that say where each number comes from.

A run is what one notebook makes: one model (base, vanilla, oracle or unlearned) scored on the four sets. Notebooks and
commands hand over plain values; :class:`Config` refuses what it does not know, so a misspelt or mistyped parameter
stops here and not after an hour of training.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from mllmu_nb.errors import KitError

SCALES = ("miniature", "paper")
BASE_MODELS = ("llava", "idefics2")
PROTOCOLS = ("clean", "upstream")
MODALITIES = ("multimodal", "unimodal", "none")
ADAPTATIONS = ("lora", "full")
MODELS = ("base", "vanilla", "oracle")  # what stands beside the unlearned models
YOURS = "yours"  # the method of a model that was made elsewhere: base_path, with adapter_path on it
SEEDS = ("data", "train", "unlearn", "shot")
# What a protocol sets, each with the words it knows; schedule "" is the one of the recipe.
CHOICES = {
    "label_mode": ("answer", "text", "upstream"),
    "adapter_reach": ("language", "upstream"),
    "eos": ("yes", "no"),
    "shot_source": ("pool", "retain", "upstream", "none"),
    "scoring": ("both", "letter"),
    "schedule": ("constant", "linear", "cosine", "plateau"),
}
GRID = "grid"  # the sweep's key in a configuration file; a notebook that is given the file ignores it


@dataclass(frozen=True)
class Recipe:
    """How one model is trained. Either ``steps`` or ``epochs`` counts; the other is 0."""

    lr: float
    batch_size: int  # conversations a step
    steps: int = 0
    epochs: int = 0
    alpha: float = 1.0  # weight of the retain term, in methods that have one
    turns: int = 1  # questions asked about one person in one conversation
    together: int = 1  # batches drawn at once and dealt out by length
    instructed: float = 0.0  # share of the questions that carry the instruction evaluation gives for a free answer
    schedule: str = "constant"  # of the learning rate: constant, linear, cosine or plateau (which falls late)
    warmup: float = 0.0  # share of the steps
    weight_decay: float = 0.0
    clip: float = 1.0  # largest norm of the gradient; 0: not clipped
    optimizer: str = "adamw"  # muon: for the matrices inside the layers
    precision: str = "no"  # bf16: matrix products in half precision
    augment: bool = False  # portraits are changed anew each time they are shown
    label_mode: str = "answer"  # which tokens are supervised
    eos: bool = True  # the end of the answer is taught as well
    lora_r: int = 16
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_init: str = "kaiming"  # of the adapter's A: kaiming (uniform) or gaussian
    lora_reach: str = "language"  # which modules carry an adapter
    source: str = ""  # who says so


MINIATURE = "chosen on the miniature, on forget sets that are not reported"
MOVED = f"{MINIATURE}, then moved, for with the rule's choice the reported ones fell too far or too little"
UPSTREAM = "MLLMU-Bench's code and README"
UPSTREAM_ISSUE = "MLLMU-Bench, the author in issue 12"
BY_HAND = "set by hand"
PRACTICE = "good practice, for what reproductions of MLLMU-Bench ran into"

# Fine-tuning, by scale and adaptation. The scale's first entry is its default.
# The rate falls only at the end: after 800 steps vanilla remembered more than with cosine's.
_MINIATURE_TRAINING = Recipe(
    lr=3e-3,
    batch_size=12,
    turns=4,
    together=8,
    instructed=0.1,
    steps=750,
    schedule="plateau",
    warmup=0.05,
    optimizer="muon",
    augment=True,
    lora_dropout=0.0,
    source="chosen on the miniature, seed 0, by what vanilla remembers",
)
_PAPER_TRAINING = Recipe(
    lr=2e-5,
    batch_size=4,
    epochs=5,
    schedule="linear",
    clip=0.0,
    precision="bf16",
    lora_init="gaussian",
    source=UPSTREAM,
)
TRAINING = {
    "miniature": {"full": _MINIATURE_TRAINING, "lora": replace(_MINIATURE_TRAINING, optimizer="adamw")},
    "paper": {"lora": _PAPER_TRAINING},
}
# Share of the fine-tuning batches that repeats what the base knows, from people who are never scored.
REPLAY = {"miniature": 0.2, "paper": 0.0}

# Unlearning, by scale and method, or method and modality; one that is not named here takes the entry "".
# Rates and lengths are those that the rule of the study of the cliff chooses (notebook 13), but for three.
# The gradient is cut at a tenth: Adam remembers small gradients too long to meet their growth with steps of even size.
_MINIATURE_UNLEARNING = Recipe(
    lr=4e-3, batch_size=8, steps=30, schedule="linear", clip=0.1, lora_dropout=0.0, source=MINIATURE
)
_PAPER_UNLEARNING = replace(_PAPER_TRAINING, epochs=1)
UNLEARNING = {
    "miniature": {
        "": _MINIATURE_UNLEARNING,
        "grad_diff": replace(_MINIATURE_UNLEARNING, steps=80, alpha=2.0),
        ("kl_min", "multimodal"): replace(_MINIATURE_UNLEARNING, lr=3e-3, steps=75, alpha=2.0, source=MOVED),
        ("kl_min", "unimodal"): replace(_MINIATURE_UNLEARNING, steps=60, alpha=2.0),
        ("ga", "unimodal"): replace(_MINIATURE_UNLEARNING, steps=25, source=MOVED),
        ("npo", "unimodal"): replace(_MINIATURE_UNLEARNING, steps=25, source=MOVED),
    },
    "paper": {
        "": _PAPER_UNLEARNING,
        "npo": replace(_PAPER_UNLEARNING, epochs=2, source=UPSTREAM_ISSUE),
        "kl_min": replace(_PAPER_UNLEARNING, epochs=3, source=UPSTREAM_ISSUE),
    },
}
PRESETS = {"training": TRAINING, "unlearning": UNLEARNING, "replay": REPLAY}
# Who says so where it is not the recipe's own source.
OTHER_SOURCES = {
    "miniature": {
        "turns": "unknown, chosen because a picture is then read once for four questions about it",
        "instructed": "unknown, chosen because so small a model does not carry plain answers over to other wordings",
        "optimizer": "unknown, chosen because a model of a million parameters learns in half the steps with muon",
        "together": "unknown, chosen because a fifth of what is read would be padding otherwise",
        "precision": "unknown, chosen because many CPUs are several times slower in half precision",
        "augment": "unknown, chosen because a small portrait shown alike every time would be learnt by its pixels",
        "weight_decay": UPSTREAM,
        "clip": "unknown, chosen because ascent takes steps without bound otherwise",
        "lora_r": UPSTREAM,
        "lora_alpha": UPSTREAM,
        "lora_dropout": "unknown, chosen because an unlearning of some sixty steps is noisy enough without",
        "lora_init": "peft's own",
        "replay": "unknown, chosen because so small a model forgets what it does not repeat",
    },
    "paper": {
        "precision": "unknown, chosen because in float32, as upstream trains, 7B parameters leave one GPU no room",
        "replay": UPSTREAM,
    },
}
# The word of the protocol that a number of a recipe hangs on.
WORDS = {"schedule": "schedule", "label_mode": "label_mode", "eos": "eos", "lora_reach": "adapter_reach"}


@dataclass(frozen=True)
class Preset:
    """A value and who says so."""

    value: Any
    source: str


# What the word ``protocol`` stands for. Variant and length hang on the method: Config.protocol_presets adds them.
PROTOCOL = {
    "clean": {
        "label_mode": Preset("answer", f"{PRACTICE}: image slots and questions are not what is to be forgotten"),
        "adapter_reach": Preset("language", f"{PRACTICE}: 39,976,960 parameters of LLaVA-1.5-7B, as published"),
        "eos": Preset("yes", f"{PRACTICE}: a model that never learnt to stop runs on"),
        "shot_source": Preset("pool", f"{PRACTICE}: people who are taught and never scored"),
        "scoring": Preset("both", f"{PRACTICE}: a model that knows an answer may fail to say its letter"),
        "schedule": Preset("", "the recipe's own"),
    },
    "upstream": {
        "label_mode": Preset("text", f"{UPSTREAM}: all but padding, image slots not yet being tokens at its time"),
        "adapter_reach": Preset("upstream", f"{UPSTREAM}: linear layers by their bare names, wherever they are"),
        "eos": Preset("no", UPSTREAM),
        "shot_source": Preset("upstream", f"{UPSTREAM}: drawn from the people under evaluation"),
        "scoring": Preset("letter", UPSTREAM),
        "schedule": Preset("linear", UPSTREAM),
    },
}
# At paper scale nobody is in training but those who are scored.
RETAIN_SHOTS = Preset("retain", f"{PRACTICE}: a few retain people, taken out of scoring for every model")
UPSTREAM_EPOCHS = {
    "": Preset(1, f"{UPSTREAM} (README)"),
    "ga": Preset(1, f"{UPSTREAM} (README; 1 to 2 says the author in issue 12)"),
    "npo": Preset(2, UPSTREAM_ISSUE),
    "kl_min": Preset(3, UPSTREAM_ISSUE),
}

LENGTHS = ("unlearn_steps", "unlearn_epochs")  # of unlearning, said the one way or the other
# What a field holds when the preset (or, for a seed, ``seed``) is to fill it.
UNSET = {
    "data_seed": -1,
    "train_seed": -1,
    "unlearn_seed": -1,
    "shot_seed": -1,
    "adaptation": "",
    "replay": -1.0,
    "train_steps": 0,
    "train_lr": 0.0,
    "unlearn_steps": 0,
    "unlearn_epochs": 0,
    "unlearn_lr": 0.0,
    "unlearn_alpha": 0.0,
    "variant": "",
    **dict.fromkeys(CHOICES, ""),
}


@dataclass(frozen=True)
class Config:
    """All parameters of a run. What is left unset is filled in from the presets, so every field reads as it is used.

    Raises KitError, in one line, for a value of the wrong type or outside what the kit knows. Derive a variation with
    :meth:`but`, which fills the presets in anew.
    """

    # which experiment
    scale: str = "miniature"  # miniature: minutes on two cores; paper: the 7B models on a GPU
    base_model: str = "llava"  # family of the base model: llava or idefics2
    base_path: str = ""  # folder or hub name of the base model; "": the one shipped with the kit
    adapter_path: str = ""  # folder of an adapter on it that was trained elsewhere, for method yours
    method: str = "vanilla"  # base, vanilla, oracle, an unlearning method, or yours: base_path as it is
    modality: str = "none"  # what unlearning trains on: multimodal, unimodal; none for models that are not unlearned
    protocol: str = "clean"  # clean: good practice throughout; upstream: as the released code behaves
    variant: str = ""  # of the method: canonical (its own paper) or upstream; "": as the protocol

    # people
    # a data_source brings its own people, and its own forget ids for each ratio
    people: int = 100  # fictitious people who are scored; with profiles_file the first so many of it, 0 for all
    pool: int = 8  # people in the training data only: the source of few-shot examples
    celebrities: int = 40  # people known to the base alone
    forget_ratio: int = 10  # per cent of the people to be forgotten
    forget_draw: int = 0  # which of the disjoint forget sets
    profiles_file: str = ""  # published fine-tuning text (.jsonl) to take people from; "": generated people
    forget_ids_file: str = ""  # published forget ids (.json) that go with it; "": drawn
    data_source: str = ""  # folder in the published layout or its name on the hub (then, after a comma, that of the
    # training splits, to be checked against it); "": generated people, or profiles_file
    data_revision: str = ""  # commit, branch or tag of the hub's data (after a comma the second's); "": the newest

    # randomness; -1: as seed
    seed: int = 0  # stands for all four
    data_seed: int = -1  # people, questions and splits
    train_seed: int = -1  # vanilla and oracle
    unlearn_seed: int = -1  # order and adapter of unlearning
    shot_seed: int = -1  # few-shot examples

    # training; 0, -1.0 and "": as the preset of the scale
    adaptation: str = ""  # fine-tuning trains adapters (lora) or all weights (full)
    replay: float = -1.0  # share of fine-tuning batches that repeats what the base knows
    train_steps: int = 0  # optimizer steps of fine-tuning
    train_lr: float = 0.0  # learning rate of fine-tuning
    unlearn_steps: int = 0  # optimizer steps of unlearning
    unlearn_epochs: int = 0  # or its passes over the forget set
    unlearn_lr: float = 0.0  # learning rate of unlearning
    unlearn_alpha: float = 0.0  # weight of its retain term, for grad_diff and kl_min
    schedule: str = ""  # of both rates: constant, linear, cosine or plateau; "": as the protocol, then the preset
    label_mode: str = ""  # supervised tokens: answer, text (question too), upstream (image slots too); "": as protocol
    eos: str = ""  # whether the end of an answer is taught: yes or no; "": as the protocol
    adapter_reach: str = ""  # where adapters sit: language, or upstream (vision tower too); "": as the protocol

    # evaluation
    shots: int = 5  # worked examples before a multiple-choice or cloze question, 0 to 5
    shot_source: str = ""  # whom they show: pool, retain, upstream (those under evaluation), none; "": as the protocol
    scoring: str = ""  # of multiple choice: both (letter and likelihood) or letter; "": as the protocol
    cyclic: bool = False  # ask every multiple-choice question in all four cyclic orders of its options
    draws_file: str = ""  # random draws of another evaluation (draws.json) to be repeated; "": drawn by shot_seed

    def __post_init__(self):
        for parameter in fields(self):
            object.__setattr__(self, parameter.name, _typed(parameter.name, getattr(self, parameter.name)))
        unset = tuple(name for name, mark in UNSET.items() if getattr(self, name) == mark)
        object.__setattr__(self, "_unset", unset)
        self._check_words()
        self._fill(
            {name: preset.value for name, preset in self.protocol_presets().items() if name not in self._length()}
        )
        self._check()
        self._fill({f"{kind}_seed": self.seed for kind in SEEDS})
        self._fill({"adaptation": next(iter(TRAINING[self.scale])), "replay": REPLAY[self.scale]})
        preset = TRAINING[self.scale].get(self.adaptation)
        if preset is None:
            # A 7B model whose every weight is trained fits no machine this kit is meant for.
            raise KitError(f"adaptation={self.adaptation!r} is not offered at scale {self.scale}: take 'lora'")
        self._fill({"train_steps": preset.steps, "train_lr": preset.lr, "unlearn_lr": self._unlearning_preset.lr})

    # -- making one ---------------------------------------------------------------------------------------------

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any], **fixed: Any) -> Config:
        """A Config of plain values by name. ``fixed`` is what the caller is for (a notebook's method): another value
        for it is refused. Raises KitError for an unknown name, suggesting the nearest known one.
        """
        check_names(parameters)
        for name, value in fixed.items():
            given = parameters.get(name, value)
            if given != value:
                raise KitError(f"{name} is {value!r} here and cannot be {given!r}: take the notebook made for it")
        return cls(**{**parameters, **fixed})

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any], **fixed: Any) -> Config:
        """A Config of the parameters cell, called in the cell after it as ``Config.from_notebook(globals())``.

        papermill injects a passed parameter as one more global and merely warns when the notebook has none of that
        name. So every plain value found among the globals must be a parameter, and of its type. When the cell is run
        again, what the notebook itself has set since is left alone, unless it looks like a parameter misspelt.
        """
        found = plain_values(namespace)
        if isinstance(namespace, dict):
            first = namespace.setdefault("_first_found", set(found))
            found = {k: v for k, v in found.items() if k in first or difflib.get_close_matches(k, NAMES, 1, cutoff=0.8)}
        return cls.from_parameters(found, **fixed)

    def but(self, **changes: Any) -> Config:
        """The same with ``changes``; what was left to the presets is filled in anew."""
        check_names(changes)
        return type(self)(**{**self.given(), **changes})

    # -- reading it ---------------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """Names the run's folder: ``llava-r10-d0-grad_diff-multimodal-s0``.

        A protocol other than clean stands before the method; after it a variant that is not the protocol's, and at the
        end each seed that is not ``seed`` and each word that is not the protocol's (``label_mode_text``).
        """
        other = {name: value for name, (_, value) in self.deviations().items()}
        parts = [self.base_model, f"r{self.forget_ratio}", f"d{self.forget_draw}"]
        parts += [] if self.protocol == "clean" else [self.protocol]
        parts += [self.method, *([self.variant] if "variant" in other else []), self.modality, f"s{self.seed}"]
        for kind in SEEDS:
            seed = getattr(self, f"{kind}_seed")
            parts += [] if seed == self.seed else [f"{kind}{seed}"]
        parts += [f"{name}_{other[name]}" for name in CHOICES if name in other]
        parts += ["cyclic"] if self.cyclic else []
        parts += ["replayed"] if self.draws_file else []
        return "-".join(parts)

    def protocol_presets(self) -> dict[str, Preset]:
        """What ``protocol`` stands for at this scale and for this method, by field, with its source."""
        from mllmu_nb.unlearning import METHODS  # here, for it loads torch

        found = dict(PROTOCOL[self.protocol])
        if self.protocol == "clean" and self.scale == "paper":
            found["shot_source"] = RETAIN_SHOTS
        recipe = self._unlearning_preset
        found["unlearn_steps"] = Preset(recipe.steps, recipe.source)
        found["unlearn_epochs"] = Preset(recipe.epochs, recipe.source)
        found["unlearn_alpha"] = Preset(recipe.alpha, recipe.source)
        found["variant"] = Preset("canonical", "the method's own paper")
        if self.protocol == "upstream":
            found["unlearn_alpha"] = Preset(1.0, UPSTREAM)
            found["unlearn_steps"] = Preset(0, UPSTREAM)
            found["unlearn_epochs"] = UPSTREAM_EPOCHS.get(self.method, UPSTREAM_EPOCHS[""])
            if "upstream" in METHODS.get(self.method, ()):
                found["variant"] = Preset("upstream", UPSTREAM)
        return found

    def sources(self) -> dict[str, str]:
        """Who says so, for every word of the protocol and every value of the recipes (``training.lr``).

        What nobody has published is "unknown, chosen because ..".
        """
        presets, other = self.protocol_presets(), self.deviations()
        words = {name: BY_HAND if name in other else preset.source for name, preset in presets.items()}
        known = OTHER_SOURCES[self.scale]
        found = {**words, "replay": known["replay"] if "replay" in self._unset else BY_HAND}
        for kind, recipe in (("training", self.training), ("unlearning", self.unlearning)):
            found |= {
                f"{kind}.{f.name}": known.get(f.name, recipe.source) for f in fields(recipe) if f.name != "source"
            }
            ruled = {name: word for name, word in WORDS.items() if presets[word].value or word in other}
            found |= {f"{kind}.{name}": words[word] for name, word in ruled.items()}
        return {
            **found,
            **{f"unlearning.{name.removeprefix('unlearn_')}": words[name] for name in (*LENGTHS, "unlearn_alpha")},
        }

    def deviations(self) -> dict[str, tuple[Any, Any]]:
        """Where the run departs from its protocol: field → (the protocol's value, the run's)."""
        found = {name: (preset.value, getattr(self, name)) for name, preset in self.protocol_presets().items()}
        for name in (*LENGTHS, "unlearn_alpha"):
            if not (self.trains and getattr(self, name)):  # nothing is unlearned, or its length is said the other way
                found.pop(name)
        return {name: (wanted, value) for name, (wanted, value) in found.items() if value != wanted}

    @property
    def training(self) -> Recipe:
        """The recipe of vanilla and oracle."""
        preset = TRAINING[self.scale][self.adaptation]
        epochs = 0 if self.train_steps else preset.epochs
        source = self._source("train", preset)
        recipe = replace(preset, lr=self.train_lr, steps=self.train_steps, epochs=epochs, source=source)
        return self._as_protocol(recipe, adapters=self.adaptation == "lora")

    @property
    def unlearning(self) -> Recipe:
        """The recipe of unlearning by ``method``."""
        source = self._source("unlearn", self._unlearning_preset)
        length = {name.removeprefix("unlearn_"): getattr(self, name) for name in LENGTHS}
        numbers = {"lr": self.unlearn_lr, "alpha": self.unlearn_alpha, **length}
        recipe = replace(self._unlearning_preset, **numbers, source=source)
        return self._as_protocol(recipe)

    @property
    def trains(self) -> bool:
        """Whether ``method`` changes weights of the vanilla model."""
        return self.method not in (*MODELS, YOURS) and bool(_method(self.method, self.variant).uses)

    def parameters(self) -> dict[str, Any]:
        """All parameters as plain values, in their order."""
        return asdict(self)

    def given(self) -> dict[str, Any]:
        """All parameters as they were given: what the presets filled in is unset again."""
        return {name: UNSET[name] if name in self._unset else value for name, value in asdict(self).items()}

    def hash_of(self, names: Iterable[str]) -> str:
        """A stable hash of the named fields alone."""
        return stable_hash({name: getattr(self, name) for name in names})

    # -- filling and checking it --------------------------------------------------------------------------------

    def _fill(self, values: Mapping[str, Any]) -> None:
        """Gives the fields that were left unset these values."""
        for name, value in values.items():
            if name in self._unset:
                object.__setattr__(self, name, value)

    @property
    def _weighs_retain(self) -> bool:
        return self.trains and "alpha" in (f.name for f in fields(_method(self.method, self.variant)))

    @property
    def _unlearning_preset(self) -> Recipe:
        recipes = UNLEARNING[self.scale]
        known = (recipes.get(key) for key in ((self.method, self.modality), self.method, ""))
        return next(recipe for recipe in known if recipe)

    def _as_protocol(self, recipe: Recipe, adapters: bool = True) -> Recipe:
        """The recipe with what protocol and fields say of every training."""
        return replace(
            recipe,
            schedule=self.schedule or recipe.schedule,
            label_mode=self.label_mode,
            eos=self.eos == "yes",
            lora_reach=self.adapter_reach if adapters else recipe.lora_reach,
        )

    def _check_words(self) -> None:
        from mllmu_nb.unlearning import METHODS  # here, for it loads torch

        _choose("scale", self.scale, SCALES)
        _choose("base_model", self.base_model, BASE_MODELS)
        _choose("protocol", self.protocol, PROTOCOLS)
        _choose("method", self.method, (*MODELS, YOURS, *METHODS))
        _choose("modality", self.modality, MODALITIES)
        given = {"adaptation": ADAPTATIONS, **CHOICES}
        given[f"variant of {self.method}"] = tuple(METHODS.get(self.method, ("canonical",)))
        for name, choices in given.items():
            if value := getattr(self, name.partition(" ")[0]):
                _choose(name, value, choices)

    def _length(self) -> tuple[str, ...]:
        """The two ways to say how long unlearning is, where one of them is given: then the other one stays 0."""
        given = [name for name in LENGTHS if name not in self._unset]
        if len(given) > 1:
            raise KitError(f"{' and '.join(LENGTHS)} both say how long unlearning is: give one of them")
        return LENGTHS if given else ()

    def _check(self) -> None:
        if self.trains and self.modality == "none":
            raise KitError(f"method {self.method!r} unlearns: modality must be 'multimodal' or 'unimodal', not 'none'")
        if not self.trains and self.modality != "none":
            raise KitError(f"method {self.method!r} unlearns nothing: modality must be 'none', not {self.modality!r}")
        if not 1 <= self.forget_ratio <= 99:
            raise KitError(
                f"forget_ratio must be from 1 to 99 per cent (the paper: 5, 10, 15), not {self.forget_ratio}"
            )
        if self.adapter_path and self.method != YOURS:
            raise KitError(f"adapter_path is asked as method {YOURS!r}, not {self.method!r}, which trains its own")
        if self.forget_ids_file and not self.profiles_file:
            raise KitError("forget_ids_file names people of a profiles_file: give that as well")
        if self.data_source and self.profiles_file:
            raise KitError("people come from data_source or from profiles_file: give one of them")
        if self.data_source and self.forget_draw:
            raise KitError("forget_draw must be 0: a data_source has one forget set a ratio")
        if self.data_revision and not self.data_source:
            raise KitError("data_revision says which data of a data_source to read: give that as well")
        if not self.profiles_file and not self.data_source:
            self._check_people()
        for name in (
            "pool",
            "celebrities",
            "forget_draw",
            "people",
            "seed",
            "train_steps",
            "unlearn_steps",
            "unlearn_epochs",
        ):
            _bounded(name, getattr(self, name), 0, None)
        for kind in SEEDS:
            _bounded(f"{kind}_seed", getattr(self, f"{kind}_seed"), -1, None)
        _bounded("shots", self.shots, 0, 5)
        for name in ("train_lr", "unlearn_lr"):
            _bounded(name, getattr(self, name), 0, 1)
        _bounded("unlearn_alpha", self.unlearn_alpha, 0, None)
        if "unlearn_alpha" not in self._unset and not self._weighs_retain:
            raise KitError(f"unlearn_alpha weighs a retain term, and method {self.method!r} has none")
        if "replay" not in self._unset:
            _bounded("replay", self.replay, 0, 0.9)

    def _check_people(self) -> None:
        forgotten = round(self.people * self.forget_ratio / 100)
        if not 0 < forgotten < self.people:
            side = "forget" if forgotten <= 0 else "keep"
            raise KitError(f"forget_ratio={self.forget_ratio} of people={self.people} leaves nobody to {side}")

    def _source(self, prefix: str, preset: Recipe) -> str:
        changed = [f.name for f in fields(self) if f.name.startswith(f"{prefix}_") and f.name not in self._unset]
        changed = [name for name in changed if not name.endswith("_seed")]
        changed += [name for name in ("schedule", "label_mode", "eos", "adapter_reach") if name in self.deviations()]
        return preset.source + (f"; {', '.join(changed)} {BY_HAND}" if changed else "")


_TYPES = {"int": int, "float": float, "str": str, "bool": bool}
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
NAMES = tuple(f.name for f in fields(Config))


def check_names(names: Iterable[str]) -> None:
    """Raises KitError when one of ``names`` is no parameter, naming the nearest that is."""
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(NAMES)}"
            raise KitError(f"unknown parameter {name!r}: {hint}")


def plain_values(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """What a notebook's cells so far have set to a plain value (text, number, list, None ..), by name.

    Left out are imported modules and objects, names with a leading underscore, what IPython keeps there itself, and
    the sweep's grid, which papermill injects along with the rest of a configuration file.
    """
    plain = (bool, int, float, str, list, tuple, dict, set, type(None))
    ours = [name for name in namespace if not name.startswith("_") and name not in ("In", "Out", GRID)]
    return {name: namespace[name] for name in ours if type(namespace[name]) in plain}


def stable_hash(value: Any) -> str:
    """16 hexadecimal digits that depend on ``value`` (anything JSON can hold) and on nothing else."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _method(name: str, variant: str):
    from mllmu_nb.unlearning import get

    return get(name, variant)


def _typed(name: str, value: Any) -> Any:
    """``value`` if it has the parameter's type; a whole number stands for a number, nothing else is converted."""
    wanted = _TYPES[Config.__dataclass_fields__[name].type]
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is wanted and value == value:  # not NaN
        return value
    shown = f"the text {value!r}" if isinstance(value, str) else repr(value)
    hint = " (in YAML write 1.0e-5: without the point it is text)" if wanted is float and isinstance(value, str) else ""
    hint = " (in YAML put yes and no in quotes)" if wanted is str and isinstance(value, bool) else hint
    raise KitError(f"{name} must be {_WORDS[wanted]}, not {shown}{hint}")


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise KitError(f"unknown {name} {value!r}: {hint}choose one of {', '.join(choices)}")


def _bounded(name: str, value: float, low: float, high: float | None) -> None:
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high:g}"
        raise KitError(f"{name} must be at least {low:g}{upper}, not {value:g}")
