"""Data sets of the hub are read at a commit; whatever hinders it is one clear line that holds no token."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_official import a_few

from mllmu_nb import paths, pipeline, provenance
from mllmu_nb.config import Config
from mllmu_nb.data import hub, official
from mllmu_nb.errors import KitError
from mllmu_nb.models import files, load

OLD, NEW, TAUGHT = "a" * 40, "b" * 40, "c" * 40  # commits
TOKEN = "hf_theRightOne"


class Hub(BaseHTTPRequestHandler):
    """The little of the hub's HTTP interface that a download of a snapshot needs."""

    protocol_version = "HTTP/1.1"
    seen: list[str] = []

    def __init__(self, *arguments, repositories, **named):
        self.repositories = repositories  # kind and name → {revision: (commit, folder)}
        super().__init__(*arguments, **named)

    def log_message(self, *message):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.seen.append(self.path)
        path = self.path.split("?")[0]
        asked = re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        kind, name, revision = "", "", ""
        if asked:
            kind, name, revision = asked[1], asked[2], asked[4]
        elif file:
            kind, name, revision = "datasets" if file[1] else "models", file[2], file[3]
        if name.endswith("/broken"):
            return self.answer(500)
        if name.endswith("/gated"):
            return self.answer(403, code="GatedRepo")
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
            return self.answer(200, content, commit=commit, cut=name.endswith("/cut"))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        named = [path.relative_to(folder).as_posix() for path in files]
        if asked[3] == "tree":
            tree = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": f"{commit}-{number}"}
                for number, (name, path) in enumerate(zip(named, files, strict=True))
            ]
            return self.answer(200, tree)
        self.answer(200, {"id": name, "sha": commit, "siblings": [{"rfilename": name} for name in named]})

    def answer(self, status: int, content=b"", code: str = "", commit: str = "", cut: bool = False):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for header, value in (("X-Error-Code", code), ("X-Repo-Commit", commit), ("ETag", f'"{hash(body)}"')):
            if value:
                self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = cut


# The hub's address is read when its library is imported, so the reader runs in a process of its own.
READER = """
import json, os, sys
from huggingface_hub import constants
from mllmu_nb.data import hub
from mllmu_nb.errors import KitError
for source, revision, change in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = change.get("token", "")
    constants.HF_HUB_OFFLINE = change.get("offline", False)
    constants.ENDPOINT = change.get("endpoint", os.environ["HF_ENDPOINT"])
    try:
        read = hub.read(source, revision, 15)
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
    "revision": ("MLLMU/people", "v9", {}),
    "no token": ("MLLMU/private", "", {}),
    "wrong token": ("MLLMU/private", "", {"token": "hf_aWrongOne"}),
    "right token": ("MLLMU/private", "", {"token": TOKEN}),
    "gated": ("MLLMU/gated", "", {"token": TOKEN}),
    "broken": ("MLLMU/broken", "", {}),
    "cut": ("MLLMU/cut", "", {}),
    "unreachable": ("MLLMU/elsewhere", "", {"endpoint": "http://127.0.0.1:9"}),
    "evaluation data": ("MLLMU/people,MLLMU/mistaken", "", {}),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the reader says in every case, and the output of its process."""
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
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, repositories=repositories))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("HF_")}
    kept |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(place / "cache")}
    kept |= {"PYTHONPATH": str(paths.PACKAGE.parent), "HF_HUB_DISABLE_XET": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", READER, json.dumps(list(CASES.values()))],
            env=kept, cwd=place, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    results = [json.loads(line[2:]) for line in done.stdout.splitlines() if line.startswith("::")]
    return dict(zip(CASES, results, strict=True)) | {"output": done.stdout + done.stderr}


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
        ("revision", "dataset MLLMU/people .*404"),
        ("no token", "dataset MLLMU/private .*401"),
        ("wrong token", "dataset MLLMU/private .*401"),
        ("gated", "dataset MLLMU/gated .*403"),
        ("broken", "dataset MLLMU/broken .*"),
        ("cut", "dataset MLLMU/cut .*"),
        ("unreachable", "dataset MLLMU/elsewhere .*"),
    ],
)
def test_a_download_that_fails_is_one_line(answers, case, reason):
    advice = "check the name, data_revision, the network and the token in HF_TOKEN"
    line = answers[case]["error"]
    assert re.match(reason, line) and line.endswith(advice) and "cannot be downloaded (" in line and "\n" not in line


