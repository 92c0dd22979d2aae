"""What a sweep tries, in which order, and when it gives a trial up: W&B's methods, by Optuna."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from typing_extensions import override

from rlhf_lightning.sweep.space import Space

Goal: TypeAlias = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Halving:
    """Early termination: at each of some points only the best 1/η of the trials that have come so far go on.

    What W&B calls hyperband is this one bracket of it, successive halving without waiting for the others (Li et al.
    2018, "Massively Parallel Hyperparameter Tuning"). A trial's progress is counted as W&B counts it: by how often it
    has logged the metric, the first time being 0.

    Args:
        first: where trials are judged first; next at η times that, η² times, and so on.
        eta: η.
    """

    first: int
    eta: int

    def pruner(self) -> BasePruner:
        """As Optuna has it."""
        return SuccessiveHalvingPruner(min_resource=self.first, reduction_factor=self.eta)


@dataclass(frozen=True)
class Search:
    """A search for the best values.

    Args:
        method: one of `METHODS`.
        metric: whose last value is a trial's.
        goal: ``minimize`` or ``maximize``.
        halving: when trials are given up; None for never.
        seed: of what is drawn.
    """

    space: Space
    method: str
    metric: str
    goal: Goal
    halving: Halving | None = None
    seed: int = 0

    def sampler(self, number: int) -> BaseSampler:
        """What draws the values of a trial.

        Args:
            number: of the trial, from 0. Each has noise of its own: workers draw the same values for the same trial,
                and different ones for different trials.
        """
        return METHODS[self.method](self.space, 1_000_003 * self.seed + number)

    def pruner(self) -> BasePruner:
        """What gives trials up."""
        return NopPruner() if self.halving is None else self.halving.pruner()


class _Grid(GridSampler):
    """A grid whose end whoever asks for trials sees; Optuna would stop a loop of its own there, which is not used."""

    @override
    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None: ...


def _grid(space: Space, seed: int) -> BaseSampler:
    return _Grid(space.grid(), seed=0)  # the order of the points is the same for all trials


def _random(space: Space, seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _bayes(space: Space, seed: int) -> BaseSampler:
    """Tree-structured Parzen estimators over all parameters together, which take running trials for bad ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=seed, multivariate=True, constant_liar=True)


METHODS: dict[str, Callable[[Space, int], BaseSampler]] = {"grid": _grid, "random": _random, "bayes": _bayes}
"""W&B's methods."""
