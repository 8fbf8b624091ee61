"""Parameters: what is refused and with which message, what presets fill in, and how runs are named."""

import ast
import itertools
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from mllmu_nb import after as after_steps
from mllmu_nb import config as module
from mllmu_nb import paths, unlearning
from mllmu_nb.config import BY_HAND, Config, public, sources
from mllmu_nb.errors import MOST_LISTED, KitError
from mllmu_nb.registry import Registry
from mllmu_nb.unlearning import Recipe
from mllmu_nb.unlearning.base import RULE

CONFIGS = sorted((paths.checkout() / "configs").glob("*.yaml"))
YAML_HINT = "(in YAML write 1.0e-5 or 1.0e+5: without the point or the sign it is text)"
SCALES, PROTOCOLS = ("miniature", "paper"), ("clean", "upstream")
NPO = {"method": "npo", "modality": "multimodal"}


def config_of(**parameters):
    return Config.from_parameters(parameters)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"forgetratio": 10}, "unknown parameter 'forgetratio': did you mean 'forget_ratio'?"),
        ({"seed": "1"}, "seed must be a whole number, not the text '1'"),
        ({"seed": True}, "seed must be a whole number, not True"),
        ({"seed": 2**32}, "seed must be below 4294967296, not 4294967296"),
        ({"train_steps": 0}, "train_steps must be above 0: fine-tuning at scale miniature has no epochs in its place"),
        ({"people": None}, "people must be a whole number, not None"),
        ({"data_revision": 1.0}, "data_revision must be text, not 1.0 (in YAML put it in quotes)"),
        ({"base_revision": 4210789}, "base_revision must be text, not 4210789 (in YAML put it in quotes)"),
        ({"train_lr": "1e-5"}, f"train_lr must be a number, not the text '1e-5' {YAML_HINT}"),
        ({"train_lr": float("nan")}, "train_lr must be a finite number, not nan"),
        ({"unlearn_lr": 0.0}, "unlearn_lr must be above 0, not 0.0"),
        ({"scale": "Paper"}, "unknown scale 'Paper': choose 'miniature' or 'paper'"),
        ({"modality": "both"}, "unknown modality 'both': choose 'multimodal', 'unimodal' or 'none'"),
        (
            {"method": "ga", "modality": "none"},
            "method 'ga' unlearns: modality must be 'multimodal' or 'unimodal', not 'none'",
        ),
        (
            {"method": "oracle", "modality": "unimodal"},
            "method 'oracle' unlearns nothing: modality must be 'none', not 'unimodal'",
        ),
        ({"forget_ratio": 0}, "forget_ratio must be at least 1, not 0"),
        ({"forget_ratio": 100}, "forget_ratio must be at most 99, not 100"),
        ({"forget_ratio": 5, "people": 8}, "forget_ratio=5 of people=8 leaves nobody to forget"),
        ({"forget_ratio": 95, "people": 8}, "forget_ratio=95 of people=8 leaves nobody to keep"),
        ({"shots": 6}, "shots must be at most 5, not 6"),
        ({"replay": 1.5}, "replay must be at most 0.9, not 1.5"),
        ({"scale": "paper", "adaptation": "full"}, "adaptation='full' is not available at scale paper: use 'lora'"),
        ({"forget_ids_file": "x.json"}, "forget_ids_file names people of a profiles_file: give that as well"),
        ({"eos": "no"}, "eos must be True or False, not the text 'no'"),
        ({"method": False}, "method must be text, not False (in YAML put yes and no in quotes)"),
        (
            {"variant": "upstream"},
            "unknown variant of vanilla 'upstream': choose one of canonical "
            "(in a sweep, put the variant of others under grid)",
        ),
        ({"data_revision": "4f2a"}, "data_revision says which data of a data_source to read: give that as well"),
        (
            {"data_source": "here", "profiles_file": "x.jsonl"},
            "data_source and profiles_file both bring people: give one of them",
        ),
        (
            {"data_source": "here", "people": 20},
            "people is for people that are made here, and a data_source brings its own: leave it out",
        ),
        (
            {"data_source": "here", "data_seed": 7},
            "data_seed is for people that are made here, and a data_source brings its own: leave it out",
        ),
        (
            {"scale": "paper", "replay": 0.4},
            "replay repeats what the small base models know: leave it out at scale 'paper'",
        ),
        (
            {"scale": "paper", "precision": "fp32", "quantise_base": "nf4"},
            "quantise_base computes in half precision: set precision to bf16 as well",
        ),
        (
            {**NPO, "scale": "paper", "quantise_base": "nf4"},
            "quantise_base would round vanilla's adapter away: give a vanilla_path with whole weights",
        ),
        (
            {**NPO, "scale": "paper", "variant": "upstream", "vanilla_path": "whole", "quantise_base": "nf4"},
            "quantise_base would round the adapter of retain_epoch away: leave it out",
        ),
        (
            {"eval_precision": "fp16"},
            "eval_precision is for a large model's weights: leave it out at scale 'miniature'",
        ),
        ({"adapter_path": "x"}, "adapter_path is asked as method 'yours', not 'vanilla'"),
        (
            {"method": "yours", "modality": "unimodal"},
            "method 'yours' unlearns nothing: modality must be 'none', not 'unimodal'",
        ),
        ({"settings": 3}, "settings must be a table of names and values, not 3"),
        ({**NPO, "bata": 2.5}, "unknown parameter 'bata': did you mean 'beta'?"),
        ({**NPO, "beta": "2.5"}, f"beta of npo must be a number, not the text '2.5' {YAML_HINT}"),
        ({**NPO, "beta": True}, "beta of npo must be a number, not True"),
        ({**NPO, "beta": float("inf")}, "beta of npo must be a finite number, not inf"),
        (
            {**NPO, "method": "grad_diff", "variant": "upstream", "alpha": 2.0},
            "unknown hyper-parameter of grad_diff (upstream) 'alpha': there is none",
        ),
    ],
)
def test_bad_parameters_are_named_in_one_line(parameters, message):
    with pytest.raises(KitError) as error:
        Config.from_parameters(parameters)
    assert str(error.value) == message


