"""Dot plots: a named row for each estimate, its 95 % interval, and what is to be said of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import shortened, text_width, write
from rlhf_lightning.plots.kit.style import GRID, HELD_OUT, INK, MUTED, PAPER, TEXT_SIZE

Z = 1.959964
"""Half the width of a normal 95 % interval, in standard errors."""

DOT: dict[str, Any] = {"markersize": 6, "markeredgecolor": PAPER, "markeredgewidth": 0.7}
"""How a dot looks, beside its colour."""

_OTHER: dict[str, Any] = {"markersize": 5.5, "markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.1}
"""How somebody else's value looks: hollow, so that a dot below it can be seen."""

_BETWEEN = 0.14
"""Inches between a note and a remark."""

_ROW, _TOP, _ABOVE, _BELOW, _LONGEST = 0.23, 0.8, 0.62, 0.42, 1.7
"""Heights in inches: of a row, of the figure's heading, of a panel's title, of its axis; width of the longest name."""


@dataclass(frozen=True)
class Dot:
    """One row.

    Args:
        value: NaN where there is none.
        note: stands right of the row: the value, and from how many examples.
        other: a value of somebody else, shown as a hollow diamond; NaN where there is none.
        margin: differences up to this are shaded as too small to matter; NaN where none is declared.
        remark: stands right of the note.
        remark_color: its colour.
    """

    name: str
    value: float
    low: float
    high: float
    note: str
    other: float = math.nan
    margin: float = math.nan
    remark: str = ""
    remark_color: str = INK

    @property
    def ends(self) -> list[float]:
        """All numbers that must be in view."""
        found = (self.value, self.low, self.high, self.other, self.margin, -self.margin)
        return [number for number in found if math.isfinite(number)]


@dataclass(frozen=True)
class DotGroup:
    """One panel: rows in the order in which they are read."""

    title: str
    unit: str
    dots: list[Dot]


def dot_plot(
    groups: Sequence[DotGroup],
    *,
    tick: Callable[[float], str] | None = None,
    columns: int = 2,
    width: float = 2.3,
    longest: float = _LONGEST,
) -> tuple[Figure, list[Axes]]:
    """A panel for each group, whose height follows its rows; the limits of the x-axes are the caller's.

    Args:
        tick: the text of a value below the x-axis; None for plain numbers.
        width: of a panel, in inches.
        longest: inches that a name may take.
    """
    dots = [dot for group in groups for dot in group.dots]
    names = min(max(text_width(dot.name, size=TEXT_SIZE) for dot in dots), longest) + 0.12
    note = 9 / 72 + max(text_width(dot.note, size=TEXT_SIZE) for dot in dots)
    remarks = max(text_width(dot.remark, size=TEXT_SIZE, weight="bold") for dot in dots)
    notes = note + 0.08 + (remarks + _BETWEEN if remarks else 0)
    columns = min(columns, len(groups))
    heights = [_ROW * len(group.dots) for group in groups]
    tallest = [max(heights[start : start + columns]) for start in range(0, len(groups), columns)]
    each = names + width + notes + 0.3
    total = columns * each, _TOP + sum(tallest) + len(tallest) * (_ABOVE + _BELOW)
    figure = Figure(figsize=total)
    for index, (group, height) in enumerate(zip(groups, heights, strict=True)):
        row, column = divmod(index, columns)
        above = _TOP + sum(tallest[:row]) + row * (_ABOVE + _BELOW) + _ABOVE
        x, y = column * each + names + 0.1, total[1] - above - height
        axes = figure.add_axes((x / total[0], y / total[1], width / total[0], height / total[1]))
        panels.dress(axes, group.title, group.unit, offset=(-72 * names, 10))
        axes.xaxis.set_major_formatter((lambda value, _: tick(value)) if tick else panels.PlainTicks())
        _draw_rows(axes, group.dots, longest=longest, remark_at=72 * (note + _BETWEEN))
    return figure, figure.axes


def fit(axes: Axes, dots: Sequence[Dot], *, include: Sequence[float] = ()) -> None:
    """Limits of the x-axis with all estimates in view, and some values besides."""
    ends = [*include, *(end for dot in dots for end in dot.ends)] or [0.0]
    room = 0.08 * (max(ends) - min(ends)) or 0.1 * max(abs(ends[0]), 1.0)
    axes.set_xlim(min(ends) - room, max(ends) + room)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))


def _draw_rows(axes: Axes, dots: Sequence[Dot], *, longest: float, remark_at: float) -> None:
    """Estimates with their intervals; ``remark_at`` is the distance of the remarks from the panel, in points."""
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_yticks([])
    axes.set_ylim(len(dots) - 0.5, -0.5)
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "size": TEXT_SIZE}
    for row, dot in enumerate(dots):
        if math.isfinite(dot.margin):
            axes.fill_betweenx((row - 0.5, row + 0.5), -dot.margin, dot.margin, color=GRID, linewidth=0, zorder=1)
        axes.hlines(row, dot.low, dot.high, color=HELD_OUT, linewidth=1.6, alpha=0.45, zorder=3)
        axes.plot([dot.value], [row], "o", color=HELD_OUT, zorder=4, clip_on=False, **DOT)
        axes.plot([dot.other], [row], "D", zorder=4.5, clip_on=False, **_OTHER)
        name = shortened(dot.name, width=longest, size=TEXT_SIZE)
        write(axes, name, (0, row), (-7, 0), ha="right", color=INK, **beside)
        write(axes, dot.note, (1, row), (9, 0), color=MUTED, **beside)
        write(axes, dot.remark, (1, row), (remark_at, 0), color=dot.remark_color, weight="bold", **beside)


def level(axes: Axes, x: float, color: str, *, dashed: bool = True) -> None:
    """A vertical line that means something for every row."""
    axes.axvline(x, color=color, linewidth=1.1, linestyle=panels.DASHES if dashed else "-", zorder=2)
