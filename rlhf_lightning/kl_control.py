"""The price of leaving the reference policy: an estimator of the KL and a rule for its coefficient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.ops import kl as estimators

Estimator: TypeAlias = Literal["k1", "k2", "k3", "exact"]

ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": estimators.k1,
    "k2": estimators.k2,
    "k3": estimators.k3,
}


@dataclass
class KLControl:
    """A penalty of ``coef`` reward units per nat of KL to the reference, the same throughout.

    One object estimates the KL for the reward, for the controller and for the log.

    Args:
        coef: β, 0.01 to 0.1; 0 leaves the policy free.
        estimator: how the KL at each action is measured; ``exact`` sums over the vocabulary. In a reward only ``k1``
            has the gradient of the KL; ``k2`` and ``k3`` have another one, ``exact`` (almost) none.
    """

    coef: float = 0.05
    estimator: Estimator = "k1"

    def __post_init__(self) -> None:
        if not 0 <= self.coef < math.inf:
            raise UserError(f"kl.coef must not be negative, got {self.coef}")
        if self.estimator not in get_args(Estimator):
            raise UserError(f"kl.estimator is one of {', '.join(get_args(Estimator))}, got {self.estimator}")

    @property
    def needs_full_vocabulary(self) -> bool:
        """Whether the estimator reads both distributions whole."""
        return self.estimator == "exact"

    def estimate(
        self,
        logprobs: Float[Tensor, "B T"],
        ref_logprobs: Float[Tensor, "B T"],
        exact: Float[Tensor, "B T"] | None,
    ) -> Float[Tensor, "B T"]:
        """KL at each action, in nats."""
        if self.needs_full_vocabulary:
            if exact is None:
                raise ValueError("the exact estimator needs the KL over the whole vocabulary")
            return exact
        return ESTIMATORS[self.estimator](logprobs, ref_logprobs)

    def update(self, kl: float) -> None:
        """Adapt to the KL measured in this iteration, in nats per sequence."""

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from a checkpoint."""
        self.coef = state["coef"]


@dataclass
class AdaptiveKLControl(KLControl):
    """A coefficient that steers the KL to a target (Ziegler et al. 2019, § 2.2).

    Args:
        coef: β at the start.
        target: wanted KL to the reference, in nats per sequence.
        gain: K; the paper's 0.1 moves β by at most 2 % an iteration, short runs need more.
    """

    target: float = 6.0
    gain: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coef == 0:
            raise UserError("kl.coef must be above 0 for AdaptiveKLControl: it is multiplied, so 0 stays 0")
        if not 0 < self.target < math.inf:
            raise UserError(f"kl.target must be above 0 nats per sequence, got {self.target}")
        if not 0 < self.gain < 5:
            raise UserError(f"kl.gain must be between 0 and 5 (at 5 the coefficient can drop to 0), got {self.gain}")

    def update(self, kl: float) -> None:
        """β ← β (1 + K · clip(KL/target − 1, ±0.2))."""
        self.coef = estimators.ziegler_coefficient(self.coef, kl, target=self.target, gain=self.gain)
