"""What a detector remembers of a run, and how it reads noisy series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

ROWS = 5
"""Rows whose median stands for a noisy metric: a batch of a hundred responses says little by itself."""


@dataclass
class Series:
    """The values of one metric, in order.

    Args:
        at: iteration or step of each value.
    """

    at: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, at: int, value: float) -> None:
        """Append, unless nobody knows it: NaN. An infinite one is a finding."""
        if not math.isnan(value):
            self.at.append(at)
            self.values.append(value)

    def __len__(self) -> int:
        return len(self.values)

    def start(self, rows: int = ROWS) -> float:
        """Level at which the run began: the median of the first rows."""
        return median(self.values[:rows])

    def now(self, rows: int = ROWS) -> float:
        """Level that the run is at: the median of the last rows."""
        return median(self.values[-rows:])

    def level(self, rows: int = ROWS) -> list[float]:
        """Median of the last rows at each value; the first few have fewer behind them."""
        return [median(self.values[max(0, end - rows) : end]) for end in range(1, len(self.values) + 1)]

    def at_or_before(self, at: int) -> float | None:
        """The level as it was then; None before the first value."""
        known = sum(position <= at for position in self.at)
        return median(self.values[max(0, known - ROWS) : known]) if known else None


History = Mapping[str, Series]
"""A run so far: the series of each metric that was logged, by name."""


def noise(values: Sequence[float]) -> float:
    """Standard deviation of a value about the trend, from the differences of neighbours.

    1.4826 · median |xₜ₊₁ − xₜ| / √2, which neither a trend nor a jump changes much (Rousseeuw & Croux 1993 on the
    median absolute deviation).
    """
    return 1.4826 * median(abs(b - a) for a, b in pairwise(values)) / math.sqrt(2) if len(values) > 1 else math.inf


def standard_error_of_median(values: Sequence[float], rows: int = ROWS) -> float:
    """Of the median of ``rows`` values with this `noise`, √(π/2) times that of a mean."""
    return math.sqrt(math.pi / 2 / rows) * noise(values)
