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
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby, product
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pandas.api.types import is_numeric_dtype

from mllmu_nb.data.schema import SETS
from mllmu_nb.registry import Registry, load_extensions
from mllmu_nb.reporting.runs import COLLAPSED, REFERENCES, Scores
from mllmu_nb.scoring.frames import COUNTS, GROUP, KEY, MODEL, POOLED, VIEWS
from mllmu_nb.scoring.gates import CLOSED
from mllmu_nb.scoring.registry import FORGOTTEN, LIKE_ORACLE, UP, Metric, by_key
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
BEST, SECOND = "best", "second best"
MARKED = {BEST: ("**{}**", r"\textbf{{{}}}"), SECOND: ("<u>{}</u>", r"\underline{{{}}}")}  # in Markdown, in LaTeX
UPRIGHT = 112  # characters of a row that an upright page has room for; a longer one has limits below its values
ROOM = {False: 42, True: 14}  # rows on a page, by whether limits stand below
RAISED = r"\textsuperscript{{{}}}"
TABLES = Registry("table")


def table(name: str, together: str = "") -> Callable[[Callable], Callable]:
    """Registers the function below it, which yields the :class:`Sheet`s of the scores of one GROUP, as the table whose
    files have this name. With a title for all of them ``together`` they are one table, of the main text: each is to
    have the same columns, and headings of blocks that say of which runs they are."""

    def register(function: Callable[[Scores], Iterator[Sheet]]) -> Callable:
        function.together = together
        return TABLES.add(name, function)

    return register


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
    cells), a cell as (text, reason why it is empty, or BEST or SECOND). ``frame`` holds its rows of the CSV, ``label``
    is LaTeX's. Without columns it is a title and remarks."""

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
                lines.append(_line([markdown_text(name), *(_markdown_cell(*cell, notes) for cell in cells)]))
        lines += ["", *(f"<sup>{mark}</sup> {markdown_text(reason)}<br>" for reason, mark in notes.items())]
        return "\n".join([*lines, *(f"{markdown_text(remark)}<br>" for remark in self.remarks)]).rstrip() + "\n"

    def latex(self) -> str:
        """Floats with booktabs rules, in 8 pt, as many as it takes for each to fit a page: upright, or on its side and
        with limits below the values where rows are longer than UPRIGHT. Needs the packages booktabs, graphicx (what is
        still wider than the page shrinks to it) and rotating."""
        if not self.columns:
            return latex_text(" ".join([f"{self.title}.", *self.remarks])) + "\n"
        rows = [(name, *(text for text, _ in cells)) for _, rows in self.blocks for name, cells in rows]
        columns = zip((self.first, *(head for _, head in self.columns)), *rows, strict=True)
        below = sum(max(map(len, column)) for column in columns) > UPRIGHT
        pages = enumerate(_pages(self.blocks, ROOM[below]))
        return "".join(self._float(blocks, below, " (continued)" * bool(number)) for number, blocks in pages)

    def _float(self, blocks: Blocks, below: bool, continued: str) -> str:
        notes, width, where = self.footnotes(), len(self.columns), "sidewaystable*" if below else "table*"
        lines = [rf"\begin{{{where}}}[tp]", r"\centering\fontsize{8}{9.6}\selectfont\setlength{\tabcolsep}{2pt}"]
        lines += [rf"\caption{{{latex_text(self.title + continued)}}}"]
        lines += [] if continued else [rf"\label{{tab:{self.label}}}"]
        lines += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]
        lines += [rf"\begin{{tabular}}{{l*{{{width}}}{{{'c' if below else 'r'}}}}}", r"\toprule"]
        spans = [(over, len(list(some))) for over, some in groupby(over for over, _ in self.columns)]
        if any(over for over, _ in spans):
            lines.append("".join(rf" & \multicolumn{{{n}}}{{c}}{{{latex_text(over)}}}" for over, n in spans) + r" \\")
            ends = list(accumulate(n for _, n in spans))
            rules = [(end - n + 2, end + 1) for end, (over, n) in zip(ends, spans, strict=True) if over]
            lines.append("".join(rf"\cmidrule(lr){{{first}-{last}}}" for first, last in rules))
        heads = [latex_text(head) for _, head in self.columns]
        heads = [_stacked(*head.partition(" ")[::2], "b") if below else head for head in heads]
        lines.append(" & ".join([latex_text(self.first), *heads]) + r" \\")
        for heading, rows in blocks:
            lines.append(r"\midrule")
            if heading:
                lines.append(rf"\multicolumn{{{width + 1}}}{{l}}{{\textit{{{latex_text(heading)}}}}} \\")
            for name, cells in rows:
                first, sign, count = latex_text(name).partition(rf"{LATEX[COLLAPSED]} ")
                first = _stacked(first + sign, count, side="l") if below and sign else first + sign + count
                lines.append(" & ".join([first, *(_latex_cell(*cell, notes, below) for cell in cells)]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}}"]
        remarks = [rf"{RAISED.format(mark)}\,{latex_text(reason)}" for reason, mark in notes.items()]
        remarks += map(latex_text, self.remarks)
        if remarks:
            lines += [r"\par\smallskip\raggedright", "\\par\n".join(remarks)]  # not \\\\, which takes what [ begins
        return "\n".join([*lines, rf"\end{{{where}}}"]) + "\n"


