"""The figures, drawn from a run's files: each function returns a matplotlib Figure, ``save`` writes it.

Widths are those of a two-column paper (3.4 in a column, 7 in the page) and no text is smaller than 7 pt. Colours are
Okabe and Ito's, safe for colour-blind readers; a method has the same colour and marker everywhere, and a filled mark
means unlearned on image + text, a hollow one on text only. All bars are 95 % intervals over people. What stands behind
a closed gate is drawn in grey and a collapsed model has ‡ behind its name; a line below the figure says why.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import text_to_path
from PIL import Image

from mllmu_nb.data.schema import ATTRIBUTES, Profile
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import (
    CLOZE,
    LETTER,
    LIKELIHOOD,
    MAIN,
    MODALITIES,
    ROUGE_L,
    SETS,
    VIEWS,
    Measure,
    Run,
    gates,
    health,
    in_order,
    label,
    models_in_order,
)
from mllmu_nb.reporting.tables import COLLAPSED, VERDICTS, Numbers, verdict

COLUMN, PAGE = 3.4, 7.0
SMALL, NORMAL = 7.0, 8.0
INK, GREY, PALE = "#222222", "#6b6b6b", "#d9d9d9"
CLOSED = "#b0b0b0"  # what stands behind a closed gate; the oracle's grey is darker
RIGHT, WRONG = "#0072B2", "#C04F00"  # Okabe-Ito blue and vermillion, the latter darkened to be read as text
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "font.size": NORMAL,
    "axes.titlesize": NORMAL,
    "axes.labelsize": SMALL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.unicode_minus": True,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}


class Look(NamedTuple):
    """How a method is drawn wherever it appears."""

    colour: str
    marker: str


LOOKS = {
    "base": Look("#56B4E9", "X"),
    "vanilla": Look("#000000", "o"),
    "ga": Look("#D55E00", "s"),
    "grad_diff": Look("#0072B2", "^"),
    "kl_min": Look("#009E73", "D"),
    "npo": Look("#CC79A7", "v"),
    "prompting": Look("#E69F00", "P"),
    "oracle": Look("#6b6b6b", "*"),
}
NEWCOMER = Look("#8c6d1f", "h")  # a method that was added and has no line above yet


def look(method: str) -> Look:
    """The colour and marker of a method."""
    return LOOKS.get(method, NEWCOMER)


def styled(draw):
    """Draw under the house style, whatever the caller's settings are."""

    @functools.wraps(draw)
    def within(*arguments, **named):
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return draw(*arguments, **named)

    return within


@styled
def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem``.png (200 dpi) and ``stem``.pdf without dates, so the same figure gives the same bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        paths.append(stem.with_name(f"{stem.name}.{kind}"))
        figure.savefig(paths[-1], metadata=metadata)
    return paths


class Written(NamedTuple):
    """The files of some figures and the lines that ``captions.md`` has on them."""

    paths: list[Path]
    captions: list[str]


def put(stem: Path, caption: str, make: Callable[[], Figure]) -> Written:
    """``save`` the figure that ``make`` draws; where it cannot be drawn (KitError), the line says why."""
    try:
        return Written(save(make(), stem), [f"- `{stem.name}`: {caption}"])
    except KitError as reason:
        return Written([], [f"- `{stem.name}` is not drawn: {reason}."])


def together(parts: Iterable[Written]) -> Written:
    """Several as one."""
    parts = list(parts)
    return Written([p for part in parts for p in part.paths], [line for part in parts for line in part.captions])


def _settle(figure: Figure) -> None:
    """Lay the panels out once and for all, so that what is placed beside them afterwards stays there."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


# Text that fits


@functools.lru_cache(maxsize=4096)
def width_of(text: str, size: float = SMALL, weight: str = "normal") -> float:
    """Width of a line of text in inches."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, False)[0] / 72


def printable(text: str) -> str:
    """One line of characters the font has; what it lacks (a model may write anything) is shown as a box."""
    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in " ".join(str(text).split()))


def wrap(text: str, width: float, size: float = SMALL, weight: str = "normal", most: int = 3) -> list[str]:
    """Break a text into at most ``most`` lines no wider than ``width`` inches; what is cut ends in an ellipsis."""

    def fits(line: str) -> bool:
        return width_of(line, size, weight) <= width

    lines, line = [], ""
    for word in printable(text).split(" "):
        while word:
            longer = f"{line} {word}" if line else word
            if fits(longer):
                line, word = longer, ""
            elif line:
                lines.append(line)
                line = ""
            else:
                head = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or fits(word[:n]))
                lines.append(word[:head])
                word = word[head:]
        if len(lines) > most:
            break
    lines += [line] if line else []
    if len(lines) > most:
        last = lines[most - 1]
        while last and not fits(last + "…"):
            last = last[:-1]
        lines = [*lines[: most - 1], last.rstrip() + "…"]
    return lines or [""]