def test_an_unknown_step_after_unlearning_is_named(monkeypatch):
    monkeypatch.setattr(after_steps, "STEPS", Registry("step after unlearning"))
    with pytest.raises(KitError, match="^unknown after 'int3': there is none$"):
        Config(after="int3")


def test_a_step_does_not_share_a_parameter_with_the_method(monkeypatch):
    monkeypatch.setattr(after_steps, "STEPS", Registry("step after unlearning"))

    @after_steps.after("sharpened")
    def sharpened(model, config, beta: float = 3.0):
        return model

    assert Config(method="ga", modality="unimodal", after="sharpened").settings == {"beta": 3.0}
    with pytest.raises(KitError, match="npo and the step sharpened both have a parameter 'beta': rename the step's"):
        Config(**NPO, after="sharpened")


def test_an_unknown_method_names_the_known_ones():
    with pytest.raises(KitError) as error:
        Config(method="xyz")
    message = str(error.value)
    assert message.startswith("unknown method 'xyz': choose one of base, vanilla, oracle, ")
    assert all(name in message for name in ("ga", "kl_min", "npo", "prompting")) and "\n" not in message
    assert message.endswith(", or name the module of your own in MLLMU_NB_EXTENSIONS")
    with pytest.raises(KitError, match="unknown method 'grad_dif': did you mean 'grad_diff'"):
        Config(method="grad_dif")
    with pytest.raises(KitError, match="unknown parameter 'alpha': choose one of "):
        config_of(**{**NPO, "method": "ga"}, alpha=2.0)


def test_a_whole_number_stands_for_a_number_and_nothing_else_is_converted():
    assert type(Config(replay=0).replay) is float
    assert (
        config_of(**NPO, beta=3) == config_of(**NPO, beta=3.0)
        and type(config_of(**NPO, beta=3).settings["beta"]) is float
    )


