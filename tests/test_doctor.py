"""The doctor: what it calls a problem, what it tells to do, and that it neither loads, downloads nor tells a token."""

import http.server
import json
import threading
from types import SimpleNamespace

import pytest
import torch

from miniature import make_model, make_tokenizer
from mllmu_nb import __main__ as door
from mllmu_nb import pinning, provenance
from mllmu_nb.commands import doctor
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.models import adapters, families, load, memory
from mllmu_nb.unlearning.base import Recipe

PAPER = Config(scale="paper", people=500)
SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25}
pytestmark = pytest.mark.usefixtures("out")


@pytest.fixture
def endpoint(monkeypatch):
    """A hub of one's own, which answers what a test tells it to; ``asked`` holds the requests."""
    told = SimpleNamespace(status=200, asked=[], wait=0.0)

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            told.asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(told.status)
            self.send_header("Content-Length", "13")
            self.end_headers()
            self.wfile.write(b'{"id": "a/b"}')

        def log_message(self, *said):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", told.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    yield told
    server.shutdown()
    server.server_close()


# -- the whole ----------------------------------------------------------------------------------------------------


def test_a_sound_configuration_has_no_problem_and_no_weights_are_loaded(tmp_path, monkeypatch, capsys):
    for module, name in ((load, "load_base"), (load, "load_model"), (adapters, "load")):
        monkeypatch.setattr(module, name, lambda *given: pytest.fail("weights were loaded"))
    monkeypatch.setattr("huggingface_hub.HfApi", lambda *given: pytest.fail("the hub was asked"))
    grid = tmp_path / "grid.yaml"
    grid.write_text(json.dumps({**SMALL, "grid": {"method": ["vanilla", "ga"], "modality": ["multimodal"]}}))
    assert door.main(["doctor", str(grid)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("0 problems, ") and not any(line.startswith("problem") for line in lines[:-1])
    shown = " ".join(" ".join(lines).split())
    people = "12 fictitious, 8 pool, 8 celebrity; 3 to be forgotten at 25 %; hash "
    for text in (
        people,
        "2 runs, scale miniature",
        "not needed",
        "llava-miniature",
        provenance.cpu_model(),
        "MKL_CBWR=",
    ):
        assert text in shown


def test_a_problem_sets_the_exit_status_and_says_what_to_do(tmp_path, monkeypatch, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text(json.dumps({**SMALL, "base_path": str(tmp_path / "none")}))
    assert door.main(["doctor", str(grid)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "problem inputs the base model in" in shown and "lacks config.json" in shown
    assert "problem memory" in shown
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "file"))
    with pytest.raises(KitError, match="cannot write to .* set MLLMU_NB_OUT to another folder"):
        doctor.inputs([Config(**SMALL)])
    assert door.main(["doctor", str(tmp_path / "no.yaml")]) == 2


# -- check by check -----------------------------------------------------------------------------------------------


def test_versions_outside_the_bounds_are_a_problem(monkeypatch):
    def version(name):
        if name != "torch":
            raise doctor.metadata.PackageNotFoundError(name)
        return "2.0"

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(provenance, "versions", dict)
    needed = ["torch>=2.9", "nbmake>=1.5; extra == 'test'", "gone>=1"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needed)
    assert doctor.versions([])[:2] == ("problem", "torch 2.0 (needs >=2.9); gone missing (needs >=1)")
    needed[:] = ["torch>=1"]
    assert doctor.versions([]).verdict == "ok"


@pytest.mark.parametrize("there, verdict", [(80, "ok"), (48, "warning"), (24, "problem")])
def test_memory_is_compared_with_what_the_largest_run_needs(monkeypatch, there, verdict):
    monkeypatch.setattr(doctor, "most_memory", lambda configs: {"weights": 43.0, "libraries": 1.0})
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=there * doctor.GIB))
    monkeypatch.setattr(doctor.Path, "is_file", lambda path: False)  # no container
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finding = doctor.memory([PAPER])
    assert finding[:2] == (verdict, f"about 44.0 GiB needed (weights 43.0, libraries 1.0); {there}.0 GiB there")
    device = doctor.device([PAPER])
    assert device.verdict == "problem" and "the 7B models need a GPU" in device.advice


@pytest.mark.parametrize(
    "changed, verdict", [({}, "ok"), ({"MKL_CBWR": ""}, "warning"), ({"ATEN_CPU_CAPABILITY": "default"}, "warning")]
)
def test_bits_that_are_not_pinned_are_a_warning(monkeypatch, changed, verdict):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, value in {**pinning.VARIABLES, **changed}.items():
        monkeypatch.setenv(name, value)
    assert doctor.device([Config()]).verdict == verdict


def test_the_7b_run_needs_its_published_parameters_and_no_file(monkeypatch):
    def missing(*given, **more):
        raise OSError("none")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", missing)
    need = doctor.most_memory([PAPER])
    assert need["weights"] == pytest.approx(2 * 7_063_427_072 / doctor.GIB)
    assert need["trained with their states"] == pytest.approx(16 * 39_976_960 / doctor.GIB)
    assert 25 < sum(need.values()) < 60  # a GPU of 24 GiB is too small without checkpointing, one of 80 is not
    small = doctor.most_memory([PAPER.but(method="base")])
    assert "activations" not in small and 13.2 < sum(small.values()) < sum(need.values())


@pytest.mark.parametrize("family, parameters", [("llava", 7_063_427_072), ("idefics2", 8_402_768_112)])
def test_the_published_shapes_have_the_published_size(family, parameters):
    assert memory.Estimate(families.get(family).published_shape(), eager=False).parameters == parameters


@pytest.mark.parametrize("where", ["", "mlp.down_proj"])
def test_the_adapter_that_is_counted_is_the_one_that_is_attached(where):
    model = make_model(make_tokenizer(["Where was this person born?"], 300), 0, width=64, layers=3, heads=4)
    for reach in ("language", "upstream"):
        recipe = Recipe(lora_r=4, lora_alpha=4, lora_dropout=0.0, lora_init="kaiming", adapter_reach=reach)
        counted = memory.Estimate(model.config, eager=True).trained(recipe, full=False, where=where)
        fresh = make_model(make_tokenizer(["Where was this person born?"], 300), 0, width=64, layers=3, heads=4)
        assert counted == load.count_trainable(adapters.attach(fresh, recipe, 0, where)) > 0
    whole = memory.Estimate(model.config, eager=True)
    assert 0 < whole.trained(recipe, full=True) == load.count_trainable(load.unfreeze(model)) < whole.parameters


@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_estimate_of_what_is_kept_is_near_what_autograd_keeps(attention, dropout):
    """Counted by its hooks on a model of another shape than those the formula is meant for."""
    model = make_model(make_tokenizer(["Where was this person born?"], 300), 0, width=64, layers=3, heads=4)
    model.set_attn_implementation(attention)
    recipe = Recipe(lora_r=16, lora_alpha=16, lora_dropout=dropout, lora_init="kaiming", adapter_reach="language")
    adapted = adapters.attach(model, recipe, 0).train()
    own = {p.untyped_storage().data_ptr() for p in adapted.parameters()}
    kept = {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    core, ids = adapted.get_base_model(), torch.randint(5, 200, (4, 96))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        embedded = core.get_input_embeddings()(ids).detach()
        core.model.language_model(inputs_embeds=embedded, use_cache=False)
    counted = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    text = core.config.text_config
    estimate = memory.activations(text, 4, 96, 4, adapters=dropout > 0, eager=attention == "eager")
    assert 0.9 < estimate / counted < 1.5


def test_people_that_cannot_be_are_a_problem_and_those_of_the_hub_are_read_later(tmp_path):
    with pytest.raises(KitError, match="Full_Set"):
        doctor.people([Config(data_source=str(tmp_path))])
    finding = doctor.people([Config(data_source="MLLMMU/MLLMU-Bench", scale="paper")])
    assert finding.verdict == "ok" and finding.text.startswith("MLLMMU/MLLMU-Bench: read, and their schema checked")


def test_a_base_that_does_not_come_with_the_kit_or_is_nowhere_is_a_problem():
    with pytest.raises(KitError, match="`make base BASES=qwen2_5_vl` builds one"):
        doctor.inputs([Config(base_model="qwen2_5_vl", **SMALL)])


# -- the hub ------------------------------------------------------------------------------------------------------

HUB = Config(scale="paper", people=500, data_source="MLLMMU/MLLMU-Bench,MLLMMU/baseline_train_split")


def test_the_hub_is_asked_for_what_has_to_come_from_it_and_the_token_is_never_told(endpoint, monkeypatch):
    finding = doctor.hub([HUB])
    assert [path for path, _ in endpoint.asked] == [
        "/api/models/llava-hf/llava-1.5-7b-hf",
        "/api/datasets/MLLMMU/MLLMU-Bench",
        "/api/models/MLLMMU/baseline_train_split",
    ]
    assert {token for _, token in endpoint.asked} == {"Bearer hf_secret"}
    assert (
        finding.verdict == "ok"
        and finding.text.endswith("can be downloaded; a token is set")
        and "hf_secret" not in finding.text
    )
    endpoint.asked.clear()
    assert doctor.hub([Config()])[:2] == ("ok", "not needed") and not endpoint.asked
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert doctor.hub([HUB]).text.endswith("no token is set")


@pytest.mark.parametrize("status", [401, 403, 404, 503])
def test_what_the_hub_answers_is_told(endpoint, monkeypatch, status):
    endpoint.status = status
    finding = doctor.hub([PAPER])
    assert finding.verdict == "problem" and finding.text.startswith("llava-hf/llava-1.5-7b-hf: ")
    assert str(status) in finding.text and "HF_TOKEN" in finding.advice and "hf_secret" not in finding.text


def test_a_hub_that_cannot_be_reached_or_may_not_be_asked_is_a_problem(endpoint, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    finding = doctor.hub([PAPER])
    assert finding.verdict == "problem" and "refused" in finding.text and "HF_ENDPOINT" in finding.advice
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    finding = doctor.hub([PAPER])
    assert finding.verdict == "problem" and "offline mode is enabled" in finding.text


def test_checkpointing_keeps_what_the_estimate_says():
    """Counted by autograd's hooks in a forward pass: what enters each layer, and what one layer keeps besides."""
    model = make_model(make_tokenizer(["Where was this person born?"], 300), 0, width=64, layers=6, heads=4)
    model.set_attn_implementation("sdpa")
    text, ids = model.config.text_config, torch.randint(5, 200, (4, 96))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.train().model.language_model(inputs_embeds=embedded, use_cache=False)
    counted = sum(t.untyped_storage().nbytes() for t in kept.values())
    estimate = memory.activations(text, 4, 96, 4, adapters=False, eager=False, checkpointing=True)
    one_layer = memory.activations(text, 4, 96, 4, adapters=False, eager=False) / text.num_hidden_layers
    assert 0.7 < (estimate - one_layer) / counted < 1.5


def test_the_sizes_of_a_card_that_a_way_of_training_needs():
    """In fp32 as upstream more than 40 GiB, in bf16 less; one question at a time with checkpointing less than 24."""
    upstream = Config(scale="paper", protocol="upstream", data_source="MLLMU/MLLMU-Bench, MLLMMU/baseline_train_split")
    estimate = memory.Estimate(upstream.family.published_shape(), eager=False)
    ways = [{}, {"precision": "bf16"}, {"precision": "bf16", "micro_batch": 1, "checkpointing": True}]
    sizes = [sum(estimate.training(upstream.but(**way).training, full=False).values()) for way in ways]
    assert 40 < sizes[0] < 80 and sizes[1] < 40 and sizes[2] < 24, sizes
