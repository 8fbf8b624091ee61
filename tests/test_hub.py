"""Data sets and models of the hub are read at a commit; each failure gives one clear line without a token."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import traceback
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_official import a_few

from mllmu_nb import hub, inputs, paths, pipeline, provenance
from mllmu_nb.config import Config
from mllmu_nb.data import official
from mllmu_nb.errors import KitError
from mllmu_nb.models import files, load

OLD, NEW, TAUGHT = "a" * 40, "b" * 40, "c" * 40  # commits
LARGE = (".safetensors", ".parquet")  # the hub knows these files by their sha256
TOKEN = "hf_theRightOne"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's HTTP interface that a download of a snapshot needs. With four tokens, weights and parquet
    files fail: ``hf_dead`` (no byte comes), ``hf_once`` (cut in the middle, the rest on the next request), ``hf_wrong``
    (as many bytes, but others) and ``hf_busy`` (429, too many requests)."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str]] = []  # path and Range of each sent file

    def __init__(self, *arguments, repositories, **named):
        self.repositories = repositories  # kind and name → {revision: (commit, folder)}
        super().__init__(*arguments, **named)

    def log_message(self, *message):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        fault = self.headers.get("authorization", "").removeprefix("Bearer hf_")
        asked = re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        kind, name, revision = "", "", ""
        if asked:
            kind, name, revision = asked[1], asked[2], asked[4]
        elif file:
            kind, name, revision = "datasets" if file[1] else "models", file[2], file[3]
        allowed = self.headers.get("authorization") == f"Bearer {TOKEN}"
        if name.endswith("/private") and not allowed:
            return self.answer(401, code="RepoNotFound")
        revisions = self.repositories.get(f"{kind}/{name}")
        if revisions is None:
            return self.answer(404, code="RepoNotFound")
        places = [place for asked_by, place in revisions.items() if revision in (asked_by, place[0])]
        if not places:
            return self.answer(404, code="RevisionNotFound")
        commit, folder = places[0]
        if file:
            content = (folder / file[4]).read_bytes()
            sha, cut = oid(content), len(content) // 2 if name.endswith("/cut") else None
            if file[4].endswith(LARGE) and fault == "busy":
                return self.answer(429)
            if file[4].endswith(LARGE) and self.command == "GET":
                content = bytes(len(content)) if fault == "wrong" else content
                cut = {"dead": 0, "once": None if "Range" in self.headers else len(content) // 2}.get(fault)
            if self.command == "GET":
                self.seen.append((path, self.headers.get("Range", "")))
            return self.answer(200, content, commit=commit, cut=cut, etag=sha)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        named = [path.relative_to(folder).as_posix() for path in files]
        if asked[3] == "tree":
            tree = []
            for name, path in zip(named, files, strict=True):
                content = path.read_bytes()
                tree.append({"type": "file", "path": name, "size": len(content), "oid": oid(content)})
                if name.endswith(LARGE):
                    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
                    tree[-1]["lfs"] = lfs
            return self.answer(200, tree)
        self.answer(200, {"id": name, "sha": commit, "siblings": [{"rfilename": name} for name in named]})

    def answer(self, status: int, content=b"", code: str = "", commit: str = "", cut: int | None = None, etag=""):
        """Send ``content``, or the requested part of it, but at most ``cut`` bytes."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"X-Error-Code": code, "X-Repo-Commit": commit, "ETag": etag and f'"{etag}"'}
        if (begin := self.headers.get("Range")) and cut is None:
            start = int(begin.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            status, body = 206, body[start:]
        self.send_response(status)
        for header, value in headers.items():
            if value:
                self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
            self.close_connection = cut is not None


def oid(content: bytes) -> str:
    """Return a file's git hash, by which the hub knows it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


# The hub's library reads the address when it is imported, so the reader runs in its own process.
READER = """
import json, os, sys, time
time.sleep = lambda seconds: None  # between the library's own tries
from huggingface_hub import constants
from mllmu_nb import hub
from mllmu_nb.errors import KitError
constants.DOWNLOAD_CHUNK_SIZE = 1000
for source, revision, change in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = change.get("token", "")
    constants.HF_HUB_OFFLINE = change.get("offline", False)
    constants.ENDPOINT = change.get("endpoint", os.environ["HF_ENDPOINT"])
    try:
        read = hub.read_people(source, revision, 15)
        result = {"ids": list(read.profiles), "biography": read.profiles["001"].biography, "notes": read.notes}
    except KitError as error:
        result = {"error": str(error)}
    print("::" + json.dumps(result), flush=True)
"""
CASES = {
    "both": ("MLLMU/people,MLLMU/splits", "", {}),
    "tag": ("MLLMU/people", "v1", {}),
    "commit": ("MLLMU/people", OLD, {}),
    "offline": ("MLLMU/people", NEW, {"offline": True}),
    "never fetched": ("MLLMU/private", "", {"offline": True}),
    "unknown": ("MLLMU/nobody", "", {}),
    "wrong token": ("MLLMU/private", "", {"token": "hf_aWrongOne"}),
    "right token": ("MLLMU/private", "", {"token": TOKEN}),
    "cut": ("MLLMU/cut", "", {}),
    "unreachable": ("MLLMU/elsewhere", "", {"endpoint": "http://127.0.0.1:9"}),
    "evaluation data": ("MLLMU/people,MLLMU/mistaken", "", {}),
    "revision": ("MLLMU/people", "v9", {}),
    "wrong": ("MLLMU/faulty", "", {"token": "hf_wrong"}),
    "right": ("MLLMU/faulty", "", {}),
    "wrong splits": ("MLLMU/people,MLLMU/faulty_splits", "", {"token": "hf_wrong"}),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Return what the reader says in every case, and the output of its process."""
    place = tmp_path_factory.mktemp("hub")
    people = a_few()
    changed = replace(people.profiles["001"], biography="Another life.")
    official.write_layout(replace(people, profiles=people.profiles | {"001": changed}), place / "old" / "people")
    official.write_layout(people, place / "new" / "people")
    data, training = place / "new" / "people", place / "new" / "baseline_train_split"
    repositories = {
        "datasets/MLLMU/people": {"main": (NEW, data), "v1": (OLD, place / "old" / "people")},
        "models/MLLMU/splits": {"main": (TAUGHT, training)},
        "datasets/MLLMU/private": {"main": (NEW, data)},
        "datasets/MLLMU/cut": {"main": (NEW, data)},
        "models/MLLMU/mistaken": {"main": (NEW, data)},
        "datasets/MLLMU/faulty": {"main": (NEW, data)},
        "models/MLLMU/faulty_splits": {"main": (TAUGHT, training)},
    }
    return ask(READER, CASES, repositories, place)


def ask(reader: str, cases: dict, repositories: dict, place) -> dict:
    """Return what the code ``reader`` says in every case, in its own process, to a hub with these ``repositories``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, repositories=repositories))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("HF_")}
    kept |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(place / "cache")}
    kept |= {"PYTHONPATH": str(paths.PACKAGE.parent), "HF_HUB_DISABLE_XET": "1", "MLLMU_NB_OUT": str(place / "out")}
    try:
        done = subprocess.run(
            [sys.executable, "-c", reader, json.dumps(list(cases.values()))],
            env=kept, cwd=place, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    results = [json.loads(line[2:]) for line in done.stdout.splitlines() if line.startswith("::")]
    return dict(zip(cases, results, strict=True)) | {"output": done.stdout + done.stderr}


ADVICE = "the token in HF_TOKEN; the same command continues where this one stopped"
PEOPLE = ["001", "002", "003", "004", "005", "006", "007", "c001"]


def test_data_set_and_training_splits_are_read_at_the_newest_commit_which_is_noted(answers):
    result = answers["both"]
    assert result["ids"] == PEOPLE and result["biography"] == "Tilda Quist comes from Turku.\nA judge."
    assert result["notes"]["revisions"] == {"MLLMU/people": NEW, "MLLMU/splits": TAUGHT}
    assert (result["notes"]["folder"], result["notes"]["taught_otherwise"]) == ("MLLMU/people", [])


def test_a_tag_or_commit_gives_that_state_and_the_commit_is_noted(answers):
    for case in ("tag", "commit"):
        assert answers[case]["biography"] == "Another life."
        assert answers[case]["notes"]["revisions"] == {"MLLMU/people": OLD}


def test_what_was_fetched_once_is_read_without_a_network(answers):
    assert answers["offline"]["ids"] == PEOPLE
    assert answers["offline"]["notes"]["revisions"] == {"MLLMU/people": NEW}


def test_the_right_token_opens_what_is_private(answers):
    assert answers["right token"]["ids"] == PEOPLE


@pytest.mark.parametrize(
    "case, reason",
    [
        ("never fetched", "dataset MLLMU/private .*HF_HUB_OFFLINE"),
        ("unknown", "dataset MLLMU/nobody .*404"),
        ("wrong token", "dataset MLLMU/private .*401"),
        ("cut", "dataset MLLMU/cut .*"),
        ("unreachable", "dataset MLLMU/elsewhere .*"),
        ("revision", "dataset MLLMU/people .*404"),
    ],
)
def test_a_download_that_fails_is_one_line(answers, case, reason):
    line = answers[case]["error"]
    assert re.match(reason, line) and line.endswith(ADVICE) and "cannot be downloaded (" in line and "\n" not in line


def test_people_of_another_hash_are_removed_and_fetched_anew(answers):
    wrong = "does not have the hub's hash and was removed: run the same command again"
    pattern = rf"dataset MLLMU/faulty: (\w+/train-0000\d-of-0000\d.parquet, ){{2}}\S+ and \d more {wrong}"
    assert re.fullmatch(pattern, answers["wrong"]["error"])
    assert re.fullmatch(rf"model MLLMU/faulty_splits: .*parquet {wrong}", answers["wrong splits"]["error"])
    assert answers["right"]["ids"] == PEOPLE


def test_two_damaged_files_of_one_content_are_one_line(tmp_path, monkeypatch):
    """The hub's cache holds their content once."""
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    (snapshot := tmp_path / "commit").mkdir()
    (tmp_path / "blob").write_text("damaged")
    for name in ("a.json", "b.json"):
        (snapshot / name).symlink_to(tmp_path / "blob")
    checked = SimpleNamespace(mismatches=[{"path": "a.json"}, {"path": "b.json"}])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *source, **wanted: str(snapshot))
    monkeypatch.setattr("huggingface_hub.HfApi.verify_repo_checksums", lambda *source, **which: checked)
    with pytest.raises(KitError, match="a.json, b.json does not have the hub's hash and was removed: run the same"):
        hub.fetch("a/b")
    assert not list(snapshot.iterdir())


