"""Adapters change only the right modules, and incomplete files are refused instead of loaded in part."""

import hashlib
import json
import multiprocessing
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration
from transformers.quantizers.quantizers_utils import should_convert_module

from miniature import make_model, make_processor, make_tokenizer
from mllmu_nb.errors import KitError
from mllmu_nb.models import families, files
from mllmu_nb.models import load as loading
from mllmu_nb.models.adapters import attach, load, merge, save
from mllmu_nb.models.load import load_base, load_full, save_full, unfreeze
from mllmu_nb.unlearning import Recipe

LORA = Recipe(lora_r=16, lora_alpha=16, lora_dropout=0.05, lora_init="kaiming", adapter_reach="language")
DOWN = "base_model.model.model.language_model.layers.0.mlp.down_proj.lora_A.default.weight"


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(["Where was this person born?", "This person was born in Lyon."], 300)


@pytest.fixture
def tiny(tokenizer):
    """Return a function that makes a tiny LLaVA."""
    return lambda seed=0: make_model(tokenizer, seed, width=32, layers=2, heads=2).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[1, 5, 6, 7]])).logits


def shaken(adapted):
    """Return an adapter that has an effect: a new one has none, because its B is zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return adapted


def trained(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# -- a fresh adapter --------------------------------------------------------------------------------------------


def test_only_what_the_reach_names_trains(tiny):
    language = trained(attach(tiny(), LORA, 0))
    assert len(language) == 2 * 2 * 7  # A and B, layers, projections
    assert all(".language_model.layers." in name and ".lora_" in name for name in language)
    upstream = trained(attach(tiny(), replace(LORA, adapter_reach="upstream"), 0))
    assert set(language) < set(upstream) and any("vision_tower" in name for name in upstream)
    assert not [name for name in upstream if "multi_modal_projector" in name or "lm_head" in name]
    own = trained(attach(tiny(), LORA, 0, r"layers\.1\.mlp\.down_proj$"))
    assert [name.split(".lora_")[0] for name in own] == [
        "base_model.model.model.language_model.layers.1.mlp.down_proj"
    ] * 2


def test_a_pattern_that_matches_a_whole_module_means_its_linear_layers(tiny, tmp_path):
    adapted = shaken(attach(tiny(), LORA, 0, r"language_model\.layers\.1\.mlp"))
    names = {name.split(".lora_")[0].rpartition(".")[2] for name in trained(adapted)}
    assert names == {"gate_proj", "up_proj", "down_proj"} and len(trained(adapted)) == 3 * 2
    save(adapted, tmp_path)
    again = load(tiny(), tmp_path)
    assert torch.equal(logits(again), logits(adapted)) and trained(again) == trained(adapted)


def test_a_pattern_that_no_linear_layer_matches_is_refused(tiny):
    with pytest.raises(KitError, match="no linear layer of this model matches adapter_reach 'no_such_module'"):
        attach(tiny(), LORA, 0, "no_such_module")


def test_a_fresh_adapter_changes_nothing_and_is_seeded(tiny):
    first, second, other = (attach(tiny(), LORA, seed) for seed in (3, 3, 4))
    torch.testing.assert_close(logits(first), logits(tiny()))
    assert torch.equal(first.get_parameter(DOWN), second.get_parameter(DOWN))
    assert not torch.equal(first.get_parameter(DOWN), other.get_parameter(DOWN))


def test_a_gaussian_start_has_the_spread_of_one_over_r_and_a_uniform_one_its_bound(tiny):
    gaussian, uniform = (
        attach(tiny(), replace(LORA, lora_init=init), 0).get_parameter(DOWN).detach()
        for init in ("gaussian", "kaiming")
    )
    assert gaussian.std().item() == pytest.approx(1 / 16, rel=0.1)  # over 16 × 96 values
    assert uniform.abs().max().item() == pytest.approx(96**-0.5, rel=0.02)


def test_full_fine_tuning_leaves_the_tower_alone(tiny):
    model = unfreeze(tiny())
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if "vision" in name} and frozen


def test_merging_keeps_what_the_adapter_does(tiny):
    adapted = shaken(attach(tiny(), LORA, 0))
    before = logits(adapted)
    merged = merge(adapted)
    assert not torch.allclose(before, logits(tiny()))
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=1e-5)
    assert isinstance(merged, LlavaForConditionalGeneration)
    trained = [attach(one, LORA, 0).num_parameters(only_trainable=True) for one in (merged, tiny())]
    assert trained[0] == trained[1] > 0


def test_merging_is_done_in_full_precision_whatever_the_weights_are_held_in(tiny):
    """Weights are rounded once, at the end; weights without an adapter do not change."""
    half = shaken(attach(tiny().bfloat16(), LORA, 0))
    layer = half.get_submodule(DOWN.partition(".lora_")[0])
    change = layer.get_delta_weight("default").float()
    exact = layer.base_layer.weight.float() + change
    merged = merge(half)
    place = DOWN.removeprefix("base_model.model.").partition(".lora_")[0]
    assert torch.equal(merged.get_submodule(place).weight, exact.bfloat16())
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}


# -- files of adapters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"lora_r": 4, "lora_alpha": 8}, {"adapter_reach": "upstream"}], ids=str)
def test_an_adapter_comes_back_as_it_was(tiny, tmp_path, changes):
    adapted = shaken(attach(tiny(), replace(LORA, **changes), 0))
    save(adapted, tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    loaded = load(tiny(), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(adapted))
    assert not any(module.training for module in loaded.modules())


def test_peft_reads_our_adapters_and_we_read_its(tiny, tmp_path):
    adapted = shaken(attach(tiny(), LORA, 0))
    save(adapted, tmp_path / "ours")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(tiny(), tmp_path / "ours")), logits(adapted))
    adapted.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(logits(load(tiny(), tmp_path / "theirs")), logits(adapted))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop(sorted(w)[0]),
            r"it lacks base_model.*layers.0.mlp.down_proj.lora_A",
        ),
        (lambda w: w.update({sorted(w)[0]: torch.zeros(3)}), r"size mismatch for base_model"),
        (lambda w: w.update({sorted(w)[0]: w[sorted(w)[0]] * torch.nan}), r"numbers that are not finite: see base"),
        (lambda w: [w.pop(name) for name in sorted(w)[:9:2]], r"lacks .*, .*, .* and 2 more"),
        (lambda w: w.update(stray=torch.zeros(1)), r"it has unexpected stray"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tiny, tmp_path, change, message):
    save(attach(tiny(), LORA, 0), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    with pytest.raises(KitError, match=message):
        load(tiny(), tmp_path)


def test_damaged_and_missing_files_are_named(tiny, tmp_path):
    with pytest.raises(KitError, match=r"cannot read .*nowhere.adapter_config\.json: No such file"):
        load(tiny(), tmp_path / "nowhere")
    save(attach(tiny(), LORA, 0), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(KitError, match=r"adapter_model\.safetensors is missing or damaged"):
        load(tiny(), tmp_path)
    file.unlink()
    with pytest.raises(KitError, match=r"holds no adapter_model\.safetensors"):
        load(tiny(), tmp_path)
    with pytest.raises(KitError, match=r"model\.safetensors is missing or damaged"):
        load_full(tiny(), tmp_path)


# -- whole models -----------------------------------------------------------------------------------------------


def test_full_weights_come_back_as_they_were(tokenizer, tiny, tmp_path):
    model = tiny(seed=5)
    save_full(model, tmp_path)
    torch.testing.assert_close(logits(load_full(tiny(), tmp_path)), logits(model))
    with pytest.raises(KitError, match="does not fit the model: see"):
        load_full(make_model(tokenizer, 0, width=64, layers=2, heads=2), tmp_path)
    with pytest.raises(KitError, match="does not fit the model: see .* and"):
        load_full(make_model(tokenizer, 0, width=32, layers=3, heads=2), tmp_path)


@pytest.fixture
def shipped(tokenizer, tiny, tmp_path):
    """Write a base model as the build script exports it: half precision, with the hash of its weights in the recipe."""

    def write(change=None):
        model = tiny(seed=9)
        model.half().save_pretrained(tmp_path)
        make_processor(tokenizer).save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        if change:
            change(weights)
            save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
        (tmp_path / "recipe.json").write_text(json.dumps({"sha256": digest}))
        return tmp_path, model.float()

    return write


def read(folder, base_model="llava", scale="miniature"):
    return load_base(str(folder), base_model, scale)


def test_the_base_is_read_in_full_precision_with_pil_pixels(tokenizer, shipped):
    folder, written = shipped()
    model, processor = read(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training
    torch.testing.assert_close(logits(model), logits(written), atol=1e-4, rtol=1e-4)
    assert type(processor.image_processor).__name__.endswith("Pil")
    assert processor.tokenizer("a").input_ids == tokenizer("a").input_ids


def test_a_base_is_loaded_once_also_for_forked_processes_and_again_when_its_file_changes(shipped, monkeypatch):
    folder, _ = shipped()
    calls, honest = [], loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *given: calls.append(given) or honest(*given))
    (first, _), (second, _) = read(folder), read(folder)
    first.lm_head.weight.data.zero_()
    assert len(calls) == 1 and second.lm_head.weight.any() and not second.training
    if sys.platform == "linux":
        monkeypatch.setattr(loading, "load_model", lambda *given: os._exit(3))
        child = multiprocessing.get_context("fork").Process(target=read, args=(folder,))
        child.start()
        child.join()
        assert child.exitcode == 0
    monkeypatch.setattr(loading, "load_model", lambda *given: calls.append(given) or honest(*given))
    shipped(lambda weights: [weight.fill_(2.0) for weight in weights.values()])
    assert (read(folder)[0].lm_head.weight == 2).all() and len(calls) == 2


def test_4_bits_are_refused_on_a_cpu_and_asked_of_the_library_on_a_gpu(shipped, monkeypatch):
    """The library's result was never seen, because it needs a GPU and bitsandbytes."""
    where, given = (str(shipped()[0]), "llava", "paper"), {}
    with pytest.raises(KitError, match="quantise_base='nf4' needs a GPU and the package bitsandbytes"):
        loading.load_model(*where, precision="nf4")

    def from_pretrained(source, **settings):
        given.update(settings)
        raise OSError("as far as this")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    for precision in ("bf16", "nf4"):
        with pytest.raises(KitError, match="as far as this"):
            loading.load_model(*where, precision=precision)
        assert ("quantization_config" in given) == ("device_map" in given) == (precision == "nf4")
        assert given["dtype"] == torch.bfloat16
    bits = given["quantization_config"]
    assert bits.load_in_4bit and bits.bnb_4bit_quant_type == "nf4" and bits.bnb_4bit_compute_dtype == torch.bfloat16
    assert given["device_map"] == {"": torch.device("cuda", 0)}


