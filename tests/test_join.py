"""Ways to start: the console script outside the checkout, the site, hooks, workflow, containers, types and the loop."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
from dataclasses import replace
from itertools import islice
from pathlib import Path

import nbformat
import pytest
import yaml
from test_environment import ROOT, copy_of_the_package

import mllmu_nb
from mllmu_nb import __main__ as door
from mllmu_nb import unlearning

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RULES = ("ruff check", "ruff format", "nbstripout --keep-output --keep-count --keep-id", "lint-imports")


# -- the console script -----------------------------------------------------------------------------------------


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as ended:
        door.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"mllmu-nb {mllmu_nb.__version__}\n"
    assert PROJECT["project"]["scripts"] == {"mllmu-nb": "mllmu_nb.__main__:run"}


@pytest.mark.parametrize(
    ("given", "spared"),
    [
        ("--help", ("torch", "mllmu_nb.commands.sweep")),
        ("--version", ("torch", "mllmu_nb.commands.sweep")),
        ("study --help", ("torch", "mllmu_nb.commands.sweep")),
        ("judge --help", ("mllmu_nb.pipeline", "mllmu_nb.commands.sweep")),
        ("verify --help", ("transformers.modeling_utils",)),  # takes seconds, and no model is loaded
    ],
)
def test_a_command_imports_only_what_it_needs(given, spared):
    code = "import sys\nfrom mllmu_nb import __main__ as door\ntry:\n    door.main(sys.argv[1:])\nfinally:\n"
    code += f"    print([name for name in {spared} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *given.split()], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip().split("\n")[-1] == "[]"


@pytest.mark.parametrize("command", door.COMMANDS)
def test_every_help_has_examples_that_can_be_typed(command, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        door.main([command, "--help"])
    said = capsys.readouterr().out
    module = importlib.import_module(f"mllmu_nb.commands.{command}")
    assert "examples:" in said and module.EXAMPLES
    monkeypatch.setattr(module, "main", lambda options: 42)  # reached only if the parser accepts the arguments
    for example in module.EXAMPLES:
        assert f"mllmu-nb {example}" in said and example.split()[0] == command
        assert door.main(shlex.split(example, comments=True)) == 42
        for word in shlex.split(example, comments=True):
            assert not word.startswith("configs/") or (ROOT / word).is_file()


@pytest.mark.slow
def test_the_wheel_runs_outside_the_checkout(tmp_path):
    """It is built, installed into a new environment that borrows this one's packages, and run from an empty folder."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", tmp_path, "."], cwd=copy_of_the_package(tmp_path), check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    install = [scripts / "python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True)
    [site] = (tmp_path / "venv").rglob("site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(others))
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(name, *arguments):
        command, clean = [scripts / name, *arguments], {"PATH": "/usr/bin:/bin"}  # no PYTHONPATH to another copy
        done = subprocess.run(command, cwd=empty, capture_output=True, text=True, env=clean)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("mllmu-nb", "--version") == f"mllmu-nb {mllmu_nb.__version__}\n"
    where = "import mllmu_nb; print(mllmu_nb.__file__)"
    assert Path(run("python", "-c", where).strip()).is_relative_to(site), "the checkout was imported, not the wheel"
    few = [word for name in ("people", "pool", "celebrities") for word in ("-p", name, "12")]
    assert "12 fictitious, 12 pool, 12 celebrity" in run("mllmu-nb", "export", "--data", "people", *few)
    assert "with the true answer known" in run("mllmu-nb", "ask", *few)
    assert [path.name for path in empty.iterdir() if path.name.startswith("people")] == ["people"]


# -- what others find -------------------------------------------------------------------------------------------


def test_the_changelog_begins_with_this_version():
    assert re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == mllmu_nb.__version__


def test_the_hooks_are_the_projects_own_rules_and_fetch_nothing():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    [repo] = config["repos"]
    assert repo["repo"] == "local" and {hook["language"] for hook in repo["hooks"]} == {"system"}
    entries = [hook["entry"] for hook in repo["hooks"]]
    assert [entry for entry in entries if not entry.startswith(RULES)] == [] and len(entries) == len(RULES)
    [notebooks] = [hook for hook in repo["hooks"] if "nbstripout" in hook["entry"]]
    assert re.search(notebooks["files"], "notebooks/03_ga.ipynb")


@pytest.mark.parametrize(
    "linter",
    ["check-jsonschema --builtin-schema vendor.github-workflows", "zizmor --offline --config .github/zizmor.yml"],
)
def test_the_workflow_passes_the_linters(linter):
    program, *options = linter.split()
    found = shutil.which(program, path=Path(sys.executable).parent) or shutil.which(program)
    if found is None:
        pytest.skip(f"{program}, of the extra 'test', is not installed")
    done = subprocess.run([found, *options, ".github/workflows/ci.yml"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# -- the site and the types -------------------------------------------------------------------------------------


def test_the_methods_page_has_every_method_with_its_source_and_file():
    page = (ROOT / "docs" / "methods.md").read_text()
    for name in unlearning.names():
        for method in unlearning.variants(name).values():
            if not method.__module__.startswith("mllmu_nb.unlearning."):
                continue
            module = importlib.import_module(method.__module__)
            assert f"`{name}`" in page and f"`{method.__module__.replace('.', '/')}.py`" in page
            for preprint in re.findall(r"arXiv \d+\.\d+", module.__doc__):
                assert preprint in page


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """It is built offline, with all links between its pages; afterwards every picture must have an alt text."""
    for name in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(name, reason=f"{name}, of the extra 'docs', is not installed: make docs")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-c", "docs"]
    done = subprocess.run([*command, "-d", tmp_path / "trees", ".", tmp_path / "html"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    pages = {path.relative_to(tmp_path / "html").as_posix(): path for path in (tmp_path / "html").rglob("*.html")}
    assert {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")} <= set(pages)
    assert "<math" in pages["docs/methods.html"].read_text()
    for page in pages.values():
        for picture in re.findall(r"<img[^>]*>", page.read_text()):
            assert re.search(r'alt="[^"]', picture), f"a picture without words in {page.name}"


# -- the loops that notebooks 02 and 03 show --------------------------------------------------------------------


def loop(notebook: str, name: str):
    """Return the function with this name from the cell ``loop`` of a notebook."""
    book = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4)
    cells = {cell["id"]: cell.source for cell in book.cells}
    namespace: dict = {}
    exec("\n".join([cells["imports"], "import torch", cells["loop"]]), namespace)
    return namespace[name]


@pytest.mark.parametrize("optimizer, schedule, clip", [("adamw", "linear", 0.1), ("muon", "plateau", 0.0)])
def test_the_loop_by_hand_does_what_the_kits_loop_does(tiny_base, optimizer, schedule, clip):
    from test_training import LLAVA, PLAIN, SHOWN

    from mllmu_nb.batches import finetuning_batches
    from mllmu_nb.models.load import load_base, unfreeze
    from mllmu_nb.training import finetune

    recipe = replace(PLAIN, steps=6, optimizer=optimizer, schedule=schedule, clip=clip, lr=3e-3)

    def fresh():
        model, processor = load_base(str(tiny_base), "llava", "miniature")
        return unfreeze(model), processor

    model, processor = fresh()
    teach = loop("02_finetune", "teach")
    mine = teach(model, finetuning_batches(LLAVA, processor, SHOWN, recipe, 0), recipe, recipe.steps)
    other, processor = fresh()
    kits = [step["loss"] for step in finetune(other, processor, SHOWN, recipe, 0, progress=False).losses]
    assert mine == pytest.approx(kits, abs=1e-4) and mine[-1] < mine[0] - 0.01
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-3


@pytest.mark.parametrize("clip", [0.1, 0.0])
def test_the_ascent_by_hand_does_what_the_kits_does(tiny_base, clip):
    """With answers of several lengths, where a mean over tokens differs from a mean over answers; with dropout."""
    import torch
    from test_training import LLAVA, PLAIN, SHOWN

    from mllmu_nb.batches import unlearning_batches
    from mllmu_nb.models import adapters
    from mllmu_nb.models.load import load_base
    from mllmu_nb.training import unlearn

    recipe, method = (
        replace(PLAIN, steps=6, schedule="linear", clip=clip, lr=3e-3, lora_dropout=0.1),
        unlearning.get("ga"),
    )
    asked = {"forget": SHOWN, "retain": SHOWN}

    def fresh():
        model, processor = load_base(str(tiny_base), "llava", "miniature")
        return adapters.attach(model, recipe, 0), processor

    model, processor = fresh()
    batches = unlearning_batches(LLAVA, processor, method, asked, recipe, 0)
    torch.manual_seed(0)
    mine = loop("03_ga", "ascend")(model, islice(batches, recipe.steps), recipe, recipe.steps)
    other, processor = fresh()
    kits = [step["loss"] for step in unlearn(other, processor, method, asked, recipe, 0, progress=False).losses]
    assert mine == pytest.approx(kits, abs=1e-4) and mine[-1] < mine[0]
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-3


def test_the_notebooks_hook_keeps_outputs_and_numbers(tmp_path):
    """The hook does not change a committed notebook; it removes traces of the machine from another."""
    pytest.importorskip("nbstripout", reason="nbstripout, of the extra 'test', is not installed")
    path = shutil.copy(ROOT / "notebooks" / "01_data.ipynb", tmp_path)
    book = nbformat.read(path, as_version=4)
    cell = next(cell for cell in book.cells if cell.cell_type == "code" and cell.outputs)
    cell.execution_count, cell.metadata["execution"] = 3, {"iopub.status.idle": "2020-01-01"}
    nbformat.write(book, path)
    subprocess.run([sys.executable, "-m", "nbstripout", "--keep-output", "--keep-count", "--keep-id", path], check=True)
    after = next(c for c in nbformat.read(path, as_version=4).cells if c["id"] == cell["id"])
    assert after.execution_count == 3 and after.outputs == cell.outputs and "execution" not in after.metadata


def test_the_workflow_calls_the_same_script_on_every_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    everything, unit = workflow["jobs"].values()
    assert everything["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert {"run": ".ci/run"} in everything["steps"]
    assert unit["strategy"]["matrix"]["system"] == ["macos-latest", "windows-latest"]
    assert workflow["permissions"] == {"contents": "read"}
    used = {step["uses"].split("@")[0] for job in (everything, unit) for step in job["steps"] if "uses" in step}
    assert used == {"actions/checkout", "actions/setup-python"}


def test_containers_install_what_the_project_names():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    target = container["postCreateCommand"].removeprefix("make ")
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
    assert container["image"].endswith(":" + (ROOT / ".binder" / "runtime.txt").read_text().strip().split("-")[1])
    binder = ROOT / ".binder" / "postBuild"
    assert subprocess.run(["bash", "-n", binder]).returncode == 0 and binder.stat().st_mode & 0o100
    assert "-c requirements.lock -e ." in binder.read_text()
