"""What a user adds (a method, a family, a step after unlearning): one file each, outside the package, no list edited.

The files are in ``tests/outside``; ``MLLMU_NB_EXTENSIONS`` names them, as a user would.
"""

import hashlib
import json
import math
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from miniature import make_processor, make_tokenizer
from mllmu_nb import __main__ as door
from mllmu_nb import after, checks, paths, pipeline, registry, unlearning
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.models import families
from mllmu_nb.stages import read_json

OUTSIDE = Path(__file__).parent / "outside"
NAMES = ("rmu", "refusal_preference", "rounded", "vip_llava")
SMALL = {"people": 8, "pool": 4, "celebrities": 4, "forget_ratio": 25, "shots": 0, "replay": 0.0, "train_steps": 10}
REGISTRIES = (unlearning.METHODS, families.FAMILIES, after.STEPS)


@pytest.fixture(scope="module", autouse=True)
def outside(tmp_path_factory):
    """Put the files on the path and name them in the environment; afterwards, unregister what they have registered."""
    with pytest.MonkeyPatch.context() as patch:
        for one in REGISTRIES:
            patch.setattr(one, "_entries", dict(one._entries))
        patch.syspath_prepend(OUTSIDE)
        patch.setenv(registry.EXTENSIONS, ",".join(NAMES))
        patch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.mktemp("out")))
        registry.load_extensions()
        yield
    for name in NAMES:
        sys.modules.pop(name)


def config_of(base, **parameters):
    return Config.from_parameters({"modality": "multimodal", "base_path": str(base), **SMALL, **parameters})


def losses(config):
    """Return the losses of each step."""
    return pd.DataFrame(read_json(pipeline.unlearned(config).get() / "train.json")["losses"]).to_dict("records")


@pytest.mark.parametrize("name", ["rmu", "dpo"])
def test_their_methods_pass_the_check(name):
    checks.check_method(unlearning.variants(name)["canonical"])


def test_a_method_with_hidden_states_and_a_reach_of_its_own(tiny_base):
    config = config_of(tiny_base, method="rmu", layer=1.0, unlearn_steps=8)
    assert config.run_id.startswith("rmu-multimodal-") and config.run_id != config.but(layer=0.9).run_id
    steps = losses(config)
    assert losses(config.but(micro_batch=3))[-1] == pytest.approx(steps[-1], rel=1e-4), "however a batch is cut"
    assert steps[0]["retain"] == pytest.approx(0, abs=1e-8), "a fresh adapter has moved nothing"
    assert steps[-1]["forget"] < 0.9 * steps[0]["forget"] and steps[-1]["retain"] > 0
    adapter = load_file(pipeline.unlearned(config).get() / "adapter_model.safetensors")
    assert all(".mlp.down_proj.lora_" in name for name in adapter) and len(adapter) == 2  # A and B of one layer
    vanilla = dict(pipeline.model(config.but(method="vanilla", modality="none"))[0].named_parameters())
    model, _ = pipeline.model(config)
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, vanilla[name])]
    assert moved == ["model.language_model.layers.0.mlp.down_proj.weight"]
    with pytest.raises(KitError, match="layer of rmu is 1.5: give a share"):
        pipeline.unlearned(config.but(layer=1.5)).get()


def test_a_method_of_three_streams_swept_over_its_own_hyper_parameter(tiny_base):
    grid = [config_of(tiny_base, method="dpo", beta=beta, unlearn_steps=steps) for beta, steps in ((0.1, 1), (0.5, 24))]
    assert len({config.run_id for config in grid}) == len({pipeline.unlearned(c).key for c in grid}) == 2
    assert len({pipeline.finetuned(config).key for config in grid}) == 1
    for config in grid:
        steps = losses(config)
        assert steps[0]["preference"] == pytest.approx(2 / config.objective.beta * math.log(2), rel=1e-5)
        assert {"nll_forget", "nll_refused", "nll_retain"} <= set(steps[0])
    assert all(steps[-1][name] < steps[0][name] for name in ("preference", "nll_refused"))


