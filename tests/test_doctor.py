"""The doctor: what it calls a problem, what it tells to do, and that it neither loads, downloads nor tells a token."""

import http.server
import json
import threading
from types import SimpleNamespace

import pytest
import torch

from mllmu_nb import __main__ as door
from mllmu_nb.commands import doctor
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.models import load, memory
from mllmu_nb.models.miniature import make_model, make_tokenizer

PAPER = Config(scale="paper", people=500)
SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25}


@pytest.fixture(autouse=True)
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    return tmp_path / "out"


@pytest.fixture
def endpoint(monkeypatch):
    """A hub of one's own, which answers what a test tells it to; ``asked`` holds the requests."""
    told = SimpleNamespace(status=200, asked=[], wait=0.0)

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            told.asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(told.status)
            self.end_headers()

        def log_message(self, *said):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    for name in ("http_proxy", "HTTP_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", told.url)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    yield told
    server.shutdown()
    server.server_close()


def verdicts(findings):
    return {one.what: one.verdict for one in findings}


# -- the whole ----------------------------------------------------------------------------------------------------


def test_a_sound_configuration_has_no_problem_and_no_weights_are_loaded(tmp_path, monkeypatch, capsys):
    for name in ("load_base", "load_whole", "load_adapter"):
        monkeypatch.setattr(load, name, lambda *given: pytest.fail("weights were loaded"))
    monkeypatch.setattr(doctor, "_asked", lambda *given: pytest.fail("the hub was asked"))
    grid = tmp_path / "grid.yaml"
    grid.write_text(json.dumps({**SMALL, "grid": {"method": ["vanilla", "ga"], "modality": ["multimodal"]}}))
    assert door.main(["doctor", str(grid)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ok", "configuration", "2", "runs,", "scale", "miniature,", "llava"]
    assert lines[-1].startswith("0 problems, ") and not any(line.startswith("problem") for line in lines[:-1])
    told = "\n".join(lines)
    for part in (
        "12 fictitious, 8 pool, 8 celebrity; 3 to be forgotten at 25 %; hash ",
        "not needed",
        "llava-miniature",
    ):
        assert part in told
    place = lines[0].index("2 runs")
    assert all(line[place - 1] == " " and len(line) <= doctor.WIDTH for line in lines[:-1]), "aligned"


def test_a_problem_sets_the_exit_status_and_says_what_to_do(tmp_path, monkeypatch, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text(json.dumps({**SMALL, "base_path": str(tmp_path / "none")}))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "file"))
    assert door.main(["doctor", str(grid)]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "problem base model the base model in" in told and "-> see base_path in the configuration" in told
    assert "problem memory unknown, for the shape of" in told
    assert "problem folders cannot write to" in told and "-> set MLLMU_NB_OUT to a folder that is yours" in told
    assert door.main(["doctor", str(tmp_path / "no.yaml")]) == 2


# -- part by part -------------------------------------------------------------------------------------------------


def test_versions_outside_the_bounds_are_a_problem_and_untested_ones_a_warning(monkeypatch):
    found = {"torch": "2.0", "pandas": "2.9.9"}
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["torch>=2.9", "nbmake>=1.5; extra == 'test'"])
    monkeypatch.setattr(doctor, "_installed", found.get)
    (one,) = doctor.versions()
    assert one.verdict == "problem" and one.found == "torch 2.0 (needs >=2.9)"
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["pandas>=2.2", "gone"])
    (one,) = doctor.versions()
    assert one.found == "gone missing (needs any)"
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["pandas>=2.2"])
    monkeypatch.setattr(doctor, "_tested", lambda: {"pandas": "3.1.1"})
    (one,) = doctor.versions()
    assert one.verdict == "warning" and one.found == "pandas 2.9.9 (tested: 3.1.1)"
    monkeypatch.setattr(doctor, "_tested", dict)
    assert [one.verdict for one in doctor.versions()] == ["ok"]


def test_the_lock_says_what_was_tested():
    assert doctor._tested()["transformers"].startswith("5.") and "torch" not in doctor._tested()