def _pages(blocks: Blocks, most: int) -> list[Blocks]:
    """``blocks`` by page, on which ``most`` rows have room."""
    rows = [(heading, row) for heading, rows in blocks for row in rows]
    pages = [rows[start : start + most] for start in range(0, len(rows), most)] or [[]]
    return [[(h, [row for _, row in some]) for h, some in groupby(page, lambda row: row[0])] for page in pages]


def _as_one(made: Sequence[Sheet], title: str) -> Sheet:
    """Sheets with the same columns as one; what not all of them remark stands behind the name of the runs it is of."""
    blocks = [block for sheet in made for block in sheet.blocks]
    shared = [remark for remark in made[0].remarks if all(remark in sheet.remarks for sheet in made)]
    own = [" ".join(remark for remark in sheet.remarks if remark not in shared) for sheet in made]
    own = [f"{sheet.title.partition(': ')[2]}: {said}" for sheet, said in zip(made, own, strict=True) if said]
    frame = pd.concat([sheet.frame for sheet in made], ignore_index=True)
    return replace(made[0], title=title, blocks=blocks, remarks=[*shared, *own], frame=frame)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_cell(text: str, why: str, notes: Mapping[str, str]) -> str:
    value, sign, rest = markdown_text(text).partition(" ")
    if text:
        return (MARKED[why][0].format(value) if why in MARKED else value) + sign + rest
    return f"<sup>{notes[why]}</sup>" if why else ""


def _latex_cell(text: str, why: str, notes: Mapping[str, str], below: bool) -> str:
    """``51.7 [47.2, 55.9]``, or the limits below the value."""
    parts = re.fullmatch(r"(.*?) \[(.*?)\](.*)", text)
    value, ends, rest = map(latex_text, parts.groups() if parts else (text, "", ""))
    if not text:
        return RAISED.format(notes[why]) if why else ""
    value = MARKED[why][1].format(value) if why in MARKED else value
    if ends and below:
        return _stacked(value + rest, f"[{ends}]".replace(", ", r",\,"))
    return f"{value} [{ends}]{rest}" if ends else value


def _stacked(over: str, under: str, line: str = "t", side: str = "c") -> str:
    """One above the other in a cell, whose ``line`` is that of the upper (t) or the lower (b)."""
    return rf"\begin{{tabular}}[{line}]{{@{{}}{side}@{{}}}}{over}\\{{}}{under}\end{{tabular}}"


