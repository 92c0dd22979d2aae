"""The distributions of W&B's sweeps, drawn by Optuna.

Optuna has ranges of numbers, with a linear or a logarithmic scale, and choices. Whatever else W&B has is drawn by its
quantile: Optuna draws u from 0 to 1, and the value is F⁻¹(u), which has the distribution F.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import optuna

from rlhf_lightning.errors import UserError, suggestion

ENDS = (0.001, 0.999)
"""Quantiles that stand for the ends of a distribution, which may have none."""


class ParameterDistribution(ABC):
    """How the values of one parameter are drawn."""

    @abstractmethod
    def draw(self, trial: optuna.Trial, name: str) -> Any:
        """A value, of a trial that Optuna has started."""

    @abstractmethod
    def ends(self) -> list[Any]:
        """The least and the largest value, or all where there are few."""

    def grid(self) -> list[Any] | None:
        """What Optuna may draw, in full; None where there is no end of it."""
        return None

    @property
    def logarithmic(self) -> bool:
        """Whether the values are spread over orders of magnitude."""
        return False


@dataclass(frozen=True)
class Constant(ParameterDistribution):
    """One value."""

    value: Any

    def draw(self, trial: optuna.Trial, name: str) -> Any:
        """The value; Optuna does not hear of it."""
        return self.value

    def ends(self) -> list[Any]:
        """The value."""
        return [self.value]

    def grid(self) -> list[Any]:
        """Nothing that Optuna draws."""
        return []


@dataclass(frozen=True)
class OneOf(ParameterDistribution):
    """One of several values of any kind, each as likely as the others; Optuna knows them by their texts."""

    values: tuple[Any, ...]

    def draw(self, trial: optuna.Trial, name: str) -> Any:
        """One of the values."""
        texts = self.grid()
        return self.values[texts.index(trial.suggest_categorical(name, texts))]

    def ends(self) -> list[Any]:
        """All values."""
        return list(self.values)

    def grid(self) -> list[str]:
        """Their texts."""
        return [str(value) for value in self.values]


@dataclass(frozen=True)
class WeightedOneOf(ParameterDistribution):
    """One of several values, with a probability each."""

    values: tuple[Any, ...]
    probabilities: tuple[float, ...]

    def draw(self, trial: optuna.Trial, name: str) -> Any:
        """The value whose share of the unit interval holds u."""
        upper = list(accumulate(self.probabilities))
        return self.values[min(bisect_right(upper, trial.suggest_float(name, 0.0, 1.0)), len(upper) - 1)]

    def ends(self) -> list[Any]:
        """All values."""
        return list(self.values)


@dataclass(frozen=True)
class Whole(ParameterDistribution):
    """A whole number from ``low`` to ``high``."""

    low: int
    high: int

    def draw(self, trial: optuna.Trial, name: str) -> int:
        """A whole number."""
        return trial.suggest_int(name, self.low, self.high)

    def ends(self) -> list[int]:
        """The ends of the range."""
        return [self.low, self.high]

    def grid(self) -> list[int]:
        """All of them."""
        return list(range(self.low, self.high + 1))


@dataclass(frozen=True)
class Real(ParameterDistribution):
    """A number from ``low`` to ``high``.

    Args:
        log: whether its logarithm is uniform, rather than itself.
    """

    low: float
    high: float
    log: bool

    def draw(self, trial: optuna.Trial, name: str) -> float:
        """A number."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def ends(self) -> list[float]:
        """The ends of the range."""
        return [self.low, self.high]

    @property
    def logarithmic(self) -> bool:
        """As its scale is."""
        return self.log


