"""Which method comes nearest to the oracle, which of them can be told apart, and whether published lists agree.

Methods are ranked on the forget set by the distance |method − oracle|: below the oracle is as wrong as above it. At
least three disjoint forget sets are pooled, since one set of ten people ranks those people as much as the methods.

Two distances are equal where the gaps are equal or opposite, and both of these are means over people (A − B, and
A + B − 2 × oracle): a pair is told apart only if both are refuted, by the larger of their p-values (an
intersection-union test, Berger 1982), which needs no guess at the signs and holds where a gap is near 0. A mean of
|method − oracle| taken person by person would not do: a person's few answers are noise enough to put even the oracle's
double at a distance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import kendalltau

from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import statistics
from mllmu_nb.reporting import (
    DIRECTION,
    DOWN,
    GROUP,
    MAIN,
    Measure,
    all_items,
    figures,
    gates,
    in_order,
    label,
    persons,
    published,
    tables,
)
from mllmu_nb.reporting.tables import Numbers

NEEDED = 3  # disjoint forget sets
LEVEL = 0.05  # of the whole family of comparisons of a table
UNRANKED = ("base", "vanilla", "oracle")
SHARED = 4  # methods that a published list must have in common with ours
MODEL = ["method", "variant", "modality"]
MEASURE = ["task", "scoring", "metric"]
DRAW = ["data_seed", "forget_draw"]
PAIR_COLUMNS = ["block", *MEASURE, "a", "b", "difference", "low", "high", "n_profiles", "p"]
SHUT = "Gate closed: vanilla is not shown to be above the oracle, so nothing shows that there was something to forget."
RANKED, COLLAPSED, CLOSED = "ranked", "collapsed", "gate closed"


class Ranking(NamedTuple):
    """``methods``: a row a block, measure and method, with its gap (``value``, ``low``, ``high``), ``distance``,
    ``standing``, ``place``, ``group`` and ``note``. ``pairs``: a row a comparison, with the ``difference`` of the
    distances, ``low``, ``high``, ``p``, ``p_holm`` and ``apart``."""

    methods: pd.DataFrame
    pairs: pd.DataFrame


# Ranking


def forget_sets(items: pd.DataFrame) -> int:
    """How many disjoint forget sets the oracle was asked about. Raises KitError if they share people or are too few."""
    asked = items[(items["method"] == "oracle") & (items["set"] == "forget")]
    draws = asked.assign(person=persons(asked))[[*DRAW, "person"]].drop_duplicates()
    if draws["person"].duplicated().any():
        raise KitError("forget sets share people: they count as one, so pool only disjoint ones")
    count = len(draws[DRAW].drop_duplicates())
    if count < NEEDED:
        raise KitError(f"ranking needs three disjoint forget sets, and there {'is' if count == 1 else 'are'} {count}")
    return count


def rank(part: Numbers, measures: Iterable[Measure] = MAIN) -> Ranking:
    """The methods of one base model, protocol and forget ratio, ranked for every trained modality and measure.

    Views are pooled. Prompting trains nothing and stands in both blocks. A collapsed model keeps its gap but has no
    place, and neither has anybody behind a closed gate. Raises KitError as :func:`forget_sets` does.
    """
    items = all_items(part.runs)
    sets = forget_sets(items)
    methods = pd.DataFrame(_gaps(part, items, sets, measures))
    rows = []
    for measure in measures:
        answers = _answers(items, measure)
        here = _of(methods, [*MEASURE, "standing"], [*_at(measure), RANKED])
        for block, ranked in here.groupby("block", sort=False):
            at = dict(zip(("block", *MEASURE), (block, *_at(measure)), strict=True))
            for a, b in itertools.combinations(ranked.to_dict("records"), 2):
                rows.append(at | _compared(answers, a, b, measure))
    pairs = pd.DataFrame(rows, columns=PAIR_COLUMNS)
    pairs["p_holm"] = statistics.holm(pairs["p"])
    pairs["apart"] = pairs["p_holm"] < LEVEL
    return Ranking(_placed(methods, pairs), pairs)


def _collapsed(part: Numbers) -> dict[tuple[str, str, str], str]:
    """(method, variant, modality) of each collapsed model of one base model, protocol and forget ratio → why."""
    return {model[len(GROUP) :]: why for model, why in part.collapsed.items()}


def _at(measure: Measure) -> tuple[str, str, str]:
    return measure.task, measure.scoring, measure.metric


def _of(frame: pd.DataFrame, columns: Sequence[str], values: Sequence) -> pd.DataFrame:
    """The rows whose ``columns`` hold these values."""
    return frame[frame[list(columns)].eq(list(values)).all(axis=1)]


def _gaps(part: Numbers, items: pd.DataFrame, sets: int, measures: Iterable[Measure]) -> Iterable[dict]:
    """The gap of every row of the table to the oracle, and whether and why not it takes part in the ranking."""
    forget = part.differences.query("against == 'oracle' and set == 'forget' and view == 'both'")
    lookup = {tuple(cell[c] for c in (*MODEL, *MEASURE)): cell for cell in forget.to_dict("records")}
    opened = _of(part.gates, ["view", "gate"], ["both", gates.OPEN])
    opened = set(opened[MEASURE].itertuples(index=False, name=None))
    asked = items[items["set"] == "forget"].drop_duplicates([*MODEL, *DRAW]).groupby(MODEL).size()
    reasons, collapsed = tables.Reasons(part.runs), _collapsed(part)
    for measure, (block, rows) in itertools.product(measures, tables.blocks(part.runs)):
        for row in (row for row in rows if row.method not in UNRANKED):
            model, at = (row.method, row.variant, row.modality), _at(measure)
            found, name = lookup.get((*model, *at), {}), row.full_name
            if not found:
                standing, note = "missing", reasons.why(row, "forget", measure)
            elif model in collapsed:
                standing, note = COLLAPSED, f"{name} has collapsed: {collapsed[model]}."
            elif at not in opened:
                standing, note = CLOSED, SHUT
            elif asked[model] < sets:
                standing, note = "fewer sets", f"{name} was run on {asked[model]} of the {sets} forget sets."
            else:
                standing, note = RANKED, ""
            yield (
                dict(zip(("block", *MODEL, *MEASURE), (block, *model, *at), strict=True))
                | {c: found.get(c, math.nan) for c in ("value", "low", "high", "n_items", "n_profiles")}
                | {"distance": abs(found.get("value", math.nan)), "standing": standing, "note": note}
            )


def _answers(items: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """The forget set's answers to one measure: a row a question and person, a column a model, seeds averaged."""
    asked = items[(items["set"] == "forget") & (items["task"] == measure.task) & (items["scoring"] == measure.scoring)]
    asked = asked.assign(value=asked[measure.column].astype(float), person=persons(asked))
    return asked.pivot_table(index=[*tables.PAIRED_ON, "person"], columns=MODEL, values="value")


