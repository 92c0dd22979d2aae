"""The history of metrics that a detector keeps, and statistics of noisy series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

ROWS = 5
"""Number of rows whose median is the level of a noisy metric; a single batch of responses is too noisy."""

REMEMBERED = 256
"""Number of values that are kept of each metric, so that time and memory do not grow with the length of a run."""


@dataclass
class Series:
    """The values of one metric, in order: the first few and the last `REMEMBERED`.

    Args:
        at: iteration or step of each of the last values.
        values: the last values.
        first: the first `ROWS` values.
        count: number of all values, including those that are no longer kept.
    """

    at: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    count: int = 0

    def add(self, at: int, value: float) -> None:
        """Append a value, unless it is NaN. Infinite values are kept: they may indicate a failure."""
        if math.isnan(value):
            return
        self.count += 1
        self.at = [*self.at[1 - REMEMBERED :], at]
        self.values = [*self.values[1 - REMEMBERED :], value]
        if len(self.first) < ROWS:
            self.first.append(value)

    def __len__(self) -> int:
        return self.count

    def start(self, rows: int = ROWS) -> float:
        """The first level: the median of the first rows."""
        return median(self.first[:rows])

    def now(self, rows: int = ROWS) -> float:
        """The current level: the median of the last rows."""
        return self.level(0, rows)

    def level(self, back: int, rows: int = ROWS) -> float:
        """The level ``back`` values ago: the median of at most ``rows`` values up to then."""
        end = len(self.values) - back
        return median(self.values[max(0, end - rows) : end])

    def grew(self, factor: float | None, rows: int = ROWS) -> bool:
        """Whether the level is more than ``factor`` times the first one; never for None, or from fewer rows."""
        return factor is not None and len(self) >= rows and self.now(rows) > factor * self.start(rows)


History = Mapping[str, Series]
"""The series of each metric of a run so far, by name."""


def noise(values: Sequence[float]) -> float:
    """Standard deviation of the values about their trend, from the differences of neighbours.

    1.4826 · median |xₜ₊₁ − xₜ| / √2, which is robust against a trend and single jumps (Rousseeuw & Croux 1993 on the
    median absolute deviation).
    """
    return 1.4826 * median(abs(b - a) for a, b in pairwise(values)) / math.sqrt(2) if len(values) > 1 else math.inf


def standard_error_of_median(values: Sequence[float], rows: int = ROWS) -> float:
    """The standard error of the median of ``rows`` values with this `noise`, √(π/2) times that of their mean."""
    return math.sqrt(math.pi / 2 / rows) * noise(values)
