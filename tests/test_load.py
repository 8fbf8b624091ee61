"""Adapters on the language model alone, and files that are refused rather than loaded in part."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from mllmu_nb.errors import KitError
from mllmu_nb.models.load import (
    attach_lora,
    count_trainable,
    language_targets,
    load_adapter,
    load_base,
    load_full,
    merge,
    reached,
    save_adapter,
    save_full,
    unfreeze,
    upstream_targets,
)
from mllmu_nb.models.miniature import make_model, make_processor, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(["Where was this person born?", "This person was born in Lyon."], 300)


def tiny(tokenizer, seed=0):
    return make_model(tokenizer, seed, width=32, layers=2, heads=2).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[1, 5, 6, 7]])).logits


def shaken(adapted):
    """An adapter that does something: B is zero when fresh."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return adapted


GOLDEN = Path(__file__).parent / f"adapter_reach_transformers{transformers.__version__.split('.')[0]}.json"


def llava_7b():
    """LLaVA-1.5-7B in its true shapes, without a weight."""
    config = LlavaConfig(
        text_config=LlamaConfig(vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32),
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        ),
    )
    with torch.device("meta"):
        return LlavaForConditionalGeneration(config)


def idefics2_8b():
    """Idefics2-8B in its true shapes: Mistral-7B, SigLIP-so400m and a perceiver of three layers between them."""
    vision = dict(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=980,
        patch_size=14,
    )
    text = dict(model_type="mistral", vocab_size=32003)
    with torch.device("meta"):
        return Idefics2ForConditionalGeneration(Idefics2Config(text_config=text, vision_config=vision))


# By hand: r 16 × (inputs + outputs) of each matrix × layers. Both language models have 32 layers of width 4096.
LLAMA = 16 * 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
CLIP_QKV = 16 * 24 * 3 * (1024 + 1024)
CLIP_REST = 16 * 24 * ((1024 + 1024) + 2 * (1024 + 4096))
MISTRAL = 16 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
PROJECTION = 16 * (2 * (1152 + 14336) + (14336 + 4096))
PERCEIVER = 16 * 3 * (2 * (4096 + 1536) + 2 * (4096 + 384) + 3 * (4096 + 16384))
SIGLIP_QKV = 16 * 27 * 3 * (1152 + 1152)


@pytest.mark.parametrize(
    ("model", "reach", "count"),
    [
        (llava_7b, "language", LLAMA),
        (llava_7b, "upstream", LLAMA + CLIP_QKV + CLIP_REST),
        (idefics2_8b, "language", MISTRAL),
        (idefics2_8b, "upstream", MISTRAL + PROJECTION + PERCEIVER + SIGLIP_QKV),
    ],
)
def test_true_shapes_train_as_many_parameters_as_counted_by_hand(model, reach, count):
    assert (LLAMA, LLAMA + CLIP_QKV + CLIP_REST) == (39_976_960, 47_054_848)  # as published
    with torch.device("meta"):
        assert count_trainable(attach_lora(model(), reach=reach, init="gaussian")) == count


@pytest.mark.parametrize("model", [llava_7b, idefics2_8b])
def test_what_each_reach_touches_is_known_for_this_transformers(model):
    """A release that renames modules moves upstream's rule: then this fails, and the new list belongs in a new file."""
    known = json.loads(GOLDEN.read_text(encoding="utf-8"))[model.__name__]
    plain = model()
    assert {reach: reached(plain, reach) for reach in ("language", "upstream")} == known


def test_upstreams_rule_reached_less_when_the_towers_path_said_vision_model():
    """As in transformers 4.45: the tower is entered by the names it shares with the language model."""
    model = llava_7b()
    tower = torch.nn.Module()
    tower.vision_model = model.model.vision_tower
    model.model.vision_tower = tower
    found = [model.get_submodule(name) for name in upstream_targets(model)]
    assert 16 * sum(linear.in_features + linear.out_features for linear in found) == 42_336_256 == LLAMA + CLIP_QKV


def test_upstreams_reach_trains_where_it_says_and_comes_back(tokenizer, tmp_path):
    adapted = shaken(attach_lora(tiny(tokenizer), reach="upstream", seed=2))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert any("vision_tower" in name for name in trained)
    assert not [name for name in trained if "multi_modal_projector" in name or "lm_head" in name]
    save_adapter(adapted, tmp_path)
    torch.testing.assert_close(logits(load_adapter(tiny(tokenizer), tmp_path, "upstream")), logits(adapted))
    with pytest.raises(KitError, match=r"not on the language model alone: see model\.vision_tower"):
        load_adapter(tiny(tokenizer), tmp_path)
    save_adapter(attach_lora(tiny(tokenizer)), tmp_path)
    with pytest.raises(KitError, match=r"not where upstream's rule puts it: see model\.vision_tower"):
        load_adapter(tiny(tokenizer), tmp_path, "upstream")


