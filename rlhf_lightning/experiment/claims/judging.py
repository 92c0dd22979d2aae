"""The verdict on each claim, with one error rate for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pandas as pd

from rlhf_lightning.errors import raise_all, suggestion
from rlhf_lightning.experiment.claims.base import ArmClaim, ClaimContrast, Decision, PValues
from rlhf_lightning.experiment.claims.declared import Kind
from rlhf_lightning.experiment.claims.together import adjusted_p
from rlhf_lightning.experiment.statistics.power import MoreSeeds, more_seeds
from rlhf_lightning.experiment.statistics.scores import MeasureScale, Numbers, PairedScores, paired_scores


class Standing(StrEnum):
    """What became of a claim that must hold.

    A claim that one arm is better is contradicted by equivalence, too: there is no difference that matters.
    """

    HELD = "held"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Judged:
    """A claim and what the runs say about it.

    Args:
        quantity: what was estimated, such as ``ppo − reinforce``.
        estimate: its mean, as measured; NaN without a seed.
        low: of Student's 95 % interval for this quantity alone. It agrees with the t test of a single claim; among
            several claims, and below 15 seeds, a verdict needs more than an interval on one side.
        p_difference: two-sided p, not adjusted.
        p_equivalence: p of a difference of the margin or more; None without a margin.
        adjusted_difference: p over all tested claims, to be compared with α; None for a claim that is only reported.
        verdict: None for a claim that is only reported.
        seeds: those that counted.
        more_seeds: how many more would probably decide, where the claim is undecided.
    """

    claim: ArmClaim
    quantity: str
    estimate: float
    low: float
    high: float
    p_difference: float
    p_equivalence: float | None
    adjusted_difference: float | None
    adjusted_equivalence: float | None
    verdict: Decision | None
    seeds: tuple[int, ...]
    more_seeds: MoreSeeds | None
    notes: tuple[str, ...]

    @property
    def standing(self) -> Standing | None:
        """Whether a claim that must hold does; None for the others."""
        if self.claim.kind is not Kind.MUST_HOLD:
            return None
        if self.verdict is Decision.UNDECIDED:
            return Standing.UNDECIDED
        return Standing.HELD if self.verdict is self.claim.held_by else Standing.CONTRADICTED

    def in_words(self) -> str:
        """The verdict as a table shows it, such as ``better`` or ``undecided: 4 more seeds (2 to 19)``."""
        if self.verdict is None:
            return "reported only"
        if self.verdict is Decision.UNDECIDED:
            return f"undecided: {self.more_seeds}" if self.more_seeds else "undecided"
        shown, opposite = self.claim.words
        return {Decision.BETTER: shown, Decision.WORSE: opposite}.get(self.verdict, str(self.verdict))


def judge(
    claims: Sequence[ArmClaim], table: pd.DataFrame, measures: Sequence[MeasureScale], *, alpha: float = 0.05
) -> list[Judged]:
    """Decide each claim, so that any verdict among them is false in at most ``alpha`` of all comparisons.

    A difference is shown if its two-sided p, adjusted for the claims (`statistics.multiplicity`), is at most α. Below
    15 seeds p is the larger one of the paired t test and of exact sign flips. Equivalence within a margin is shown by
    two one-sided tests (Schuirmann 1987) at the same adjusted level. A difference that is shown, and is also shown to
    be below the margin, is a difference. Claims that are only reported are neither tested nor counted.

    The error rate is that of one judgement. Whoever adds seeds until a claim is decided judges more than once, and
    errs more often; how many seeds there are to be should be settled before.

    Args:
        table: one row per run; see `statistics.scores`.
        measures: of all claims.

    Raises:
        UserError: a claim's measure or arm is not there, or the table is wrong.
    """
    _check_measures(claims, measures)
    scales = {scale.name: scale for scale in measures}
    tests = [_test(claim, scales[claim.measure], table) for claim in claims]
    corrected = adjusted_p(claims, [(test.p.difference, test.p.equivalent) for test in tests])
    smallest = adjusted_p(claims, [test.claim.smallest_p(len(test.scores.seeds)) for test in tests])
    level = alpha / max(1, sum(claim.tested for claim in claims))
    return [
        _judged(test, p, float(np.nanmin(floors)) if test.claim.tested else math.nan, alpha=alpha, level=level)
        for test, p, floors in zip(tests, corrected, smallest, strict=True)
    ]


def decision(p: PValues, adjusted: Numbers, *, alpha: float) -> Decision:
    """What is shown at level α.

    Args:
        adjusted: p of difference and of equivalence, adjusted for all claims; NaN shows nothing.
    """
    difference, equivalence = adjusted
    if difference <= alpha:
        return Decision.BETTER if p.toward < p.against else Decision.WORSE
    return Decision.EQUIVALENT if equivalence <= alpha else Decision.UNDECIDED


@dataclass(frozen=True)
class _Test:
    """A claim with its data and its evidence."""

    claim: ArmClaim
    scores: PairedScores
    p: PValues
    contrast: ClaimContrast


def _test(claim: ArmClaim, scale: MeasureScale, table: pd.DataFrame) -> _Test:
    scores = paired_scores(table, scale, claim.arms)
    return _Test(claim, scores, claim.p_values(scores.values, scale), claim.contrast(scores.values, scale))


def _judged(test: _Test, adjusted: Numbers, floor: float, *, alpha: float, level: float) -> Judged:
    """The verdict, given the adjusted p values, and the smallest that so many seeds can give."""
    claim, estimate = test.claim, test.contrast.estimate
    verdict = decision(test.p, adjusted, alpha=alpha) if claim.tested else None
    difference, equivalence = (None if math.isnan(p) else float(p) for p in adjusted)
    count, notes, more = len(test.scores.seeds), list(test.scores.notes), None
    if count < 2:
        notes.append("an interval and a test need at least two seeds that all its arms have")
    elif verdict is Decision.UNDECIDED:
        more = more_seeds(count, test.contrast.sd, claim.seeds_plan(test.contrast, level=level))
        if floor > alpha:
            notes.append(f"with {count} seeds no result is enough: over all claims, p is at least {floor:.3g}")
    elif verdict is not Decision.EQUIVALENT and equivalence is not None and equivalence <= alpha:
        notes.append(f"by less than the margin of {claim.equivalence_margin:g}")
    return Judged(
        claim=claim,
        quantity=test.contrast.name,
        estimate=estimate.mean,
        low=estimate.low,
        high=estimate.high,
        p_difference=float(test.p.difference),
        p_equivalence=None if test.p.equivalent is None else float(test.p.equivalent),
        adjusted_difference=difference,
        adjusted_equivalence=equivalence,
        verdict=verdict,
        seeds=test.scores.seeds,
        more_seeds=more,
        notes=tuple(notes),
    )


def _check_measures(claims: Sequence[ArmClaim], measures: Sequence[MeasureScale]) -> None:
    known = [scale.name for scale in measures]
    raise_all(
        f"claim {claim.title!r} is about an unknown measure {claim.measure!r}: "
        + suggestion(claim.measure, known, otherwise=f"measures are {', '.join(known)}")
        for claim in claims
        if claim.measure not in known
    )
