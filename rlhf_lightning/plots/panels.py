"""What the figures are built from: panels on a sheet, lines with their labels, honest limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from rlhf_lightning.plots.style import AXIS, GRID, INK, MUTED, PAPER, TEXT_SIZE, TITLE_SIZE

KL_LABEL = "KL to the reference, nats per sequence (√ scale)"

HALO = withStroke(linewidth=2.5, foreground=PAPER)


@dataclass(frozen=True)
class Label:
    """A direct label beside the end of a line.

    Args:
        y: height of the line's end, in data units.
        note: a second, quieter line.
        x: where the line ends, in data units; None for the panel's right edge.
    """

    y: float
    text: str
    color: str
    note: str = ""
    x: float | None = None


def sheet(
    count: int,
    *,
    columns: int,
    size: tuple[float, float],
    top: float = 1.25,
    bottom: float = 0.55,
    left: float = 0.6,
    right: float = 0.25,
    gap: tuple[float, float] = (0.55, 0.85),
) -> tuple[Figure, list[Axes]]:
    """A figure with panels of a fixed size, row by row.

    Args:
        size: width and height of one panel, in inches, as are all other lengths.
        gap: between columns and between rows.
    """
    columns = max(1, min(columns, count))
    rows = math.ceil(count / columns)
    width = left + columns * size[0] + (columns - 1) * gap[0] + right
    height = top + rows * size[1] + (rows - 1) * gap[1] + bottom
    figure = Figure(figsize=(width, height))
    axes = []
    for index in range(count):
        row, column = divmod(index, columns)
        x = left + column * (size[0] + gap[0])
        y = bottom + (rows - 1 - row) * (size[1] + gap[1])
        axes.append(figure.add_axes((x / width, y / height, size[0] / width, size[1] / height)))
    return figure, axes


def heading(figure: Figure, title: str, note: str = "", *, left: float = 0.1) -> None:
    """Title and explanation at the top left; ``left`` in inches."""
    width, height = figure.get_size_inches()
    x = left / width
    figure.text(x, 1 - 0.2 / height, title, size=13, weight="bold", va="top", color=INK)
    figure.text(x, 1 - 0.46 / height, note, size=9, va="top", color=MUTED, linespacing=1.35)


def dress(axes: Axes, title: str = "", unit: str = "", *, xlabel: str = "") -> None:
    """Light horizontal grid, no box, title and unit above, counter below."""
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(AXIS)
        spine.set_linewidth(0.8)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(length=0, colors=MUTED, labelcolor=MUTED, labelsize=TEXT_SIZE, pad=4)
    axes.tick_params(axis="x", length=3, color=AXIS)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    if xlabel:
        axes.set_xlabel(xlabel, size=TEXT_SIZE, color=MUTED, labelpad=3)
    above = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "baseline"}
    axes.annotate(title, (0, 1), (0, 20), size=TITLE_SIZE, weight="bold", color=INK, **above)
    axes.annotate(unit, (0, 1), (0, 8), size=TEXT_SIZE, color=MUTED, **above)


def counter_axis(axes: Axes, last: float) -> None:
    """An x-axis from 0 to the last iteration or step, with whole numbers on it."""
    axes.set_xlim(0, max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def trace(axes: Axes, series: pd.Series, color: str, *, faint: bool = True) -> None:
    """A noisy series: its moving average as a thick line, and with ``faint`` every value as a thin one."""
    if series.empty:
        return
    window = smoothing_window(len(series))
    if faint and window > 1:
        axes.plot(series.index, series, color=color, linewidth=0.7, alpha=0.35, zorder=2)
    mean = series.rolling(window, center=True, min_periods=1).mean()
    axes.plot(series.index, mean, color=color, linewidth=1.8, zorder=3)


def smoothing_window(count: int) -> int:
    """Length of the moving average: about a twentieth of the series, and odd; 1 for short ones."""
    return 1 if count < 40 else 2 * (count // 40) + 1


def points(axes: Axes, series: pd.Series, color: str) -> None:
    """A measured series: a dot at each measurement, joined."""
    if series.empty:
        return
    style = {"linewidth": 1.9, "markersize": 3.6 if len(series) <= 45 else 0, "zorder": 4, "clip_on": False}
    axes.plot(series.index, series, color=color, marker="o", markeredgecolor=PAPER, markeredgewidth=0.6, **style)


def limits(
    axes: Axes,
    values: Iterable[pd.Series],
    *,
    floor: float | None = None,
    include: Sequence[float] = (),
    lowest: float | None = None,
) -> None:
    """Room for all values.

    Args:
        floor: the axis starts exactly here, unless a value is lower all the same.
        include: values that must be in view whatever the data.
        lowest: cut the view here, and say so in the corner, where values lie below.
    """
    kept = [np.asarray(series, dtype=float) for series in values if len(series)]
    data = np.concatenate([*kept, np.asarray(include, dtype=float), [0.0] if not kept else []])
    low, high = float(data.min()), float(data.max())
    if lowest is not None and low < lowest:
        text = f"view cut at {lowest:g}".replace("-", "−")
        axes.annotate(
            text, (0.985, 0.04), xycoords="axes fraction", ha="right", size=7.5, color=MUTED, path_effects=[HALO]
        )
        low = lowest
    if floor is not None and low >= floor:
        headroom = 1.4 if high == low else 1.08
        axes.set_ylim(floor, floor + (high - floor or 1.0) * headroom)
        return
    room = 0.08 * (high - low) or max(abs(high), 1.0) * 0.1
    axes.set_ylim(low - room, high + room)


def reference(axes: Axes, y: float, text: str = "", *, color: str = MUTED, dashed: bool = True) -> None:
    """A horizontal line that means something (zero, chance, a ceiling), named at its right end."""
    axes.axhline(y, color=color, linewidth=0.9, linestyle=(0, (4, 3)) if dashed else "-", zorder=1.5)
    if text:
        axes.annotate(
            text,
            (1, y),
            (-2, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            size=7.5,
            color=color,
            path_effects=[HALO],
            zorder=5,
        )


def text_width(text: str, *, size: float, weight: str = "normal") -> float:
    """Width of a text in inches, in the font that the figure will be drawn with."""
    if not text.strip():
        return 0.0
    return TextPath((0, 0), text, size=size, prop=FontProperties(weight=weight)).get_extents().width / 72


def zero_line(axes: Axes) -> None:
    """A solid line at zero, where zero lies strictly within view."""
    low, high = axes.get_ylim()
    if low < 0 < high:
        axes.axhline(0, color=AXIS, linewidth=1.0, zorder=1.5)


def end_labels(axes: Axes, labels: Sequence[Label], *, offset: float = 7.0) -> None:
    """Labels right of the lines' ends, moved apart where they would overlap."""
    width, height = axes.get_position().size * axes.figure.get_size_inches() * 72
    fraction = (axes.transData + axes.transAxes.inverted()).transform
    right = axes.get_xlim()[1]
    ends = [fraction((right if label.x is None else label.x, label.y)) for label in labels]
    columns: dict[int, list[int]] = {}  # Labels that end within one label's width of each other.
    for index in sorted(range(len(labels)), key=lambda index: -ends[index][0]):
        near = next((first for first in columns if (ends[first][0] - ends[index][0]) * width < 90), index)
        columns.setdefault(near, []).append(index)
    for column in columns.values():
        sizes = [27.0 if labels[index].note else 13.0 for index in column]
        heights = [float(ends[index][1]) * height for index in column]
        for index, placed in zip(column, spread(heights, sizes, height), strict=True):
            _end_label(axes, labels[index], float(ends[index][0]), placed, offset)


