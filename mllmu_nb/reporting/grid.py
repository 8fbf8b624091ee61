"""Turns the long frame of cells into a printed table: its cells, its columns, and the remarks below."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from mllmu_nb.data.schema import SETS
from mllmu_nb.reporting.runs import COLLAPSED, REFERENCES, Scores
from mllmu_nb.reporting.sheet import BEST, SECOND, Sheet
from mllmu_nb.scoring import path
from mllmu_nb.scoring.frames import COUNTS, GROUP, KEY, MODEL, PLACE, POOLED, REPLICATE, VIEWS, is_model
from mllmu_nb.scoring.gates import CLOSED
from mllmu_nb.scoring.registry import FORGOTTEN, LIKE_ORACLE, UP, Metric, by_key, metrics

VERDICT_SIGNS = {"inside": "=", "outside": "≠", "undecided": "?"}
ASKED_IN = {**VIEWS, POOLED: "both"}
LIMITS = "[low, high] is the 95 % interval."
BELOW = "°"
BELOW_NOTE = f"{BELOW} In one of the views or both, vanilla is below the goal that was set for it (docs/limits.md)."
GATES_UNKNOWN = "Without vanilla and the oracle nobody can say whether a low score is forgetting."
COLLAPSED_NOTE = (
    f"{COLLAPSED} The model has collapsed or refuses everybody (a count says in how many replicates). Its low score "
    "does not show forgetting, and it is not ranked. The mark is given if, in at least one view, the whole 95 % "
    "interval over people shows one of these: (1) more than half of the free answers about the Retain people are "
    "broken (empty, repeated, gibberish); (2) more than half about the Retain people, or about the celebrities, are "
    "refusals; (3) the right option about the Retain people is picked less often than halfway between guessing (25 %) "
    "and vanilla."
)


def value_text(cell: Mapping[str, Any], metric: Metric, signed: bool = False) -> str:
    """``51.7 [47.2, 55.9]``: value and interval in the metric's printed unit; "" without a value."""
    return number_text(cell, metric.times, metric.digits, signed)


def number_text(cell: Mapping[str, Any], times: float = 100, digits: int = 0, signed: bool = False) -> str:
    """Like :func:`value_text`, for a number that has no metric; by default, a share in per cent."""
    if pd.isna(cell["value"]):
        return ""
    form = f"{'+' if signed else ''}.{digits}f"
    value, *ends = (f"{cell[name] * times:{form}}".replace("-", "−") for name in ("value", "low", "high"))
    return value if pd.isna(cell["low"]) else f"{value} [{', '.join(ends)}]"


def cell_text(cell: Mapping[str, Any], metric: Metric, signed: bool = False, verdict: bool = False) -> str:
    """A cell as tables print it: with + or − if ``signed``, with the sign of its verdict if ``verdict``, and in
    brackets if its gate is closed."""
    text = value_text(cell, metric, signed)
    if verdict and cell["verdict"]:
        text += f" {VERDICT_SIGNS[cell['verdict']]}"
    return f"({text})" if text and cell["gate"] == CLOSED else text


Column = tuple[tuple[str, str], Metric, dict[str, Any]]


def column(metric: Metric, /, head: str = "", span: str = "", **where: Any) -> Column:
    """Return a column of scores: its headings (over several columns, own), its metric, and the values that its cells
    have in common. ``where`` has those beside the metric's key, such as set and view."""
    return (span, head or metric.label), metric, {**dict(zip(KEY, metric.key, strict=True)), **where}


def score_sheet(
    scores: Scores,
    title: str,
    label: str,
    blocks: Sequence[tuple[str, Sequence[tuple]]],
    columns: Sequence[Column],
    where: Mapping[str, Any],
    *,
    verdict: bool = False,
    by_view: bool = False,
    marked: bool = False,
    remarks: Sequence[str] = (LIMITS,),
    frame: pd.DataFrame | None = None,
) -> Sheet:
    """Return a sheet with one row per model of ``blocks`` (heading, models), or per model and view if ``by_view``. A
    cell is the one that ``where``, its row and its column name together; it has a sign if ``where`` says against what.
    ``verdict`` as in :func:`cell_text`; ``marked``: the best and the second best of a column of a block are marked.

    ``scores`` are of one GROUP. ``remarks`` come below the table, then those on gates and people. ``frame`` are the
    rows of the CSV, if it has more than the printed ones.
    """
    model_key = [*MODEL, *scores.by]
    key = [*model_key, *PLACE]
    known = rows_by(select(scores, **where), key)
    nothing = {"value": nan, "low": nan, "high": nan, **dict.fromkeys(COUNTS, nan), "gate": "", "verdict": ""}
    printed, printed_blocks, models_there = [], [], scores.models()

    def cell(model: tuple, view: str, own: Mapping[str, Any]) -> dict[str, Any]:
        at = {**where, **dict(zip(model_key, model, strict=True)), **({"view": view} if view else {}), **own}
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
            rows.append((name, [cell(model, view, own) for _, _, own in columns]))
        for place, (_, metric, _) in enumerate(columns):
            entries = [entries[place] for _, entries in rows]
            marks = _marks(scores, metric, entries) if marked else [""] * len(rows)
            for (_, cells), entry, mark in zip(rows, entries, marks, strict=True):
                cells[place] = cell_text(entry, metric, bool(where.get("against")), verdict), entry["note"] or mark
        printed_blocks.append((heading, rows))
    shown = pd.DataFrame(printed)
    frame = csv_rows(scores, pd.concat([frame, shown]).drop_duplicates(key))
    first, heads = "Method, asked with" if by_view else "Method", []
    for (span, head), _, own in columns:
        at = {**where, **own}
        missed = at.get("against") == "" and tuple(at[name] for name in ("set", *KEY)) in scores.missed
        heads.append((span, f"{head} {BELOW}" if missed else head))
    goals = [BELOW_NOTE] if any(head.endswith(BELOW) for _, head in heads) else []
    below = [*remarks, *goals, *closed_gates(scores, shown), sample(scores, shown)]
    return Sheet(title, label, first, heads, printed_blocks, below, frame)


