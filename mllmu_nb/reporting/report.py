"""The report on the finished runs of a scale: scores, the table of runs, every table and figure, and a paragraph of
results in which each number names its table and its runs."""

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mllmu_nb import paths
from mllmu_nb.data.schema import Profile
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import figures, tables
from mllmu_nb.reporting.grid import celebrities, group_title, number_text, select
from mllmu_nb.reporting.runs import MODALITIES, Scores, class_of, run_table
from mllmu_nb.reporting.sheet import latex_text, markdown_text, write_csv
from mllmu_nb.scoring import path
from mllmu_nb.scoring.frames import LIKELIHOOD_KEY, MODEL, POOLED, REPLICATE, has
from mllmu_nb.scoring.registry import by_key
from mllmu_nb.stages import lock

TEMPORARY = ".report"  # not the folder of unfinished stages, which other processes may be filling


def write_all(scale: str, people: Sequence[Profile] = (), say: Callable[[str], None] = print) -> list[Path]:
    """Write scores.csv, runs.csv, all tables, the results in words and all figures of the runs under
    ``paths.results(scale)``. The files replace earlier ones only when all are written. Returns the files.

    ``people`` give their portraits, and the first three are on the profile sheet; without people, it stays as it was.
    Raises KitError if there is no run, or the disk is full.
    """
    results, pictures = paths.results(scale), paths.figures(scale)
    written: list[Path] = []
    say(f"Reading the runs in results/{scale}.")
    with lock(results):
        scores = Scores.read(results)  # now: another process may have finished runs while this one waited
        source = f"results/{scale}/runs ({scores.made_of})"
        say(f"Tables and figures of the {len(scores.runs)} runs in {source}.")
        with _aside(results, written) as folder, _aside(pictures, written) as drawn:
            write_csv(scores.run_scores(), folder / "scores.csv")
            write_csv(run_table(scores.runs), folder / "runs.csv")
            tables.write_tables(scores, folder / "tables", source)
            write_results(scores, folder / "tables", source)
            captions = figures.write_all(scores, people, drawn, source)
            lines = [f"<!-- made from {source}; do not edit -->", "", *captions, ""]
            (drawn / "captions.md").write_text("\n".join(lines), encoding="utf-8")
    return sorted(written)


@contextlib.contextmanager
def _aside(folder: Path, written: list[Path]) -> Iterator[Path]:
    """Yield a temporary folder in ``folder``; at the end, move its files to ``folder`` and add them to ``written``."""
    temporary = paths.writable(folder) / TEMPORARY
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    try:
        temporary.mkdir()
        yield temporary
        for file in sorted(file for file in temporary.rglob("*") if file.is_file()):
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
            written.append(target)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise KitError(f"cannot write the report ({reason}): free space; the earlier one stays as it was") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# -- the results as a paragraph ---------------------------------------------------------------------------------


class Number(NamedTuple):
    """A printed number and its source: the row of a table's CSV, in words, and the ids of runs."""

    text: str
    row: str
    runs: list[str]


def half_closed(scores: Scores) -> dict[str, list[dict]]:
    """Return trained modality → two rows of ``scores.kept`` with half of the gap to the oracle closed: the method that
    comes first in tables (its setting that keeps most), and the method that keeps most. There is no entry if they are
    the same."""
    kept = scores.kept.dropna(subset="value")
    half = kept.query(f"closed_in == 'trained' and what == '{path.KEPT}' and place == 0.5")
    result = {}
    for modality in MODALITIES:
        rows = half[half["modality"] == modality].sort_values("value", kind="stable").to_dict("records")
        first = min((row["method"] for row in rows), key=lambda name: class_of(name).order, default="")
        if rows and rows[-1]["method"] != first:
            result[modality] = [[row for row in rows if row["method"] == first][-1], rows[-1]]
    return result


def elsewhere(scores: Scores, row: Mapping[str, Any], **other: Any) -> dict:
    """The row of ``scores.kept`` that differs from ``row`` only in ``other`` (what, place); empty if there is none."""
    at = {name: row[name] for name in (*MODEL, *scores.by, "closed_in", "what", "place")} | other
    return next(iter(scores.kept[has(scores.kept, list(at), list(at.values()))].to_dict("records")), {})


def per_cent(row: Mapping[str, Any]) -> str:
    """``98 % [96, 99]``, and in how many replicates if some of a path never get there; one alone has no limits."""
    value, *ends = number_text(row).split(" ", 1)
    count, of = row["n_replicates"], row.get("of", row["n_replicates"])
    return " ".join([value, "%", *ends, *([f"(in {count} of {of} replicates)"] if count < of else [])])