def test_every_field_has_a_meaning():
    source = Path(module.__file__).read_text(encoding="utf-8").split("\n")
    [cls] = [n for n in ast.parse("\n".join(source)).body if isinstance(n, ast.ClassDef) and n.name == "Config"]
    lines = {node.target.id: source[node.end_lineno - 1] for node in cls.body if isinstance(node, ast.AnnAssign)}
    assert set(lines) == set(Config.model_fields)
    for name, line in lines.items():
        assert len(line.partition("  # ")[2]) > 5, f"{name} does not say what it means"


# -- what presets and protocols fill in -------------------------------------------------------------------------


def test_seed_fills_the_four_seeds_that_are_not_given():
    config = Config(seed=3, shot_seed=7)
    assert (config.data_seed, config.train_seed, config.unlearn_seed, config.shot_seed) == (3, 3, 3, 7)
    assert config.but(seed=5).train_seed == 5 and config.but(seed=5).shot_seed == 7


def test_presets_are_filled_in_anew_by_but():
    small, large = Config(), Config().but(scale="paper")
    assert large.training.lr == 2e-5 and large.training.batch_size == 4 and large.training.epochs == 5
    assert large.adaptation == "lora" and large.replay == 0.0
    assert small.training.lr != large.training.lr and small.but() == small
    assert config_of(**NPO, beta=None, unlearn_lr=None, data_seed=None) == Config(**NPO)


@pytest.mark.parametrize("method, epochs", [("ga", 1), ("grad_diff", 1), ("npo", 2), ("kl_min", 3)])
def test_unlearning_at_paper_scale_is_upstreams(method, epochs):
    config = Config(scale="paper", method=method, modality="multimodal")
    recipe = config.unlearning
    assert (recipe.lr, recipe.batch_size, recipe.epochs, recipe.schedule) == (2e-5, 4, epochs, "linear")
    assert sources(config)["unlearning.epochs"].startswith("MLLMU-Bench")


def test_one_word_sets_what_a_protocol_is_made_of():
    """These are the words and numbers of the released code, from what is known of it."""
    clean = Config(**NPO)
    words = ("variant", "label_mode", "eos", "adapter_reach", "shot_source", "scoring", "schedule")
    words += ("train_modality", "adam", "adam_eps", "long_prompts", "precision", "eval_precision")
    good = ["canonical", "answer", True, "language", "pool", "both", None, "both", "torch", 1e-8, "refuse", None, None]
    assert [getattr(clean, w) for w in words] == good
    assert clean.unlearn_steps > 0 and clean.unlearn_epochs == 0
    upstream = clean.but(protocol="upstream")
    released = ["upstream", "text", False, "upstream", "upstream", "letter", "linear", "multimodal"]
    released += ["transformers", 1e-6, "ask"]
    assert [getattr(upstream, w) for w in words] == [*released, None, None]
    assert [getattr(upstream.but(scale="paper"), w) for w in words] == [*released, "fp32", "fp16"]
    assert upstream.unlearning.adam_eps == upstream.training.adam_eps == 1e-6
    assert (upstream.training.precision, clean.but(scale="paper").training.precision) == ("fp32", "bf16")
    assert clean.but(scale="paper").eval_precision == "fp16"
    assert (upstream.unlearning.adam, upstream.training.adam, clean.unlearning.adam) == (*2 * ["transformers"], "torch")
    assert upstream.unlearn_steps == 0 and upstream.unlearn_epochs == 2
    assert (clean.objective.beta, upstream.objective.beta) == (0.1, 0.4)
    assert clean.but(scale="paper").objective.beta == 0.1, "its own paper's"
    assert clean.but(scale="paper").shot_source == "retain"
    assert upstream.but(method="ga").unlearn_epochs == upstream.but(method="grad_diff").unlearn_epochs == 1
    assert upstream.but(method="prompting", modality="none").variant == "canonical"  # its only variant
    assert not clean.deviations() and not upstream.deviations()