def test_no_token_is_ever_shown(answers):
    assert TOKEN not in answers["output"] and "hf_aWrongOne" not in answers["output"]


def test_the_password_of_a_mirror_is_never_shown():
    """Nor in the traceback that an executed notebook holds."""
    with pytest.raises(KitError) as error, hub._explained("model a/b"):
        raise OSError("401 for url 'http://robot:s3cret@127.0.0.1:8401/api'")
    said = "".join(traceback.format_exception(error.value))
    assert "s3cret" not in said and "http://127.0.0.1:8401/api" in said


def test_evaluation_data_in_the_training_repository_is_reported(answers):
    first, *lines = answers["evaluation data"]["error"].split("\n")
    assert first == "MLLMU/people has 2 problems:"
    for line, split in zip(lines, ("forget_15", "retain_85"), strict=True):
        assert line.startswith(f"  MLLMU/mistaken/{split}/train-00000-of-00001.parquet, column metadata: missing (")


# -- models -------------------------------------------------------------------------------------------------------

MODEL_READER = """
import json, os, sys, time
time.sleep = lambda seconds: None  # between the library's own tries
from huggingface_hub import constants
from mllmu_nb import hub
from mllmu_nb.errors import KitError
constants.DOWNLOAD_CHUNK_SIZE = 1000
for source, revision, change in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = change.get("token", "")
    constants.HF_HUB_OFFLINE = change.get("offline", False)
    if change.get("damage"):  # by a disk, or a copy from elsewhere
        weights = hub.fetch(source, revision) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    try:
        result = {"commit": hub.fetch(source, revision).name}
        if change.get("load"):
            from mllmu_nb.models.load import load_model
            result["type"] = load_model(source, "llava", "paper", revision)[0].config.model_type
    except KitError as error:
        result = {"error": str(error)}
    print("::" + json.dumps(result), flush=True)
"""
BASE, VANILLA = "llava-hf/llava-1.5-7b-hf", "MLLMMU/LLaVA_Vanilla"
MODELS = {
    "never fetched": (BASE, "", {"offline": True}),
    "private": ("MLLMMU/private", "", {"token": "hf_aWrongOne"}),
    "dead": (BASE, "", {"token": "hf_dead"}),
    "again": (BASE, "", {}),
    "pinned": (BASE, OLD, {"token": "hf_once"}),
    "wrong": (VANILLA, "", {"token": "hf_wrong"}),
    "busy": (VANILLA, OLD, {"token": "hf_busy"}),
    "right": (VANILLA, "", {}),
    "offline": (VANILLA, "", {"offline": True, "load": True}),
    "revision": (VANILLA, "v9", {}),
    "damaged": (VANILLA, "", {"damage": True}),
}


