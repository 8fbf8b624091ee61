"""Tables of scores: a query of the long frame of cells and a shape, printed as Markdown, LaTeX and CSV.

:mod:`~mllmu_nb.reporting.table_specs` has the tables; one outside the package registers itself the same way, in a
module that MLLMU_NB_EXTENSIONS names:

    @table("table_mine")
    def mine(scores):  # the scores of one base model, protocol and forget ratio
        columns = [column(one, set="forget") for one in metrics(main=True)]
        yield grid(scores, "My table", "mine", [("", scores.models())], columns, {"against": "", "view": "both"})

A cell behind a closed gate stands in brackets, a collapsed model has ‡ behind its name, and a cell without a value is
empty and carries the letter of a footnote that says why. Text is inert in every form, whatever it holds.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pandas.api.types import is_numeric_dtype

from mllmu_nb.data.schema import SETS
from mllmu_nb.registry import Registry, load_extensions
from mllmu_nb.reporting.runs import COLLAPSED, Scores
from mllmu_nb.scoring.frames import COUNTS, GROUP, KEY, MODEL, POOLED, VIEWS
from mllmu_nb.scoring.gates import CLOSED
from mllmu_nb.scoring.registry import FORGOTTEN, Metric, by_key
from mllmu_nb.statistics.ranking import letter

PLACE = ["against", "set", "view", *KEY]  # with the model, what names a cell
VERDICT_SIGNS = {"inside": "=", "outside": "≠", "undecided": "?"}
ASKED_IN = {**VIEWS, POOLED: "both"}
LIMITS = "[low, high] is the 95 % interval."
GATES_UNKNOWN = "Without vanilla and the oracle nobody can say whether a low score is forgetting."
COLLAPSED_NOTE = (
    f"{COLLAPSED} The model has collapsed or refuses everybody (in so many of its replicates, where a number stands "
    "there), so a low score is no forgetting, and it is not ranked: in one of the views more than half of its free "
    "answers about the Retain people are broken (empty, repeated, gibberish), or refusals, or its choices by "
    "likelihood there lie below halfway between chance and vanilla."
)
TABLES = Registry("table")


def table(name: str) -> Callable[[Callable], Callable]:
    """Registers the function below it, which yields the :class:`Sheet`s of the scores of one GROUP, as the table whose
    files have this name."""
    return lambda function: TABLES.add(name, function)


# -- one printed table ------------------------------------------------------------------------------------------


def value_text(cell: Mapping[str, Any], metric: Metric, signed: bool = False) -> str:
    """``51.7 [47.2, 55.9]``: value and interval in the metric's printed unit; "" without a value."""
    if pd.isna(cell["value"]):
        return ""
    form = f"{'+' if signed else ''}.{metric.digits}f"
    value, *ends = (f"{cell[name] * metric.times:{form}}".replace("-", "−") for name in ("value", "low", "high"))
    return value if pd.isna(cell["low"]) else f"{value} [{', '.join(ends)}]"


def cell_text(cell: Mapping[str, Any], metric: Metric, signed: bool = False, verdict: bool = False) -> str:
    """A cell as tables print it: a difference ``signed``, with the sign of its ``verdict`` where that is asked for, and
    all in brackets behind a closed gate."""
    text = value_text(cell, metric, signed)
    if verdict and cell["verdict"]:
        text += f" {VERDICT_SIGNS[cell['verdict']]}"
    return f"({text})" if text and cell["gate"] == CLOSED else text


Blocks = Sequence[tuple[str, Sequence[tuple[str, Sequence[tuple[str, str]]]]]]


