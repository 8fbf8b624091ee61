"""Fills the tables of README and docs, badges and finding from the reference run: ``python tools/readme.py``.

No number of the README is typed by hand. The main table comes from the runs' answers, the minutes from their
records, and published figures from ``published_results.csv``. Each notebook's title cell says what the notebook
makes, which part of the paper that is and, if it trains nothing, how many minutes it takes.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import inf, nan
from pathlib import Path
from textwrap import indent

import numpy as np
import pandas as pd

from mllmu_nb import paths, unlearning
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import VIEW_OF
from mllmu_nb.evaluation.path import PEOPLE
from mllmu_nb.models import families
from mllmu_nb.reporting import published
from mllmu_nb.reporting.grid import collapse_note, number_text, rows_by, select
from mllmu_nb.reporting.report import elsewhere, half_closed, per_cent, replicates
from mllmu_nb.reporting.runs import MODALITIES, Run, Scores, label, method_label
from mllmu_nb.reporting.sheet import markdown_text
from mllmu_nb.reporting.tables import all_rows, column, differences, kept_text, score_sheet
from mllmu_nb.scoring.frames import KEY, LIKELIHOOD_KEY, MODEL, VIEWS, has
from mllmu_nb.scoring.gates import GOALS
from mllmu_nb.scoring.path import HALF, KEPT
from mllmu_nb.scoring.registry import by_key
from mllmu_nb.statistics.intervals import interval

FIRST = {"base_model": "llava", "protocol": "clean", "forget_ratio": 10, "replicate": 0}  # the runs of `make reproduce`
TABLES, FIGURES = "results/reference/tables", "figures/reference"
FILES = {  # notebook number → files that show its part of the paper
    "01": [f"{TABLES}/table1_data.csv"],
    **dict.fromkeys(("02", "03", "04", "05", "06", "07"), [f"{TABLES}/table2_main.csv"]),
    "09": [f"{TABLES}/table2_main.md", f"{TABLES}/table2_paper.tex"],
    "10": [f"{FIGURES}/{name}_llava_10.png" for name in ("before_after", "forgetting_utility", "oracle_gap")],
    "13": [f"{TABLES}/table_path.csv", f"{TABLES}/table_claim.csv"],
}
COUNTED = {"01": "20,754 questions"}  # of the paper's Table 1
PRINTED = {"base_model": "LLaVA-1.5-7B", "forget_ratio": 5, "set": "Forget", "metric": "classification_acc"}
PRINTED |= {"kind": "published"}


def clean_groups(scores: Scores) -> list[Scores]:
    """Return the clean runs at 10 %, one Scores per base model; the base of `make reproduce` comes first."""
    chosen = [FIRST["protocol"], FIRST["forget_ratio"]]
    return [group for (_, *key), group in scores.groups if key == chosen]


def main_table(scores: Scores) -> str:
    """Return the main table: likelihood accuracy of the first base in per cent with its 95 % limits, one row per model,
    and a link to the other bases and measures."""
    clean, *others = clean_groups(scores)
    metric = replace(by_key()[LIKELIHOOD_KEY], digits=0)
    columns = [column(metric, VIEWS[v], s.capitalize(), set=s, view=v) for s in metric.sets for v in VIEWS]
    sheet = score_sheet(clean, "", "readme", all_rows(clean), columns, {"against": ""}, remarks=[])
    share = closed(clean)
    blocks = [(head, [(name, [*row, (share.get(name, ""), "")]) for name, row in rows]) for head, rows in sheet.blocks]
    columns = [*sheet.columns, ("Closed %", "trained view")]
    below = collapse_note(clean, map(clean.named, clean.models()))
    sheet = replace(sheet, title="", columns=columns, blocks=blocks, remarks=[*sheet.remarks, *below])
    title, more = f"**{clean.runs[0].base_label}**, {replicates(clean)}", f"{TABLES}/table2_by_view.md"
    title += (
        ". Each method is shown after its preset number of steps, not at equal forgetting. *Closed* is the share of "
        "the gap on Forget that is closed there, in the trained view; it is empty for a model that was not unlearned. "
        "[Notebook 13](notebooks/13_along_the_path.ipynb) compares the methods at equal forgetting."
    )
    bases = "".join(f"{other.runs[0].base_label} ({replicates(other)}) and " for other in others)
    return f"{title}\n\n{sheet.markdown()}\n{bases}every other measure: [{Path(more).name}]({more})."


def closed(scores: Scores) -> dict[str, str]:
    """Return printed name of each unlearned model → the share of the gap on Forget that is closed at the end of its
    training, in the trained view: the mean over replicates, with 95 % limits (each replicate has its own forget
    people). Models without a gap are left out."""
    known = select(scores, [by_key()[LIKELIHOOD_KEY]], against="", set="forget")
    # one replicate has no dots: its level is its value
    levels = [dots or (value,) for dots, value in zip(known["dots"], known["value"], strict=True)]
    level = known.assign(level=levels).set_index([*MODEL, *scores.by, "view"])["level"]
    shares, ends = {}, [(name, "canonical", "none", "", *[""] * len(scores.by)) for name in ("vanilla", "oracle")]
    for model in scores.models():
        views = [(*one, VIEW_OF.get(model[2])) for one in (*ends, model)]
        before, goal, now = (np.array(level.get(view, nan), float) for view in views)
        if before.mean() > goal.mean():
            mean = interval((before - now) / (before - goal), np.arange(now.size), (-inf, inf))
            limits = f" [{100 * mean.low:.0f}, {100 * mean.high:.0f}]" if now.size > 1 else ""
            shares[scores.named(model)] = f"{100 * mean.value:.0f}{limits}"
    return shares


RIGHT = {  # task and metric → what is right, as docs/limits.md says it
    LIKELIHOOD_KEY: "option by likelihood",
    ("generation", "", "exact"): "fact in a free answer",
    ("cloze", "", "accuracy"): "blank",
    ("classification", "letter", "accuracy"): "letter",
}


def goals(cells: pd.DataFrame) -> str:
    """Return the table of what vanilla answers rightly at 10 %, beside the goals that were set before: per cent, with
    image + text and with text. ``cells``: the rows of table2_by_view.csv. Missed goals are bold."""
    vanilla = {"method": "vanilla", "protocol": "clean", "forget_ratio": 10, "against": ""}
    level = cells[has(cells, vanilla, vanilla.values())].set_index(["base_model", "set", *KEY, "view"])["value"]
    places = list(product(dict.fromkeys(name for name, *_ in level.index), ("forget", "retain", "test")))
    heads = [f"{families.get(base).label}, {name.capitalize()}" for base, name in places]
    lines = [f"| right, % (goal; on Test) | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for key, name in RIGHT.items():
        row = []
        for base, set_name in places:
            shares = [float(level[base, set_name, *key, view]) for view in VIEWS]
            wanted = GOALS[key].get(set_name, 0)
            row.append(" / ".join(f"**{100 * one:.0f}**" if one < wanted else f"{100 * one:.0f}" for one in shares))
        on_test = f"{100 * GOALS[key]['test']:.0f}" if "test" in GOALS[key] else "no goal"
        lines.append(f"| {name} ({100 * GOALS[key]['forget']:.0f}; {on_test}) | {' | '.join(row)} |")
    return "\n".join(lines)


def settings() -> str:
    """Return the table of docs/methods.md: how each form of a method that the reference has is trained on the
    miniature. The forms of the released code are in notebook 11."""
    lines = ["| method | unlearned on | learning rate | steps | batch | weights |", "|---|---|---:|---:|---:|---|"]
    own = [one for one in unlearning.METHODS.values() if one.__module__.startswith(f"{unlearning.__name__}.")]
    trained = [(one.name, one.variant) for one in own if one.streams and one.variant != "upstream"]
    for (name, variant), modality in product(trained, MODALITIES):
        config = Config(method=name, variant=variant, modality=modality)
        recipe, weights = config.unlearning, [f"{weight} = {value:g}" for weight, value in config.settings.items()]
        cells = label(name, variant), MODALITIES[modality], f"{recipe.lr:g}", recipe.steps, recipe.batch_size
        lines.append(f"| {' | '.join(map(str, cells))} | {', '.join(weights)} |")
    return "\n".join(lines)


def finding(scores: Scores) -> str:
    """Return in words what the first method and the one that keeps most have kept at half of the gap to the oracle."""
    clean = clean_groups(scores)[0]
    if not (rows := half_closed(clean).get("multimodal")):
        return "Where half of the gap to the oracle is closed, no method is shown to keep more than gradient ascent."
    first, best = rows
    name = "gradient ascent" if first["method"] == "ga" else method_label(first["method"])
    free = [per_cent(elsewhere(clean, row, what="free")) for row in rows]
    # at place 0, the start of a path, the model is vanilla
    before = [per_cent(elsewhere(clean, first, what=what, place=0.0)) for what in (KEPT, "free")]
    pair = {"place": HALF, "modality": "multimodal", "first": method_label(best["method"])}
    pair |= {"second": method_label(first["method"])}
    more = number_text(rows_by(differences(clean), list(pair))[tuple(pair.values())], signed=True)
    return (
        f"**When a model has half forgotten some people, it picks the right option in {per_cent(first)} of the "
        f"questions about others after {name}, and in {per_cent(best)} after {method_label(best['method'])}; before "
        f"unlearning, it was {before[0]}.** Person by person, the difference is {more} points. Free answers lose more: "
        f"about Retain people they state the fact in {free[0]} after {name} and in {free[1]} after "
        f"{method_label(best['method'])}; before, it was {before[1]}.\n\n"
        f"*Half forgotten* means that half of the [gap](#glossary) between vanilla and the oracle is closed, asked "
        f"with image + text, as in unlearning. The model is {clean.runs[0].base_label}, unlearned on "
        f"{MODALITIES['multimodal']}. The others are {PEOPLE['retain']} Retain people and {PEOPLE['celebrity']} "
        f"celebrities in each replicate, asked with image + text and with text alone; the option is picked by "
        f"likelihood. The numbers are from {replicates(clean)}, with 95 % intervals, of one base and one population; "
        f"they are interpolated between points of the training "
        f"([limits](docs/limits.md#between-two-points-of-a-path)). All methods and places: "
        f"[notebook 13](notebooks/13_along_the_path.ipynb), [table_path]({TABLES}/table_path.md)."
    )


COMPARED = (("Grad. Diff.", "GA"), ("KL Min.", "GA"), ("NPO", "GA"), ("NPO (retain)", "GA"))


def pairs(scores: Scores) -> str:
    """Return the table of what two methods keep at half closed, the first minus the second, person by person: one
    column for each base model and forget ratio; that of `make reproduce` comes first."""
    groups = [group for (_, protocol, _), group in scores.groups if protocol == FIRST["protocol"]]
    groups.sort(key=lambda group: group.group != {name: FIRST[name] for name in group.group})
    heads = [f"{one.runs[0].base_label}, {one.group['forget_ratio']} %, {replicates(one)}" for one in groups]
    lines = [f"| points | unlearned on | {' | '.join(heads)} |", f"|---|---|{'---:|' * len(heads)}"]
    known = [rows_by(differences(group), ["place", "modality", "first", "second"]) for group in groups]
    for pair, modality in product(COMPARED, MODALITIES):
        row = HALF, modality, *pair
        cells = [kept_text(rows[row], signed=True) if row in rows else "" for rows in known]
        texts = [markdown_text(cell if isinstance(cell, str) else cell[1]) for cell in cells]
        lines.append(f"| {' minus '.join(pair)} | {MODALITIES[modality]} | {' | '.join(texts)} |")
    return "\n".join(lines)


def map_table(runs: Sequence[Run], notebooks: Sequence[Path]) -> str:
    """Return the table of the paper's parts: notebook, files, the published figure if there is one, and minutes.

    The minutes are the time of a notebook's own runs, of replicate 0, when the reference was made. Two runs are made at
    a time, so their sum is halved, but it is never less than the longest run. If a notebook has no runs of its own, the
    minutes are those that its title cell states for the miniature.
    """
    printed = published.load()
    printed = printed[printed[list(PRINTED)].eq(list(PRINTED.values())).all(axis=1)].replace(published.OURS)
    figures = printed.set_index("method")["value"]
    head = "published (unless noted: LLaVA-1.5-7B, 5 %, Forget, multiple choice)"
    lines = [f"| in the paper | notebook | files | {head} | minutes |", "|---|---|---|---:|---:|"]
    canonical = {**FIRST, "variant": "canonical"}
    first = [run for run in runs if all(run[name] == value for name, value in canonical.items())]
    for notebook in notebooks:
        if (number := notebook.stem[:2]) not in FILES:
            continue
        makes, paper, minutes = _header(notebook)
        methods = re.findall(r"`(\w+)`", makes)
        seconds = [run.record["seconds"] for run in first if run["method"] in methods]
        spent = f"{max(sum(seconds) / 2, *seconds, 0) / 60:.1f}" if seconds else minutes
        known = [f"{figures[name]:.1f} %" for name in methods if name in figures.index]
        known = COUNTED.get(number) or ", ".join(known) or ("not reported" if methods else "")
        files = ", ".join(f"[{Path(file).name}]({file})" for file in FILES[number])
        what = f"{paper[:1].upper()}{paper[1:]} | [{notebook.stem}](notebooks/{notebook.name})"
        lines.append(f"| {what} | {files} | {known} | {spent} |")
    [source] = printed["source"].unique()
    file = published.FILE.relative_to(paths.checkout()).as_posix()
    note = (
        f"The published figures come from {source.partition(';')[0]}, which prints the benchmark's rows again. "
        f"Re-evaluations by others are in [{published.FILE.name}]({file}). All of them are about other models: "
        "compare directions, not levels."
    )
    return "\n".join([*lines, "", note])


def _header(notebook: Path) -> list[str]:
    """Read from a notebook's title cell what it makes, its part of the paper, and its minutes on the miniature."""
    text = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
    rows = ("makes", "in the paper", "minutes")
    makes, paper, minutes = (re.search(rf"\*\*{row}\*\* \|(.+?) \|", text)[1].strip() for row in rows)
    return [makes, paper, re.sub(r"^miniature[^:]*: ", "", minutes.partition(";")[0])]


