"""Confidence intervals. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist, fmean, stdev, variance


def wilson_interval(wins: float, count: float, *, z: float = NormalDist().inv_cdf(0.975)) -> tuple[float, float]:
    """Confidence interval of a share that is estimated by ``wins`` out of ``count`` (Wilson 1927).

    Args:
        wins: a tie may count one half.
        z: quantile of the normal distribution, by default for 95 %.
    """
    share, spread = wins / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = (share * (1 - share) * spread + spread * spread / 4) ** 0.5 / (1 + spread)
    return middle - half, middle + half


def clustered_wilson_interval(
    clusters: Sequence[Sequence[float]], *, z: float = NormalDist().inv_cdf(0.975)
) -> tuple[float, float]:
    """`wilson_interval` of a share whose observations come in clusters, such as several responses to each prompt.

    Observations of one cluster resemble each other and count for less: their number is replaced by that of independent
    ones which would determine the share as precisely (the effective sample size of Korn & Graubard 1998, "Confidence
    Intervals for Proportions with Small Expected Number of Positive Counts Estimated from Survey Data"). With one
    observation in each cluster it is Wilson's interval.

    Args:
        clusters: observations from 0 to 1, one or more in each.
        z: quantile of the normal distribution, by default for 95 %.
    """
    total, count = sum(map(sum, clusters)), sum(map(len, clusters))
    share, effective = total / count, float(len(clusters))
    if count > len(clusters) > 1:
        # The variance of a ratio of two sums over clusters, by linearization.
        squares = sum((sum(cluster) - share * len(cluster)) ** 2 for cluster in clusters)
        variance = len(clusters) / (len(clusters) - 1) * squares / count**2
        if variance > 0:
            effective = min(share * (1 - share) / variance, count)
    return wilson_interval(share * effective, effective, z=z)


def student_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Mean of independent measurements, and half the width of Student's confidence interval; NaN for a single value."""
    if len(values) < 2:
        return fmean(values), math.nan
    return fmean(values), student_quantile(len(values), level=level) * stdev(values) / math.sqrt(len(values))


@cache
def student_quantile(count: int, *, level: float = 0.95) -> float:
    """Half the width of Student's confidence interval of a mean of ``count`` values, in standard errors."""
    from scipy.stats import t  # here, since the import takes a second

    return float(t.ppf((1 + level) / 2, count - 1))


def welch_interval(ours: Sequence[float], theirs: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Difference of two means, ours less theirs, and half the width of its confidence interval (Welch 1947).

    The two samples are independent, of two values or more each, and may differ in their spread. The degrees of freedom
    are those of Satterthwaite: (s₁²/n₁ + s₂²/n₂)² / (s₁⁴/(n₁² (n₁ − 1)) + s₂⁴/(n₂² (n₂ − 1))).
    """
    from scipy.stats import t

    errors = [variance(values) / len(values) for values in (ours, theirs)]
    difference = fmean(ours) - fmean(theirs)
    if not any(errors):
        return difference, 0.0
    weights = (error**2 / (len(values) - 1) for error, values in zip(errors, (ours, theirs), strict=True))
    freedom = sum(errors) ** 2 / sum(weights)
    return difference, float(t.ppf((1 + level) / 2, freedom)) * math.sqrt(sum(errors))
