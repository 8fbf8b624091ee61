"""What hostile users and bad luck do to a sweep, in real processes: kills, Ctrl-C, a full disk, two at once."""

import contextlib
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from fake_runs import make, write
from nbformat.v4 import new_code_cell, new_notebook

from mllmu_nb import __main__ as door
from mllmu_nb import paths, stages
from mllmu_nb.commands import study, warm
from mllmu_nb.reporting import report

SMALL = {"people": 8, "pool": 4, "celebrities": 4, "forget_ratio": 25, "train_steps": 10, "unlearn_steps": 2}
SMALL |= {"replay": 0.0}  # drawing what is replayed would take longer than everything else
GRID = {"method": ["vanilla", "oracle", "ga"], "modality": ["multimodal"]}
KEPT = ("answers.parquet", "sentences.parquet", "draws.json")  # the other files hold seconds
KILLS = 20  # rounds in which something was killed
DOOR = ["-m", "mllmu_nb"]
# The same, but the notebooks only make their run, without figures, and there is no report.
SHORT = """
import sys
from pathlib import Path
from mllmu_nb import __main__ as door, paths
from mllmu_nb.commands import sweep
folder = Path(sys.argv.pop(1))
paths.notebooks, sweep.write_report = lambda: folder, lambda *given: None
sys.exit(door.main())
"""
MAKE = (
    "from mllmu_nb import pipeline\nfrom mllmu_nb.config import Config\npipeline.run(Config.from_notebook(globals()))"
)

slow = pytest.mark.slow


def short_sweep(*arguments: str) -> None:
    """Run SHORT with these arguments, in a process that was forked for it, without output."""
    os.setsid()
    with open(os.devnull, "w") as nothing:
        for stream in (1, 2):
            os.dup2(nothing.fileno(), stream)
    out, *sys.argv[1:] = arguments
    os.environ[paths.OUT] = out
    exec(SHORT, {})


class Sweeps:
    """Starts real sweeps of a tiny grid, as a user does from a terminal."""

    def __init__(self, folder: Path, base: Path):
        self.folder, self.grid, self.seconds = folder, folder / "grid.yaml", 0.0
        content = {**SMALL, "base_path": str(base), "unlearn_epochs": 0.0, "grid": GRID}
        self.grid.write_text(yaml.safe_dump(content))
        parameters = new_code_cell("method = 'vanilla'\nmodality = 'none'", metadata={"tags": ["parameters"]})
        book = new_notebook(cells=[parameters, new_code_cell(MAKE)])
        book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        for name in ("02_finetune", "03_ga"):
            nbformat.write(book, folder / f"{name}.ipynb")
        self.short = ["-c", SHORT, str(folder)]

    def start(self, out: str, *options: str, before: str = "", door: list[str] | None = None) -> subprocess.Popen:
        environment = {**os.environ, "MLLMU_NB_OUT": str(self.folder / out), "PYTHONPATH": str(paths.PACKAGE.parent)}
        command = [sys.executable, *(door or self.short), "sweep", str(self.grid), *options]
        if before:
            command = ["bash", "-c", f'{before}; exec "$@"', "bash", *command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # a shell's background job ignores Ctrl-C, and so would its children
        heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        how = {"text": True, "start_new_session": True, "preexec_fn": heard}
        return subprocess.Popen(command, env=environment, **how, **pipes)

    def fork(self, out: str, jobs: str) -> BaseProcess:
        """Start the same sweep from a process that has imported everything, so that it is at work at once."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([warm.PRELOADED])
        arguments = (self.folder / out, self.folder, "sweep", self.grid, "--jobs", jobs)
        process = context.Process(target=short_sweep, args=tuple(map(str, arguments)))
        process.start()
        return process

    def run(self, out: str, *options: str, before: str = "") -> tuple[int, str, str]:
        process = self.start(out, *options, before=before)
        said, complained = process.communicate(timeout=3600)
        return process.returncode, said, complained

    def task_of_an_array(self, out: str, task: str, count: str) -> int:
        """Run the script of a Slurm array as one of its tasks, with a ``python`` that runs the short notebooks."""
        python = self.folder / "bin" / "python"
        python.parent.mkdir(exist_ok=True)
        short = [sys.executable, *self.short]
        python.write_text(f'#!/bin/sh\n[ "$1 $2" = "-m mllmu_nb" ] && shift 2 && exec {shlex.join(short)} "$@"\n')
        python.chmod(0o755)
        environment = {**os.environ, "MLLMU_NB_OUT": str(self.folder / out), "PYTHONPATH": str(paths.PACKAGE.parent)}
        environment |= {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": count}
        environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
        script = paths.PACKAGE.parent / "workflow" / "array.sbatch"
        how = {"env": environment, "stdout": subprocess.DEVNULL, "timeout": 3600}
        return subprocess.run(["bash", script, self.grid], **how).returncode

    def answers(self, out: str) -> dict[str, bytes]:
        """Return the runs' answers, by run and file."""
        folders = (self.folder / out / "results" / "miniature" / "runs").glob("*-*")
        return {f"{run.name}/{name}": (run / name).read_bytes() for run in folders for name in KEPT}


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory, tiny_base):
    return Sweeps(tmp_path_factory.mktemp("sweeps"), tiny_base)


