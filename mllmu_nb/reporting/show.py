"""Pictures, small tables and answers that more than one notebook shows. Nothing here depends on when or where it is
made, so a notebook that is executed again keeps its outputs. What a model wrote is shown as text, never as markup or
mathematics."""

import base64
import html
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mllmu_nb import paths, provenance
from mllmu_nb.config import Config, sources
from mllmu_nb.data import portraits
from mllmu_nb.data.schema import SETS, Population
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import figures, plots
from mllmu_nb.reporting.grid import number_text
from mllmu_nb.reporting.runs import (
    COMMITTED,
    OWN,
    REFERENCES,
    Run,
    Scores,
    made_of,
    models_in_order,
    read_run,
    which_results,
)
from mllmu_nb.reporting.sheet import Sheet
from mllmu_nb.scoring.frames import LIKELIHOOD_KEY, VIEWS
from mllmu_nb.scoring.health import CHANCE
from mllmu_nb.scoring.registry import by_key
from mllmu_nb.scoring.score import item_scores
from mllmu_nb.stages import RECORD, read_json
from mllmu_nb.unlearning import METHODS, Method, get

DPI = 110
LETTER_KEY = ("classification", "letter", "accuracy")
KNOWN = [LETTER_KEY, LIKELIHOOD_KEY, ("generation", "", "exact"), ("cloze", "", "accuracy")]
BARS = [LIKELIHOOD_KEY, LETTER_KEY, ("generation", "", "rougeL")]
# Text of these classes is not read as mathematics: the first tells MathJax 3 (JupyterLab), the second MathJax 2
# (nbconvert). Otherwise "$45,000 or $52,000" would become a formula.
NO_MATH = "mathjax_ignore tex2jax_ignore"


# -- text and pictures ----------------------------------------------------------------------------------------------


def line(config: Config) -> str:
    """The run, scale and versions of a notebook's results."""
    return f"run {config.run_id}, scale {config.scale}\n{versions()}"


def versions() -> str:
    """The versions of everything that decides results."""
    return textwrap.fill(", ".join(f"{name} {version}" for name, version in provenance.versions().items()), 110)


@plots.styled
def picture(figure: Figure, alt: str = "") -> HTML:
    """A figure as a notebook keeps it: a small PNG, with ``alt`` or the figure's own alt text."""
    return image(plots.png(figure, dpi=DPI, bbox_inches="tight", pad_inches=0.05), alt or str(figure.get_label()))


def image(data: bytes, alt: str, size: str = "") -> HTML:
    """A PNG or GIF with its alt text, as HTML: JupyterLab does not show the alt text of an output of type image/png."""
    kind = "gif" if data.startswith(b"GIF") else "png"
    return HTML(f'<img alt="{escaped(alt)}"{size} src="data:image/{kind};base64,{base64.b64encode(data).decode()}">')


def drawn(draw: Callable[[], Figure], alt: str = "") -> HTML | Markdown:
    """The figure that ``draw`` makes or, if its runs are missing, a sentence that says so."""
    try:
        return picture(draw(), alt)
    except KitError as reason:
        return Markdown(f"*Not drawn: {reason}.*")


def tables(sheets: Iterable[Sheet]) -> Markdown:
    """Printed tables (of ``tables.sheets``)."""
    return Markdown("\n".join(sheet.markdown() for sheet in sheets))


def visible(written: str) -> str:
    """Replace characters that cannot be seen, such as control characters or those that turn the direction of writing,
    by their codes."""
    return "".join(c if c.isprintable() or c in "\n\t\u00a0" else ascii(c)[1:-1] for c in written)


def escaped(written: str) -> str:
    """HTML that shows a text as it is written."""
    return html.escape(visible(written))


def text(written: str) -> HTML:
    """A prompt or an answer, shown as it is written."""
    return HTML(f'<pre class="{NO_MATH}" style="white-space:pre-wrap">{escaped(written)}</pre>')


def table(frame: pd.DataFrame) -> HTML:
    """A table whose texts are not cut short."""
    with pd.option_context("display.max_colwidth", None):
        return HTML(table_html(frame))


