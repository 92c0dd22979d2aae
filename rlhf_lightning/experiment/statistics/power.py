"""How many seeds would decide: sample sizes for power 0.8, from the spread that a pilot showed.

The spread of a few differences is itself uncertain (with five seeds the true one may be 0.6 to 2.9 times as large),
and so is what follows from it (Colas et al. 2018): every number comes with a range. The formulas are for
normal differences; below 15 seeds, where sign flips must hold as well, the level is the one that sign flips attain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlhf_lightning.experiment.statistics.arms import FEW_SEEDS
from rlhf_lightning.experiment.statistics.scores import Numbers

POWER = 0.8
MOST_SEEDS = 1_000
"""Beyond so many seeds no number is named."""
_LARGEST_EFFECT = 30.0
"""In standard deviations; beyond it two or three seeds are enough, and the noncentral t distribution overflows."""


@dataclass(frozen=True)
class MoreSeeds:
    """How many seeds would probably decide, besides those that there are.

    Args:
        number: at the observed spread; `MOST_SEEDS` + 1 stands for more than `MOST_SEEDS`.
        low: if the true spread is at the lower end of its 95 % interval.
        high: if it is at the upper end.
    """

    number: int
    low: int
    high: int

    def __str__(self) -> str:
        if self.number > MOST_SEEDS:
            return f"more than {MOST_SEEDS:,} more seeds"
        high = f"{self.high}" if self.high <= MOST_SEEDS else f"more than {MOST_SEEDS:,}"
        return f"{self.number} more {'seed' if self.number == 1 else 'seeds'} ({self.low} to {high})"


def seeds_to_detect(difference: float, sd: float, *, level: float, power: float = POWER) -> int:
    """Seeds with which a paired, two-sided test finds a difference with the given power.

    Args:
        difference: true mean of the paired differences.
        sd: their standard deviation.
        level: of the test; divide by the number of claims.

    Returns:
        At most `MOST_SEEDS` + 1, which stands for more than `MOST_SEEDS`.
    """
    return _first(_power_of_one_side(abs(difference), sd, level / 2) >= power)


def seeds_for_equivalence(
    margin: float, sd: float, *, difference: float = 0.0, level: float, power: float = POWER
) -> int:
    """Seeds with which two one-sided tests (Schuirmann 1987) show equivalence with the given power.

    Args:
        difference: true mean of the paired differences, within the margin.

    Returns:
        As `seeds_to_detect`.
    """
    sides = [_power_of_one_side(margin - offset, sd, level) for offset in (difference, -difference)]
    return _first(sides[0] + sides[1] - 1 >= power)


def _power_of_one_side(difference: float, sd: float, level: float) -> Numbers:
    """Power of a one-sided test for each number of seeds from 2 to `MOST_SEEDS`."""
    from scipy.stats import norm
    from statsmodels.stats.power import ttest_power

    if difference <= 0:
        return np.zeros(MOST_SEEDS - 1)
    effect = min(difference / sd, _LARGEST_EFFECT) if sd > 0 else _LARGEST_EFFECT
    seeds = np.arange(2, MOST_SEEDS + 1)
    flips = 2.0 ** np.minimum(seeds, FEW_SEEDS)
    passing = np.floor(level * flips)  # how many of the sign flips may be at least as extreme
    levels = np.where(seeds < FEW_SEEDS, passing / flips, level)
    found = np.zeros(len(seeds))
    possible = levels > 0
    found[possible] = ttest_power(effect, seeds[possible], levels[possible], alternative="larger")
    # If only one may be, all differences must have the same sign.
    alone = (seeds < FEW_SEEDS) & (passing == 1)
    found[alone] = np.minimum(found[alone], norm.cdf(effect) ** seeds[alone])
    return np.nan_to_num(found, nan=1.0)


def _first(enough: np.ndarray) -> int:
    """The smallest number of seeds that is enough."""
    return int(np.argmax(enough)) + 2 if enough.any() else MOST_SEEDS + 1


def sd_interval(sd: float, seeds: int, *, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a standard deviation that was estimated from so many normal values."""
    from scipy.stats import chi2

    tail = (1 - level) / 2
    low, high = (sd * math.sqrt((seeds - 1) / float(chi2.ppf(end, seeds - 1))) for end in (1 - tail, tail))
    return low, high


def more_seeds(seeds: int, sd: float, plan: Callable[[float], int]) -> MoreSeeds:
    """How many seeds are missing, with the range that the uncertainty of the spread leaves.

    Args:
        seeds: how many there are, at least two.
        sd: standard deviation over them.
        plan: the number of seeds needed in all, by the true standard deviation.
    """

    def missing(spread: float) -> int:
        needed = plan(spread)
        return needed if needed > MOST_SEEDS else max(needed - seeds, 1)

    low, high = sd_interval(sd, seeds)
    return MoreSeeds(missing(sd), missing(low), missing(high))
