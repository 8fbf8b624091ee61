"""The ways to install the project agree: pyproject.toml, requirements.lock, environment.yml and the Makefile."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions, packages_distributions
from importlib.metadata import version as installed
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import mllmu_nb
import supply

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
PYTHONS = ("3.11", "3.12", "3.13")


def requirements() -> list[Requirement]:
    """Return all requirements that the lock pins; the extras ``cluster`` and ``utility`` are not locked."""
    extras = [lines for name, lines in PROJECT["optional-dependencies"].items() if name not in ("cluster", "utility")]
    return [Requirement(line) for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]]


def locked(python: str) -> dict[str, list[str]]:
    """Return the versions that the lock gives each package on Linux with this Python; a sound lock gives one."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.7",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    versions: dict[str, list[str]] = {}
    for line in LOCK:
        requirement = Requirement(line)
        if requirement.marker is None or Marker(str(requirement.marker)).evaluate(environment):
            [pin] = requirement.specifier
            versions.setdefault(canonicalize_name(requirement.name), []).append(pin.version)
    return versions


# environment.yml


def conda_specs() -> list[str]:
    return [spec for spec in ENVIRONMENT["dependencies"] if isinstance(spec, str)]


@pytest.mark.parametrize("spec", conda_specs())
def test_conda_reads_every_spec(spec):
    rattler = pytest.importorskip("rattler", reason="py-rattler, of the extra 'test', is not installed")
    assert rattler.MatchSpec(spec, strict=True).name is not None


def test_the_python_of_conda_is_one_the_package_takes():
    [spec] = [spec for spec in conda_specs() if spec.startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(spec.removeprefix("python="))


def test_conda_leaves_the_packages_to_pip_with_the_lock():
    assert conda_specs()[-1] == "pip" and len(conda_specs()) == 2
    assert ENVIRONMENT["dependencies"][-1] == {"pip": ["-c requirements.lock", "-e .[test]"]}


def test_pip_reads_the_lines_as_conda_hands_them_over(tmp_path):
    """conda writes the pip section into a file and runs pip on it in the project's folder."""
    if Version(installed("setuptools")) < Version("77"):
        pytest.skip("needs setuptools 77 or newer in this environment")
    checkout = copy_of_the_package(tmp_path)
    lines = checkout / "condaenv.requirements.txt"
    lines.write_text("\n".join(ENVIRONMENT["dependencies"][-1]["pip"]) + "\n")
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "-r", lines.name], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Would install mllmu-nb-{mllmu_nb.__version__}" in done.stdout.replace("mllmu_nb-", "mllmu-nb-")


# requirements.lock


def test_the_lock_is_plain_pins():
    pin = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; .+)?")
    assert LOCK
    assert [line for line in LOCK if not pin.fullmatch(line)] == []


def test_the_lock_leaves_torch_and_its_companions_to_the_machine():
    companions = re.compile(r"(torch|torchvision|torchaudio|triton|pytorch-triton|nvidia-.*|cuda-.*)==")
    assert [line for line in LOCK if companions.match(line)] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_gives_each_package_one_version(python):
    assert {name: found for name, found in locked(python).items() if len(found) != 1} == {}


def test_the_lock_names_no_registry():
    assert [line for line in LOCK if "://" in line or line.startswith("-") or "@" in line] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_the_bounds_admit_the_locked_versions(python):
    known = locked(python)
    for requirement in requirements():
        if requirement.name != "torch":
            [version] = known[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement} excludes the locked {version}"