def spread(wanted: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Places nearest to those wanted (least squares) that are ``gap`` apart, kept between ``low`` and ``high``."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    runs: list[tuple[float, int]] = []  # pooled neighbours: mean of (wanted − rank · gap), count
    for rank, index in enumerate(order):
        mean, count = wanted[index] - rank * gap, 1
        while runs and runs[-1][0] > mean:
            before, many = runs.pop()
            mean, count = (mean * count + before * many) / (count + many), count + many
        runs.append((mean, count))
    flat = [mean for mean, count in runs for _ in range(count)]
    top = high - (len(wanted) - 1) * gap
    placed = [0.0] * len(wanted)
    for rank, index in enumerate(order):
        placed[index] = max(low, min(flat[rank], top)) + rank * gap
    return placed


def _page(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty page measured in inches from its upper left corner."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


LINE = 1.32 * SMALL / 72  # inches from one line of small text to the next


def _write(axes: Axes, x: float, y: float, lines: Iterable[str], **look) -> float:
    """Write lines downwards from (x, y) in inches; returns the y below them."""
    for line in lines:
        axes.text(x, y, line, va="top", parse_math=False, **({"fontsize": SMALL} | look))
        y += LINE
    return y


# What stands below


def _named(model: tuple[str, str, str], collapsed: Collection[tuple]) -> str:
    """The name of a (method, variant, modality), marked where it is among the ``collapsed``."""
    return label(*model) + (f" {COLLAPSED}" if tuple(model) in {key[-3:] for key in collapsed} else "")


def _below(lines: Iterable[str], width: float = PAGE) -> list[str]:
    """The lines below a figure, broken to its width in inches."""
    return [line for text in lines if text for line in wrap(text, width - 0.15, most=5)]


def _foot(figure: Figure, lines: list[str]) -> float:
    """Write ``lines`` (of ``_below``) at the foot of a figure; returns the share of its height they take."""
    step = LINE / figure.get_figheight()
    for number, line in enumerate(reversed(lines)):
        place = 0.3 * step + number * step
        figure.text(
            0.08 / figure.get_figwidth(), place, line, fontsize=SMALL, color=GREY, va="bottom", parse_math=False
        )
    return (len(lines) + 0.6) * step if lines else 0.0


def _shut(known: Numbers, measure: Measure, view: str, set_name: str) -> bool:
    """Whether a panel of one set, measure and view stands behind a closed gate."""
    return set_name in gates.GATED and bool(gates.shut(known.gates, [measure], [view]))


# 1 Profiles


@styled
def profile_sheet(people: Sequence[Profile], facts: int = 11) -> Figure:
    """Portrait, test portraits, the first ``facts`` facts and one question of each task for a handful of people."""
    if not people:
        raise KitError("the profile sheet needs at least one profile")
    heights = [_person(None, person, 0.0, facts) for person in people]
    figure, page = _page(PAGE, sum(heights) + 0.05)
    top = 0.05
    for number, (person, height) in enumerate(zip(people, heights, strict=True)):
        if number:
            page.plot([0.1, PAGE - 0.1], [top - 0.06] * 2, color=PALE, linewidth=0.6)
        _person(page, person, top, facts)
        top += height
    return figure


def _person(page: Axes | None, person: Profile, top: float, facts: int) -> float:
    """Draw one person from ``top`` downwards (only measure when there is no page); returns the height needed."""
    left, portrait, small = 0.1, 1.15, 0.5
    tests, fact, ask = left + portrait + 0.12, 2.75, 4.78

    def write(x, y, lines, **look):
        return _write(page, x, y, lines, **look) if page else y + LINE * len(lines)

    def picture(data, x, y, size):
        if page:
            box = page.inset_axes((x, y, size, size), transform=page.transData)
            box.imshow(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), interpolation="nearest")
            box.set(xticks=[], yticks=[])
            for spine in box.spines.values():
                spine.set(color=PALE, linewidth=0.6)

    start = top + 0.05
    picture(person.portrait, left, start, portrait)
    heading = wrap(person.name, portrait, weight="bold", most=2)
    low = [write(left, start + portrait + 0.05, heading, fontweight="bold")]
    low[0] = write(left, low[0], [f"{person.id}, {person.kind}"], color=GREY)

    if person.test_portraits:
        below = write(tests, start, ["Test portraits"], color=GREY)
        for number, data in enumerate(person.test_portraits[:4]):
            picture(data, tests + (number % 2) * (small + 0.06), below + 0.03 + (number // 2) * (small + 0.06), small)
        low.append(below + 0.03 + math.ceil(min(4, len(person.test_portraits)) / 2) * (small + 0.06))

    known = [a for a in ATTRIBUTES if a != "name" and person.attributes.get(a)]
    indent = 0.78
    y = start
    for attribute in known[:facts]:
        value = wrap(person.attributes[attribute], ask - fact - indent - 0.12, most=2)
        if page:
            write(fact, y, [attribute.replace("_", " ")], color=GREY)
        y = write(fact + indent, y, value)
    low.append(y)

    y, room = start, PAGE - ask - 0.1
    for task, view in (("classification", "image_text"), ("generation", "text"), ("cloze", "image_text")):
        asked = [q for q in person.questions if q.task == task and q.view == view]
        if not asked:
            continue
        question = asked[0]
        y = write(ask, y, wrap(question.text, room, most=3))
        if question.options:
            for letter, option in zip("ABCD", question.options, strict=False):
                right = letter == question.answer
                line = wrap(f"{letter}  {option}", room - 0.3, weight="bold" if right else "normal", most=1)
                write(ask + 0.1, y, line, fontweight="bold" if right else "normal", color=RIGHT if right else INK)
                y += LINE
        else:
            y = write(ask + 0.1, y, wrap(question.answer, room - 0.1, most=2), color=RIGHT)
        y += 0.06
    low.append(y)
    return max(low) - top + 0.12


# 2 Before and after


@styled
def before_after(runs: list[Run], collapsed: Collection[tuple] = ()) -> Figure:
    """What one forgotten and one kept person is answered, by vanilla, every method, prompting and the oracle.

    The person and the question are not picked for effect: the first, by id, that vanilla answers rightly in both
    views (the very first one where there is none). Blue with ✓: the fact is in the answer; vermillion with ✗: not.
    """
    chosen = _side_by_side(runs)
    vanilla = next((run for run in chosen if run["method"] == "vanilla"), None)
    if vanilla is None:
        raise KitError("the before-and-after figure needs a run of vanilla beside the unlearned ones")
    shown = [(kind, *example(vanilla, name)) for kind, name in (("Forgotten", "forget"), ("Kept", "retain"))]
    left, gap = 0.1, 0.1
    names = [_named((run["method"], run["variant"], run["modality"]), collapsed) for run in chosen]
    told = _below(health.told(collapsed) if any(COLLAPSED in name for name in names) else [])
    first = max(width_of(name) for name in [*names, "Truth"]) + 0.15
    column = (PAGE - left - first - 0.1 - 3 * gap) / 4
    columns = [left + first + number * (column + gap) for number in range(4)]
    questions = [question for _, _, pair in shown for question in pair]
    asked = [wrap(q["question"], column, most=4) for q in questions]
    truths = [wrap(q["value"] or q["answer_true"], column, weight="bold", most=2) for q in questions]
    answers = [[_answer(run, q, column) for q in questions] for run in chosen]

    def draw(page: Axes | None) -> float:
        y = 0.08
        if page:
            for number, (kind, person, _) in enumerate(shown):
                x = columns[2 * number]
                _write(page, x, y, [f"{kind}: person {person}"], fontsize=NORMAL, fontweight="bold")
                page.plot([x, columns[2 * number + 1] + column], [y + 0.17] * 2, color=GREY, linewidth=0.6)
        y += 0.22
        rows = [("Asked with", [[VIEWS[q["view"]]] for q in questions], {"color": GREY})]
        rows += [("Question", asked, {}), ("Truth", truths, {"fontweight": "bold"})]
        for name, texts, how in rows:
            if page:
                _write(page, left, y, [name], color=GREY)
                for x, lines in zip(columns, texts, strict=True):
                    _write(page, x, y, lines, **how)
            y += LINE * max(map(len, texts)) + 0.04
        for name, texts in zip(names, answers, strict=True):
            y += 0.03
            if page:
                page.plot([left, PAGE - 0.1], [y - 0.035] * 2, color=PALE, linewidth=0.5)
                _write(page, left, y, [name])
                for x, (lines, colour) in zip(columns, texts, strict=True):
                    _write(page, x, y, lines, color=colour)
            y += LINE * max(len(lines) for lines, _ in texts) + 0.03
        return y + 0.05

    figure, page = _page(PAGE, draw(None) + LINE * (len(told) + 0.6 * bool(told)))
    draw(page)
    _foot(figure, told)
    return figure


def _side_by_side(runs: list[Run]) -> list[Run]:
    """One run of each method and modality, all of the first vanilla's forget draw and seeds, without the base."""
    vanilla = [run for run in runs if run["method"] == "vanilla"]
    anchor = vanilla[0] if vanilla else runs[0]
    same = ("base_model", "protocol", "forget_ratio", "forget_draw", "data_seed", "train_seed")
    found: dict[tuple, Run] = {}
    for run in runs:
        if run["method"] != "base" and all(run[c] == anchor[c] for c in same):
            found.setdefault((run["method"], run["variant"], run["modality"]), run)
    return [found[model] for model in models_in_order(found)]


def example(vanilla: Run, set_name: str) -> tuple[str, list[dict]]:
    """The person and the two generation questions (image view, text view) on one fact, by ``before_after``'s rule."""
    asked = vanilla.items[(vanilla.items["set"] == set_name) & (vanilla.items["task"] == "generation")]
    asked = asked.assign(number=asked["question_id"].str.rsplit("/", n=1).str[-1])
    pairs = [
        group.set_index("view", drop=False).loc[list(VIEWS)]
        for _, group in asked.sort_values("question_id").groupby(["profile", "number"], sort=True)
        if set(group["view"]) == set(VIEWS)
    ]
    if not pairs:
        raise KitError(f"run {vanilla.id} has no generation question asked in both views of the {set_name} set")
    pair = next((p for p in pairs if (p["exact"] >= 0.5).all()), pairs[0])
    return str(pair["profile"].iloc[0]), pair.to_dict("records")


def _answer(run: Run, question: dict, width: float) -> tuple[list[str], str]:
    """The wrapped answer of a run to a question and its colour; a run that was not asked shows a dash."""
    same = (run.items["question_id"] == question["question_id"]) & (run.items["set"] == question["set"])
    given = run.items[same]
    if given.empty:
        return ["–"], GREY
    right = bool(given["exact"].iloc[0] >= 0.5)
    text = given["answer"].iloc[0] or "(nothing)"
    return wrap(f"{'✓' if right else '✗'} {text}", width, most=3), RIGHT if right else WRONG


# 3 Forgetting against utility


@styled
def forgetting_utility(known: Numbers, measure: Measure = LIKELIHOOD) -> Figure:
    """What each method forgot (fall from vanilla on the forget set) against what it kept, one panel a utility set.

    ``known`` is one of the ``groups`` of ``numbers``; views are pooled. A method stands at the same height in all
    panels, where its name is written.
    """
    keep = ["method", "variant", "modality"]
    utility = _cells(known.scores, measure)
    fall = _cells(known.differences[known.differences["against"] == "vanilla"], measure)
    shut = _shut(known, measure, "both", "forget")
    fall = fall[fall["set"] == "forget"].set_index(keep)
    models = [("vanilla", "canonical", "none")]
    models += models_in_order(fall.index)
    panels = [name for name in ("retain", "celebrity", "test") if (utility["set"] == name).any()]
    if len(models) < 2 or not panels:
        raise KitError("forgetting against utility needs vanilla and one unlearned model on forget and another set")

    line = 1.25 * SMALL / 72  # inches a name needs
    labels = [_named(model, known.collapsed) for model in models]
    margin = 0.36 + max(map(width_of, labels))
    told = _below([gates.told(known.gates, [measure], ["both"], "In grey"), *health.told(known.collapsed)])
    height = max(2.75, 0.75 + line * len(models)) + LINE * len(told)
    figure = Figure(figsize=(PAGE, height))
    foot = _foot(figure, told)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=(0.01, foot, 0.99 - margin / PAGE, 1 - foot)))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    heights = {}
    for model in models:
        row = fall.loc[model] if model in fall.index else {"value": 0.0, "low": 0.0, "high": 0.0}
        heights[model] = [-row[c] * measure.times for c in ("value", "high", "low")]
    for panel, name in zip(axes, panels, strict=True):
        here = utility[utility["set"] == name].set_index(keep)
        for model in models:
            if model not in here.index:
                continue
            x, left, right = (here.loc[model, c] * measure.times for c in ("value", "low", "high"))
            y, low, high = heights[model]
            ends = {"xerr": [[x - left], [right - x]], "yerr": [[y - low], [high - y]]}
            panel.errorbar(x, y, **ends, fmt="none", ecolor=_colour(model, shut), elinewidth=0.7, alpha=0.55, zorder=2)
            _mark(panel, x, y, model, shut)
        panel.axhline(0, color=PALE, linewidth=0.6, zorder=0)
        panel.set_title(SETS[name], loc="left", fontweight="bold")
        panel.set_title("← better" if name == "test" else "better →", loc="right", fontsize=SMALL, color=GREY)
    axes[0].set_ylabel("Forgotten: fall from vanilla\non the forget set, points")
    seaborn.despine(figure)

    axes[len(panels) // 2].set_xlabel(f"Accuracy by {measure.label.removesuffix(' %').lower()} on that set, %")
    _settle(figure)

    place = axes[-1].get_position()
    names = figure.add_axes((1 - margin / PAGE, place.y0, margin / PAGE, place.height), sharey=axes[-1])
    names.axis("off")
    names.set_xlim(0, margin)
    low, high = names.get_ylim()
    gap = line * (high - low) / (place.height * height)
    places = spread([heights[m][0] for m in models], gap, low + gap / 2, high - gap / 2)
    for model, text, place in zip(models, labels, places, strict=True):
        names.plot([0.02, 0.14, 0.19], [heights[model][0], place, place], color=PALE, linewidth=0.6, clip_on=False)
        _mark(names, 0.25, place, model, shut)
        names.text(0.33, place, text, va="center_baseline", fontsize=SMALL)
    return figure


def _colour(model: tuple[str, str, str], shut: bool = False) -> str:
    """The colour of a model; grey behind a closed gate."""
    return CLOSED if shut else look(model[0]).colour


def _mark(axes: Axes, x: float, y: float, model: tuple[str, str, str], shut: bool = False) -> None:
    colour, marker = _colour(model, shut), look(model[0]).marker
    hollow = model[2] == "unimodal"
    size = 34 if marker == "*" else 20
    axes.scatter(
        [x],
        [y],
        s=size,
        marker=marker,
        facecolor="white" if hollow else colour,
        edgecolor=colour,
        linewidth=1.0,
        zorder=3,
        clip_on=False,
    )


def _cells(frame: pd.DataFrame, measure: Measure, view: str = "both") -> pd.DataFrame:
    """The rows of one measure and view that have a value."""
    same = (frame["task"] == measure.task) & (frame["scoring"].fillna("") == measure.scoring)
    same &= (frame["metric"] == measure.metric) & (frame["view"] == view)
    return frame[same].dropna(subset=["value"])


# 4 Multimodal against unimodal


@styled
def modality_bars(known: Numbers, set_name: str = "forget") -> Figure:
    """Difference to vanilla for each task (columns) and view (rows), unlearned on image + text or on text only.

    ``known`` is one of the ``groups`` of ``numbers``. A collapsed model has ‡ above its bar.
    """
    here = known.differences[(known.differences["against"] == "vanilla") & (known.differences["set"] == set_name)]
    here = here[here["modality"].isin(MODALITIES)]
    if here.empty:
        raise KitError(f"no unlearned model was asked about the {set_name} set")
    wanted = ((LIKELIHOOD, "Choice by likelihood"), (LETTER, "Choice by letter"))
    wanted += ((ROUGE_L, "Generation, ROUGE-L"), (CLOZE, "Cloze"))
    measures = [(m, title) for m, title in wanted if len(_cells(here, m)) > 0]
    methods = in_order(here["method"])
    names = [label(method).replace(" ", "\n", 1) for method in methods]
    room = 0.85 * PAGE / len(measures) / len(methods)  # inches for the name of a method, roughly
    turned = any(width_of(line) > room for name in names for line in name.split("\n"))
    names = [name.replace("\n", " ") for name in names] if turned else names
    shut = gates.told(known.gates, [m for m, _ in measures], VIEWS, "In grey") if set_name in gates.GATED else ""
    told = _below([shut, *health.told(known.collapsed)])
    wrecked = {key[-3:] for key in known.collapsed}
    figure = Figure(figsize=(PAGE, (4.0 if turned else 3.5) + LINE * len(told)))
    foot = _foot(figure, told)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=(0, foot, 1, 1 - foot)))
    axes = figure.subplots(len(VIEWS), len(measures), sharex=True, sharey=True, squeeze=False)
    for row, (view, view_label) in enumerate(VIEWS.items()):
        for column, (measure, title) in enumerate(measures):
            panel = axes[row][column]
            cells = _cells(here, measure, view).set_index(["method", "modality"])
            closed = _shut(known, measure, view, set_name)
            for place, method in enumerate(methods):
                for offset, modality in ((-0.2, "multimodal"), (0.2, "unimodal")):
                    if (method, modality) not in cells.index:
                        continue
                    cell = cells.loc[(method, modality)]
                    value, low, high = (100 * float(cell[c]) for c in ("value", "low", "high"))
                    model = (method, cell["variant"], modality)
                    colour = _colour(model, closed)
                    face = {"facecolor": colour if modality == "multimodal" else "white", "edgecolor": colour}
                    panel.bar(place + offset, value, 0.36, linewidth=0.9, zorder=2, **face)
                    if model in wrecked:
                        at = {"xy": (place + offset, max(0.0, high)), "xytext": (0, 1), "textcoords": "offset points"}
                        panel.annotate(COLLAPSED, **at, ha="center", va="bottom", fontsize=SMALL, annotation_clip=False)
                    panel.errorbar(
                        place + offset,
                        value,
                        yerr=[[value - low], [high - value]],
                        fmt="none",
                        ecolor=INK,
                        elinewidth=0.7,
                        capsize=1.5,
                        capthick=0.7,
                        zorder=3,
                    )
            panel.axhline(0, color=INK, linewidth=0.7, zorder=1)
            panel.grid(axis="y", color=PALE, linewidth=0.4, zorder=0)
            panel.tick_params(axis="x", length=0)
            panel.set_xticks(range(len(methods)), names, rotation=90 if turned else 0)
            if row == 0:
                panel.set_title(title, fontsize=NORMAL)
        axes[row][0].set_ylabel(f"Asked with {view_label}:\ndifference to vanilla, points")
    seaborn.despine(figure, bottom=True)
    name = SETS[set_name]
    figure.suptitle(
        f"{name} set.  ■ unlearned on image + text   □ unlearned on text only", fontsize=SMALL, x=0.01, ha="left"
    )
    low, high = axes[0][0].get_ylim()
    axes[0][0].set_ylim(low, high + 0.12 * (high - low) * bool(wrecked))  # room for the marks above the bars
    _settle(figure)
    return figure


