"""Claims about several differences at once: an order of arms, and the best of some arms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.claims.base import ArmClaim, ClaimContrast, PValues, listed
from rlhf_lightning.experiment.claims.declared import DeclaredClaim
from rlhf_lightning.experiment.statistics.paired import p_greater
from rlhf_lightning.experiment.statistics.scores import ArmValues, MeasureScale, Numbers


def _p_better(values: ArmValues, scale: MeasureScale, first: str, second: str) -> Numbers:
    """One-sided p of the hypothesis that the first arm is not better."""
    return p_greater(scale.sign * (values[first] - values[second]))


def _largest(p: Iterable[Numbers]) -> Numbers:
    """All must be shown: the largest p, at the full level (intersection-union; Berger 1982)."""
    return np.max(list(p), axis=0)


def _smallest(p: Iterable[Numbers]) -> Numbers:
    """One must be shown, whichever: the smallest p times their number (Bonferroni)."""
    tried = list(p)
    return np.minimum(1.0, len(tried) * np.min(tried, axis=0))


@dataclass(frozen=True, kw_only=True)
class Ordered(ArmClaim):
    """``{order: [a, b, c]}``: each arm is better than the next; contradicted where a step goes the other way."""

    key: ClassVar[str] = "order"
    verdict_words: ClassVar[tuple[str, str]] = ("in this order", "not in this order")

    ordered: tuple[str, ...]

    @classmethod
    def read(cls, given: DeclaredClaim) -> Self:
        """Two arms or more."""
        return cls(ordered=given.some_arms(cls.key), **given.common())

    @property
    def arms(self) -> tuple[str, ...]:
        """From the best to the worst."""
        return self.ordered

    @property
    def statement(self) -> str:
        """In words."""
        return f"each better than the next: {', '.join(self.ordered)}"

    def p_values(self, values: ArmValues, scale: MeasureScale) -> PValues:
        """For it all steps count, against it the clearest step the other way."""
        steps = list(pairwise(self.ordered))
        return PValues(
            toward=_largest(_p_better(values, scale, better, worse) for better, worse in steps),
            against=_smallest(_p_better(values, scale, worse, better) for better, worse in steps),
        )

    def contrast(self, values: ArmValues, scale: MeasureScale) -> ClaimContrast:
        """The step that is shown least."""
        better, worse = max(pairwise(self.ordered), key=lambda step: float(_p_better(values, scale, *step)))
        return ClaimContrast(f"{better} − {worse}", values[better] - values[worse])


@dataclass(frozen=True, kw_only=True)
class BestOf(ArmClaim):
    """``{best_of: [a, b, c], better_than: [d, e]}``: some arm of the first list is better than all of the second.

    Which arm that is the runs choose; its p is multiplied by the number of arms that it was chosen from. Contradicted
    where every arm of the first list is worse than some arm of the second.
    """

    key: ClassVar[str] = "best_of"
    further_keys: ClassVar[frozenset[str]] = frozenset({"better_than"})
    verdict_words: ClassVar[tuple[str, str]] = ("one is better", "none is better")

    candidates: tuple[str, ...]
    rivals: tuple[str, ...]

    @classmethod
    def read(cls, given: DeclaredClaim) -> Self:
        """Two lists of arms."""
        if "better_than" not in given.item:
            raise UserError(f"{given.place}: best_of needs better_than, a list of at least 1 arm")
        candidates, rivals = given.some_arms(cls.key, least=1), given.some_arms("better_than", least=1)
        both = [arm for arm in candidates if arm in rivals]
        if both:
            raise UserError(f"{given.place}: {listed(both)} cannot be in best_of and in better_than")
        return cls(candidates=candidates, rivals=rivals, **given.common())

    @property
    def arms(self) -> tuple[str, ...]:
        """Of both lists."""
        return self.candidates + self.rivals

    @property
    def statement(self) -> str:
        """In words."""
        return f"the best of {listed(self.candidates)} is better than {listed(self.rivals)}"

    @property
    def choices(self) -> int:
        """The arms that the best is chosen from."""
        return len(self.candidates)

    def p_values(self, values: ArmValues, scale: MeasureScale) -> PValues:
        """For it some candidate against all rivals, against it all candidates against some rival."""
        return PValues(
            toward=_smallest(
                _largest(_p_better(values, scale, one, rival) for rival in self.rivals) for one in self.candidates
            ),
            against=_largest(
                _smallest(_p_better(values, scale, rival, one) for rival in self.rivals) for one in self.candidates
            ),
        )

    def contrast(self, values: ArmValues, scale: MeasureScale) -> ClaimContrast:
        """The best candidate against the rival that it is least clearly better than."""

        def hardest(one: str) -> tuple[float, str]:
            return max((float(_p_better(values, scale, one, rival)), rival) for rival in self.rivals)

        best = min(self.candidates, key=hardest)
        rival = hardest(best)[1]
        return ClaimContrast(f"{best} − {rival}", values[best] - values[rival])
