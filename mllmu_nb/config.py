"""The parameters of a run, typed, checked and completed from presets, and its identity (``docs/architecture.md``).

Hyper-parameters of the method and of the step after it (``beta``) are parameters like all others. The presets are in
``presets/*.yaml`` and in the methods' files, each with its source.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from mllmu_nb import after as after_steps
from mllmu_nb import unlearning
from mllmu_nb.errors import KitError, choose, invalid
from mllmu_nb.registry import EXTENSIONS
from mllmu_nb.unlearning.base import REFERENCES, YOURS, Method, Recipe, typed

PRESETS = Path(__file__).parent / "presets"
SEEDS = ("data_seed", "train_seed", "unlearn_seed", "shot_seed")
PATHS = ("base_path", "vanilla_path", "adapter_path", "profiles_file", "forget_ids_file", "data_source", "draws_file")
ON_HUB = ("base_path", "vanilla_path", "data_source")  # the paths that may be a name on the hub instead
GRID = "grid"  # the sweep's key in a configuration file; a notebook that is given the file ignores it
BY_HAND, IN_FILE = "set by hand", "the method's file"  # the source of a value that is in no preset
# These change results, as the settings of the protocol do; a value other than the preset's is a deviation, too.
BESIDE_PROTOCOL: tuple[str, ...] = ("adaptation", "replay", "exams", "train_steps", "train_lr", "unlearn_steps")
BESIDE_PROTOCOL += ("unlearn_epochs", "unlearn_lr", "schedule", "precision", "eval_precision", "micro_batch")
BESIDE_PROTOCOL += ("train_batch_size", "unlearn_batch_size", "quantise_base", "shots", "cyclic")
# Fields of a recipe that the protocol decides, not a preset.
WAYS = ("label_mode", "eos", "adapter_reach", "adam", "adam_eps")
LENGTHS = {"steps", "epochs"}  # of a recipe: one gives its length, and the other is 0
# Parameters that were added later and that presets fill in: with this value they are not part of a run's identity.
NEUTRAL = {"train_modality": "both", "adam": "torch", "adam_eps": 1e-8, "long_prompts": "refuse"}

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=0, le=10**9)]  # more would take ages
People = Annotated[int, Field(ge=0, le=20_000)]
Rate = Annotated[float, Field(gt=0, le=1)]


class Config(BaseModel):
    """All parameters of a run. Those that are None are filled in from seed, protocol and presets. Raises KitError, in
    one line, for an unknown name, a value of the wrong type or out of bounds, and values that do not go together."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # which experiment
    scale: Literal["miniature", "paper"] = "miniature"  # minutes on two cores, or the 7B models on a GPU
    base_model: str = "llava"  # family of the base model
    base_path: str = ""  # folder or hub name of the base model; "": the one shipped with the kit
    base_revision: str = ""  # commit, branch or tag of a base model from the hub; "": the newest
    vanilla_path: str = ""  # folder or hub name of a vanilla model that was made elsewhere; "": fine-tuned here
    vanilla_revision: str = ""  # commit, branch or tag of it on the hub; "": the newest
    adapter_path: str = ""  # folder of an adapter on it that was trained elsewhere, for method yours
    method: str = "vanilla"  # base, vanilla, oracle, an unlearning method, or yours: base_path as it is
    modality: Literal["multimodal", "unimodal", "none"] = "none"  # what unlearning trains on
    protocol: Literal["clean", "upstream"] = "clean"  # good practice throughout, or as the released code behaves
    variant: str | None = None  # of the method: canonical (its own paper) or upstream; None: as the protocol
    after: str = ""  # a step after unlearning, by name

    # people; a data_source brings its own people, and its own forget ids for each ratio
    people: People = 100  # fictitious people who are scored; with profiles_file the first N of it, 0: all
    pool: People = 8  # people in the training data only: the source of few-shot examples
    celebrities: People = 40  # people whom the base knows already
    forget_ratio: Annotated[int, Field(ge=1, le=99)] = 10  # per cent of the people to be forgotten
    replicate: Count = 0  # which of the disjoint forget sets (one if ids are given), with its own seeds
    profiles_file: str = ""  # published fine-tuning text (.jsonl) to take people from
    forget_ids_file: str = ""  # published forget ids (.json) that go with it; "": drawn
    data_source: str = ""  # published data, folder or hub name; optionally after a comma: that of the training splits
    data_revision: str = ""  # commit, branch or tag of the hub's data; optionally after a comma: of the training splits

    # randomness
    seed: Seed = 0  # sets the four below; replicate r adds r to the last three
    data_seed: Seed | None = None  # people, questions and splits
    train_seed: Seed | None = None  # vanilla and oracle
    unlearn_seed: Seed | None = None  # order and adapter of unlearning
    shot_seed: Seed | None = None  # few-shot examples

    # training
    adaptation: Literal["lora", "full"] | None = None  # fine-tuning trains adapters or all weights
    replay: Annotated[float, Field(ge=0, le=0.9)] | None = None  # share of fine-tuning that repeats what the base knows
    exams: Annotated[float, Field(ge=0, le=1)] | None = None  # share of fine-tuning asked in the forms of evaluation
    train_modality: Literal["both", "multimodal"] | None = None  # what vanilla, oracle and retain_epoch are taught
    train_steps: Count | None = None  # optimizer steps of fine-tuning
    train_lr: Rate | None = None  # learning rate of fine-tuning
    train_batch_size: Count = 0  # conversations in a step of fine-tuning; 0: as the preset
    unlearn_steps: Count | None = None  # optimizer steps of unlearning
    unlearn_epochs: Annotated[float, Field(ge=0, le=10**6)] | None = None  # or its passes over the forget set
    unlearn_lr: Rate | None = None  # learning rate of unlearning
    unlearn_batch_size: Count = 0  # conversations in a step of unlearning, of each set; 0: as the preset
    schedule: Literal["constant", "linear", "cosine", "plateau"] | None = None  # of both learning rates
    label_mode: Literal["answer", "text", "upstream"] | None = None  # supervised tokens
    eos: bool | None = None  # whether the end of an answer is taught
    adapter_reach: Literal["language", "upstream", "upstream_v5"] | None = None  # where adapters sit
    adam: Literal["torch", "transformers"] | None = None  # whose AdamW; that of transformers 4.45 adds epsilon earlier
    adam_eps: Rate | None = None  # AdamW's epsilon
    precision: Literal["fp32", "bf16"] | None = None  # of training: frozen weights and matrix products
    micro_batch: Count = 0  # conversations of a batch read at once; their gradients add up; 0: all (see departures)
    checkpointing: bool = False  # activations are computed again instead of kept: less memory, more time
    quantise_base: Literal["nf4"] | None = None  # frozen layers in 4 bits while adapters train, on a GPU; None: not

    # evaluation
    shots: Annotated[int, Field(ge=0, le=5)] = 5  # worked examples before a multiple-choice or cloze question
    shot_source: Literal["pool", "retain", "upstream", "none"] | None = None  # the people in the worked examples
    scoring: Literal["both", "letter"] | None = None  # of multiple choice: letter and likelihood, or letter
    long_prompts: Literal["refuse", "fewer_shots", "ask"] | None = None  # if shots and question exceed the context
    eval_precision: Literal["fp32", "bf16", "fp16"] | None = None  # of a large model's weights in evaluation
    eval_batch: Count = 0  # questions asked at once: changes memory and time; 0: 256, at paper scale 8
    cyclic: bool = False  # ask every multiple-choice question in all four cyclic orders of its options
    draws_file: str = ""  # random draws of another evaluation (draws.json) to be repeated; "": drawn with shot_seed

    settings: dict[str, Any] = {}  # hyper-parameters of the method and of the step after it, by name

    _given = PrivateAttr()  # the values that were given, before completion

    def __init__(self, **values: Any):
        check_names(values, type(self).model_fields)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise invalid(error) from None
        self._given = self.parameters()
        self._complete()
        self._check()
        self._set(**{name: os.path.expanduser(getattr(self, name)) for name in PATHS})

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any], **fixed: Any) -> Config:
        """Make a Config from plain values by name, including hyper-parameters. ``fixed`` are values that the caller
        needs (a notebook's method); raises KitError if ``parameters`` has other values for them."""
        for name, value in fixed.items():
            given = parameters.get(name, value)
            if given != value:
                raise KitError(f"{name} is {value!r} here and cannot be {given!r}: use the notebook for that value")
        values = {**parameters, **fixed}
        settings = values.pop("settings", {})
        if not isinstance(settings, Mapping):
            raise KitError(f"settings must be a table of names and values, not {settings!r:.60}")
        settings = dict(settings) | {name: values.pop(name) for name in list(values) if name not in cls.model_fields}
        check_names(settings, setting_names(values.get("method", "vanilla"), values.get("after", "")))
        return cls(**values, settings={name: value for name, value in settings.items() if value is not None})

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any], **fixed: Any) -> Config:
        """Make a Config from the parameters cell. Call it in the next cell as ``Config.from_notebook(globals())``.

        papermill injects an unknown parameter as one more global, so every plain value there (text, number, list, None
        ..) must be a parameter, except IPython's own and the sweep's grid. If the cell is run again, names that the
        notebook has set since then are ignored, unless they look like a misspelt parameter.
        """
        plain, again = (bool, int, float, str, list, tuple, dict, set, type(None)), "_first_parameters" in namespace
        ours = [name for name in namespace if not name.startswith("_") and name not in ("In", "Out", GRID)]
        values = {name: namespace[name] for name in ours if type(namespace[name]) in plain}
        first = namespace.setdefault("_first_parameters", set(values))
        near = {name for name in values if difflib.get_close_matches(name, cls.model_fields, 1, cutoff=0.8)}
        try:
            return cls.from_parameters({name: values[name] for name in values if name in first | near}, **fixed)
        except KitError as error:
            if again and str(error).startswith("unknown parameter"):  # perhaps corrected in its cell by now
                raise KitError(f"{error} (Python still knows it: restart the kernel, or `del` the name)") from None
            raise

    def but(self, **changes: Any) -> Config:
        """A copy with ``changes``. Values that were left to the presets are filled in again, and settings that the new
        method does not have are dropped."""
        values = {**self._given, **changes}
        method, variant = values["method"], variant_of(values["method"], values["variant"], values["protocol"])
        known = setting_names(method, values["after"], variant if method != self.method else None)
        settings = {name: value for name, value in self._given["settings"].items() if name in known}
        return type(self).from_parameters({**self._given, "settings": settings, **changes})

    @property
    def run_id(self) -> str:
        """The name of the run's folder, such as ``ga-multimodal-1f0c9a3b``."""
        words = [self.method, self.modality, *([self.after] if self.after else [])]
        return "-".join([*words, stable_hash(self.identity())[:8]])

    def identity(self) -> dict[str, Any]:
        """The resolved parameters that differ from their default, or from their value in :data:`NEUTRAL`. So a
        parameter that is added later renames no run. Only the last part of a path counts, since the stages hash the
        files."""
        usual = {name: NEUTRAL.get(name, field.default) for name, field in type(self).model_fields.items()}
        values = public(self.parameters()) | {"seed": usual["seed"]}  # the four others count instead
        neutral = setting_names(self.method, self.after, self.variant)
        values["settings"] = {name: value for name, value in self.settings.items() if value != neutral.get(name)}
        return {name: value for name, value in values.items() if value != usual[name]}

    @property
    def trains(self) -> bool:
        """Whether ``method`` changes weights of the vanilla model."""
        return bool(unlearning.variants(self.method)) and bool(self._method_class.streams)

    @property
    def objective(self) -> Method:
        """The unlearning method with its hyper-parameters."""
        own = self._method_class.hyper_parameters()
        return self._method_class(**{name: value for name, value in self.settings.items() if name in own})

    @property
    def system(self) -> str:
        """The system prompt before every question; most methods have none."""
        return self._method_class.system if unlearning.variants(self.method) else ""

    @property
    def training(self) -> Recipe:
        """The recipe of vanilla and oracle."""
        return Recipe(**{name: value for name, (value, _) in self.numbers("training").items()})

    @property
    def unlearning(self) -> Recipe:
        """The recipe of unlearning by ``method``."""
        return Recipe(**{name: value for name, (value, _) in self.numbers("unlearning").items()})

    def numbers(self, kind: Literal["training", "unlearning"]) -> dict[str, tuple[Any, str]]:
        """Name → value and source, for a recipe. The sources are the preset of the scale, the method, the protocol, and
        values set by hand. A later source overrides an earlier one, except that :data:`WAYS` in a method's file
        override the protocol. A method's numbers are those of the protocol's variant: another variant changes only the
        loss, not the rate or the length, unless its class gives a rate of its own."""
        presets, given, declared, prefix = _presets(self.scale), self._given, Recipe(), "train_"
        general = presets["training"][self.adaptation] if kind == "training" else presets["unlearning"]
        said = presets["sources"] | presets["sources"].get(kind, {})
        values = Recipe(**general).numbers().items()
        numbers = {name: (value, said.get(name, general["source"])) for name, value in values}
        if kind == "unlearning":
            usual, declared, prefix = self._own_recipe, self._method_class.recipe(self.scale, self.modality), "unlearn_"
            stated = dict(usual.numbers().items() - Recipe().numbers().items())
            if LENGTHS & stated.keys():  # one way to give the length replaces the other
                stated = dict.fromkeys(LENGTHS, 0) | stated
            # a variant without a rate of its own has the numbers of the protocol's, which were not chosen for it
            other = not self._has_own_rate and self.variant != variant_of(self.method, None, self.protocol)
            source = (usual.source or IN_FILE) + f" (of another variant than {self.variant})" * other
            numbers |= {name: (value, source) for name, value in stated.items()}
        for name, (value, source) in self.words().items():
            if name in numbers:
                numbers[name] = (numbers[name][0] if value is None else value, source)
        for name in WAYS:
            own = getattr(declared, name)
            if given[name] is None and own not in (None, numbers[name][0]):
                numbers[name] = (own, IN_FILE)
        by_hand = {name: getattr(self, name) for name in ("schedule", "precision", "micro_batch", "checkpointing")}
        by_hand["batch_size"] = getattr(self, f"{prefix}batch_size")
        for name, value in by_hand.items():
            if value and value != numbers[name][0]:
                numbers[name] = (value, BY_HAND)
        if numbers["micro_batch"][0] >= numbers["batch_size"][0]:
            numbers["micro_batch"] = (0, numbers["micro_batch"][1])
        own = {name: getattr(self, prefix + name, 0) for name in ("lr", *LENGTHS)}
        for names in ({"lr"}, LENGTHS):
            source = BY_HAND if any(given.get(prefix + name) is not None for name in names) else None
            if any(own[name] for name in names):
                numbers |= {name: (own[name], source or numbers[name][1]) for name in names}
        return numbers

    def words(self) -> dict[str, tuple[Any, str]]:
        """Parameter → its value and its source, for all parameters that the value of ``protocol`` decides."""
        words, usual = _presets("protocols")[self.protocol], self._usual_words()
        sources = {name: words[name]["source"] if getattr(self, name) == usual[name] else BY_HAND for name in words}
        return {name: (getattr(self, name), sources[name]) for name in words}

    def parameters(self) -> dict[str, Any]:
        """All parameters as plain values, resolved, in their order."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def given(self) -> dict[str, Any]:
        """The parameters that were given and are not their defaults, flat, as papermill takes them."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        values = {name: value for name, value in self._given.items() if name != "settings" and value != defaults[name]}
        return {**values, **self._given["settings"]}

    def deviations(self) -> dict[str, tuple[Any, Any]]:
        """The deviations of the run from its protocol: parameter → (the protocol's value, the run's)."""
        names = [*_presets("protocols")[self.protocol], *BESIDE_PROTOCOL]
        plain = self.but(**{name: type(self).model_fields[name].default for name in names}, settings={})
        pairs = {name: (getattr(plain, name), getattr(self, name)) for name in names}
        pairs |= {name: (plain.settings.get(name), self.settings[name]) for name in self._given["settings"]}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def hash_of(self, names: Iterable[str]) -> str:
        """A stable hash of the named parameters alone."""
        return stable_hash({name: getattr(self, name) for name in names})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.parameters() == other.parameters()

    def __hash__(self) -> int:
        return hash(stable_hash(self.parameters()))

    @property
    def _recipes(self) -> list[Recipe]:
        """The recipes of the trainings on the way to the model."""
        return [self.training, *([self.unlearning] if self.trains else [])]

    @property
    def _method_class(self) -> type[Method]:
        return unlearning.variants(self.method)[self.variant]

    def _usual_words(self) -> dict[str, Any]:
        """Parameter → the protocol's value for this family and scale."""
        protocol = _presets("protocols")[self.protocol].items()
        words = {name: word.get(self.base_model, word.get(self.scale, word["value"])) for name, word in protocol}
        return {**words, "variant": variant_of(self.method, None, self.protocol)}

    @property
    def _has_own_rate(self) -> bool:
        """Whether the variant's own class gives its rates under ``clean``, and not a class that it inherits from."""
        recipes = vars(self._method_class).get("recipes", {})
        return self.protocol == "clean" and any(recipe.lr for recipe in recipes.values())

    @property
    def _own_recipe(self) -> Recipe:
        """The recipe of the method's file, for the protocol's variant; the scale's preset has the other numbers."""
        usual = variant_of(self.method, None, self.protocol)
        usual_class = unlearning.variants(self.method).get(usual, self._method_class)
        own = (self._method_class if self._has_own_rate else usual_class).recipe(self.scale, self.modality)
        if self.protocol == "upstream" and usual != "upstream":
            own = Recipe(epochs=1, lr=own.lr, source=own.source)  # the released code has no such method: one pass
        return own

    def _fill(self, **values: Any) -> None:
        """Set the fields that are still None to these values."""
        self._set(**{name: value for name, value in values.items() if getattr(self, name) is None})

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _complete(self) -> None:
        setting_names(self.method, self.after)  # raises KitError for an unknown method or step
        if self.variant is not None:
            variants, hint = unlearning.variants(self.method), " (in a sweep, put the variant of others under grid)"
            choose(f"variant of {self.method}", self.variant, variants or ("canonical",), "" if variants else hint)
        # a vanilla model depends on its replicate's seed alone, so all ratios and forget sets of a replicate share it
        if self.data_source:  # its people are the same with every seed
            self._set(data_seed=0)
        self._fill(data_seed=self.seed, **dict.fromkeys(SEEDS[1:], (self.seed + self.replicate) % 2**32))
        self._fill(**self._usual_words())
        presets = _presets(self.scale)
        self._fill(**{name: presets[name] for name in ("adaptation", "replay", "exams")})
        if self.adaptation not in presets["training"]:
            # Training all weights of a 7B model fits no machine that this kit is meant for.
            raise KitError(f"adaptation={self.adaptation!r} is not available at scale {self.scale}: use 'lora'")
        training = presets["training"][self.adaptation]
        if self.train_steps == 0 and not training["epochs"]:
            raise KitError(f"train_steps must be above 0: fine-tuning at scale {self.scale} has no epochs in its place")
        self._fill(train_lr=training["lr"], train_steps=training["steps"])
        defaults = setting_names(self.method, self.after, self.variant)
        settings = dict(self.settings)
        if self.trains:
            preset, own = self.unlearning, self._own_recipe.settings
            if self.unlearn_steps is None and self.unlearn_epochs is None:
                self._fill(unlearn_steps=preset.steps, unlearn_epochs=float(preset.epochs))
            self._fill(unlearn_steps=0, unlearn_epochs=0.0, unlearn_lr=preset.lr)
            settings = {name: value for name, value in own.items() if name in defaults} | settings
        else:  # these have no effect
            self._set(unlearn_steps=None, unlearn_epochs=None, unlearn_lr=None, unlearn_batch_size=0)
        self._leave_to_presets()
        owners = dict.fromkeys(after_steps.settings_of(self.after), self.after)
        for name, value in settings.items():
            choose(f"hyper-parameter of {self.method} ({self.variant})", name, defaults)
            settings[name] = typed(owners.get(name, self.method), name, value, defaults[name])
        self._set(settings={**defaults, **settings})

    def _leave_to_presets(self) -> None:
        """Drop values that say what the presets say, so that they make no other run."""
        if self.micro_batch and self.micro_batch >= max(recipe.batch_size for recipe in self._recipes):
            self._set(micro_batch=0)
        words = self._usual_words()
        for name in ("schedule", "precision", "train_batch_size", "unlearn_batch_size"):
            given, usual = getattr(self, name), words.get(name, type(self).model_fields[name].default)
            if given != usual:
                recipes = self._recipes
                self._set(**{name: usual})
                if self._recipes != recipes:
                    self._set(**{name: given})

    def _check(self) -> None:
        if self.trains and self.modality == "none":
            raise KitError(f"method {self.method!r} unlearns: modality must be 'multimodal' or 'unimodal', not 'none'")
        if not self.trains and self.modality != "none":
            raise KitError(f"method {self.method!r} unlearns nothing: modality must be 'none', not {self.modality!r}")
        if self.trains:
            _ = self.objective  # raises KitError for a hyper-parameter that the method does not take
        if self.quantise_base and self.scale == "miniature":
            raise KitError("quantise_base is for the frozen layers of a large model: leave it out at scale 'miniature'")
        if self.eval_precision and self.scale == "miniature":
            raise KitError("eval_precision is for a large model's weights: leave it out at scale 'miniature'")
        if self.quantise_base and any(recipe.precision == "fp32" for recipe in self._recipes):
            raise KitError("quantise_base computes in half precision: set precision to bf16 as well")
        # the small change of an adapter is lost when merged weights are rounded to 4 bits again
        merging = self.quantise_base and self.trains
        if merging and (other := self._method_class.other_reference):
            raise KitError(f"quantise_base would round the adapter of {other} away: leave it out")
        if merging and not self.vanilla_path:
            raise KitError("quantise_base would round vanilla's adapter away: give a vanilla_path with whole weights")
        if self.replay and self.scale == "paper":
            raise KitError("replay repeats what the small base models know: leave it out at scale 'paper'")
        if self.unlearn_steps and self.unlearn_epochs:
            raise KitError("unlearn_steps and unlearn_epochs both say how long unlearning is: give one of them")
        if self.trains and not (self.unlearn_steps or self.unlearn_epochs):
            raise KitError("unlearn_steps or unlearn_epochs must be above 0: 0 of both trains nothing")
        for name, needed, only in (
            ("adapter_path", self.method == YOURS, f"is asked as method {YOURS!r}, not {self.method!r}"),
            ("forget_ids_file", self.profiles_file, "names people of a profiles_file: give that as well"),
            ("data_source", not self.profiles_file, "and profiles_file both bring people: give one of them"),
            ("vanilla_revision", self.vanilla_path, "says which weights of a vanilla_path to load: give that as well"),
            ("data_revision", self.data_source, "says which data of a data_source to read: give that as well"),
        ):
            if getattr(self, name) and not needed:
                raise KitError(f"{name} {only}")
        given = self.given() if self.data_source else {}
        for name in ("people", "pool", "celebrities", "data_seed"):
            if name in given and (name, given[name]) != ("data_seed", 0):  # 0: as every such run's record has it
                raise KitError(
                    f"{name} is for people that are made here, and a data_source brings its own: leave it out"
                )
        for name in PATHS:
            if "\0" in getattr(self, name) or getattr(self, name).isspace():
                raise KitError(f"{name} must be a path or empty, not {getattr(self, name)!r}")
        if not self.profiles_file and not self.data_source:
            forgotten = round(self.people * self.forget_ratio / 100)
            if not 0 < forgotten < self.people:
                side = "forget" if forgotten <= 0 else "keep"
                raise KitError(f"forget_ratio={self.forget_ratio} of people={self.people} leaves nobody to {side}")


