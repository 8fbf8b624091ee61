"""Whether what was unlearned one way can still be asked the other way, and whether both ways agree fact by fact.

Leakage is a matrix: trained in (image + text, text only) × asked in (with the image, in text), each cell the gap to the
oracle on the forget set. A method that closes one way and leaves the other open has a cell at 0 beside one far above.

Alignment looks at single facts, as each is asked in both views: AccF is the share of forget facts that are wrong in
both, AccR the share of retain facts that are right in both (the measures of UMU-Bench).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from seaborn.utils import relative_luminance

from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import statistics
from mllmu_nb.reporting import (
    CLOZE,
    EXACT,
    GROUP,
    LIKELIHOOD,
    MODALITIES,
    VIEWS,
    Measure,
    all_items,
    figures,
    health,
    in_order,
    label,
    models_in_order,
    persons,
    tables,
)
from mllmu_nb.reporting.gates import CLOSED, OPEN
from mllmu_nb.reporting.ranking import MEASURE, MODEL
from mllmu_nb.reporting.tables import Numbers

MEASURES = (LIKELIHOOD, EXACT, CLOZE)
ACROSS = "text - image"  # the view of a row that holds the difference between the two gaps
ALIGNMENT = {"acc_f": "forget", "acc_r": "retain"}  # metric → set
COLOURS = colormaps["PuOr_r"]


# Matrix


def matrix(known: Numbers) -> pd.DataFrame:
    """The gaps to the oracle on the forget set in MEASURES, for each view asked in: rows of ``tables.differences``.

    Rows of the view ``text - image`` hold the difference between the two gaps of a model, fact by fact: above 0 more is
    left in text, below 0 more is left with the image. ``gate`` is that of the view, and closed for a row of both where
    one of them is; ``collapsed`` says whether the model has.
    """
    gaps = known.differences.query("against == 'oracle' and set == 'forget'")
    gaps = gaps[gaps["view"].isin(VIEWS) & pd.Series(_tuples(gaps, MEASURE), gaps.index).isin(map(_at, MEASURES))]
    items = all_items(known.runs)
    found = pd.concat([gaps, _across(items[items["set"] == "forget"])], ignore_index=True)
    opened = _opened(known)
    gate = []
    for *cell, view in _tuples(found, [*GROUP, *MEASURE, "view"]):
        views = VIEWS if view == ACROSS else [view]
        gate.append(OPEN if all((*cell, one) in opened for one in views) else CLOSED)
    collapsed = [model in known.collapsed for model in _tuples(found, [*GROUP, *MODEL])]
    return found.assign(gate=gate, collapsed=collapsed)


def _opened(known: Numbers) -> set[tuple]:
    """GROUP, measure and view of every open gate."""
    return set(_tuples(known.gates[known.gates["gate"] == OPEN], [*GROUP, *MEASURE, "view"]))


def _across(forget: pd.DataFrame) -> pd.DataFrame:
    """For each model the gap in text minus the gap with the image, on the same facts."""
    rows = []
    for measure in MEASURES:
        facts = paired_facts(forget, measure)
        same = [*GROUP, "forget_draw", "data_seed", "train_seed", "profile", "number"]
        oracle = facts[facts["method"] == "oracle"].drop_duplicates(same)
        pairs = facts[~facts["method"].isin(("oracle", "base"))].merge(oracle, on=same, suffixes=("", "_oracle"))
        for key, part in pairs.groupby([*GROUP, *MODEL], sort=True):
            gaps = (part[view].to_numpy() - part[f"{view}_oracle"].to_numpy() for view in ("text", "image_text"))
            reach = measure.bounds[1] - measure.bounds[0]
            found = statistics.paired_difference(*gaps, part["person"].to_numpy(), bounds=(-reach, reach))
            at = dict(zip([*GROUP, *MODEL], key, strict=True)) | {"against": "oracle", "set": "forget", "view": ACROSS}
            rows.append(at | dict(zip(MEASURE, _at(measure), strict=True)) | vars(found))
    return pd.DataFrame(rows)


def _at(measure: Measure) -> tuple[str, str, str]:
    return measure.task, measure.scoring, measure.metric


def paired_facts(items: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """One row a fact that a run asked in both views, with the two scores in the columns ``image_text`` and ``text``.

    The same question number in both views asks for the same fact of a person; where a set of questions keeps the bare
    fact and the two differ, they are no pair. ``person`` tells people of different data seeds apart.
    """
    asked = items[(items["task"] == measure.task) & (items["scoring"] == measure.scoring)]
    asked = asked.assign(
        number=asked["question_id"].str.rsplit("/", n=1).str[-1],
        person=persons(asked),
        score=asked[measure.column].astype(float),
    ).dropna(subset=["score"])
    same = ["run", "set", "profile", "number"]
    image, text = (asked[asked["view"] == view] for view in VIEWS)
    facts = image.merge(text[[*same, "value", "score"]], on=same, suffixes=("", "_text"))
    told = (facts["value"].fillna("") != "") & (facts["value_text"].fillna("") != "")
    facts = facts[~told | (facts["value"].str.casefold() == facts["value_text"].str.casefold())]
    return facts.rename(columns={"score": "image_text", "score_text": "text"}).reset_index(drop=True)


def leakage_table(known: Numbers) -> tuple[pd.DataFrame, list[tables.Sheet]]:
    """The matrix, a sheet a group of runs: blocks are trained in, columns asked in."""
    found = matrix(known)
    columns = [(measure, view) for measure in MEASURES for view in (*VIEWS, ACROSS)]
    sheets = []
    for key, part in known.groups():
        here = found[found[GROUP].eq(list(key)).all(axis=1)]
        cells = dict(zip(_tuples(here, [*MODEL, "view", *MEASURE]), here.to_dict("records"), strict=True))
        title = f"Cross-modal leakage, gap to the oracle on Forget: {tables.group_title(key, part.runs)}"
        spans = [(measure.label.removesuffix(" %"), 3) for measure in MEASURES]
        heads = ["Image", "Text", "Text − image"] * len(MEASURES)
        sheet = tables.Sheet(title, tables.latex_label("leakage", key), "Method", spans, heads)
        for heading, models in _blocks(here):
            rows = [(m, [cells.get((*m, view, *_at(measure))) for measure, view in columns]) for m in models]
            body = [
                (_named(m, row), [_printed(c, measure) for c, (measure, _) in zip(row, columns, strict=True)])
                for m, row in rows
            ]
            sheet.blocks.append((heading, body))
        sheet.remarks = [
            "Points, ± half the 95 % interval over people. Image, Text: gap to the oracle (0) asked that way. "
            "Text − image: how much more is left in text than with the image, on the same facts.",
            *part.warnings(MEASURES, VIEWS),
        ]
        sheets.append(sheet)
    return found, sheets


def _tuples(frame: pd.DataFrame, columns: Sequence[str]) -> list[tuple]:
    return list(frame[list(columns)].itertuples(index=False, name=None))


def _blocks(here: pd.DataFrame) -> list[tuple[str, list[tuple]]]:
    """Models by what they were trained in; those that train nothing come first, as the measure of the others."""
    models = models_in_order(set(_tuples(here, MODEL)))
    headings = {"none": "Not unlearned"} | {name: f"Unlearned on {told}" for name, told in MODALITIES.items()}
    blocks = [(heading, [m for m in models if m[2] == modality]) for modality, heading in headings.items()]
    return [(heading, found) for heading, found in blocks if found]


def _named(model: tuple[str, str, str], row: list[dict | None]) -> str:
    dead = any(cell and cell["collapsed"] for cell in row)
    return label(*model[:2]) + (f" {tables.COLLAPSED}" if dead else "")


def _printed(cell: dict | None, measure: Measure) -> tuple[str, str]:
    """A cell of a sheet; in brackets behind a closed gate."""
    if not cell:
        return "", "Not asked of the oracle, or of the model."
    text = tables.written(cell["value"], cell["low"], cell["high"], measure, signed=True)
    return tables.bracketed(text, cell["gate"]), ""


# Figure


@figures.styled
def figure(found: pd.DataFrame) -> Figure:
    """The matrix as a heat map: a row a method and what it was trained in, a column a measure and what was asked in.

    ``found``: rows of :func:`leakage_table` of one base model, protocol and forget ratio. Orange is above the oracle,
    purple below, white as the oracle; grey is behind a closed gate. Raises KitError when there is nothing to draw.
    """
    models = [model for _, block in _blocks(found) for model in block]
    models = [model for name in in_order({m[0] for m in models}) for model in models if model[0] == name]
    if not models:
        raise KitError("no model was asked what the oracle was asked about the forget set")
    columns = [(measure, view) for measure in MEASURES for view in VIEWS]
    cells = dict(zip(_tuples(found, [*MODEL, "view", *MEASURE]), found.to_dict("records"), strict=True))
    grid = [[cells.get((*model, view, *_at(measure))) for measure, view in columns] for model in models]
    values = np.array([[100 * cell["value"] if cell else np.nan for cell in row] for row in grid])
    shut = np.array([[cell is None or cell["gate"] == CLOSED for cell in row] for row in grid])
    drawn = Figure(figsize=(figures.COLUMN, 1.0 + 0.3 * len(models)), layout="constrained")
    panel = drawn.subplots()
    panel.set_facecolor(figures.PALE)
    bar = {"location": "bottom", "aspect": 40, "pad": 0.02, "label": "points above (orange) or below the oracle (0)"}
    shown = {"vmin": -100, "vmax": 100, "cmap": COLOURS, "linewidths": 0.8, "cbar_kws": bar}
    seaborn.heatmap(values, mask=shut, ax=panel, **shown)
    for y, x in np.ndindex(values.shape):
        shade = figures.PALE if shut[y, x] else COLOURS((values[y, x] + 100) / 200)
        ink = "white" if relative_luminance(shade) < 0.21 else figures.INK  # whichever has more contrast
        panel.text(x + 0.5, y + 0.5, _text(grid[y][x]), ha="center", va="center", fontsize=figures.SMALL, color=ink)
    _frame(panel, models, grid)
    return drawn


def _text(cell: dict | None) -> str:
    """The gap over half the width of its interval, in points."""
    if not cell:
        return "–"
    return f"{100 * cell['value']:+.0f}\n± {50 * (cell['high'] - cell['low']):.0f}".replace("-", "−")


def _frame(panel: Axes, models: list[tuple], grid: list[list[dict | None]]) -> None:
    """Names of rows and columns, and lines between methods and between measures."""
    names = []
    for (method, variant, modality), row in zip(models, grid, strict=True):
        dead = f" {tables.COLLAPSED}" if any(cell and cell["collapsed"] for cell in row) else ""
        names.append(label(method, variant) + dead + (f"\n{MODALITIES[modality]}" if modality in MODALITIES else ""))
    panel.set_yticks(np.arange(len(models)) + 0.5, names, rotation=0)
    panel.set_xticks(np.arange(2 * len(MEASURES)) + 0.5, ["image", "text"] * len(MEASURES), rotation=0)
    panel.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    above = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
    for number, measure in enumerate(MEASURES):
        panel.annotate(measure.label.removesuffix(" %"), (2 * number + 1, 1), xytext=(0, 15), **above)
        if number:
            panel.axvline(2 * number, color=figures.INK, linewidth=0.8)
    for row in range(1, len(models)):
        if models[row][0] != models[row - 1][0]:
            panel.axhline(row, color=figures.INK, linewidth=0.8)


# Alignment


def alignment(items: pd.DataFrame, measures: Sequence[Measure] = MEASURES) -> pd.DataFrame:
    """AccF (both wrong, forget set) and AccR (both right, retain set) of every model, for each measure.

    Columns as those of ``scores.csv``, with ``metric`` ``acc_f`` or ``acc_r``, ``of`` the measure's own metric, and
    ``n_items`` the number of facts asked in both views; draws and seeds are pooled. Intervals are over people.
    """
    rows = []
    for measure, (metric, name) in itertools.product(measures, ALIGNMENT.items()):
        facts = paired_facts(items[items["set"] == name], measure)
        right = facts[list(VIEWS)] >= 0.5
        facts = facts.assign(agree=(~right if metric == "acc_f" else right).all(axis=1).astype(float))
        for key, part in facts.groupby([*GROUP, *MODEL], sort=True):
            found = statistics.interval(part["agree"], part["person"])
            at = dict(zip([*GROUP, *MODEL], key, strict=True)) | {"set": name, "task": measure.task}
            at |= {"scoring": measure.scoring, "of": measure.metric, "metric": metric}
            rows.append(at | vars(found))
    columns = [*GROUP, *MODEL, "set", "task", "scoring", "of", "metric", "value", "low", "high", "n_items"]
    return pd.DataFrame(rows, columns=[*columns, "n_profiles"])


def alignment_table(known: Numbers) -> tuple[pd.DataFrame, list[tables.Sheet]]:
    """AccF and AccR, a sheet a group of runs; AccF in brackets where its ``gate`` is closed in a view."""
    found, opened = alignment(all_items(known.runs)), _opened(known)
    asked = _tuples(found, [*GROUP, "task", "scoring", "of"])
    gate = pd.Series(
        [OPEN if all((*cell, view) in opened for view in VIEWS) else CLOSED for cell in asked], found.index
    )
    found["gate"] = gate.where(found["metric"] == "acc_f", "")
    found = found.assign(collapsed=[model in known.collapsed for model in _tuples(found, [*GROUP, *MODEL])])
    columns = [(metric, measure) for metric in ALIGNMENT for measure in MEASURES]
    sheets = []
    for key, part in known.groups():
        here = found[found[GROUP].eq(list(key)).all(axis=1)]
        where = [*MODEL, "metric", "task", "scoring", "of"]
        cells = dict(zip(_tuples(here, where), here.to_dict("records"), strict=True))
        title = f"Alignment of the two views, fact by fact: {tables.group_title(key, part.runs)}"
        spans = [("Forget: both wrong (AccF)", len(MEASURES)), ("Retain: both right (AccR ↑)", len(MEASURES))]
        heads = [measure.label for _, measure in columns]
        sheet = tables.Sheet(title, tables.latex_label("alignment", key), "Method", spans, heads)
        for heading, models in _blocks(here):
            body = []
            for model in models:
                row = [(cells.get((*model, metric, *_at(measure))), measure) for metric, measure in columns]
                body.append((_named(model, [cell for cell, _ in row]), [_share(*pair) for pair in row]))
            sheet.blocks.append((heading, body))
        sheet.remarks = [
            "± is half the 95 % interval over people. A fact is asked once with the image and once in text. The oracle "
            "guesses some facts rightly: AccF should come up to its value, and AccR stay at vanilla's.",
            *_behind(here),
            *health.told(part.collapsed),
        ]
        sheets.append(sheet)
    return found, sheets


def _behind(here: pd.DataFrame) -> list[str]:
    """What stands below an alignment table in which AccF has brackets."""
    shut = set(_tuples(here[here["gate"] == CLOSED], ["task", "scoring", "of"]))
    names = [measure.label.removesuffix(" %") for measure in MEASURES if _at(measure) in shut]
    if not names:
        return []
    return [
        "In brackets: gate closed with the image or in text, so nothing shows that there was something to forget, and "
        f"AccF shows no forgetting: {', '.join(names)}."
    ]


def _share(cell: dict | None, measure: Measure) -> tuple[str, str]:
    if not cell:
        return "", "No fact was asked in both views."
    text = tables.written(cell["value"], cell["low"], cell["high"], measure)
    return tables.bracketed(text, cell["gate"]), ""


# Files

CAPTION = (
    "Gap to the oracle on the forget set in points, ± half the 95 % interval over people: rows by what was trained in, "
    "columns by what was asked in. White: as the oracle; grey: vanilla is not shown to be above the oracle "
    "there."
)


def write_all(scale: str, known: Numbers, out: Path, pictures: Path) -> figures.Written:
    """Write ``table_leakage`` and ``table_alignment`` into ``out``, a heat map a group of runs into ``pictures``."""
    found, sheets = leakage_table(known)
    made = {"table_leakage": (found, sheets), "table_alignment": alignment_table(known)}
    written = [figures.Written(tables.write_sheets(made, scale, out), [])]
    for key, here in found.groupby(GROUP, sort=True):
        stem = pictures / tables.latex_label("leakage", key).replace("-", "_")
        written.append(figures.put(stem, CAPTION, partial(figure, here)))
    return figures.together(written)
