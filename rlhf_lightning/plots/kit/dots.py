"""Dot plots: a named row for each estimate, its 95 % interval, and what it was estimated from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import shortened, text_width
from rlhf_lightning.plots.kit.style import (
    AXIS,
    GRID,
    HELD_OUT,
    INK,
    MUTED,
    PAPER,
    TEXT_SIZE,
    TITLE_SIZE,
)

Z = 1.959964
"""Half the width of a normal 95 % interval, in standard errors."""

DOT: dict[str, Any] = {"markersize": 6, "markeredgecolor": PAPER, "markeredgewidth": 0.7}
"""How a dot looks, beside its colour."""

_ROW, _ABOVE, _BELOW = 0.23, 0.62, 0.42
"""Heights in inches: of a row, of a panel's title, of its axis."""


@dataclass(frozen=True)
class Dot:
    """One row.

    Args:
        note: stands right of the row: the value, and from how many examples.
    """

    name: str
    value: float
    low: float
    high: float
    note: str = ""


@dataclass(frozen=True)
class DotGroup:
    """One panel: rows in the order in which they are read."""

    title: str
    unit: str
    dots: list[Dot] = field(default_factory=list)


def dot_sheet(
    groups: Sequence[DotGroup], *, columns: int = 2, width: float = 2.3, top: float = 0.8
) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each group, whose height follows its rows, with room for names and notes beside it.

    Args:
        width: of a panel, in inches.
        top: room for the figure's heading, in inches.
    """
    columns = min(columns, len(groups))
    names, notes = _margins(groups)
    heights = [_ROW * len(group.dots) for group in groups]
    tallest = [max(heights[start : start + columns]) for start in range(0, len(groups), columns)]
    each = names + width + notes + 0.3
    total = columns * each, top + sum(tallest) + len(tallest) * (_ABOVE + _BELOW)
    figure = Figure(figsize=total)
    sheet = []
    for index, height in enumerate(heights):
        row, column = divmod(index, columns)
        above = top + sum(tallest[:row]) + row * (_ABOVE + _BELOW) + _ABOVE
        x, y = column * each + names + 0.1, total[1] - above - height
        sheet.append(figure.add_axes((x / total[0], y / total[1], width / total[0], height / total[1])))
    return figure, sheet


def draw_dots(
    axes: Axes, group: DotGroup, groups: Sequence[DotGroup], *, tick: Callable[[float], str], color: str = HELD_OUT
) -> None:
    """Draw one group on a panel of `dot_sheet`; the limits of the x-axis are the caller's.

    Args:
        groups: all of the sheet, which share their margins.
    """
    _dress(axes, group, names=_margins(groups)[0], tick=tick)
    for row, dot in enumerate(group.dots):
        axes.hlines(row, dot.low, dot.high, color=color, linewidth=1.6, alpha=0.45, zorder=3)
        axes.plot([dot.value], [row], "o", color=color, zorder=4, clip_on=False, **DOT)
        beside: dict[str, Any] = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
            "va": "center",
            "size": TEXT_SIZE,
            "annotation_clip": False,
        }
        name = shortened(dot.name, width=_LONGEST, size=TEXT_SIZE)
        axes.annotate(name, (0, row), (-7, 0), ha="right", color=INK, **beside)
        axes.annotate(dot.note, (1, row), (9, 0), color=MUTED, **beside)


def level(axes: Axes, x: float, color: str, *, dashed: bool = True) -> None:
    """A vertical line that means something for every row."""
    axes.axvline(x, color=color, linewidth=1.1, linestyle=(0, (4, 3)) if dashed else "-", zorder=2)


_LONGEST = 1.7


def _margins(groups: Sequence[DotGroup]) -> tuple[float, float]:
    """Room for the longest name and for the longest note, in inches."""
    dots = [dot for group in groups for dot in group.dots]
    names = max(text_width(dot.name, size=TEXT_SIZE) for dot in dots)
    notes = max(text_width(dot.note, size=TEXT_SIZE) for dot in dots)
    return min(names, _LONGEST) + 0.12, notes + 0.2


def _dress(axes: Axes, group: DotGroup, *, names: float, tick: Callable[[float], str]) -> None:
    panels.dress(axes)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_yticks([])
    axes.set_ylim(len(group.dots) - 0.5, -0.5)
    axes.spines["bottom"].set_color(AXIS)
    axes.xaxis.set_major_formatter(lambda value, _: tick(value))
    above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "baseline"}
    left = -72 * names
    axes.annotate(group.title, (0, 1), (left, 22), size=TITLE_SIZE, weight="bold", color=INK, **above)
    axes.annotate(group.unit, (0, 1), (left, 10), size=TEXT_SIZE, color=MUTED, **above)