# 5 Gap to the oracle


@styled
def oracle_gap(known: Numbers, measures: Sequence[Measure] = MAIN) -> Figure:
    """Each model minus the oracle in each of ``measures``, on Forget (above) and Retain, with the verdict beside it.

    The band is the measure's margin. ``known`` is one of the ``groups`` of ``numbers``; views are pooled.
    """
    found = known.differences[known.differences["against"] == "oracle"]
    keep = ["method", "variant", "modality"]
    measures = [m for m in measures if len(_cells(found, m))]
    models = models_in_order(found[keep].itertuples(index=False, name=None))
    panels = [name for name in ("forget", "retain") if (found["set"] == name).any()]
    if not models or not panels or not measures:
        raise KitError("the gap to the oracle needs a run of the oracle and another one about the same people")
    shut = gates.told(known.gates, measures, ["both"], "In grey")
    key = "Band: the margin. = inside it, as the oracle; ≠ outside, not as the oracle; ? undecided. "
    key += "Bars: 95 % intervals over people."
    told = _below([key, shut, *health.told(known.collapsed)])
    figure = Figure(figsize=(PAGE, 0.55 + len(panels) * (0.3 + 1.2 * LINE * len(models)) + LINE * len(told)))
    foot = _foot(figure, told)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=(0, foot, 1, 1 - foot)))
    axes = figure.subplots(len(panels), len(measures), sharey=True, sharex="col", squeeze=False)
    for (row, name), (column, measure) in itertools.product(enumerate(panels), enumerate(measures)):
        panel = axes[row][column]
        cells = _cells(found[found["set"] == name], measure).set_index(keep).to_dict("index")
        closed = _shut(known, measure, "both", name)
        panel.axvspan(*(end * measure.margin * measure.times for end in (-1, 1)), color=PALE, alpha=0.6, linewidth=0)
        panel.axvline(0, color=GREY, linewidth=0.6)
        for place, model in enumerate(models):
            if model not in cells:
                continue
            value, low, high = (cells[model][end] * measure.times for end in ("value", "low", "high"))
            panel.plot([low, high], [place] * 2, color=_colour(model, closed), linewidth=1.0)
            _mark(panel, value, place, model, closed)
            sign = VERDICTS[verdict(cells[model], measure)]
            panel.text(1.03, place, sign, transform=panel.get_yaxis_transform(), va="center", fontsize=SMALL)
        panel.set_ylim(len(models) - 0.4, -0.6)
        panel.set_yticks(range(len(models)), [_named(model, known.collapsed) for model in models])
        panel.tick_params(axis="y", length=0)
        if row == 0:
            panel.set_title(measure.label.replace(" %", ""), fontsize=NORMAL)
        if row == len(panels) - 1:
            panel.set_xlabel("minus oracle, points" if measure.times == 100 else "minus oracle")
        if column == 0:
            panel.set_ylabel(f"{SETS[name]} set", fontweight="bold")
    seaborn.despine(figure, left=True)
    _settle(figure)
    return figure