def table_html(frame: pd.DataFrame, **how: Any) -> str:
    """A table as HTML that shows texts as they are written; ``how`` is as in ``DataFrame.to_html``."""
    return visible(frame.to_html(classes=NO_MATH, **how))


def gallery(pictures: Mapping[str, bytes]) -> HTML:
    """PNG or JPEG pictures in a row, each above its name."""
    cells = [
        f'<figure class="{NO_MATH}" style="display:inline-block;margin:4px 8px;width:110px">{_img(name, data, 110)}'
        f"<figcaption><small>{escaped(name)}</small></figcaption></figure>"
        for name, data in pictures.items()
    ]
    return HTML("".join(cells))


def heading_html(written: str) -> str:
    """The title above answers, as HTML."""
    return f'<h4 class="{NO_MATH}">{escaped(written)}</h4>'


def answer_html(question: str, answer: str, truth: str = "", right: bool | None = None, image: bytes = b"") -> str:
    """One question and its answer as HTML."""
    colour, sign = {True: (plots.RIGHT, "✓ "), False: (plots.WRONG, "✗ "), None: ("inherit", "")}[right]
    below = f"<div><small>truth: {escaped(truth)}</small></div>" if truth else ""
    shown = _img("portrait", image, 96) if image else ""
    return _answer(question, f"{sign}{answer or '(nothing)'}", colour, shown, below)


def _answer(above: str, answer: str, colour: str, beside: str = "", below: str = "") -> str:
    lines = f'<div>{escaped(above)}</div><div style="color:{colour}">{escaped(answer)}</div>{below}'
    return f'<div class="{NO_MATH}" style="display:flex;gap:12px;margin:6px 0">{beside}<div>{lines}</div></div>'


def _img(alt: str, data: bytes, width: int) -> str:
    return image(portraits.to_png(portraits.large(data, 2 * width)), alt, f' width="{width}"').data


def recipe(config: Config) -> HTML:
    """How the model of a configuration is trained: length, batch and rate, and below them a fold-out table with every
    setting and its source. Of steps and epochs, it shows only the one that sets the length."""
    kind, known = "unlearning" if config.trains else "training", sources(config)
    chosen = getattr(config, kind)
    rows = {name: (str(value), known[f"{kind}.{name}"]) for name, value in chosen.numbers().items()}
    del rows["epochs" if chosen.steps else "steps"]
    rows |= {name: (str(value), known[f"unlearning.{name}"]) for name, value in config.settings.items()}
    length = f"{chosen.steps} steps" if chosen.steps else f"{chosen.epochs:g} epochs"
    length += f", batches of {chosen.batch_size}, learning rate {chosen.lr:g}; every setting and its source"
    folded = table(pd.DataFrame.from_dict(rows, orient="index", columns=["value", "source"])).data
    return HTML(f"<details><summary>{length}</summary>{folded}</details>")


def method(config: Config) -> Method:
    """Print the code of the method that a run of ``config`` uses, and return the method in its paper's form, which a
    notebook's equation and hand computation are about. It is the run's own unless the run uses another variant."""
    own = config.objective
    print(inspect.getsource(type(own)))
    if own.variant == "canonical":
        return own
    print(f"This run's form ({own.variant}); the equation, and what is computed by hand, are of the method's paper.")
    return get(own.name)


# -- runs -----------------------------------------------------------------------------------------------------------


def runs(folders: Iterable[Path]) -> list[Run]:
    """The runs in these folders, in the order of the tables."""
    by_place = {(*run.model, run.id): run for run in map(read_run, folders)}
    return [by_place[place] for place in models_in_order(by_place)]


def results(scale: str, committed: bool = False) -> Scores:
    """Return the scores of runs, and print whose they are: your own if there are any, else (or with ``committed``)
    those that come with the kit."""
    folder, source = (paths.reference(), COMMITTED) if committed else which_results(scale)
    scores = Scores.read(folder)
    other = "; those that come with the kit: write committed=True" if source == OWN and scale == "miniature" else ""
    count = len(scores.runs)
    print(f"{source}: {count} model{'s' * (count != 1)}{other}\n{scores.made_of}")
    return scores