def test_the_words_of_a_protocol_reach_the_recipes():
    config = Config(protocol="upstream", method="ga", modality="multimodal", adaptation="lora")
    clean = config.but(protocol="clean")

    def words(recipe):
        return recipe.label_mode, recipe.eos, recipe.schedule, recipe.adapter_reach

    assert words(config.training) == words(config.unlearning) == ("text", False, "linear", "upstream")
    assert words(clean.training) == ("answer", True, "plateau", "language")
    assert words(clean.unlearning) == ("answer", True, "constant", "language")
    cosine = clean.but(schedule="cosine")
    assert cosine.training.schedule == cosine.unlearning.schedule == "cosine"


def test_what_a_methods_file_says_of_its_tokens_and_adapter_overrides_the_protocol(monkeypatch):
    monkeypatch.setattr(unlearning.METHODS, "_entries", dict(unlearning.METHODS._entries))
    said = {"label_mode": "text", "eos": False, "adapter_reach": "upstream", "adam": "transformers", "adam_eps": 1e-6}
    recipes = {"miniature": Recipe(steps=3, source="me", **said)}
    unlearning.register(type("Own", (unlearning.Method,), {"name": "own", "label": "Own", "recipes": recipes}))
    config = Config(method="own", modality="unimodal")
    assert {name: config.unlearning.numbers()[name] for name in said} == said
    assert {sources(config)[f"unlearning.{name}"] for name in said} == {module.IN_FILE}
    assert config.training == Config().training and not config.deviations()
    by_hand = config.but(eos=True, adam_eps=1e-4).unlearning
    assert (by_hand.eos, by_hand.adam_eps, by_hand.adapter_reach) == (True, 1e-4, "upstream")


def test_what_is_set_alone_deviates():
    config = Config(protocol="upstream", eos=True, label_mode="text")
    assert config.deviations() == {"eos": (False, True)} and config.but(eos=None).deviations() == {}
    assert config.training.eos and sources(config)["training.eos"] == BY_HAND
    assert Config(unlearn_epochs=9).deviations() == {}  # vanilla unlearns nothing
    ga = Config(method="ga", modality="unimodal")
    assert ga.but(unlearn_epochs=9).deviations() == {"unlearn_steps": (65, 0), "unlearn_epochs": (0, 9)}
    kl_min = Config(method="kl_min", modality="multimodal")
    assert kl_min.but(alpha=7).deviations() == {"alpha": (8.0, 7.0)} and kl_min.but(alpha=8.0).deviations() == {}
    canonical = Config(**NPO, protocol="upstream", variant="canonical")
    assert canonical.deviations() == {"variant": ("upstream", "canonical")} and canonical.unlearn_epochs == 2


def test_what_decides_a_number_beside_the_protocol_deviates_too():
    own = {"shots": 0, "train_lr": 1e-3, "train_steps": 7, "unlearn_lr": 5e-4, "micro_batch": 2, "exams": 0.3}
    own |= {"train_batch_size": 16, "unlearn_batch_size": 3}
    config = Config(scale="paper", protocol="upstream", method="ga", modality="multimodal", **own)
    assert {name: value for name, (_, value) in config.deviations().items()} == own


def test_a_batch_size_is_that_of_the_preset_until_it_is_given():
    usual = Config(**NPO)
    other = usual.but(train_batch_size=5, unlearn_batch_size=6)
    assert (other.training.batch_size, other.unlearning.batch_size) == (5, 6) and other.run_id != usual.run_id
    assert sources(other)["training.batch_size"] == sources(other)["unlearning.batch_size"] == BY_HAND
    assert usual.unlearning.batch_size > 6 and sources(usual)["unlearning.batch_size"] != BY_HAND
    same = usual.but(unlearn_batch_size=usual.unlearning.batch_size)
    assert sources(same) == sources(usual)


