"""What a claim over arms is: what it says, the p values for and against it, and the numbers behind them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Self

import numpy as np

from rlhf_lightning.experiment.claims.declared import DeclaredClaim, Kind
from rlhf_lightning.experiment.statistics.arms import MeanEstimate, student_estimate
from rlhf_lightning.experiment.statistics.paired import sign_flip_floor, two_sided
from rlhf_lightning.experiment.statistics.power import seeds_for_equivalence, seeds_to_detect
from rlhf_lightning.experiment.statistics.scores import ArmValues, MeasureScale, Numbers


class Decision(StrEnum):
    """What the runs showed.

    ``better`` is what the claim says (for some checks in other words, such as *greater* or *above*), ``worse`` its
    opposite.
    """

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class PValues:
    """Evidence for a claim and against it; one number, or one for each simulated comparison.

    Args:
        toward: one-sided p of the hypothesis that what the claim says is not so.
        against: one-sided p of the hypothesis that the opposite is not so.
        equivalent: p of the hypothesis that the difference is the margin or more; None without a margin.
    """

    toward: Numbers
    against: Numbers
    equivalent: Numbers | None = None

    @property
    def difference(self) -> Numbers:
        """Two-sided: that neither what the claim says nor its opposite is so."""
        return two_sided(self.toward, self.against)


@dataclass(frozen=True)
class ClaimContrast:
    """One number per seed, on whose mean a claim hangs, such as the difference of two arms.

    Args:
        name: what it is, for tables.
        bound: with what the mean is compared.
    """

    name: str
    values: Numbers
    bound: float = 0.0

    @property
    def sd(self) -> float:
        """Standard deviation over seeds."""
        return float(np.std(self.values, ddof=1))

    @property
    def estimate(self) -> MeanEstimate:
        """The mean with Student's 95 % interval, which is for this contrast alone, not for all claims together."""
        return student_estimate(self.values)


@dataclass(frozen=True, kw_only=True)
class ArmClaim(ABC):
    """A claim about the arms of a comparison, which the runs can contradict.

    Args:
        measure: the column that it is about.
        published: what the paper reports.
    """

    key: ClassVar[str]
    """The check's name in a declaration."""
    further_keys: ClassVar[frozenset[str]] = frozenset()
    verdict_words: ClassVar[tuple[str, str]] = ("better", "worse")
    held_by: ClassVar[Decision] = Decision.BETTER

    measure: str
    kind: Kind = Kind.MUST_HOLD
    name: str = ""
    published: str | float | None = None

    @classmethod
    @abstractmethod
    def read(cls, given: DeclaredClaim) -> Self:
        """The claim that a declaration describes.

        Raises:
            UserError: the declaration is wrong.
        """

    @property
    @abstractmethod
    def arms(self) -> tuple[str, ...]:
        """The arms that it is about; only seeds that all of them have count."""

    @property
    @abstractmethod
    def statement(self) -> str:
        """The claim in words."""

    @abstractmethod
    def p_values(self, values: ArmValues, scale: MeasureScale) -> PValues:
        """Test it; the arrays may have leading axes, for many comparisons at a time."""

    @abstractmethod
    def contrast(self, values: ArmValues, scale: MeasureScale) -> ClaimContrast:
        """The numbers of one comparison that decide it: where it is about several differences, the weakest of them."""

    @property
    def words(self) -> tuple[str, str]:
        """What the claim says, and its opposite, as verdicts."""
        return self.verdict_words

    @property
    def title(self) -> str:
        """Its name, or what it says."""
        return self.name or self.statement

    @property
    def tested(self) -> bool:
        """Whether it is more than reported."""
        return self.kind is not Kind.REPORT_ONLY

    @property
    def equivalence_margin(self) -> float | None:
        """Differences below it do not matter; None where equivalence is not tested."""
        return None

    @property
    def choices(self) -> int:
        """Among how many alternatives it takes the best, which its p values account for."""
        return 1

    def smallest_p(self, seeds: int) -> tuple[float, float | None]:
        """The smallest p of a difference and of equivalence that so many seeds can give."""
        floor = sign_flip_floor(seeds)
        return min(1.0, 2 * self.choices * floor), None if self.equivalence_margin is None else floor

    def seeds_plan(self, contrast: ClaimContrast, *, level: float) -> Callable[[float], int]:
        """What is aimed at: the number of seeds that decide with power 0.8, by the standard deviation of the contrast.

        With a margin: enough to show a difference of the margin as well as to show that there is none; where so many
        are there already, enough to show the observed difference, or that it is below the margin. Without: enough to
        show the observed difference.

        Args:
            level: of the test, the claims of the comparison accounted for.
        """
        margin, level = self.equivalence_margin, level / self.choices
        distance = abs(contrast.estimate.mean - contrast.bound)

        def difference(sd: float) -> int:
            return seeds_to_detect(distance, sd, level=level)

        if margin is None:
            return difference

        def smallest_that_matters(sd: float) -> int:
            return max(seeds_to_detect(margin, sd, level=level), seeds_for_equivalence(margin, sd, level=level))

        def whichever_is_sooner(sd: float) -> int:
            return min(difference(sd), seeds_for_equivalence(margin, sd, difference=distance, level=level))

        enough = smallest_that_matters(contrast.sd) <= len(contrast.values)
        return whichever_is_sooner if enough else smallest_that_matters


def listed(arms: Sequence[str]) -> str:
    """Names of arms in a sentence."""
    *first, last = arms
    return f"{', '.join(first)} and {last}" if first else last
