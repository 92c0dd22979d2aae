"""Claims about the mean of one number per seed: a difference, a value, a slope, a spread."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.claims.base import ArmClaim, ClaimContrast, Decision, PValues
from rlhf_lightning.experiment.claims.declared import DeclaredClaim
from rlhf_lightning.experiment.statistics.paired import p_equivalent, p_greater
from rlhf_lightning.experiment.statistics.power import seeds_for_equivalence, seeds_to_detect
from rlhf_lightning.experiment.statistics.scores import ArmValues, MeasureScale
from rlhf_lightning.experiment.statistics.spread import distances_from_median


@dataclass(frozen=True, kw_only=True)
class ContrastClaim(ArmClaim):
    """The mean of a contrast lies above its bound, or below it where the sign is −1."""

    @abstractmethod
    def sign(self, scale: MeasureScale) -> int:
        """1 where the claim says that the contrast is above its bound, −1 where it says below."""

    def p_values(self, values: ArmValues, scale: MeasureScale) -> PValues:
        """Both sides of the bound; and whether the mean is within the margin, where there is one."""
        contrast, sign, margin = self.contrast(values, scale), self.sign(scale), self.equivalence_margin
        return PValues(
            toward=p_greater(sign * contrast.values, than=sign * contrast.bound),
            against=p_greater(-sign * contrast.values, than=-sign * contrast.bound),
            equivalent=None if margin is None else p_equivalent(contrast.values, margin=margin),
        )


@dataclass(frozen=True, kw_only=True)
class Greater(ContrastClaim):
    """``{greater: [a, b]}``: the first arm's value is higher, whichever direction is better.

    Args:
        by: at least by so much. Such a claim says what matters by itself, and equivalence is not tested.
        margin: smallest difference that matters.
    """

    key: ClassVar[str] = "greater"
    further_keys: ClassVar[frozenset[str]] = frozenset({"by", "margin"})
    verdict_words: ClassVar[tuple[str, str]] = ("greater", "smaller")

    first: str
    second: str
    by: float = 0.0
    margin: float | None = None

    @classmethod
    def read(cls, given: DeclaredClaim) -> Self:
        """Two arms, and ``by`` or ``margin``."""
        first, second = given.some_arms(cls.key, most=2)
        by, margin = given.positive("by") or 0.0, given.margin()
        return cls(first=first, second=second, by=by, margin=margin, **given.common())

    @property
    def arms(self) -> tuple[str, ...]:
        """Both."""
        return self.first, self.second

    @property
    def statement(self) -> str:
        """In words."""
        amount = f" by at least {self.by:g}" if self.by else ""
        return f"{self.first} is {self.verdict_words[0]} than {self.second}{amount}"

    @property
    def words(self) -> tuple[str, str]:
        """With ``by`` the opposite is less of it, which need not be the other direction."""
        shown = self.verdict_words[0]
        return (f"{shown} by at least {self.by:g}", f"not {shown} by {self.by:g}") if self.by else self.verdict_words

    @property
    def equivalence_margin(self) -> float | None:
        """The margin; None with ``by``, since being better by exactly so much and equivalent could both be false."""
        return None if self.by else self.margin

    def sign(self, scale: MeasureScale) -> int:
        """Of the first minus the second."""
        return 1

    def contrast(self, values: ArmValues, scale: MeasureScale) -> ClaimContrast:
        """First minus second, as measured."""
        name = f"{self.first} − {self.second}"
        return ClaimContrast(name, values[self.first] - values[self.second], self.sign(scale) * self.by)


@dataclass(frozen=True, kw_only=True)
class Better(Greater):
    """``{better: [a, b]}``: the first arm's value is higher, or lower where less is better."""

    key: ClassVar[str] = "better"
    verdict_words: ClassVar[tuple[str, str]] = ("better", "worse")

    def sign(self, scale: MeasureScale) -> int:
        """By the direction of the measure."""
        return scale.sign


@dataclass(frozen=True, kw_only=True)
class Equivalent(ContrastClaim):
    """``{equivalent: [a, b], margin: 0.1}``: the arms differ by less than the margin.

    Contradicted is it by a difference of the margin or more, not by a small one that is clearly not 0.
    """

    key: ClassVar[str] = "equivalent"
    further_keys: ClassVar[frozenset[str]] = frozenset({"margin"})
    verdict_words: ClassVar[tuple[str, str]] = ("better by the margin or more", "worse by the margin or more")
    held_by: ClassVar[Decision] = Decision.EQUIVALENT

    first: str
    second: str
    margin: float

    @classmethod
    def read(cls, given: DeclaredClaim) -> Self:
        """Two arms and a margin."""
        first, second = given.some_arms(cls.key, most=2)
        margin = given.margin()
        if margin is None:
            raise UserError(f"{given.place}: equivalence needs a margin above 0, of the claim or of the comparison")
        return cls(first=first, second=second, margin=margin, **given.common())

    @property
    def arms(self) -> tuple[str, ...]:
        """Both."""
        return self.first, self.second

    @property
    def statement(self) -> str:
        """In words."""
        return f"{self.first} and {self.second} differ by less than {self.margin:g}"

    @property
    def equivalence_margin(self) -> float | None:
        """What they differ by less than."""
        return self.margin

    def sign(self, scale: MeasureScale) -> int:
        """By the direction of the measure."""
        return scale.sign

    def contrast(self, values: ArmValues, scale: MeasureScale) -> ClaimContrast:
        """First minus second, as measured."""
        return ClaimContrast(f"{self.first} − {self.second}", values[self.first] - values[self.second])

    def p_values(self, values: ArmValues, scale: MeasureScale) -> PValues:
        """That the difference is within the margin, and that it is beyond it on either side."""
        differences = self.sign(scale) * self.contrast(values, scale).values
        return PValues(
            toward=p_greater(differences, than=self.margin),
            against=p_greater(-differences, than=self.margin),
            equivalent=p_equivalent(differences, margin=self.margin),
        )

    def seeds_plan(self, contrast: ClaimContrast, *, level: float) -> Callable[[float], int]:
        """Enough if the arms are equal; where so many are there already, enough for the observed difference."""
        distance = abs(contrast.estimate.mean)

        def equal(sd: float) -> int:
            return seeds_for_equivalence(self.margin, sd, level=level)

        def as_observed(sd: float) -> int:
            if distance < self.margin:
                return seeds_for_equivalence(self.margin, sd, difference=distance, level=level)
            return seeds_to_detect(distance - self.margin, sd, level=level)

        return as_observed if equal(contrast.sd) <= len(contrast.values) else equal


