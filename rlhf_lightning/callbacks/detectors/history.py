"""What a detector remembers of a run, and how it reads noisy series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

ROWS = 5
"""Rows whose median stands for a noisy metric: a batch of a hundred responses says little by itself."""

REMEMBERED = 256
"""Values that are kept of each metric: an iteration and a checkpoint of a long run cost no more than of a short one."""


@dataclass
class Series:
    """The values of one metric, in order: the first few and the last `REMEMBERED`.

    Args:
        at: iteration or step of each of the last values.
        values: the last values.
        first: the first `ROWS` values.
        count: how many there were in all.
    """

    at: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    count: int = 0

    def add(self, at: int, value: float) -> None:
        """Append, unless nobody knows it: NaN. An infinite one is a finding."""
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
        """Level at which the run began: the median of the first rows."""
        return median(self.first[:rows])

    def now(self, rows: int = ROWS) -> float:
        """Level that the run is at: the median of the last rows."""
        return self.level(0, rows)

    def level(self, back: int, rows: int = ROWS) -> float:
        """Level ``back`` values ago: the median of the rows up to then; at the beginning there are fewer."""
        end = len(self.values) - back
        return median(self.values[max(0, end - rows) : end])


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
