"""The penalty on the KL to the reference: in reward or loss, how the KL is estimated, how its coefficient adapts.

In the reward, action by action, the penalty acts through the policy gradient: an action also pays for the KL that it
leads to later. In the loss it is differentiated directly, at the states that were visited; how often states are visited
is not differentiated.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.ops import kl as ops

KLEstimator: TypeAlias = Literal["k1", "k2", "k3", "exact"]
KLLossEstimator: TypeAlias = Literal["k1", "k2", "k3", "k3_ratio", "exact"]

ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": ops.k1, "k2": ops.k2, "k3": ops.k3}


def estimated(
    estimator: KLLossEstimator,
    logprobs: Float[Tensor, "*N"],
    ref_logprobs: Float[Tensor, "*N"] | None,
    exact: Float[Tensor, "*N"] | None,
    old_logprobs: Float[Tensor, "*N"] | None = None,
) -> Float[Tensor, "*N"]:
    """KL at each action, in nats.

    Args:
        ref_logprobs: may be None for ``exact``.
        exact: summed over the vocabulary; may be None for the others.
        old_logprobs: under the policy that has drawn the actions; may be None but for ``k3_ratio``.
    """
    if estimator == "exact":
        if exact is None:
            raise ValueError("the exact estimator needs the KL over the whole vocabulary")
        return exact
    if ref_logprobs is None:
        raise ValueError(f"the estimator {estimator} needs the log-probabilities under the reference")
    if estimator == "k3_ratio":
        if old_logprobs is None:
            raise ValueError("the estimator k3_ratio needs the log-probabilities at sampling")
        return ops.k3_ratio(logprobs, ref_logprobs, old_logprobs)
    return ESTIMATORS[estimator](logprobs, ref_logprobs)


def _check_estimator(name: str, estimator: str, known: tuple[str, ...]) -> None:
    """Refuse an estimator that does not exist."""
    if estimator not in known:
        raise UserError(f"{name} is one of {', '.join(known)}, got {estimator}")


@dataclass(frozen=True)
class KLLoss:
    """A KL to the reference as a term of the loss.

    What its gradient is, in expectation over actions that the policy itself has drawn:

    | estimator | reverse     | forward     |
    |-----------|-------------|-------------|
    | exact     | ∇KL(π‖ref)  | ∇KL(ref‖π)  |
    | k2        | ∇KL(π‖ref)  | refused     |
    | k3        | ∇KL(ref‖π)  | refused     |
    | k3_ratio  | ∇KL(π‖ref)  | refused     |
    | k1        | 0: refused  | refused     |

    Later steps on a rollout meet actions of an older policy. ``exact``, which sums over all actions in a state, does
    not mind, nor does k3_ratio, which multiplies k3 by the action's probability ratio to that policy (as DeepSeek-V3.2
    has it, and TRL's GRPO by default); k2 and k3 drift from what the table says as the policy moves.

    Args:
        estimator: ``exact`` evaluates the reference in every step and sums over the vocabulary; the others look at the
            actions that were drawn.
        direction: of the exact KL: reverse KL(π‖ref), or forward KL(ref‖π).
    """

    estimator: KLLossEstimator = "k2"
    direction: ops.Direction = "reverse"

    def __post_init__(self) -> None:
        _check_estimator("kl.loss.estimator", self.estimator, get_args(KLLossEstimator))
        if self.estimator == "k1":
            raise UserError(
                "kl.loss.estimator k1 has no gradient in expectation, so in a loss it cannot hold the policy back; "
                "expected k2, k3 (as GRPO has it), k3_ratio or exact"
            )
        if self.direction not in get_args(ops.Direction):
            raise UserError(f"kl.loss.direction is reverse or forward, got {self.direction}")
        if self.direction == "forward" and self.estimator != "exact":
            raise UserError(f"kl.loss.direction forward is for kl.loss.estimator exact, got {self.estimator}")

    @property
    def needs_full_vocabulary(self) -> bool:
        """Whether the estimator reads both distributions whole."""
        return self.estimator == "exact"


@dataclass
class KLControl:
    """A penalty of ``coef`` reward units per nat of KL to the reference, the same throughout.

    Args:
        coef: β, 0.01 to 0.1; 0 leaves the policy free.
        estimator: how the KL at each action is measured, for the log, the controller and the reward; ``exact`` sums
            over the vocabulary. In a reward only ``k1`` has the gradient of the KL; ``k2`` and ``k3`` have another one,
            ``exact`` (almost) none: it is refused there.
        loss: puts the penalty into the loss, with an estimator of its own; None leaves it in the reward. β is then in
            units of that loss: where advantages are whitened, of their standard deviation.
    """

    coef: float = 0.05
    estimator: KLEstimator = "k1"
    loss: KLLoss | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.coef < math.inf:
            raise UserError(f"kl.coef must not be negative, got {self.coef}")
        _check_estimator("kl.estimator", self.estimator, get_args(KLEstimator))

    @property
    def needs_full_vocabulary(self) -> bool:
        """Whether the estimator of the value reads both distributions whole."""
        return self.estimator == "exact"

    @property
    def reward_coef(self) -> float:
        """β in the reward."""
        return self.coef if self.loss is None else 0.0

    @property
    def active_loss(self) -> KLLoss | None:
        """The term of the loss, where it has any weight."""
        return self.loss if self.coef > 0 else None

    def update(self, kl: float) -> None:
        """Adapt the coefficient to the KL of this iteration, in nats per sequence."""

    def state_dict(self) -> dict[str, Any]:
        """The state that a checkpoint saves."""
        return {"controller": type(self).__name__, "coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint: none here, where the coefficient is a setting.

        Raises:
            UserError: another controller wrote it.
        """
        if state.get("controller") != type(self).__name__:
            raise UserError(
                f"the checkpoint was written with model.init_args.kl {state.get('controller')}, and this run has "
                f"{type(self).__name__}; expected the same"
            )