@dataclass
class Sheet:
    """One printed table: ``columns`` as (heading over several, heading), ``blocks`` as (heading, rows), a row as (name,
    cells), a cell as (text, reason why it is empty). ``frame`` holds its rows of the CSV, ``label`` is LaTeX's.
    Without columns it is a title and remarks."""

    title: str
    label: str
    first: str
    columns: Sequence[tuple[str, str]]
    blocks: Blocks = ()
    remarks: Sequence[str] = ()
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)

    def footnotes(self) -> dict[str, str]:
        """Reason → letter, in the order in which a reader meets the empty cells."""
        cells = [cell for _, rows in self.blocks for _, cells in rows for cell in cells]
        reasons = dict.fromkeys(reason for text, reason in cells if reason and not text)
        return {reason: letter(number) for number, reason in enumerate(reasons)}

    def markdown(self) -> str:
        """A GitHub table; the upper heading is repeated in every column, as Markdown has no spanning cells."""
        notes = self.footnotes()
        lines = [f"**{markdown_text(self.title)}**", ""] if self.title else []
        if self.columns:
            heads = ["<br>".join(markdown_text(text) for text in column if text) for column in self.columns]
            lines += [_line([self.first, *heads]), "|" + " --- |" + " ---: |" * len(heads)]
        for heading, rows in self.blocks:
            if heading:
                lines.append(f"| **{markdown_text(heading)}** |" + "  |" * len(self.columns))
            for name, cells in rows:
                texts = [markdown_text(text) or (f"<sup>{notes[why]}</sup>" if why else "") for text, why in cells]
                lines.append(_line([markdown_text(name), *texts]))
        lines += ["", *(f"<sup>{mark}</sup> {markdown_text(reason)}<br>" for reason, mark in notes.items())]
        return "\n".join([*lines, *(f"{markdown_text(remark)}<br>" for remark in self.remarks)]).rstrip() + "\n"

    def latex(self) -> str:
        """A ``table*`` with booktabs rules; needs the packages booktabs and graphicx."""
        notes, width = self.footnotes(), len(self.columns)
        if not self.columns:
            return latex_text(" ".join([f"{self.title}.", *self.remarks])) + "\n"
        lines = [r"\begin{table*}[t]", r"\centering\small\setlength{\tabcolsep}{3pt}"]
        lines += [rf"\caption{{{latex_text(self.title)}}}", rf"\label{{tab:{self.label}}}"]
        lines += [r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{l*{{{width}}}{{r}}}}", r"\toprule"]
        pairs = [(latex_text(over), latex_text(head)) for over, head in self.columns]
        heads = [rf"\shortstack{{{over}\\{head}}}" if over else head for over, head in pairs]
        lines.append(" & ".join([latex_text(self.first), *heads]) + r" \\")
        for heading, rows in self.blocks:
            lines.append(r"\midrule")
            if heading:
                lines.append(rf"\multicolumn{{{width + 1}}}{{l}}{{\textit{{{latex_text(heading)}}}}} \\")
            for name, cells in rows:
                texts = [_latex_cell(t) or (rf"\textsuperscript{{{notes[why]}}}" if why else "") for t, why in cells]
                lines.append(" & ".join([latex_text(name), *texts]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}}"]
        below = [rf"\textsuperscript{{{mark}}}\,{latex_text(reason)}" for reason, mark in notes.items()]
        below += map(latex_text, self.remarks)
        if below:
            lines += [r"\par\smallskip\footnotesize\raggedright", " \\\\\n".join(below)]
        return "\n".join([*lines, r"\end{table*}"]) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _latex_cell(text: str) -> str:
    """``51.7 [47.2, 55.9]`` with the interval in small type."""
    value, sign, ends = latex_text(text).partition(" [")
    return rf"{value}{{\scriptsize\,[{ends}}}" if sign else value


LATEX = {character: rf"\{character}" for character in "&%$#_{}"} | {"\\": r"\textbackslash{}", "–": "--"}
LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "→": r"$\rightarrow$", "↓": r"$\downarrow$"}
LATEX |= {"−": r"$-$", "↑": r"$\uparrow$", "≠": r"$\neq$", COLLAPSED: r"$\ddagger$"}


def latex_text(text: str) -> str:
    """Text as LaTeX prints it literally; arrows and minus become mathematics."""
    return "".join(LATEX.get(character, character) for character in _one_line(text))


