"""What more than one notebook shows: pictures, small tables and answers, made from the files of runs or from profiles.

Nothing here depends on when or where it is made, so a notebook that is executed again keeps its outputs.
"""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pandas as pd
import PIL.Image
import seaborn
from IPython.display import HTML, Image, Markdown
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mllmu_nb import provenance
from mllmu_nb.config import Config, Recipe
from mllmu_nb.data.schema import Population
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import statistics
from mllmu_nb.reporting import (
    LETTER,
    LIKELIHOOD,
    REFERENCES,
    ROUGE_L,
    SETS,
    VIEWS,
    Measure,
    Run,
    all_items,
    figures,
    gates,
    label,
    models_in_order,
    read_run,
    tables,
)
from mllmu_nb.reporting.report import show_answer_html

DPI = 110
CHANCE = 25  # per cent, of four options


def line(config: Config) -> str:
    """What a notebook's results are of: run, scale and versions, and nothing that passes."""
    return f"run {config.run_id}, scale {config.scale}\n{versions()}"


def versions() -> str:
    """The versions of all that takes part."""
    return textwrap.fill(", ".join(f"{name} {version}" for name, version in provenance.versions().items()), 110)


def picture(figure: Figure, alt: str = "") -> Image:
    """A figure as a notebook keeps it: a PNG that has the same bytes whenever it is drawn."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.05)
    # 256 colours are plenty for a chart, and a notebook is read in a browser
    PIL.Image.open(full).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE).save(small, "PNG", optimize=True)
    return Image(small.getvalue(), alt=alt or None)


def drawn(draw: Callable[[], Figure], alt: str = "") -> Image | Markdown:
    """The figure that ``draw`` makes, or, where its runs are not there, the sentence that says so."""
    try:
        return picture(draw(), alt)
    except KitError as reason:
        return Markdown(f"*Not drawn: {reason}.*")


def sheets(made: tuple[pd.DataFrame, list[tables.Sheet]]) -> Markdown:
    """The printed tables among what a function of ``tables`` has made."""
    return Markdown("\n".join(sheet.markdown() for sheet in made[1]))


def text(written: str) -> HTML:
    """A prompt or an answer, shown as it is written."""
    return HTML(f'<pre style="white-space:pre-wrap">{html.escape(written)}</pre>')


def gallery(pictures: Mapping[str, bytes], width: int = 110) -> HTML:
    """PNG pictures in a row, each above its name."""
    cells = [
        f'<figure style="display:inline-block;margin:4px 8px;width:{width}px">{_img(name, data, width)}'
        f"<figcaption><small>{html.escape(name)}</small></figcaption></figure>"
        for name, data in pictures.items()
    ]
    return HTML("".join(cells))


def recipe(numbers: Recipe) -> HTML:
    """How a model is trained, a number a row, and who says so."""
    return table(pd.DataFrame({"value": {name: str(value) for name, value in asdict(numbers).items()}}))


def table(frame: pd.DataFrame) -> HTML:
    """A table whose texts are not cut short."""
    with pd.option_context("display.max_colwidth", None):
        return HTML(frame.to_html())


def runs(folders: Iterable[Path]) -> list[Run]:
    """The runs in these folders, in the order of the tables."""
    found = {(one["method"], one["variant"], one["modality"]): one for one in map(read_run, folders)}
    return [found[model] for model in models_in_order(found)]


def answers(known: Population, found: Sequence[Run]) -> HTML:
    """What one forgotten and one kept person is answered by each of the runs, vanilla among them, in both views.

    The people are those of the before-and-after figure: not picked for effect, the first that vanilla answers rightly.
    """
    vanilla = next((run for run in found if run["method"] == "vanilla"), None)
    if vanilla is None:
        raise KitError("answers are shown beside vanilla's: its run is missing")
    told = []
    for heading, set_name in (("forgotten", "forget"), ("kept", "retain")):
        person, asked = figures.example(vanilla, set_name)
        told.append(f"<h4>{html.escape(known.profiles[person].name)}, to be {heading}</h4>")
        for question in asked:
            picture = known.profiles[person].portrait if question["view"] == "image_text" else b""
            asks = f"{html.escape(question['question'])}<br><small>truth: {html.escape(question['value'])}</small>"
            told.append(f'<div style="margin-top:12px">{_img("portrait", picture, 96) if picture else ""} {asks}</div>')
            for run in found:
                mine = run.items[(run.items["question_id"] == question["question_id"]) & (run.items["set"] == set_name)]
                right = bool(mine["exact"].iloc[0] >= 0.5)
                told.append(show_answer_html(name(run), mine["answer"].iloc[0], right=right))
    return HTML("".join(told))


@figures.styled
def four_sets(found: Sequence[Run], measures: Sequence[Measure] = (LIKELIHOOD, LETTER, ROUGE_L)) -> Figure:
    """Bars of several runs on the four sets: a row a view, a column a measure, 95 % intervals over people, in per cent.

    Hollow bars are of models unlearned on text only; the dotted line of a choice among four is chance. Where vanilla
    and the oracle are among the runs, forget and test bars of a measure whose gate is closed are grey.
    """
    if not found:
        raise KitError("there is no run to show")
    known = gates.of(tables.differences(all_items(list(found)), measures))
    closed = gates.shut(known, measures, VIEWS)
    figure = Figure(figsize=(figures.PAGE, 3.9), layout="constrained")
    axes = figure.subplots(len(VIEWS), len(measures), sharex=True, sharey=True, squeeze=False)
    width = 0.84 / len(found)
    for (row, (view, view_label)), (column, measure) in product(enumerate(VIEWS.items()), enumerate(measures)):
        panel = axes[row][column]
        for (place, set_name), (number, run) in product(enumerate(SETS), enumerate(found)):
            cell = statistics.interval(*_values(run, set_name, view, measure), bounds=measure.bounds)
            if not cell.n_items:
                continue
            x = place + (number - (len(found) - 1) / 2) * width
            value, low, high = (100 * end for end in (cell.value, cell.low, cell.high))
            face = _face(run)
            if set_name in gates.GATED and (measure, view) in closed:
                face = {part: "white" if colour == "white" else figures.CLOSED for part, colour in face.items()}
            panel.bar(x, value, 0.9 * width, linewidth=0.8, zorder=2, **face)
            ends = {"yerr": [[value - low], [high - value]], "ecolor": figures.INK}
            panel.errorbar(x, value, **ends | {"ecolor": "white"}, fmt="none", elinewidth=2, zorder=3)
            panel.errorbar(x, value, **ends, fmt="none", elinewidth=0.7, capsize=1.2, capthick=0.6, zorder=4)
        if measure.task == "classification":
            panel.axhline(CHANCE, color=figures.GREY, linewidth=0.7, linestyle=":", zorder=4)
        panel.set_xticks(range(len(SETS)), SETS.values())
        panel.tick_params(axis="x", length=0)
        panel.set_ylim(0, 105)
        if row == 0:
            panel.set_title(measure.label.removesuffix(" %"), fontsize=figures.NORMAL)
        if column == 0:
            panel.set_ylabel(f"Asked with {view_label}, %")
    seaborn.despine(figure, bottom=True)
    once = {name(run): Patch(linewidth=0.8, **_face(run)) for run in found}
    figure.legend(once.values(), once, loc="outside upper center", ncols=len(once), frameon=False)
    if closed:
        below = textwrap.fill(gates.told(known, measures, VIEWS, "In grey"), 110)
        figure.supxlabel(below, fontsize=figures.SMALL, color=figures.GREY, x=0.01, ha="left")
    return figure


@figures.styled
def curves(x: Sequence[float], lines: Mapping[str, Sequence[float]], xlabel: str, ylabel: str) -> Figure:
    """A few lines over one axis, each named at its end."""
    figure = Figure(figsize=(figures.PAGE * 0.72, 2.5), layout="constrained")
    axes = figure.subplots()
    palette = [figures.look(name).colour for name in ("ga", "npo", "kl_min", "grad_diff")]
    for colour, (name, y) in zip(palette, lines.items(), strict=False):
        axes.plot(x, y, color=colour)
        axes.annotate(name, (x[-1], y[-1]), (4, 0), textcoords="offset points", va="center", color=colour)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    seaborn.despine(figure)
    return figure


def changes(found: Sequence[Run], against: str = "vanilla", measure: Measure = LIKELIHOOD) -> pd.DataFrame:
    """What differs from ``against``, question by question, in percentage points with the 95 % interval over people.

    The last column says what the interval allows: a difference is claimed only where it excludes 0. Without a run of
    ``against``, as when a sweep has not come to it yet, there is no row.
    """
    table = tables.differences(all_items(list(found)), [measure])
    table = table[(table["against"] == against) & table["view"].isin(list(VIEWS))]
    if not table["method"].isin(REFERENCES).all():
        table = table[~table["method"].isin(REFERENCES)]
    rows = []
    for one in table.to_dict("records"):
        value, low, high = (100 * one[name] for name in ("value", "low", "high"))
        at = {"method": label(one["method"], one["variant"], one["modality"])}
        at |= {"set": SETS[one["set"]], "asked with": VIEWS[one["view"]]}
        claim = "lower" if high < 0 else "higher" if low > 0 else "no difference shown"
        rows.append(at | {"points": value, "low": low, "high": high, "people": one["n_profiles"], "reads as": claim})
    order = {name: place for place, name in enumerate([*SETS.values(), *VIEWS.values()])}
    keys = ["method", "set", "asked with"]
    frame = pd.DataFrame(rows, columns=[*keys, "points", "low", "high", "people", "reads as"]).round(1)
    frame = frame.sort_values(["set", "asked with"], key=lambda column: column.map(order), kind="stable")
    return frame.set_index(keys)


def _img(alt: str, data: bytes, width: int) -> str:
    return (
        f'<img alt="{html.escape(alt)}" width="{width}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
    )


def _values(run: Run, set_name: str, view: str, measure: Measure) -> tuple[pd.Series, pd.Series]:
    items = run.items
    same = (items["set"] == set_name) & (items["view"] == view)
    same &= (items["task"] == measure.task) & (items["scoring"] == measure.scoring)
    return items.loc[same, measure.column].astype(float), items.loc[same, "profile"]


def name(run: Run) -> str:
    """The model of a run as tables and figures call it."""
    return label(run["method"], run["variant"], run["modality"])


def _face(run: Run) -> dict[str, str]:
    colour = figures.look(run["method"]).colour
    return {"facecolor": "white" if run["modality"] == "unimodal" else colour, "edgecolor": colour}
