"""The door and the sweep: bad input in one line, the grid, and notebooks run in processes."""

import argparse
import ast
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from mllmu_nb import __main__ as door
from mllmu_nb import paths, run, stages
from mllmu_nb.commands import sweep
from mllmu_nb.errors import KitError

CONFIGS = Path(__file__).parent.parent / "configs"
METHODS = ("finetune", "ga", "grad_diff", "kl_min", "npo", "prompting")


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    return tmp_path / "out"


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A folder of notebooks, empty as yet, in place of the project's."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(paths, "notebooks", lambda: folder)
    return folder


def put_notebook(folder: Path, name: str, code: str = "") -> None:
    parameters = new_code_cell("method = 'vanilla'\nmodality = 'none'", metadata={"tags": ["parameters"]})
    made = new_notebook(cells=[parameters, new_code_cell(code)])
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, folder / name)


def put_grid(tmp_path: Path, content) -> str:
    path = tmp_path / "grid.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def ids(configs):
    return [config.run_id for config in configs]


# -- the door ---------------------------------------------------------------------------------------------------


def test_an_old_python_is_told_so_and_can_read_the_file(monkeypatch, capsys):
    ast.parse(Path(door.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    ast.parse((paths.PACKAGE / "__init__.py").read_text(encoding="utf-8"), feature_version=(3, 8))
    monkeypatch.setattr(sys, "version_info", (3, 8, 10, "final", 0))
    assert door.main(["sweep", "nothing.yaml"]) == 2
    assert capsys.readouterr().err == "mllmu_nb needs Python 3.11 or newer, but this is 3.8.10\n"


@pytest.mark.parametrize(
    "content, message",
    [
        ("forget_ratio: 10\nmethod: gaa\n", "unknown method 'gaa': did you mean 'ga'?"),
        ("forgetratio: 10\n", "unknown parameter 'forgetratio': did you mean 'forget_ratio'?"),
        ("grid: {metod: [ga]}\n", "unknown parameter 'metod': did you mean 'method'?"),
        ("grid: {method: ga}\n", "grid: method must be a list of values, such as [ga]"),
        ("grid: [ga]\n", "grid must hold lists by parameter, such as 'method: [vanilla, ga]'"),
        ("train_lr: 1e-5\n", "train_lr must be a number, not the text '1e-5'"),
        ("people: 20\nforget_ratio: 1\n", "forget_ratio=1 of people=20 leaves nobody to forget"),
        ("people: 20\nforget_ratio: 50\nforget_draw: 2\n", "forget_draw=2 does not exist"),
        ("- ga\n", "must hold parameters, one 'name: value' a line"),
        ("a: [\n", "is no YAML: while parsing"),
    ],
)
def test_a_bad_configuration_is_named_in_one_line_and_nothing_is_written(
    tmp_path, out, notebooks, content, message, capsys
):
    for number, name in enumerate(METHODS):
        put_notebook(notebooks, f"{number:02d}_{name}.ipynb")
    assert door.main(["sweep", put_grid(tmp_path, content)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--shard", "3/2"], "--shard 3/2: the first number goes from 1 to the second"),
        (["--shard", "half"], "--shard must be I/N, such as 1/4, not 'half'"),
        (["--jobs", "0"], "--jobs must be at least 1, not 0"),
        (["--ratios", "0"], "forget_ratio must be from 1 to 99 per cent (the paper: 5, 10, 15), not 0"),
    ],
)
def test_bad_options_are_named_in_one_line(out, arguments, message, capsys):
    assert door.main(["sweep", str(CONFIGS / "miniature.yaml"), *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_missing_configuration_a_missing_notebook_and_a_missing_base_are_named(tmp_path, out, notebooks, capsys):
    assert door.main(["sweep", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err == f"error: cannot read {tmp_path / 'none.yaml'}: No such file or directory\n"
    grid = put_grid(tmp_path, {"base_path": str(tmp_path / "no base")})
    assert door.main(["sweep", grid]) == 2
    assert "there is no notebook for method 'vanilla': *_finetune.ipynb in" in capsys.readouterr().err
    put_notebook(notebooks, "02_finetune.ipynb")
    assert door.main(["sweep", grid]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith(f"error: the base model in {tmp_path / 'no base'} lacks config.json") and said.count("\n") == 1
    )
    assert not out.exists()


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, notebooks, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "file"))
    monkeypatch.setattr("mllmu_nb.models.files.verify_shipped", lambda folder: None)
    put_notebook(notebooks, "02_finetune.ipynb")
    assert door.main(["sweep", put_grid(tmp_path, "seed: 0\n")]) == 2
    where = tmp_path / "file" / "results" / "miniature" / "runs"
    assert (
        capsys.readouterr().err
        == f"error: cannot write to {where} (Not a directory): set MLLMU_NB_OUT to another folder\n"
    )


def test_without_a_command_usage_is_shown():
    told = subprocess.run([sys.executable, "-m", "mllmu_nb"], capture_output=True, text=True, cwd=CONFIGS.parent)
    assert told.returncode == 2 and "sweep" in told.stderr and "Traceback" not in told.stderr


# -- the grid ---------------------------------------------------------------------------------------------------


def test_a_grid_is_the_product_with_each_untrained_model_once_and_vanilla_first():
    found = sweep.cells(
        {"people": 40, "grid": {"method": ["ga", "base", "vanilla"], "modality": ["multimodal", "unimodal"]}}
    )
    assert ids(found) == [
        "llava-r10-d0-vanilla-none-s0",
        "llava-r10-d0-base-none-s0",
        "llava-r10-d0-ga-multimodal-s0",
        "llava-r10-d0-ga-unimodal-s0",
    ]
    assert {config.people for config in found} == {40}
    assert len(sweep.cells({"grid": {"method": ["vanilla"], "forget_ratio": [5]}}, ratios=[5, 10, 15])) == 3
    assert ids(sweep.cells({"method": "npo", "modality": "unimodal"})) == ["llava-r10-d0-npo-unimodal-s0"]
    with pytest.raises(KitError, match="two runs of the grid are called llava-r10-d0-vanilla-none-s0"):
        sweep.cells({"grid": {"method": ["vanilla"], "people": [40, 50]}})


def test_shards_are_disjoint_and_complete():
    configs = sweep.cells(yaml.safe_load((CONFIGS / "miniature.yaml").read_text()), [5, 10, 15])
    parts = [sweep.share(configs, f"{number}/4") for number in range(1, 5)]
    assert len(configs) == 36 and sorted(ids(sum(parts, []))) == sorted(ids(configs))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_files_named_from_here_are_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "people.jsonl").write_text("")
    grid = put_grid(tmp_path, {"profiles_file": "people.jsonl", "base_path": "llava-hf/llava-1.5-7b-hf"})
    assert sweep.read(Path(grid)) == {
        "profiles_file": str(tmp_path / "people.jsonl"),
        "base_path": "llava-hf/llava-1.5-7b-hf",
    }


# -- the runs ---------------------------------------------------------------------------------------------------

# Stands for a method's notebook: leaves the record of a run, as `run.items` does, or breaks where it is told to.
NOTEBOOK = """
from pathlib import Path
from mllmu_nb import paths, stages
from mllmu_nb.config import Config
config = Config.from_notebook(globals())
if config.method == "npo":
    raise ValueError("the adapter\\nhas burst")
folder = paths.runs(config.scale) / config.run_id
with stages.lock(folder), stages.whole(folder) as partial:
    stages.write_json(partial / stages.RECORD, {"lr": config.unlearn_lr, "seed": config.seed, "here": Path.cwd().name})
"""


def test_the_sweep_runs_notebooks_skips_finished_ones_and_names_what_failed(
    tmp_path, out, notebooks, monkeypatch, capsys
):
    def finished(config):
        return (paths.runs(config.scale) / config.run_id / stages.RECORD).exists()

    monkeypatch.setattr(run, "finished", finished)
    monkeypatch.setattr(run, "check", lambda config: None)
    monkeypatch.setattr(run, "vanilla_place", lambda config: tmp_path)
    monkeypatch.setattr(sweep, "_tell_minutes", lambda *told: None)
    monkeypatch.setenv("PYTHONPATH", str(paths.PACKAGE.parent))
    for number, name in enumerate(METHODS):
        put_notebook(notebooks, f"{number:02d}_{name}.ipynb", NOTEBOOK)
    grid = {"unlearn_lr": 1e-5, "seed": 3, "grid": {"method": ["vanilla", "npo", "ga"], "modality": ["unimodal"]}}
    there = paths.runs("miniature") / "llava-r10-d0-vanilla-none-s3"
    there.mkdir(parents=True)
    (there / stages.RECORD).write_text("{}")

    assert door.main(["sweep", put_grid(tmp_path, grid)]) == 1
    said = capsys.readouterr()
    executed = out / ".cache" / "notebooks" / "miniature" / "llava-r10-d0-npo-unimodal-s3.ipynb"
    assert "3 runs, 1 of them finished already, 3 at a time" in said.out
    reason = f"failed: llava-r10-d0-npo-unimodal-s3: ValueError: the adapter has burst (see {executed})\n"
    assert said.err == reason and executed.exists()
    record = stages.read_json(paths.runs("miniature") / "llava-r10-d0-ga-unimodal-s3" / stages.RECORD)
    assert record == {"lr": 1e-5, "seed": 3, "here": "notebooks"}
    assert (there / stages.RECORD).read_text() == "{}", "a finished run is left alone"


class Pretended(sweep.Job):
    """A job that takes a moment and is noted down, in place of papermill."""

    history: list = []

    def start(self, threads):
        self.began = time.perf_counter()
        method, place = self.config.method, run.vanilla_place(self.config)
        self.history.append(method)
        broken = method == "vanilla" and self.fails

        def work():
            time.sleep(0.5)
            self.others = list(self.history)
            if method == "vanilla" and not broken:
                place.mkdir(parents=True)

        self.thread = threading.Thread(target=work)
        self.thread.start()
        self.process = argparse.Namespace(poll=lambda: None if self.thread.is_alive() else 0, returncode=int(broken))

    def succeeded(self):
        return not self.process.returncode

    def why(self):
        return "no memory"


@pytest.mark.parametrize("fails", [False, True])
def test_runs_wait_for_the_vanilla_model_they_share(tmp_path, out, monkeypatch, fails):
    monkeypatch.setattr(run, "vanilla_place", lambda config: tmp_path / "vanilla")
    monkeypatch.setattr(Pretended, "fails", fails, raising=False)
    monkeypatch.setattr(Pretended, "history", [])
    configs = sweep.cells({"grid": {"method": ["ga", "oracle", "vanilla"], "modality": ["unimodal", "multimodal"]}})
    jobs = [Pretended(config, Path("x.ipynb")) for config in configs]
    failed = sweep._execute(jobs, 3, lambda line: None)
    assert jobs[0].config.method == "vanilla" and jobs[0].others == ["vanilla", "oracle"], "nobody else could start"
    if fails:
        assert failed.pop("llava-r10-d0-vanilla-none-s0").startswith("no memory (see ")
        assert set(failed.values()) == {"not tried, since the vanilla model it starts from could not be made"}
        assert len(failed) == 2 and "ga" not in Pretended.history
    else:
        assert failed == {} and sorted(Pretended.history) == ["ga", "ga", "oracle", "vanilla"]