def test_a_file_that_is_not_the_wheels_is_named(tmp_path):
    wheel = tmp_path / "odd-1.dist-info"
    wheel.mkdir()
    (tmp_path / "odd.py").write_text("x = 1\n")
    (wheel / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\nLicense-Expression: MIT\n")
    (wheel / "WHEEL").write_text("Tag: py3-none-any\n")
    stated = base64.urlsafe_b64encode(hashlib.sha256(b"x = 1\n").digest()).rstrip(b"=").decode()
    (wheel / "RECORD").write_text(f"odd.py,sha256={stated},6\nodd-1.dist-info/RECORD,,\n")
    [odd] = distributions(path=[str(tmp_path)])
    assert (supply.wheel(odd), supply.licence(odd), supply.altered(odd)) == ("odd==1 py3-none-any", "MIT", [])
    before = supply.contents(odd)
    (tmp_path / "odd.py").write_text("x = 2\n")
    assert supply.altered(odd) == ["odd: odd.py is not the file of the wheel"]
    (wheel / "RECORD").write_text(f"odd.py,sha256={stated[::-1]},6\n")
    assert supply.contents(*distributions(path=[str(tmp_path)])) != before


@pytest.fixture
def osv():
    """A local service that answers like OSV: (its address, the requests it got)."""
    asked, known = [], {"old": "PYSEC-2020-1"}

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            name = asked[-1]["package"]["name"]
            found = {"vulns": [{"id": known[name], "affected": []}]} if name in known else {}
            self.send_response(503 if name == "down" else 200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *given):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_known_vulnerability_is_named_and_a_service_out_of_reach_is_one_line(osv, tmp_path, monkeypatch):
    pytest.importorskip("pip_audit", reason="pip-audit, of the extra 'audit', is not installed")
    (service, asked), lock = osv, tmp_path / "requirements.lock"
    lock.write_text("old==1.0\nnew==2.0\nelsewhere==3.0 ; sys_platform == 'none'\n")
    assert supply.vulnerable(lock, service) == (["old==1.0: PYSEC-2020-1"], f"2 packages looked up in {service}")
    assert sorted((one["package"]["name"], one["version"]) for one in asked) == [("new", "2.0"), ("old", "1.0")]
    lock.write_text("down==1.0\n")
    for address in (service, "http://127.0.0.1:9/"):
        wrong, said = supply.vulnerable(lock, address)
        assert wrong == [] and said.startswith("no vulnerability was looked up: ") and "\n" not in said
    lock.write_text("old>=1.0\n")
    wrong, said = supply.vulnerable(lock, service)
    assert len(wrong) == 1 and wrong[0].startswith("pip-audit: ")


def test_without_pip_audit_one_line_says_so(monkeypatch):
    monkeypatch.setattr(supply, "find_spec", lambda name: None)
    assert supply.vulnerable() == ([], "no vulnerability was looked up: pip-audit is not installed (extra 'audit')")


def test_every_locked_package_has_a_noted_wheel():
    noted = {line.partition("==")[0] for line in supply.NOTED.read_text().splitlines()}
    elsewhere = {"appnope", "httpx2-jsfetch", "pywinpty"}  # for other systems
    assert noted <= supply.locked() and supply.locked() - noted <= elsewhere


def test_every_package_that_is_imported_is_declared():
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    declared |= {"mllmu-nb", "ipython", "jupyter-client"}  # ipykernel brings the last two
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "mllmu_nb").rglob("*.py"))
    names = set(re.findall(r"^ *(?:import|from) (\w+)(?=\.| import\b|$)", code, re.M)) - sys.stdlib_module_names
    of = packages_distributions()
    assert {"torch", "filelock"} <= names
    assert [name for name in names & of.keys() if not declared & set(map(canonicalize_name, of[name]))] == []


def test_no_dependency_names_a_kind_of_torch():
    for requirement in requirements():
        assert "+" not in str(requirement.specifier) and requirement.url is None
    assert [r.name for r in requirements() if r.name.startswith("torch")] == ["torch"]


# The package


def copy_of_the_package(folder: Path) -> Path:
    """Copy what a build reads, so that building leaves nothing behind in the checkout."""
    checkout = folder / "checkout"
    shutil.copytree(ROOT / "mllmu_nb", checkout / "mllmu_nb", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.lock", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    return checkout


def test_the_wheel_holds_all_code_and_the_shipped_models(tmp_path):
    if Version(installed("setuptools")) < Version("77"):
        pytest.skip("needs setuptools 77 or newer in this environment")
    checkout = copy_of_the_package(tmp_path)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "-w", str(tmp_path), "."], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("mllmu_nb/")}
    package = ROOT / "mllmu_nb"
    written = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == written


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mllmu_nb.__version__
    assert citation["license"] == PROJECT["license"]
    [paper] = citation["references"]
    assert paper["doi"] == "10.18653/v1/2025.naacl-long.207"
    assert [author["family-names"] for author in paper["authors"]] == "Liu Dou Jia Tan Zeng Yuan Jiang".split()


# The Makefile

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make_env(tmp_path: Path, python: str) -> subprocess.CompletedProcess:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "-s", "env", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)


