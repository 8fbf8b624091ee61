"""The style of figures and their parts: intervals, a heat map, names beside lines, a page of text and pictures. A
method has the colour and marker of its class everywhere. A filled mark means unlearned on image + text, a hollow one on
text only, and grey that the gate is closed. Colours are Okabe and Ito's, safe for colour-blind readers."""

import functools
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
import pandas as pd
import PIL.Image
import seaborn
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.textpath import text_to_path
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike
from PIL.PngImagePlugin import PngInfo
from scipy.optimize import isotonic_regression
from seaborn.utils import relative_luminance

from mllmu_nb import paths
from mllmu_nb.data.portraits import large
from mllmu_nb.reporting.runs import class_of

COLUMN, PAGE = 3.4, 7.0  # inches, of a two-column paper
SMALL, NORMAL, TITLE = 7.5, 8.5, 10.0  # points
LINE = 1.32 * SMALL / 72  # inches from one line of small text to the next
INK, GREY, PALE = "#222222", "#6b6b6b", "#d9d9d9"
CLOSED = "#b0b0b0"  # for scores behind a closed gate; no model has it
RIGHT, WRONG = "#0072B2", "#C04F00"  # Okabe and Ito's blue and vermillion, the latter darkened for text
# the kit has the first, and matplotlib the second, for signs that the first lacks: figures are the same everywhere
FONTS = ["Source Sans Pro", "DejaVu Sans"]
for _file in sorted((paths.PACKAGE / "assets" / "fonts").glob("*.ttf")):
    fontManager.addfont(_file)
STYLE = {
    "font.family": FONTS,
    "text.hinting": "no_hinting",  # text has the width that was measured, at any resolution
    **dict.fromkeys(("font.size", "axes.titlesize"), NORMAL),
    **dict.fromkeys(("axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), SMALL),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width", "hatch.linewidth"), 0.6),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    "axes.prop_cycle": matplotlib.cycler(color=["#D55E00", "#CC79A7", "#009E73", "#0072B2"]),
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.4,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "text.parse_math": False,  # a dollar sign in a name is one
}
styled = matplotlib.style.context(STYLE, after_reset=True)  # a decorator; it ignores the caller's settings


class Look(NamedTuple):
    """How a model is drawn wherever it appears."""

    colour: str = INK
    marker: str = "o"
    filled: bool = True


LOOKS = {"base": Look("#56B4E9", "X"), "vanilla": Look("#000000", "o"), "oracle": Look("#6B4E16", "*")}


def look(method: str, variant: str = "canonical", modality: str = "none", closed: bool = False) -> Look:
    """Colour and marker of a method; hollow if it was unlearned on text only, grey behind a closed gate."""
    own = LOOKS.get(method) or class_of(method, variant)
    return Look(CLOSED if closed else own.colour, own.marker, modality != "unimodal")


@styled
def save(figure: Figure, stem: Path, source: str) -> None:
    """Write ``stem``.png (200 dpi) and ``stem``.pdf without dates, so the same figure gives the same bytes. Their
    metadata name the ``source`` (PNG: Source, PDF: Subject)."""
    settle(figure)
    Path(f"{stem}.png").write_bytes(png(figure, source))
    figure.savefig(f"{stem}.pdf", metadata={"CreationDate": None, "Subject": source})


def png(figure: Figure, source: str = "", **how: Any) -> bytes:
    """Return a PNG with the same bytes every time, and the ``source`` in its metadata. 256 colours are enough for a
    chart and make it small; they are chosen over all colours that occur, because a colour bar has many on a small
    area."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", **how)
    few = {"method": PIL.Image.Quantize.MAXCOVERAGE, "kmeans": 1, "dither": PIL.Image.Dither.NONE}
    about = PngInfo()
    if source:
        about.add_text("Source", source)
    PIL.Image.open(full).convert("RGB").quantize(256, **few).save(small, "PNG", optimize=True, pnginfo=about)
    return small.getvalue()


def settle(figure: Figure) -> None:
    """Fix the layout of the panels, so that things placed beside them afterwards stay there."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


# -- text that fits -----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def width_of(text: str, weight: str = "normal") -> float:
    """Width of a line of small text in inches."""
    font = FontProperties(family=FONTS, size=SMALL, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, False)[0] / 72