# 6 Health

STATE_LOOKS = {  # from right to broken; Okabe and Ito's colours, and a pattern on what is no answer
    "correct": ("#0072B2", "", "white"),
    "wrong": ("#E69F00", "", INK),
    "refusal": ("#CC79A7", "", INK),
    "gibberish": ("#d9d9d9", "////", INK),
    "repeated": ("#9a9a9a", "", INK),
    "empty": ("#ffffff", "", INK),
}


@styled
def health_bars(known: Numbers, least: float = 0.12) -> Figure:
    """What kind of answer each model's free answers are: a bar a model, on Forget and Retain, asked by either view.

    Shares of at least ``least`` are written into the bar. ``known`` is one of the ``groups`` of ``numbers``.
    """
    keep = ["method", "variant", "modality"]
    states = known.states
    models = models_in_order(states[keep].itertuples(index=False, name=None))
    panels = [(name, view) for name in ("forget", "retain") for view in VIEWS if (states["set"] == name).any()]
    if not panels:
        raise KitError("no run was asked for a free answer about the forget or the retain people")
    told = _below(health.told(known.collapsed))
    figure = Figure(figsize=(PAGE, 0.75 + 1.35 * LINE * len(models) + LINE * len(told)))
    foot = _foot(figure, told)
    head = 1.6 * LINE / figure.get_figheight()
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=(0, foot, 1, 1 - foot - head)))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (name, view) in zip(axes, panels, strict=True):
        here = states[(states["set"] == name) & (states["view"] == view)]
        shares = here.set_index([*keep, "state"])["value"].to_dict()
        for place, model in enumerate(models):
            left = 0.0
            for state, (colour, hatch, ink) in STATE_LOOKS.items():
                share = shares.get((*model, state), 0.0)
                if share:
                    face = {"facecolor": colour, "hatch": hatch, "edgecolor": GREY, "linewidth": 0.4}
                    panel.barh(place, share, 0.8, left=left, **face)
                if share >= least:
                    boxed = {"facecolor": colour, "edgecolor": "none", "pad": 0.6} if hatch else None
                    text = f"{100 * share:.0f}"
                    panel.text(
                        left + share / 2, place, text, ha="center", va="center", color=ink, fontsize=SMALL, bbox=boxed
                    )
                left += share
        panel.set_title(f"{SETS[name]}, {VIEWS[view]}", loc="left", fontsize=NORMAL)
        panel.set(xlim=(0, 1), ylim=(len(models) - 0.5, -0.5), xticks=[])
        panel.set_yticks(range(len(models)), [_named(model, known.collapsed) for model in models])
        panel.tick_params(axis="y", length=0)
    seaborn.despine(figure, left=True, bottom=True)
    _settle(figure)
    _states_named(figure, head)
    return figure