def test_unlearning_is_so_many_steps_or_so_many_passes_long():
    config = Config(method="ga", modality="unimodal")
    longer, passes = config.but(unlearn_steps=9), config.but(unlearn_epochs=2)
    assert (longer.unlearning.steps, longer.unlearning.epochs) == (9, 0)
    assert (passes.unlearning.steps, passes.unlearning.epochs) == (0, 2)
    assert config.but(protocol="upstream", unlearn_steps=9).unlearning.epochs == 0
    with pytest.raises(KitError, match="unlearn_steps and unlearn_epochs both say how long unlearning is"):
        longer.but(unlearn_epochs=2)
    with pytest.raises(KitError, match="must be above 0: 0 of both trains nothing"):
        config.but(unlearn_steps=0)


def test_hyper_parameters_reach_the_method_and_zero_can_be_said():
    config = Config(method="kl_min", modality="multimodal")
    assert config.objective.alpha == 8.0 and config.but(alpha=0.0).objective.alpha == 0.0
    assert config.but(alpha=0.0).settings == {"alpha": 0.0}
    assert config.but(protocol="upstream").objective.alpha == 1 == config.but(scale="paper").objective.alpha
    assert config.but(alpha=7).but(method="npo").settings == {"beta": 0.1}, "another method has no alpha"


@pytest.mark.parametrize("beta", [0.0, -1.0])
def test_a_value_that_the_method_cannot_take_is_refused_before_anything_is_made(beta):
    with pytest.raises(KitError, match=f"beta of npo must be a number above 0, not {beta:g}"):
        Config(method="npo", modality="multimodal").but(beta=beta)


def test_a_misspelt_method_or_step_is_named_before_its_parameters():
    with pytest.raises(KitError, match="unknown method 'npoo': did you mean 'npo'"):
        Config.from_parameters({"method": "npoo", "beta": 0.1})
    with pytest.raises(KitError, match="unknown after 'halvd'"):
        Config.from_parameters({"method": "ga", "modality": "multimodal", "after": "halvd", "share": 0.9})


def test_the_numbers_of_another_variant_say_so():
    said = Config(method="npo", variant="upstream", modality="multimodal").numbers("unlearning")["steps"]
    assert said[0] == 51 and said[1].endswith("(of another variant than upstream)")


def test_a_variant_whose_class_gives_a_rate_has_its_own_numbers():
    own = Config(method="npo", variant="retain", modality="multimodal")
    lengths = {name: own.numbers("unlearning")[name] for name in ("lr", "steps")}
    assert lengths == {"lr": (2.5e-4, RULE), "steps": (573, RULE)} and own.settings == {"beta": 0.2, "alpha": 2.0}
    assert sources(own)["unlearning.alpha"] == RULE
    upstream = own.but(protocol="upstream", settings={})
    assert upstream.unlearn_epochs == Config(method="npo", modality="multimodal", protocol="upstream").unlearn_epochs


def test_every_value_says_who_says_so():
    for scale, protocol in itertools.product(SCALES, PROTOCOLS):
        config = Config(scale=scale, protocol=protocol, method="kl_min", modality="multimodal")
        known = sources(config)
        numbers = {f.name for f in fields(Recipe)} - {"source", "settings"}
        numbers = {f"{kind}.{name}" for kind in ("training", "unlearning") for name in numbers}
        words = {"variant", "label_mode", "adapter_reach", "eos", "shot_source", "scoring", "replay", "exams"}
        words |= {"train_modality", "adam", "adam_eps", "long_prompts", "eval_precision"}
        schedule = {"schedule", "precision"} if protocol == "upstream" else set()
        assert set(known) == numbers | words | schedule | {"unlearning.alpha"}
        assert all(known.values()) and BY_HAND not in known.values()
        if (scale, protocol) == ("paper", "upstream"):
            published = ("MLLMU-Bench", "unknown, chosen because ", "the method's file")
            assert not [source for source in known.values() if not source.startswith(published)]
    changed = sources(config_of(eos=False, alpha=3.0, replay=0.5, method="kl_min", modality="multimodal"))
    by_hand = {name for name, source in changed.items() if source == BY_HAND}
    assert by_hand == {"eos", "training.eos", "unlearning.eos", "replay", "unlearning.alpha"}
    held = sources(config_of(**NPO, schedule="cosine", micro_batch=2))
    assert {name.partition(".")[2] for name, source in held.items() if source == BY_HAND} == {"schedule", "micro_batch"}
    small, chosen = sources(Config(**NPO)), {"lr", "steps", "epochs", "beta"}
    assert {name for name, source in small.items() if source == RULE} == {f"unlearning.{name}" for name in chosen}
    assert "muon" in small["training.optimizer"] and "muon" not in small["unlearning.optimizer"]
    longer = sources(Config(**NPO, unlearn_epochs=2))
    assert {name for name, source in longer.items() if source == BY_HAND} == {"unlearning.steps", "unlearning.epochs"}
    assert sources(Config(train_lr=0.5))["training.lr"] == BY_HAND
    released = sources(Config(method="kl_min", modality="multimodal", protocol="upstream"))
    assert "issue 12" in released["unlearning.epochs"] and "issue 12" not in released["unlearning.lr"]
    assert sources(Config(train_seed=9)) == sources(Config())


