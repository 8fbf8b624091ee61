"""The paper's tables as CSV (every number with its interval), Markdown and LaTeX.

Table 1 counts people and questions; Table 2 has one row a method, one block a trained modality and, for each of the
four sets, the five measures with the views pooled; the by-view table carries everything else; the differences table
sets every method beside vanilla and beside the oracle on the same questions, the gap table says of every measure
whether it is where the oracle's is; the gate table says which measures can show forgetting at all, the health table
what kind of answers a model gives, and the cost table what it took.

A score behind a closed gate stands in brackets, and a collapsed model has ‡ behind its name; a line below says why.

Several forget draws or seeds of one method are pooled answer by answer and scored again, because each draw forgets
other people. A cell that cannot be filled stays empty and carries the letter of a footnote that says why.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from mllmu_nb.data.schema import TASKS
from mllmu_nb.evaluation import statistics
from mllmu_nb.reporting import (
    BASES,
    DIRECTION,
    EVERYTHING,
    EXACT,
    GROUP,
    MAIN,
    METHODS,
    MODALITIES,
    PAIRED_ON,
    REFERENCES,
    SEED_COLUMNS,
    SETS,
    VIEWS,
    Measure,
    Run,
    all_items,
    gates,
    health,
    in_order,
    label,
    models_in_order,
    persons,
    read_runs,
)

TASK_NAMES = {"classification": "Multiple choice", "generation": "Generation", "cloze": "Cloze"}
EXPECTED = tuple(name for name in METHODS if name != "base")  # the rows of the paper; base is shown where it was run


# A sheet: what is printed, apart from how


@dataclass
class Sheet:
    """One printed table: two header rows, blocks of rows, footnotes.

    ``spans`` is the upper header as (text, columns covered) after the first column; a cell is its text and the
    reason why it is empty ("" where it is not).
    """

    title: str
    name: str
    first: str
    spans: list[tuple[str, int]]
    columns: list[str]
    blocks: list[tuple[str, list[tuple[str, list[tuple[str, str]]]]]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def footnotes(self) -> dict[str, str]:
        """Reason → letter, in the order in which a reader meets the empty cells."""
        reasons: dict[str, str] = {}
        for _, rows in self.blocks:
            for _, cells in rows:
                for _, reason in cells:
                    if reason and reason not in reasons:
                        reasons[reason] = letter(len(reasons))
        return reasons

    def markdown(self) -> str:
        """A GitHub table; set names are repeated in every column, as Markdown has no spanning cells."""
        marks = self.footnotes()
        over = [text for text, width in self.spans for _ in range(width)]
        heads = [f"{top}<br>{column}" if top else column for top, column in zip(over, self.columns, strict=True)]
        lines = [f"**{markdown_escape(self.title)}**", ""]
        lines.append("| " + " | ".join([self.first, *heads]) + " |")
        lines.append("|" + " --- |" + " ---: |" * len(heads))
        for heading, rows in self.blocks:
            if heading:
                lines.append(f"| **{markdown_escape(heading)}** |" + "  |" * len(heads))
            for name, cells in rows:
                shown = [markdown_escape(text) or (f"<sup>{marks[why]}</sup>" if why else "") for text, why in cells]
                lines.append("| " + " | ".join([markdown_escape(name), *shown]) + " |")
        lines.append("")
        for reason, mark in marks.items():
            lines += [f"<sup>{mark}</sup> {markdown_escape(reason)}<br>"]
        lines += [f"{markdown_escape(remark)}<br>" for remark in self.remarks]
        return "\n".join(lines).rstrip() + "\n"

    def latex(self) -> str:
        """A ``table*`` with booktabs rules; needs the packages booktabs and graphicx."""
        marks = self.footnotes()
        width = len(self.columns)
        lines = [
            r"\begin{table*}[t]",
            r"\centering\small\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{latex_escape(self.title)}}}",
            rf"\label{{tab:{self.name}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{l*{{{width}}}{{r}}}}",
            r"\toprule",
        ]
        if any(text for text, _ in self.spans):
            rules, start = [], 2
            for text, covered in self.spans:
                if text:
                    rules.append(rf"\cmidrule(lr){{{start}-{start + covered - 1}}}")
                start += covered
            tops = [rf"\multicolumn{{{covered}}}{{c}}{{{latex_escape(text)}}}" for text, covered in self.spans]
            lines += [" & ".join(["", *tops]) + r" \\", "".join(rules)]
        lines.append(" & ".join(latex_escape(_short(head)) for head in [self.first, *self.columns]) + r" \\")
        for heading, rows in self.blocks:
            lines.append(r"\midrule")
            if heading:
                lines.append(rf"\multicolumn{{{width + 1}}}{{l}}{{\textit{{{latex_escape(heading)}}}}} \\")
            for name, cells in rows:
                shown = [
                    _latex_cell(text) or (rf"\textsuperscript{{{marks[why]}}}" if why else "") for text, why in cells
                ]
                lines.append(" & ".join([latex_escape(name), *shown]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}}"]
        below = [rf"\textsuperscript{{{mark}}}\,{latex_escape(reason)}" for reason, mark in marks.items()]
        below += [latex_escape(remark) for remark in self.remarks]
        if below:
            lines += [r"\par\smallskip\footnotesize\raggedright", " \\\\\n".join(below)]
        return "\n".join([*lines, r"\end{table*}"]) + "\n"


def _short(head: str) -> str:
    """A column's name where twenty of them share a page."""
    return head.replace("Likelihood", "Likel.").replace("Factuality", "Fact.").replace(", points", "")


