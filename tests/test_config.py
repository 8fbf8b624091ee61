"""Parameters: what is refused and how it is said, what the presets fill in, what a run is called."""

import ast
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from mllmu_nb import config as module
from mllmu_nb import run
from mllmu_nb.config import Config, plain_values, stable_hash
from mllmu_nb.errors import KitError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"forgetratio": 10}, "unknown parameter 'forgetratio': did you mean 'forget_ratio'?"),
        ({"seed": "1"}, "seed must be a whole number, not the text '1'"),
        ({"seed": "false"}, "seed must be a whole number, not the text 'false'"),
        ({"seed": True}, "seed must be a whole number, not True"),
        ({"seed": 1.0}, "seed must be a whole number, not 1.0"),
        ({"seed": None}, "seed must be a whole number, not None"),
        ({"method": 3}, "method must be text, not 3"),
        (
            {"train_lr": "1e-5"},
            "train_lr must be a number, not the text '1e-5' (in YAML write 1.0e-5: without the point it is text)",
        ),
        ({"train_lr": float("nan")}, "train_lr must be a number, not nan"),
        ({"scale": "Paper"}, "unknown scale 'Paper': did you mean 'paper'? choose one of miniature, paper"),
        ({"modality": "both"}, "unknown modality 'both': choose one of multimodal, unimodal, none"),
        (
            {"method": "ga", "modality": "none"},
            "method 'ga' unlearns: modality must be 'multimodal' or 'unimodal', not 'none'",
        ),
        (
            {"method": "oracle", "modality": "unimodal"},
            "method 'oracle' unlearns nothing: modality must be 'none', not 'unimodal'",
        ),
        (
            {"method": "prompting", "modality": "multimodal"},
            "method 'prompting' unlearns nothing: modality must be 'none', not 'multimodal'",
        ),
        ({"forget_ratio": 0}, "forget_ratio must be from 1 to 99 per cent (the paper: 5, 10, 15), not 0"),
        ({"forget_ratio": 100}, "forget_ratio must be from 1 to 99 per cent (the paper: 5, 10, 15), not 100"),
        ({"forget_ratio": 0.1}, "forget_ratio must be a whole number, not 0.1"),
        ({"forget_ratio": 5, "people": 8}, "forget_ratio=5 of people=8 leaves nobody to forget"),
        ({"forget_ratio": 95, "people": 8}, "forget_ratio=95 of people=8 leaves nobody to keep"),
        ({"shots": 6}, "shots must be at least 0 and at most 5, not 6"),
        ({"pool": -1}, "pool must be at least 0, not -1"),
        ({"replay": 1.5}, "replay must be at least 0 and at most 0.9, not 1.5"),
        ({"scale": "paper", "adaptation": "full"}, "adaptation='full' is not offered at scale paper: take 'lora'"),
        ({"forget_ids_file": "x.json"}, "forget_ids_file names people of a profiles_file: give that as well"),
        (
            {"protocol": "Upstream"},
            "unknown protocol 'Upstream': did you mean 'upstream'? choose one of clean, upstream",
        ),
        ({"label_mode": "all"}, "unknown label_mode 'all': choose one of answer, text, upstream"),
        ({"eos": False}, "eos must be text, not False (in YAML put yes and no in quotes)"),
        ({"eos": "maybe"}, "unknown eos 'maybe': choose one of yes, no"),
        ({"shot_source": "clean"}, "unknown shot_source 'clean': choose one of pool, retain, upstream, none"),
        ({"cyclic": "true"}, "cyclic must be True or False, not the text 'true'"),
        ({"variant": "upstream"}, "unknown variant of vanilla 'upstream': choose one of canonical"),
        (
            {"data_source": "here", "profiles_file": "x.jsonl"},
            "people come from data_source or from profiles_file: give one of them",
        ),
        ({"data_revision": "4f2a"}, "data_revision says which data of a data_source to read: give that as well"),
    ],
)
def test_bad_parameters_are_named_in_one_line(parameters, message):
    with pytest.raises(KitError) as raised:
        Config.from_parameters(parameters)
    assert str(raised.value) == message


def test_an_unknown_method_names_the_known_ones():
    with pytest.raises(KitError) as raised:
        Config.from_parameters({"method": "grad_dif"})
    said = str(raised.value)
    assert said.startswith("unknown method 'grad_dif': did you mean 'grad_diff'? choose one of base, vanilla, oracle, ")
    assert all(name in said for name in ("ga", "kl_min", "npo", "prompting")) and "\n" not in said


