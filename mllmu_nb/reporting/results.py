"""The results as a paragraph: what may be said of runs, each number with the table and the runs it is from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mllmu_nb.reporting.grid import group_title, select
from mllmu_nb.reporting.runs import MODALITIES, Scores, method_label
from mllmu_nb.reporting.sheet import latex_text, markdown_text
from mllmu_nb.scoring import path
from mllmu_nb.scoring.frames import MODEL, POOLED
from mllmu_nb.scoring.ranking import LIKELIHOOD
from mllmu_nb.scoring.registry import by_key


class Number(NamedTuple):
    """A printed number, and where it is from: the row of a table's CSV, in words, and the ids of runs."""

    text: str
    row: str
    runs: list[str]


def half_closed(scores: Scores) -> dict[str, list[dict]]:
    """Trained modality → two rows of ``scores.kept``, of gradient ascent (of several settings the one that keeps most)
    and of the method that keeps most where half of the gap to the oracle is closed; only where these are two."""
    kept, found = scores.kept, {}
    half = kept[(kept["closed_in"] == "trained") & (kept["what"] == path.KEPT) & (kept["place"] == 0.5)]
    for modality in MODALITIES:
        rows = half[half["modality"] == modality].dropna(subset=["value"]).sort_values("value", kind="stable")
        ascent, best = rows[rows["method"] == "ga"].to_dict("records")[-1:], rows.to_dict("records")[-1:]
        if ascent and best[0]["method"] != "ga":
            found[modality] = ascent + best
    return found


def per_cent(row: Mapping[str, Any]) -> str:
    return f"{100 * row['value']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"


def replicates(scores: Scores) -> str:
    count = len({run["replicate"] for run in scores.runs})
    return f"{count} replicates" if count > 1 else "one replicate"


def paragraph(scores: Scores) -> Iterator[str | Number]:
    """What runs of one GROUP show, as far as they are there: the gap, what is kept where half of it is closed, and who
    has collapsed."""
    name = [*MODEL, *scores.by]

    def number(text: str, table: str, row: Mapping[str, Any], *at: str) -> Number:
        model = tuple(row[column] for column in name)
        where = [str(row[column]) for column in (*name, *at) if row[column] not in ("", "canonical", "none")]
        runs = [run.id for run in scores.runs if scores.model_of(run) == model]
        return Number(text, f"{table}.csv, {' '.join(where)}", runs)

    cells = select(scores, [by_key()[LIKELIHOOD]], against="", set="forget", view=POOLED, after="")
    ends = {row["method"]: row for row in cells.dropna(subset=["value"]).to_dict("records")}
    if {"vanilla", "oracle"} <= ends.keys():
        at = ("set", "scoring", "metric")
        known, never = (number(per_cent(ends[one]), "table2_main", ends[one], *at) for one in ("vanilla", "oracle"))
        yield from (" Vanilla is right about ", known, " of the questions on the people to be forgotten, ")
        yield from ("the oracle about ", never, ".")
    for modality, rows in half_closed(scores).items():
        ascent, best = (number(per_cent(row), "table_path", row, "closed_in", "what", "place") for row in rows)
        names = [method_label(row["method"]) for row in rows]
        yield f" Trained on {MODALITIES[modality]}, where half of that gap is closed, {names[0]} is still right about "
        yield from (ascent, f" of what is to be kept, {names[1]} about ", best, ".")
    separator = " Collapsed or refusing everybody, in so many replicates: "
    for model in scores.models():
        if bad := scores.unsound.get((*scores.group.values(), *model)):
            yield f"{separator}{scores.name(model)} "
            yield number(f"{bad.count} of {bad.replicates}", "table_health", dict(zip(name, model, strict=True)))
            separator = ", "
    yield "." if separator == ", " else ""


def write(scores: Scores, folder: Path, source: str) -> None:
    """Writes ``results.md`` and ``results.tex``: a paragraph a GROUP, and a footnote a number."""
    markdown, latex, notes = [f"<!-- made from {source}; do not edit -->"], [], []
    for _, group in scores.groups():
        head = f"{group_title(group)}, {replicates(group)}. By likelihood, with 95 % limits."
        said, set_in_latex = markdown_text(head), latex_text(head)
        for part in paragraph(group):
            text = part.text if isinstance(part, Number) else part
            said, set_in_latex = said + markdown_text(text), set_in_latex + latex_text(text)
            if isinstance(part, Number):
                links = ", ".join(f"[{markdown_text(run)}](../runs/{run})" for run in part.runs)
                notes.append(f"[^{len(notes) + 1}]: {markdown_text(part.row)}; {links}")
                said += f"[^{len(notes)}]"
                origin = latex_text(f"{part.row}; {', '.join(part.runs)}")
                set_in_latex += rf"\footnote{{{origin}}}"
        markdown.append(said)
        latex.append(set_in_latex)
    (folder / "results.md").write_text("\n\n".join([*markdown, *notes, ""]), encoding="utf-8")
    (folder / "results.tex").write_text("\n\n".join([*latex, ""]), encoding="utf-8")