def test_a_gaussian_start_has_the_spread_of_one_over_r_and_a_uniform_one_its_bound(tokenizer):
    name = "base_model.model.model.language_model.layers.0.mlp.down_proj.lora_A.default.weight"
    gaussian, uniform = (
        attach_lora(tiny(tokenizer), r=16, init=init).get_parameter(name).detach() for init in ("gaussian", "kaiming")
    )
    assert gaussian.std().item() == pytest.approx(1 / 16, rel=0.1)  # of 16 × 96 values
    assert uniform.abs().max().item() == pytest.approx(96**-0.5, rel=0.02)
    with pytest.raises(KitError, match="unknown init 'zero': choose one of kaiming, gaussian"):
        attach_lora(tiny(tokenizer), init="zero")
    with pytest.raises(KitError, match="unknown adapter_reach 'all': choose one of language, upstream"):
        attach_lora(tiny(tokenizer), reach="all")


def test_only_the_language_model_trains(tokenizer):
    adapted = attach_lora(tiny(tokenizer))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 7  # A and B, layers, projections
    assert all(".language_model.layers." in name and ".lora_" in name for name in trained)


def test_full_fine_tuning_leaves_the_tower_alone(tokenizer):
    model = unfreeze(make_model(tokenizer, 0, width=32, layers=1, heads=2))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if "vision" in name} and frozen


def test_idefics2_has_another_name_for_its_language_model():
    with torch.device("meta"):
        model = Idefics2ForConditionalGeneration(
            Idefics2Config(
                text_config=dict(model_type="mistral", hidden_size=64, intermediate_size=64, num_hidden_layers=2),
                vision_config=dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2),
            )
        )
        targets = language_targets(model)
        adapted = attach_lora(model)
    assert len(targets) == 2 * 7 and all(name.startswith("model.text_model.layers.") for name in targets)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert not [name for name in trained if "vision_model" in name or "connector" in name]


def test_a_model_of_unknown_names_is_refused():
    with pytest.raises(KitError, match="no language model was found"):
        attach_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_anything_else_that_trains_is_refused(tokenizer, monkeypatch):
    """An adapter that reaches the vision tower, as targets by bare name do."""
    monkeypatch.setattr("mllmu_nb.models.load.LANGUAGE_LINEARS", r".*\.(q_proj|v_proj)")
    expected = [f"model.language_model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qv"]
    monkeypatch.setattr("mllmu_nb.models.load.language_targets", lambda model: expected)
    with pytest.raises(KitError, match=r"not on the language model alone: see model\.vision_tower.*and 1 more"):
        attach_lora(tiny(tokenizer))


def test_a_fresh_adapter_changes_nothing_and_is_seeded(tokenizer):
    plain = logits(tiny(tokenizer))
    first, second, other = (attach_lora(tiny(tokenizer), seed=seed) for seed in (3, 3, 4))
    torch.testing.assert_close(logits(first), plain)
    name = "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.default.weight"
    assert torch.equal(first.get_parameter(name), second.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_merging_keeps_what_the_adapter_says(tokenizer):
    adapted = shaken(attach_lora(tiny(tokenizer)))
    before = logits(adapted)
    merged = merge(adapted)
    assert not torch.allclose(before, logits(tiny(tokenizer)))
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=1e-5)
    assert isinstance(merged, LlavaForConditionalGeneration)
    assert count_trainable(attach_lora(merged)) == count_trainable(attach_lora(tiny(tokenizer)))