@pytest.mark.parametrize("there, verdict", [(80, "ok"), (48, "warning"), (24, "problem")])
def test_memory_is_compared_with_what_the_largest_run_needs(monkeypatch, there, verdict):
    monkeypatch.setattr(doctor, "most_needed", lambda configs, gpu: (44 * doctor.GIB, "made up"))
    monkeypatch.setattr(doctor, "memory", lambda: there * doctor.GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = {one.what: one for one in doctor.device([PAPER])}
    assert found["memory"].verdict == verdict
    assert found["memory"].found == f"about 44.0 GiB needed (made up); {there}.0 GiB there"
    assert found["device"].verdict == "problem" and "the 7B models need a GPU" in found["device"].advice


def test_the_7b_run_needs_its_published_parameters_and_no_file(monkeypatch):
    monkeypatch.setattr(
        "transformers.AutoConfig.from_pretrained", lambda *a, **k: (_ for _ in ()).throw(OSError("none"))
    )
    needed, parts = doctor.most_needed([Config(scale="paper", people=500, protocol="clean")], gpu=True)
    assert parts.startswith("7,063,427,072 parameters 13.2, 39,976,960 trained with their states 0.6, estimated: ")
    assert 25 < needed / doctor.GIB < 60  # a GPU of 24 GiB is too small without checkpointing, one of 80 is not
    small, _ = doctor.most_needed([Config(scale="paper", people=500, method="base")], gpu=True)
    assert 13.2 * doctor.GIB < small < needed


@pytest.mark.parametrize("family, parameters", [("llava", 7_063_427_072), ("idefics2", 8_402_768_112)])
def test_the_published_shapes_have_the_published_size(family, parameters):
    assert memory.need(memory.published_shape(family), element=2, eager=False).weights == 2 * parameters


@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_estimate_of_what_is_kept_is_near_what_autograd_keeps(attention, dropout):
    """Counted by its hooks on a model of another shape than those the formula is meant for."""
    tokenizer = make_tokenizer(["Where was this person born?"], 300)
    model = make_model(tokenizer, 0, width=64, layers=3, heads=4)
    model.set_attn_implementation(attention)
    adapted = load.attach_lora(model, dropout=dropout).train()
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
    estimate = memory.kept_by_layers(text, 4, 96, 4, adapters=dropout > 0, eager=attention == "eager")
    assert 0.9 < estimate / counted < 1.5


def test_people_that_cannot_be_are_a_problem_and_strange_ones_a_warning(tmp_path, monkeypatch):
    (one,) = doctor.people([Config(data_source=str(tmp_path))])
    assert one.verdict == "problem" and "Full_Set" in one.found
    known = SimpleNamespace(forget_ids=("1",), of_kind=lambda kind: [1], notes={"schema": ["a column is strange"]})
    monkeypatch.setattr(doctor.run, "population", lambda config: known)
    monkeypatch.setattr(doctor.run, "data_hash", lambda config: "abc")
    (one,) = doctor.people([Config(**SMALL)])
    assert one.verdict == "warning" and one.found.endswith("hash abc; a column is strange")
    (one,) = doctor.people([Config(data_source="MLLMMU/MLLMU-Bench", scale="paper")])
    assert one.verdict == "ok" and one.found.startswith("MLLMMU/MLLMU-Bench: read, and their schema checked, when")


def test_a_family_whose_prompts_are_not_written_is_a_problem_before_8b_are_loaded():
    with pytest.raises(KitError, match="base_model 'idefics2' can be loaded, but its prompts are not written yet"):
        doctor.run.check(PAPER.but(base_model="idefics2"))
    (one,) = doctor.base(PAPER.but(base_model="idefics2"))
    assert one.verdict == "problem"


# -- the hub ------------------------------------------------------------------------------------------------------

HUB = Config(scale="paper", people=500, data_source="MLLMMU/MLLMU-Bench,MLLMMU/baseline_train_split")


def test_the_hub_is_asked_for_what_has_to_come_from_it_and_the_token_is_never_told(endpoint, monkeypatch):
    monkeypatch.setattr(doctor, "_cached", lambda source: False)
    findings = list(doctor.hub([HUB]))
    assert [path for path, _ in endpoint.asked] == [
        "/api/models/llava-hf/llava-1.5-7b-hf",
        "/api/datasets/MLLMMU/MLLMU-Bench",
        "/api/models/MLLMMU/baseline_train_split",
    ]
    assert {token for _, token in endpoint.asked} == {"Bearer hf_secret"}
    assert verdicts(findings) == {"hub": "ok", "hub token": "ok"} and "hf_secret" not in doctor.table(findings)
    endpoint.asked.clear()
    monkeypatch.setattr(doctor, "_cached", lambda source: True)
    assert verdicts(doctor.hub([PAPER])) == {"hub": "ok"} and not endpoint.asked
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert next(iter(doctor.hub([HUB]))).found == "none, and none is needed for what is public"


@pytest.mark.parametrize(
    "status, verdict, advice",
    [
        (401, "problem", "set HF_TOKEN to a token that may read it"),
        (403, "problem", "set HF_TOKEN to a token that may read it"),
        (404, "problem", "check the spelling"),
        (503, "warning", "try again later"),
    ],
)
def test_what_the_hub_answers_is_told(endpoint, monkeypatch, status, verdict, advice):
    monkeypatch.setattr(doctor, "_cached", lambda source: False)
    endpoint.status = status
    *_, one = doctor.hub([PAPER])
    assert (one.verdict, one.advice) == (verdict, advice)


def test_a_hub_that_cannot_be_reached_or_may_not_be_asked_is_a_problem(endpoint, monkeypatch):
    monkeypatch.setattr(doctor, "_cached", lambda source: False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    *_, one = doctor.hub([PAPER])
    assert one.verdict == "problem" and "the hub cannot be reached" in one.found and "HF_ENDPOINT" in one.advice
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    *_, one = doctor.hub([PAPER])
    assert one.verdict == "problem" and one.found.startswith("HF_HUB_OFFLINE forbids to fetch llava-hf/")


# -- disk, kernel -------------------------------------------------------------------------------------------------


def test_disk_counts_models_adapters_answers_and_the_download(monkeypatch):
    free = SimpleNamespace(free=10 * doctor.GIB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: free)
    monkeypatch.setattr(doctor, "shape_of", lambda config: memory.published_shape("llava"))
    monkeypatch.setattr(doctor, "_cached", lambda source: True)
    configs = [PAPER, PAPER.but(method="ga", modality="multimodal")]
    one = doctor.disk(configs)
    # vanilla's adapter and one more, 160 MB each, and two runs' answers, each written twice
    assert one.verdict == "ok" and one.found == "about 0.6 GiB needed and 10.0 GiB free"
    monkeypatch.setattr(doctor, "_cached", lambda source: False)
    one = doctor.disk(configs)
    assert one.verdict == "problem" and one.found.startswith("about 13.8 GiB needed, the download among them,")


def test_a_kernel_of_another_python_is_told(monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    def spec(*argv):
        return lambda self, name: SimpleNamespace(argv=argv)

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", spec(doctor.sys.executable))
    assert doctor.kernel().verdict == "ok"
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", spec("/nowhere/python"))
    assert doctor.kernel().verdict == "warning" and "ipykernel install" in doctor.kernel().advice

    def none(self, name):
        raise NoSuchKernel(name)

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", none)
    assert doctor.kernel().verdict == "problem"


def test_the_table_is_aligned_and_wraps_what_is_long():
    told = doctor.table([doctor.Finding("disk", "ok", "fine"), doctor.Finding("memory", "problem", "a " * 100, "do")])
    assert told.splitlines() == [
        "ok       disk    fine",
        "problem  memory  " + " ".join("a" * 52),
        " " * 17 + " ".join("a" * 48),
        " " * 17 + "-> do",
    ]