def variant_of(method: str, named: str | None, protocol: str | None) -> str:
    """The variant of a method: ``named`` if it exists, else the one with the protocol's name, else canonical."""
    return next((one for one in (named, protocol) if one in unlearning.variants(method)), "canonical")


def setting_names(method: str, after: str, variant: str | None = None) -> dict[str, Any]:
    """Name → default of the hyper-parameters of a method (of all its variants, or one) and of a step after it. Raises
    KitError for an unknown method or step."""
    if isinstance(method, str):  # another type is refused elsewhere
        hint = f", or name the module of your own in {EXTENSIONS}"
        choose("method", method, (*REFERENCES, YOURS, *unlearning.names()), hint)
    if after and isinstance(after, str):
        choose("after", after, after_steps.STEPS)
    classes = unlearning.variants(method)
    chosen = [classes[variant]] if variant in classes else classes.values()
    settings = {name: default for one in chosen for name, default in one.hyper_parameters().items()}
    further = after_steps.settings_of(after)
    if both := settings.keys() & further.keys():
        raise KitError(f"{method} and the step {after} both have a parameter {min(both)!r}: rename the step's")
    return settings | further


def check_names(names: Iterable[str], known: Iterable[str] = ()) -> None:
    """Raise KitError, with the nearest known name, if one of ``names`` is neither a parameter nor in ``known``."""
    for name in names:
        choose("parameter", name, [*Config.model_fields, *known])