def test_every_recipe_is_whole():
    for scale, protocol, method, modality in itertools.product(
        SCALES, PROTOCOLS, unlearning.names(), ("multimodal", "unimodal")
    ):
        if not unlearning.variants(method)["canonical"].streams:
            continue
        config = Config(scale=scale, protocol=protocol, method=method, modality=modality)
        for recipe in (config.training, config.unlearning):
            assert None not in recipe.numbers().values() and bool(recipe.steps) != bool(recipe.epochs)


# -- the name of a run ------------------------------------------------------------------------------------------


def test_a_grid_makes_as_many_runs_as_it_has_points():
    axes = {
        "unlearn_lr": [1e-3, 2e-3],
        "unlearn_steps": [20, 40],
        "beta": [0.1, 0.5],
        "people": [40, 100],
        "unlearn_seed": [0, 1],
    }
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    runs = [config_of(**NPO, **point).run_id for point in points]
    assert len(set(runs)) == len(points) and all(run.startswith("npo-multimodal-") for run in runs)
    assert {config_of(**point, **NPO).run_id for point in reversed(points)} == set(runs), "order changes nothing"


def test_a_run_is_called_by_what_is_resolved_and_not_by_how_it_was_given():
    plain = Config(**NPO)
    assert plain.run_id == "npo-multimodal-99504f88", "a default has changed, or what identity is made of"
    assert config_of(**NPO, unlearn_steps=51, beta=0.1, seed=0, data_seed=0).run_id == plain.run_id
    assert plain.but(base_path="/here/base").run_id == plain.but(base_path="/there/base").run_id != plain.run_id
    vanilla = plain.but(method="vanilla", modality="none")
    assert vanilla.but(unlearn_lr=1e-3, unlearn_steps=3).run_id == vanilla.run_id, "it unlearns nothing"


@pytest.mark.parametrize(
    "config, same",
    [
        (Config(**NPO), {"precision": "fp32"}),
        (Config(**NPO, protocol="upstream"), {"precision": "fp32"}),
        (Config(**NPO), {"train_batch_size": 12}),
        (Config(**NPO), {"unlearn_batch_size": 8}),
        (Config(**NPO), {"micro_batch": 12}),  # fine-tuning's batch, the larger one
        (Config(scale="paper", **NPO), {"precision": "bf16"}),
        (Config(scale="paper", **NPO), {"schedule": "linear"}),
        (Config(scale="paper", **NPO), {"unlearn_batch_size": 4}),
        (Config(scale="paper", **NPO), {"micro_batch": 4}),
    ],
)
def test_a_value_that_says_what_the_presets_say_is_no_other_run(config, same):
    said = config.but(**same)
    assert said.run_id == config.run_id and said.deviations() == {} and sources(said) == sources(config)
    assert (said.training, said.unlearning) == (config.training, config.unlearning)


