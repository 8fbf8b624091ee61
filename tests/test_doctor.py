"""The doctor: what it calls a problem, what it advises, and that it neither loads, downloads nor prints a token."""

import http.server
import json
import threading
from types import SimpleNamespace

import pytest
import torch

from mllmu_nb import __main__ as door
from mllmu_nb import inputs, paths, pinning, prediction, provenance, stages
from mllmu_nb.commands import doctor
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.models import adapters, files, load

PAPER = Config(scale="paper", people=500)
SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25}
pytestmark = pytest.mark.usefixtures("out")


@pytest.fixture
def endpoint(monkeypatch):
    """A local hub that answers as a test tells it to; ``asked`` holds the requests."""
    told = SimpleNamespace(status=200, asked=[], files=["model-00001-of-00002.safetensors"])

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            told.asked.append((self.path, self.headers.get("Authorization")))
            body = json.dumps({"id": "a/b", "siblings": [{"rfilename": name} for name in told.files]}).encode()
            self.send_response(told.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

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


# -- the whole command --------------------------------------------------------------------------------------------


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
        provenance.machine()["cpu"],
        "MKL_CBWR=",
    ):
        assert text in shown


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf"])
def test_a_rate_that_is_none_is_refused(rate, capsys):
    assert door.main(["doctor", "none.yaml", "--rate", rate]) == 2
    assert capsys.readouterr().err == f"error: --rate must be a number above 0, not {float(rate)}\n"


def test_a_problem_sets_the_exit_status_and_says_what_to_do(tmp_path, monkeypatch, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text(json.dumps({**SMALL, "base_path": str(tmp_path / "none")}))
    assert door.main(["doctor", str(grid)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "problem model the base model in" in shown and "lacks config.json" in shown
    assert "problem memory base_path" in shown and "has no config.json, here or in the hub's cache: name a" in shown
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 10**9}}))
    assert door.main(["doctor", str(grid)]) == 1
    assert "has num_hidden_layers: 1000000000, more than any model has" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "file"))
    with pytest.raises(KitError, match="cannot write to .* set MLLMU_NB_OUT to another folder"):
        doctor.model([Config(**SMALL)])
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
    finding = doctor.versions([PAPER.but(quantise_base="nf4")])
    assert finding.text == "bitsandbytes missing (needs >=0.46.1)" and "pip install bitsandbytes" in finding.advice