def pretending(tmp_path: Path, preamble: str, says: str) -> str:
    """Write an executable that runs this Python after `preamble`, and prints `says` if asked for its version."""
    script = tmp_path / "python"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "{says}" && exit 0\n'
        f'exec "{sys.executable}" -c \'import sys; {preamble}; exec(sys.argv[1])\' "$2"\n'
    )
    script.chmod(0o755)
    return str(script)


def the_line(done: subprocess.CompletedProcess) -> str:
    """Return the one line of stderr that does not come from make."""
    assert done.returncode != 0
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    return line


@needs_make
def test_an_old_python_gets_one_clear_line(tmp_path):
    python = pretending(tmp_path, "sys.version_info = (3, 10, 13)", "Python 3.10.13")
    line = the_line(make_env(tmp_path, python))
    assert line.startswith(f"mllmu-nb needs Python 3.11 or newer, but '{python}' is Python 3.10.13.")
    assert not (tmp_path / "venv").exists()


@needs_make
def test_a_missing_python_gets_one_clear_line(tmp_path):
    line = the_line(make_env(tmp_path, "no-such-python"))
    assert line.startswith("mllmu-nb needs Python 3.11 or newer, but 'no-such-python' was not found.")


@needs_make
def test_a_python_without_venv_gets_one_clear_line(tmp_path):
    python = pretending(tmp_path, 'sys.modules["ensurepip"] = None', "Python 3.13.5")
    line = the_line(make_env(tmp_path, python))
    assert "its module venv is missing (on Debian and Ubuntu: apt install python3-venv)" in line
    assert not (tmp_path / "venv").exists()


@needs_make
def test_paths_may_hold_blanks(tmp_path):
    checkout, venv = tmp_path / "checkout", tmp_path / "my venv"
    for folder in (checkout / "mllmu_nb", checkout / "tests", venv / "bin", tmp_path / "my"):
        folder.mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, checkout)
    python = venv / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    python.chmod(0o755)
    (venv / ".ready-test").touch()  # installed already
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    def make(target: str) -> str:
        command = ["make", "-s", target, f"VENV={venv}", "GRID=my grid.yaml", "EXTRAS=test"]
        return subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True, check=True).stdout

    assert make("reproduce") == "-m|mllmu_nb|sweep|my grid.yaml|"
    make("clean")
    assert not venv.exists() and (tmp_path / "my").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows runs no shell script")
@pytest.mark.parametrize("ends", [0, 2])
def test_ci_says_in_its_last_lines_what_it_could_not_check(tmp_path, ends):
    """Every program that it calls is played: all go well, except that no further environment can be made, and that the
    last command may fail."""
    played = {
        "bin/make": f'case "$*" in *VENV=*) exit 1;; *reproduce*) exit {ends};; esac',
        ".venv/bin/python": '[ "$1" != -c ] || echo 3.11',
        **dict.fromkeys(("bin/chromium", "bin/pdflatex"), ""),
    }
    for name, script in played.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    variables = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([tmp_path / ".ci" / "run"], env=variables, capture_output=True, text=True)
    warned = [line.startswith("::warning::not checked: ") for line in done.stdout.splitlines()]
    assert done.returncode == ends and warned == sorted(warned) and "::warning::not checked: lmms-eval" in done.stdout


# The tests themselves


@pytest.mark.parametrize("place", ["results", "figures"])
def test_git_leaves_out_a_users_own_runs_and_keeps_the_reference(place):
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of git")
    own, reference = f"{place}/miniature/x", f"{place}/reference/x"
    asked = subprocess.run(["git", "check-ignore", own, reference], cwd=ROOT, capture_output=True, text=True)
    assert asked.stdout.split() == [own]


def test_git_leaves_the_bytes_of_hashed_files_on_every_system():
    """With core.autocrlf, as on Windows, it would change the ends of lines."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of git")
    files = ["results/reference/runs/x/train.json", "mllmu_nb/assets/llava-miniature/config.json"]
    asked = subprocess.run(["git", "check-attr", "text", *files], cwd=ROOT, capture_output=True, text=True)
    assert asked.stdout.splitlines() == [f"{file}: text: unset" for file in files]


def test_tests_write_outside_the_checkout():
    assert not Path(os.environ["MLLMU_NB_OUT"]).resolve().is_relative_to(ROOT)