def wrap(text: str, width: float, weight: str = "normal", most: int = 3) -> list[str]:
    """Break ``text`` into at most ``most`` lines no wider than ``width`` inches; a text that is cut ends in an
    ellipsis. A character that the fonts lack (a model may write anything) becomes a box."""
    fonts, lines = [get_font(findfont(name)) for name in FONTS], [""]

    def fits(line: str) -> bool:
        return width_of(line, weight) <= width

    for word in str(text).split():
        word = "".join(c if any(font.get_char_index(ord(c)) for font in fonts) else "□" for c in word)
        while word and len(lines) <= most:
            longer = f"{lines[-1]} {word}".lstrip()
            if fits(longer):
                lines[-1], word = longer, ""
            elif lines[-1]:
                lines.append("")
            else:  # a word wider than the line
                end = max(n for n in range(1, len(word)) if n == 1 or fits(word[:n]))
                lines[-1:], word = [word[:end], ""], word[end:]
    if len(lines) > most:
        last = lines[most - 1]
        while not fits(f"{last}…"):
            last = last[:-1]
        lines = [*lines[: most - 1], f"{last.rstrip()}…"]
    return lines


def below_lines(texts: Iterable[str], width: float = PAGE) -> list[str]:
    """The texts below a figure, broken into lines of its width."""
    return [line for text in texts if text for line in wrap(text, width - 0.15, most=6)]


