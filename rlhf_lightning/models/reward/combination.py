"""Combining the members of an ensemble of reward models into one score.

Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization", § 4.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError


@dataclass(frozen=True)
class Combination(ABC):
    """Combines the scores of M members, each of which is centered, into one."""

    @abstractmethod
    def __call__(self, scores: Float[Tensor, "M ..."]) -> Float[Tensor, "*B"]:
        """Combine over the first axis."""


@dataclass(frozen=True)
class MeanScore(Combination):
    """The mean of the members' scores."""

    def __call__(self, scores: Float[Tensor, "M ..."]) -> Float[Tensor, "*B"]:
        """(1/M) Σₘ rₘ."""
        return scores.mean(0)


@dataclass(frozen=True)
class WorstCase(Combination):
    """The lowest of the members' scores: a response must be good in the view of all members."""

    def __call__(self, scores: Float[Tensor, "M ..."]) -> Float[Tensor, "*B"]:
        """minₘ rₘ."""
        return scores.amin(0)


@dataclass(frozen=True)
class UncertaintyWeighted(Combination):
    """The mean minus a multiple of the members' disagreement.

    Args:
        coef: λ, in units of 1 / score; 0.1 to 1 in the paper.
    """

    coef: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.coef < math.inf:
            raise UserError(f"combine.coef must not be negative, got {self.coef}")

    def __call__(self, scores: Float[Tensor, "M ..."]) -> Float[Tensor, "*B"]:
        """Mean − λ · variance over the members."""
        return scores.mean(0) - self.coef * scores.var(0, correction=0)