def test_a_value_that_one_of_two_trainings_has_otherwise_is_another_run():
    """Unlearning of the miniature has a constant schedule and batches of 8, fine-tuning a plateau and batches of 12."""
    config = Config(**NPO)
    for name, value in (("schedule", "constant"), ("micro_batch", 8)):
        assert name in config.but(**{name: value}).deviations()


def test_a_parameter_that_comes_later_renames_no_run(monkeypatch):
    monkeypatch.setitem(module.NEUTRAL, "depth", 4)

    class Later(Config):
        flash: bool = False
        depth: int | None = None

        def _complete(self):
            super()._complete()
            self._fill(depth=4)

    assert Later(**NPO).depth == 4 and Later(**NPO).run_id == Config(**NPO).run_id
    assert len({Later(**NPO, **more).run_id for more in ({}, {"flash": True}, {"depth": 5})}) == 3


def test_4_bits_are_a_matter_of_trainings_at_paper_scale_and_a_deviation():
    plain = config_of(scale="paper", method="ga", modality="multimodal", vanilla_path="whole")
    assert config_of(scale="paper", quantise_base="nf4").quantise_base == "nf4", "fine-tuning rounds no adapter"
    bits = plain.but(quantise_base="nf4")
    assert plain.but(quantise_base=None).run_id == plain.run_id != bits.run_id
    assert "quantise_base" not in plain.identity() and bits.deviations()["quantise_base"] == (None, "nf4")
    with pytest.raises(KitError, match="quantise_base is for the frozen layers of a large model"):
        config_of(quantise_base="nf4")
    with pytest.raises(KitError, match="quantise_base"):
        config_of(scale="paper", quantise_base="int8")


def test_given_parameters_survive_yaml():
    config = config_of(method="npo", modality="unimodal", unlearn_lr=1e-5, seed=1, beta=1, eos=False, after="")
    written = yaml.safe_dump(config.given(), default_flow_style=True, width=10**6)
    again = Config.from_parameters(yaml.safe_load(written))
    assert again == config and again.run_id == config.run_id and again.unlearning == config.unlearning
    assert set(config.given()) == {"method", "modality", "unlearn_lr", "seed", "beta", "eos"}
    assert hash(again) == hash(config)


def test_models_of_two_owners_on_the_hub_are_two_runs():
    plain = Config(scale="paper")
    for name in ("base_path", "vanilla_path"):
        assert plain.but(**{name: "a/llava"}).run_id != plain.but(**{name: "b/llava"}).run_id
    assert public({"base_path": "a/llava", "vanilla_path": "C:/llava", "adapter_path": "a/llava"}) == {
        "base_path": "a/llava", "vanilla_path": "llava", "adapter_path": "llava"
    }  # fmt: skip


def test_a_folder_is_no_name_on_the_hub_and_may_lie_at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a" / "llava").mkdir(parents=True)
    assert public({"base_path": "a/llava"}) == {"base_path": "llava"}
    here = {"base_path": tmp_path.name, "data_source": f"{tmp_path.parent.name},"}
    assert public({"base_path": ".", "data_source": "..,"}) == here
    assert Config(base_path=".").run_id == Config(base_path=str(tmp_path)).run_id != Config().run_id
    paths = ("base_path", "vanilla_path", "draws_file", "profiles_file")
    config = Config(**{name: f"~/{name}" for name in paths})
    assert all(getattr(config, name) == str(tmp_path / name) for name in paths)
    assert Config.from_parameters(config.given()) == config


def test_paths_are_cut_down_to_their_last_part():
    shown = public({"base_path": "/home/somebody/llava", "data_source": "~/mine, MLLMMU/MLLMU-Bench", "seed": 1})
    assert shown["base_path"] == "llava" and "somebody" not in str(shown) and shown["seed"] == 1
    assert shown["data_source"].split(",")[0] == "mine" and "MLLMMU/MLLMU-Bench" in shown["data_source"]


# -- the guard of a notebook ------------------------------------------------------------------------------------


