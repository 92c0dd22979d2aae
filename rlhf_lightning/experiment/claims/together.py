"""What the claims of a comparison do to each other: their common error rate, and what it makes impossible."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlhf_lightning.experiment.claims.base import ArmClaim, Decision
from rlhf_lightning.experiment.statistics.arms import FEW_SEEDS
from rlhf_lightning.experiment.statistics.multiplicity import adjusted
from rlhf_lightning.experiment.statistics.scores import Numbers


def adjusted_p(claims: Sequence[ArmClaim], p: Sequence[tuple[float | Numbers, float | Numbers | None]]) -> Numbers:
    """The p of difference and of equivalence of each claim, adjusted for all claims that are tested.

    Args:
        p: not adjusted, in the order of the claims; None where a claim has no margin.

    Returns:
        ``[claims, 2]``; NaN where there is no hypothesis, and for claims that are only reported.
    """
    rows = np.full((len(claims), 2), math.nan)
    for row, claim, (difference, equivalence) in zip(rows, claims, p, strict=True):
        if claim.tested:
            row[:] = difference, math.nan if equivalence is None else equivalence
    return adjusted(rows)


def why_impossible(claims: Sequence[ArmClaim], seeds: int, *, alpha: float = 0.05) -> list[str]:
    """A sentence for each claim that no result of so many seeds can show, with the number of seeds that it takes.

    The one-sided p of n sign flips is at least 2⁻ⁿ, and the smallest p of m claims must be at most α / m.
    """
    smallest = _smallest_p(claims, seeds)
    count = sum(claim.tested for claim in claims)
    return [
        f"{claim.title}: cannot be shown with {seeds} seeds, since the smallest p that they can give is {p:.3g} over "
        f"{count} {'claim' if count == 1 else 'claims'}; at least {_least_seeds(claims, row, alpha)} seeds are needed"
        for row, (claim, p) in enumerate(zip(claims, smallest, strict=True))
        if p > alpha
    ]


def _smallest_p(claims: Sequence[ArmClaim], seeds: int) -> list[float]:
    """Of each claim the smallest adjusted p of what it says; NaN for a claim that is only reported."""
    p = adjusted_p(claims, [claim.smallest_p(seeds) for claim in claims])
    return [float(row[1 if claim.held_by is Decision.EQUIVALENT else 0]) for claim, row in zip(claims, p, strict=True)]


def _least_seeds(claims: Sequence[ArmClaim], row: int, alpha: float) -> int:
    return next(seeds for seeds in range(2, FEW_SEEDS + 1) if _smallest_p(claims, seeds)[row] <= alpha)
