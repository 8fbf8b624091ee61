"""Stages: made once, whole or not at all, by one process at a time; and what they say about themselves."""

import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mllmu_nb import paths, provenance, stages
from mllmu_nb.errors import KitError

# A stage that appends to a log when it works, says when it is in the middle, and takes its time.
SLOW = """
import sys, time
from pathlib import Path
from mllmu_nb import stages
log, seconds = Path(sys.argv[1]), float(sys.argv[2])
def make(folder):
    (folder / "half").write_text("half")
    with open(log, "a") as file:
        file.write("at work\\n")
    time.sleep(seconds)
    (folder / "rest").write_text("rest")
print(stages.stage("slow", {"x": 1}, make))
"""


@pytest.fixture(autouse=True)
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    return tmp_path / "out"


def write(text, calls=None):
    def make(folder: Path):
        (folder / "file").write_text(text)
        if calls is not None:
            calls.append(text)

    return make


def slow(log: Path, seconds: float) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(paths.PACKAGE.parent)}
    command = [sys.executable, "-c", SLOW, str(log), str(seconds)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_the_same_inputs_are_made_once_and_others_anew():
    calls = []
    first = stages.stage("demo", {"lr": 0.1, "ids": ["a"]}, write("one", calls))
    again = stages.stage("demo", {"ids": ["a"], "lr": 0.1}, write("two", calls))
    other = stages.stage("demo", {"lr": 0.2, "ids": ["a"]}, write("three", calls))
    assert first == again != other and calls == ["one", "three"]
    assert (first / "file").read_text() == "one"
    assert stages.place("demo", {"lr": 0.1, "ids": ["a"]}) == first


def test_a_stage_that_fails_leaves_nothing(out):
    def make(folder):
        (folder / "file").write_text("half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        stages.stage("demo", {}, make)
    assert not stages.place("demo", {}).exists()
    assert [path for path in out.rglob("*") if path.is_file() and "locks" not in path.parts] == []
    assert (stages.stage("demo", {}, write("whole")) / "file").read_text() == "whole"


def test_two_processes_do_the_work_once(tmp_path):
    log = tmp_path / "log"
    both = [slow(log, 1.0), slow(log, 1.0)]
    said = [process.communicate(timeout=30)[0] for process in both]
    assert said[0] == said[1] and [process.returncode for process in both] == [0, 0]
    assert log.read_text() == "at work\n"


def test_a_killed_stage_is_swept_up_and_made_by_the_next_run(tmp_path, out):
    log = tmp_path / "log"
    process = slow(log, 60)
    wait_for(log.exists)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    place = stages.place("slow", {"x": 1})
    left = list((out / ".cache" / ".unfinished").iterdir())
    assert not place.exists() and [(path / "half").read_text() for path in left] == ["half"]
    told = slow(log, 0).communicate(timeout=30)[0]
    assert told.strip() == str(place) and (place / "rest").read_text() == "rest"
    assert list((out / ".cache" / ".unfinished").iterdir()) == []


def test_a_whole_folder_takes_the_place_of_an_older_one(out):
    folder = out / "runs" / "a"
    for text in ("old", "new"):
        with stages.lock(folder), stages.whole(folder) as partial:
            (partial / text).write_text(text)
            assert folder.exists() == (text == "new"), "the old one stays until the new one is done"
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in folder.parent.glob("*")] == ["a"], "nothing lies beside finished folders"


def test_an_output_folder_that_cannot_be_written_is_named_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "file"))
    calls = []
    with pytest.raises(KitError) as raised:
        stages.stage("demo", {}, write("one", calls))
    where = tmp_path / "file" / ".cache" / "locks"
    assert str(raised.value) == f"cannot write to {where} (Not a directory): set MLLMU_NB_OUT to another folder"
    assert calls == []


def test_a_stage_tells_what_made_it_and_nothing_about_who_or_where():
    parameters = {"base_path": "/home/somebody/llava", "profiles_file": "", "seed": 1}
    folder = stages.stage("demo", {"x": 1}, write("one"), {"parameters": parameters, "scale": "miniature"})
    text = (folder / stages.RECORD).read_text()
    told = json.loads(text)
    assert told["parameters"] == {"base_path": "llava", "profiles_file": "", "seed": 1}
    assert told["scale"] == "miniature" and told["key"] == folder.name and told["seconds"] >= 0
    assert {"python", "torch", "transformers", "peft", "mllmu_nb"} <= set(told["versions"])
    assert told["device"] and "commit" in told and "dirty" in told
    for private in (str(Path.home()), str(paths.root()), socket.gethostname(), f"/{getpass.getuser()}/"):
        assert private not in text


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setattr(provenance, "_git", lambda *arguments: None)
    assert (provenance.commit(), provenance.dirty()) == ("unknown", None)


def test_code_counts_and_its_wording_does_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def hash_of(source):
        (tmp_path / "a_method.py").write_text(source)
        stages._meaning.cache_clear()
        return stages.code_hash(["a_method"])

    plain = hash_of('"""Loss."""\ndef loss(x):\n    """Doc."""\n    return -x\n')
    assert plain == hash_of('"""Another."""\n\n\ndef loss(x):  # why\n    return (-x)\n')
    assert plain != hash_of('"""Loss."""\ndef loss(x):\n    return x\n')


def test_unreadable_json_is_named(tmp_path):
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(KitError, match="cannot read .*train.json"):
        stages.read_json(tmp_path / "train.json")
    with pytest.raises(ValueError):
        stages.write_json(tmp_path / "x.json", {"loss": float("nan")})
