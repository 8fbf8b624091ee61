"""Fills the README's finding and tables from the reference run: ``python tools/readme.py``.

No number of the README is typed: the main table comes from the runs' answers, the minutes from their train.json, and
the notebooks say themselves what they make.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mllmu_nb import paths
from mllmu_nb.reporting.runs import MODALITIES, Run, Scores, method_label
from mllmu_nb.reporting.table_specs import all_rows
from mllmu_nb.reporting.tables import column, grid
from mllmu_nb.scoring import path
from mllmu_nb.scoring.frames import VIEWS
from mllmu_nb.scoring.health import JUDGED_BY
from mllmu_nb.scoring.registry import by_key

FIRST = {"forget_ratio": 10, "replicate": 0, "protocol": "clean"}  # what `make reproduce` makes


def main_table(scores: Scores) -> str:
    """Likelihood accuracy in per cent with the half-width of its 95 % interval, a row a model of the clean runs."""
    chosen = [FIRST["protocol"], FIRST["forget_ratio"]]
    clean = next(group for (_, *key), group in scores.groups() if key == chosen)
    metric = replace(by_key()[JUDGED_BY], digits=0)
    columns = [column(metric, VIEWS[v], s.capitalize(), set=s, view=v) for s in metric.sets for v in VIEWS]
    sheet = grid(clean, "", "readme", all_rows(clean), columns, {"against": ""}, remarks=[])
    return replace(sheet, title="").markdown()


def finding(scores: Scores) -> str:
    """What gradient ascent and the method that keeps most have kept where half of the gap to the oracle is closed."""
    kept = scores.kept
    half = kept[(kept["closed_in"] == "trained") & (kept["what"] == path.KEPT) & (kept["place"] == 0.5)]
    half = half[half["forget_ratio"] == FIRST["forget_ratio"]].dropna(subset=["value"])
    lines = []
    for modality, name in MODALITIES.items():
        rows = half[half["modality"] == modality]
        ascent, best = rows[rows["method"] == "ga"], rows.nlargest(1, "value")
        if len(ascent) and len(best) and best["method"].item() != "ga":
            (one,), (two,) = ascent.to_dict("records"), best.to_dict("records")
            said = (f"{method_label(row['method'])} {_per_cent(row)}" for row in (one, two))
            lines.append(f"trained on {name}, " + " and ".join(said))
    if not lines:
        return "No method closed half of the gap to the oracle in these runs."
    count = int(half["of"].max())
    over = f"over {count} replicates" if count > 1 else "over the people of one replicate"
    return (
        "**Where half of the gap to the oracle is closed, so many answers about the people to be kept are still right: "
        f"{'; '.join(lines)}** (by likelihood; 95 % limits {over})."
    )


def _per_cent(row: Mapping) -> str:
    return f"{100 * row['value']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"


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