def test_a_whole_number_stands_for_a_number_and_nothing_else_is_converted():
    assert type(Config.from_parameters({"replay": 0}).replay) is float


def test_every_field_has_a_plain_type_and_a_meaning():
    source = Path(module.__file__).read_text(encoding="utf-8").split("\n")
    tree = ast.parse("\n".join(source))
    [cls] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config"]
    lines = {node.target.id: source[node.lineno - 1] for node in cls.body if isinstance(node, ast.AnnAssign)}
    assert set(lines) == {f.name for f in fields(Config)}
    for name, line in lines.items():
        assert len(line.partition("  # ")[2]) > 5, f"{name} does not say what it means"
    assert {f.type for f in fields(Config)} <= {"int", "float", "str", "bool"}


def test_seed_fills_the_four_seeds_that_are_not_given():
    config = Config(seed=3, shot_seed=7)
    assert (config.data_seed, config.train_seed, config.unlearn_seed, config.shot_seed) == (3, 3, 3, 7)
    assert config.but(seed=5).train_seed == 5 and config.but(seed=5).shot_seed == 7


def test_presets_are_filled_in_anew_by_but():
    small, large = Config(), Config().but(scale="paper")
    assert large.training.lr == 2e-5 and large.training.batch_size == 4 and large.training.epochs == 5
    assert large.adaptation == "lora" and large.replay == 0.0
    assert small.training.lr != large.training.lr and small.but() == small


@pytest.mark.parametrize("method, epochs", [("ga", 1), ("grad_diff", 1), ("npo", 2), ("kl_min", 3)])
def test_unlearning_at_paper_scale_is_upstreams(method, epochs):
    recipe = Config(scale="paper", method=method, modality="multimodal").unlearning
    assert (recipe.lr, recipe.batch_size, recipe.epochs, recipe.schedule) == (2e-5, 4, epochs, "linear")
    assert recipe.source.startswith("MLLMU-Bench")


def test_every_preset_says_where_it_comes_from_and_an_override_says_so():
    for scale in module.SCALES:
        recipes = [*module.TRAINING[scale].values(), *module.UNLEARNING[scale].values()]
        assert all(recipe.source and bool(recipe.steps) != bool(recipe.epochs) for recipe in recipes)
    assert Config(train_lr=0.5).training.source.endswith("train_lr set by hand")
    assert Config(train_seed=9).training.source == Config().training.source
    assert Config(scale="paper", train_steps=7).training.epochs == 0


def test_run_ids():
    config = Config(method="grad_diff", modality="multimodal")
    assert config.run_id == "llava-r10-d0-grad_diff-multimodal-s0"
    assert Config(method="oracle", seed=2, forget_ratio=15).run_id == "llava-r15-d0-oracle-none-s2"
    assert config.but(unlearn_seed=4).run_id == "llava-r10-d0-grad_diff-multimodal-s0-unlearn4"


def test_one_word_sets_what_a_protocol_is_made_of():
    """The words and numbers of the released code, by the facts that are known of it."""
    clean = Config(method="npo", modality="multimodal")
    words = ("label_mode", "eos", "adapter_reach", "shot_source", "scoring", "schedule")
    assert [getattr(clean, name) for name in words] == ["answer", "yes", "language", "pool", "both", ""]
    assert clean.unlearn_steps > 0 and clean.unlearn_epochs == 0
    upstream = clean.but(protocol="upstream")
    assert [getattr(upstream, name) for name in words] == ["text", "no", "upstream", "upstream", "letter", "linear"]
    assert upstream.unlearn_steps == 0 and upstream.unlearn_epochs == 2
    assert clean.but(scale="paper").shot_source == "retain"
    assert upstream.but(method="ga").unlearn_epochs == upstream.but(method="grad_diff").unlearn_epochs == 1
    assert not clean.deviations() and not upstream.deviations()


def test_a_variant_belongs_to_the_methods_that_have_it(monkeypatch):
    from mllmu_nb.unlearning import METHODS

    monkeypatch.setitem(
        METHODS, "npo", {"canonical": METHODS["npo"]["canonical"], "upstream": METHODS["ga"]["canonical"]}
    )
    upstream = Config(method="npo", modality="multimodal", protocol="upstream")
    assert upstream.variant == "upstream" and upstream.but(method="prompting", modality="none").variant == "canonical"
    assert upstream.run_id == "llava-r10-d0-upstream-npo-multimodal-s0"
    canonical = upstream.but(variant="canonical")
    assert canonical.deviations() == {"variant": ("upstream", "canonical")}
    assert canonical.run_id == "llava-r10-d0-upstream-npo-canonical-multimodal-s0"