def replicates(scores: Scores) -> str:
    """The number of replicates of each model, in words."""
    named = {(scores.model_of(run), *(run[column] for column in REPLICATE)) for run in scores.runs}
    counts = Counter(model for model, *_ in named).values()
    fewest, most = min(counts), max(counts)
    return "one replicate" if most == 1 else f"{'' if fewest == most else f'{fewest} to '}{most} replicates"


def paragraph(scores: Scores) -> Iterator[str | Number]:
    """Yield the text on the runs of one GROUP, as far as there are such runs: the gap, what is kept with half of it
    closed, and which models have collapsed."""
    name = [*MODEL, *scores.by]

    def number(text: str, table: str, row: Mapping[str, Any], *at: str) -> Number:
        model = tuple(row[column] for column in name)
        where = [str(row[column]) for column in (*name, *at) if row[column] not in ("", "canonical", "none")]
        runs = [run.id for run in scores.runs if scores.model_of(run) == model]
        return Number(text, f"{table}.csv, {' '.join(where)}", runs)

    cells = select(scores, [by_key()[LIKELIHOOD_KEY]], against="", set="forget", view=POOLED, after="")
    cells = cells[cells["method"].isin(("vanilla", "oracle"))].dropna(subset=["value"])
    ends = {row["method"]: row for row in cells.to_dict("records")}
    if len(ends) == len(cells) == 2:  # a grid may have several
        at = ("set", "scoring", "metric")
        known, never = (number(per_cent(ends[one]), "table2_main", ends[one], *at) for one in ("vanilla", "oracle"))
        yield from (" Vanilla picks the right option in ", known, " of the questions on the people to be forgotten, ")
        yield from ("the oracle in ", never, ".")
    for modality, rows in half_closed(scores).items():
        free = [one for row in rows if (one := elsewhere(scores, row, what="free"))]
        read = [number(per_cent(row), "table_path", row, "closed_in", "what", "place") for row in (*rows, *free)]
        unlearned_on = {"modality": "none"}  # the sentence says it
        names = [scores.name(tuple((row | unlearned_on)[column] for column in name)) for row in rows]
        where = f"Trained on {MODALITIES[modality]}, where half of the gap in the trained view is closed"
        yield from (f" {where}, {names[0]} still picks the right option in ", read[0], " of the questions on Retain")
        yield from (f"{celebrities(scores, ' and the celebrities')}, {names[1]} in ", read[1], ".")
        if len(free) == len(rows):
            yield from (f" After {names[0]}, ", read[2], " of the free answers about Retain state the fact, after ")
            yield from (f"{names[1]} ", read[3], ".")
    separator = " Collapsed or refusing everybody, in so many replicates: "
    for model in scores.models():
        if bad := scores.unsound.get((*scores.group.values(), *model)):
            yield f"{separator}{scores.name(model)} "
            yield number(f"{bad.count} of {bad.runs}", "table_health", dict(zip(name, model, strict=True)))
            separator = ", "
    yield "." if separator == ", " else ""


def write_results(scores: Scores, folder: Path, source: str) -> None:
    """Write ``results.md`` and ``results.tex``: one paragraph per GROUP, and one footnote per number."""
    markdown, latex, notes = [f"<!-- made from {source}; do not edit -->"], [], []
    for _, group in scores.groups:
        head = f"{group_title(group)}, {replicates(group)}. Options by likelihood, with 95 % limits."
        said, set_in_latex = markdown_text(head), latex_text(head)
        for part in paragraph(group):
            text, row, runs = part if isinstance(part, Number) else (part, "", [])
            said, set_in_latex = said + markdown_text(text), set_in_latex + latex_text(text)
            if row:
                links = ", ".join(f"[{markdown_text(run)}](../runs/{run})" for run in runs)
                notes.append(f"[^{len(notes) + 1}]: {markdown_text(row)}; {links}")
                said += f"[^{len(notes)}]"
                set_in_latex += rf"\footnote{{{latex_text('; '.join([row, ', '.join(runs)]))}}}"
        markdown.append(said)
        latex.append(set_in_latex)
    (folder / "results.md").write_text("\n\n".join([*markdown, *notes, ""]), encoding="utf-8")
    (folder / "results.tex").write_text("\n\n".join([*latex, ""]), encoding="utf-8")
