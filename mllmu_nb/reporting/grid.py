"""From the long frame of cells to a printed table: which cells it has, in which columns, and what stands below them."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from math import nan
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mllmu_nb.data.schema import SETS
from mllmu_nb.reporting.runs import COLLAPSED, REFERENCES, Scores
from mllmu_nb.reporting.sheet import BEST, SECOND, Blocks, Sheet
from mllmu_nb.scoring import path
from mllmu_nb.scoring.frames import COUNTS, DRAW, GROUP, KEY, MODEL, PLACE, POOLED, VIEWS, is_model
from mllmu_nb.scoring.gates import CLOSED
from mllmu_nb.scoring.registry import FORGOTTEN, LIKE_ORACLE, UP, Metric, by_key, metrics

VERDICT_SIGNS = {"inside": "=", "outside": "≠", "undecided": "?"}
ASKED_IN = {**VIEWS, POOLED: "both"}
LIMITS = "[low, high] is the 95 % interval."
GATES_UNKNOWN = "Without vanilla and the oracle nobody can say whether a low score is forgetting."
COLLAPSED_NOTE = (
    f"{COLLAPSED} Collapsed, or refuses everybody (a count says in how many replicates). A low score is then no "
    "forgetting, and the model is not ranked. The rule: in one of the views, of the free answers about the Retain "
    "people more than half are broken (empty, repeated, gibberish), or more than half are refusals, or it picks the "
    "right option about them less often than halfway between guessing (25 %) and vanilla; each is judged by its whole "
    "95 % interval over people."
)


def value_text(cell: Mapping[str, Any], metric: Metric, signed: bool = False) -> str:
    """``51.7 [47.2, 55.9]``: value and interval in the metric's printed unit; "" without a value."""
    return number_text(cell, metric.times, metric.digits, signed)


def number_text(cell: Mapping[str, Any], times: float = 100, digits: int = 0, signed: bool = False) -> str:
    """The same of what is no metric's, a share in per cent."""
    if pd.isna(cell["value"]):
        return ""
    form = f"{'+' if signed else ''}.{digits}f"
    value, *ends = (f"{cell[name] * times:{form}}".replace("-", "−") for name in ("value", "low", "high"))
    return value if pd.isna(cell["low"]) else f"{value} [{', '.join(ends)}]"


def cell_text(cell: Mapping[str, Any], metric: Metric, signed: bool = False, verdict: bool = False) -> str:
    """A cell as tables print it: a difference ``signed``, with the sign of its ``verdict`` where that is asked for, and
    all in brackets behind a closed gate."""
    text = value_text(cell, metric, signed)
    if verdict and cell["verdict"]:
        text += f" {VERDICT_SIGNS[cell['verdict']]}"
    return f"({text})" if text and cell["gate"] == CLOSED else text


class Column(NamedTuple):
    """A column of scores: its heading, the columns of the cells that it fixes, its metric, and the heading over it."""

    head: str
    where: Mapping[str, Any]
    metric: Metric
    span: str = ""


def column(metric: Metric, /, head: str = "", span: str = "", **where: Any) -> Column:
    """The column of a metric; ``where`` fixes more, such as set and view."""
    return Column(head or metric.label, {**dict(zip(KEY, metric.key, strict=True)), **where}, metric, span)