def badges(url: str) -> str:
    """Return badges of the tests, the licence, Binder and Colab for the repository at ``url``; "" without a URL."""
    if not url:
        return ""
    place, first = "/".join(url.split("/")[-2:]), "notebooks/00_start_here.ipynb"
    shown = [
        ("tests", f"{url}/actions/workflows/ci.yml/badge.svg", f"{url}/actions"),
        ("licence", "https://img.shields.io/badge/licence-Apache--2.0-blue", "LICENSE"),
        ("Binder", "https://mybinder.org/badge_logo.svg", f"https://mybinder.org/v2/gh/{place}/HEAD?labpath={first}"),
        (
            "Colab",
            "https://colab.research.google.com/assets/colab-badge.svg",
            f"https://colab.research.google.com/github/{place}/blob/main/{first}",
        ),
    ]
    return " ".join(f"[![{name}]({picture})]({target})" for name, picture, target in shown)


def fill(text: str, marker: str, content: str) -> str:
    """Replace the part of ``text`` between ``<!-- marker -->`` and ``<!-- end -->``."""
    pattern = re.compile(rf"^( *)(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL | re.MULTILINE)
    # in an entry of a list, the content is indented as its markers are
    return pattern.sub(lambda m: f"{m[1]}{m[2]}{indent(content.rstrip(), m[1])}\n{m[1]}{m[3]}", text)


def main() -> None:
    here = Path(__file__).resolve().parents[1]
    if paths.checkout() != here:
        raise SystemExit(f"mllmu_nb is imported from {paths.checkout()}: set PYTHONPATH={here}")
    readme, scores = paths.checkout() / "README.md", Scores.read(paths.reference())
    project = tomllib.loads((paths.checkout() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    filled = {
        "badges": badges(project.get("urls", {}).get("Repository", "")),
        "finding": finding(scores),
        "main table": main_table(scores),
        "pairs": pairs(scores),
        "map": map_table(scores.runs, sorted(paths.notebooks().glob("*.ipynb"))),
    }
    text = readme.read_text(encoding="utf-8")
    for marker, content in filled.items():
        text = fill(text, marker, content)
    readme.write_text(text, encoding="utf-8")
    limits = paths.checkout() / "docs" / "limits.md"
    table = goals(pd.read_csv(paths.reference() / "tables" / "table2_by_view.csv", keep_default_na=False))
    limits.write_text(fill(limits.read_text(encoding="utf-8"), "goals", table), encoding="utf-8")
    methods = paths.checkout() / "docs" / "methods.md"
    methods.write_text(fill(methods.read_text(encoding="utf-8"), "settings", settings()), encoding="utf-8")


if __name__ == "__main__":
    main()
