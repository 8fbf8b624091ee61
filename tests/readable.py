"""Checks that the texts of a figure can be read: their sizes, and that none covers another."""

from __future__ import annotations

import itertools

from matplotlib.figure import Figure
from matplotlib.text import Text


def texts(figure: Figure) -> list[tuple[str, object, float]]:
    """Return every drawn text with its box in pixels and its size; tick labels beyond the axis are not drawn."""
    figure.draw_without_rendering()
    unseen = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not axis.axes.axison or not low <= tick.get_loc() <= high:
                unseen |= {tick.label1, tick.label2}
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in unseen]
    return [(t.get_text(), Text.get_window_extent(t), t.get_fontsize()) for t in shown]


def words(figure: Figure) -> list[str]:
    return [text for text, _, _ in texts(figure)]


def assert_readable(figure: Figure) -> None:
    """Check that no text is smaller than 7 pt, outside the page or over another."""
    shown, page = texts(figure), figure.bbox
    for text, box, size in shown:
        assert size >= 7, text
        assert box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= page.x1 + 0.5 and box.y1 <= page.y1 + 0.5, text
    for (one, a, _), (other, b, _) in itertools.combinations(shown, 2):
        wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert not (wide > 1 and high > 1), f"{one!r} lies over {other!r}"
