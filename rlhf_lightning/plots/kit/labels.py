"""Text in figures: headings that fit, and labels at the ends of lines that keep clear of one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from scipy.optimize import isotonic_regression

from rlhf_lightning.plots.kit.style import INK, MUTED, PAPER

HALO = withStroke(linewidth=2.5, foreground=PAPER)

TITLE, NOTE, NAME = 13.0, 9.0, 9.5
"""Sizes of a figure's title, of what is written below it, and of a run's name."""


@dataclass(frozen=True)
class Label:
    """The name of a line, at the right edge of its panel.

    Args:
        y: height of the line's end, in data units.
        note: a second, quieter line.
    """

    y: float
    text: str
    color: str
    note: str = ""


def heading(figure: Figure, title: str, note: str = "", *, left: float = 0.1) -> float:
    """Title and explanation at the top left; where one needs more than a line, the figure grows and the axes stay.

    Args:
        left: distance from the left edge, in inches.

    Returns:
        How much the figure grew, in inches.
    """
    width, height = figure.get_size_inches()
    room = 0.985 * (width - 2 * left)  # rendered letters stand on whole pixels, and come out a little wider
    titles = wrapped(title, width=room, size=TITLE, weight="bold")
    notes = wrapped(note, width=room, size=NOTE)
    below_title = 0.23 * (len(titles) - 1)
    extra = below_title + 0.17 * (len(notes) - 1)
    share = height / (height + extra)
    x, height = left / width, height + extra
    figure.set_size_inches(width, height)
    for axes in figure.axes:
        box = axes.get_position()
        axes.set_position((box.x0, box.y0 * share, box.width, box.height * share))
    text: dict[str, Any] = {"va": "top", "linespacing": 1.3}
    figure.text(x, 1 - 0.2 / height, "\n".join(titles), size=TITLE, weight="bold", color=INK, **text)
    figure.text(x, 1 - (0.46 + below_title) / height, "\n".join(notes), size=NOTE, color=MUTED, **text)
    return extra


def wrapped(text: str, *, width: float, size: float, weight: str = "normal") -> list[str]:
    """Break a text into lines of at most ``width`` inches; a word that is too long for a line is cut."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and text_width(longer, size=size, weight=weight) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [shortened(line, width=width, size=size, weight=weight) for line in lines]


def shortened(text: str, *, width: float, size: float, weight: str = "normal") -> str:
    """Cut a text to ``width`` inches, with an ellipsis where it was cut."""
    if text_width(text, size=size, weight=weight) <= width:
        return text
    kept = text
    while kept and text_width(f"{kept}…", size=size, weight=weight) > width:
        kept = kept[:-1]
    return f"{kept}…"


def text_width(text: str, *, size: float, weight: str = "normal") -> float:
    """Width of a text in inches, in the font that the figure will be drawn with."""
    if not text.strip():
        return 0.0
    font = FontProperties(size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def size_of(axes: Axes) -> tuple[float, float]:
    """Width and height of a panel, in inches."""
    box = axes.get_window_extent()
    return float(box.width / axes.figure.dpi), float(box.height / axes.figure.dpi)


def write(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[float, float],
    *,
    xycoords: Any = "axes fraction",
    **style: Any,
) -> None:
    """A text at an offset in points from a place, inside of the panel or not."""
    axes.annotate(text, at, offset, xycoords=xycoords, textcoords="offset points", annotation_clip=False, **style)


def end_labels(axes: Axes, labels: Sequence[Label], *, offset: float = 7.0) -> None:
    """Labels right of a panel, at the heights of their lines' ends, moved apart where they would overlap."""
    height = 72 * size_of(axes)[1]
    fraction = (axes.transData + axes.transAxes.inverted()).transform
    right = axes.get_xlim()[1]
    heights = [float(fraction((right, label.y))[1]) * height for label in labels]
    sizes = [27.0 if label.note else 13.0 for label in labels]
    for label, y in zip(labels, spread(heights, sizes, height), strict=True):
        above = (offset, y + (1.0 if label.note else -3.5))
        write(axes, label.text, (1, 0), above, color=label.color, weight="bold", size=NAME, zorder=6)
        if label.note:
            write(axes, label.note, (1, 0), (offset, y - 10.5), color=MUTED, size=8.0, zorder=6)


def spread(centres: Sequence[float], sizes: Sequence[float], extent: float) -> list[float]:
    """Move intervals apart, in their order and within 0 … extent, by the least sum of squares.

    With the stacked offsets taken off, "no overlap" means "non-decreasing": isotonic regression, then a clip at both
    ends.
    """
    order = np.argsort(centres, kind="stable")
    stacked = np.asarray(sizes)[order]
    offsets = np.concatenate([[0.0], np.cumsum((stacked[:-1] + stacked[1:]) / 2)])
    levels = isotonic_regression(np.asarray(centres)[order] - offsets).x
    lowest, highest = stacked[0] / 2, extent - stacked[-1] / 2 - offsets[-1]
    placed = np.empty(len(order))
    placed[order] = np.maximum(np.minimum(levels, highest), lowest) + offsets
    return placed.tolist()
