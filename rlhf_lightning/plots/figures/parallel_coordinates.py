"""The trials of a sweep: one line each, through the values of its parameters to what it reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import heading, shortened, write
from rlhf_lightning.plots.kit.style import AXIS, GOLD, INK, MUTED, PAPER, TEXT_SIZE, TITLE_SIZE, number, styled

_BETWEEN, _HEIGHT, _LEAST = 1.45, 3.0, 4.4
"""Inches between two axes, of an axis, and of the least width of all."""

_WORST, _MIDDLE, _BEST = "#cfd6dd", "#4f8fb5", "#12305c"
_SHADES = LinearSegmentedColormap.from_list("reached", [_WORST, _MIDDLE, _BEST])
_HALO = withStroke(linewidth=3.2, foreground=PAPER)
_INSET = 0.04
"""Share of an axis that is left free at its ends."""


@dataclass(frozen=True)
class Axis:
    """An axis of the figure.

    Args:
        name: of its column in the table.
        choices: the texts of its values, from the lowest up, where they are no numbers.
        log: whether its scale is logarithmic.
        title: above it; the name by default.
    """

    name: str
    choices: tuple[str, ...] = ()
    log: bool = False
    title: str = ""


@styled
def parallel_coordinates(
    table: pd.DataFrame, axes: Sequence[Axis], metric: str, *, maximize: bool, name: str, title: str = "Trials"
) -> Figure:
    """Draw the trials of a sweep.

    Args:
        table: one row per trial, with its ``state`` and a column for each axis and for the metric.
        axes: from left to right; the metric stands right of them.
        maximize: whether more of the metric is better: the darker a line, the better its trial.
        name: of the sweep.

    Raises:
        UserError: no trial has a value yet.
    """
    reached = table[table[metric].notna()] if metric in table else table.iloc[:0]
    if reached.empty or not axes:
        raise UserError("no trial has a value yet: nothing to draw")
    shown = [*axes, Axis(metric)]
    width = max(_LEAST, _BETWEEN * (len(shown) - 1))
    figure, (panel,) = panels.sheet(1, columns=1, size=(width, _HEIGHT), top=1.1, bottom=0.2, left=0.75, right=0.95)
    given_up = int((reached["state"] == "given up").sum()) if "state" in reached else 0
    note = (
        f"{len(reached)} trials of {name} · darker: {'higher' if maximize else 'lower'} {metric} · gold: the best one"
    )
    heading(figure, title, note + (f" · dashed: {given_up} given up early" if given_up else ""))
    _bare(panel, len(shown))
    places = [_scale(axis, table[axis.name].dropna(), panel, place) for place, axis in enumerate(shown)]
    _draw_lines(panel, reached, shown, places, sign=1 if maximize else -1)
    return figure


def _bare(panel: Axes, count: int) -> None:
    """A panel without a frame, from 0 to 1 upwards and from the first axis to the last."""
    panel.set_xlim(0, count - 1)
    panel.set_ylim(0, 1)
    panel.set_axis_off()
    for place in range(count):
        panel.plot([place, place], [0, 1], color=AXIS, linewidth=1.0, zorder=4, clip_on=False)


def _scale(axis: Axis, values: pd.Series, panel: Axes, place: int) -> Callable[[Any], float]:
    """Name an axis and its ticks; returns where on it, from 0 to 1, a value lies."""
    shown = shortened(axis.title or axis.name, width=_BETWEEN - 0.12, size=TEXT_SIZE + 0.5, weight="bold")
    style = {"ha": "center", "va": "baseline", "size": TEXT_SIZE + 0.5, "weight": "bold", "color": INK}
    write(panel, shown, (place, 1), (0, 9), xycoords="data", **style)
    if axis.choices:
        spread = np.linspace(1, 0, len(axis.choices)) if len(axis.choices) > 1 else np.array([0.5])
        heights = dict(zip(axis.choices, _inset(1 - spread), strict=True))
        ticks: Mapping[float, str] = {height: text for text, height in heights.items()}
        position = lambda value: heights[str(value)]  # noqa: E731
    else:
        position, ticks = _numbers(axis, values.astype(float))
    for height, text in ticks.items():
        panel.plot([place - 0.012, place + 0.012], [height] * 2, color=AXIS, linewidth=1.0, zorder=4, clip_on=False)
        label = shortened(text, width=_BETWEEN - 0.3, size=7.5)
        tick = {"size": 7.5, "color": MUTED, "va": "center", "path_effects": [_HALO], "zorder": 6}
        write(panel, label, (place, height), (6, 0), xycoords="data", ha="left", **tick)
    return position


def _inset(share: Any) -> Any:
    return _INSET + (1 - 2 * _INSET) * share


def _numbers(axis: Axis, values: pd.Series) -> tuple[Callable[[Any], float], dict[float, str]]:
    """Where numbers lie on their axis, and its ticks."""
    scale: Callable[[float], float] = math.log10 if axis.log else float
    low, high = scale(values.min()), scale(values.max())
    extent = (high - low) or 1.0
    middle = high == low

    def position(value: Any) -> float:
        return float(0.5 if middle else _inset((scale(float(value)) - low) / extent))

    whole = bool((values == values.round()).all())
    steps = MaxNLocator(5, integer=whole, steps=[1, 2, 2.5, 5, 10])
    candidates = _powers(values.min(), values.max()) if axis.log else steps.tick_values(low, high)
    inside = [tick for tick in candidates if low - 1e-9 <= scale(tick) <= high + 1e-9]
    if len(inside) < 2:
        inside = sorted({float(values.min()), float(values.max())})
    return position, {position(tick): _tick(tick) for tick in inside}


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten between two numbers; with 2 and 5 times them where these are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if math.log10(high / low) > 2.5 else (1, 2, 5)
    return [step * 10.0**decade for decade in decades for step in steps]


def _tick(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e−").replace("e+0", "e").replace("-", "−")
    return f"{value:g}".replace("-", "−")


def _draw_lines(
    panel: Axes, reached: pd.DataFrame, axes: Sequence[Axis], places: Sequence[Callable[[Any], float]], *, sign: int
) -> None:
    """A smooth line for each trial, the better above the worse, and the best one in a colour of its own."""
    metric = axes[-1].name
    ranks = (sign * reached[metric].astype(float)).rank(pct=True)
    complete = reached[reached["state"] == "complete"] if "state" in reached else reached
    best = (sign * (complete if len(complete) else reached)[metric].astype(float)).idxmax()
    for index in ranks.sort_values(kind="stable").index:
        row = reached.loc[index]
        if any(row[axis.name] is None for axis in axes):
            continue
        heights = [position(row[axis.name]) for axis, position in zip(axes, places, strict=True)]
        is_best = index == best
        dashed = "state" in reached and row["state"] == "given up"
        color = GOLD if is_best else to_hex(_SHADES(float(ranks[index])))
        style = {"linewidth": 2.4 if is_best else 1.3, "alpha": 1.0 if is_best else 0.85, "zorder": 5 if is_best else 3}
        line = PathPatch(_smooth(heights), facecolor="none", edgecolor=color, clip_on=False, capstyle="round", **style)
        line.set_linestyle(panels.DASHES if dashed else "solid")
        panel.add_patch(line)
        if is_best:
            dots: dict[str, Any] = {
                "color": GOLD,
                "marker": "o",
                "markersize": 5.5,
                "markeredgecolor": PAPER,
                "zorder": 7,
            }
            panel.plot(range(len(heights)), heights, linestyle="none", clip_on=False, **dots)
            value = {"size": TITLE_SIZE, "weight": "bold", "color": GOLD, "va": "center", "path_effects": [_HALO]}
            write(panel, number(float(row[metric])), (len(axes) - 1, heights[-1]), (34, 0), xycoords="data", **value)


def _smooth(heights: Sequence[float]) -> Path:
    """A line from axis to axis that is level where it crosses one."""
    points, codes = [(0.0, heights[0])], [int(Path.MOVETO)]
    for place, (left, right) in enumerate(pairwise(heights)):
        points += [(place + 0.45, left), (place + 0.55, right), (place + 1.0, right)]
        codes += [int(Path.CURVE4)] * 3
    return Path(points, codes)