@dataclass(frozen=True)
class Quantile(ParameterDistribution):
    """A distribution by its quantile function, rounded to multiples of ``q`` where that is given.

    Args:
        law: name of the distribution, as W&B has it.
        settings: of the law.
        q: what the values are multiples of; None where they are not rounded.
    """

    law: str
    settings: tuple[tuple[str, float], ...]
    q: float | None

    def draw(self, trial: optuna.Trial, name: str) -> float:
        """F⁻¹(u)."""
        return self.at(trial.suggest_float(name, 0.0, 1.0))

    def at(self, u: float) -> float:
        """F⁻¹(u), rounded; a whole number where ``q`` is one."""
        smallest = math.ulp(1.0)
        value = float(self._quantile(min(max(u, smallest), 1 - smallest)))
        if self.q is None:
            return value
        steps = round(value / self.q)
        return steps * self.q if isinstance(self.q, int) else round(steps * self.q, 12)

    def ends(self) -> list[float]:
        """Quantiles close to 0 and 1."""
        return list(dict.fromkeys(self.at(u) for u in ENDS))

    @property
    def logarithmic(self) -> bool:
        """By the law."""
        return "log" in self.law

    @cached_property
    def _quantile(self) -> Callable[[float], float]:
        from scipy import stats  # here, since the import takes a second

        settings = dict(self.settings)
        if self.law == "beta":
            return stats.beta(settings["a"], settings["b"]).ppf
        if self.law == "normal":
            return stats.norm(settings["mu"], settings["sigma"]).ppf
        if self.law == "log_normal":
            return stats.lognorm(settings["sigma"], scale=math.exp(settings["mu"])).ppf
        if self.law == "log_uniform":
            return stats.loguniform(settings["min"], settings["max"]).ppf
        return stats.uniform(settings["min"], settings["max"] - settings["min"]).ppf


# -- reading W&B's syntax ------------------------------------------------------------------------------------------

_DEFAULTS = {"q": 1, "mu": 0.0, "sigma": 1.0, "a": 1.0, "b": 1.0}
"""Settings that may be left out."""

_RANGE, _NORMAL, _BETA = ("min", "max"), ("mu", "sigma"), ("a", "b")
_SETTINGS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    "int_uniform": _RANGE,
    "uniform": _RANGE,
    "log_uniform": _RANGE,
    "log_uniform_values": _RANGE,
    "inv_log_uniform": _RANGE,
    "inv_log_uniform_values": _RANGE,
    "normal": _NORMAL,
    "log_normal": _NORMAL,
    "beta": _BETA,
    "q_uniform": (*_RANGE, "q"),
    "q_log_uniform": (*_RANGE, "q"),
    "q_log_uniform_values": (*_RANGE, "q"),
    "q_normal": (*_NORMAL, "q"),
    "q_log_normal": (*_NORMAL, "q"),
    "q_beta": (*_BETA, "q"),
}
"""The settings of each distribution."""


def read_distribution(settings: Mapping[str, Any], place: str) -> ParameterDistribution:
    """The distribution that W&B's syntax describes, or implies where it names none.

    Args:
        settings: of one parameter.
        place: where they stand, for messages.

    Raises:
        UserError: a setting is unknown, is missing, or has a value that does not fit.
    """
    law = settings.get("distribution", _implied(settings))
    if law not in _SETTINGS:
        hint = suggestion(str(law), _SETTINGS, otherwise=f"expected one of {', '.join(_SETTINGS)}")
        expected = hint if "distribution" in settings else "expected values, value, or min and max"
        raise UserError(f"{place}: {f'unknown distribution {law!r}; ' if law else ''}{expected}")
    known = _SETTINGS[law]
    for name in settings:
        if name not in (*known, "distribution"):
            hint = suggestion(name, known, otherwise=f"it takes {', '.join(known)}")
            raise UserError(f"{place}: {law} has no setting {name!r}; {hint}")
    for name in known:
        if name not in settings and name not in _DEFAULTS:
            raise UserError(f"{place}: {law} needs {name}")
    if law == "constant":
        return Constant(settings["value"])
    if law.startswith("categorical"):
        return _choice(settings, place)
    return _of_numbers(law, {name: _number(settings, name, place) for name in known}, place)