def public(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """``parameters`` with every path reduced to its last part; names on the hub stay whole."""

    def shown(name: str, part: str) -> str:
        named_so = name in ON_HUB and re.fullmatch(r"\w[\w.-]*/[\w.-]+", part)
        whole = not part or named_so and not os.path.isdir(part)
        return part if whole else os.path.basename(os.path.abspath(part))  # "." has a name, too

    given = {name: parameters[name].split(",") for name in PATHS if parameters.get(name)}
    reduced = {name: ",".join(shown(name, part.strip()) for part in parts) for name, parts in given.items()}
    return {**parameters, **reduced}


def stable_hash(value: Any) -> str:
    """16 hexadecimal digits that depend on ``value`` (anything JSON can hold) and on nothing else."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _presets(name: str) -> dict[str, Any]:
    return yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))


def departures() -> list[str]:
    """What a run of ``protocol: upstream`` does differently from the released code, in addition to its deviations."""
    return _presets("protocols")["departures"]


def sources(config: Config) -> dict[str, str]:
    """The source of every number of both recipes (``training.lr``), every hyper-parameter and every setting of the
    protocol. A value that nobody has published has the source "unknown, chosen because .."."""
    given, known = config._given, _presets(config.scale)["sources"]
    said = {name: source for name, (_, source) in config.words().items()}
    said |= {name: known[name] if given[name] is None else BY_HAND for name in ("replay", "exams")}
    kinds: list[Literal["training", "unlearning"]] = ["training", "unlearning"] if config.trains else ["training"]
    for kind in kinds:
        said |= {f"{kind}.{name}": source for name, (_, source) in config.numbers(kind).items()}
    own = config._own_recipe if config.trains else Recipe()
    for name in config.settings:
        source = (name in own.settings and own.source) or IN_FILE
        said[f"unlearning.{name}"] = BY_HAND if name in given["settings"] else source
    return said