@pytest.mark.parametrize("family", families.FAMILIES.values(), ids=lambda family: family.name)
def test_4_bits_hold_the_projections_of_the_language_model_and_no_other_layer(family, shipped, monkeypatch):
    given = {}

    def from_pretrained(source, **settings):
        given.update(settings)
        raise OSError("as far as this")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(family, "load_processor", lambda *where, **origin: None)
    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    with pytest.raises(KitError, match="as far as this"):
        loading.load_model(str(shipped()[0]), family.name, "paper", precision="nf4")
    with torch.device("meta"):
        model = loading.AutoModelForImageTextToText.from_config(family().published_shape())
    linears = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    whole = given["quantization_config"].llm_int8_skip_modules
    in_bits = [path for path in linears if should_convert_module(path, whole)]
    assert in_bits == family().adapter_targets(model, "language") and len(in_bits) < len(linears)


def test_a_base_that_is_altered_or_not_whole_is_refused(shipped, monkeypatch):
    folder, _ = shipped()
    with pytest.raises(KitError, match=r"in /nowhere lacks config\.json, .*: let base_path name one that tools/base_"):
        files.check_shipped(Path("/nowhere"))
    monkeypatch.setattr(files, "ASSETS", folder.parent)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(KitError, match=r"model\.safetensors does not have the hash in recipe\.json: run `make base`"):
        read(folder)
    weights.unlink()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(KitError, match=r"lacks model\.safetensors, tokenizer\.json: run `make base` to rebuild it"):
        read(folder)
    shipped()
    (folder / "recipe.json").write_text("{}")
    with pytest.raises(KitError, match=r"does not have the hash in recipe\.json"):
        read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop(next(name for name in sorted(w) if "layers.1" in name)),
            "does not fit its architecture: missing keys model.*layers.1",
        ),
        (
            lambda w: w.update({name: torch.zeros(3, 3) for name in w if "lm_head" in name}),
            r"does not fit its architecture: mismatched keys .*lm_head\.weight.*\[3, 3\]",
        ),
        (
            lambda w: w.update(stray=torch.zeros(1)),
            "does not fit its architecture: unexpected keys stray",
        ),
        (
            lambda w: w.update({name: w[name] * torch.nan for name in w if "lm_head" in name}),
            "holds numbers that are not finite: see lm_head",
        ),
    ],
)
def test_weights_that_do_not_fill_the_architecture_are_refused(shipped, change, message):
    """transformers itself only prints a warning."""
    folder, _ = shipped(change)
    with pytest.raises(KitError, match=message):
        read(folder)