def reference() -> Path:
    """Return the folder of the results that come with the kit, and print what these are made of."""
    records = [read_json(file) for file in sorted(paths.runs(paths.reference()).glob(f"*/{RECORD}"))]
    print(f"{COMMITTED}: {len(records)} models\n{made_of(records)}")
    return paths.reference()


def answers(people: Population, some: Sequence[Run]) -> HTML | Markdown:
    """Show what each run, with vanilla among them, answers about one forgotten and one kept person, in both views.
    Without vanilla, which may not exist yet at paper scale, a sentence says so. People, signs and colours are as in
    :func:`figures.before_after`."""
    vanilla = next((run for run in some if run["method"] == "vanilla"), None)
    if vanilla is None:
        return Markdown("*Not shown: answers stand beside vanilla's, and its run is not made yet.*")
    free = pd.concat([run.answers.query("task == 'generation'") for run in some])
    lines, scored = [], item_scores(free)  # together: vanilla's fluency sets the threshold of gibberish
    for heading, set_name in (("forgotten", "forget"), ("kept", "retain")):
        questions = figures.example(vanilla.items, set_name)
        person = people.profiles[questions[0]["profile"]]
        lines.append(heading_html(f"{person.name}, to be {heading}"))
        for question in questions:
            portrait = _img("portrait", person.portrait, 96) if question["view"] == "image_text" else ""
            asked = f"{escaped(question['question'])}<br><small>truth: {escaped(question['value'])}</small>"
            lines.append(f'<div class="{NO_MATH}" style="margin-top:12px">{portrait} {asked}</div>')
            for run in some:
                answer, colour = figures.signed_answer(scored[scored["run"] == run.id], question)
                lines.append(_answer(run.label, answer, colour))
    return HTML("".join([*lines, f"<p><small>{figures.SIGNS_OF_ANSWERS}</small></p>"]))


@plots.styled
def four_sets(some: Sequence[Run]) -> Figure:
    """A good method brings Forget and Test down to the oracle, and nothing else. Bars of several runs on the four sets:
    one row per view, one column per metric, 95 % intervals over people, in per cent.

    A hollow mark means unlearned on text only; the dotted line of a choice among four is chance. If vanilla and the
    oracle are among the runs, forget and test bars of a metric are grey if its gate is closed.
    """
    scores, wanted = Scores.of(some, taught=False), [by_key()[key] for key in BARS]
    levels = figures.rows(scores, wanted, list(SETS), list(VIEWS), percent=True)
    levels = levels.assign(asked=levels["view_label"].cat.rename_categories("Asked with {}, %".format))
    sets, names = plots.values(levels, "set_label"), plots.values(levels, "name")
    width = 0.84 / len(names)
    how = {"size": (plots.PAGE, 3.6), "below": figures.notes(scores, levels), "sharex": True, "sharey": True}
    figure, panels = plots.facets(levels, "asked", "metric_label", title=f"{figures.title(four_sets)}\n", **how)
    for panel, here in panels:
        for row in here.to_dict("records"):
            place = sets.index(row["set_label"]) + (names.index(row["name"]) - (len(names) - 1) / 2) * width
            colour = row["look"].colour
            panel.bar(place, row["value"], 0.9 * width, facecolor="white", edgecolor=colour, linewidth=0.9)
            plots.dots(panel, place, row["dots"], colour)
            plots.mark(panel, place, row["value"], row["look"], along=(row["low"], row["high"]))
        panel.axhline(0, color=plots.INK, linewidth=0.7, zorder=1)
        if (here["task"] == "classification").any():
            panel.axhline(100 * CHANCE, color=plots.GREY, linewidth=0.7, linestyle=":", zorder=4)
        panel.grid(axis="y")
        panel.set_xticks(range(len(sets)), sets)
        panel.tick_params(axis="x", length=0)
    seaborn.despine(figure, bottom=True)
    figure.axes[0].set_ylim(0, 105)
    models = dict(zip(levels["name"], levels["model"], strict=True))
    points = {name: plots.point(plots.look(*models[name][:3])) for name in names}
    plots.legend(figure, {name: Line2D([], [], linestyle="none", **point) for name, point in points.items()})
    return figure


