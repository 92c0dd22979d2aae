"""Importance ratios of new and old policy, and the surrogate objectives that an update maximizes with them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.ops.kl import halve_double_coefficient
from rlhf_lightning.ops.losses import clipped_surrogate_loss, ratio_is_clipped
from rlhf_lightning.ops.masking import selected
from rlhf_lightning.ops.ratios import mean_log_ratio, sequence_log_ratio


@dataclass(frozen=True)
class Ratio(ABC):
    """π(a)/π_old(a) of every token, or of responses as a whole."""

    whole_responses = True
    """Whether a response is one action; its advantage is then that of its first token."""

    @abstractmethod
    def log_ratio(
        self, logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, " N"]:
        """Logarithm of the ratio at each of the `positions`, row by row."""

    def positions(self, action_mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Positions that have a ratio: each response's first token."""
        before = torch.nn.functional.pad(action_mask[:, :-1], (1, 0), value=False)
        return action_mask & ~before


@dataclass(frozen=True)
class TokenRatio(Ratio):
    """Of every token by itself (Schulman et al. 2017, eq. 6)."""

    whole_responses = False

    def log_ratio(
        self, logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, " N"]:
        """Log π(aₜ) − log π_old(aₜ)."""
        return selected(logprobs - old_logprobs, action_mask)

    def positions(self, action_mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Every token."""
        return action_mask


@dataclass(frozen=True)
class SequenceRatio(Ratio):
    """Of the whole response: the product of its tokens' ratios."""

    def log_ratio(
        self, logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, " N"]:
        """Σₜ log π(aₜ) − log π_old(aₜ)."""
        return sequence_log_ratio(logprobs, old_logprobs, action_mask)[action_mask.any(-1)]


@dataclass(frozen=True)
class MeanRatio(Ratio):
    """Of the whole response, normalized by its length: the geometric mean of its tokens' ratios.

    Zheng et al. 2025, "Group Sequence Policy Optimization", eq. 7. Its gradient is that of the whole response over its
    length, and a clip range for it is a thousand times smaller: 3e-4 there.
    """

    def log_ratio(
        self, logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, " N"]:
        """Σₜ (log π(aₜ) − log π_old(aₜ)) / T."""
        return mean_log_ratio(logprobs, old_logprobs, action_mask)[action_mask.any(-1)]


@dataclass
class Surrogate:
    """E[r Â], without a limit on the ratio r."""

    kl_coef = 0.0
    """β, weight of KL(π_old‖π) in the loss."""
    adapts = False
    """Whether `adapt` changes the coefficient."""

    def loss(self, log_ratio: Float[Tensor, " N"], advantages: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The negative surrogate at each position."""
        return -log_ratio.exp() * advantages

    def is_clipped(self, log_ratio: Float[Tensor, " N"], advantages: Float[Tensor, " N"]) -> Bool[Tensor, " N"]:
        """Whether the surrogate has no gradient, at each position."""
        return torch.zeros_like(log_ratio, dtype=torch.bool)

    def adapt(self, kl: float) -> None:
        """Adapt the coefficient after an update that ended at KL(π_old‖π) = ``kl`` nats per action."""


@dataclass
class Clip(Surrogate):
    """min(r Â, clip(r, 1 − ε, 1 + ε) Â) (Schulman et al. 2017, eq. 7).

    Args:
        clip_range: ε, 0.1 to 0.3; infinity for no limit.
        clip_range_high: another ε for the upper side (Yu et al. 2025, DAPO, eq. 10: 0.28 above, 0.2 below); None for
            the same.
        dual_clip: c > 1: for negative advantages the objective stays above c Â (Ye et al. 2020); None for no floor.
    """

    clip_range: float = 0.2
    clip_range_high: float | None = None
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        for name in ("clip_range", "clip_range_high"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"surrogate.{name} must be above 0, got {value}")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise UserError(f"surrogate.dual_clip must be above 1 (null for none), got {self.dual_clip}")

    @property
    def _ranges(self) -> dict[str, float]:
        high = self.clip_range if self.clip_range_high is None else self.clip_range_high
        return {"clip_range": self.clip_range, "clip_range_high": high}

    def loss(self, log_ratio: Float[Tensor, " N"], advantages: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The negative surrogate at each position."""
        return clipped_surrogate_loss(log_ratio, advantages, **self._ranges, dual_clip=self.dual_clip)

    def is_clipped(self, log_ratio: Float[Tensor, " N"], advantages: Float[Tensor, " N"]) -> Bool[Tensor, " N"]:
        """Whether the surrogate has no gradient, at each position."""
        return ratio_is_clipped(log_ratio, advantages, **self._ranges, dual_clip=self.dual_clip)


@dataclass
class Penalty(Surrogate):
    """r Â − β KL(π_old‖π) (Schulman et al. 2017, eq. 8).

    Args:
        kl_coef: β at the start.
        target: KL in nats per action that β is adapted to (§ 4 there: halved below target/1.5, doubled above
            1.5 × target, within 1e-8 and 1e8); None keeps it fixed.
    """

    kl_coef: float = 1.0
    target: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.kl_coef < math.inf:
            raise UserError(f"surrogate.kl_coef must not be negative, got {self.kl_coef}")
        if self.target is not None and not 0 < self.target < math.inf:
            raise UserError(f"surrogate.target must be above 0 nats per action (null for a fixed β), got {self.target}")
        if self.target is not None and self.kl_coef == 0:
            raise UserError("surrogate.kl_coef must be above 0 where it adapts to a target: it is multiplied")
        self.adapts = self.target is not None

    def adapt(self, kl: float) -> None:
        """β / 2 where the KL is below target / 1.5, 2 β where it is above 1.5 × target."""
        if self.target is not None:
            self.kl_coef = halve_double_coefficient(self.kl_coef, kl, target=self.target)