@pytest.mark.parametrize("there, verdict", [(80, "ok"), (48, "warning"), (24, "problem")])
def test_memory_is_compared_with_what_the_largest_run_needs(monkeypatch, there, verdict):
    needs = {"answers": {"weights": 20.0}, "unlearning": {"weights": 43.0, "libraries": 1.0}}
    monkeypatch.setattr(doctor, "memory_of_stages", lambda configs: needs)
    monkeypatch.setattr(doctor, "machine_memory", lambda: there * doctor.GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finding = doctor.memory([PAPER])
    text = f"about 44.0 GiB needed for unlearning (weights 43.0, libraries 1.0); {there}.0 GiB available"
    assert finding[:2] == (verdict, f"{text}; the other stages need answers 20.0")
    device = doctor.device([PAPER])
    assert device.verdict == "problem" and "the 7B models need a GPU" in device.advice


@pytest.mark.parametrize("count, at_once", [(2, 2), (5, 3)])
def test_the_memory_of_a_sweep_is_that_of_the_runs_that_it_makes_at_once(monkeypatch, count, at_once):
    monkeypatch.setattr(doctor, "memory_of_stages", lambda configs: {"answers": {"weights": 1.0}})
    monkeypatch.setattr(doctor.sweep, "usual_jobs", lambda configs: 3)
    text = doctor.memory([Config(replicate=number) for number in range(count)]).text
    assert text.startswith(
        f"about {at_once}.0 GiB needed for answers in {at_once} runs at once (weights {at_once}.0); "
    )


def test_the_advice_for_too_little_memory_names_parameters(monkeypatch):
    monkeypatch.setattr(doctor, "memory_of_stages", lambda configs: {"answers": {"weights": 1e6}})
    named = doctor.memory([PAPER]).advice.partition(", or set ")[2].split(", ")
    assert len(named) > 3 and set(named) <= set(Config.model_fields)


def test_a_vanilla_model_that_is_given_needs_no_memory_for_its_fine_tuning(monkeypatch):
    estimate = SimpleNamespace(answering=lambda *given: {"weights": 1.0}, training=lambda *given: {"weights": 9.0})
    monkeypatch.setattr(doctor, "estimate", lambda base: estimate)
    given = PAPER.but(vanilla_path="a/b")
    assert list(doctor.memory_of_stages([given])) == ["answers"]
    assert list(doctor.memory_of_stages([given.but(method="oracle")])) == ["answers", "fine-tuning"]


@pytest.mark.parametrize(
    "changed, verdict", [({}, "ok"), ({"MKL_CBWR": ""}, "warning"), ({"ATEN_CPU_CAPABILITY": "default"}, "warning")]
)
def test_bits_that_are_not_pinned_are_a_warning(monkeypatch, changed, verdict):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, value in {**pinning.VARIABLES, **changed}.items():
        monkeypatch.setenv(name, value)
    assert doctor.device([Config()]).verdict == verdict


def test_a_gpu_that_only_emulates_bfloat16_is_a_problem(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(provenance, "machine", lambda: {"device": "V100", "cpu": "c", "capability": "avx2", "bits": {}})
    finding = doctor.device([PAPER])
    assert finding.verdict == "problem" and finding.advice.startswith("take a GPU of the year 2020 or later, or set")
    # the miniature, upstream and what is only asked do not compute in bfloat16
    assert doctor.device([Config(), PAPER.but(protocol="upstream"), PAPER.but(method="base")]).verdict == "ok"
    assert doctor.device([PAPER.but(method="base", eval_precision="bf16")]).verdict == "problem"


@pytest.mark.slow
def test_memory_and_hours_are_those_of_every_base(monkeypatch):
    def missing(*given, **more):
        raise OSError("none")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", missing)
    other = PAPER.but(base_model="idefics2")
    needs = doctor.memory_of_stages
    less, most = (sum(needs([config])["fine-tuning"].values()) for config in (other, PAPER))
    assert less < most == sum(needs([other, PAPER])["fine-tuning"].values())
    asked = [PAPER.but(method="base", eval_precision=precision) for precision in ("bf16", "fp32")]
    assert needs(asked) == needs(asked[1:]) != needs(asked[:1]) and list(needs(asked)) == ["answers"]
    larger = PAPER.but(method="base", eval_batch=64)
    letters = (one.but(scoring="letter") for one in (asked[0], larger))
    few, many = (needs([one])["answers"]["keys and values"] for one in letters)
    assert many > 5 * few
    stages = needs([ga := PAPER.but(method="ga", modality="unimodal", checkpointing=True)])
    assert list(stages) == ["answers", "fine-tuning", "unlearning", "points of a path"]
    for precision, card in (("fp32", 40), ("bf16", 24)):  # as README says
        path = needs([ga.but(precision=precision)])["points of a path"]
        assert 0.7 * card < sum(path.values()) < 0.9 * card
    assert larger.run_id != larger.but(eval_batch=0).run_id == PAPER.but(method="base").run_id

    def hours(configs, estimate, rate):
        assert len({config.base_model for config in configs}) == 1
        return {"vanilla": (1, estimate.parameters / 1e9), "answers": (len(configs), 1.0)}

    monkeypatch.setattr(prediction, "hours", hours)
    text = doctor.hours([PAPER, other, other.but(method="oracle")], rate=100).text
    assert text.startswith("about 17 hours one after the other (2 vanilla 15, 3 answers 2)")


def test_the_7b_run_needs_its_published_parameters_and_no_file(monkeypatch):
    def missing(*given, **more):
        raise OSError("none")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", missing)
    need = doctor.estimate(inputs.base_of(PAPER)).training(PAPER.training, full=False)
    assert need["weights"] == pytest.approx(2 * 7_063_427_072 / doctor.GIB)
    assert need["trained with their states"] == pytest.approx(16 * 39_976_960 / doctor.GIB)
    assert 25 < sum(need.values()) < 60  # without checkpointing 24 GiB of a GPU are too few, 80 are enough
    bases = (PAPER.but(method="base", shots=n, scoring="letter") for n in (5, 0))
    asked, least = (sum(doctor.memory_of_stages([base])["answers"].values()) for base in bases)
    assert 13.2 < least < asked < 24, "worked examples are held once"
    assert doctor.memory_of_stages([PAPER])["fine-tuning"] == need


def test_hours_say_what_was_assumed_and_go_by_the_rate_that_is_given(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        prediction, "hours", lambda configs, estimate, rate: {"vanilla": (1, 2e15 / rate("bf16").flops)}
    )
    monkeypatch.setattr(doctor, "estimate", lambda base: None)
    text = doctor.hours([PAPER]).text
    assert text == "about 5.1 hours one after the other (1 vanilla 5.1); " + (
        "bf16 training at 396 TFLOP/s, 40% of what an H100 has: see --rate"
    )
    slow = doctor.hours([PAPER], rate=100)
    assert slow.text.endswith("(1 vanilla 20); bf16 training at 100 TFLOP/s") and "--shard" in slow.advice


def test_people_that_cannot_be_are_a_problem_and_those_of_the_hub_are_read_later(tmp_path):
    with pytest.raises(KitError, match="Full_Set"):
        doctor.people([Config(data_source=str(tmp_path))])
    finding = doctor.people([Config(data_source="MLLMMU/MLLMU-Bench", scale="paper")])
    assert finding.verdict == "ok" and finding.text.startswith("MLLMMU/MLLMU-Bench: read, and their schema checked")


def test_every_base_of_the_grid_is_looked_at(tmp_path):
    configs = [Config(**SMALL), Config(**SMALL, base_model="idefics2")]
    assert all(f"base model {name}-miniature, hash " in doctor.model(configs).text for name in ("llava", "idefics2"))
    configs[1] = Config(**{**SMALL, "scale": "paper", "base_model": "idefics2", "base_path": str(tmp_path)})
    with pytest.raises(KitError, match="config.json"):
        doctor.model(configs)


def test_what_a_sweep_refuses_at_once_is_a_problem(tmp_path, monkeypatch, capsys):
    """A damaged run beside the grid, and a method without one notebook."""
    grid = tmp_path / "grid.yaml"
    grid.write_text(json.dumps({**SMALL, "grid": {"method": ["vanilla"]}}))
    other = inputs.run_folder(Config(people=30))
    other.mkdir(parents=True)
    (other / stages.RECORD).write_text("{}")
    assert door.main(["doctor", str(grid)]) == 1
    assert f"problem  model     a file of the run in {other} was changed or cut off: make" in capsys.readouterr().out
    monkeypatch.setattr(paths, "notebooks", lambda: tmp_path)
    assert door.main(["doctor", str(grid)]) == 1
    assert "problem  model     there must be one notebook for method 'vanilla', not 0: " in capsys.readouterr().out


def test_a_base_that_does_not_come_with_the_kit_or_is_nowhere_is_a_problem():
    with pytest.raises(KitError, match="`make base BASES=qwen2_5_vl` builds one"):
        doctor.model([Config(base_model="qwen2_5_vl", **SMALL)])


# -- the hub ------------------------------------------------------------------------------------------------------

HUB = Config(scale="paper", data_source="MLLMMU/MLLMU-Bench,MLLMMU/baseline_train_split")


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


def test_the_hub_is_asked_for_every_model_and_revision(endpoint):
    first = Config(
        **{"scale": "paper", "data_source": "MLLMMU/MLLMU-Bench,MLLMMU/baseline_train_split", "data_revision": "a,b"},
        **{"vanilla_path": "MLLMMU/LLaVA_Vanila", "vanilla_revision": "c"},
    )
    finding = doctor.hub([first, HUB.but(base_model="idefics2", base_revision="d")])
    assert [path for path, _ in endpoint.asked] == [
        "/api/models/llava-hf/llava-1.5-7b-hf",
        "/api/models/MLLMMU/LLaVA_Vanila/revision/c",
        "/api/datasets/MLLMMU/MLLMU-Bench/revision/a",
        "/api/models/MLLMMU/baseline_train_split/revision/b",
        "/api/models/HuggingFaceM4/idefics2-8b/revision/d",
        "/api/datasets/MLLMMU/MLLMU-Bench",
        "/api/models/MLLMMU/baseline_train_split",
    ]
    assert finding.verdict == "ok"
    endpoint.status = 404
    assert doctor.hub([first.but(base_revision="nosuch")]).text.startswith("llava-hf/llava-1.5-7b-hf@nosuch: ")


def test_a_model_of_the_hub_without_safetensors_is_a_problem(endpoint):
    released = HUB.but(vanilla_path="MLLMMU/LLaVA_Vanila", base_path=str(files.ASSETS / "llava-miniature"))
    assert doctor.hub([released]).verdict == "ok"
    endpoint.files = ["config.json", "pytorch_model.bin"]
    finding = doctor.hub([released.but(vanilla_revision="c")])
    assert finding[:2] == ("problem", "MLLMMU/LLaVA_Vanila@c holds no safetensors; a token is set")
    assert finding.advice.startswith("only safetensors are loaded")
    assert doctor.hub([HUB.but(base_path=released.base_path)]).verdict == "ok", "the splits are no model's weights"


def test_repositories_of_the_hub_in_each_others_place_are_named_before_the_hub_is_asked(endpoint):
    with pytest.raises(KitError, match="must be a folder or MLLMMU/MLLMU-Bench, then after a comma MLLMMU/baseline_"):
        doctor.hub([HUB.but(data_source="MLLMMU/baseline_train_split")])
    assert not endpoint.asked


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