@pytest.fixture(scope="module")
def fetched(tmp_path_factory, tiny_base):
    """Return what fetching base and vanilla says in every case, and ``seen``: the files that were sent."""
    place = tmp_path_factory.mktemp("models")
    older = shutil.copytree(tiny_base, place / "older")
    save_file({"other": np.zeros(5000, "float32")}, older / "model.safetensors")
    repositories = {
        f"models/{BASE}": {"main": (NEW, tiny_base), "v1": (OLD, older)},
        f"models/{VANILLA}": {"main": (TAUGHT, tiny_base), "v1": (OLD, older)},
    }
    Hub.seen.clear()
    return ask(MODEL_READER, MODELS, repositories, place) | {"seen": list(Hub.seen)}


@pytest.mark.parametrize(
    "case, reason",
    [
        ("never fetched", f"model {BASE} .*HF_HUB_OFFLINE"),
        ("private", "model MLLMMU/private cannot be downloaded .*401"),
        ("dead", f"model {BASE} cannot be downloaded"),
        ("revision", f"model {VANILLA} .*404"),
        ("busy", f"model {VANILLA} .*429"),
    ],
)
def test_a_model_that_cannot_be_fetched_is_one_line(fetched, case, reason):
    line = fetched[case]["error"]
    assert re.match(reason, line) and "\n" not in line and line.endswith(ADVICE)
    assert TOKEN not in fetched["output"] and "hf_aWrongOne" not in fetched["output"]


