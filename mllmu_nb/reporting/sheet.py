"""A printed table as Markdown, LaTeX and CSV. It does not know about scores, and escapes text in every form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby, islice
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from mllmu_nb.reporting.runs import COLLAPSED
from mllmu_nb.statistics.ranking import letter

BEST, SECOND = "best", "second best"
MARKED = {BEST: ("**{}**", r"\textbf{{{}}}"), SECOND: ("<u>{}</u>", r"\underline{{{}}}")}  # in Markdown, in LaTeX
UPRIGHT, SIDEWAYS = 450, 648  # points across a page; if rows are wider than the first, limits go below values
ROOM = {False: 35, True: 14}  # rows on a page, without and with limits below values
RAISED = r"\raisebox{{0.5ex}}{{{}}}"  # not smaller than other text
NARROW, WIDE = frozenset(" .,;:()[]|'ijlt"), frozenset("+−%‡→↑↓≠=<>mw")
Blocks = Sequence[tuple[str, Sequence[tuple[str, Sequence[Any]]]]]


@dataclass
class Sheet:
    """One printed table: ``columns`` as (heading over several, heading), ``blocks`` as (heading, rows), a row as (name,
    cells), a cell as (text, reason why it is empty, or BEST or SECOND) or its text alone. ``frame`` has its rows of the
    CSV; ``label`` is for LaTeX. Without columns, it is only a title and remarks."""

    title: str
    label: str
    first: str = "Method"
    columns: Sequence[tuple[str, str]] = ()
    blocks: Blocks = ()
    remarks: Sequence[str] = ()
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __post_init__(self) -> None:
        def pairs(row: Sequence[Any]) -> list[tuple[str, str]]:
            return [cell if isinstance(cell, tuple) else (cell, "") for cell in row]

        self.blocks = [(over, [(name, pairs(row)) for name, row in rows]) for over, rows in self.blocks]

    def footnotes(self) -> dict[str, str]:
        """Reason → letter, in the order of the empty cells."""
        cells = [cell for _, rows in self.blocks for _, cells in rows for cell in cells]
        reasons = dict.fromkeys(reason for text, reason in cells if reason and not text)
        return {reason: letter(number) for number, reason in enumerate(reasons)}

    def markdown(self) -> str:
        """A GitHub table; the upper heading is repeated in every column, as Markdown has no spanning cells."""
        notes = self.footnotes()
        lines = [f"**{markdown_text(self.title)}**", ""] if self.title else []
        if self.columns:
            heads = ["<br>".join(markdown_text(text) for text in column if text) for column in self.columns]
            lines += [f"| {' | '.join([self.first, *heads])} |", "|" + " --- |" + " ---: |" * len(heads)]
        for heading, rows in self.blocks:
            if heading:
                lines.append(f"| **{markdown_text(heading)}** |" + "  |" * len(self.columns))
            for name, cells in rows:
                texts = [markdown_text(name), *(_markdown_cell(*cell, notes) for cell in cells)]
                lines.append(f"| {' | '.join(texts)} |")
        lines += ["", *(f"<sup>{mark}</sup> {markdown_text(reason)}<br>" for reason, mark in notes.items())]
        return "\n".join([*lines, *(f"{markdown_text(remark)}<br>" for remark in self.remarks)]).rstrip() + "\n"

    def latex(self) -> str:
        """Floats with booktabs rules, in 8 pt, each of which fits a page. If rows are wider than UPRIGHT, floats are
        turned on their side with limits below the values; if they are then wider than SIDEWAYS, each has only some of
        the columns. Needs the packages booktabs and rotating."""
        if not self.columns:
            return latex_text(" ".join([f"{self.title}.", *self.remarks])) + "\n"
        below = sum(self._widths(below=False)) > UPRIGHT
        tables = self._across() if below else [self]
        pages = enumerate((one, page) for one in tables for page in _pages(one.blocks, ROOM[below]))
        return "".join(one._float(page, below, " (continued)" * bool(number)) for number, (one, page) in pages)

    def _widths(self, below: bool) -> list[float]:
        """Points across each column in LaTeX, that of row names first; limits are beside or ``below`` the values."""
        heads = [self.first, *(head.replace(" ", "\n", 1) if below else head for _, head in self.columns)]
        rows = [(name, *(text for text, _ in cells)) for _, rows in self.blocks for name, cells in rows]
        texts = ["\n".join(column) for column in zip(heads, *rows, strict=True)]
        texts = [re.sub(r" (?=\[)|(?<=‡) ", "\n", text) for text in texts] if below else texts
        shares = [0.0, *(_points(over) / count for over, count in self._spans() for _ in range(count))]
        widths = [max(map(_points, text.split("\n"))) for text in texts]
        return [4 + max(pair) for pair in zip(widths, shares, strict=True)]

    def _spans(self) -> list[tuple[str, int]]:
        """The headings over columns, each with the number of columns that it spans."""
        return [(over, len(list(some))) for over, some in groupby(over for over, _ in self.columns)]

    def _across(self) -> list[Sheet]:
        """Split the columns over tables that fit a page on its side; columns under one heading stay together if they
        can."""
        first, *widths = self._widths(below=True)

        def packed(room: float) -> list[list[int]]:
            tables: list[list[int]] = [[]]
            places = iter(range(len(widths)))
            for over, count in self._spans():
                together = list(islice(places, count))
                fits = over and sum(widths[place] for place in together) <= room
                for unit in [together] if fits else [[place] for place in together]:
                    if tables[-1] and sum(widths[place] for place in (*tables[-1], *unit)) > room:
                        tables.append([])
                    tables[-1] += unit
            return tables

        # the narrowest tables that are not more than the widest ones would be
        splits = [packed(share * (SIDEWAYS - first)) for share in (0.5, 0.6, 0.7, 0.8, 0.9, 1)]
        tables = []
        for places in next(split for split in splits if len(split) == len(splits[-1])):
            blocks = [(over, [(name, [row[n] for n in places]) for name, row in rows]) for over, rows in self.blocks]
            tables.append(replace(self, columns=[self.columns[place] for place in places], blocks=blocks))
        return tables

    def _float(self, blocks: Blocks, below: bool, continued: str) -> str:
        notes, width, where = self.footnotes(), len(self.columns), "sidewaystable*" if below else "table*"
        lines = [rf"\begin{{{where}}}[tp]", r"\centering\fontsize{8}{9.6}\selectfont\setlength{\tabcolsep}{2pt}"]
        lines += [rf"\caption{{{latex_text(self.title + continued)}}}"]
        lines += [] if continued else [rf"\label{{tab:{self.label}}}"]
        lines += [rf"\begin{{tabular}}{{l*{{{width}}}{{{'c' if below else 'r'}}}}}", r"\toprule"]
        spans = self._spans()
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
                first = "{}" * first.startswith(("[", "*")) + first  # else the rule or \\ above reads it as its option
                lines.append(" & ".join([first, *(_latex_cell(*cell, notes, below) for cell in cells)]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        remarks = [rf"{RAISED.format(mark)}\,{latex_text(reason)}" for reason, mark in notes.items()]
        remarks += map(latex_text, self.remarks)
        if remarks:
            lines += [r"\par\smallskip\raggedright", "\\par\n".join(remarks)]  # not \\\\, which reads a [ as its option
        return "\n".join([*lines, rf"\end{{{where}}}"]) + "\n"


def _points(text: str) -> float:
    """Width of a text in LaTeX's 8 pt, rather too large than too small."""
    return sum(2.2 if c in NARROW else 6.8 if c in WIDE else 6.0 if c.isupper() else 4.3 for c in text)