@plots.styled
def curves(x: Sequence[float], lines: Mapping[str, Sequence[float]], xlabel: str, ylabel: str, title: str) -> Figure:
    """A few lines over one axis, each named at its end, below a ``title``. A line has the colour of the method with
    which its name begins; the second line of a method is dashed."""
    figure, [[panel]] = plots.panels(1, 1, (plots.PAGE * 0.72, 2.5), title=title)
    ends: list[plots.End] = []
    for name, y in lines.items():
        colour = next((one.colour for one in METHODS.values() if name.startswith(one.label)), plots.INK)
        dashes = "--" if colour in {end.colour for end in ends} else "-"
        panel.plot(x, y, color=colour, linestyle=dashes)
        ends.append(plots.End(panel, y[-1], name, colour))
    panel.set(xlabel=xlabel, ylabel=ylabel)
    panel.set_xmargin(0.02)
    seaborn.despine(figure)
    plots.name_ends(figure, ends)
    return figure


def _rows(scores: Scores, keys: Sequence[tuple], sets: Sequence[str] = SETS, against: str = "") -> pd.DataFrame:
    """:func:`figures.rows` of the metrics with these keys in both views, in per cent or percentage points."""
    return figures.rows(scores, [by_key()[key] for key in keys], sets, VIEWS, against, percent=True)


@plots.styled
def against_vanilla(some: Sequence[Run]) -> Figure:
    """Forget should reach the oracle (star), Retain should stay at 0. Each model minus vanilla, choice by likelihood,
    question by question; 95 % intervals over people."""
    scores = Scores.of(some, taught=False)
    cells = _rows(scores, [LIKELIHOOD_KEY], ("forget", "retain"), "vanilla")
    if cells.empty:
        raise KitError("changes need a run of vanilla and another run")
    cells = cells.assign(asked="asked with " + cells["view_label"].astype(str))
    where = {"y": "name", "row": "asked", "column": "set_label"}
    texts = {"title": figures.title(against_vanilla), "unit": "change from vanilla, points"}
    return plots.forest(cells, **where, **texts, below=figures.notes(scores, cells))


def changes(some: Sequence[Run], references: bool = False) -> pd.DataFrame:
    """Return each model's difference to vanilla in the choice by likelihood, question by question, in percentage points
    with the 95 % interval over people. Oracle and base are included with ``references``, or if no model is unlearned.

    The last column reads the interval: it names a difference only if the interval excludes 0. Without a run of vanilla
    (a sweep may not have made it yet), there is no row.
    """
    cells = _rows(Scores.of(some, taught=False), [LIKELIHOOD_KEY], against="vanilla")
    unlearned = ~cells["method"].isin(REFERENCES)
    cells = cells[unlearned] if unlearned.any() and not references else cells
    columns = {"method": cells["name"], "set": cells["set_label"], "asked with": cells["view_label"]}
    columns |= {"points": cells["value"], "low": cells["low"], "high": cells["high"], "people": cells["n_profiles"]}
    columns["reads as"] = np.select([cells["high"] < 0, cells["low"] > 0], ["lower", "higher"], "no difference shown")
    return pd.DataFrame(columns).astype(dict.fromkeys([*columns][:3], str)).round(1).set_index(list(columns)[:3])


def known(some: Sequence[Run]) -> pd.DataFrame:
    """The right answers of each model: per cent with 95 % limits (over people, and over replicates if there are
    several), one row per model, set and way of asking, one column per task."""
    cells = _rows(Scores.of(some, taught=False), KNOWN)
    limits = [number_text(cell, times=1) for cell in cells.to_dict("records")]
    names = {"name": "model", "set_label": "set", "view_label": "asked with", "metric_label": "task"}
    table = cells[list(names)].rename(columns=names).assign(limits=limits)
    return table.pivot(index=list(names.values())[:3], columns="task", values="limits").dropna(how="all")
