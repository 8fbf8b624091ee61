"""The command line and the sweep: one-line errors for bad input, the grid, and notebooks run in processes."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from mllmu_nb import __main__ as door
from mllmu_nb import inputs, paths, pipeline, processes, stages
from mllmu_nb.commands import sweep, warm
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError

CONFIGS = Path(__file__).parent.parent / "configs"
METHODS = ("finetune", "ga", "grad_diff", "kl_min", "npo", "prompting")


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """An empty folder of notebooks that replaces the project's."""
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
    content = content if isinstance(content, str | bytes) else yaml.safe_dump(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def ids(configs):
    return [config.run_id for config in configs]


def models(configs):
    return [(config.method, config.modality) for config in configs]


# -- the command line -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, message",
    [
        ("forget_ratio: 10\nmethod: gaa\n", "unknown method 'gaa': did you mean 'ga'?"),
        ("forgetratio: 10\n", "unknown parameter 'forgetratio': did you mean 'forget_ratio'?"),
        ("grid: {method: [npo], modality: [unimodal], variant: [retian]}\n", "unknown variant 'retian': did you mean"),
        ("grid: {metod: [ga]}\n", "unknown parameter 'metod': did you mean 'method'?"),
        ("grid: {method: [npo], modality: [unimodal], bta: [1.0]}\n", "unknown parameter 'bta': did you mean 'beta'?"),
        ("grid: {method: [ga, vanilla], beta: [1.0]}\n", "unknown parameter 'beta'"),
        ("grid: {method: ga}\n", "grid: method must be a list of values, such as [ga]"),
        ("grid: {method: [[ga, npo]]}\n", "grid: method must be a list of values"),
        ("grid: {after: [{a: 1}]}\n", "grid: after must be a list of values"),
        ("grid: {method: []}\n", "grid: method must be a list of values, such as [1, 2]\n"),
        ("settings: {beta: 0.1}\n", "settings must be one value, not {'beta': 0.1}: write 'beta: 0.1' by itself\n"),
        ("settings: {}\n", "settings must be one value, not {}: put a list of values under grid\n"),
        ("people: 010\n", "010 is a number to base 8 or 60: write it to base 10, or put text in quotes in "),
        ("people: -0_7\n", "-0_7 is a number to base 8 or 60: write it to base 10, "),
        ("people: 1:30\n", "1:30 is a number to base 8 or 60: write it to base 10, "),
        ("train_lr: 1:30.5\n", "1:30.5 is a number to base 8 or 60: write it to base 10, "),
        (f"train_steps: 1{'0' * 23}\n", "train_steps must be at most 1000000000, not 1000"),
        ("unlearn_epochs: 1.0e+300\n", "unlearn_epochs must be at most 1000000, not 1e+300"),
        ("method: [ga, npo]\n", "method must be one value, not ['ga', 'npo']: put a list of values under grid"),
        ("grid: [ga]\n", "grid must contain a list for each parameter, such as 'method: [vanilla, ga]'"),
        ("grid: 0\n", "grid must contain a list for each parameter"),
        ("grid: ''\n", "grid must contain a list for each parameter"),
        ("train_lr: 1e-5\n", "train_lr must be a number, not the text '1e-5'"),
        ("people: 20\nforget_ratio: 1\n", "forget_ratio=1 of people=20 leaves nobody to forget"),
        ("people: 20\nforget_ratio: 50\nreplicate: 2\n", "replicate=2 does not exist"),
        ("- ga\n", "must contain parameters, one 'name: value' per line"),
        ("a: [\n", "is not valid YAML: while parsing"),
        ("seed: 0\nmethod: ga\nseed: 1\n", "'seed' stands twice in"),
        ("grid: {method: [ga], method: [npo]}\n", "'method' stands twice in"),
        ("1: 2\n", "unknown parameter 1"),
        ("~: 2\n", "unknown parameter None"),
        ("yes: 2\n", "unknown parameter True"),
        ("? [a, b]\n: 2\n", "is not valid YAML: while constructing a mapping"),
        (f"seed: {'1' * 5000}\n", "is not valid YAML: a number of over 100 characters"),
        (f"seed: 0x{'f' * 5000}\n", "is not valid YAML: a number of over 100 characters"),
        ("[" * 5000, "is not valid YAML: "),
        ("data_source: ' '\n", "data_source must be a path or empty, not ' '"),
        ('base_path: "a\\0b"\n', "base_path must be a path or empty, not 'a\\x00b'"),
        (b"\xff\xfe\x00", "is not valid YAML: "),
        ("seed: !!python/object:os.system {}\n", "is not valid YAML: could not determine a constructor"),
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
        (["--shard", "3/2"], "--shard 3/2: the first number must be from 1 to the second"),
        (["--shard", "half"], "--shard must be I/N, such as 1/4, not 'half'"),
        (["--jobs", "0"], "--jobs must be at least 1, not 0"),
        (["--ratios", "0"], "forget_ratio must be at least 1, not 0"),
    ],
)
def test_bad_options_are_named_in_one_line(out, arguments, message, capsys):
    assert door.main(["sweep", str(CONFIGS / "miniature.yaml"), *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("2", "a sweep starts its own processes"),
        ("abc", "WORLD_SIZE='abc' is no number: unset it, or leave it to `accelerate launch`\n"),
        ("", "cannot read none.yaml"),
    ],
)
def test_a_sweep_under_accelerate_launch_is_refused(out, monkeypatch, capsys, size, message):
    monkeypatch.setenv("WORLD_SIZE", size)
    assert door.main(["sweep", "none.yaml"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}") and not out.exists()


def test_a_reader_who_stops_reading_ends_a_command_quietly(out):
    """As in `mllmu-nb .. | head -1`: the pipe is closed before the command writes."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "mllmu_nb", "ask"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=paths.checkout(), check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_missing_configuration_a_missing_notebook_and_a_missing_base_are_named(tmp_path, out, notebooks, capsys):
    assert door.main(["sweep", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err == f"error: cannot read {tmp_path / 'none.yaml'}: No such file or directory\n"
    grid = put_grid(tmp_path, {"base_path": str(tmp_path / "no base")})
    assert door.main(["sweep", grid]) == 2
    assert "there must be one notebook for method 'vanilla', not 0: *_finetune.ipynb in" in capsys.readouterr().err
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
    put_notebook(notebooks, "02_finetune.ipynb")
    assert door.main(["sweep", put_grid(tmp_path, "seed: 0\n")]) == 2
    where = tmp_path / "file" / "results" / "miniature" / "runs"
    assert (
        capsys.readouterr().err
        == f"error: cannot write to {where} (Not a directory): set MLLMU_NB_OUT to another folder\n"
    )


def test_a_home_folder_that_is_nobodys_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MLLMU_NB_OUT", "~nobody-of-this-name/x")
    assert door.main(["sweep", put_grid(tmp_path, "seed: 0\n")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: MLLMU_NB_OUT='~nobody-of-this-name/x' names a home folder that does not exist: set")


def test_a_relative_output_folder_which_notebooks_would_not_find_is_refused(monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", "out")
    with pytest.raises(KitError, match="MLLMU_NB_OUT='out' would be another folder in each notebook's"):
        paths.root()


def test_without_a_command_usage_is_shown():
    command = [sys.executable, "-m", "mllmu_nb"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=CONFIGS.parent)
    assert shown.returncode == 2 and "sweep" in shown.stderr and "Traceback" not in shown.stderr


# -- the grid ---------------------------------------------------------------------------------------------------


def test_a_grid_is_the_product_with_each_untrained_model_once_and_vanilla_first():
    axes = {"method": ["ga", "base", "vanilla"], "modality": ["multimodal", "unimodal"]}
    configs = sweep.cells({"people": 40, "grid": axes})
    assert models(configs) == [("vanilla", "none"), ("base", "none"), ("ga", "multimodal"), ("ga", "unimodal")]
    assert {config.people for config in configs} == {40}
    assert len(sweep.cells({"grid": {"method": ["vanilla"], "forget_ratio": [5]}}, ratios=[5, 10, 15])) == 3
    both = sweep.cells({"base_model": "llava", "grid": {"method": ["vanilla"]}}, bases=["llava", "idefics2"])
    assert [config.base_model for config in both] == ["llava", "idefics2"]
    assert models(sweep.cells({"method": "npo", "modality": "unimodal"})) == [("npo", "unimodal")]


def test_a_grid_goes_over_hyper_parameters_and_leaves_them_out_where_a_method_has_none():
    axes = {
        "method": ["vanilla", "ga", "npo"],
        "modality": ["unimodal"],
        "beta": [0.1, 1.0],
        "unlearn_lr": [1e-3, 2e-3],
    }
    configs = sweep.cells({"grid": axes})
    npo = [config for config in configs if config.method == "npo"]
    settings = [(c.method, c.settings.get("beta"), c.unlearn_lr) for c in configs if c.method != "vanilla"]
    assert settings[:2] == [("ga", None, 1e-3), ("ga", None, 2e-3)] and len(configs) == 1 + 2 + 4
    assert settings[2:] == [("npo", 0.1, 1e-3), ("npo", 0.1, 2e-3), ("npo", 1.0, 1e-3), ("npo", 1.0, 2e-3)]
    assert sweep.labels(npo)[npo[1].run_id] == "NPO (text only), unlearn_lr 0.002, beta 0.1"
    assert sweep.labels(npo[:1]) == {npo[0].run_id: "NPO (text only)"}
    variants = sweep.cells({"grid": {"method": ["vanilla", "npo"], "modality": ["unimodal"], "variant": ["upstream"]}})
    assert [config.variant for config in variants] == ["canonical", "upstream"]


def test_equal_runs_are_made_once_and_files_of_one_name_are_not_mixed_up(tmp_path):
    assert len(sweep.cells({"grid": {"seed": [0, 0], "train_seed": [0]}})) == 1
    for name in "ab":
        (tmp_path / name / "base").mkdir(parents=True)
    axes = {"base_path": [str(tmp_path / name / "base") for name in "ab"]}
    with pytest.raises(KitError, match="two runs of the grid would be called vanilla-none-.*different names"):
        sweep.cells({"grid": axes})


def test_people_who_cannot_stand_beside_finished_runs_are_refused_before_the_compute(tmp_path, out, notebooks, capsys):
    put_notebook(notebooks, "02_finetune.ipynb")
    other = inputs.run_folder(Config(people=30))
    other.mkdir(parents=True)
    # the same parameters but other people, as if a file had changed since
    record = dict.fromkeys(stages.OF_A_RUN, "other") | {"run": other.name, "parameters": Config(people=20).parameters()}
    (other / "answers.parquet").touch()
    stages.write_json(other / stages.RECORD, record | {"files": stages.digests(other), "key": "other"})
    assert door.main(["sweep", put_grid(tmp_path, {"people": 20})]) == 2
    assert f"error: runs {other.name} and vanilla-none-" in capsys.readouterr().err


# complete, but without parameters
BARE = json.dumps({"run": "x", "files": {"answers.parquet": {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}}})


@pytest.mark.parametrize("record", ["{}", "[1]", "", '{"run": "x", "files": {"answers.parquet": {}}}', BARE])
def test_a_damaged_run_beside_those_of_the_grid_is_named_before_the_compute(tmp_path, out, notebooks, capsys, record):
    put_notebook(notebooks, "02_finetune.ipynb")
    other = inputs.run_folder(Config(people=30))
    other.mkdir(parents=True)
    (other / "answers.parquet").write_bytes(b"")
    (other / stages.RECORD).write_text(record)
    assert door.main(["sweep", put_grid(tmp_path, {"people": 20})]) == 2
    assert f"error: a file of the run in {other} was changed or cut off: make" in capsys.readouterr().err


def test_shards_are_disjoint_and_complete():
    configs = sweep.cells(yaml.safe_load((CONFIGS / "miniature.yaml").read_text()), [5, 10, 15])
    parts = [sweep.share(configs, f"{number}/4") for number in range(1, 5)]
    assert len(configs) == 36 and sorted(ids(sum(parts, []))) == sorted(ids(configs))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("scale", "quota", "memory", "jobs"),
    [
        ("miniature", "max 100000", "max", 9),  # one more than there are cores
        ("miniature", "200000 100000", "max", 3),  # two of the eight
        ("miniature", "50000 100000", "max", 2),
        ("miniature", "max 100000", str(11 * 2**30), 5),
        ("miniature", "max 100000", "1000000", 1),
        ("paper", "max 100000", "max", 1),
    ],
)
def test_a_sweep_uses_the_cores_and_the_memory_of_the_machine_or_container(
    tmp_path, monkeypatch, scale, quota, memory, jobs
):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    (tmp_path / "memory.max").write_text(f"{memory}\n")
    monkeypatch.setattr(processes, "CONTAINER", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=64 * 2**30))
    assert sweep.usual_jobs([Config(scale=scale)]) == jobs


def test_a_shard_without_a_run_has_nothing_to_do(tmp_path, out, capsys):
    assert door.main(["sweep", put_grid(tmp_path, {"seed": 0}), "--shard", "7/9"]) == 0
    assert capsys.readouterr().out == "--shard 7/9: nothing to do, for the grid has 1 runs\n"


def test_a_methods_notebook_may_lie_beside_its_file(notebooks, tmp_path, monkeypatch):
    put_notebook(notebooks, "03_ga.ipynb")
    config = Config(method="ga", modality="unimodal")
    assert sweep.notebook_for(config) == notebooks / "03_ga.ipynb"
    monkeypatch.setattr(sweep.inspect, "getfile", lambda method: str(tmp_path / "own" / "ga.py"))
    (tmp_path / "own").mkdir()
    put_notebook(tmp_path / "own", "99_ga.ipynb")
    with pytest.raises(KitError, match="there must be one notebook for method 'ga', not 2"):
        sweep.notebook_for(config)
    (notebooks / "03_ga.ipynb").unlink()
    assert sweep.notebook_for(config) == tmp_path / "own" / "99_ga.ipynb"
    (tmp_path / "own" / "99_ga.ipynb").unlink()
    put_notebook(notebooks, "08_evaluate.ipynb")
    assert sweep.notebook_for(config) == notebooks / "08_evaluate.ipynb", "a method needs no notebook of its own"


@pytest.mark.parametrize(
    "given, read",
    [
        ({"profiles_file": "people.jsonl"}, {"profiles_file": "HERE/people.jsonl"}),
        ({"base_path": "llava-hf/llava-1.5-7b-hf", "data_source": ""},) * 2,
        ({"data_source": "MLLMMU/MLLMU-Bench, bench"}, {"data_source": "MLLMMU/MLLMU-Bench,HERE/bench"}),
        ({"grid": {"base_path": ["bench", "a/b"]}}, {"grid": {"base_path": ["HERE/bench", "a/b"]}}),
    ],
)
def test_what_lies_here_is_named_in_full_and_the_hubs_names_are_left(tmp_path, monkeypatch, given, read):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "people.jsonl").touch()
    (tmp_path / "bench").mkdir()
    read = json.loads(json.dumps(read).replace("HERE", str(tmp_path)))
    assert sweep.read(Path(put_grid(tmp_path, given))) == read


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_run_by_papermill_has_the_name_that_a_sweep_gives_it(file):
    """papermill passes the values of a file to a notebook as they are."""
    by_papermill, swept = yaml.safe_load(file.read_text(encoding="utf-8")), sweep.read(file)
    assert Config.from_notebook(by_papermill).run_id == Config.from_notebook(swept).run_id


def test_a_folder_is_known_by_the_name_of_its_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_v3").mkdir()
    (tmp_path / "latest").symlink_to("data_v3")
    swept = Config(**sweep.read(Path(put_grid(tmp_path, {"data_source": "latest"}))))
    assert swept.data_source == str(tmp_path / "latest")
    assert swept.run_id == Config(data_source="latest").run_id != Config(data_source="data_v3").run_id


# -- the runs ---------------------------------------------------------------------------------------------------

# Replaces a method's notebook: it leaves the record of a run, as the pipeline does, or fails if told to.
NOTEBOOK = """
import os, signal
from pathlib import Path
from mllmu_nb import inputs, pipeline, stages
from mllmu_nb.config import Config
config = Config.from_notebook(globals())
if config.method == "npo":
    raise ValueError("the adapter\\nhas burst")
assert config.method != "ga"
if config.method == "kl_min":
    os.kill(os.getpid(), signal.SIGKILL)
folder = inputs.run_folder(config)
known = {"lr": config.unlearn_lr, "seed": config.seed, "settings": config.settings, "here": Path.cwd().name}
with stages.lock(folder), stages.replacing(folder) as partial:
    stages.write_json(partial / stages.RECORD, {"run": config.run_id, **known})
    stages.write_json(partial / "train.json", {"seconds": 60, "evaluation_seconds": 30})
"""


def test_the_sweep_runs_notebooks_skips_finished_ones_and_names_what_failed(
    tmp_path, out, notebooks, monkeypatch, capsys
):
    reported = []
    monkeypatch.setattr(pipeline, "finished", lambda config: (inputs.run_folder(config) / stages.RECORD).exists())
    monkeypatch.setattr(inputs, "check", lambda config: None)
    monkeypatch.setattr(inputs, "check_comparable", lambda configs: None)
    monkeypatch.setattr(pipeline, "finetuned", lambda config: SimpleNamespace(folder=tmp_path, key="key"))
    monkeypatch.setattr(sweep, "write_report", lambda scale, config: reported.append((scale, config.run_id)))
    monkeypatch.setattr(sweep, "usual_jobs", lambda configs: 3)
    monkeypatch.setenv("PYTHONPATH", str(paths.PACKAGE.parent))
    for number, name in enumerate(METHODS):
        put_notebook(notebooks, f"{number:02d}_{name}.ipynb", NOTEBOOK)
    axes = {"method": ["vanilla", "npo", "kl_min", "grad_diff", "ga"], "modality": ["unimodal"]}
    grid = {"unlearn_lr": 1e-5, "seed": 3, "alpha": 0.25, "grid": axes}
    vanilla, npo, killed, made, wrong = sweep.cells(grid)
    there = inputs.run_folder(vanilla)
    there.mkdir(parents=True)
    (there / stages.RECORD).write_text("{}")
    stages.write_json(there / "train.json", {"seconds": 600, "evaluation_seconds": 30, "beyond_context": 7})

    assert door.main(["sweep", put_grid(tmp_path, grid)]) == 1
    said = capsys.readouterr()
    executed = out / ".cache" / "notebooks" / "miniature"
    assert "5 runs, 1 of them finished already, 3 at a time" in said.out
    assert f"executed notebooks, with figures: {executed}\n" in said.out
    assert (
        f"  {npo.run_id:32}  NPO (text only)\n" in said.out
        and f"      10.0      0.5  {vanilla.run_id}  (7 prompts exceed " in said.out
    )
    reasons = sorted(said.err.splitlines())
    place = executed / f"{npo.run_id}.ipynb"
    assert reasons[2:] == [f"failed: {npo.run_id} (NPO (text only)): ValueError: the adapter has burst (see {place})"]
    assert reasons[1].startswith(f"failed: {killed.run_id} (KL Min. (text only)): its kernel was killed, ")
    assert f"{wrong.run_id} (GA (text only)): AssertionError: in a cell that checks the result (see" in reasons[0]
    record = stages.read_json(inputs.run_folder(made) / stages.RECORD)
    assert record.pop("settings")["alpha"] == 0.25
    assert record == {"run": made.run_id, "lr": 1e-5, "seed": 3, "here": "notebooks"}
    assert (there / stages.RECORD).read_text() == "{}", "a finished run is left alone"
    assert reported == [("miniature", vanilla.run_id)]


def test_runs_of_two_commits_of_the_hub_are_not_put_beside_each_other(tmp_path, out, notebooks, monkeypatch, capsys):
    """The newest commit of the hub has changed since the first runs of a grid were made."""
    for number, name in enumerate(METHODS):
        put_notebook(notebooks, f"{number:02d}_{name}.ipynb", NOTEBOOK)
    monkeypatch.setattr(pipeline, "finished", lambda config: (inputs.run_folder(config) / stages.RECORD).exists())
    monkeypatch.setattr(inputs, "check_comparable", lambda configs: None)
    monkeypatch.setattr(inputs, "record_of", lambda config: {"vanilla_commit": "b" * 40})
    monkeypatch.setattr(sweep, "execute", lambda jobs, at_once: pytest.fail("started"))
    grid = {"grid": {"method": ["vanilla", "oracle"]}}
    folder = inputs.run_folder(sweep.cells(grid)[0])
    folder.mkdir(parents=True)
    stages.write_json(folder / stages.RECORD, {"vanilla_commit": "a" * 40})
    for shard in ([], ["--shard", "2/2"]):
        assert door.main(["sweep", put_grid(tmp_path, grid), *shard]) == 2
        expected = (
            f"error: {folder.name} was made from commit {'a' * 40} of the vanilla model, whose newest is {'b' * 40}"
        )
        assert capsys.readouterr().err.startswith(expected)


def test_a_notebook_says_the_same_whether_its_kernel_was_forked_or_started(tmp_path, notebooks, monkeypatch):
    """Modules imported outside a kernel may choose other defaults: pandas' width, matplotlib's backend."""
    monkeypatch.setenv("PYTHONPATH", str(paths.PACKAGE.parent))
    monkeypatch.setenv("ODD", "set after the first process was started")
    code = "import os, sys, matplotlib, pandas, torch\nprint(pandas.DataFrame([range(30)]), matplotlib.get_backend())\n"
    code += "print(os.environ['ODD'], os.getcwd(), torch.get_num_threads(), __name__, 'papermill' in sys.modules)"
    put_notebook(notebooks, "02_finetune.ipynb", code)
    said = {}
    for kind in ("forked", "started"):
        monkeypatch.setattr(warm, "can_fork", lambda kind=kind: kind == "forked")
        executed, log = tmp_path / f"{{{kind}}} 1 %.ipynb", tmp_path / f"{kind}.log"  # papermill fills in {forked}
        process = warm.start(notebooks / "02_finetune.ipynb", executed, log, {"method": "base"}, 1)
        process.join()
        assert process.exitcode == 0, log.read_text()
        cells = nbformat.read(executed, 4).cells
        assert cells[1].source.endswith('method = "base"\n')
        said[kind] = cells[-1].outputs[0].text
    assert "set after" in said["forked"] and said["forked"] == said["started"].replace("False", "True")


@pytest.mark.parametrize(
    "code, reason", [(-9, "signal 9 (Killed), most often for want of memory"), (-15, "signal 15 (")]
)
def test_a_notebook_that_a_signal_ended_is_said_to_be(out, code, reason):
    job = sweep.Job(Config(), Path("x.ipynb"), SimpleNamespace(exitcode=code))
    assert job.problem().startswith(f"ended by {reason}")


def test_why_a_notebook_failed_is_the_last_line_of_its_log(out):
    job = sweep.Job(Config(), Path("x.ipynb"), SimpleNamespace(exitcode=1))
    assert job.problem() == "its log is empty"
    job.executed.parent.mkdir(parents=True)
    job.log.write_text("starting\nNo module named papermill\n\n")
    assert job.problem() == "No module named papermill"
    job.process.exitcode = 0
    assert job.problem().startswith("the notebook came to its end without making the run")


class Pretended(sweep.Job):
    """A job that takes a moment and is noted down; it replaces papermill."""

    history: list = []
    fails: tuple = ()  # the methods whose notebooks fail before they have made vanilla

    def start(self, threads):
        self.began = time.perf_counter()
        method, place = self.config.method, self.vanilla
        self.history.append(method)
        broken = method in self.fails

        def work():
            time.sleep(0.5)
            self.others = list(self.history)
            if place and not broken:
                place.mkdir(parents=True, exist_ok=True)

        self.thread = threading.Thread(target=work)
        self.thread.start()
        self.process, self.broken = self, broken

    @property
    def exitcode(self):
        return None if self.thread.is_alive() else int(self.broken)

    def problem(self):
        return "no memory" if self.exitcode else ""


@pytest.mark.parametrize("fails", [(), ("vanilla",)])
def test_runs_wait_for_the_vanilla_model_they_share(tmp_path, out, monkeypatch, fails):
    monkeypatch.setattr(pipeline, "finetuned", lambda config: SimpleNamespace(folder=tmp_path / "vanilla"))
    monkeypatch.setattr(Pretended, "fails", fails)
    monkeypatch.setattr(Pretended, "history", [])
    configs = sweep.cells({"grid": {"method": ["ga", "oracle", "vanilla"], "modality": ["unimodal", "multimodal"]}})
    jobs = [Pretended(config, Path("x.ipynb")) for config in configs]
    failed = sweep.execute(jobs, 3)
    assert jobs[0].config.method == "vanilla" and jobs[0].others == ["vanilla", "oracle"], "nobody else could start"
    if fails:
        assert failed.pop(jobs[0].config.run_id).startswith("no memory (see ")
        assert set(failed.values()) == {"not tried, since the vanilla model it starts from could not be made"}
        assert len(failed) == 2 and "ga" not in Pretended.history
    else:
        assert failed == {} and sorted(Pretended.history) == ["ga", "ga", "oracle", "vanilla"]


@pytest.mark.parametrize("fails, tried", [(["ga"], ["ga", "npo", "kl_min"]), (["ga", "npo"], ["ga", "npo"])])
def test_a_broken_notebook_keeps_no_other_method_from_making_vanilla(tmp_path, out, monkeypatch, fails, tried):
    """After a second one it is the vanilla model that cannot be made."""
    monkeypatch.setattr(pipeline, "finetuned", lambda config: SimpleNamespace(folder=tmp_path / "vanilla"))
    monkeypatch.setattr(Pretended, "fails", fails)
    monkeypatch.setattr(Pretended, "history", [])
    configs = sweep.cells({"grid": {"method": ["ga", "npo", "kl_min"], "modality": ["unimodal"]}})
    failed = sweep.execute([Pretended(config, Path("x.ipynb")) for config in configs], 3)
    assert Pretended.history == tried
    lost = [reason for reason in failed.values() if reason.startswith("not tried")]
    assert len(failed) - len(lost) == len(fails) and len(lost) == 3 - len(tried)


# -- beyond one machine -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, given, ratios, replicates",
    [
        (CONFIGS / "miniature-replicates.yaml", {}, {10}, set(range(10))),
        (CONFIGS / "paper-llava.yaml", {}, {5, 10, 15}, {0}),
        ({"people": 20, "forget_ratio": 30, "replicate": 1, "grid": None}, {}, {30}, {1}),
        ({"people": 20, "grid": None}, {"ratios": 10, "replicates": "0,1"}, {10}, {0, 1}),
    ],
)
def test_the_snakefile_plans_what_the_file_says_or_what_is_given(tmp_path, out, content, given, ratios, replicates):
    """Its Python, up to the rules, which only snakemake reads."""
    place = content if isinstance(content, Path) else put_grid(tmp_path, content)
    head = (CONFIGS.parent / "workflow" / "Snakefile").read_text().partition("\nRUNS = ")[0]
    exec(head, space := {"config": given})
    planned = space["runs"](place)
    assert {config.forget_ratio for config in planned} == ratios
    assert {config.replicate for config in planned} == replicates