def score_sheet(
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
    """A sheet with one row per model of ``blocks`` (heading, models), or with ``by_view`` one row per model and view,
    of the cells that ``where``, row and column name together; ``signed`` and ``verdict`` as in :func:`cell_text`;
    ``marked``: the best and the second best of each column of a block.

    ``scores`` are of one GROUP. Below stand ``remarks``, and then those that all tables have. ``frame`` are the rows of
    the CSV where it holds more than what is printed.
    """
    model_key = [*MODEL, *scores.by]
    key = [*model_key, *PLACE]
    known = rows_by(select(scores, **where), key)
    nothing = {"value": nan, "low": nan, "high": nan, **dict.fromkeys(COUNTS, nan), "gate": "", "verdict": ""}
    printed, printed_blocks, models_there = [], [], scores.models()

    def cell(model: tuple, view: str, one: Column) -> dict[str, Any]:
        at = {**where, **dict(zip(model_key, model, strict=True)), **({"view": view} if view else {}), **one.where}
        if (entry := known.get(tuple(at[c] for c in key))) is None:
            note = f"It is the {at['against']}." if is_model(at, at["against"]) else "Not measured in these runs."
            note = note if model in models_there else f"There is no run of {scores.name(model)}."
            entry = {**scores.group, **at, **nothing, "note": note}
        printed.append(entry)
        return entry

    for heading, models in blocks:
        rows = []
        for model, view in product(models, VIEWS if by_view else [""]):
            name = scores.named(model, bool(heading)) + (f", {VIEWS[view]}" if view else "")
            rows.append((name, [cell(model, view, one) for one in columns]))
        for place, one in enumerate(columns):
            entries = [entries[place] for _, entries in rows]
            marks = _marks(scores, one.metric, entries) if marked else [""] * len(rows)
            for (_, cells), entry, mark in zip(rows, entries, marks, strict=True):
                cells[place] = cell_text(entry, one.metric, signed, verdict), entry["note"] or mark
        printed_blocks.append((heading, rows))
    shown = pd.DataFrame(printed)
    frame = csv_rows(scores, pd.concat([frame, shown]).drop_duplicates(key))
    below = [*remarks, *closed_gates(scores, shown), sample(scores, shown)]
    heads = [(one.span, one.head) for one in columns]
    first = "Method, asked with" if by_view else "Method"
    return new_sheet(scores, title, label, first, heads, printed_blocks, below, frame)


def new_sheet(
    scores: Scores,
    title: str,
    label: str,
    first: str = "Method",
    columns: Sequence[tuple[str, str]] = (),
    blocks: Blocks = (),
    remarks: Sequence[str] = (),
    frame: pd.DataFrame | None = None,
) -> Sheet:
    """A :class:`Sheet` whose title and label say what the runs have in common, with what ‡ means where a row has it. A
    cell may be its text alone."""
    collapsed = any(COLLAPSED in name for _, rows in blocks for name, _ in rows)
    remarks = [*remarks, *([COLLAPSED_NOTE] if collapsed else [])]
    blocks = [
        (over, [(name, [one if isinstance(one, tuple) else (one, "") for one in row]) for name, row in rows])
        for over, rows in blocks
    ]
    title, label = f"{title}: {group_title(scores)}", sheet_label(label, scores)
    return Sheet(title, label, first, columns, blocks, remarks, pd.DataFrame() if frame is None else frame)


def _marks(scores: Scores, metric: Metric, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """BEST, SECOND or "" for each cell of a column, as it is printed: on Forget and Test nearest to the oracle is best,
    elsewhere highest (or lowest). Left out are the models that are compared with, those that are not sound, and what
    is behind a closed gate; one that is left alone is not marked."""
    oracle = next((entry["value"] for entry in entries if entry["method"] == "oracle" and not entry["after"]), nan)

    def distance(entry: Mapping[str, Any]) -> float:
        unsound = tuple(entry[column] for column in (*GROUP, *MODEL, *scores.by)) in scores.unsound
        if (entry["method"] in REFERENCES and not entry["after"]) or unsound or entry["gate"] == CLOSED:
            return nan
        value, best = (round(metric.times * one, metric.digits) for one in (entry["value"], oracle))
        signs = {LIKE_ORACLE: abs(value - best), UP: -value}
        return round(signs.get(metric.goal(entry["set"]), value), 9)

    places = pd.Series(map(distance, entries), dtype=float).rank(method="dense")
    signs = {1.0: BEST, 2.0: SECOND} if places.count() > 1 else {}
    return [signs.get(place, "") for place in places]


def select(scores: Scores, metrics: Iterable[Metric] | None = None, **where: Any) -> pd.DataFrame:
    """The cells, of these ``metrics``, whose columns have these values, or one of them where they are a list."""
    rows = scores.cells
    for name, value in where.items():
        rows = rows[rows[name].isin(value) if isinstance(value, list) else rows[name] == value]
    if metrics is not None:
        rows = rows[pd.MultiIndex.from_frame(rows[KEY]).isin([metric.key for metric in metrics])]
    return rows


def rows_by(frame: pd.DataFrame, columns: Sequence[str]) -> dict[tuple, dict[str, Any]]:
    """The rows of a frame by the values of these columns."""
    return {tuple(row[column] for column in columns): row for row in frame.to_dict("records")}


def csv_rows(scores: Scores, rows: pd.DataFrame) -> pd.DataFrame:
    """Cells as the CSV has them: with the margin of verdicts, and which models have collapsed and why."""
    known, model_key = by_key(), [*GROUP, *MODEL, *scores.by]
    margin = [known[key].margin for key in rows[KEY].itertuples(index=False, name=None)]
    margin = pd.Series(margin, rows.index, dtype=float).where(rows["verdict"] != "")
    bad = [scores.unsound.get(model) for model in rows[model_key].itertuples(index=False, name=None)]
    rows = rows.assign(margin=margin, collapsed=list(map(bool, bad)), why=[one.why if one else "" for one in bad])
    order = [*model_key, *PLACE, "value", "low", "high", *COUNTS, "gate", "verdict", "margin", "note"]
    return rows.reindex(columns=[*order, "collapsed", "why"]).astype(dict.fromkeys(COUNTS, "Int64"))


def closed_gates(scores: Scores, cells: pd.DataFrame, how: str = "In brackets") -> list[str]:
    """What stands below a table or figure of ``cells``: ``how`` those behind a closed gate look, and which they are;
    nothing where all gates are open, or none is of a set whose score is to come down."""
    gated, names = cells[cells["set"].isin(FORGOTTEN)], []
    if len(gated) and scores.gates.empty:
        return [GATES_UNKNOWN]
    shut = gated[gated["gate"] == CLOSED].groupby(KEY)["view"].agg(set).to_dict()
    for metric in metrics():
        if views := shut.get(metric.key):
            names += [f"{metric.heading} ({VIEWS[view]})" for view in VIEWS if view in views] or [metric.heading]
    why = "vanilla is not shown to know more about the forget people than the oracle, so nothing shows that there was "
    return [f"{how}: gate closed, {why}something to forget: {', '.join(names)}."] if names else []


def sample(scores: Scores, cells: pd.DataFrame) -> str:
    """What stands below every table and figure of ``cells``: how many people, and what the intervals are over."""
    others = [one.key for one in metrics(per="model")]  # they count people who belong to no set as well
    of_set = cells["set"].isin(SETS) & cells["value"].notna() & ~pd.MultiIndex.from_frame(cells[KEY]).isin(others)
    counts = cells[of_set].groupby("set", sort=False)["n_profiles"].max()
    listed = ", ".join(f"{name.capitalize()} {int(count)}" for name, count in counts.items())
    where = " (in all replicates together)" if (cells["n_replicates"] > 1).any() else ""
    return (f"People{where}: {listed}. " if listed else "") + repeats(scores)


def asked_along(scores: Scores) -> str:
    """What stands below what is read off paths, which ask a part of the people."""
    counts = scores.points.groupby(["replicate", "set"])["person"].nunique().groupby("set").max()
    listed = ", ".join(f"{name.capitalize()} {counts[name]}" for name in SETS if name in counts)
    return f"People asked along a path, in each replicate: {listed}. {repeats(scores)}"


def interpolated(scores: Scores, closed_in: str = "trained") -> str:
    """What stands below what is read off between the points of paths: how far apart those around half closed lie."""
    widths: dict[str, list[float]] = defaultdict(list)
    names = {run.id: scores.name(scores.model_of(run)) for run in scores.runs}
    for run, curve in path.curves(scores.points, closed_in).items():
        if curve.closed.max() >= 0.5:
            weights = path.crossings(curve.closed, [0.5])[0]
            widths[names[run]].append(100 * np.ptp(curve.closed[weights > 0]))
    apart = ", ".join(f"{name} {np.median(some):.0f}" for name, some in widths.items())
    apart = f" Around half closed the two are so many per cent of the gap apart (median): {apart}." if apart else ""
    return f"Between two points of a path values are interpolated.{apart}"


def repeats(scores: Scores) -> str:
    """What the intervals are over: how many replicates each model has, once where they agree, by name where not."""
    named = [(scores.name(scores.model_of(run)), *(run[column] for column in DRAW)) for run in scores.runs]
    runs = Counter(name for name, *_ in named)
    # runs that differ in a seed alone have one forget set, and are one replicate
    counts = Counter(name for name, *_ in dict.fromkeys(named))
    if set(counts.values()) == {1}:
        fewest, most = min(runs.values()), max(runs.values())
        several = f"{'' if fewest == most else 'Up to '}{most} runs of each model in one replicate (one forget set)"
        has = "One run of each model" if most == 1 else several
        return f"{has}: intervals are over people alone, and say nothing about another run of the method."
    published = all(run.parameters.get("data_source") for run in scores.runs)  # it brings one forget set a ratio
    own = "trainings of its own; the forget set is one" if published else "its own forget set and trainings"
    same = f"{next(iter(counts.values()))} replicates (each with {own})"
    if len(set(counts.values())) > 1:
        same = "replicates (" + "; ".join(f"{name} {count}" for name, count in counts.items()) + ")"
    return f"Intervals are over {same} and over people; one base and one population are fixed."


def group_title(scores: Scores) -> str:
    """What runs that share a table have in common."""
    _, protocol, ratio = scores.group.values()
    one = scores.runs[0]
    return f"{one.base_label} ({one['scale']}), forget {ratio} %, {protocol} protocol"


def sheet_label(kind: str, scores: Scores) -> str:
    """The LaTeX label of a table and, with _ for -, the name of a figure; the clean protocol goes unnamed."""
    base_model, protocol, ratio = scores.group.values()
    return re.sub(r"[^\w.-]", "-", f"{kind}-{base_model}-{ratio}" + ("" if protocol == "clean" else f"-{protocol}"))