LATEX = {character: rf"\{character}" for character in "&%$#_{}"} | {"\\": r"\textbackslash{}", "–": "--"}
LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "→": r"$\rightarrow$", "↓": r"$\downarrow$"}
LATEX |= {"−": r"$-$", "↑": r"$\uparrow$", "≠": r"$\neq$", COLLAPSED: r"$\ddagger$"} | {s: f"${s}$" for s in "<>|"}


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
    marked: bool = False,
    remarks: Sequence[str] = (LIMITS,),
    frame: pd.DataFrame | None = None,
) -> Sheet:
    """A sheet with a row a model of ``blocks`` (heading, models), or with ``by_view`` a row a model and view, of the
    cells that ``where``, row and column name together; ``signed`` and ``verdict`` as in :func:`cell_text`; ``marked``:
    the best and the second best of each column of a block.

    ``scores`` are of one GROUP. Below stand ``remarks``, then what brackets and ‡ mean where there are any, how many
    people each set has, and how many runs a row pools. ``frame`` are the rows of the CSV where it holds more than what
    is printed.
    """
    model_key = [*MODEL, *scores.by]
    key = [*model_key, *PLACE]
    known = {tuple(row[c] for c in key): row for row in select(scores, **where).to_dict("records")}
    nothing = {"value": nan, "low": nan, "high": nan, **dict.fromkeys(COUNTS, nan), "gate": "", "verdict": ""}
    printed, missing = [], []

    def cell(model: tuple, view: str, one: Column) -> dict[str, Any]:
        at = {**where, **dict(zip(model_key, model, strict=True)), **({"view": view} if view else {}), **one.where}
        entry = known.get(tuple(at[c] for c in key))
        if entry is None:
            entry = {**scores.group, **at, **nothing, "note": _why_absent(scores, model, at["against"])}
            missing.append(entry)
        printed.append(entry)
        return entry

    printed_blocks = []
    for heading, models in blocks:
        rows = []
        for model, view in product(models, VIEWS if by_view else [""]):
            name = row_name(scores, model, bool(heading)) + (f", {VIEWS[view]}" if view else "")
            rows.append((name, [cell(model, view, one) for one in columns]))
        for place, one in enumerate(columns):
            entries = [entries[place] for _, entries in rows]
            marks = _marks(scores, one.metric, entries) if marked else [""] * len(rows)
            for (_, cells), entry, mark in zip(rows, entries, marks, strict=True):
                cells[place] = cell_text(entry, one.metric, signed, verdict), entry["note"] or mark
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


def _marks(scores: Scores, metric: Metric, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """BEST, SECOND or "" for each cell of a column, as it is printed: on Forget and Test nearest to the oracle is best,
    elsewhere highest (or lowest). Left out are the models that are compared with, those that are not sound, and what
    is behind a closed gate."""
    oracle = next((entry["value"] for entry in entries if entry["method"] == "oracle" and not entry["after"]), nan)

    def distance(entry: Mapping[str, Any]) -> float:
        unsound = tuple(entry[column] for column in (*GROUP, *MODEL, *scores.by)) in scores.unsound
        if (entry["method"] in REFERENCES and not entry["after"]) or unsound or entry["gate"] == CLOSED:
            return nan
        value, best = (round(metric.times * one, metric.digits) for one in (entry["value"], oracle))
        signs = {LIKE_ORACLE: abs(value - best), UP: -value}
        return round(signs.get(metric.goal(entry["set"]), value), 9)

    places = pd.Series(map(distance, entries), dtype=float).rank(method="dense")
    return places.map({1.0: BEST, 2.0: SECOND}).fillna("").tolist()


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
    """The printed tables of one name: one or more for each base model, protocol and forget ratio, or one for all."""
    make: Callable[[Scores], Iterator[Sheet]] = registered().get(name)
    made = [sheet for _, group in scores.groups() for sheet in make(group)]
    return [_as_one(made, make.together)] if getattr(make, "together", "") else made


def write_tables(scores: Scores, folder: Path, source: str) -> None:
    """Every table as CSV, Markdown and LaTeX, and ``appendix.tex``, which reads those that are not for the main text;
    ``source`` is named in the first line of the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in registered():
        write_sheets(sheets(name, scores), folder / name, source)
    lines = [r"% Before this is read: \newcommand{\tables}{the folder it lies in}", r"\providecommand{\tables}{.}"]
    rest = [name for name in registered() if not getattr(TABLES.get(name), "together", "")]
    lines += [rf"\input{{\tables/{name}}}\clearpage" for name in rest]
    (folder / "appendix.tex").write_text("\n".join([*lines, ""]), encoding="utf-8")


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