@pytest.fixture(scope="module")
def whole(sweeps):
    """The answers of an undisturbed sweep."""
    began = time.monotonic()
    status, said, complained = sweeps.run("whole", "--jobs", "2")
    sweeps.seconds = time.monotonic() - began
    assert status == 0, complained
    made = sweeps.answers("whole")
    assert len(made) == len(KEPT) * 3
    return made


def family(process: subprocess.Popen) -> list[psutil.Process]:
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=300)[1]  # long enough for a busy machine


@slow
def test_a_sweep_killed_at_any_moment_goes_on_and_answers_the_same(sweeps, whole):
    rng, kills, left, latest = random.Random(0), 0, [0], sweeps.seconds
    while kills < KILLS:
        process, began = sweeps.fork("killed", "2"), time.monotonic()
        process.join(rng.uniform(0.05, 1) * (latest / 2 if left[-1] else latest))  # what is made takes no time again
        if process.exitcode is None:
            there = family(process)
            victim = rng.choice([there[0], rng.choice(there)])  # the sweep, or first a notebook or kernel
            hit = False
            if victim is not there[0]:
                with contextlib.suppress(psutil.NoSuchProcess):  # if a notebook has just ended
                    victim.kill()
                    hit = True
                time.sleep(rng.uniform(0, 3))
            kills += hit or process.exitcode is None  # one a round: a notebook and then its sweep are one moment
            process.kill()
            assert gone(there), "a process has outlived its sweep"
            left.append(len(list((sweeps.folder / "killed" / ".cache").glob("stages/*"))))
            latest *= 1.25 if left[-1] == left[-2] else 1  # the machine may be busier than before
        else:  # the sweep was complete: start again, because some kills are left
            assert process.exitcode == 0
            latest = latest if left[-1] else time.monotonic() - began
            shutil.rmtree(sweeps.folder / "killed")
            left.append(0)
    assert len(set(left)) > 1, "all kills came before the first stage was made"
    assert sweeps.run("killed", "--jobs", "2")[0] == 0
    assert sweeps.answers("killed") == whole
    assert not list((sweeps.folder / "killed" / ".cache" / ".unfinished").iterdir())


@slow
def test_two_sweeps_at_once_do_the_work_once_and_shards_and_jobs_change_nothing(sweeps, whole):
    both = [sweeps.start("both", "--jobs", jobs) for jobs in "12"]
    assert [process.communicate(timeout=3600) and process.returncode for process in both] == [0, 0]
    stages = [path.name.partition("-")[0] for path in (sweeps.folder / "both" / ".cache" / "stages").iterdir()]
    assert [stages.count(name) for name in ("vanilla", "oracle", "unlearned")] == [1, 1, 1]
    made = {}
    for task in "21":
        assert sweeps.task_of_an_array("shards", task, "2") == 0
        made[task] = {run.partition("-")[0] for run in sweeps.answers("shards")}
    assert made == {"2": {"oracle"}, "1": {"vanilla", "oracle", "ga"}}
    assert sweeps.answers("both") == sweeps.answers("shards") == whole


@slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_run_that_fills_the_disk_fails_alone_and_is_made_by_the_next_sweep(sweeps, whole):
    """No file may be longer than 500 KiB: too little for the weights of the oracle, enough for everything else."""
    shutil.copytree(sweeps.folder / "whole", sweeps.folder / "filled")
    lost = [
        folder for name in ("oracle", "ga", "unlearned") for folder in (sweeps.folder / "filled").rglob(f"{name}-*")
    ]
    for folder in filter(Path.is_dir, lost):
        shutil.rmtree(folder)
    status, said, complained = sweeps.run("filled", "--jobs", "1", before="ulimit -f 500")
    ended = dict(re.findall(r"\[./2\] +\S+ min +(\w+)-\S+( +FAILED|)", said))
    assert status == 1 and ended == {"oracle": "  FAILED", "ga": ""}
    [line] = complained.splitlines()
    assert line.startswith("failed: oracle-") and "File too large" in line
    left = sweeps.answers("filled")
    assert left == {name: content for name, content in whole.items() if not name.startswith("oracle-")}
    assert sweeps.run("filled", "--jobs", "1")[0] == 0
    assert sweeps.answers("filled") == whole


@slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_sweep_that_is_stopped_says_so_and_leaves_no_process(sweeps, number, status):
    process = sweeps.start("stopped", "--jobs", "1", door=DOOR)
    while not process.stdout.readline().startswith("started"):
        assert process.poll() is None
    time.sleep(3)
    there = family(process)
    os.killpg(process.pid, number)
    _, complained = process.communicate(timeout=300)
    assert process.returncode == status and gone(there)
    assert "Traceback" not in complained
    assert ("stopped; what is finished is kept" in complained) == (number == signal.SIGINT)