def test_another_try_fetches_only_what_is_missing(fetched):
    assert fetched["again"] == {"commit": NEW}
    sent = [path for path, _ in fetched["seen"] if path.startswith(f"/{BASE}/resolve/{NEW}/")]
    assert sent.count(f"/{BASE}/resolve/{NEW}/config.json") == 1
    assert sent.count(f"/{BASE}/resolve/{NEW}/model.safetensors") > 1


def test_a_connection_that_is_cut_is_taken_up_in_the_middle_of_the_file(fetched):
    assert fetched["pinned"] == {"commit": OLD}
    ranges = [asked for path, asked in fetched["seen"] if path == f"/{BASE}/resolve/{OLD}/model.safetensors"]
    assert ranges[0] == "" and len(ranges) == 2
    assert 0 < int(re.fullmatch(r"bytes=(\d+)-", ranges[1])[1])


def test_weights_of_another_hash_are_removed_and_fetched_anew(fetched):
    """This can happen when they arrive, and later on the disk."""
    for case in ("wrong", "damaged"):
        assert fetched[case]["error"] == (
            f"model {VANILLA}: model.safetensors does not have the hub's hash and was removed: run the same command "
            "again"
        )
    assert fetched["right"] == {"commit": TAUGHT}


def test_what_was_fetched_is_loaded_without_a_network(fetched):
    assert fetched["offline"] == {"commit": TAUGHT, "type": "llava"}


