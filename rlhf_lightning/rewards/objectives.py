"""How several objectives become one reward: weights that are declared, or learned so that floors are kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rlhf_lightning.errors import UserError

KEY = "data.init_args.weights"


class ObjectiveWeights:
    """Says what each objective counts for in an iteration.

    A subclass implements `of`, and the rest where its weights change during training.
    """

    def of(self, declared: Mapping[str, float]) -> dict[str, float]:
        """The weights in force, for every objective of the reward source.

        Args:
            declared: the source's own weights by objective; empty where it has one score only.

        Raises:
            UserError: an objective is named that the source does not have.
        """
        raise NotImplementedError

    def update(self, means: Mapping[str, float]) -> None:
        """Learn from an iteration.

        Args:
            means: of the objectives' scores over the rollout, before any scaling.
        """

    def measures(self) -> dict[str, float]:
        """The weights in force as metrics, where they are learned."""
        return {}

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from a checkpoint."""


class DeclaredWeights(ObjectiveWeights):
    """The reward source's own weights, or others in their place.

    Args:
        weights: by objective; one that is not named keeps its own weight.
    """

    def __init__(self, weights: dict[str, float] | None = None) -> None:
        self.weights = {} if weights is None else dict(weights)
        for name, weight in self.weights.items():
            _check(math.isfinite(weight), f"weights.{name}", "a finite number", weight)

    def of(self, declared: Mapping[str, float]) -> dict[str, float]:
        """The weights in force."""
        _check_names(self.weights, declared)
        return {**declared, **self.weights}


class Lagrangian(ObjectiveWeights):
    """Maximizes one objective while others are held above floors.

    max J_m subject to J_i ≥ floor_i is the saddle point of J_m + Σ λ_i (J_i − floor_i), maximized over policies and
    minimized over λ ≥ 0. The policy's side is the reward with weights 1 and λ_i, both over 1 + Σ λ, so that its scale
    stays as the multipliers grow; the multipliers' side is a step a rollout,

        λ_i ← min(max(λ_i + lr (floor_i − mean of i), 0), maximum)

    Tessler et al. 2019, "Reward Constrained Policy Optimization" (dual ascent, projected to an interval); the
    division by 1 + λ as in Stooke et al. 2020, "Responsive Safety in Reinforcement Learning by PID Lagrangian Methods",
    and Dai et al. 2023, "Safe RLHF: Safe Reinforcement Learning from Human Feedback". The latter move log λ by lr λ
    times the violation instead: from a small λ that takes very long to come back.

    An objective that is neither maximized nor held has weight 0: it is measured and not trained on.

    Args:
        maximize: the objective to maximize.
        floors: least mean of each objective that is held, in the units of its scores before scaling.
        lr: change of λ for an iteration in which a mean is 1 below its floor; 0 keeps the multipliers as they are.
        initial: λ at the start.
        maximum: bound on λ, which a floor that cannot be reached would drive up for ever.
    """

    def __init__(
        self, maximize: str, floors: dict[str, float], lr: float = 0.1, initial: float = 1.0, maximum: float = 10.0
    ) -> None:
        if not floors:
            raise UserError(f"{KEY}.init_args.floors is empty; expected the least mean of one objective or more")
        if maximize in floors:
            raise UserError(f"{KEY}.init_args.floors holds {maximize}, which is the objective to maximize")
        for name, floor in floors.items():
            _check(math.isfinite(floor), f"floors.{name}", "a finite number", floor)
        _check(0 <= lr < math.inf, "lr", "0 or more, and finite", lr)
        _check(0 < maximum < math.inf, "maximum", "above 0, and finite", maximum)
        _check(0 <= initial <= maximum, "initial", f"between 0 and maximum {maximum:g}", initial)
        self.maximize, self.floors = maximize, dict(floors)
        self.lr, self.maximum = lr, maximum
        self.multipliers = {name: float(initial) for name in floors}

    def of(self, declared: Mapping[str, float]) -> dict[str, float]:
        """The weights in force."""
        _check_names((self.maximize, *self.floors), declared)
        return dict.fromkeys(declared, 0.0) | self._weights()

    def update(self, means: Mapping[str, float]) -> None:
        """One step of dual ascent."""
        for name, floor in self.floors.items():
            moved = self.multipliers[name] + self.lr * (floor - means[name])
            self.multipliers[name] = min(max(moved, 0.0), self.maximum)

    def measures(self) -> dict[str, float]:
        """Weights of what is maximized and held."""
        return {f"objective/weight_{name}": weight for name, weight in self._weights().items()}

    def state_dict(self) -> dict[str, float]:
        """The multipliers."""
        return dict(self.multipliers)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue with them.

        Raises:
            UserError: they are of other objectives.
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


def _check(holds: bool, name: str, expected: str, got: float) -> None:
    if not holds:
        raise UserError(f"{KEY}.init_args.{name} must be {expected}, got {got}")


def _check_names(names: Iterable[str], declared: Mapping[str, float]) -> None:
    unknown = [name for name in names if name not in declared]
    if unknown:
        known = f"has {_listed(declared)}" if declared else "gives one score only"
        raise UserError(f"{KEY} names {unknown[0]}, which is no objective of the reward: it {known}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
