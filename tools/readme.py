"""Fills the README's finding and tables from the reference run: ``python tools/readme.py``.

No number of the README is typed: the main table comes from the runs' answers, the minutes from their train.json, and
the notebooks say themselves what they make.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mllmu_nb import paths
from mllmu_nb.reporting.results import half_closed, per_cent, replicates
from mllmu_nb.reporting.runs import MODALITIES, Run, Scores, method_label
from mllmu_nb.reporting.table_specs import all_rows
from mllmu_nb.reporting.tables import column, grid
from mllmu_nb.scoring.frames import VIEWS
from mllmu_nb.scoring.health import JUDGED_BY
from mllmu_nb.scoring.registry import by_key

FIRST = {"base_model": "llava", "protocol": "clean", "forget_ratio": 10, "replicate": 0}  # `make reproduce` makes it


def clean_groups(scores: Scores) -> list[Scores]:
    """The clean runs at 10 %, apart for each base model, that of `make reproduce` first."""
    chosen = [FIRST["protocol"], FIRST["forget_ratio"]]
    groups = [group for (_, *key), group in scores.groups() if key == chosen]
    return sorted(groups, key=lambda group: group.group["base_model"] != FIRST["base_model"])


def main_table(scores: Scores) -> str:
    """Likelihood accuracy in per cent with its 95 % limits, a table a base model and a row a model."""
    metric, tables = replace(by_key()[JUDGED_BY], digits=0), []
    columns = [column(metric, VIEWS[v], s.capitalize(), set=s, view=v) for s in metric.sets for v in VIEWS]
    for clean in clean_groups(scores):
        sheet = grid(clean, "", "readme", all_rows(clean), columns, {"against": ""}, remarks=[])
        tables.append(f"**{clean.runs[0].base_label}**, {replicates(clean)}\n\n{replace(sheet, title='').markdown()}")
    return "\n".join(tables)


def finding(scores: Scores) -> str:
    """What gradient ascent and the method that keeps most have kept where half of the gap to the oracle is closed."""
    lines = []
    for clean in clean_groups(scores):
        found = []
        for modality, rows in half_closed(clean).items():
            said = " and ".join(f"{method_label(row['method'])} {per_cent(row)}" for row in rows)
            found.append(f"trained on {MODALITIES[modality]}, {said}")
        if found:
            lines.append(f"{clean.runs[0].base_label} ({replicates(clean)}): {'; '.join(found)}")
    if not lines:
        return "No method closed half of the gap to the oracle in these runs."
    return (
        "**Where half of the gap to the oracle is closed, gradient ascent has lost more of what was to be kept than "
        "the best method. Answers about the people to be kept that are still right, by likelihood, with 95 % limits: "
        f"{'. '.join(lines)}.**"
    )


def map_table(runs: Sequence[Run], notebooks: Sequence[Path]) -> str:
    """What is made where: notebook, command and the minutes of a run of it when the reference run was made.

    Two runs are made at a time: those of a notebook count half together, and no less than the longest alone.
    """
    lines = ["| what | notebook | command | minutes, with what it needs there |", "|---|---|---|---:|"]
    first = [run for run in runs if all(run[name] == value for name, value in FIRST.items())]
    for notebook in notebooks:
        title, makes = _header(notebook)
        made = [run.train for run in first if run["method"] in re.findall(r"`(\w+)`", makes)]
        seconds = [train["seconds"] + train["evaluation_seconds"] for train in made]
        spent = f"{max(sum(seconds) / 2, *seconds, 0) / 60:.1f}" if seconds else "< 1"
        command = f"papermill notebooks/{notebook.name} out.ipynb --cwd notebooks -f configs/miniature.yaml"
        lines.append(f"| {title} | [{notebook.stem}](notebooks/{notebook.name}) | `{command}` | {spent} |")
    return "\n".join(lines)


def _header(notebook: Path) -> tuple[str, str]:
    """The title of a notebook and its line on what it makes."""
    text = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
    return re.search(r"^# \d+ · (.+)$", text, re.MULTILINE)[1], re.search(r"\*\*makes\*\* \|(.+)", text)[1]


def fill(text: str, marker: str, content: str) -> str:
    """``text`` with what stands between ``<!-- marker -->`` and ``<!-- end -->`` replaced."""
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{content.rstrip()}\n{match[2]}", text)


def main() -> None:
    readme, scores = paths.checkout() / "README.md", Scores.read(paths.reference())
    text = fill(readme.read_text(encoding="utf-8"), "main table", main_table(scores))
    text = fill(text, "finding", finding(scores))
    text = fill(text, "map", map_table(scores.runs, sorted(paths.notebooks().glob("*.ipynb"))))
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
