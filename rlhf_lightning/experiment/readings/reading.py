"""`Reading`: how one number is taken from what a run has logged."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import pandas as pd

from rlhf_lightning.errors import suggestion
from rlhf_lightning.records.runs import Run


class MissingError(Exception):
    """A run lacks what a reading needs; the message goes on from "the run …"."""


@dataclass(frozen=True)
class Reading(ABC):
    """One number of one run. A subclass is a frozen dataclass whose fields are the keys of its declaration."""

    def unfit_as_primary(self, metric: str) -> str:
        """Why a comparison cannot be decided by this number of a metric; empty where it can."""
        return ""

    @property
    def further_metrics(self) -> tuple[str, ...]:
        """Metrics that are read beside the one that is measured."""
        return ()

    @abstractmethod
    def value(self, run: Run, metric: str) -> float:
        """The number.

        Raises:
            MissingError: the run lacks what it is read from.
        """


def logged(run: Run, metric: str, *, at_least: int = 1) -> pd.Series:
    """The values of a metric by iteration or step.

    Raises:
        MissingError: there are fewer than ``at_least``, or the last ones are infinite: what came before a divergence
            is not what the run ended with.
    """
    values = run.series(metric)
    if not len(values):
        hint = suggestion(metric, run.columns, otherwise="nothing has a similar name", most=3)
        raise MissingError(f"has logged no {metric}; {hint}")
    if len(values) < at_least:
        raise MissingError(f"has logged {metric} {len(values)} times; expected at least {at_least}")
    infinite = run.metrics.loc[np.isinf(run.metrics[metric]), run.axis]
    if len(infinite) and infinite.iloc[-1] > values.index[-1]:
        raise MissingError(f"has diverged: {metric} is infinite at {run.axis} {infinite.iloc[-1]}")
    return values


def logged_together(run: Run, first: str, second: str, *, at_least: int = 1) -> tuple[pd.Series, pd.Series]:
    """Two metrics at the iterations or steps at which both were logged.

    Raises:
        MissingError: see `logged`, for both together.
    """
    one, other = logged(run, first), logged(run, second)
    shared = one.index.intersection(other.index)
    if len(shared) < at_least:
        raise MissingError(
            f"has logged {first} and {second} together {len(shared)} times; expected at least {at_least}"
        )
    return one[shared], other[shared]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a declared value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object) -> bool:
    """Whether a declared value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_name(value: object) -> bool:
    """Whether a declared value can be the name of a metric."""
    return isinstance(value, str) and len(value.split()) == 1