@dataclass
class TargetedKLControl(KLControl, ABC):
    """A coefficient that follows the KL to a target, by a rule.

    It stays within 1e-8 and 1e8, so that it neither vanishes, which no factor can undo, nor overflows.

    Args:
        coef: β at the start.
        target: wanted KL to the reference, in nats per sequence.
    """

    target: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.coef == 0:
            raise UserError(f"kl.coef must be above 0 for {name}: it is multiplied, so 0 stays 0")
        within = ops.SMALLEST_COEFFICIENT <= self.coef <= ops.LARGEST_COEFFICIENT
        limits = {
            "coef": (within, f"between {ops.SMALLEST_COEFFICIENT:g} and {ops.LARGEST_COEFFICIENT:g}", self.coef),
            "target": (0 < self.target < math.inf, "above 0 nats per sequence", self.target),
        }
        check_limits("kl", limits)

    @abstractmethod
    def update(self, kl: float) -> None:
        """Apply the rule."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the coefficient."""
        super().load_state_dict(state)
        self.coef = state["coef"]


@dataclass
class AdaptiveKLControl(TargetedKLControl):
    """A coefficient that steers the KL to a target in proportion to how far it is off (Ziegler et al. 2019, § 2.2).

    Args:
        gain: K; the paper's 0.1 moves β by at most 2 % an iteration, short runs need more.
    """

    gain: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gain < 5:
            raise UserError(f"kl.gain must be between 0 and 5 (at 5 the coefficient can drop to 0), got {self.gain}")

    def update(self, kl: float) -> None:
        """β (1 + K · clip(KL/target − 1, ±0.2))."""
        self.coef = ops.ziegler_coefficient(self.coef, kl, target=self.target, gain=self.gain)


@dataclass
class HalveDoubleKLControl(TargetedKLControl):
    """A coefficient that is halved or doubled where the KL is a factor 1.5 away from its target.

    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", § 4, where the KL is the one to the old policy.
    """

    def update(self, kl: float) -> None:
        """β / 2 below target / 1.5, 2 β above 1.5 × target."""
        self.coef = ops.halve_double_coefficient(self.coef, kl, target=self.target)


@dataclass
class ThresholdKLControl(TargetedKLControl):
    """A coefficient that moves only where the KL is a factor 2 away from its target."""

    def update(self, kl: float) -> None:
        """1.5 β above 2 × target, β / 2 below target / 2."""
        self.coef = ops.threshold_coefficient(self.coef, kl, target=self.target)