def spread(wanted: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Return places between ``low`` and ``high``, at least ``gap`` apart, nearest to those wanted (least squares)."""
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(order))
    placed = np.empty(len(order))
    nearest = isotonic_regression(np.asarray(wanted, float)[order] - steps).x
    placed[order] = np.maximum(low, np.minimum(nearest, high - steps[-1])) + steps
    return placed.tolist()


# -- panels -------------------------------------------------------------------------------------------------------


def panels(rows: int, columns: int, size: Sequence[float], below: Iterable[str] = (), title: str = "", **sharing: Any):
    """Return a figure of ``size`` inches with ``rows`` × ``columns`` panels, and its axes [rows, columns]. The
    ``title`` and the texts ``below`` the panels, in grey, add to its height."""
    lines = below_lines(below, size[0])
    more = len(lines) + 2 * bool(title) + title.count("\n")
    figure = Figure((size[0], size[1] + LINE * more), layout="constrained")
    if title:
        figure.suptitle(title, x=0.08 / size[0], ha="left", fontsize=TITLE, fontweight="bold")
    if lines:
        look = {"fontsize": SMALL, "color": GREY, "linespacing": 1.15}
        figure.supxlabel("\n".join(lines), x=0.08 / size[0], ha="left", **look)
    return figure, figure.subplots(rows, columns, squeeze=False, **sharing)


def corner(figure: Figure, text: str) -> None:
    """Write small text into the upper right corner, beside the title, if the figure is as wide as a page."""
    width, height = figure.get_size_inches()
    if width >= PAGE:
        figure.text(1 - 0.08 / width, 1 - 0.1 / height, text, ha="right", va="top", fontsize=SMALL, color=GREY)


def mark(
    panel: Axes,
    x: float,
    y: float,
    look: Look,
    across: Sequence[float] | None = None,
    along: Sequence[float] | None = None,
    thickness: float = 1,
    opacity: float = 1,
) -> None:
    """Draw a model's mark with its intervals ``across`` (in x) and ``along`` (in y), each (low, high). ``opacity`` is
    that of its face, for marks that overlap."""
    # draw hollow marks above filled ones, which stay visible through them
    how = {"zorder": 2 if look.filled else 2.5, "elinewidth": thickness, "linestyle": "none", **point(look)}
    how |= {"markerfacecolor": (look.colour, opacity)} if look.filled and opacity < 1 else {}
    for name, value, ends in (("xerr", x, across), ("yerr", y, along)):
        how[name] = ends and [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]
    panel.errorbar(x, y, **how)


def point(look: Look) -> dict[str, Any]:
    """The options that draw points on a line, by which readers know a model without its colour."""
    fill, size = look.colour if look.filled else "none", 7 if look.marker == "*" else 4.4
    return {"marker": look.marker, "color": look.colour, "markerfacecolor": fill, "markersize": size}


def dots(panel: Axes, x: ArrayLike, y: ArrayLike, colour: str) -> None:
    """Draw one small, pale dot per replicate, below the mark of their mean; ``x`` or ``y`` may be a single number."""
    look = {"s": 5, "color": colour, "alpha": 0.45, "linewidth": 0, "zorder": 1.8, "clip_on": False}
    panel.scatter(*np.broadcast_arrays(x, y), **look)


def legend(figure: Figure, signs: Mapping[str, Artist]) -> None:
    """Write a legend above the panels, on the empty second line of the figure's title. The layout is then final."""
    place = {"loc": "outside upper left", "ncols": len(signs), "handlelength": 1.2, "columnspacing": 1.5}
    top = 1 - 1.1 * LINE / figure.get_figheight()
    figure.legend(signs.values(), signs, bbox_to_anchor=(0, 0, 1, top), **place)
    settle(figure)
    for text in figure.texts:
        text.set_text(text.get_text().rstrip())


def values(frame: pd.DataFrame, column: str) -> list:
    """The distinct values of a column, in the order of its categories or else of the rows; [""] for no column."""
    if column and isinstance(frame[column].dtype, pd.CategoricalDtype):
        return list(frame[column].cat.remove_unused_categories().cat.categories)
    return list(dict.fromkeys(frame[column])) if column else [""]


def facets(frame: pd.DataFrame, row: str, column: str, **how: Any) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """Return a figure with one panel for each value of the columns ``row`` and ``column``, and the rows of ``frame`` in
    each panel; ``how`` as for :func:`panels`."""
    rows, columns = values(frame, row), values(frame, column)
    figure, axes = panels(len(rows), len(columns), **how)
    cells = []
    for (i, above), (j, beside) in product(enumerate(rows), enumerate(columns)):
        here = frame[frame[row] == above] if row else frame
        cells.append((axes[i][j], here[here[column] == beside] if column else here))
        axes[i][j].set(title="" if i else beside, ylabel="" if j else above)
    return figure, cells


def forest(
    frame: pd.DataFrame,
    *,
    y: str,
    x: str = "value",
    row: str = "",
    column: str = "",
    band: str = "",
    right: str = "",
    unit: str = "",
    **texts: Any,
) -> Figure:
    """Draw a mark with its interval (low, high) for every row of ``frame``: one line per value of ``y``, one panel per
    ``row`` and ``column``, and ``unit`` below each column; ``title`` and ``below`` as in :func:`panels`.

    The other arguments are names of columns. ``band``: half the width of a grey band around 0; ``right``: text to the
    right of a panel. The column ``look`` has the :class:`Look`, and ``dots`` the replicates' values.
    """
    names, labels = values(frame, y), values(frame, row)
    upright = max(width_of(line) for label in labels for line in label.split("\n"))
    lines = max(str(name).count("\n") + 1 for name in names)
    size = PAGE, 0.35 + len(labels) * (0.25 + max((0.25 + lines) * LINE * len(names), upright))
    figure, parts = facets(frame, row, column, size=size, sharex="col", sharey=True, **texts)
    for panel, here in parts:
        panel.axvline(0, color=GREY, linewidth=0.6, zorder=1)
        if band and len(here):
            half = here[band].max()
            panel.axvspan(-half, half, color=PALE, alpha=0.6, linewidth=0, zorder=0)
        for one in here.to_dict("records"):
            place, look = names.index(one[y]), one["look"]
            dots(panel, one.get("dots", ()), place + 0.33, look.colour)  # on the bar they would not be seen
            mark(panel, one[x], place, look, across=(one["low"], one["high"]))
            if right:
                across = panel.get_yaxis_transform()
                panel.text(1.03, place, one[right], transform=across, va="center", fontsize=SMALL)
        panel.set_ylim(len(names) - 0.5, -0.6)
        panel.set_yticks(range(len(names)), names)
        panel.tick_params(axis="y", length=0)
        if unit and panel.get_subplotspec().is_last_row():
            panel.set_xlabel(unit)
    seaborn.despine(figure, left=True)
    return figure


def heat(
    panel: Axes,
    values: pd.DataFrame,
    texts: np.ndarray,
    colours: Colormap,
    limits: Sequence[float],
    spots: pd.DataFrame | None = None,
    **bar: Any,
) -> None:
    """Draw a heat map of ``values`` [rows, columns] with ``texts`` in its cells, grey if a value is NaN; ``bar`` is the
    look of its colour bar. ``spots`` [rows, columns] are the replicates' values of each cell, drawn as dots at its
    foot; the left and right edges of a cell are the two ``limits``."""
    grey, reach = values.isna().to_numpy(), limits[1] - limits[0]
    panel.set_facecolor(PALE)
    scale = {"vmin": limits[0], "vmax": limits[1], "cmap": colours, "linewidths": 0.8, "cbar_kws": bar}
    seaborn.heatmap(values, mask=grey, ax=panel, **scale)
    for (y, x), text in np.ndenumerate(texts):
        shade = relative_luminance(PALE if grey[y, x] else colours((values.iloc[y, x] - limits[0]) / reach))
        ink = "white" if shade < 0.21 else INK  # whichever has more contrast
        panel.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=SMALL, color=ink)
        if spots is not None:
            dots(panel, x + (np.array(spots.iloc[y, x]) - limits[0]) / reach, y + 0.9, ink)
    panel.tick_params(length=0, rotation=0)


