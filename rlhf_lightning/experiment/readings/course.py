"""Readings of one metric along a run: its end, its mean, its distance from a target or from its peak."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlhf_lightning.errors import check_limits
from rlhf_lightning.experiment.readings.reading import (
    Reading,
    is_count,
    is_name,
    is_number,
    logged,
    logged_together,
)
from rlhf_lightning.plots.measures import experience
from rlhf_lightning.records.runs import Run


@dataclass(frozen=True)
class Last(Reading):
    """The last logged value."""

    def value(self, run: Run, metric: str) -> float:
        """That of the policy with which training ended."""
        return float(logged(run, metric).iloc[-1])


@dataclass(frozen=True)
class MeanOfLast(Reading):
    """Mean of the last ``count`` logged values."""

    count: int

    def __post_init__(self) -> None:
        check_limits("mean_of_last", {"count": (is_count(self.count), "a whole number of at least 1", self.count)})

    def value(self, run: Run, metric: str) -> float:
        """The mean; a run with fewer values lacks it, since its mean would be of an earlier time."""
        return float(logged(run, metric, at_least=self.count).iloc[-self.count :].mean())


@dataclass(frozen=True)
class MeanOverExperience(Reading):
    """Area under the learning curve divided by its length, by the trapezoidal rule.

    The curve runs over what the run learns from (sampled responses, environment steps, pairs), so that arms whose
    iterations differ in size are compared at equal experience. A fast learner scores higher than a slow one that ends
    at the same value.
    """

    def value(self, run: Run, metric: str) -> float:
        """The mean between the first and the last logged value."""
        curve = experience(run).along(logged(run, metric, at_least=2))
        places = curve.index.to_numpy(dtype=float)
        return float(np.trapezoid(curve, places) / (places[-1] - places[0]))


@dataclass(frozen=True)
class ShareBelow(Reading):
    """Share of the logged values that are ``limit`` or less."""

    limit: float

    def __post_init__(self) -> None:
        check_limits("share_below", {"limit": (is_number(self.limit), "a number", self.limit)})

    def value(self, run: Run, metric: str) -> float:
        """From 0 to 1."""
        return float((logged(run, metric) <= self.limit).mean())


@dataclass(frozen=True)
class DropFromPeak(Reading):
    """The largest logged value minus the last one.

    It is never negative: a curve that is flat but for noise drops from its highest evaluation, too. Where the size of
    the drop is claimed, `ChangeSincePeakOf` finds the peak in another metric, such as the same reward on training
    prompts, whose noise is independent.
    """

    def unfit_as_primary(self, metric: str) -> str:
        """It has one sign only."""
        return "a drop from the peak is never negative, whatever a run does"

    def value(self, run: Run, metric: str) -> float:
        """In units of the metric."""
        values = logged(run, metric, at_least=2)
        return float(values.max() - values.iloc[-1])


@dataclass(frozen=True)
class AtPeakOf(Reading):
    """The value at the iteration or step where another metric was largest.

    The best value without its bias, where the noise of both is independent: ``eval/gold`` at the peak of
    ``objective/gold``, the same reward on training prompts.
    """

    metric: str

    def __post_init__(self) -> None:
        _check_metric("at_peak_of", self.metric)

    def unfit_as_primary(self, metric: str) -> str:
        """At its own peak a metric has its best value."""
        return "the best of many looks is biased upward" if metric == self.metric else ""

    @property
    def further_metrics(self) -> tuple[str, ...]:
        """The metric whose peak it is."""
        return (self.metric,)

    def value(self, run: Run, metric: str) -> float:
        """In units of the metric, among the iterations or steps at which both were logged."""
        values, other = logged_together(run, metric, self.metric)
        return float(values[other.idxmax()])


@dataclass(frozen=True)
class ChangeSincePeakOf(Reading):
    """The last value minus that at the iteration or step where another metric was largest.

    With a proxy as the metric and gold as the other it is what the proxy gained while gold was lost, claim 1 of
    over-optimization (Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization").
    """

    metric: str

    def __post_init__(self) -> None:
        _check_metric("change_since_peak_of", self.metric)

    def unfit_as_primary(self, metric: str) -> str:
        """Since its own peak a metric has only fallen."""
        return "the change since its own peak is never positive, whatever a run does" if metric == self.metric else ""

    @property
    def further_metrics(self) -> tuple[str, ...]:
        """The metric whose peak it is."""
        return (self.metric,)

    def value(self, run: Run, metric: str) -> float:
        """In units of the metric; 0 where the other one ended at its peak."""
        values, other = logged_together(run, metric, self.metric, at_least=2)
        return float(values.iloc[-1] - values[other.idxmax()])


@dataclass(frozen=True)
class RelativeDistance(Reading):
    """Mean of |value − target| / |target| over the last ``over_last`` of the logged values.

    How well a controller holds its target, such as that of Ziegler et al. 2019, "Fine-Tuning Language Models from
    Human Preferences", sec. 2.2.

    Args:
        over_last: a share, above 0 and up to 1; the number of values is rounded up.
    """

    target: float
    over_last: float = 0.2

    def __post_init__(self) -> None:
        share = self.over_last
        limits = {
            "target": (is_number(self.target) and self.target != 0, "a number other than 0", self.target),
            "over_last": (is_number(share) and 0 < share <= 1, "above 0 and at most 1", share),
        }
        check_limits("relative_distance", limits)

    def value(self, run: Run, metric: str) -> float:
        """0 where the target is held exactly."""
        values = logged(run, metric)
        last = values.iloc[-math.ceil(self.over_last * len(values) - 1e-9) :]
        return float((last - self.target).abs().mean() / abs(self.target))


def _check_metric(reading: str, metric: object) -> None:
    check_limits(reading, {"metric": (is_name(metric), "the name of a metric", repr(metric))})