def markdown_text(text: str) -> str:
    """Text as Markdown prints it literally, in a cell of a table as well."""
    return re.sub(r"([\\`*_\[\]<&|~$])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


# -- from cells to a sheet --------------------------------------------------------------------------------------


class Column(NamedTuple):
    """A column of scores: its heading, the columns of the cells that it fixes, its metric, and the heading over it."""

    head: str
    where: Mapping[str, Any]
    metric: Metric
    span: str = ""


def column(metric: Metric, /, head: str = "", span: str = "", **where: Any) -> Column:
    """The column of a metric; ``where`` fixes more, such as set and view."""
    return Column(head or metric.label, {**dict(zip(KEY, metric.key, strict=True)), **where}, metric, span)


def grid(
    scores: Scores,
    title: str,
    label: str,
    blocks: Sequence[tuple[str, Sequence[tuple]]],
    columns: Sequence[Column],
    where: Mapping[str, Any],
    *,
    signed: bool = False,
    verdict: bool = False,
    by_view: bool = False,
    remarks: Sequence[str] = (LIMITS,),
    frame: pd.DataFrame | None = None,
) -> Sheet:
    """A sheet with a row a model of ``blocks`` (heading, models), or with ``by_view`` a row a model and view, of the
    cells that ``where``, row and column name together; ``signed`` and ``verdict`` as in :func:`cell_text`.

    ``scores`` are of one GROUP. Below stand ``remarks``, then what brackets and ‡ mean where there are any, how many
    people each set has, and how many runs a row pools. ``frame`` are the rows of the CSV where it holds more than what
    is printed.
    """
    model_key = [*MODEL, *scores.by]
    key = [*model_key, *PLACE]
    known = {tuple(row[c] for c in key): row for row in select(scores, **where).to_dict("records")}
    nothing = {"value": nan, "low": nan, "high": nan, **dict.fromkeys(COUNTS, nan), "gate": "", "verdict": ""}
    printed, missing = [], []

    def text(model: tuple, view: str, one: Column) -> tuple[str, str]:
        at = {**where, **dict(zip(model_key, model, strict=True)), **({"view": view} if view else {}), **one.where}
        entry = known.get(tuple(at[c] for c in key))
        if entry is None:
            entry = {**scores.group, **at, **nothing, "note": _why_absent(scores, model, at["against"])}
            missing.append(entry)
        printed.append(entry)
        return cell_text(entry, one.metric, signed, verdict), entry["note"]

    printed_blocks = []
    for heading, models in blocks:
        rows = []
        for model, view in product(models, VIEWS if by_view else [""]):
            name = row_name(scores, model, bool(heading)) + (f", {VIEWS[view]}" if view else "")
            rows.append((name, [text(model, view, one) for one in columns]))
        printed_blocks.append((heading, rows))
    frame = pd.DataFrame(printed) if frame is None else pd.concat([frame, pd.DataFrame(missing)])
    frame = csv_rows(scores, frame.drop_duplicates(key))
    below = [*remarks, *closed_gates(scores, printed), f"{_people(printed)} {repeats(scores)}".strip()]
    heads = [(one.span, one.head) for one in columns]
    first = "Method, asked with" if by_view else "Method"
    return new_sheet(scores, title, label, first, heads, printed_blocks, below, frame)


def new_sheet(
    scores: Scores,
    title: str,
    label: str,
    first: str,
    columns: Sequence[tuple[str, str]],
    blocks: Blocks = (),
    remarks: Sequence[str] = (),
    frame: pd.DataFrame | None = None,
) -> Sheet:
    """A sheet whose title and label say what the runs have in common, with what ‡ means where a row has it."""
    collapsed = any(COLLAPSED in name for _, rows in blocks for name, _ in rows)
    remarks = [*remarks, *([COLLAPSED_NOTE] if collapsed else [])]
    title, label = f"{title}: {group_title(scores)}", sheet_label(label, scores)
    return Sheet(title, label, first, columns, blocks, remarks, pd.DataFrame() if frame is None else frame)


def row_name(scores: Scores, model: tuple, short: bool) -> str:
    """A model's name, with ‡ where it is not sound; ``short`` where the heading of its block has the modality."""
    method, variant, modality, *rest = model
    return scores.name((method, variant, "none" if short else modality, *rest)) + scores.mark(model)


def _why_absent(scores: Scores, model: tuple, against: str) -> str:
    if model not in scores.models():
        return f"There is no run of {scores.name(model)}."
    return f"It is the {against}." if model[0] == against and not model[3] else "Not measured in these runs."


def select(scores: Scores, metrics: Iterable[Metric] | None = None, **where: Any) -> pd.DataFrame:
    """The cells, of these ``metrics``, whose columns have these values, or one of them where they are a list."""
    rows = scores.cells
    for name, value in where.items():
        rows = rows[rows[name].isin(value) if isinstance(value, list) else rows[name] == value]
    if metrics is not None:
        rows = rows[pd.MultiIndex.from_frame(rows[KEY]).isin([metric.key for metric in metrics])]
    return rows


def csv_rows(scores: Scores, rows: pd.DataFrame) -> pd.DataFrame:
    """Cells as the CSV has them: with the margin of verdicts, and which models have collapsed and why."""
    margins = {key: metric.margin for key, metric in by_key().items()}
    models = rows[[*GROUP, *MODEL, *scores.by]].itertuples(index=False, name=None)
    bad = [scores.unsound.get(model) for model in models]
    why = [one.why if one else "" for one in bad]
    keys = zip(*(rows[c] for c in KEY), strict=True)
    margin = [margins.get(key) if verdict else None for key, verdict in zip(keys, rows["verdict"], strict=True)]
    order = [*GROUP, *MODEL, *scores.by, *PLACE, "value", "low", "high", *COUNTS, "gate", "verdict", "margin", "note"]
    rows = rows.assign(margin=pd.Series(margin, rows.index, dtype=float), collapsed=list(map(bool, why)), why=why)
    return rows.reindex(columns=[*order, "collapsed", "why"]).astype(dict.fromkeys(COUNTS, "Int64"))


def closed_gates(scores: Scores, cells: Iterable[Mapping[str, Any]], how: str = "In brackets") -> list[str]:
    """What stands below a table or figure of ``cells``: ``how`` those behind a closed gate look, and which they are;
    nothing where all gates are open, or none is of a set whose score is to come down."""
    cells = [cell for cell in cells if cell["set"] in FORGOTTEN]
    if cells and scores.gates.empty:
        return [GATES_UNKNOWN]
    shut: dict[tuple, set[str]] = {}
    for cell in cells:
        if cell["gate"] == CLOSED:
            shut.setdefault(tuple(cell[c] for c in KEY), set()).add(cell["view"])
    names = []
    for key, metric in by_key().items():
        if key in shut:
            name = metric.label.removesuffix(" %")
            names += [f"{name} ({VIEWS[view]})" for view in VIEWS if view in shut[key]] or [name]
    if not names:
        return []
    return [
        f"{how}: gate closed, vanilla is not shown to know more about the forget people than the oracle, so nothing "
        f"shows that there was something to forget: {', '.join(names)}."
    ]


def _people(cells: Iterable[Mapping[str, Any]]) -> str:
    counts = pd.DataFrame(cells).dropna(subset=["value"])
    counts = counts[counts["set"].isin(SETS)].groupby("set", sort=False)["n_profiles"].max()
    listed = ", ".join(f"{name.capitalize()} {int(count)}" for name, count in counts.items())
    return f"People: {listed}." if listed else ""


def repeats(scores: Scores) -> str:
    """What the intervals are over: how many replicates each model has, once where they agree, by name where not."""
    counts = Counter(scores.name(scores.model_of(run)) for run in scores.runs)
    if set(counts.values()) == {1}:
        return "One run a row: intervals are over people alone, and say nothing about another run of the method."
    same = f"{next(iter(counts.values()))} replicates (forget sets with trainings of their own)"
    if len(set(counts.values())) > 1:
        same = "replicates (" + "; ".join(f"{name} {count}" for name, count in counts.items()) + ")"
    return f"Intervals are over {same} crossed with people; one base and one population are fixed."


def group_title(scores: Scores) -> str:
    """What runs that share a table have in common."""
    _, protocol, ratio = scores.group.values()
    one = scores.runs[0]
    return f"{one.base_label} ({one['scale']}), forget {ratio} %, {protocol} protocol"


def sheet_label(kind: str, scores: Scores) -> str:
    """The LaTeX label of a table and, with _ for -, the name of a figure; the clean protocol goes unnamed."""
    base_model, protocol, ratio = scores.group.values()
    return re.sub(r"[^\w.-]", "-", f"{kind}-{base_model}-{ratio}" + ("" if protocol == "clean" else f"-{protocol}"))


# -- files ------------------------------------------------------------------------------------------------------


def registered() -> Registry:
    """Every table by name: the package's own and those of extensions."""
    importlib.import_module("mllmu_nb.reporting.table_specs")
    load_extensions()
    return TABLES


def sheets(name: str, scores: Scores) -> list[Sheet]:
    """The printed tables of one name: one or more for each base model, protocol and forget ratio."""
    make: Callable[[Scores], Iterator[Sheet]] = registered().get(name)
    return [sheet for _, group in scores.groups() for sheet in make(group)]


def write_tables(scores: Scores, folder: Path, source: str) -> None:
    """Every table as CSV, Markdown and LaTeX; ``source`` is named in the first line of the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in registered():
        write_sheets(sheets(name, scores), folder / name, source)


def write_sheets(made: Sequence[Sheet], stem: Path, source: str) -> None:
    """Sheets as ``stem`` with the ends .csv, .md and .tex."""
    frames = [sheet.frame for sheet in made if len(sheet.frame)]
    write_csv(pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(), stem.with_name(f"{stem.name}.csv"))
    heading = f"<!-- made from {source}; do not edit -->\n\n"
    for kind, text in (
        ("md", heading + "\n".join(sheet.markdown() for sheet in made)),
        ("tex", "\n".join(sheet.latex() for sheet in made)),
    ):
        stem.with_name(f"{stem.name}.{kind}").write_text(text, encoding="utf-8")


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """``frame`` as CSV; text that a spreadsheet would run as a formula begins with an apostrophe."""
    text = [name for name in frame if not is_numeric_dtype(frame[name])]
    frame.assign(**{name: frame[name].map(_no_formula) for name in text}).to_csv(path, index=False)


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