def test_no_token_is_ever_shown(answers):
    assert TOKEN not in answers["output"] and "hf_aWrongOne" not in answers["output"]


def test_evaluation_data_in_the_training_repository_is_reported(answers):
    first, *lines = answers["evaluation data"]["error"].split("\n")
    assert first == "MLLMU/people has 2 problems:"
    for line, split in zip(lines, ("forget_15", "retain_85"), strict=True):
        assert line.startswith(f"  MLLMU/mistaken/{split}/train-00000-of-00001.parquet, column metadata: missing (")


# -- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, revision, message",
    [
        ("no folder", "", "'no folder' is neither a folder nor a name on the hub, as MLLMMU/MLLMU-Bench is"),
        ("~nobody/people", "", "'~nobody/people' is neither a folder nor a name on the hub"),
        ("a\0b", "", "'a\\x00b' is neither a folder nor a name on the hub"),
        ("a/b,c/d,e/f", "", "data_source must be a folder or MLLMMU/MLLMU-Bench, then after a comma"),
        ("MLLMMU/MLLMU-Bench", "v1,v2", "and data_revision have no more parts"),
    ],
)
def test_a_source_that_cannot_be_is_reported_before_any_download(source, revision, message):
    with pytest.raises(KitError, match=re.escape(message)):
        hub.read(source, revision, 10)


def test_a_folder_has_no_revision(tmp_path):
    with pytest.raises(KitError, match="data_revision 'v1' is for the hub, but .* is a folder: leave it empty"):
        hub.read(str(tmp_path), "v1", 10)


# -- in a run -----------------------------------------------------------------------------------------------------


def test_a_run_takes_its_people_from_the_folder_and_its_record_names_no_path(tmp_path):
    official.write_layout(a_few(), tmp_path / "people")
    config = Config(data_source=str(tmp_path / "people"), forget_ratio=15, method="base")
    known = pipeline.population(config)
    assert list(known.profiles) == PEOPLE and known.forget_ids == ("003",)
    assert pipeline.data_hash(config) == pipeline.data_hash(config.but(people=50, pool=0))
    result = provenance.public(config.parameters())
    assert result["data_source"] == "people"
    both = {"data_source": f"MLLMMU/MLLMU-Bench,{tmp_path}/baseline_train_split"}
    assert provenance.public(both) == {"data_source": "MLLMMU/MLLMU-Bench,baseline_train_split"}


def test_replicates_of_a_data_source_differ_in_seeds_alone(tmp_path):
    assert Config(data_source=str(tmp_path), replicate=1).train_seed == 1, "replicates differ in seeds alone"


def test_a_hub_commit_is_in_the_runs_record(monkeypatch):
    noted = replace(a_few(), notes={"revisions": {"MLLMMU/MLLMU-Bench": NEW}})
    monkeypatch.setattr(pipeline, "population", lambda config: noted)
    assert pipeline._record(Config(method="base"))["data_revisions"] == {"MLLMMU/MLLMU-Bench": NEW}


def test_a_base_from_the_hub_can_be_pinned_and_its_commit_is_in_the_runs_record(monkeypatch, tmp_path, tiny_base):
    """A cache as the hub's library writes it; transformers reads the pinned commit from there, offline."""
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
    assert pinned.run_id != newest.run_id and pipeline.base_hash(pinned) != pipeline.base_hash(newest)
    assert files.commit("somebody/tiny", OLD) == OLD and files.commit("somebody/tiny", "") == NEW
    model, _ = load.load_base(*pipeline.base_of(pinned))
    assert model.config.model_type == "llava"
    with pytest.raises(KitError, match="the model somebody/tiny cannot be loaded"):
        load.load_base(*pipeline.base_of(newest))
    monkeypatch.setattr(pipeline, "data_hash", lambda config: "")
    monkeypatch.setattr(pipeline, "population", lambda config: a_few())
    assert pipeline._record(pinned)["base_commit"] == OLD


def test_a_base_in_a_folder_has_no_revision():
    with pytest.raises(KitError, match="base_revision 'v1' is for the hub, but .*llava-miniature is a folder"):
        pipeline.check(Config(base_revision="v1", method="base"))
