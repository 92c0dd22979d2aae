"""Readings of a reward against its distance from the reference policy: scaling laws, matched KL, hypervolume."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlhf_lightning.errors import check_limits
from rlhf_lightning.experiment.readings.reading import MissingError, Reading, is_name, is_number, logged_together
from rlhf_lightning.plots.kit.style import number
from rlhf_lightning.records.runs import Run

KL = "eval/kl_ref_sequence"
"""The metric that distances are read from, unless another is named: nats per response."""

Values = NDArray[np.float64]

FORMS: dict[str, Callable[[Values], Values]] = {"rl": np.log, "best_of_n": lambda distances: distances}
"""What β multiplies in the two scaling laws, by name, as a function of the distance d = √KL."""

_RESULTS = ("r2", "alpha", "beta")


@dataclass(frozen=True)
class ScalingLaw:
    """A gain in reward as a function of the distance d = √KL: d (α − β log d), or d (α − β d).

    Args:
        alpha: α, the gain per distance at first.
        beta: β; above 0 the gain turns and falls.
        r2: share of the variance of the gains, around their mean, that the law explains; NaN where all are equal.
    """

    alpha: float
    beta: float
    r2: float


def fit_scaling_law(distances: Values, gains: Values, *, form: str) -> ScalingLaw | None:
    """Least squares for α and β; None where the distances do not determine both.

    Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization", sec. 3.1: R_RL(d) = d (α − β log d) and
    R_BoN(d) = d (α − β d). Both are linear in α and β.

    Args:
        distances: d > 0.
        gains: reward minus that of the policy at d = 0.
        form: a key of `FORMS`.
    """
    design = np.stack([distances, -distances * FORMS[form](distances)], axis=1)
    (alpha, beta), _, rank, _ = np.linalg.lstsq(design, gains, rcond=None)
    if rank < 2:
        return None
    residual = gains - design @ (alpha, beta)
    total = float(((gains - gains.mean()) ** 2).sum())
    return ScalingLaw(float(alpha), float(beta), 1 - float(residual @ residual) / total if total else math.nan)


def hypervolume(kl: Values, rewards: Values, *, kl_limit: float, reward_floor: float) -> float:
    """Area that policies dominate in the plane of KL and reward: ∫₀ᴸ max(0, max {Rᵢ : KLᵢ ≤ k} − floor) dk.

    Zitzler & Thiele 1998, "Multiobjective Optimization Using Evolutionary Algorithms", for two objectives. A policy
    counts where it is within the limit and above the floor; one that another beats in both adds nothing.

    Args:
        kl: of each policy, in any order; an estimate below 0 counts as 0.
        kl_limit: L, in nats.
        reward_floor: the reward at which the area starts.
    """
    inside = kl <= kl_limit
    order = np.argsort(kl[inside], kind="stable")
    edges = np.append(np.maximum(kl[inside][order], 0), kl_limit)
    if len(edges) < 2:
        return 0.0
    heights = np.maximum.accumulate(rewards[inside][order]) - reward_floor
    return float(np.maximum(heights, 0) @ np.diff(edges))


@dataclass(frozen=True)
class Fit(Reading):
    """A parameter of the scaling law that fits a run's evaluations best, or how well it fits.

    The gain is counted from the evaluation before training, as Gao et al. do by recentring their scores.

    Args:
        form: ``rl`` or ``best_of_n``, see `fit_scaling_law`.
        against: metric of the KL.
        give: ``r2``, ``alpha`` or ``beta``.
    """

    form: str
    give: str
    against: str = KL

    def __post_init__(self) -> None:
        limits = {
            "form": (is_name(self.form) and self.form in FORMS, f"one of {', '.join(FORMS)}", self.form),
            "give": (self.give in _RESULTS, f"one of {', '.join(_RESULTS)}", self.give),
            "against": _metric_name(self.against),
        }
        check_limits("fit", limits)

    @property
    def further_metrics(self) -> tuple[str, ...]:
        """The KL."""
        return (self.against,)

    def value(self, run: Run, metric: str) -> float:
        """Of three evaluations after the first, or more."""
        distances, rewards = _frontier(run, metric, self.against, at_least=4)
        start = rewards.index[0]
        if start != 0:
            raise MissingError(f"has logged {metric} first at {run.axis} {start}; expected it before training, too")
        away = distances > 0
        gains = (rewards - rewards.iloc[0]).to_numpy()
        law = fit_scaling_law(distances[away], gains[away], form=self.form) if away.sum() >= 3 else None
        if law is None:
            raise MissingError(f"has fewer than three evaluations at different {self.against} above 0")
        return float(getattr(law, self.give))


@dataclass(frozen=True)
class AtKL(Reading):
    """The metric where the KL first reached ``kl``, interpolated linearly in √KL between the evaluations around it.

    Args:
        kl: in nats.
        against: metric of the KL.
    """

    kl: float
    against: str = KL

    def __post_init__(self) -> None:
        limits = {
            "kl": (is_number(self.kl) and self.kl > 0, "a number above 0", self.kl),
            "against": _metric_name(self.against),
        }
        check_limits("at_kl", limits)

    @property
    def further_metrics(self) -> tuple[str, ...]:
        """The KL."""
        return (self.against,)

    def value(self, run: Run, metric: str) -> float:
        """Nothing is extrapolated: a run that never came as far lacks it."""
        distances, rewards = _frontier(run, metric, self.against)
        target = math.sqrt(self.kl)
        reached = np.flatnonzero(distances >= target)
        if not len(reached):
            furthest = number(float(distances.max()) ** 2)
            raise MissingError(f"comes to a KL of {furthest} at most; expected one that reaches {self.kl:g}")
        after = int(reached[0])
        if after == 0 and distances[0] > target:
            raise MissingError(
                f"has a KL of {number(float(distances[0]) ** 2)} in its first evaluation, above {self.kl:g}"
            )
        around = slice(max(after - 1, 0), after + 1)
        return float(np.interp(target, distances[around], rewards.to_numpy()[around]))


@dataclass(frozen=True)
class Hypervolume(Reading):
    """Area that a run's evaluations dominate in the plane of KL and reward, see `hypervolume`.

    It looks at the best evaluation within each KL. Noise adds to it, the more the more evaluations there are: arms that
    are compared by it need equally many.

    Args:
        kl: limit of the KL, in nats.
        reward: floor of the reward.
        against: metric of the KL.
    """

    kl: float
    reward: float
    against: str = KL

    def __post_init__(self) -> None:
        limits = {
            "kl": (is_number(self.kl) and self.kl > 0, "a number above 0", self.kl),
            "reward": (is_number(self.reward), "a number", self.reward),
            "against": _metric_name(self.against),
        }
        check_limits("hypervolume", limits)

    @property
    def further_metrics(self) -> tuple[str, ...]:
        """The KL."""
        return (self.against,)

    def value(self, run: Run, metric: str) -> float:
        """In nats times units of the metric; 0 where no evaluation is within the limit and above the floor."""
        distances, rewards = _frontier(run, metric, self.against)
        return hypervolume(distances**2, rewards.to_numpy(), kl_limit=self.kl, reward_floor=self.reward)


def _frontier(run: Run, metric: str, against: str, *, at_least: int = 1) -> tuple[Values, pd.Series]:
    """The distance √KL of each evaluation, in the order of training, and its reward."""
    rewards, kl = logged_together(run, metric, against, at_least=at_least)
    return np.sqrt(np.maximum(kl.to_numpy(dtype=float), 0)), rewards


def _metric_name(value: object) -> tuple[bool, str, object]:
    return is_name(value), "the name of a metric", repr(value)