def test_a_run_fetches_base_and_vanilla_before_anything_else(monkeypatch):
    wanted = []
    monkeypatch.setattr(inputs.hub, "fetch", lambda *asked: wanted.append(asked))
    config = Config(scale="paper", base_revision=OLD, vanilla_path=VANILLA, vanilla_revision=TAUGHT)
    inputs.fetch(config)
    assert wanted == [(VANILLA, TAUGHT), (inputs.family(config).hub, OLD)]
    inputs.fetch(Config())
    assert len(wanted) == 2, "the miniature's base comes with the kit"


# -- names --------------------------------------------------------------------------------------------------------

FORM = "must be a folder or MLLMMU/MLLMU-Bench, then after a comma MLLMMU/baseline_train_split or nothing"
EXCHANGED = (
    "MLLMMU/baseline_train_split",
    "MLLMMU/baseline_train_split, MLLMMU/MLLMU-Bench",
    "MLLMMU/MLLMU-Bench,MLLMMU/MLLMU-Bench",
)


@pytest.mark.parametrize(
    "source, revision, message",
    [
        ("no folder", "", "'no folder' is neither a folder nor a name on the hub, as MLLMMU/MLLMU-Bench is"),
        ("~nobody/people", "", "'~nobody/people' is neither a folder nor a name on the hub"),
        ("a\0b", "", "'a\\x00b' is neither a folder nor a name on the hub"),
        ("a/b,c/d,e/f", "", "data_source must be a folder or MLLMMU/MLLMU-Bench, then after a comma"),
        ("MLLMMU/MLLMU-Bench", "v1,v2", "and data_revision have no more parts"),
        *(
            (exchanged, "", f"{FORM}, and data_revision have no more parts: this is {exchanged}")
            for exchanged in EXCHANGED
        ),
    ],
)
def test_a_source_that_cannot_be_is_reported_before_any_download(source, revision, message):
    with pytest.raises(KitError, match=re.escape(message)):
        hub.read_people(source, revision, 10)


def test_a_folder_has_no_revision(tmp_path):
    with pytest.raises(KitError, match="data_revision 'v1' is for the hub, but .* is a folder: leave it empty"):
        hub.read_people(str(tmp_path), "v1", 10)


# -- in a run -----------------------------------------------------------------------------------------------------


def test_a_run_takes_its_people_from_the_folder_and_its_record_names_no_path(tmp_path):
    official.write_layout(a_few(), tmp_path / "people")
    config = Config(data_source=str(tmp_path / "people"), forget_ratio=15, method="base")
    known = inputs.population(config)
    assert list(known.profiles) == PEOPLE and known.forget_ids == ("003",)
    result = provenance.public(config.parameters())
    assert result["data_source"] == "people"
    both = {"data_source": f"MLLMMU/MLLMU-Bench,{tmp_path}/baseline_train_split"}
    assert provenance.public(both) == {"data_source": "MLLMMU/MLLMU-Bench,baseline_train_split"}


def test_a_run_that_would_train_on_nobody_is_refused_before_vanilla_is_trained(tmp_path, monkeypatch):
    only = {name: one for name, one in a_few().profiles.items() if name == "003" or one.kind != "fictitious"}
    official.write_layout(replace(a_few(), profiles=only), tmp_path / "people")
    people = {"data_source": str(tmp_path / "people"), "forget_ratio": 15, "shots": 0}
    config = Config(**people, method="grad_diff", modality="unimodal")
    with pytest.raises(KitError, match="grad_diff trains on retain questions, and there are none: nobody in that set"):
        inputs.check(config)
    inputs.check(config.but(method="ga"))
    unnamed = {name: replace(one, name="") for name, one in only.items()}
    monkeypatch.setattr(inputs, "population", lambda config: replace(a_few(), profiles=unnamed))
    with pytest.raises(KitError, match="ga trains on forget questions, .* nobody whose names could be read"):
        inputs.check(config.but(method="ga"))