def test_what_is_set_alone_is_told():
    config = Config(protocol="upstream", eos="yes", label_mode="text")
    assert config.deviations() == {"eos": ("no", "yes")} and config.but(eos="").deviations() == {}
    assert config.run_id == "llava-r10-d0-upstream-vanilla-none-s0-eos_yes"
    assert config.training.eos and config.training.source.endswith("eos set by hand")
    asked = Config(cyclic=True, draws_file="draws.json", shot_source="none")
    assert asked.run_id == "llava-r10-d0-vanilla-none-s0-shot_source_none-cyclic-replayed"
    assert Config(unlearn_epochs=9).deviations() == {}  # vanilla unlearns nothing
    assert Config(unlearn_epochs=9, method="ga", modality="unimodal").deviations() == {"unlearn_epochs": (0, 9)}


def test_unlearning_is_so_many_steps_or_so_many_passes_long():
    config = Config(method="ga", modality="unimodal")
    longer, passes = config.but(unlearn_steps=9), config.but(unlearn_epochs=2)
    assert longer.deviations() == {"unlearn_steps": (config.unlearn_steps, 9)}
    assert (longer.unlearning.steps, longer.unlearning.epochs) == (9, 0)
    assert (passes.unlearning.steps, passes.unlearning.epochs) == (0, 2)
    assert config.but(protocol="upstream", unlearn_steps=9).unlearning.epochs == 0
    with pytest.raises(KitError, match="unlearn_steps and unlearn_epochs both say how long unlearning is"):
        longer.but(unlearn_epochs=2)


def test_the_weight_of_a_retain_term_is_for_methods_that_have_one():
    config = Config(method="kl_min", modality="multimodal")
    assert run.objective(config.but(unlearn_alpha=7)).alpha == 7
    assert config.but(unlearn_alpha=7).deviations() == {"unlearn_alpha": (config.unlearn_alpha, 7)}
    assert config.but(protocol="upstream").unlearn_alpha == 1 == config.but(scale="paper").unlearn_alpha
    with pytest.raises(KitError, match="unlearn_alpha weighs a retain term, and method 'ga' has none"):
        config.but(method="ga", unlearn_alpha=7)


def test_the_words_of_a_protocol_reach_the_recipes():
    config = Config(protocol="upstream", method="ga", modality="multimodal", adaptation="lora")
    for recipe in (config.training, config.unlearning):
        assert (recipe.label_mode, recipe.eos, recipe.schedule, recipe.lora_reach) == (
            "text",
            False,
            "linear",
            "upstream",
        )
    assert config.but(adaptation="full").training.lora_reach == "language"  # it has no adapters
    clean = config.but(protocol="clean")
    assert (clean.training.schedule, clean.unlearning.schedule) == ("plateau", "linear")
    assert (clean.unlearning.label_mode, clean.unlearning.eos, clean.unlearning.lora_reach) == (
        "answer",
        True,
        "language",
    )
    assert clean.but(schedule="linear").training.schedule == "linear"


def test_every_word_of_a_protocol_is_known_and_has_a_source():
    from mllmu_nb.models.prompts import LABEL_MODES
    from mllmu_nb.training import SCHEDULES

    assert module.CHOICES["label_mode"] == LABEL_MODES and set(module.CHOICES["schedule"]) == set(SCHEDULES)
    for scale in module.SCALES:
        for protocol in module.PROTOCOLS:
            presets = Config(scale=scale, protocol=protocol).protocol_presets()
            assert {*module.CHOICES, *module.LENGTHS, "unlearn_alpha", "variant"} == set(presets)
            assert all(preset.source for preset in presets.values())
            for name, choices in module.CHOICES.items():
                assert presets[name].value in (*choices, "") and (presets[name].value or name == "schedule")


def test_every_value_says_who_says_so():
    for scale in module.SCALES:
        for protocol in module.PROTOCOLS:
            config = Config(scale=scale, protocol=protocol, method="ga", modality="multimodal")
            sources = config.sources()
            named = {f"{kind}.{f.name}" for kind in ("training", "unlearning") for f in fields(module.Recipe)}
            named -= {"training.source", "unlearning.source"}
            assert set(sources) == {*named, *config.protocol_presets(), "replay"}
            assert all(sources.values()) and module.BY_HAND not in sources.values()
            if (scale, protocol) == ("paper", "upstream"):
                told = ("MLLMU-Bench", "unknown, chosen because ")
                assert not [source for name, source in sources.items() if not source.startswith(told)]
    changed = Config(eos="no", unlearn_epochs=9, replay=0.5, method="ga", modality="multimodal").sources()
    assert {name for name, source in changed.items() if source == module.BY_HAND} == {
        "eos",
        "training.eos",
        "unlearning.eos",
        "unlearn_epochs",
        "unlearning.epochs",
        "replay",
    }