class End(NamedTuple):
    """A name to the right of a panel: its height, text and colour, the look of its mark, if it has one, and the x from
    which a thin line leads to the right edge, if there is one."""

    panel: Axes
    height: float
    text: str
    colour: str = INK
    look: Look | None = None
    x: float | None = None


def name_ends(figure: Figure, ends: Sequence[End]) -> None:
    """Write names to the right of panels, each at its height or, if several are close, as near as they fit; a thin line
    leads to each. The layout of the figure is final afterwards."""
    at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "annotation_clip": False}
    notes = []
    for end in ends:
        if end.x is not None:
            line = {"color": PALE, "linewidth": 0.6, "zorder": -1, "scalex": False, "scaley": False}
            end.panel.plot([end.x, end.panel.get_xlim()[1]], [end.height] * 2, **line)
        start = (24 if end.look else 7, 0)
        text = {"color": end.colour, "fontsize": SMALL, "va": "center"}
        notes.append(end.panel.annotate(end.text, (1, end.height), start, **at, **text))
    settle(figure)
    leader = {"arrowstyle": "-", "color": PALE, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
    for panel in dict.fromkeys(end.panel for end in ends):
        mine = [(end, note) for end, note in zip(ends, notes, strict=True) if end.panel is panel]
        low, high = panel.get_ylim()
        points, gap = 72 * panel.get_window_extent().height / figure.dpi, 1.3 * SMALL
        heights = [points * (end.height - low) / (high - low) for end, _ in mine]
        places = spread(heights, gap, gap / 2, points - gap / 2)
        for (end, note), up in zip(mine, np.subtract(places, heights), strict=True):
            note.xyann = (note.xyann[0], up)
            if end.look or abs(up) > 1:
                panel.annotate("", (1, end.height), (14 if end.look else 6, up), **at, arrowprops=leader)
            if end.look:
                offset = ScaledTranslation(16 / 72, up / 72, figure.dpi_scale_trans)
                place = {"transform": panel.get_yaxis_transform() + offset, "clip_on": False, "zorder": 5}
                panel.plot(1, end.height, scalex=False, scaley=False, **point(end.look), **place)


class Page:
    """A page measured in inches from its upper left corner; its title ends at 0.3, and :meth:`cut` sets its height."""

    def __init__(self, title: str):
        self.figure = Figure((PAGE, 1.0))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, PAGE), ylim=(1, 0))
        self.axes.axis("off")
        self.write(0.1, 0.08, [title], fontsize=TITLE, fontweight="bold")

    def write(self, x: float, y: float, lines: Iterable[str], **look: Any) -> float:
        """Write lines downwards from (x, y); returns the y below them."""
        for line in lines:
            self.axes.text(x, y, line, va="top", **({"fontsize": SMALL} | look))
            y += LINE
        return y

    def rule(self, y: float, left: float, right: float, colour: str = PALE) -> None:
        self.axes.plot([left, right], [y, y], color=colour, linewidth=0.6)

    def picture(self, data: bytes, x: float, y: float, size: float) -> None:
        """Draw a portrait as a square of ``size``; it is redrawn in fine detail if its face is known."""
        box = self.axes.inset_axes((x, y, size, size), transform=self.axes.transData)
        box.imshow(np.asarray(large(data)), interpolation="antialiased")
        box.set(xticks=[], yticks=[])
        box.spines[:].set(color=PALE, linewidth=0.6)

    def cut(self, bottom: float) -> Figure:
        """Cut the page at ``bottom``, and return its figure."""
        self.figure.set_size_inches(PAGE, bottom)
        self.axes.set_ylim(bottom, 0)
        return self.figure