def test_replicates_of_a_data_source_differ_in_seeds_alone_and_share_its_people(tmp_path):
    official.write_layout(a_few(), tmp_path / "people")
    first, other = (Config(data_source=str(tmp_path / "people"), forget_ratio=15, replicate=n) for n in (0, 1))
    assert (first.train_seed, other.train_seed) == (0, 1)
    seeded = first.but(seed=7)
    assert (seeded.data_seed, seeded.train_seed) == (0, 7), "its people are the same, and so no one counts twice"
    assert inputs.population(first) is inputs.population(other), "their pictures would be in memory twice"


def test_a_hub_commit_is_in_the_runs_record(monkeypatch):
    noted = replace(a_few(), notes={"revisions": {"MLLMMU/MLLMU-Bench": NEW}})
    monkeypatch.setattr(inputs, "population", lambda config: noted)
    assert inputs.record_of(Config(method="base"))["data_revisions"] == {"MLLMMU/MLLMU-Bench": NEW}


def test_a_base_from_the_hub_can_be_pinned_and_its_commit_is_in_the_runs_record(monkeypatch, tmp_path, tiny_base):
    """The cache has the form that the hub's library writes; transformers reads the pinned commit from it, offline."""
    repository = tmp_path / "models--somebody--tiny"
    for commit in (NEW, OLD):
        shutil.copytree(tiny_base, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEW)
    (repository / "snapshots" / NEW / "config.json").write_text("{}")
    for module in ("huggingface_hub.constants.HF_HUB_CACHE", "huggingface_hub.file_download.HF_HUB_CACHE"):
        monkeypatch.setattr(module, str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pinned = Config(scale="paper", base_path="somebody/tiny", base_revision=OLD, method="base")
    newest = pinned.but(base_revision="")
    assert pinned.run_id != newest.run_id and inputs.base_hash(pinned) != inputs.base_hash(newest)
    assert files.commit("somebody/tiny", OLD) == OLD and files.commit("somebody/tiny", "") == NEW
    model, _ = load.load_base(*inputs.base_of(pinned))
    assert model.config.model_type == "llava"
    weights = repository / "snapshots" / OLD / "model.safetensors"
    save_file({name: value.astype("int8") for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(KitError, match=f"{OLD}/model.safetensors has integers as weights"):
        load.load_base(*inputs.base_of(pinned))
    with pytest.raises(KitError, match="the model somebody/tiny cannot be loaded"):
        load.load_base(*inputs.base_of(newest))
    monkeypatch.setattr(inputs, "data_hash", lambda config: "")
    monkeypatch.setattr(inputs, "population", lambda config: a_few())
    both = inputs.record_of(pinned.but(vanilla_path="somebody/tiny", vanilla_revision=NEW))
    assert (both["base_commit"], both["vanilla_commit"]) == (OLD, NEW)


def test_a_base_in_a_folder_has_no_revision():
    with pytest.raises(KitError, match="base_revision 'v1' is for the hub, but .*llava-miniature is a folder"):
        inputs.check(Config(base_revision="v1", method="base"))


@pytest.mark.parametrize("name", ["base", "vanilla"])
def test_a_stage_of_another_commit_is_refused_where_no_revision_is_named(name, monkeypatch, tmp_path):
    """The newest commit has changed since training: the stage's weights would be put on another model."""
    (tmp_path / pipeline.RECORD).write_text(json.dumps({f"{name}_commit": OLD}))
    for known in ({f"{name}_commit": OLD}, {}):  # the same commit, or none in the cache
        monkeypatch.setattr(inputs, "record_of", lambda config, known=known: known)
        pipeline.check_commits(Config(), tmp_path)
    monkeypatch.setattr(inputs, "record_of", lambda config: {f"{name}_commit": NEW})
    with pytest.raises(KitError, match=f"commit {OLD} of the {name} model, whose newest is {NEW}: set {name}_revision"):
        pipeline.check_commits(Config(), tmp_path)