def _compared(answers: pd.DataFrame, a: dict, b: dict, measure: Measure) -> dict:
    """|gap of a| − |gap of b| with its interval, the signs held as they came out, and the p of the two distances."""
    people = answers.index.get_level_values("person")
    oracle = answers["oracle"].mean(axis=1).to_numpy()
    first, second = (answers[m["method"], m["variant"], m["modality"]].to_numpy() for m in (a, b))
    signs = [-1 if m["value"] < 0 else 1 for m in (a, b)]
    reach = measure.bounds[1] - measure.bounds[0]
    found = statistics.paired_difference(
        signs[0] * (first - oracle), signs[1] * (second - oracle), people, bounds=(-reach, reach)
    )
    equal = statistics.paired_p(first, second, people)
    opposite = statistics.paired_p(first + second, 2 * oracle, people)
    names = [label(m["method"], m["variant"], m["modality"]) for m in (a, b)]
    values = {"difference": found.value, "low": found.low, "high": found.high, "n_profiles": found.n_profiles}
    return {"a": names[0], "b": names[1]} | values | {"p": max(equal, opposite)}


def _placed(methods: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Methods with ``place`` (equal distances share one) and ``group``, nearest first within block and measure."""
    frames = []
    for key, cell in methods.groupby(["block", *MEASURE], sort=False):
        ranked = cell[cell["standing"] == RANKED].sort_values("distance", kind="stable")
        names = [label(*model) for model in ranked[MODEL].itertuples(index=False)]
        apart = _of(pairs, ["block", *MEASURE, "apart"], [*key, True])[["a", "b"]]
        letters = shared_letters(names, [frozenset(pair) for pair in apart.itertuples(index=False)])
        ranked = ranked.assign(place=ranked["distance"].round(9).rank(method="min"), group=[letters[n] for n in names])
        frames += [ranked, cell[cell["standing"] != RANKED].assign(place=math.nan, group="")]
    return pd.concat(frames, ignore_index=True).astype({"place": "Int64"})


def shared_letters(names: Sequence[str], apart: Iterable[frozenset]) -> dict[str, str]:
    """Letters by name, such that two names share one exactly if they are not told ``apart``; "a" holds the first.

    Starts with one group of all and splits it at every pair told apart, dropping groups that lie in another (insert and
    absorb, Piepho 2004).
    """
    groups = [frozenset(names)]
    for pair in apart:
        split = {group - {one} for group in groups if pair <= group for one in pair}
        split |= {group for group in groups if not pair <= group}
        groups = [group for group in split if not any(group < other for other in split)]
    groups.sort(key=lambda group: sorted(names.index(name) for name in group))
    return {name: "".join(tables.letter(i) for i, group in enumerate(groups) if name in group) for name in names}


def rank_all(known: Numbers) -> tuple[dict[tuple, Ranking], list[str]]:
    """(base model, protocol, forget ratio) → its ranking, and a line for each that cannot be ranked, saying why."""
    found, refused = {}, []
    for key, part in known.groups():
        try:
            found[key] = rank(part)
        except KitError as reason:
            refused.append(f"Not ranked: {tables.group_title(key, part.runs)}, since {reason}.")
    return found, refused


def table(known: Numbers) -> tuple[pd.DataFrame, list[tables.Sheet]]:
    """Place, letters and gap of every method, a sheet for each ranking; what cannot be ranked is named in a remark."""
    found, refused = rank_all(known)
    sheets = [_sheet(key, part, found[key]) for key, part in known.groups() if key in found]
    sheets = sheets or [tables.Sheet("Ranking by the distance to the oracle", "ranking", "Method", [], [])]
    sheets[-1].remarks += refused
    return _joined({key: one.methods for key, one in found.items()}), sheets


def _joined(frames: dict[tuple, pd.DataFrame]) -> pd.DataFrame:
    """Frames of several groups of runs under each other, with columns that say whose each row is."""
    return pd.concat(frames, names=GROUP).reset_index(GROUP).reset_index(drop=True) if frames else pd.DataFrame()


def _sheet(key: tuple[str, str, int], part: Numbers, found: Ranking) -> tables.Sheet:
    title = f"Ranking by the distance to the oracle on Forget, views pooled: {tables.group_title(key, part.runs)}"
    spans = [(measure.label.removesuffix(" %"), 2) for measure in MAIN]
    sheet = tables.Sheet(title, tables.latex_label("ranking", key), "Method", spans, ["Gap", "Place"] * len(MAIN))
    cells = {tuple(r[c] for c in ("block", *MODEL, *MEASURE)): r for r in found.methods.to_dict("records")}
    for block, rows in tables.blocks(part.runs):
        body = []
        for row in (row for row in rows if row.method not in UNRANKED):
            line = []
            for measure in MAIN:
                cell = cells[block, row.method, row.variant, row.modality, *_at(measure)]
                gap = tables.written(cell["value"], cell["low"], cell["high"], measure, signed=True)
                place = "" if cell["note"] else f"{cell['place']} {cell['group']}"
                line += [(gap, "" if gap else cell["note"]), (place, cell["note"])]
            body.append((row.name, line))
        sheet.blocks.append((block, body))
    sheet.remarks = [
        "Gap: method − oracle, ± half the 95 % interval over people; in points, ROUGE-L and Factuality in their own "
        "unit. Place 1 is nearest to the oracle. Methods that share a letter are not told apart "
        f"({len(found.pairs)} comparisons of two distances, Holm-corrected together at 5 %).",
        *undecided(found),
        f"{found.methods['n_profiles'].max():.0f} people in {forget_sets(all_items(part.runs))} forget sets.",
    ]
    return sheet


def undecided(found: Ranking) -> list[str]:
    """A line naming the columns in which no two methods are told apart; none where there is no such column."""
    names = []
    for (block, *at), cell in found.pairs.groupby(["block", *MEASURE], sort=False):
        if not cell["apart"].any():
            measure = next(measure for measure in MAIN if _at(measure) == tuple(at))
            names.append(f"{measure.label.removesuffix(' %')} ({block[0].lower()}{block[1:]})")
    return [f"Undecided, no two methods told apart: {', '.join(names)}."] if names else []


# Figure


@figures.styled
def figure(found: Ranking) -> Figure:
    """Gap to the oracle with its interval, a panel a block and measure, nearest first; grey: not ranked, and why."""
    blocks = list(dict.fromkeys(found.methods["block"]))
    most = found.methods.groupby(["block", *MEASURE]).size().max()
    drawn = Figure(figsize=(figures.PAGE, 0.4 + len(blocks) * (0.25 + 0.28 * most)), layout="constrained")
    axes = drawn.subplots(len(blocks), len(MAIN), sharex="col", squeeze=False)
    for (row, block), (column, measure) in itertools.product(enumerate(blocks), enumerate(MAIN)):
        here = _of(found.methods, ["block", *MEASURE], [block, *_at(measure)]).dropna(subset=["value"])
        panel = axes[row][column]
        panel.axvline(0, color=figures.GREY, linewidth=0.8, zorder=1)
        for y, cell in enumerate(here.to_dict("records")):
            _interval(panel, y, cell, measure)
        panel.set(ylim=(len(here) - 0.6, -0.9), yticks=[])
        if row == 0:
            panel.set_title(measure.label.replace(" %", ", points"))
        if column == 0:
            panel.set_ylabel(block)
    drawn.supxlabel("method − oracle on Forget (0: as the oracle)", fontsize=figures.SMALL)
    seaborn.despine(drawn, left=True)
    return drawn


def _interval(panel: Axes, y: float, cell: dict, measure: Measure) -> None:
    """One method's gap at height ``y``; above it on the left place and name, on the right its letters."""
    ranked = cell["standing"] == RANKED
    look = figures.look(cell["method"])
    colour = look.colour if ranked else figures.GREY
    value, low, high = (cell[c] * measure.times for c in ("value", "low", "high"))
    fill = "white" if cell["modality"] == "unimodal" else colour
    panel.plot([low, high], [y, y], color=colour, linewidth=1.1, zorder=2)
    panel.plot(value, y, look.marker, color=colour, markerfacecolor=fill, markersize=4, zorder=3)
    name = label(cell["method"], cell["variant"])
    text = f"{cell['place']}  {name}" if ranked else f"{name} ({cell['standing']})"
    above = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": figures.SMALL}
    above["zorder"] = 1.5  # between the line of the oracle and the intervals
    above["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    panel.annotate(text, (0, y), xytext=(0, 4), color=figures.INK if ranked else figures.GREY, **above)
    panel.annotate(cell["group"], (1, y), xytext=(0, 4), ha="right", **above)


# Published lists


def tau(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Kendall's τ of two lists and its exact two-sided p; NaN where a list has no order at all.

    With ties it is τ-b, and p the share of all orders of the second list with a τ as far from 0.
    """
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    if len(np.unique(ours)) < 2 or len(np.unique(theirs)) < 2:
        return math.nan, math.nan
    if _untied(ours) and _untied(theirs):
        found = kendalltau(ours, theirs, method="exact")
        return float(found.statistic), float(found.pvalue)
    orders = _orders(ours, theirs)
    return float(kendalltau(ours, theirs).statistic), float(np.mean(orders >= orders[0]))


def smallest_p(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The smallest p that :func:`tau` could give to lists of these values in any order; NaN where one has no order.

    Without ties 2/n!: of the n! orders, the very same and its reverse are as extreme. Ties make orders alike.
    """
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    if len(np.unique(ours)) < 2 or len(np.unique(theirs)) < 2:
        return math.nan
    if _untied(ours) and _untied(theirs):
        return 2 / math.factorial(len(ours))
    orders = _orders(ours, theirs)
    return float(np.mean(orders == orders.max()))


def _untied(values: np.ndarray) -> bool:
    return len(np.unique(values)) == len(values)


def _orders(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """|pairs in order − pairs in reverse| for all orders of the second list, first as given; τ-b in a common unit."""
    first, second = np.triu_indices(len(ours), 1)
    orders = np.array(list(itertools.permutations(theirs)))
    signs = np.sign(ours[first] - ours[second])
    return np.abs(np.sign(orders[:, first] - orders[:, second]) @ signs).astype(int)


def lists(printed: pd.DataFrame) -> list[tuple[dict, pd.DataFrame]]:
    """The lists of unlearning methods that others printed: what is common to a list, and its methods as we name them.

    ``printed`` is what :func:`published.load` gives. Vanilla and the oracle are no unlearning methods.
    """
    ours = {name: ours for name, ours in published.OURS["method"].items() if ours not in UNRANKED}
    named = printed.dropna(subset=["value"]).assign(method=printed["method"].map(ours)).dropna(subset=["method"])
    keys = ["source", "base_model", "forget_ratio", "set", "view", "metric"]
    return [(dict(zip(keys, key, strict=True)), one) for key, one in named.groupby(keys, sort=True)]


def agreement(part: Numbers, printed: pd.DataFrame) -> pd.DataFrame:
    """Kendall's τ of our order to each list of at least four shared methods, whatever it is.

    Both sides are the same measure on the same set and view, ours unlearned on image + text as the sources do. ``tau``
    compares scores, of ``n`` methods. ``tau_gap`` sets our distance to the oracle against their order; nobody prints an
    oracle's score beside these, so theirs are better the lower they are on the forget and test sets, and the higher
    elsewhere. The collapsed stay in the former, as others leave them in too, and are out of the latter, which needs
    four as well (``n_gap``). Behind a closed ``gate`` of the measure and view, on the sets that have one, a distance
    says nothing about forgetting: a ``note`` stands for ``tau_gap``. A list that cannot be compared keeps its row, with
    a ``note`` and no τ.
    """
    rows = []
    for at, one in lists(printed):
        family = published.OURS["base_model"].get(at["base_model"])
        if len(one) >= SHARED and family == part.runs[0]["base_model"]:
            known = {"n": len(one), "methods": _told(one["method"]), "note": ""}
            rows.append(at | known | _taus(part, at, one))
    columns = [
        "source",
        "base_model",
        "forget_ratio",
        "set",
        "view",
        "metric",
        "methods",
        "n",
        "tau",
        "p",
        "smallest_p",
    ]
    return pd.DataFrame(rows, columns=[*columns, "n_gap", "tau_gap", "p_gap", "gate", "note"])


def _taus(part: Numbers, at: dict, one: pd.DataFrame) -> dict:
    """The columns of :func:`agreement` that compare; only a ``note`` where nothing can be compared."""
    there = published.COUNTERPARTS.get(at["metric"])
    where = {column: published.OURS[column].get(at[column]) for column in ("set", "view")}
    if not there or not all(where.values()):
        return {"note": f"{at['metric'].split(' (')[0]} has no counterpart here"}
    cell = {**where, "task": there.task, "scoring": there.scoring, "metric": there.metric}
    scores = _of_methods(part.scores, cell)
    gaps = _of_methods(part.differences, {**cell, "against": "oracle"})
    shared = [method for method in one["method"] if method in scores and method in gaps]
    if len(shared) < SHARED:
        return {"note": f"only {len(shared)} of their methods have a run here"}
    theirs = one.set_index("method")["value"]
    ours = [scores[m] for m in shared]
    found = {"n": len(shared), "methods": _told(shared), "smallest_p": smallest_p(ours, theirs[shared])}
    found |= dict(zip(("tau", "p"), tau(ours, theirs[shared]), strict=True)) | {"gate": _gate(part, cell)}
    alive = [method for method in shared if (method, "canonical", "multimodal") not in _collapsed(part)]
    found["n_gap"] = len(alive)
    if found["gate"] == gates.CLOSED:
        found["note"] = SHUT
    elif len(alive) >= SHARED:
        worse = theirs[alive] if DIRECTION[where["set"]] == DOWN else -theirs[alive]
        found |= dict(zip(("tau_gap", "p_gap"), tau([abs(gaps[m]) for m in alive], worse), strict=True))
    return found


def _gate(part: Numbers, cell: dict) -> str:
    """The gate of a cell of scores: "" on a set without gates, closed where it is not shown to be open."""
    if cell["set"] not in gates.GATED:
        return ""
    here = _of(part.gates, [*MEASURE, "view", "gate"], [*(cell[c] for c in (*MEASURE, "view")), gates.OPEN])
    return gates.CLOSED if here.empty else gates.OPEN


def _of_methods(frame: pd.DataFrame, cell: dict) -> dict[str, float]:
    """method → value of its canonical form unlearned on image + text, in one cell of scores or differences."""
    cell = {**cell, "variant": "canonical", "modality": "multimodal"}
    here = _of(frame, list(cell), list(cell.values()))
    return dict(zip(here["method"], here["value"], strict=True))


def _told(methods: Iterable[str]) -> str:
    return ", ".join(label(method) for method in in_order(methods))


def tau_table(known: Numbers, printed: pd.DataFrame) -> tuple[pd.DataFrame, list[tables.Sheet]]:
    """Agreement of every group of runs that can be ranked with the lists that others printed, a sheet each."""
    frames, sheets = [], []
    for key, part in known.groups():
        try:
            forget_sets(all_items(part.runs))
        except KitError:
            continue
        found = agreement(part, printed)
        frames.append(found.assign(our_protocol=key[1], our_forget_ratio=key[2]))
        sheets.append(_tau_sheet(key, part, found, printed))
    bare = tables.Sheet("Kendall's τ to published lists", "tau", "List", [], [], [], ["No runs that can be ranked."])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(), sheets or [bare]


def _tau_sheet(key: tuple, part: Numbers, found: pd.DataFrame, printed: pd.DataFrame) -> tables.Sheet:
    columns = ["Ratio %", "Set", "View", "Measure", "Methods", "τ, scores", "p", "Smallest p", "Ranked", "τ, gap", "p"]
    title = f"Kendall's τ to published lists: {tables.group_title(key, part.runs)}"
    without, body = found["n_gap"].isna(), []
    compared = found[~without]
    for row in compared.to_dict("records"):
        told = (row["forget_ratio"], row["set"], row["view"].replace("_", " + "), row["metric"], row["n"])
        scores = [_number(row[c], TIED) for c in ("tau", "p", "smallest_p")]
        cells = [(str(text), "") for text in told] + [
            (tables.bracketed(text, row["gate"]), why) for text, why in scores
        ]
        few = "" if row["n_gap"] >= SHARED else f"The others have collapsed, and fewer than {SHARED} are no list."
        cells += [(f"{row['n_gap']:.0f}", "")]
        cells += [_number(row[c], row["note"] or few or TIED) for c in ("tau_gap", "p_gap")]
        body.append((row["source"].split("; ")[0], cells))
    counts = found.loc[without, "note"].value_counts(sort=False)
    sizes = sorted({SHARED, SHARED + 1, *compared["n"]})
    smallest = [f"{smallest_p(range(n), range(n)):.2g} with {n} methods" for n in sizes]
    remarks = [
        "Both sides: same measure, set and view, unlearned on image + text; ours at the ratio of the title, theirs at "
        "the ratio of the row. τ, scores: theirs against ours. τ, gap: the distance to our oracle, of the methods that "
        "have not collapsed, against their order, lower being better on Forget and Test, higher elsewhere. With ties "
        "it is τ-b.",
        "p is two-sided and exact, over all orders. With 4 or 5 methods hardly any τ is significant: the smallest p "
        f"there is, for the very same order without ties, is {', '.join(smallest)}; with ties it is larger, and the "
        "column says how large for the two lists of its row.",
    ]
    if (compared["gate"] == gates.CLOSED).any():
        remarks.append("In brackets: a τ of scores behind a closed gate, which is no agreement about forgetting.")
    if len(counts):
        told = "; ".join(f"{note} ({count} {'list' if count == 1 else 'lists'})" for note, count in counts.items())
        remarks.append(f"Not compared: {told}.")
    few = sum(len(one) < SHARED for _, one in lists(printed))
    remarks.append(f"Lists that share fewer than {SHARED} unlearning methods with ours: {few}.")
    head = [("", len(columns))]
    return tables.Sheet(title, tables.latex_label("tau", key), "List", head, columns, [("", body)], remarks)


TIED = "All values are the same, so there is no order."


def _number(value: float, why: str) -> tuple[str, str]:
    return ("", why) if pd.isna(value) else (f"{value:.2g}".replace("-", "−"), "")


# Files

CAPTION = (
    "Gap to the oracle on the forget set, views pooled, nearest first. Bars: 95 % intervals over people. Methods that "
    "share a letter are not told apart (two distances at a time, Holm-corrected); grey ones are not ranked."
)


def write_all(scale: str, known: Numbers, out: Path, pictures: Path) -> figures.Written:
    """Write ``table_ranking``, its comparisons and ``table_tau`` into ``out``, a figure a ranking into ``pictures``."""
    made = {"table_ranking": table(known), "table_tau": tau_table(known, published.load())}
    paths = tables.write_sheets(made, scale, out)
    found, _ = rank_all(known)
    paths.append(out / "table_ranking_pairs.csv")
    _joined({key: one.pairs for key, one in found.items()}).to_csv(paths[-1], index=False)
    written = [figures.Written(paths, [])]
    for key, one in found.items():
        stem = pictures / tables.latex_label("ranking", key).replace("-", "_")
        written.append(figures.put(stem, CAPTION, partial(figure, one)))
    return figures.together(written)