def _implied(settings: Mapping[str, Any]) -> str:
    """The distribution of settings that name none; empty where they imply none."""
    if "value" in settings:
        return "constant"
    if "values" in settings:
        return "categorical_w_probabilities" if "probabilities" in settings else "categorical"
    if "min" in settings and "max" in settings:
        whole = all(isinstance(settings[name], int) for name in _RANGE)
        return "int_uniform" if whole else "uniform"
    return ""


def _number(settings: Mapping[str, Any], name: str, place: str) -> float:
    value = settings.get(name, _DEFAULTS.get(name))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        hint = "; YAML takes 1e-5 for text: write 1.0e-5" if isinstance(value, str) and "e" in value.lower() else ""
        raise UserError(f"{place}.{name}: expected a number, got {value!r}{hint}")
    return value


def _choice(settings: Mapping[str, Any], place: str) -> ParameterDistribution:
    values, probabilities = settings["values"], settings.get("probabilities")
    if not isinstance(values, list) or not values:
        raise UserError(f"{place}.values: expected a list of values, got {values!r}")
    texts = [str(value) for value in values]
    if twice := next((text for text in texts if texts.count(text) > 1), None):
        raise UserError(f"{place}.values: {twice} is given twice")
    if probabilities is None:
        return OneOf(tuple(values))
    numbers = isinstance(probabilities, list) and all(isinstance(one, int | float) for one in probabilities)
    if not numbers or len(probabilities) != len(values):
        raise UserError(f"{place}.probabilities: expected {len(values)} numbers, one for each value")
    if min(probabilities) < 0 or not math.isclose(sum(probabilities), 1, rel_tol=1e-6):
        raise UserError(f"{place}.probabilities: expected numbers from 0 that sum to 1, got {probabilities}")
    return WeightedOneOf(tuple(values), tuple(float(one) for one in probabilities))


def _of_numbers(law: str, settings: dict[str, float], place: str) -> ParameterDistribution:
    """A distribution of numbers; ranges on a logarithmic scale by the values at their ends."""
    q = settings.pop("q", None)
    if q is not None and q <= 0:
        raise UserError(f"{place}.q: expected more than 0, got {q}")
    shape = law.removeprefix("q_")
    for name in ("sigma", "a", "b"):
        if settings.get(name, 1.0) <= 0:
            raise UserError(f"{place}.{name}: expected more than 0, got {settings[name]}")
    if "min" in settings:
        low, high = settings["min"], settings["max"]
        if low >= high:
            raise UserError(f"{place}: min is {low} and max {high}; expected min below max")
        if shape.endswith("_values") and low <= 0:
            raise UserError(f"{place}.min: expected more than 0 on a logarithmic scale, got {low}")
        settings = dict(zip(_RANGE, _bounds(shape, low, high), strict=True))
        shape = "log_uniform" if "log" in shape else shape
        if shape == "int_uniform":
            if not all(isinstance(bound, int) for bound in (low, high)):
                raise UserError(f"{place}: int_uniform takes whole numbers, got {low} and {high}")
            return Whole(int(low), int(high))
        if q is None:
            return Real(settings["min"], settings["max"], log=shape == "log_uniform")
    return Quantile(shape, tuple(settings.items()), q)


def _bounds(shape: str, low: float, high: float) -> tuple[float, float]:
    """The least and the largest value of a range, which W&B lets one give by logarithms, too.

    ``inv_log_uniform`` draws X = e⁻ᵁ, which like eᵁ has a uniform logarithm, from −max to −min.
    """
    if shape == "log_uniform":
        return math.exp(low), math.exp(high)
    if shape == "inv_log_uniform":
        return math.exp(-high), math.exp(-low)
    return low, high


def in_order(values: Sequence[Any]) -> bool:
    """Whether values are numbers, which have an order, rather than names."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