def test_given_and_parameters_survive_yaml():
    config = Config(method="npo", modality="unimodal", unlearn_lr=1e-5, seed=1)
    written = yaml.safe_dump(config.given(), default_flow_style=True, width=10**6)
    again = Config.from_parameters(yaml.safe_load(written))
    assert again == config and again.unlearning == config.unlearning
    assert again.given()["train_lr"] == 0.0 and again.train_lr > 0


def test_hash_depends_on_the_named_fields_alone():
    config = Config()
    assert config.hash_of(["seed"]) == config.but(shots=1).hash_of(["seed"]) != config.but(seed=1).hash_of(["seed"])
    assert stable_hash({"b": 1, "a": [1.5, "é"]}) == stable_hash({"a": [1.5, "é"], "b": 1}) == "353ceb5a3856e4eb"


def test_the_guard_sees_plain_globals_and_nothing_else():
    namespace = {"In": [], "Out": {}, "_i": "x", "__name__": "__main__", "Path": Path, "np": sys, "grid": {"seed": [1]}}
    assert plain_values({**namespace, "seed": 1, "sead": "2"}) == {"seed": 1, "sead": "2"}
    assert Config.from_notebook({**namespace, "seed": 1}).seed == 1
    with pytest.raises(KitError, match="unknown parameter 'sead': did you mean 'seed'"):
        Config.from_notebook({**namespace, "seed": 1, "sead": "2"})


def test_a_notebooks_own_method_cannot_be_another():
    assert Config.from_notebook({"modality": "unimodal", "method": "ga"}, method="ga").method == "ga"
    with pytest.raises(KitError, match="method is 'ga' here and cannot be 'npo': take the notebook made for it"):
        Config.from_notebook({"modality": "unimodal", "method": "npo"}, method="ga")


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    cells = [
        new_code_cell("from mllmu_nb.config import Config"),
        new_code_cell("seed: int = 0  # seed\nmodality: str = 'multimodal'", metadata={"tags": ["parameters"]}),
        new_code_cell("config = Config.from_notebook(globals(), method='ga')\nprint(config.run_id)"),
    ]
    made = new_notebook(cells=cells)
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path_factory.mktemp("notebook") / "03_ga.ipynb"
    nbformat.write(made, path)
    return path


def test_the_guard_may_be_run_again_in_a_notebook_that_has_gone_on():
    cells = {"seed": 1}
    assert Config.from_notebook(cells).seed == 1
    cells |= {"seed": 2, "rows": [1, 2], "by_hand": 0.5}  # a parameter changed, and what the story has set
    assert Config.from_notebook(cells).seed == 2
    with pytest.raises(KitError, match="unknown parameter 'unlearn_epoch': did you mean 'unlearn_epochs'"):
        Config.from_notebook({**cells, "unlearn_epoch": 2})
    with pytest.raises(KitError, match="unknown parameter 'rows'"):
        Config.from_notebook({"seed": 1, "rows": [1, 2]})


@pytest.mark.parametrize(
    "arguments, outcome",
    [
        (["-f", "miniature.yaml"], "llava-r10-d0-ga-multimodal-s0"),
        (["-y", "sead: 3"], "unknown parameter 'sead': did you mean 'seed'?"),
        (["-p", "seed", "false"], "seed must be a whole number, not the text 'false'"),
    ],
)
def test_the_guard_under_papermill(notebook, tmp_path, arguments, outcome):
    """papermill itself only warns of an unknown parameter, and injects false as text."""
    arguments = [str(CONFIGS[0].parent / a) if a.endswith(".yaml") else a for a in arguments]
    command = [sys.executable, "-m", "papermill", str(notebook), str(tmp_path / "out.ipynb"), "--no-progress-bar"]
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parent.parent)}
    told = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment)
    outputs = str([cell.get("outputs") for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells])
    assert outcome in (told.stderr if told.returncode else outputs)
    assert (told.returncode == 0) == (arguments[0] == "-f")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configuration_files_hold_known_parameters(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    axes = content.pop("grid")
    config = Config.from_notebook({**content, "grid": axes})
    assert config.protocol == ("upstream" if config.scale == "paper" and "clean" not in path.stem else "clean")
    assert not config.deviations()
    assert set(axes) <= set(module.NAMES) and not set(axes["method"]) - {"base", "vanilla", "oracle"} <= set()