def _pages(blocks: Blocks, most: int) -> list[Blocks]:
    rows = [(heading, row) for heading, rows in blocks for row in rows]
    pages = [rows[start : start + most] for start in range(0, len(rows), most)] or [[]]
    return [[(h, [row for _, row in some]) for h, some in groupby(page, lambda row: row[0])] for page in pages]


def _markdown_cell(text: str, why: str, notes: Mapping[str, str]) -> str:
    value, sign, rest = markdown_text(text).partition(" ")
    if text:
        return (MARKED[why][0].format(value) if why in MARKED else value) + sign + rest
    return f"<sup>{notes[why]}</sup>" if why else ""


def _latex_cell(text: str, why: str, notes: Mapping[str, str], below: bool) -> str:
    """``51.7 [47.2, 55.9]``, or the same with the limits below the value."""
    parts = re.fullmatch(r"(.*?) \[(.*?)\](.*)", text)
    value, ends, rest = map(latex_text, parts.groups() if parts else (text, "", ""))
    if not text:
        return RAISED.format(notes[why]) if why else ""
    value = MARKED[why][1].format(value) if why in MARKED else value
    if ends and below:
        return _stacked(value + rest, f"[{ends}]".replace(", ", r",\,"))
    return f"{value} [{ends}]{rest}" if ends else value


