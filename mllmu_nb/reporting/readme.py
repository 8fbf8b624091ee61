"""Fills the README's two tables from the committed reference run: ``python -m mllmu_nb.reporting.readme``.

No number of the README is typed: the main table comes from the runs' answers, the minutes from their ``train.json``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from mllmu_nb import paths, stages
from mllmu_nb.reporting import LIKELIHOOD, VIEWS, label, models_in_order
from mllmu_nb.reporting.tables import COLLAPSED, Numbers, bracketed, numbers

RATIO, DRAW = 10, 0  # what `make reproduce` makes; the main table pools all draws of the ratio
COLUMNS = [
    (f"{name}, {'image' if view == 'image_text' else 'text'}", name, view)
    for name in ("forget", "test", "retain", "celebrity")
    for view in ("image_text", "text")
]
MAP = (
    ("Table 1, profile sheet", "01_data", ()),
    ("vanilla, oracle", "02_finetune", ("vanilla-none", "oracle-none", "base-none")),
    ("gradient ascent", "03_ga", ("ga-multimodal", "ga-unimodal")),
    ("gradient difference", "04_grad_diff", ("grad_diff-multimodal", "grad_diff-unimodal")),
    ("KL minimisation", "05_kl_min", ("kl_min-multimodal", "kl_min-unimodal")),
    ("NPO", "06_npo", ("npo-multimodal", "npo-unimodal")),
    ("prompting", "07_prompting", ("prompting-none",)),
    ("Table 2, by view, cost", "09_tables", ()),
    ("all figures", "10_figures", ()),
    ("what the released code does", "11_released_code", ()),
    ("the cliff", "13_cliff", ()),
    ("the headline claim, sources of spread", "14_modality", ()),
    ("which published gaps exceed the noise", "15_noise", ()),
)


def main_table(scores: pd.DataFrame, collapsed: Collection[tuple] = (), told: Sequence[str] = ()) -> str:
    """Likelihood accuracy in per cent with the half-width of its 95 % interval, one row a model.

    ``scores`` are those of ``tables.numbers``: a cell behind a closed gate stands in brackets, a model whose (method,
    variant, modality) ends one of the ``collapsed`` has ‡ behind its name, and ``told`` stands below.
    """
    chosen = scores[(scores.metric == "accuracy") & (scores.scoring == "likelihood")]
    lines = ["| model | " + " | ".join(head for head, _, _ in COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    keys = chosen[["method", "variant", "modality"]].drop_duplicates()
    for method, variant, modality in models_in_order(keys.itertuples(index=False, name=None)):
        mine = chosen[(chosen.method == method) & (chosen.modality == modality)].set_index(["set", "view"])
        cells = []
        for _, name, view in COLUMNS:
            cell = mine.loc[(name, view)]
            cells.append(bracketed(f"{100 * cell.value:.0f} ± {50 * (cell.high - cell.low):.0f}", cell.gate))
        mark = f" {COLLAPSED}" if (method, variant, modality) in {key[-3:] for key in collapsed} else ""
        lines.append(f"| {label(method, variant, modality)}{mark} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(f"\n{line}" for line in told)])


def pooled_table(known: Numbers) -> str:
    """:func:`main_table` of the clean runs at RATIO, with all that is to be said about them."""
    part = next(part for (_, protocol, ratio), part in known.groups() if (protocol, ratio) == ("clean", RATIO))
    return main_table(part.scores, part.collapsed, part.warnings([LIKELIHOOD], VIEWS))


def minutes_table(runs: Path) -> str:
    """What is made where: notebook, command and the minutes of a run of it when the reference run was made.

    Two runs are made at a time: a notebook's parts count half together, and no less than the longest alone.
    """
    lines = ["| what | notebook | command | minutes, with what it needs there |", "|---|---|---|---:|"]
    for what, notebook, parts in MAP:
        told = [stages.read_json(runs / f"llava-r{RATIO}-d{DRAW}-{part}-s0" / "train.json") for part in parts]
        seconds = [record["seconds"] + record["evaluation_seconds"] for record in told]
        spent = f"{max(sum(seconds) / 2, *seconds, 0) / 60:.1f}" if parts else "< 1"
        command = f"papermill notebooks/{notebook}.ipynb out.ipynb --cwd notebooks -f configs/miniature.yaml"
        lines.append(f"| {what} | [{notebook}](notebooks/{notebook}.ipynb) | `{command}` | {spent} |")
    return "\n".join(lines)


def fill(text: str, marker: str, content: str) -> str:
    """``text`` with what stands between ``<!-- marker -->`` and ``<!-- end -->`` replaced."""
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def main() -> None:
    checkout = paths.committed_runs("miniature").parents[2]
    readme = checkout / "README.md"
    text = readme.read_text()
    text = fill(text, "main table", pooled_table(numbers(paths.committed_runs("miniature"))))
    text = fill(text, "map", minutes_table(paths.committed_runs("miniature")))
    readme.write_text(text)


if __name__ == "__main__":
    main()