@pytest.mark.parametrize("scale", ["miniature", "paper"])
def test_integers_are_no_weights(shipped, scale):
    """transformers would convert the whole numbers of a quantised file, without their scales."""
    folder, _ = shipped(lambda w: w.update({name: w[name].to(torch.int8) for name in w if "lm_head" in name}))
    with pytest.raises(KitError) as caught:
        read(folder, scale=scale)
    file = folder / "model.safetensors"
    assert (
        str(caught.value) == f"{file} has integers as weights: see language_model.lm_head.weight; save it dequantised"
    )


def test_keys_that_nothing_is_lost_without_are_let_through(shipped):
    def older(weights):
        weights["model.language_model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
        weights["model.language_model.layers.0.self_attn.masked_bias"] = torch.zeros(1)
        weights["model.image_newline"] = torch.zeros(32)

    folder, written = shipped(older)
    torch.testing.assert_close(logits(read(folder)[0]), logits(written), atol=1e-4, rtol=1e-4)


def test_a_tokenizer_that_is_not_there_or_ends_no_answer_is_named(shipped):
    folder, _ = shipped()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(KitError, match="has no token that ends an answer: name an eos_token in its config"):
        read(folder, scale="paper")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(KitError, match="has no tokenizer: put its tokenizer.json and tokenizer_config.json there"):
        read(folder, scale="paper")


@pytest.mark.parametrize(
    "part, name, count",
    [
        ("text_config", "num_attention_heads", 0),
        ("text_config", "num_attention_heads", "two"),
        ("text_config", "num_hidden_layers", 10**9),
        ("vision_config", "num_hidden_layers", 10**9),
    ],
)
def test_a_shape_that_no_model_has_is_one_line(shipped, part, name, count):
    folder, _ = shipped()
    shape = json.loads((folder / "config.json").read_text())
    shape[part][name] = count
    (folder / "config.json").write_text(json.dumps(shape))
    with pytest.raises(KitError, match="cannot be loaded: .+") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config", "processor_config", "tokenizer", "tokenizer_config", "generation_config"])
def test_a_file_of_settings_that_holds_a_list_is_one_line(shipped, name):
    folder, _ = shipped()
    assert (folder / f"{name}.json").is_file()
    (folder / f"{name}.json").write_text("[]")
    with pytest.raises(KitError, match=f"the model {folder} cannot be loaded: .+") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_other_bases_are_refused(shipped, tmp_path):
    folder, _ = shipped()
    with pytest.raises(KitError, match="is of the family llava, not idefics2"):
        read(folder, "idefics2")
    with pytest.raises(KitError, match="the model .*nowhere cannot be loaded"):
        read(tmp_path / "nowhere", scale="paper")