def _stacked(over: str, under: str, line: str = "t", side: str = "c") -> str:
    """Two texts, one above the other, in a cell; ``line``: its baseline is that of the upper (t) or the lower (b)."""
    return rf"\begin{{tabular}}[{line}]{{@{{}}{side}@{{}}}}{over}\\{{}}{under}\end{{tabular}}"


LATEX = {character: rf"\{character}" for character in "&%$#_{}"} | {"\\": r"\textbackslash{}", "–": "--"}
LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "→": r"$\rightarrow$", "↓": r"$\downarrow$"}
LATEX |= {"−": r"$-$", "↑": r"$\uparrow$", "≠": r"$\neq$", COLLAPSED: r"$\ddagger$"} | {s: f"${s}$" for s in "<>|"}
LATEX |= {"±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$"}
LATEX |= {letter: rf"$\{unicodedata.name(letter).split()[-1].lower()}$" for letter in "αβγδεζηθικμνξπρστυφχψω"}
LATEX |= {"°": r"\textdegree{}", "λ": r"$\lambda$", "µ": r"$\mu$"}  # Unicode writes lamda; the micro sign
KNOWN_TO_LATEX = set("ÆæØøßŁłŒœı‘’“”…—")


def latex_text(text: str) -> str:
    """Escape text for LaTeX. Arrows, minus and Greek letters become mathematics; of a character that its fonts lack,
    the plain letters are left, or a question mark."""
    return "".join(map(_in_latex, _one_line(text)))


def _in_latex(character: str) -> str:
    if character in LATEX or character.isascii() or character in KNOWN_TO_LATEX:
        return LATEX.get(character, character)
    parts = unicodedata.normalize("NFKD", character).replace("\N{FRACTION SLASH}", "/")
    accents = [one for one in parts[1:] if unicodedata.combining(one)]
    if character < "\u0180" and accents and accents != ["\N{COMBINING OGONEK}"] and parts[0].isalpha():
        return character
    return "".join(LATEX.get(one, one) for one in parts if one.isascii()) or "?"


def markdown_text(text: str) -> str:
    """Escape text for Markdown, also in a cell of a table."""
    return re.sub(r"([\\`*_\[\]<&|~$])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def write_sheets(made: Sequence[Sheet], stem: Path, source: str) -> None:
    """Write sheets to ``stem``.csv, .md and .tex."""
    frames = [sheet.frame for sheet in made if len(sheet.frame)]
    write_csv(pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(), Path(f"{stem}.csv"))
    markdown = "\n".join(sheet.markdown() for sheet in made)
    Path(f"{stem}.md").write_text(f"<!-- made from {source}; do not edit -->\n\n{markdown}", encoding="utf-8")
    Path(f"{stem}.tex").write_text("\n".join(sheet.latex() for sheet in made), encoding="utf-8")


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write ``frame`` as CSV; text that a spreadsheet would run as a formula gets an apostrophe in front, and of what
    cannot be printed only line breaks are left."""

    def inert(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        shown = "\n".join(map(_one_line, value.split("\n")))
        return f"'{shown}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else shown

    text = [name for name in frame if not is_numeric_dtype(frame[name])]
    frame.assign(**{name: frame[name].map(inert) for name in text}).to_csv(path, index=False)
