"""Stages: made once, completely or not at all, by one process at a time; keys from inputs and code; their records."""

import errno
import getpass
import importlib
import inspect
import json
import linecache
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mllmu_nb import paths, pipeline, stages, unlearning
from mllmu_nb.config import Config, stable_hash
from mllmu_nb.errors import KitError
from mllmu_nb.models.files import save_weights
from mllmu_nb.reporting import runs
from mllmu_nb.stages import RECORD, Stage, code_of

# A stage that writes to a log when it starts, stays half done for a while, and then ends.
SLOW = """
import sys, time
from mllmu_nb.stages import Stage
def make(folder):
    (folder / "half").write_text("half")
    with open(sys.argv[1], "a") as file:
        file.write("at work\\n")
    time.sleep(float(sys.argv[2]))
    (folder / "rest").write_text("rest")
print(Stage("slow", {"x": 1}, make).get())
"""

# Makes a stage, which also imports everything; then nobody may write, and root becomes another user: root always may.
READ_ONLY = """
import os
from mllmu_nb import paths
from mllmu_nb.errors import KitError
from mllmu_nb.stages import Stage
make = lambda folder: print("at work")
Stage("demo", {"x": 1}, make).get()
for folder, *_ in os.walk(paths.root()):
    os.chmod(folder, 0o555)
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for attempt in (lambda: paths.writable(paths.root()), lambda: paths.writable(paths.root() / "new"),
                Stage("demo", {"x": 2}, make).get):
    try:
        attempt()
    except KitError as error:
        print(error)
"""


@pytest.fixture(autouse=True)
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    return tmp_path / "out"


def demo(inputs, text="one", calls=None, at=None):
    def make(folder: Path):
        (folder / "file").write_text(text)
        if calls is not None:
            calls.append(text)

    return Stage("demo", inputs, make, at=at)