def test_a_step_after_unlearning(tiny_base, tmp_path, capsys):
    plain = config_of(tiny_base, method="ga", unlearn_steps=5)
    four, two = plain.but(after="rounded"), plain.but(after="rounded", bits=2)
    assert four.run_id.startswith("ga-multimodal-rounded-") and len({c.run_id for c in (plain, four, two)}) == 3
    assert four.but(bits=4).run_id == four.run_id, "its default is neutral"
    assert len({pipeline.unlearned(c).key for c in (plain, four, two)}) == 1
    assert len({pipeline.answered(c).key for c in (plain, four, two)}) == 3
    name = "model.language_model.layers.0.mlp.up_proj"
    levels = {c: {len(row.unique()) for row in pipeline.model(c)[0].get_submodule(name).weight} for c in (four, two)}
    assert max(levels[four]) <= 15 and max(levels[two]) <= 3
    checks.check_after("rounded", pipeline.model(plain)[0], plain)
    given = {"method": "ga", "modality": "multimodal", "after": "rounded"}
    words = [word for pair in given.items() for word in ("-p", *pair)]
    assert door.main(["export", *words, "--adapter", str(tmp_path / "new")]) == 2, "an adapter is no rounded model"
    assert "the adapter of ga is the one before rounded: use --model, or leave out after" in capsys.readouterr().err
    with pytest.raises(KitError, match="bits of rounded must be a whole number, not 3.5"):
        plain.but(after="rounded", bits=3.5)
    with pytest.raises(KitError, match="unknown parameter 'bits'"):
        plain.but(bits=2)


@pytest.fixture(scope="module")
def vip(tmp_path_factory):
    """Return the folder of a tiny random VIP-LLaVA whose projector reads two layers of the tower."""
    from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

    folder = tmp_path_factory.mktemp("vip")
    words = make_tokenizer(["###Human: Where was this person born?###Assistant: In Oslo."], 400)
    sizes = {"intermediate_size": 64, "num_attention_heads": 2}
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 2, "image_size": 64}
    text = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": len(words)}
    text |= {"initializer_range": 0.1, "pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    torch.manual_seed(0)
    VipLlavaForConditionalGeneration(
        VipLlavaConfig(
            vision_config={**vision, **sizes, "patch_size": 16, "initializer_range": 0.1},
            text_config={**text, **sizes},
            image_token_index=words.convert_tokens_to_ids("<image>"),
            image_seq_length=16,
            vision_feature_layer=[-1, -2],
        )
    ).save_pretrained(folder)
    make_processor(words).save_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "recipe.json").write_text(json.dumps({"sha256": hashlib.sha256(weights).hexdigest()}))
    return folder


def test_a_family_is_trained_unlearned_and_asked(vip):
    config = config_of(vip, base_model="vipllava", method="npo", unlearn_steps=5)
    base, processor = pipeline.model(config.but(method="base", modality="none"))
    checks.check_family(families.get("vipllava"), base, processor)
    folder = pipeline.run(config)
    assert folder == paths.runs(paths.results("miniature")) / config.run_id
    answers = pd.read_parquet(folder / "answers.parquet")
    assert set(answers["set"]) == {"forget", "retain", "test", "celebrity"}
    record = read_json(folder / "provenance.json")
    assert record["parameters"]["base_model"] == "vipllava" and pipeline.finished(config)
    assert config.but(base_model="llava").run_id != config.run_id
    with pytest.raises(KitError, match="is of the family vipllava, not llava"):
        pipeline.model(config.but(base_model="llava", method="base", modality="none"))


def test_its_published_shape_takes_adapters_on_the_language_model():
    family = families.get("vipllava")
    with torch.device("meta"):
        from transformers import AutoModelForImageTextToText

        targets = family.adapter_targets(AutoModelForImageTextToText.from_config(family.published_shape()), "language")
    assert len(targets) == 32 * 7
