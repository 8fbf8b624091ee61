"""Compares what was installed with what is expected: python tools/supply.py [--write].

It checks that every file of every locked package has the sha256 that its wheel states; that the wheel is the one noted
in ``requirements.sha256`` (``--write`` notes the installed ones: use it after ``make lock``, in a fresh environment);
that the licence is in the list below; and that pip-audit knows no vulnerability of a locked version. It prints one line
per problem, and then the exit status is 1. Wheels of a platform that the file does not know are counted, not refused.
If pip-audit cannot look anything up, one line says so. torch is left out, because each machine chooses its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import Distribution, PackagePath, distributions
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK, NOTED = ROOT / "requirements.lock", ROOT / "requirements.sha256"
LICENCES = r"\b(?:MIT|BSD|0BSD|Apache|PSF|Python Software Foundation|ISC|MPL|Mozilla|HPND|Unlicense|Zlib|CC0|CNRI|LGPL)"
OWN = re.compile(r"^\.\.|\.dist-info/(INSTALLER|REQUESTED|RECORD|direct_url\.json)$|\.pyc$")  # installer's


def name_of(distribution: Distribution) -> str:
    return re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()


def locked() -> set[str]:
    """Names of the packages in the lock."""
    return {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in LOCK.read_text().splitlines() if line}


def wheel(distribution: Distribution) -> str:
    """Name, version and platform of the wheel that was installed."""
    tags = sorted(re.findall(r"^Tag: (.*)$", distribution.read_text("WHEEL") or "", re.M))
    return f"{name_of(distribution)}=={distribution.version} {tags[-1] if tags else 'any'}"


def stated(distribution: Distribution) -> list[PackagePath]:
    """Return the wheel's files that have a hash."""
    return [file for file in distribution.files or () if file.hash and not OWN.search(str(file))]


def contents(distribution: Distribution) -> str:
    """Return a sha256 of names and hashes of the wheel's code and data, the same for any installer or sdist build."""
    files = [file for file in stated(distribution) if ".dist-info/" not in str(file)]
    return hashlib.sha256("\n".join(sorted(f"{file} {file.hash.value}" for file in files)).encode()).hexdigest()


def altered(distribution: Distribution) -> list[str]:
    """Return a line for each file that is missing or does not have the hash that the wheel states."""
    wrong = []
    for file in stated(distribution):
        path = Path(file.locate())
        found = hashlib.new(file.hash.mode, path.read_bytes()).digest() if path.is_file() else b""
        if base64.urlsafe_b64encode(found).rstrip(b"=").decode() != file.hash.value:
            wrong.append(f"{name_of(distribution)}: {file} is not the file of the wheel")
    return wrong


def licence(distribution: Distribution) -> str:
    """Return the licence that the package states: its expression, else classifiers, else the text's first line."""
    about = distribution.metadata
    classified = [
        line.rpartition(":: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License ::")
    ]
    stated = (about.get("License") or "").strip().partition("\n")[0]
    return about.get("License-Expression") or " / ".join(classified) or stated or "none stated"


def vulnerable(lock: Path = LOCK, service: str = "https://api.osv.dev/v1/query") -> tuple[list[str], str]:
    """Return known vulnerabilities of the locked versions, and a line that says how many packages were looked up, or
    why none was: pip-audit is not installed, or the service cannot be reached."""
    if not find_spec("pip_audit"):
        return [], "no vulnerability was looked up: pip-audit is not installed (extra 'audit')"
    command = [sys.executable, "-m", "pip_audit", "-r", str(lock), "--no-deps", "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off", "--vulnerability-service", "osv", "--osv-url", service]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout:
        *_, reason = ["it said nothing", *done.stderr.strip().splitlines()]
        if "requests.exceptions" in done.stderr or "_service" in done.stderr:
            return [], f"no vulnerability was looked up: {reason:.150}"
        return [f"pip-audit: {reason}"], "no vulnerability was looked up"
    packages = json.loads(done.stdout)["dependencies"]
    wrong = [f"{one['name']}=={one['version']}: {v['id']}" for one in packages for v in one.get("vulns", ())]
    return wrong, f"{sum('vulns' in one for one in packages)} packages looked up in {service}"


def main(write: bool) -> int:
    installed = sorted((one for one in distributions() if name_of(one) in locked()), key=name_of)
    if write:
        lines = dict(line.rsplit(" ", 1) for line in NOTED.read_text().splitlines()) if NOTED.exists() else {}
        lines |= {wheel(one): contents(one) for one in installed}
        kept = [f"{key} {value}" for key, value in sorted(lines.items()) if key.partition("=")[0] in locked()]
        NOTED.write_text("\n".join(kept) + "\n")
    noted = dict(line.rsplit(" ", 1) for line in NOTED.read_text().splitlines())
    problems, looked_up = vulnerable()
    unknown, licences = 0, Counter()
    for one in installed:
        problems += altered(one)
        unknown += wheel(one) not in noted
        if noted.get(wheel(one), contents(one)) != contents(one):
            problems.append(f"{wheel(one)}: its files are not those of the wheel in {NOTED.name}")
        licences[licence(one)] += 1
        if not re.search(LICENCES, licence(one)):
            problems.append(f"{name_of(one)}: its licence is {licence(one)!r}")
    print(*(f"{count:4}  {name}" for name, count in sorted(licences.items())), sep="\n")
    print(looked_up)
    print(f"{len(installed)} packages, {unknown} of a wheel that {NOTED.name} does not know, {len(problems)} problems")
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