@dataclass(frozen=True, kw_only=True)
class Above(ContrastClaim):
    """``{above: {arm: a, value: 0.9}}``: an arm's mean lies above a value. One sample: nothing cancels by pairing."""

    key: ClassVar[str] = "above"
    verdict_words: ClassVar[tuple[str, str]] = ("above", "below")

    arm: str
    value: float

    @classmethod
    def read(cls, given: DeclaredClaim) -> Self:
        """An arm and a value."""
        arm, value = given.arm_and_value(cls.key)
        return cls(arm=arm, value=value, **given.common())

    @property
    def arms(self) -> tuple[str, ...]:
        """The one."""
        return (self.arm,)

    @property
    def statement(self) -> str:
        """In words."""
        return f"{self.arm} is {self.words[0]} {self.value:g}"

    def sign(self, scale: MeasureScale) -> int:
        """Above."""
        return 1

    def contrast(self, values: ArmValues, scale: MeasureScale) -> ClaimContrast:
        """The values themselves."""
        return ClaimContrast(self.arm, values[self.arm], self.value)


@dataclass(frozen=True, kw_only=True)
class Below(Above):
    """``{below: {arm: a, value: 0.1}}``: an arm's mean lies below a value."""

    key: ClassVar[str] = "below"
    verdict_words: ClassVar[tuple[str, str]] = ("below", "above")

    def sign(self, scale: MeasureScale) -> int:
        """Below."""
        return -1


@dataclass(frozen=True, kw_only=True)
class Increasing(ContrastClaim):
    """``{increasing: [a, b, c]}``: values rise along the arms.

    Tested is the slope of a straight line through the arms of each seed, in equal steps. It needs no step to be
    significant by itself, and a fall that is smaller than the rises does not contradict it; for that, claim an order.
    """

    key: ClassVar[str] = "increasing"
    verdict_words: ClassVar[tuple[str, str]] = ("increasing", "decreasing")

    ordered: tuple[str, ...]

    @classmethod
    def read(cls, given: DeclaredClaim) -> Self:
        """Three arms or more."""
        return cls(ordered=given.some_arms(cls.key, least=3), **given.common())

    @property
    def arms(self) -> tuple[str, ...]:
        """In their order."""
        return self.ordered

    @property
    def statement(self) -> str:
        """In words."""
        return f"{self.words[0]} from {' to '.join(self.ordered)}"

    def sign(self, scale: MeasureScale) -> int:
        """Upwards."""
        return 1

    def contrast(self, values: ArmValues, scale: MeasureScale) -> ClaimContrast:
        """The least-squares slope per step, of each seed."""
        steps = np.arange(len(self.ordered)) - (len(self.ordered) - 1) / 2
        weights = steps / np.sum(steps**2)
        slopes = sum(weight * values[arm] for weight, arm in zip(weights, self.ordered, strict=True))
        return ClaimContrast("slope per step", np.asarray(slopes))


@dataclass(frozen=True, kw_only=True)
class Decreasing(Increasing):
    """``{decreasing: [a, b, c]}``: values fall along the arms."""

    key: ClassVar[str] = "decreasing"
    verdict_words: ClassVar[tuple[str, str]] = ("decreasing", "increasing")

    def sign(self, scale: MeasureScale) -> int:
        """Downwards."""
        return -1


@dataclass(frozen=True, kw_only=True)
class LessSpread(ContrastClaim):
    """``{less_spread: [a, b]}``: results of the first arm spread less over seeds; see `statistics.spread`."""

    key: ClassVar[str] = "less_spread"
    verdict_words: ClassVar[tuple[str, str]] = ("less spread", "more spread")

    first: str
    second: str

    @classmethod
    def read(cls, given: DeclaredClaim) -> Self:
        """Two arms."""
        first, second = given.some_arms(cls.key, most=2)
        return cls(first=first, second=second, **given.common())

    @property
    def arms(self) -> tuple[str, ...]:
        """Both."""
        return self.first, self.second

    @property
    def statement(self) -> str:
        """In words."""
        return f"{self.first} spreads less over seeds than {self.second}"

    def sign(self, scale: MeasureScale) -> int:
        """Less."""
        return -1

    def contrast(self, values: ArmValues, scale: MeasureScale) -> ClaimContrast:
        """How much further from its arm's median a run of the first arm lies than one of the second."""
        first, second = (distances_from_median(values[arm]) for arm in self.arms)
        return ClaimContrast(f"{self.first} − {self.second}, distance from the median", first - second)