WORKERS = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from mllmu_nb.processes import end_with_parent
spawn = multiprocessing.get_context("spawn")
pool = ProcessPoolExecutor(2, mp_context=spawn, initializer=end_with_parent)
list(pool.map(time.sleep, [0.1, 0.1]))
busy = [pool.submit(time.sleep, 600) for _ in range(2)]
print("at work", flush=True)
time.sleep(600)
"""


def test_workers_end_with_the_process_that_was_killed():
    process = subprocess.Popen([sys.executable, "-c", WORKERS], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "at work\n"
    there = family(process)
    assert len(there) >= 3
    process.kill()
    process.communicate()
    assert gone(there[1:])


def test_a_disk_that_is_full_leaves_the_earlier_report_whole(tmp_path, monkeypatch, largest, capsys):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))
    few = {"asked": {"classification": 2, "generation": 1, "cloze": 1}, "famous": 2}
    write(paths.results("miniature"), *(make(name, **few) for name in ("vanilla", "oracle")))
    scores = paths.results("miniature") / "scores.csv"
    scores.write_text("earlier")
    monkeypatch.setattr(report.figures, "write_all", lambda *given: [])
    monkeypatch.setattr(study, "main", lambda options: report.write_all("miniature"))
    with largest(20_000):
        assert door.main(["study"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "File too large" in told and scores.read_text() == "earlier"


REPORT = "from mllmu_nb.commands.sweep import write_report\nfrom mllmu_nb.config import Config\n"
REPORT += "write_report('miniature', Config())"


@slow
def test_two_reports_at_once_write_what_one_writes(tmp_path, monkeypatch):
    files = []
    for name, count in (("alone", 1), ("both", 2)):
        monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / name))
        few = {"asked": {"classification": 2, "generation": 1, "cloze": 1}, "famous": 2}
        write(paths.results("miniature"), *(make(model, **few) for model in ("vanilla", "oracle")))
        command = [sys.executable, "-u", "-c", REPORT]
        with stages.lock(paths.results("miniature")):  # until all of them have come to where they write
            reports = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
            for one in reports:
                assert any(line.startswith("Reading the runs") for line in one.stdout)
        assert [one.communicate(timeout=600) and one.returncode for one in reports] == [0] * count
        made = [one for kind in ("results", "figures") for one in (tmp_path / name / kind).rglob("*") if one.is_file()]
        files.append({one.relative_to(tmp_path / name): one.read_bytes() for one in made if "runs" not in one.parts})
    assert files[0] == files[1] and {".csv", ".md", ".png"} <= {one.suffix for one in files[0]}


# -- beyond one machine -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def snakemake(tmp_path_factory):
    """Starts snakemake in its own environment, with the extra ``cluster`` and this environment's packages."""
    place, root = tmp_path_factory.mktemp("cluster") / "venv", paths.PACKAGE.parent
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cluster"]
    if subprocess.run([place / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", *extra]).returncode:
        pytest.skip("snakemake could not be installed")
    [packages] = place.glob("lib/python*/site-packages")
    (packages / "zz.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))

    def start(out: Path, *options) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(root), "MLLMU_NB_OUT": str(out)}
        environment["PATH"] = f"{place / 'bin'}{os.pathsep}{environment['PATH']}"
        command = [place / "bin" / "snakemake", "--snakefile", "workflow/Snakefile", *options]
        how = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
        return subprocess.Popen(command, cwd=root, env=environment, **how)

    return start


def planned(said: str) -> dict[str, int]:
    """Rule → number of its jobs, as snakemake has said it."""
    return {rule: int(count) for rule, count in re.findall(r"^(run|report|total) +(\d+)$", said, re.M)}


def jobs(started: subprocess.Popen) -> tuple[int, dict[str, int], str]:
    """Return the status of snakemake, what it has planned, and the output."""
    said, _ = started.communicate()
    return started.returncode, planned(said), said


@slow
def test_snakemake_plans_the_papers_whole_grid(snakemake, tmp_path):
    out = tmp_path / "my results"
    options = ("--cores", "1", "--dry-run", "--printshellcmds", "--config", "replicates=0,1")
    _, plan, said = jobs(snakemake(out, *options))
    # 2 bases × 3 ratios × 2 replicates × (base, vanilla, oracle, prompting and 4 methods × 2 modalities)
    assert plan == {"run": 144, "report": 1, "total": 145}, said
    commands = [shlex.split(line) for line in re.findall("^Shell command: (python -m papermill .*}\n')", said, re.M)]
    assert len(commands) == 144 and {len(command) for command in commands} == {10}, "a path with blanks is one word"
    for _, _, _, notebook, executed, _, folder, *_ in commands:
        assert Path(executed).is_relative_to(out) and Path(notebook).parent == Path(folder)


@slow
def test_jobs_submitted_by_snakemake_answer_as_a_sweep_does(snakemake, sweeps, whole, tmp_path):
    """Runs the reduced grid through the executor that passes scripts to a cluster; ``sh`` replaces sbatch. The first
    time everything is killed as soon as two runs are finished."""
    cluster = ["--executor", "cluster-generic", "--cluster-generic-submit-cmd", "sh", "--jobs", "2"]
    grid = ["--directory", tmp_path, "--config", f"grids={sweeps.grid}", f"ratios={SMALL['forget_ratio']}"]
    out = sweeps.folder / "cluster"
    killed, said = snakemake(out, *cluster, *grid), ""
    while "2 of 4 steps" not in said:  # then snakemake has noted that vanilla and the oracle are finished
        assert (line := killed.stdout.readline()), said
        said += line
    assert planned(said) == {"run": 3, "report": 1, "total": 4}
    there = family(killed)
    os.killpg(killed.pid, signal.SIGKILL)
    for process in there:  # kernels have sessions of their own
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    killed.communicate(timeout=300)
    assert gone(there)
    status, made, said = jobs(snakemake(out, *cluster, *grid))
    assert status == 0 and made == {"run": 1, "report": 1, "total": 2}, said
    assert sweeps.answers("cluster").items() >= whole.items()  # plus the base model, which the full grid also asks
    assert (out / "results" / "miniature" / "scores.csv").is_file()
    _, again, said = jobs(snakemake(out, "--cores", "1", "--dry-run", *grid))
    assert again == {"report": 1, "total": 1}, said