def _marks(scores: Scores, metric: Metric, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return BEST, SECOND or "" for each cell of a column, by printed values. On Forget and Test the nearest to its
    oracle is best, elsewhere the highest (or lowest). References, unsound models and cells behind a closed gate are
    left out; a cell that remains alone, or a metric without a goal, has no mark."""
    ends = [entry for entry in entries if is_model(entry, "oracle")]
    # in a grid, a parameter in which oracles differ tells whose oracle one is
    own = [name for name in scores.by if len({entry[name] for entry in ends}) > 1]
    oracles = {tuple(entry[name] for name in own): entry["value"] for entry in ends}

    def distance(entry: Mapping[str, Any]) -> float:
        unsound = tuple(entry[column] for column in (*GROUP, *MODEL, *scores.by)) in scores.unsound
        reference = entry["method"] in REFERENCES and not entry["after"]
        if reference or unsound or entry["gate"] == CLOSED or not metric.goal(entry["set"]):
            return nan
        oracle = oracles.get(tuple(entry[name] for name in own), nan)
        value, best = (round(metric.times * one, metric.digits) for one in (entry["value"], oracle))
        signs = {LIKE_ORACLE: abs(value - best), UP: -value}
        return round(signs.get(metric.goal(entry["set"]), value), 9)

    places = pd.Series(map(distance, entries), dtype=float).rank(method="dense")
    signs = {1.0: BEST, 2.0: SECOND} if places.count() > 1 else {}
    return [signs.get(place, "") for place in places]


def select(scores: Scores, metrics: Iterable[Metric] | None = None, **where: Any) -> pd.DataFrame:
    """The cells of these ``metrics`` with these values in their columns; a list stands for any of its values."""
    rows = scores.cells
    for name, value in where.items():
        rows = rows[rows[name].isin(value) if isinstance(value, list) else rows[name] == value]
    if metrics is not None:
        rows = rows[pd.MultiIndex.from_frame(rows[KEY]).isin([metric.key for metric in metrics])]
    return rows


def rows_by(frame: pd.DataFrame, columns: Sequence[str]) -> dict[tuple, dict[str, Any]]:
    """Return the values of these columns → row, for the rows of a frame."""
    return {tuple(row[column] for column in columns): row for row in frame.to_dict("records")}


def csv_rows(scores: Scores, rows: pd.DataFrame) -> pd.DataFrame:
    """Cells as in the CSV: with the margin of verdicts, and whether and why the model has collapsed."""
    known, model_key = by_key(), [*GROUP, *MODEL, *scores.by]
    margin = [known[key].margin for key in rows[KEY].itertuples(index=False, name=None)]
    margin = pd.Series(margin, rows.index, dtype=float).where(rows["verdict"] != "")
    bad = [scores.unsound.get(model) for model in rows[model_key].itertuples(index=False, name=None)]
    rows = rows.assign(margin=margin, collapsed=list(map(bool, bad)), why=[one.why if one else "" for one in bad])
    order = [*model_key, *PLACE, "value", "low", "high", *COUNTS, "gate", "verdict", "margin", "note"]
    return rows.reindex(columns=[*order, "collapsed", "why"]).astype(dict.fromkeys(COUNTS, "Int64"))


def closed_gates(scores: Scores, cells: pd.DataFrame, how: str = "In brackets") -> list[str]:
    """Return the remark on closed gates below a table or figure of ``cells``: ``how`` such cells look, and which they
    are. It is empty if all gates are open, or if no cell is of a set on which the score should fall."""
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
    """The remark below every table and figure of ``cells``: the number of people, and what the intervals are over."""
    others = [one.key for one in metrics(per="model")]  # they also count people who are in no set
    of_set = cells["set"].isin(SETS) & cells["value"].notna() & ~pd.MultiIndex.from_frame(cells[KEY]).isin(others)
    counts = cells[of_set].groupby("set", sort=False)["n_profiles"].max()
    listed = ", ".join(f"{name.capitalize()} {int(count)}" for name, count in counts.items())
    where = " (in all replicates together)" if (cells["n_replicates"] > 1).any() else ""
    return (f"People{where}: {listed}. " if listed else "") + repeats(scores)


def asked_along(scores: Scores) -> str:
    """The remark below results along paths, in which only some of the people are asked: how many."""
    counts = scores.points.groupby([*REPLICATE, "set"])["person"].nunique().groupby("set").max()
    listed = ", ".join(f"{name.capitalize()} {counts[name]}" for name in SETS if name in counts)
    return f"People asked along a path, in each replicate: {listed}. {repeats(scores)}"


def celebrities(scores: Scores, words: str) -> str:
    """The ``words`` on celebrities in a text on what is kept; "" if none were asked: it is then about Retain alone."""
    return words if (scores.points["set"] == "celebrity").any() else ""


def interpolated(scores: Scores, closed_in: str = "trained") -> str:
    """The remark below results between the points of paths: how far apart the points around half closed are."""
    widths: dict[str, list[float]] = defaultdict(list)
    names = {run.id: scores.name(scores.model_of(run)) for run in scores.runs}
    for run, curve in path.curves(scores.points, closed_in).items():
        if curve.closed.max() >= 0.5:
            weights = path.crossings(curve.closed, [0.5])[0]
            widths[names[run]].append(100 * np.ptp(curve.closed[weights > 0]))
    apart = ", ".join(f"{name} {np.median(some):.0f}" for name, some in widths.items())
    said = f" The two around half closed lie this far apart, in per cent of the gap (median): {apart}."
    return "Between two points of a path values are interpolated." + said * bool(apart)


def coarser(scores: Scores, closed_in: str = "trained") -> list[str]:
    """The remark on what interpolation costs: how Kept at half closed changes if every second point is left out."""
    few = path.coarse(scores.points, scores.kept_by_person[closed_in], closed_in, scores.by)
    rows = few[(few["what"] == path.KEPT) & few["value"].notna()].to_dict("records")
    said = "Read from every second point alone, Kept at half closed would change by so many points, with 95 % limits"
    names = [scores.name(tuple(row[column] for column in (*MODEL, *scores.by))) for row in rows]
    changes = [f"{name} {number_text(row, signed=True)}" for name, row in zip(names, rows, strict=True)]
    return [f"{said}: {', '.join(changes)}."] if changes else []


def repeats(scores: Scores) -> str:
    """What the intervals are over: the number of replicates of each model, by name only if models differ."""
    named = [(scores.name(scores.model_of(run)), *(run[column] for column in REPLICATE)) for run in scores.runs]
    runs = Counter(name for name, *_ in named)
    # runs that differ only in a seed have one forget set, and are one replicate
    counts = Counter(name for name, *_ in dict.fromkeys(named))
    if set(counts.values()) == {1}:
        fewest, most = min(runs.values()), max(runs.values())
        several = f"{'' if fewest == most else 'Up to '}{most} runs of each model in one replicate (one forget set)"
        has = "One run of each model" if most == 1 else several
        return f"{has}: intervals are over people alone, and say nothing about another run of the method."
    given = "trainings of its own; the forget set is one"
    own = given if one_forget_set(scores) else "its own forget set and trainings"
    same = f"{next(iter(counts.values()))} replicates (each with {own})"
    if len(set(counts.values())) > 1:
        same = "replicates (" + "; ".join(f"{name} {count}" for name, count in counts.items()) + ")"
    several = len({run["data_seed"] for run in scores.runs}) > 1
    fixed = "one base is" if several else "one base and one population are"
    return f"Intervals are over {same} and over people; {fixed} fixed."


def one_forget_set(scores: Scores) -> bool:
    """Whether the forget set is given, so that it is the same in all replicates."""
    return all(any(map(run.parameters.get, ("data_source", "forget_ids_file"))) for run in scores.runs)


def group_title(scores: Scores) -> str:
    """The title of the runs that share a table: base model, scale, forget ratio and protocol."""
    one = scores.runs[0]
    return f"{one.base_label} ({one['scale']}), forget {one['forget_ratio']} %, {one['protocol']} protocol"


def collapse_note(scores: Scores, names: Iterable[str]) -> list[str]:
    """The line below a table or figure that explains ‡, if one of these names has it."""
    judged = (scores.items["scoring"] == path.LIKELIHOOD).any()
    note = COLLAPSED_NOTE if judged else f"{COLLAPSED_NOTE} Choices were not judged: likelihood was not asked."
    return [note] if any(COLLAPSED in name for name in names) else []


def sheet_label(kind: str, scores: Scores) -> str:
    """The LaTeX label of a table and, with _ for -, the name of a figure; the protocol is left out if it is clean."""
    base_model, protocol, ratio = scores.group.values()
    return re.sub(r"[^\w.-]", "-", f"{kind}-{base_model}-{ratio}" + ("" if protocol == "clean" else f"-{protocol}"))