def _states_named(figure: Figure, head: float) -> None:
    """The states in their colours above the panels, in the order in which they stand in a bar."""
    page = figure.add_axes((0, 1 - head, 1, head))
    page.set(xlim=(0, figure.get_figwidth()), ylim=(0, 1))
    page.axis("off")
    x, shown = 0.1, page.text
    shown(x, 0.4, "% of free answers:", va="center", fontsize=SMALL)
    x += width_of("% of free answers:") + 0.15
    for state, (colour, hatch, _) in STATE_LOOKS.items():
        text = health.STATES[state].lower()
        page.barh(0.4, 0.14, 0.5, left=x, facecolor=colour, hatch=hatch, edgecolor=GREY, linewidth=0.4)
        shown(x + 0.2, 0.4, text, va="center", fontsize=SMALL)
        x += 0.2 + width_of(text) + 0.2


# 7 Losses


@styled
def loss_curves(runs: list[Run], collapsed: Collection[tuple] = ()) -> Figure:
    """The loss of every training, one panel a method, a line a run; long ones as a running mean over the raw curve."""
    trained = [run for run in runs if run.train.get("losses")]
    if not trained:
        raise KitError("no run has a training log with losses")
    methods = in_order(run["method"] for run in trained)
    columns = min(3, len(methods))
    rows = math.ceil(len(methods) / columns)
    width = PAGE if columns > 1 else COLUMN
    wrecked = {key[-3:] for key in collapsed} & {(run["method"], run["variant"], run["modality"]) for run in trained}
    told = _below(health.told(wrecked), width)
    figure = Figure(figsize=(width, 0.25 + 1.55 * rows + LINE * len(told)))
    foot = _foot(figure, told)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=(0, foot, 1, 1 - foot)))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in axes[len(methods) :]:
        panel.axis("off")
    endings = []
    for place, (panel, method) in enumerate(zip(axes, methods, strict=False)):
        mine = [run for run in trained if run["method"] == method]
        ends: dict[str, list[float]] = {}
        last = 0
        for run in mine:
            steps = np.array([entry["step"] for entry in run.train["losses"]])
            losses = np.array([entry["loss"] for entry in run.train["losses"]], dtype=float)
            smooth = pd.Series(losses).rolling(max(1, len(losses) // 25), min_periods=1, center=True).mean().to_numpy()
            hollow = run["modality"] == "unimodal"
            colour = look(method).colour
            if len(losses) >= 50:
                panel.plot(steps, losses, color=colour, linewidth=0.4, alpha=0.25)
            panel.plot(steps, smooth, color=colour, linewidth=1.1, linestyle=(0, (3, 1.5)) if hollow else "-")
            ends.setdefault(run["modality"], []).append(float(smooth[-1]))
            last = max(last, int(steps[-1]))
        panel.set_title(label(method), loc="left", fontweight="bold")
        if place % columns == 0:
            panel.set_ylabel("loss")
        if place + columns >= len(methods):
            panel.set_xlabel("step")
        named = [m for m in MODALITIES if m in ends]
        broken = {modality for name, _, modality in wrecked if name == method}
        first = min(entry["step"] for run in mine for entry in run.train["losses"])
        margin = 0.03 * max(1, last - first)
        # names stand to the right of the curves, so the axis goes on past the last step
        panel.set_xlim(first - margin, last + ((0.75 if broken else 0.52) * (last - first) if named else margin))
        panel.set_xticks([t for t in panel.get_xticks() if first - margin <= t <= last + margin])
        panel.spines["bottom"].set_bounds(first - margin, last + margin)
        texts = [MODALITIES[m] + (f" {COLLAPSED}" if m in broken else "") for m in named]
        endings.append((panel, last, texts, [float(np.mean(ends[m])) for m in named]))
    seaborn.despine(figure)
    _settle(figure)
    for panel, last, texts, heights in endings:
        low, high = panel.get_ylim()
        gap = 1.25 * SMALL / 72 * (high - low) / (panel.get_window_extent().height / figure.dpi)
        for text, y in zip(texts, spread(heights, gap, low + gap / 2, high - gap / 2), strict=True):
            left, right = panel.get_xlim()
            panel.text(last + 0.03 * (right - left), y, text, va="center", fontsize=SMALL)
    return figure


# Files

CAPTIONS = {
    "profiles": "Fictitious people: portrait, the transformed portraits of the Test set, facts, and a question a task "
    "(the right answer in blue).",
    "before_after": "One forgotten and one kept person (the first of each that vanilla answers rightly in both views), "
    "asked by image and by text. Blue with a tick: the fact is in the answer; vermillion with a cross: it is not.",
    "forgetting_utility": "Fall from vanilla on the forget set against accuracy on the other sets, views pooled. "
    "Filled: unlearned on image + text; hollow: on text only. Bars: 95 % intervals over people.",
    "modality_bars_forget": "Difference to vanilla on the forget set for each task and view. Filled: unlearned on "
    "image + text; hollow: on text only. Bars: 95 % intervals of the paired difference over people.",
    "modality_bars_retain": "The same on the retain set, where no difference is wanted.",
    "oracle_gap": "Each model minus the oracle on Forget and Retain, views pooled; the band is the margin within which "
    "it counts as the oracle (10 points, 0.1 ROUGE, 1 point of factuality). Bars: 95 % intervals over people.",
    "health": "What kind of answer the free answers are, per cent, by set and view. Broken answers (gibberish, "
    "repeated, empty) stand to the right.",
    "losses": "Training losses. Solid: image + text (or the whole mixture for vanilla and oracle); dashed: text only.",
}


def write_profiles(people: Sequence[Profile], out: Path) -> Written:
    """The sheet of the first three of ``people``."""
    return put(out / "profiles", CAPTIONS["profiles"], lambda: profile_sheet(people[:3]))


def write_group(key: tuple[str, str, int], part: Numbers, out: Path) -> Written:
    """Every figure of one base model, protocol and forget ratio (``key``), of which ``part`` holds all there is."""
    base_model, protocol, ratio = key
    tail = f"{base_model}_{ratio}" + ("" if protocol == "clean" else f"_{protocol}")
    draws = {
        "before_after": lambda: before_after(part.runs, part.collapsed),
        "forgetting_utility": lambda: forgetting_utility(part),
        "modality_bars_forget": lambda: modality_bars(part, "forget"),
        "modality_bars_retain": lambda: modality_bars(part, "retain"),
        "oracle_gap": lambda: oracle_gap(part),
        "health": lambda: health_bars(part),
        "losses": lambda: loss_curves(part.runs, part.collapsed),
    }
    return together(put(out / f"{kind}_{tail}", CAPTIONS[kind], make) for kind, make in draws.items())
