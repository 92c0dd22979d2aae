"""What the figures are built from: panels on a sheet, lines, honest limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from rlhf_lightning.plots.kit.labels import HALO, write
from rlhf_lightning.plots.kit.style import AXIS, GRID, INK, MUTED, PAPER, TEXT_SIZE, TITLE_SIZE

DASHES = (0, (4, 3))
"""Of lines that mean something: points drawn, points left out."""

KL_LABEL = "KL to the reference, nats per sequence (√ scale)"


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


def dress(
    axes: Axes, title: str = "", unit: str = "", *, xlabel: str = "", offset: tuple[float, float] = (0, 8)
) -> None:
    """Style a panel: a light horizontal grid, no box, title and unit above, name of the x-axis below.

    Args:
        offset: of the unit from the panel's upper left corner, in points.
    """
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(AXIS)
        spine.set_linewidth(0.8)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(length=0, colors=MUTED, labelcolor=MUTED, labelsize=TEXT_SIZE, pad=4)
    axes.tick_params(axis="x", length=3, color=AXIS)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(PlainTicks())
    if xlabel:
        axes.set_xlabel(xlabel, size=TEXT_SIZE, color=MUTED, labelpad=3)
    left, up = offset
    write(axes, title, (0, 1), (left, up + 12), size=TITLE_SIZE, weight="bold", color=INK, va="baseline")
    write(axes, unit, (0, 1), (left, up), size=TEXT_SIZE, color=MUTED, va="baseline")


class PlainTicks(ScalarFormatter):
    """Numbers that carry their own factor, ``20k`` and ``5e−6``: one beside the axis would hide its unit."""

    def get_offset(self) -> str:
        """Nothing beside the axis."""
        return ""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """A tick's label."""
        largest = max((abs(tick) for tick in self.locs), default=0.0)
        if largest >= 10_000:
            return f"{x / 1000:g}k".replace("-", "−") if x else "0"
        if 0 < largest < 1e-3:
            return f"{x:.2g}".replace("e-0", "e-").replace("-", "−") if x else "0"
        return super().__call__(x, pos)


def counter_axis(axes: Axes, last: float) -> None:
    """An x-axis from 0 to the last iteration or step, with whole numbers on it."""
    axes.set_xlim(0, max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    thousands = last >= 10_000
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if thousands and value else f"{value:,.0f}")


def trace(axes: Axes, series: pd.Series, color: str, *, faint: bool = True) -> None:
    """A noisy series: its moving average as a thick line, and with ``faint`` every value as a thin one."""
    if faint and smoothing_window(len(series)) > 1:
        axes.plot(series.index, series, color=color, linewidth=0.7, alpha=0.35, zorder=2)
    mean = averaged(series)
    axes.plot(mean.index, mean, color=color, linewidth=1.8, zorder=3)


def averaged(series: pd.Series) -> pd.Series:
    """The moving average of a noisy series."""
    return series.rolling(smoothing_window(len(series)), center=True, min_periods=1).mean()


def smoothing_window(count: int) -> int:
    """Length of the moving average: about a twentieth of the series, and odd; 1 for short ones."""
    return 1 if count < 40 else 2 * (count // 40) + 1


def points(axes: Axes, series: pd.Series, color: str) -> None:
    """A measured series: a dot at each measurement, joined by a line that never goes back (see `outward`)."""
    if series.empty:
        return
    dots: dict[str, Any] = {"color": color, "marker": "o", "markeredgecolor": PAPER, "markeredgewidth": 0.6}
    dots |= {"zorder": 4, "clip_on": False}
    line = outward(series)
    if len(line) < len(series):
        axes.plot(series.index, series, linestyle="none", markersize=3.6, **dots)
    axes.plot(line.index, line, linewidth=1.9, markersize=3.6 if len(series) <= 45 else 0, **dots)


def outward(series: pd.Series) -> pd.Series:
    """The values at which the series was further along the x-axis than ever before: KL may fall again."""
    places = series.index.to_numpy()
    return series[places >= np.maximum.accumulate(places)] if len(series) else series


def apart(curves: Iterable[pd.Series]) -> str:
    """What the dots beside a line are, to be appended to a note; empty where there are none."""
    back = any(len(outward(curve)) < len(curve) for curve in curves)
    return " · dots beside a line: the KL had been larger before" if back else ""


def limits(
    axes: Axes,
    values: Iterable[pd.Series],
    *,
    floor: float | None = None,
    include: Sequence[float] = (),
    lowest: float | None = None,
) -> None:
    """Set the limits of the y-axis so that all values are in view.

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
        write(axes, text, (0.985, 0.04), (0, 0), ha="right", size=7.5, color=MUTED, path_effects=[HALO])
        low = lowest
    if floor is not None and low >= floor:
        headroom = 1.4 if high == low else 1.08
        axes.set_ylim(floor, floor + (high - floor or 1.0) * headroom)
        return
    room = 0.08 * (high - low) or max(abs(high), 1.0) * 0.1
    axes.set_ylim(low - room, high + room)


def reference(axes: Axes, y: float, text: str = "", *, color: str = MUTED) -> None:
    """A horizontal line that means something (chance, a ceiling), named at its right end."""
    axes.axhline(y, color=color, linewidth=0.9, linestyle=DASHES, zorder=1.5)
    if text:
        style = {"ha": "right", "size": 7.5, "color": color, "path_effects": [HALO], "zorder": 5}
        write(axes, text, (1, y), (-2, 3), xycoords=("axes fraction", "data"), **style)


def zero_line(axes: Axes) -> None:
    """A solid line at zero, where zero lies strictly within view."""
    low, high = axes.get_ylim()
    if low < 0 < high:
        axes.axhline(0, color=AXIS, linewidth=1.0, zorder=1.5)


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