def _latex_cell(text: str) -> str:
    """``51.7 ± 4.1`` with the half-width in small type."""
    value, sign, half = latex_escape(text).partition(r" $\pm$ ")
    return rf"{value}{{\scriptsize\,$\pm$\,{half}}}" if sign else value


def letter(number: int) -> str:
    """0 → a, 25 → z, 26 → aa."""
    return (letter(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "−": r"$-$",
    "τ": r"$\tau$",
    "–": "--",
    "≠": r"$\neq$",
    "‡": r"$\ddagger$",
}


def latex_escape(text: str) -> str:
    """Text as LaTeX prints it literally; arrows, minus and plus-minus become mathematics."""
    return "".join(LATEX.get(character, character) for character in text)


def markdown_escape(text: str) -> str:
    """Text as a cell of a Markdown table prints it literally."""
    for character in "\\|*_<":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


# Numbers


def pooled_scores(items: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``scores.csv`` with all forget draws and seeds of a method taken together, one scoring per protocol.

    Profile "007" of another data seed is another person, so profile names carry the data seed while intervals are made.
    """
    together = items.assign(
        run="pooled",
        profile=persons(items),
        forget_draw=0,
        **dict.fromkeys(SEED_COLUMNS, 0),
    )
    return statistics.scores(together)


NEEDED = [*PAIRED_ON, "method", "variant", "modality", "view", "profile"]


def differences(items: pd.DataFrame, measures: Iterable[Measure] = MAIN) -> pd.DataFrame:
    """Every method minus vanilla and minus oracle, question by question on the same forget draw and seeds.

    One row for ``against`` (vanilla, oracle) × method × modality × set × view (with ``both``) × measure: ``value``,
    ``low``, ``high`` in the measure's own unit (0–1, factuality 1–10), ``n_items``, ``n_profiles``.
    """
    keys = [*GROUP, "method", "variant", "modality", "set"]
    rows = []
    for measure in measures:
        asked = items[(items["task"] == measure.task) & (items["scoring"] == measure.scoring)]
        asked = asked.assign(value=measure.of(asked))[[*NEEDED, "value"]].dropna(subset=["value"])
        for against in ("vanilla", "oracle"):
            reference = asked[asked["method"] == against].drop_duplicates(PAIRED_ON)
            others = asked[~asked["method"].isin((against, "base"))]
            pairs = others.merge(reference[[*PAIRED_ON, "value"]], on=PAIRED_ON, suffixes=("", "_reference"))
            pairs["person"] = persons(pairs)
            for names, group in pairs.groupby(keys, sort=True):
                ours, theirs, people, views = (
                    group[c].to_numpy() for c in ("value", "value_reference", "person", "view")
                )
                for view in (*VIEWS, "both"):
                    part = np.full(len(views), True) if view == "both" else views == view
                    if not part.any():
                        continue
                    found = statistics.paired_difference(ours[part], theirs[part], people[part], bounds=measure.bounds)
                    rows.append(
                        dict(zip(keys, names, strict=True))
                        | {"against": against, "task": measure.task, "view": view, "scoring": measure.scoring}
                        | {"metric": measure.metric, "value": found.value, "low": found.low, "high": found.high}
                        | {"n_items": found.n_items, "n_profiles": found.n_profiles}
                    )
    columns = ["base_model", "protocol", "forget_ratio", "against", "method", "variant", "modality", "set", "task"]
    columns += ["view", "scoring", "metric", "value", "low", "high", "n_items", "n_profiles"]
    return pd.DataFrame(rows, columns=columns)


VERDICTS = {"inside": "=", "outside": "≠", "undecided": "?"}
COLLAPSED = "‡"


def verdict(cell: Mapping, measure: Measure) -> str:
    """Whether a gap to the oracle (value, low, high) is none: inside, outside or undecided of the measure's margin."""
    found = statistics.Interval(cell["value"], cell["low"], cell["high"], cell["n_items"], cell["n_profiles"])
    return statistics.equivalence(found, measure.margin)


def written(value: float, low: float, high: float, measure: Measure, signed: bool = False) -> str:
    """``51.7 ± 4.1``: the value and half the width of its interval in the measure's printed unit; "" for NaN."""
    if pd.isna(value):
        return ""
    number = f"{value * measure.times:{'+' if signed else ''}.{measure.digits}f}".replace("-", "−")
    if pd.isna(low) or pd.isna(high):
        return number
    return f"{number} ± {(high - low) / 2 * measure.times:.{measure.digits}f}"


def bracketed(text: str, gate: str) -> str:
    """A cell's text, in brackets behind a closed gate."""
    return f"({text})" if text and gate == gates.CLOSED else text


# What is in the runs, and why a cell is empty


@dataclass(frozen=True)
class Row:
    """One printed row: a method as it was trained in one block."""

    method: str
    variant: str
    modality: str

    @property
    def name(self) -> str:
        return label(self.method, self.variant)  # the block says the modality

    @property
    def full_name(self) -> str:
        return label(self.method, self.variant, self.modality)


def blocks(runs: list[Run]) -> list[tuple[str, list[Row]]]:
    """Per trained modality that has a run (or once, without any): the paper's rows, references in each block."""
    trained = [m for m in MODALITIES if any(run["modality"] == m for run in runs)]
    found = []
    for modality in trained or ["none"]:
        rows = []
        there = {(run["method"], run["variant"]) for run in runs if run["modality"] in (modality, "none")}
        for method in in_order([*EXPECTED, *(method for method, _ in there)]):
            at = "none" if method in REFERENCES else modality
            if at == "none" or trained:
                variants = sorted({variant for name, variant in there if name == method}) or ["canonical"]
                rows += [Row(method, variant, at) for variant in variants]
        heading = f"Unlearned on {MODALITIES[modality]}" if modality in MODALITIES else "No unlearned model"
        found.append((heading, rows))
    return found


class Reasons:
    """Says why a cell of one base model and forget ratio is empty."""

    def __init__(self, runs: list[Run]):
        self.items: dict[tuple, list[pd.DataFrame]] = {}
        for run in runs:
            self.items.setdefault((run["method"], run["variant"], run["modality"]), []).append(run.items)

    def why(self, row: Row, set_name: str, measure: Measure, against: str = "") -> str:
        """``against``: the model whose answers to the same questions are needed as well."""
        frames = self.items.get((row.method, row.variant, row.modality))
        if not frames:
            return f"No run of {row.full_name} was found."
        if against:
            return f"No {against} answer to the same questions, or none of its own."
        run, where = f"The run of {row.full_name}", f"the {SETS[set_name]} set"
        frames = [f[f["set"] == set_name] for f in frames]
        if all(f.empty for f in frames):
            return f"{run} asked nothing of {where}."
        frames = [f[(f["task"] == measure.task) & (f["scoring"] == measure.scoring)] for f in frames]
        if all(f.empty for f in frames):
            scored = f" scored by {measure.scoring}" if measure.scoring else ""
            return f"{run} asked no {TASK_NAMES[measure.task].lower()} questions{scored} of {where}."
        return f"{run} has no {measure.label.removesuffix(' %')} score on {where}."


def _groups(runs: list[Run]) -> list[tuple[tuple[str, str, int], list[Run]]]:
    """Runs that share a printed table: the same base model, protocol and forget ratio."""
    grouped: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        key = (str(run["base_model"]), str(run["protocol"]), int(run["forget_ratio"]))
        grouped.setdefault(key, []).append(run)
    return sorted(grouped.items())


def group_title(key: tuple[str, str, int], runs: list[Run]) -> str:
    """What runs that share a table have in common, as its caption says it."""
    base_model, protocol, ratio = key
    return f"{BASES.get(base_model, base_model)} ({runs[0]['scale']}), forget {ratio} %, {protocol} protocol"


def latex_label(kind: str, key: tuple[str, str, int]) -> str:
    """The LaTeX label of a table; the clean protocol goes unnamed."""
    base_model, protocol, ratio = key
    return f"{kind}-{base_model}-{ratio}" + ("" if protocol == "clean" else f"-{protocol}")


def _repeats(runs: list[Run]) -> str:
    """How many forget draws and seeds each method brings, said once when they agree and by name when not."""
    counted: dict[str, int] = {}
    for run in runs:
        name = label(run["method"], run["variant"], run["modality"])
        counted[name] = counted.get(name, 0) + 1
    if len(set(counted.values())) == 1:
        runs_each = next(iter(counted.values()))
        return "One run a row." if runs_each == 1 else f"{runs_each} runs (forget draws, seeds) pooled in each row."
    return "Runs (forget draws, seeds) pooled in each row: " + "; ".join(f"{n} {c}" for n, c in counted.items()) + "."


def _people(scores: pd.DataFrame) -> str:
    counts = scores.groupby("set")["n_profiles"].max()
    return "People: " + ", ".join(f"{SETS[name]} {int(counts[name])}" for name in SETS if name in counts.index) + "."


# The five tables: each gives (long frame for the CSV, sheets for Markdown and LaTeX)


def data_statistics(runs: list[Run]) -> tuple[pd.DataFrame, list[Sheet]]:
    """Table 1: people, portraits and questions of each set, as ``data.json`` counts them (one portrait a person)."""
    rows, sheets = [], []
    columns = [(task, view) for task in TASKS for view in VIEWS]
    for key, group in _groups(runs):
        data = next((run.data for run in group if "sets" in run.data), {})
        body, totals = [], [0] * (len(columns) + 3)
        for set_name in SETS:
            counted = data.get("sets", {}).get(set_name)
            why = "" if counted else f"No data.json of these runs counts the {SETS[set_name]} set."
            counts = [counted.get(f"{task}/{view}", 0) if counted else 0 for task, view in columns]
            people = counted["profiles"] if counted else 0
            pictures = people if any(n for n, (_, view) in zip(counts, columns, strict=True) if view != "text") else 0
            numbers = [people, pictures, *counts, sum(counts)]
            for (task, view), count in zip(columns, counts, strict=True):
                base_model, protocol, ratio = key
                at = {"base_model": base_model, "protocol": protocol, "forget_ratio": ratio, "set": set_name}
                known = {"profiles": people, "images": pictures} if counted else {"profiles": None, "images": None}
                asked = {"task": task, "view": view, "questions": count if counted else None, "note": why}
                rows.append(at | known | asked)
            body.append((SETS[set_name], [("" if why else f"{n:,}", why) for n in numbers]))
            totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        spans = [("", 2), *((TASK_NAMES[task], len(VIEWS)) for task in TASKS), ("", 1)]
        heads = ["People", "Images", *(name.capitalize() for _ in TASKS for name in VIEWS.values()), "Questions"]
        sheet = Sheet(f"Data: {group_title(key, group)}", latex_label("data", key), "Set", spans, heads)
        if data:
            kinds = data["people"]
            totals[0] = kinds["fictitious"] + kinds["celebrity"]
            body.append(("All", [(f"{n:,}", "") for n in totals]))
            sheet.remarks = [
                "Test asks the forget people again, paraphrased and with transformed portraits: all people count once. "
                f"Fine-tuning reads {data['fine_tuning_pairs']:,} questions and answers about {kinds['fictitious']:,} "
                f"of them and {kinds['pool']:,} more, who are never scored."
            ]
        sheet.blocks = [("", body)]
        sheets.append(sheet)
    return pd.DataFrame(rows), sheets


def main_table(known: Numbers) -> tuple[pd.DataFrame, list[Sheet]]:
    """Table 2: a row a method and a block a trained modality; four sets × five measures, views pooled."""

    def caption(title):
        return f"Unlearning, views pooled: {title}"

    remark = (
        "± is half the width of the 95 % interval over people (its limits are in the CSV). Letter is the option letter "
        "the model writes, Likelihood the option it finds likeliest. Arrows: where a good method goes."
    )
    pooled = known.scores[known.scores["view"] == "both"]
    return _by_method(known, pooled, caption, "main", remark)


def difference_table(known: Numbers) -> tuple[pd.DataFrame, list[Sheet]]:
    """Table 2 again as paired differences: to vanilla (what unlearning changed) and to the oracle (what is left)."""
    sheets, frames = [], []
    for against in ("vanilla", "oracle"):
        found = known.differences
        part = found[(found["against"] == against) & (found["view"] == "both")]

        def caption(title, against=against):
            return f"Difference to {against}, question by question, views pooled: {title}"

        skip = ("base", against)
        remark = "± is half the width of the 95 % interval of the paired difference over people."
        frame, made = _by_method(known, part, caption, f"to-{against}", remark, skip=skip, signed=True, against=against)
        sheets += made
        frames.append(frame.assign(against=against))
    return pd.concat(frames, ignore_index=True), sheets


def _by_method(
    known: Numbers,
    numbers: pd.DataFrame,
    caption: Callable[[str], str],
    name: str,
    remark: str,
    skip: tuple[str, ...] = (),
    signed: bool = False,
    against: str = "",
) -> tuple[pd.DataFrame, list[Sheet]]:
    """The layout of Table 2 filled from a frame with value, low, high per method × modality × set × measure."""
    long, sheets = [], []
    for key, part in known.groups():
        reasons = Reasons(part.runs)
        numbers_here = _at(numbers, key)
        lookup = _lookup(numbers_here)
        heads = [m.label + f" {DIRECTION[s]}" for s in SETS for m in MAIN]
        spans = [(text, len(MAIN)) for text in SETS.values()]
        sheet = Sheet(caption(group_title(key, part.runs)), latex_label(name, key), "Method", spans, heads)
        if signed:
            sheet.columns = [_in_points(m) for _ in SETS for m in MAIN]
        for heading, rows in blocks(part.runs):
            body = []
            for row in rows:
                if row.method in skip:
                    continue
                cells = []
                for set_name in SETS:
                    for measure in MAIN:
                        cell = lookup.get((row, set_name, "both", measure.task, measure.scoring, measure.metric))
                        why = "" if cell else reasons.why(row, set_name, measure, against)
                        cells.append((_printed(cell, measure, signed), why))
                        long.append(_long_row(key, heading, row, set_name, "both", measure, cell, why, part))
                body.append((part.marked(key, row, row.name), cells))
            sheet.blocks.append((heading, body))
        sheet.remarks = [remark, *part.warnings(MAIN), " ".join([_people(numbers_here), _repeats(part.runs)])]
        sheets.append(sheet)
    return pd.DataFrame(long), sheets


def by_view_table(known: Numbers) -> tuple[pd.DataFrame, list[Sheet]]:
    """Everything: for each ratio and set, two rows a method (asked with the image, asked in text) and all measures."""
    long, sheets = [], []
    for key, part in known.groups():
        reasons = Reasons(part.runs)
        lookup = _lookup(part.scores)
        for set_name, set_label in SETS.items():
            title = f"By view, {set_label} set: {group_title(key, part.runs)}"
            heads = [m.label for m in EVERYTHING]
            sheet = Sheet(title, latex_label(f"view-{set_name}", key), "Method, asked with", [("", len(heads))], heads)
            for heading, rows in blocks(part.runs):
                body = []
                for row, (view, view_label) in itertools.product(rows, VIEWS.items()):
                    cells = []
                    for measure in EVERYTHING:
                        cell = lookup.get((row, set_name, view, measure.task, measure.scoring, measure.metric))
                        why = "" if cell else reasons.why(row, set_name, measure)
                        cells.append((_printed(cell, measure), why))
                        long.append(_long_row(key, heading, row, set_name, view, measure, cell, why, part))
                    body.append((f"{part.marked(key, row, row.name)}, {view_label}", cells))
                sheet.blocks.append((heading, body))
            warnings = part.warnings(EVERYTHING if set_name in gates.GATED else (), VIEWS)
            sheet.remarks = ["± is half the width of the 95 % interval over people.", *warnings, _repeats(part.runs)]
            sheets.append(sheet)
    return pd.DataFrame(long), sheets


def oracle_gap_table(known: Numbers) -> tuple[pd.DataFrame, list[Sheet]]:
    """Method minus oracle in every measure, two-sided: below the oracle is as wrong as above it.

    A sheet a ratio and set, a row a method and modality, views pooled; behind each gap = (inside the margin), ≠
    (outside) or ? (undecided). The CSV has the views apart as well, with ``margin`` and ``verdict``.
    """
    caption = "margin 10 points, 0.1 of ROUGE and BLEU, 1 point of factuality"
    remark = (
        "Method minus oracle, question by question; ± is half the width of the 95 % interval over people. The interval "
        "lies within the margin: =, as the oracle; outside of it: ≠, not as the oracle; neither: ?, undecided."
    )
    long, sheets = [], []
    for key, part in known.groups():
        reasons = Reasons(part.runs)
        lookup = _lookup(part.differences[part.differences["against"] == "oracle"])
        for set_name, set_label in SETS.items():
            title = f"Gap to the oracle ({caption}), {set_label} set, views pooled: {group_title(key, part.runs)}"
            heads = [_in_points(m) for m in EVERYTHING]
            sheet = Sheet(title, latex_label(f"gap-{set_name}", key), "Method", [("", len(heads))], heads)
            body = []
            for row in _all_rows(part.runs):
                if row.method in ("base", "oracle"):
                    continue
                cells = []
                for measure, view in itertools.product(EVERYTHING, gates.ASKED_WITH):
                    cell = lookup.get((row, set_name, view, measure.task, measure.scoring, measure.metric))
                    why = "" if cell else reasons.why(row, set_name, measure, "oracle")
                    said = verdict(cell, measure) if cell else ""
                    record = _long_row(key, "", row, set_name, view, measure, cell, why, part)
                    long.append(record | {"margin": measure.margin, "verdict": said})
                    if view == "both":
                        cells.append((_printed(cell, measure, True, VERDICTS.get(said, "")), why))
                body.append((part.marked(key, row, row.full_name), cells))
            sheet.blocks.append(("", body))
            warnings = part.warnings(EVERYTHING if set_name in gates.GATED else ())
            sheet.remarks = [remark, *warnings, _repeats(part.runs)]
            sheets.append(sheet)
    return pd.DataFrame(long).drop(columns="block", errors="ignore"), sheets


def gate_table(known: Numbers) -> tuple[pd.DataFrame, list[Sheet]]:
    """Which measures can show forgetting: vanilla minus oracle on the forget set, a row a measure, a column a view."""
    remark = (
        "Vanilla minus oracle on the forget set, question by question; ± is half the width of the 95 % interval over "
        "people. Closed: the interval does not lie above 0, so nothing shows that there was something to forget."
    )
    sheets = []
    for key, part in known.groups():
        title = f"Memorisation gate: {group_title(key, part.runs)}"
        heads = [text.capitalize() for text in gates.ASKED_WITH.values()]
        sheet = Sheet(title, latex_label("gate", key), "Measure", [("Asked with", len(heads))], heads)
        cells = part.gates.set_index(gates.AT).to_dict("index")
        body = []
        for measure in (m for m in EVERYTHING if m.metric != "parse_failure"):
            found = [cells.get((measure.task, measure.scoring, measure.metric, view)) for view in gates.ASKED_WITH]
            lacking = "Vanilla or the oracle has no such answers."
            texts = [
                (f"{_printed(c | {'gate': ''}, measure, True)}, {c['gate']}", "") if c else ("", lacking) for c in found
            ]
            body.append((_in_points(measure), texts))
        sheet.blocks, sheet.remarks = [("", body)], [remark, _repeats(part.runs)]
        sheets.append(sheet)
    return known.gates, sheets


def health_table(known: Numbers) -> tuple[pd.DataFrame, list[Sheet]]:
    """What kind of answer a free answer is: a sheet a ratio and set, two rows a method (by view), a column a state."""
    remark = "Share of the free answers; ± is half the width of the 95 % interval over people. A row adds up to 100."
    sheets = []
    for key, part in known.groups():
        whys = [f"{COLLAPSED} {label(*model[3:])}: {why}" for model, why in part.collapsed.items()]
        cells = part.states.set_index([*health.KEY[3:], "set", "view", "state"])[["value", "low", "high"]].T.to_dict()
        for set_name, set_label in SETS.items():
            title = f"Health of free answers, {set_label} set: {group_title(key, part.runs)}"
            heads = [f"{text} %" for text in health.STATES.values()]
            sheet = Sheet(title, latex_label(f"health-{set_name}", key), "Method, asked with", [("", 6)], heads)
            body = []
            for row, (view, view_label) in itertools.product(_all_rows(part.runs), VIEWS.items()):
                found = [cells.get((*_triple(row), set_name, view, state)) for state in health.STATES]
                lacking = f"No free answers of {row.full_name} on the {set_label} set."
                texts = [(written(*c.values(), EXACT), "") if c else ("", lacking) for c in found]
                body.append((f"{part.marked(key, row, row.full_name)}, {view_label}", texts))
            sheet.blocks = [("", body)]
            sheet.remarks = [
                remark,
                *health.told(part.collapsed),
                *whys,
                *health.lacking(part.runs),
                _repeats(part.runs),
            ]
            sheets.append(sheet)
    told = known.states.merge(known.judged[[*health.KEY, "collapsed", "why"]], on=health.KEY, how="left")
    return told, sheets


def cost_table(known: Numbers) -> tuple[pd.DataFrame, list[Sheet]]:
    """What each model took: training seconds, peak memory (MB), trainable parameters, optimiser steps.

    Means over the runs of a row (memory: the largest); seconds are of the machine that ran them.
    """
    fields = (("seconds", "Seconds", 1), ("peak_memory_mb", "Peak memory, MB", 0))
    fields += (("trainable_parameters", "Trainable parameters", 0), ("steps", "Steps", 0))
    heads = [head for _, head, _ in fields] + ["Runs"]
    long, sheets = [], []
    for key, part in known.groups():
        body = []
        for row in _all_rows(part.runs):
            mine = [r for r in part.runs if (r["method"], r["variant"], r["modality"]) == _triple(row)]
            record = dict(zip(("base_model", "protocol", "forget_ratio"), key, strict=True))
            record |= {"method": row.method, "variant": row.variant, "modality": row.modality, "runs": len(mine)}
            record |= {"collapsed": part.has_collapsed(key, row)}
            cells = []
            for column, head, digits in fields:
                values = [r.train[column] for r in mine if r.train.get(column) is not None]
                value = None
                if values:
                    value = max(values) if column == "peak_memory_mb" else sum(values) / len(values)
                why = "" if values else _why_no_cost(row, mine, head)
                cells.append((f"{value:,.{digits}f}" if values else "", why))
                record |= {column: value, f"{column}_note": why}
            cells.append((str(len(mine)) if mine else "", "" if mine else cells[0][1]))
            body.append((part.marked(key, row, row.full_name), cells))
            long.append(record)
        title = f"Cost of training: {group_title(key, part.runs)}"
        remark = "Means over the runs of a row; memory is the largest. Seconds depend on the machine."
        sheet = Sheet(title, latex_label("cost", key), "Method", [("", len(heads))], heads, [("", body)])
        sheet.remarks = [remark, *health.told(part.collapsed)]
        sheets.append(sheet)
    return pd.DataFrame(long), sheets


def _why_no_cost(row: Row, mine: list[Run], head: str) -> str:
    if not mine:
        return f"No run of {row.full_name} was found."
    if not any(run.train for run in mine):
        return f"The run of {row.full_name} has no train.json."
    return f"{head.split(',')[0]} was not recorded in the run of {row.full_name}."


def _all_rows(runs: list[Run]) -> list[Row]:
    """The rows of all blocks, each once."""
    return [Row(*m) for m in models_in_order(_triple(row) for _, block in blocks(runs) for row in block)]


def _in_points(measure: Measure) -> str:
    """The head of a column of differences."""
    return measure.label.replace(" %", ", points")


def _triple(row: Row) -> tuple[str, str, str]:
    return row.method, row.variant, row.modality


def _at(numbers: pd.DataFrame, key: tuple[str, str, int]) -> pd.DataFrame:
    base_model, protocol, ratio = key
    same = (numbers["base_model"] == base_model) & (numbers["protocol"] == protocol)
    return numbers[same & (numbers["forget_ratio"].astype(int) == ratio)]


def _lookup(numbers: pd.DataFrame) -> dict[tuple, dict]:
    """(row, set, view, task, scoring, metric) → the record of that cell; cells without a value are left out."""
    found = {}
    for record in numbers.fillna({"scoring": ""}).to_dict("records"):
        if not math.isnan(record["value"]):
            row = Row(record["method"], record["variant"], record["modality"])
            found[(row, record["set"], record["view"], record["task"], record["scoring"], record["metric"])] = record
    return found


def _printed(cell: Mapping | None, measure: Measure, signed: bool = False, more: str = "") -> str:
    """A cell as it is printed, ``more`` behind it: "" where there is none, in brackets behind a closed gate."""
    if not cell:
        return ""
    text = written(cell["value"], cell["low"], cell["high"], measure, signed) + (f" {more}" if more else "")
    return bracketed(text, cell["gate"])


def _long_row(key, heading, row, set_name, view, measure, cell, why, part) -> dict:
    base_model, protocol, ratio = key
    at = {"base_model": base_model, "protocol": protocol, "forget_ratio": ratio, "block": heading}
    at |= {"method": row.method, "variant": row.variant, "modality": row.modality, "set": set_name, "view": view}
    at |= {"task": measure.task, "scoring": measure.scoring, "metric": measure.metric}
    cell = cell or {}
    at |= {c: cell.get(c) for c in ("value", "low", "high", "n_items", "n_profiles")} | {"note": why}
    return at | {"gate": cell.get("gate", ""), "collapsed": part.has_collapsed(key, row)}


# Files


@dataclass(frozen=True)
class Numbers:
    """What tables and figures are made of.

    The runs, their pooled ``scores`` and the paired ``differences`` in EVERYTHING, both with the column ``gate``; the
    ``gates``; the shares of the ``states`` of the free answers, and which models are ``judged`` to have collapsed.
    """

    runs: list[Run]
    scores: pd.DataFrame
    differences: pd.DataFrame
    gates: pd.DataFrame
    states: pd.DataFrame
    judged: pd.DataFrame

    def groups(self) -> list[tuple[tuple[str, str, int], Numbers]]:
        """The same, apart for each base model, protocol and forget ratio."""
        frames = (self.scores, self.differences, self.gates, self.states, self.judged)
        return [(key, Numbers(group, *(_at(frame, key) for frame in frames))) for key, group in _groups(self.runs)]

    @cached_property
    def collapsed(self) -> dict[tuple, str]:
        """(base model, protocol, forget ratio, method, variant, modality) of each collapsed model → why it is one."""
        rows = self.judged[self.judged["collapsed"]]
        return {tuple(row[column] for column in health.KEY): row["why"] for row in rows.to_dict("records")}

    def has_collapsed(self, key: tuple[str, str, int], row: Row) -> bool:
        return (*key, *_triple(row)) in self.collapsed

    def marked(self, key: tuple[str, str, int], row: Row, name: str) -> str:
        """The name of a row, with ‡ behind it where the model has collapsed."""
        return f"{name} {COLLAPSED}" if self.has_collapsed(key, row) else name

    def warnings(self, measures: Iterable[Measure], views: Iterable[str] = ("both",)) -> list[str]:
        """Lines below a table: what the gates of ``measures`` say (none for a set without gates), and what ‡ means."""
        shut = gates.told(self.gates, measures, views) if measures else ""
        return [*([shut] if shut else []), *health.told(self.collapsed)]


def numbers(runs_root: Path) -> Numbers:
    """Read the runs under ``runs_root`` and score them."""
    runs = read_runs(runs_root)
    items = all_items(runs)
    found = differences(items, EVERYTHING)
    opened = gates.of(found)
    scored = gates.with_gate(pooled_scores(items), opened)
    states, judged = health.shares(items), health.judged(items).reset_index()
    return Numbers(runs, scored, gates.with_gate(found, opened), opened, states, judged)


def write_all(scale: str, runs_root: Path, out: Path, known: Numbers | None = None) -> list[Path]:
    """Write every table of the runs under ``runs_root`` as CSV, Markdown and LaTeX into ``out``; returns the paths.

    ``known`` spares the scoring where it was done before.
    """
    known = known or numbers(runs_root)
    made = {
        "table1_data": data_statistics(known.runs),
        "table2_main": main_table(known),
        "table2_by_view": by_view_table(known),
        "table2_differences": difference_table(known),
        "table_oracle_gap": oracle_gap_table(known),
        "table_gate": gate_table(known),
        "table_health": health_table(known),
        "cost": cost_table(known),
    }
    return write_sheets(made, scale, out)


def write_sheets(made: dict[str, tuple[pd.DataFrame, list[Sheet]]], scale: str, out: Path) -> list[Path]:
    """Write each named (long frame, sheets) as CSV, Markdown and LaTeX into ``out``; returns the paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for stem, (frame, sheets) in made.items():
        frame.to_csv(out / f"{stem}.csv", index=False)
        heading = f"<!-- made from results/{scale}/runs; do not edit -->\n\n"
        (out / f"{stem}.md").write_text(heading + "\n".join(s.markdown() for s in sheets), encoding="utf-8")
        (out / f"{stem}.tex").write_text("\n".join(s.latex() for s in sheets), encoding="utf-8")
        paths += [out / f"{stem}.{kind}" for kind in ("csv", "md", "tex")]
    return paths
