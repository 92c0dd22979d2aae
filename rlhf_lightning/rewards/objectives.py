"""Weights with which several objectives become one reward: declared, or learned so that lower bounds hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.records.constructed import Constructed
from rlhf_lightning.rewards.source import checked_weights

KEY = "data.init_args.weights"


class ObjectiveWeights(Constructed):
    """The weight of each objective in an iteration.

    A subclass implements `of`, and the other methods if its weights change during training.
    """

    def of(self, declared: Mapping[str, float]) -> dict[str, float]:
        """The current weight of each objective of the reward source.

        Args:
            declared: the source's own weights by objective; empty for a source with a single score.

        Raises:
            UserError: the source does not have an objective that is named here.
        """
        raise NotImplementedError

    def update(self, means: Mapping[str, float]) -> None:
        """Update the weights after an iteration.

        Args:
            means: mean score of each objective over the rollout, before scaling.
        """

    def measures(self) -> dict[str, float]:
        """The current weights as metrics, if they are learned."""
        return {}

    def state_dict(self) -> dict[str, float]:
        """State to save in a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the state from a checkpoint."""


class DeclaredWeights(ObjectiveWeights):
    """The reward source's own weights, of which some may be replaced.

    Args:
        weights: replaced weights by objective.
    """

    def __init__(self, weights: dict[str, float] | None = None) -> None:
        self.weights = checked_weights(f"{KEY}.init_args.weights", weights)

    def of(self, declared: Mapping[str, float]) -> dict[str, float]:
        """The current weights."""
        _check_names(self.weights, declared)
        return {**declared, **self.weights}


class Lagrangian(ObjectiveWeights):
    """Maximizes one objective while others are kept above lower bounds (floors).

    max J_m subject to J_i ≥ floor_i is the saddle point of J_m + Σ λ_i (J_i − floor_i), maximized over policies and
    minimized over λ ≥ 0. The policy maximizes the reward with weights 1 and λ_i, both divided by 1 + Σ λ, so that its
    scale does not grow with the multipliers. The multipliers take one step per rollout:

        λ_i ← min(max(λ_i + lr (floor_i − mean of i), 0), maximum)

    Tessler et al. 2019, "Reward Constrained Policy Optimization" (dual ascent, projected to an interval); the
    division by 1 + λ as in Stooke et al. 2020, "Responsive Safety in Reinforcement Learning by PID Lagrangian Methods",
    and Dai et al. 2023, "Safe RLHF: Safe Reinforcement Learning from Human Feedback". The latter change log λ by lr λ
    times the violation instead, which recovers very slowly from a small λ.

    An objective that is neither maximized nor bounded has weight 0: it is measured and not trained on.

    Args:
        maximize: the objective to maximize.
        floors: lower bound on the mean of each other objective, in the units of its scores before scaling.
        lr: change of λ in an iteration whose mean is 1 below its floor; with 0 the multipliers stay constant.
        initial: initial λ.
        maximum: upper bound on λ, which an unreachable floor would increase without limit.
    """

    def __init__(
        self, maximize: str, floors: dict[str, float], lr: float = 0.1, initial: float = 1.0, maximum: float = 10.0
    ) -> None:
        if not floors:
            raise UserError(f"{KEY}.init_args.floors is empty; expected the least mean of one objective or more")
        if maximize in floors:
            raise UserError(f"{KEY}.init_args.floors holds {maximize}, which is the objective to maximize")
        self.maximize, self.floors = maximize, checked_weights(f"{KEY}.init_args.floors", floors)
        limits = {
            "lr": (0 <= lr < math.inf, "0 or more, and finite", lr),
            "maximum": (0 < maximum < math.inf, "above 0, and finite", maximum),
            "initial": (0 <= initial <= maximum, f"between 0 and maximum {maximum:g}", initial),
        }
        check_limits(f"{KEY}.init_args", limits)
        self.lr, self.maximum = lr, maximum
        self.multipliers = {name: float(initial) for name in floors}

    def of(self, declared: Mapping[str, float]) -> dict[str, float]:
        """The current weights."""
        _check_names((self.maximize, *self.floors), declared)
        return dict.fromkeys(declared, 0.0) | self._weights()

    def update(self, means: Mapping[str, float]) -> None:
        """One step of dual ascent."""
        for name, floor in self.floors.items():
            moved = self.multipliers[name] + self.lr * (floor - means[name])
            self.multipliers[name] = min(max(moved, 0.0), self.maximum)

    def measures(self) -> dict[str, float]:
        """The weights of the maximized and the bounded objectives."""
        return {f"objective/weight_{name}": weight for name, weight in self._weights().items()}

    def state_dict(self) -> dict[str, float]:
        """The multipliers."""
        return dict(self.multipliers)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the multipliers.

        Raises:
            UserError: the checkpoint has multipliers of other objectives.
        """
        if set(state) != set(self.multipliers):
            raise UserError(
                f"the checkpoint holds multipliers of {_listed(state)}, and {KEY}.init_args.floors names "
                f"{_listed(self.multipliers)}; expected the same objectives"
            )
        self.multipliers = {name: float(state[name]) for name in self.multipliers}

    def _weights(self) -> dict[str, float]:
        total = 1.0 + sum(self.multipliers.values())
        return {self.maximize: 1.0 / total} | {name: value / total for name, value in self.multipliers.items()}


def _check_names(names: Iterable[str], declared: Mapping[str, float]) -> None:
    unknown = [name for name in names if name not in declared]
    if unknown:
        known = f"has {_listed(declared)}" if declared else "gives one score only"
        raise UserError(f"{KEY} names {unknown[0]}, which is no objective of the reward: it {known}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