def test_an_adapter_comes_back_as_it_was(tokenizer, tmp_path):
    adapted = shaken(attach_lora(tiny(tokenizer), r=4, alpha=8))
    save_adapter(adapted, tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = load_adapter(tiny(tokenizer), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(adapted))
    assert count_trainable(loaded) == count_trainable(adapted)
    assert not any(module.training for module in loaded.modules())


def test_peft_reads_our_adapters_and_we_read_its(tokenizer, tmp_path):
    from peft import PeftModel

    adapted = shaken(attach_lora(tiny(tokenizer)))
    save_adapter(adapted, tmp_path / "ours")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(tiny(tokenizer), tmp_path / "ours")), logits(adapted))
    adapted.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(logits(load_adapter(tiny(tokenizer), tmp_path / "theirs")), logits(adapted))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(sorted(w)[0]), r"lacks base_model.model.model.language_model.layers.0.mlp.down_proj.lora_A"),
        (lambda w: w.update(stray=torch.zeros(1)), r"has unexpected stray"),
        (lambda w: w.update({sorted(w)[0]: torch.zeros(3)}), r"has other shapes for base_model"),
        (lambda w: [w.pop(name) for name in sorted(w)[:5]], r"lacks .*, .*, .* and 2 more"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tokenizer, tmp_path, change, message):
    save_adapter(attach_lora(tiny(tokenizer)), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    with pytest.raises(KitError, match=message):
        load_adapter(tiny(tokenizer), tmp_path)


def test_damaged_and_missing_files_are_named(tokenizer, tmp_path):
    with pytest.raises(KitError, match="there is no adapter in .*nowhere"):
        load_adapter(tiny(tokenizer), tmp_path / "nowhere")
    save_adapter(attach_lora(tiny(tokenizer)), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(KitError, match=r"adapter_model\.safetensors is missing or damaged"):
        load_adapter(tiny(tokenizer), tmp_path)
    file.unlink()
    with pytest.raises(KitError, match=r"adapter_model\.safetensors is missing or damaged"):
        load_adapter(tiny(tokenizer), tmp_path)
    with pytest.raises(KitError, match=r"model\.safetensors is missing or damaged"):
        load_full(tiny(tokenizer), tmp_path)


def test_full_weights_come_back_as_they_were(tokenizer, tmp_path):
    model = tiny(tokenizer, seed=5)
    save_full(model, tmp_path)
    torch.testing.assert_close(logits(load_full(tiny(tokenizer), tmp_path)), logits(model))
    with pytest.raises(KitError, match="has other shapes for"):
        load_full(make_model(tokenizer, 0, width=64, layers=2, heads=2), tmp_path)
    with pytest.raises(KitError, match="lacks .* and"):
        load_full(make_model(tokenizer, 0, width=32, layers=3, heads=2), tmp_path)


def shipped(tokenizer, folder):
    """A base model as the build script ships it: half precision, with the hash of its weights in the recipe."""
    model = tiny(tokenizer, seed=9)
    model.half().save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "recipe.json").write_text(json.dumps({"sha256": digest}))
    return model.float()


def run_of(folder, scale="miniature", base_model="llava"):
    return SimpleNamespace(scale=scale, base_model=base_model, base_path=str(folder))


def test_the_base_is_read_in_full_precision_with_pil_pixels(tokenizer, tmp_path):
    written = shipped(tokenizer, tmp_path)
    model, processor = load_base(run_of(tmp_path))
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training
    torch.testing.assert_close(logits(model), logits(written), atol=1e-4, rtol=1e-4)
    assert type(processor.image_processor).__name__.endswith("Pil")
    assert processor.tokenizer("a").input_ids == tokenizer("a").input_ids


def test_a_base_that_is_altered_or_not_whole_is_refused(tokenizer, tmp_path):
    shipped(tokenizer, tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(KitError, match=r"model\.safetensors does not have the hash in recipe\.json: run `make base`"):
        load_base(run_of(tmp_path))
    weights.unlink()
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(KitError, match=r"lacks model\.safetensors, tokenizer\.json: run `make base` to rebuild it"):
        load_base(run_of(tmp_path))
    shipped(tokenizer, tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(KitError, match=r"recipe\.json states no sha256"):
        load_base(run_of(tmp_path))


def test_weights_that_do_not_fill_the_architecture_are_refused(tokenizer, tmp_path):
    """transformers itself only warns."""
    shipped(tokenizer, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(next(name for name in sorted(weights) if "layers.1" in name))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    (tmp_path / "recipe.json").write_text(json.dumps({"sha256": digest}))
    with pytest.raises(KitError, match="does not fit its architecture: missing keys model.*layers.1"):
        load_base(run_of(tmp_path))


def test_other_bases_are_refused(tmp_path):
    with pytest.raises(KitError, match="unknown base model 'llama': choose one of llava, idefics2"):
        load_base(run_of(tmp_path, base_model="llama"))
    with pytest.raises(KitError, match="the model .* cannot be loaded"):
        load_base(run_of(tmp_path, scale="paper"))