@pytest.fixture
def slow(tmp_path):
    """Starts the slow stage in its own process: → (process, its log)."""
    file, log = tmp_path / "slow.py", tmp_path / "log"
    file.write_text(SLOW)
    environment = {**os.environ, "PYTHONPATH": str(paths.PACKAGE.parent)}

    def start(seconds: float) -> subprocess.Popen:
        command = [sys.executable, str(file), str(log), str(seconds)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    return start, log


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# -- made once, whole or not at all -----------------------------------------------------------------------------


def test_the_same_inputs_are_made_once_and_others_anew():
    calls = []
    first = demo({"lr": 0.1, "ids": ["a"]}, "one", calls).get()
    again = demo({"ids": ["a"], "lr": 0.1}, "two", calls).get()
    other = demo({"lr": 0.2, "ids": ["a"]}, "three", calls).get()
    assert first == again != other and calls == ["one", "three"]
    assert (first / "file").read_text() == "one" and demo({"lr": 0.1, "ids": ["a"]}).finished
    assert first.parent == paths.cache() / "stages" and first.name.startswith("demo-")


def test_another_format_of_the_files_is_another_key(monkeypatch):
    before = demo({}).get()
    monkeypatch.setattr(stages, "FORMAT", stages.FORMAT + 1)
    assert demo({}).folder != before and not demo({}).finished


@pytest.mark.parametrize("text", ["[1]", "{}", "{", '{"files": 3}', '{"files": {}}'])
def test_a_record_that_says_nothing_is_made_anew(text):
    folder = demo({}).get()
    (folder / RECORD).write_text(text)
    assert not demo({}).finished and demo({}).get() == folder and demo({}).finished


@pytest.mark.parametrize("content", [b"two", None], ids=["edited", "missing"])
def test_a_file_that_is_not_as_it_was_written_is_made_anew(content):
    folder, calls = demo({}).get(), []
    (folder / "file").unlink()
    if content is not None:
        (folder / "file").write_bytes(content)
    assert not stages.is_whole(folder)
    assert demo({}, calls=calls).get() == folder and calls == ["one"] and (folder / "file").read_text() == "one"


def test_a_folder_that_is_named_otherwise_gives_way_to_one_of_another_key(out):
    place, calls = out / "runs" / "a", []
    for inputs in ({"lr": 0.1}, {"lr": 0.1}, {"lr": 0.2}):
        assert demo(inputs, str(inputs), calls, at=place).get() == place
    assert calls == ["{'lr': 0.1}", "{'lr': 0.2}"] and (place / "file").read_text() == "{'lr': 0.2}"
    assert [path.name for path in place.parent.iterdir()] == ["a"], "nothing lies beside finished folders"


def test_a_finished_folder_stays_if_the_new_one_cannot_take_its_place(out, monkeypatch):
    """As on Windows, where a program may hold the new folder."""
    place = demo({"lr": 0.1}, "earlier", at=out / "runs" / "a").get()
    replace = os.replace

    def held(source, target):
        if Path(source).name.endswith("~new"):
            raise PermissionError(13, "in use", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", held)
    with pytest.raises(KitError, match="cannot write .*in use"):
        demo({"lr": 0.2}, "new", at=place).get()
    assert (place / "file").read_text() == "earlier" and demo({"lr": 0.1}, at=place).finished


def test_the_folder_above_may_be_a_link_to_another_disk(out, tmp_path, monkeypatch):
    """There, a folder cannot be renamed from this disk."""
    disk, runs = tmp_path / "disk" / "runs", out / "results" / "runs"
    for folder in (disk, runs.parent):
        folder.mkdir(parents=True)
    runs.symlink_to(disk)
    replace = os.replace

    def on_one_disk(source, target):
        both = [Path(place).parent.resolve().is_relative_to(disk.parent) for place in (source, target)]
        if both[0] != both[1]:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", on_one_disk)
    for inputs in ({"lr": 0.1}, {"lr": 0.2}):
        assert (demo(inputs, str(inputs), at=runs / "a").get() / "file").read_text() == str(inputs)
    assert [path.name for path in disk.iterdir()] == ["a"]


def test_a_rank_without_other_processes_waits_for_nobody(monkeypatch):
    """Some clusters set RANK for every job."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda: pytest.fail("made to be thrown away, then waited"))
    assert (demo({}).get() / "file").read_text() == "one"


def test_a_stage_that_fails_leaves_nothing(out):
    def make(folder):
        (folder / "file").write_text("half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        Stage("demo", {}, make).get()
    assert [path for path in out.rglob("*") if path.is_file() and "locks" not in path.parts] == []
    assert (demo({}).get() / "file").read_text() == "one"


def test_two_processes_do_the_work_once(slow):
    start, log = slow
    both = [start(1.0), start(1.0)]
    printed = [process.communicate(timeout=600)[0] for process in both]
    assert printed[0] == printed[1] and [process.returncode for process in both] == [0, 0]
    assert log.read_text() == "at work\n"


def test_a_killed_stage_is_made_by_the_next_run(slow, out):
    start, log = slow
    process = start(60)
    wait_for(log.exists)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    [left] = (out / ".cache" / ".unfinished").iterdir()
    assert (left / "half").read_text() == "half" and not list((out / ".cache").glob("stages/*"))
    place = Path(start(0).communicate(timeout=600)[0].strip())
    assert (place / "rest").read_text() == "rest" and stages.is_whole(place)
    assert list((out / ".cache" / ".unfinished").iterdir()) == []


def test_an_output_folder_that_cannot_be_written_is_named_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "file"))
    calls = []
    with pytest.raises(KitError) as error:
        demo({}, calls=calls).get()
    where = tmp_path / "file" / ".cache" / "locks"
    assert str(error.value) == f"cannot write to {where} (Not a directory): set MLLMU_NB_OUT to another folder"
    assert calls == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_folder_without_the_permission_to_write_is_named_before_any_work():
    with tempfile.TemporaryDirectory() as top:  # not tmp_path, into which another user may not even look
        os.chmod(top, 0o755)
        where = Path(top).resolve() / "out"
        environment = {**os.environ, "PYTHONPATH": str(paths.PACKAGE.parent), "MLLMU_NB_OUT": str(where)}
        how = {"env": environment, "capture_output": True, "text": True, "timeout": 600}
        done = subprocess.run([sys.executable, "-c", READ_ONLY], **how)
        for folder, *_ in os.walk(where):
            os.chmod(folder, 0o755)  # so that it can be removed
    assert done.stderr == "" and done.stdout.splitlines() == [
        "at work",
        *(
            f"cannot write to {folder} (Permission denied): set MLLMU_NB_OUT to another folder"
            for folder in (where, where / "new", where / ".cache" / "locks")
        ),
    ]


# -- what is recorded -------------------------------------------------------------------------------------------


def test_a_record_holds_what_made_the_stage_and_nothing_about_who_or_where():
    parameters = {"base_path": "/home/somebody/llava", "profiles_file": "", "seed": 1}
    stage = demo({"x": 1})
    folder = Stage(
        stage.name, stage.inputs, stage.make, record=lambda: {"parameters": parameters, "scale": "paper"}
    ).get()
    text = (folder / RECORD).read_text()
    record = json.loads(text)
    assert record["parameters"] == {"base_path": "llava", "profiles_file": "", "seed": 1}
    assert record["scale"] == "paper" and record["key"] == folder.name and record["seconds"] >= 0
    assert record["files"] == {"file": {"bytes": 3, "sha256": stages.digest(folder / "file")["sha256"]}}
    assert {"python", "torch", "transformers", "peft", "mllmu_nb"} <= set(record["versions"])
    assert record["device"] and "bits" in record and "commit" in record and "dirty" in record
    for private in (str(Path.home()), str(paths.root()), socket.gethostname(), f"/{getpass.getuser()}/"):
        assert private not in text


def test_json_has_one_line_per_entry_of_the_outer_levels_and_reads_back(tmp_path):
    value = {
        "losses": {"loss": [0.5, 0.25], "retain": [None, 0.125]},
        "of": {"a": {"b": [1, "x\n   y"]}, "c": []},
    }
    stages.write_json(tmp_path / "x.json", value)
    assert stages.read_json(tmp_path / "x.json") == value
    assert (tmp_path / "x.json").read_text().splitlines()[1:4] == [
        ' "losses": {', '  "loss": [ 0.5, 0.25 ],', '  "retain": [ null, 0.125 ]'
    ]  # fmt: skip


def test_a_frame_is_read_back_as_it_was_and_its_file_does_not_describe_it(tmp_path):
    lists = [np.array([1, 2.5], "float16"), np.array([], "float16")]
    frame = pd.DataFrame({"word": ["=1", "é"], "n": np.array([1, 2], "int8"), "x": [0.1, np.nan], "lists": lists})
    stages.write_frame(tmp_path / "x.parquet", frame, use_dictionary=["word"])
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "x.parquet"), frame, check_exact=True)
    frame.to_parquet(tmp_path / "usual.parquet", compression="zstd", index=False)
    assert (tmp_path / "x.parquet").stat().st_size < (tmp_path / "usual.parquet").stat().st_size / 2


def test_unreadable_json_is_named(tmp_path):
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(KitError, match="cannot read .*train.json"):
        stages.read_json(tmp_path / "train.json")
    with pytest.raises(ValueError):
        stages.write_json(tmp_path / "x.json", {"loss": float("nan")})


# -- the code in a key ------------------------------------------------------------------------------------------

METHOD = '''"""Loss."""
from lab import helper
from .scale import SCALE

def loss(x):
    return helper.minus(x)
'''
REWORDED = '''"""Another docstring."""

from lab import helper
from .scale import SCALE


def loss(x):  # why
    """Doc."""
    return (helper.minus(x))
'''
MINUS = "def minus(x):\n    return -x\n"
PACKAGE = {
    "__init__.py": "",
    "method.py": METHOD,
    "helper.py": MINUS,
    "scale.py": "SCALE = 2\n",
    "unused.py": "VALUE = 1\n",
}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A package on the path: write(file=content) → the code hash of its module ``method``."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would pass for a file of the same second and size
    (tmp_path / "lab").mkdir()

    def write(**files):
        for name, content in {**PACKAGE, **files}.items():
            (tmp_path / "lab" / name).write_text(content)
        for name in [name for name in sys.modules if name.partition(".")[0] == "lab"]:
            del sys.modules[name]
        stages._source.cache_clear()
        stages._path.cache_clear()
        importlib.import_module("lab.method")
        return stable_hash(code_of(type("Method", (), {"__module__": "lab.method"})))

    yield write
    stages._source.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "lab"]:
        del sys.modules[name]


def test_code_that_is_imported_counts_and_wording_and_layout_do_not(lab):
    plain = lab()
    same = ({}, {"method.py": REWORDED}, {"unused.py": "VALUE = 2\n"}, {"helper.py": "def minus(x): return -x\n"})
    assert {lab(**files) for files in same} == {plain}
    changed = (
        {"method.py": METHOD.replace("return", "return 2 *")},
        {"helper.py": MINUS.replace("-x", "1 - x")},
        {"scale.py": "SCALE = 3\n"},  # through a relative import
        {"__init__.py": "import warnings\n"},
        {"helper.yaml": "beta: 1\n"},  # data of a module
    )
    assert len({plain, *(lab(**files) for files in changed)}) == 6


def test_of_a_function_only_what_it_uses_counts(lab):
    def hash_of(text):
        lab(**{"method.py": text})
        return stable_hash(code_of(sys.modules["lab.method"].make))

    text = "FIRST, SECOND = 1, 2\nother = lambda x: x\n\ndef make(x):\n    other = x\n    return FIRST\n"
    plain = hash_of(text)
    moved = text.replace("\ndef", "# a comment\n\n\ndef").replace("FIRST, SECOND", "\nFIRST, SECOND")
    assert hash_of(moved) == hash_of(text.replace("lambda x: x", "lambda x: 2")) == plain, "make has its own `other`"
    assert hash_of(text.replace("1, 2", "3, 2")) != plain


@pytest.mark.parametrize("where, counts", [("", True), ("site-packages", False)])
@pytest.mark.parametrize("beside", ["beside_me.py", "beside/deeper.py"])
def test_what_lies_beside_the_file_of_an_extension_counts(beside, where, counts, tmp_path, monkeypatch):
    folder = tmp_path / where
    monkeypatch.syspath_prepend(folder)

    def hash_of(content):
        (folder / beside).parent.mkdir(parents=True, exist_ok=True)
        (folder / beside).write_text(content)
        module = beside.removesuffix(".py").replace("/", ".")
        (folder / "single_file.py").write_text(f"import {module}\nimport json\n")
        stages._source.cache_clear()
        stages._path.cache_clear()
        return stable_hash(code_of(type("Method", (), {"__module__": "single_file"})))

    assert (hash_of("X = 1\n") != hash_of("X = 2\n")) == counts
    stages._source.cache_clear()


def test_libraries_in_one_folder_with_the_kit_do_not_count(monkeypatch):
    """As after ``pip install --target``, where the folder may have any name."""
    monkeypatch.setattr(stages, "_place", lambda module: Path("/opt/libs"))
    code = code_of(importlib.import_module("mllmu_nb.data.facts"))  # imports yaml and pydantic
    assert {name.partition(".")[0] for name in code} == {"mllmu_nb"}


def closure(stage: Stage) -> set[str]:
    """Return the modules whose code is in a stage's key."""
    return {name.removeprefix("mllmu_nb.") for name in code_of(stage.make, *stage.uses) if ":" not in name}


def test_a_syntax_tree_has_one_text_in_every_version_of_python():
    """``ast.dump`` prints empty fields in some versions, and ``ast.unparse`` chooses other quotes."""
    text = "def f(x): return f\"{x['a']}\""
    assert stages._parsed(text, "x")[1] == (
        "Module(body=[FunctionDef(name='f', args=arguments(args=[arg(arg='x')]), body=[Return(value=JoinedStr(values=["
        "FormattedValue(value=Subscript(value=Name(id='x', ctx=Load()), slice=Constant(value='a'), ctx=Load()), "
        "conversion=-1)]))])])"
    )


@pytest.mark.parametrize("minor", [minor for minor in (11, 12, 13, 14) if minor != sys.version_info[1]])
def test_another_python_finds_the_code_of_a_stage_unchanged(minor):
    """With the functions that read it alone, since only one Python has torch."""
    modules = closure(pipeline.unlearned(Config(method="ga", modality="multimodal")))
    files = sorted(str(stages._path(f"mllmu_nb.{name}")) for name in modules)
    code = "import ast, importlib.util, pathlib, sys\nfrom typing import Any\n_path = lambda name: None\n"
    code += inspect.getsource(stages._parsed) + inspect.getsource(stages._tree)
    code += (
        "for file in sys.argv[1:]:\n    print(ascii(_parsed(pathlib.Path(file).read_text(encoding='utf-8'), 'x')))\n"
    )
    said = []
    for python in (sys.executable, f"python3.{minor}"):
        if not shutil.which(python) or subprocess.run([python, "-c", ""], capture_output=True).returncode:
            pytest.skip(f"there is no {python}")
        said.append(subprocess.run([python, "-c", code, *files], capture_output=True, text=True, check=True).stdout)
    assert len(files) > 20 and said[0] == said[1]


def test_vanilla_hangs_on_all_that_teaches_it_and_on_nothing_else():
    vanilla = closure(pipeline.finetuned(Config()))
    assert vanilla >= {
        *(
            "training",
            "batches",
            "optimizers",
            "models.score",
            "models.load",
            "models.adapters",
            "models.families.llava",
        ),
        *("data.text.names", "data.portraits", "data.generate"),  # with_name, augment, who is replayed
        *("mixture", "data.exams"),  # what is replayed, and in which forms things are taught
    }
    evaluation = {name for name in vanilla if name.startswith(("evaluation.", "scoring", "reporting", "after"))}
    assert not evaluation
    assert {name for name in vanilla if name.startswith("unlearning.")} == {"unlearning.base"}
    unlearning = Config(method="kl_min", modality="unimodal")
    for stage in (pipeline.unlearned(unlearning), pipeline.answered(unlearning)):
        scoring = [name for name in closure(stage) if name.startswith(("scoring", "statistics"))]
        assert not scoring, "a metric that changes scores anew and asks nothing again"
    kl_min = closure(pipeline.unlearned(unlearning))
    assert {name for name in kl_min if name.startswith("unlearning.")} == {"unlearning.base", "unlearning.kl_min"}


def test_scores_hang_on_all_that_scores():
    """After a change of a margin, a pattern or a tokenizer, the cache must not be used."""
    scored = {name.removeprefix("mllmu_nb.") for name in code_of(runs.Scores, *runs._code_of_metrics())}
    modules = ("score", "path", "gates", "health", "text", "factuality", "choice", "sentences", "summary", "utility")
    assert scored >= {f"scoring.{name}" for name in modules} | {"reporting.runs", "statistics.intervals"}


SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25}


def test_adding_a_method_leaves_every_other_key_as_it_was(tmp_path):
    code = f"""
from mllmu_nb import pipeline, unlearning
from mllmu_nb.config import Config
print(pipeline.finetuned(Config(**{SMALL})).key)
for name in set(unlearning.names()) - {{"prompting"}}:
    print(name, pipeline.unlearned(Config(method=name, modality="multimodal", **{SMALL})).key)
"""
    method = "from mllmu_nb.unlearning import *\n\n@register\nclass Odd(Method):\n    name = label = 'odd'\n"
    (tmp_path / "odd_method.py").write_text(method)
    started = []
    for extensions in ("", "odd_method"):
        places = os.pathsep.join([str(tmp_path), str(paths.PACKAGE.parent)])
        environment = {**os.environ, "PYTHONPATH": places, "MLLMU_NB_EXTENSIONS": extensions}
        started.append(
            subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        )
    before, after = (set(process.communicate()[0].splitlines()) for process in started)
    [added] = after - before
    assert before < after and added.startswith("odd unlearned-")


def test_a_class_that_stands_in_no_file_is_hashed_by_what_it_defines(monkeypatch):
    """Like a method in a notebook cell: if its loss is edited, it is trained again."""

    cells = count()

    def hashed(loss, target="1.0"):
        name = f"<cell {next(cells)}>"
        text = f"@dataclass(frozen=True)\nclass Mine:\n    target: float = {target}\n    streams = ('forget',)\n\n"
        text += f"    def loss(self, step):\n        return {loss}\n"
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        module = ModuleType("no_file")
        monkeypatch.setitem(sys.modules, "no_file", module)
        vars(module).update(dataclass=dataclass)
        exec(compile(text, name, "exec"), vars(module))
        return stable_hash(code_of(module.Mine(1.0)))

    assert hashed("step + 1") == hashed("step + 1  # the same")
    assert len({hashed("step + 1"), hashed("step - 1"), hashed("step + 1", target="2.0")}) == 3


def cell(loss, more="", base="Method"):
    """Return a method as it is written in a cell."""
    return f"""
@dataclass(frozen=True)
class Mine({base}):
    target: float = 1.0
    {more}

    def loss(self, step):
        yield "forget", {loss}
"""


HELPER = "class Helper:\n    x = 1\n    def __call__(self):\n        return {}\nhelp = Helper()\n"
WRITTEN = {  # cells in which X is edited
    "refusals": cell("step", "streams = {'refused': with_answers(('X',))}"),
    "a lambda": cell("step", "streams = {'odd': Stream(\n        change=lambda turn: X)}"),
    "a static method": cell("self.w()", "@staticmethod\n    def w():\n        return X\n"),
    "a property": cell("self.w", "@property\n    def w(self):\n        return X\n"),
    "a cached property": cell("self.w", "@cached_property\n    def w(self):\n        return X\n"),
    "a base class": "class Base(Method):\n    def w(self):\n        return X\n" + cell("self.w()", base="Base"),
    "a tensor": "W = torch.arange(2000.0)\nW[1000] = X\n" + cell("W"),
    "an array": "W = np.arange(2000.0)\nW[1000] = X\n" + cell("W"),
    "a helper class": HELPER.format("X") + cell("help()"),
    "a helper's state": HELPER.format("self.x") + "help.x = X\n" + cell("help()"),
    "a closure": """
def make(k):
    class Mine(Method):
        def loss(self, step):
            yield "forget", k
    return Mine
Mine = make(X)
""",
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_whatever_a_class_in_a_notebook_is_made_of_is_in_its_hash(text, monkeypatch):
    cells = count()

    def hashed(value):
        name, edited = f"<cell {next(cells)}>", text.replace("X", value)
        linecache.cache[name] = (len(edited), None, edited.splitlines(True), name)
        module = ModuleType("no_file")
        monkeypatch.setitem(sys.modules, "no_file", module)
        vars(module).update({one: getattr(unlearning, one) for one in unlearning.__all__})
        vars(module).update(dataclass=dataclass, cached_property=cached_property, torch=torch, np=np)
        exec(compile(edited, name, "exec"), vars(module))
        return stable_hash(code_of(module.Mine()))

    assert hashed("1") == hashed("1") != hashed("2")


def test_an_address_is_no_part_of_a_hash_on_any_system():
    assert stages._printed("<function f at 0x000001E0B8F03E20>") == "'<function f>'"


# -- what stops a stage, and its messages -----------------------------------------------------------------------


def text_file(folder):
    (folder / "text").write_text("text" * 100)


def weights(folder):
    save_weights({"w": torch.zeros(1000)}, folder / "w.safetensors")


def table(folder):
    pd.DataFrame({"x": np.arange(1e4)}).to_parquet(folder / "x.parquet")


@pytest.mark.parametrize("make", [text_file, weights, table])
def test_a_full_disk_is_one_line(make, largest):
    stage = Stage("demo", {}, make)
    assert stage.key
    with largest(100), pytest.raises(KitError, match="cannot write .*: free space, or set MLLMU_NB_OUT"):
        stage.get()


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file", "words"), ConnectionError("refused"), PermissionError(13, "", "/x")]
)
def test_what_else_fails_inside_a_stage_is_not_said_to_be_the_disk(error):
    def make(folder):
        raise error

    with pytest.raises(type(error)) as caught:
        Stage("demo", {}, make).get()
    assert caught.value is error


def test_below_a_cell_the_status_comes_and_goes_and_what_was_printed_stays(monkeypatch):
    shown = []

    def show(data, **named):
        shown.append(data["text/plain"])
        return SimpleNamespace(update=show)

    monkeypatch.setattr("IPython.display.display", show)
    monkeypatch.setattr("IPython.display.clear_output", lambda *given: pytest.fail("all of the cell is cleared"))
    shell = SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=True))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    with stages.status("vanilla"):
        assert len(shown) == 1 and shown[0].startswith("vanilla: being made since ")
    assert shown[1:] == [""]
    shell.kernel._allow_stdin = False  # under papermill, outputs must not depend on what was finished before
    with stages.status("vanilla"):
        assert len(shown) == 2