def test_an_unknown_parameter_is_answered_with_every_parameter_once():
    with pytest.raises(KitError, match="unknown parameter 'zzz': choose one of") as error:
        Config(zzz=1)
    assert str(error.value).endswith(f" and {len(Config.model_fields) - MOST_LISTED} more")


def test_the_guard_sees_plain_globals_and_nothing_else():
    namespace = {"In": [], "Out": {}, "_i": "x", "__name__": "__main__", "Path": Path, "np": sys, "grid": {"seed": [1]}}
    assert Config.from_notebook({**namespace, "seed": 1}).seed == 1
    with pytest.raises(KitError, match="unknown parameter 'sead': did you mean 'seed'"):
        Config.from_notebook({**namespace, "seed": 1, "sead": "2"})


def test_a_notebooks_own_method_cannot_be_another():
    assert Config.from_notebook({"modality": "unimodal", "method": "ga"}, method="ga").method == "ga"
    with pytest.raises(KitError, match="method is 'ga' here and cannot be 'npo': use the notebook for that value"):
        Config.from_notebook({"modality": "unimodal", "method": "npo"}, method="ga")


def test_the_guard_may_be_run_again_in_a_notebook_that_has_gone_on():
    cells = {"seed": 1}
    assert Config.from_notebook(cells).seed == 1
    cells |= {"seed": 2, "rows": [1, 2], "by_hand": 0.5}  # a changed parameter, and variables of the notebook
    assert Config.from_notebook(cells).seed == 2
    with pytest.raises(KitError, match="unknown parameter 'unlearn_epoch': did you mean 'unlearn_epochs'"):
        Config.from_notebook({**cells, "unlearn_epoch": 2})
    misspelt = {"sead": 1}
    for hint in ("'seed'[?]$", "'seed'[?] .Python still knows it: restart the kernel, or `del` the name"):
        with pytest.raises(KitError, match=f"unknown parameter 'sead': did you mean {hint}"):
            Config.from_notebook(misspelt)
        misspelt["seed"] = 1  # corrected in the cell
    with pytest.raises(KitError, match="unknown parameter 'rows'"):
        Config.from_notebook({"seed": 1, "rows": [1, 2]})


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    cells = [
        new_code_cell("from mllmu_nb.config import Config"),
        new_code_cell("seed: int = 0\nmodality: str = 'multimodal'", metadata={"tags": ["parameters"]}),
        new_code_cell("config = Config.from_notebook(globals(), method='npo')\nprint(config.objective, config.people)"),
    ]
    made = new_notebook(cells=cells)
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path_factory.mktemp("notebook") / "06_npo.ipynb"
    nbformat.write(made, path)
    return path


@pytest.mark.parametrize(
    "arguments, status, outcome",
    [
        (["-f", "CONFIGS/miniature.yaml", "-p", "beta", "2.5"], 0, "NegativePreference(beta=2.5) 100"),
        (["-p", "seed", "false"], 1, "seed must be a whole number, not the text 'false'"),
    ],
)
def test_the_guard_under_papermill(notebook, tmp_path, arguments, status, outcome):
    """papermill itself injects false as text, and only warns of a name that the notebook lacks (test_notebooks)."""
    arguments = [argument.replace("CONFIGS", str(CONFIGS[0].parent)) for argument in arguments]
    command = [sys.executable, "-m", "papermill", str(notebook), str(tmp_path / "out.ipynb"), "--no-progress-bar"]
    environment = {**os.environ, "PYTHONPATH": str(paths.PACKAGE.parent)}
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment)
    outputs = str([cell.get("outputs") for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells])
    assert outcome in (ended.stderr if status else outputs) and ended.returncode == status


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configuration_files_hold_known_parameters(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    axes = content.pop("grid")
    config = Config.from_notebook({**content, "grid": axes})
    assert config.protocol == ("upstream" if config.scale == "paper" and "clean" not in path.stem else "clean")
    assert set(config.deviations()) <= ({"train_steps"} if path.stem == "ci" else set())
    assert set(axes) <= set(Config.model_fields)
    assert set(axes["method"]) <= {*module.REFERENCES, *unlearning.names()}
