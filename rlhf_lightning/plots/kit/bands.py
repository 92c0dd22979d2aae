"""A metric over the seeds of an arm: every seed, their mean, and the interval of the mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from rlhf_lightning.intervals import student_quantile
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.style import PAPER

BAND, THIN = "Line: mean over seeds; band: its 95 % interval (Student)", "thin: every seed"
"""What the parts of an arm's curve are, to be put into a figure's note."""

_MOST_POINTS = 200

_FEWEST = 3
"""Seeds from which on a band is drawn: the interval from two is a dozen times as wide as what was measured."""


def _nothing() -> pd.Series:
    return pd.Series(dtype=float)


@dataclass(frozen=True)
class Curve:
    """A metric along an axis, over one seed or several.

    Args:
        seeds: the metric of each run, indexed by what the axis counts.
        mean: over the seeds; the metric itself where there is one.
        low: lower end of the 95 % interval of the mean, by Student's distribution, where three seeds have a value.
        high: upper end.
    """

    seeds: tuple[pd.Series, ...]
    mean: pd.Series
    low: pd.Series = field(default_factory=_nothing)
    high: pd.Series = field(default_factory=_nothing)

    @property
    def several(self) -> bool:
        """Whether it is of several seeds."""
        return len(self.seeds) > 1

    @property
    def furthest(self) -> float:
        """Where the seed that came furthest along the axis was then."""
        return max(float(seed.index.max()) for seed in self.seeds)

    @property
    def lasts(self) -> list[float]:
        """The last value of each seed."""
        return [float(seed.iloc[-1]) for seed in self.seeds]

    @property
    def ended_early(self) -> tuple[pd.Series, ...]:
        """The seeds that stopped before 95 % of what the furthest one counts."""
        return tuple(seed for seed in self.seeds if seed.index.max() < 0.95 * self.furthest)


def curve(seeds: Sequence[pd.Series], *, least: int) -> Curve:
    """Mean and interval over seeds wherever enough of them have a value, at the points at which any was measured.

    Between the points of a seed its value is interpolated; beyond its ends it has none.

    Args:
        seeds: at least one, each indexed by numbers that do not decrease.
        least: number of seeds that must have a value; at least 2, but for a single seed.
    """
    if len(seeds) == 1:
        return Curve(tuple(seeds), seeds[0])
    places = np.unique(np.concatenate([seed.index.to_numpy(dtype=float) for seed in seeds]))
    if len(places) > _MOST_POINTS:
        places = places[np.linspace(0, len(places) - 1, _MOST_POINTS).round().astype(int)]
    table = pd.DataFrame(
        {
            number: np.interp(places, seed.index.to_numpy(dtype=float), seed, left=np.nan, right=np.nan)
            for number, seed in enumerate(seeds)
        },
        index=places,
    )
    count = table.count(axis=1)
    table, count = table[count >= max(least, 2)], count[count >= max(least, 2)]
    mean, deviation = table.mean(axis=1), table.std(axis=1, ddof=1)
    half = (count.map(student_quantile) * deviation / np.sqrt(count))[count >= _FEWEST]
    return Curve(tuple(seeds), mean, mean[half.index] - half, mean[half.index] + half)


def draw_band(axes: Axes, curve: Curve, color: str, *, marker: str = "", faint: float = 0.4) -> None:
    """The seeds as thin lines, the interval as a band, and the mean as a line with some markers on it.

    Args:
        marker: drawn about eight times along the mean; none where empty.
        faint: opacity of the seeds' lines; 0 for none.
    """
    for seed in curve.seeds if faint else ():
        line = panels.outward(seed)
        axes.plot(line.index, line, color=color, linewidth=0.7, alpha=faint, zorder=2)
    if curve.mean.empty:
        return
    axes.fill_between(curve.low.index, curve.low, curve.high, color=color, alpha=0.13, linewidth=0, zorder=1.8)
    every = max(1, round(len(curve.mean) / 8))
    axes.plot(
        curve.mean.index,
        curve.mean,
        color=color,
        linewidth=1.9,
        marker=marker or None,
        markersize=5.5,
        markevery=every,
        markeredgecolor=PAPER,
        markeredgewidth=0.6,
        zorder=4,
        clip_on=False,
    )


def mark_early_ends(axes: Axes, curve: Curve, color: str) -> None:
    """A cross where a seed stopped before the others."""
    for seed in curve.ended_early:
        axes.plot(seed.index[-1], seed.iloc[-1], "x", color=color, markersize=6, markeredgewidth=1.6, zorder=5)


def extents(curves: Iterable[Curve]) -> list[pd.Series]:
    """What must be in view of some curves: all seeds, and bands as far as they do not dwarf them."""
    found = list(curves)
    seeds = [seed for one in found for seed in one.seeds]
    low, high = min(float(seed.min()) for seed in seeds), max(float(seed.max()) for seed in seeds)
    room = 0.2 * (high - low)
    ends = [end for one in found for end in (one.low, one.high) if len(end)]
    return [*seeds, *(end.clip(low - room, high + room) for end in ends)]