def _end_label(axes: Axes, label: Label, x: float, y: float, offset: float) -> None:
    """One label; ``x`` as a fraction of the panel, ``y`` in points above its lower edge."""
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False, "zorder": 6}
    halo = [HALO] if x < 0.999 else None
    shift = 1.0 if label.note else -3.5 if halo is None else 2.0
    text, note = (offset, y + shift), (offset, y - 10.5)
    axes.annotate(label.text, (x, 0), text, color=label.color, weight="bold", size=9.5, path_effects=halo, **place)
    if label.note:
        axes.annotate(label.note, (x, 0), note, color=MUTED, size=8.0, path_effects=halo, **place)


def spread(centres: Sequence[float], sizes: Sequence[float], extent: float) -> list[float]:
    """Move intervals apart, in their order and within 0 … extent, by the least sum of squares.

    With the stacked offsets taken off, "no overlap" means "non-decreasing": isotonic regression, by pooling
    adjacent violators, then a clip at both ends.
    """
    order = sorted(range(len(centres)), key=lambda index: centres[index])
    gaps = [(sizes[below] + sizes[above]) / 2 for below, above in itertools.pairwise(order)]
    offsets = list(itertools.accumulate(gaps, initial=0.0))
    pools: list[list[float]] = []
    for index, offset in zip(order, offsets, strict=False):
        pools.append([centres[index] - offset])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    levels = [float(np.mean(pool)) for pool in pools for _ in pool]
    placed = list(centres)
    for index, level, offset in zip(order, levels, offsets, strict=False):
        lowest = sizes[order[0]] / 2
        highest = extent - sizes[order[-1]] / 2 - offsets[len(order) - 1]
        placed[index] = max(min(level, highest), lowest) + offset
    return placed


def log_limits(axes: Axes, values: Iterable[pd.Series]) -> None:
    """A logarithmic axis with room for all values, and plain numbers on it."""
    data = np.concatenate([np.asarray(series, dtype=float) for series in values])
    low, high = float(data.min()), float(data.max())
    room = max(high / low, 1.2) ** 0.08
    axes.set_yscale("log")
    axes.set_ylim(low / room, high * room)
    ticks = [step * 10.0**power for power in range(-6, 7) for step in (1, 2, 5)]
    axes.set_yticks([tick for tick in ticks if low / room <= tick <= high * room])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def kl_axis(axes: Axes, furthest: float) -> None:
    """An x-axis for KL on a square-root scale, from 0 to the furthest value."""
    furthest = max(furthest, 0.01)
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axes.set_xlim(0, furthest)
    ticks = [0.0]
    power = 10.0 ** math.floor(math.log10(furthest))
    candidates = [step * 10.0**power for power in range(-2, 5) for step in (1, 2, 5)]
    for tick in [*(tick for tick in candidates if tick <= furthest), math.floor(furthest / power) * power]:
        if math.sqrt(tick) - math.sqrt(ticks[-1]) > 0.11 * math.sqrt(furthest):
            ticks.append(tick)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def against(values: pd.Series, kl: pd.Series) -> pd.Series:
    """The values with KL, rather than the iteration, as index; an estimate below 0 counts as 0."""
    shared = values.index.intersection(kl.index)
    return pd.Series(values[shared].to_numpy(), index=kl[shared].clip(lower=0).to_numpy())
