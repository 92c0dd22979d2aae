"""Differences of paired runs: Student's test, exact sign flips, and equivalence within a margin.

Runs of one seed share models, prompts and noise, which their difference cancels: the tests look at one difference per
seed. Where seeds are few, a result must hold in two ways that fail differently: Student's test assumes normal
differences; sign flips assume only that a difference is as likely as its negative, but with n pairs no one-sided p is
below 2⁻ⁿ. (Colas et al. 2018 compare such tests; Patterson et al. 2024 say what pairing is worth.)

All functions take arrays whose last axis is the seeds, and give one number for each row before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rlhf_lightning.experiment.statistics.arms import FEW_SEEDS, MeanEstimate, student_estimate
from rlhf_lightning.experiment.statistics.scores import MeasureScale, Numbers, paired_scores

SIGN_FLIPS = 2**15
"""All sign flips of up to 15 pairs; of more pairs so many are drawn at random, from a fixed seed."""


def student_greater(differences: Numbers, *, than: float = 0.0) -> Numbers:
    """One-sided p of the paired t test: the mean is at most ``than``. 1 where there are fewer than two pairs."""
    from scipy.stats import t

    count = differences.shape[-1]
    if count < 2:
        return np.ones(differences.shape[:-1])
    excess = differences.mean(axis=-1) - than
    error = differences.std(axis=-1, ddof=1) / np.sqrt(count)
    # Differences that are all the same have no spread to measure by: they decide, unless they are what is tested.
    same = np.ptp(differences, axis=-1) == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(same, np.where(excess > 0, 0.0, 1.0), t.sf(excess / error, count - 1))


def sign_flips_greater(differences: Numbers, *, than: float = 0.0) -> Numbers:
    """One-sided p by sign flips: which share of all choices of signs gives a mean at least as high.

    Exact up to 15 pairs, whatever the distribution, if differences are symmetric about ``than`` under the hypothesis.
    1 where there are fewer than two pairs.
    """
    from scipy.stats import permutation_test

    if differences.shape[-1] < 2:
        return np.ones(differences.shape[:-1])
    return permutation_test(
        (differences - than,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        axis=-1,
        alternative="greater",
        n_resamples=SIGN_FLIPS,
        batch=64,
        rng=np.random.default_rng(0),
    ).pvalue


def sign_flip_floor(seeds: int) -> float:
    """The smallest one-sided p that a test of so many pairs can have: 2⁻ⁿ below `FEW_SEEDS`, else 0.

    Two-sided tests have twice that: 0.0625 with five pairs.
    """
    return 2.0**-seeds if seeds < FEW_SEEDS else 0.0


def p_greater(differences: Numbers, *, than: float = 0.0) -> Numbers:
    """One-sided p of the hypothesis that the mean difference is at most ``than``.

    Of Student's test; below `FEW_SEEDS` seeds the larger of that and exact sign flips, so that both must hold.
    """
    student = student_greater(differences, than=than)
    if differences.shape[-1] >= FEW_SEEDS:
        return student
    return np.maximum(student, sign_flips_greater(differences, than=than))


def p_equivalent(differences: Numbers, *, margin: float) -> Numbers:
    """The p of the hypothesis that the mean difference is ``margin`` or more, to either side.

    Two one-sided tests (Schuirmann 1987), each as `p_greater`; the larger p counts, without a further correction.
    """
    return np.maximum(p_greater(differences, than=-margin), p_greater(-differences, than=-margin))


def two_sided(toward: Numbers, against: Numbers) -> Numbers:
    """The p of a two-sided test from the p of both one-sided ones."""
    return np.minimum(1.0, 2 * np.minimum(toward, against))


@dataclass(frozen=True)
class PairedDifference:
    """First arm minus second arm, over the seeds that both have.

    Args:
        seeds: the seeds that count.
        estimate: mean difference, with Student's 95 % interval, which agrees with ``p_student``.
        p_student: of the two-sided paired t test.
        p_sign_flips: of the two-sided exact sign-flip test.
        floor: the smallest two-sided p that sign flips of so many pairs can give.
        notes: what failed runs counted as, and which seeds were left out.
    """

    seeds: tuple[int, ...]
    estimate: MeanEstimate
    p_student: float
    p_sign_flips: float
    floor: float
    notes: tuple[str, ...]


def paired_difference(table: pd.DataFrame, scale: MeasureScale, first: str, second: str) -> PairedDifference:
    """Compare two arms of a scores table, by themselves: no correction for further comparisons.

    Raises:
        UserError: as `paired_scores`.
    """
    scores = paired_scores(table, scale, [first, second])
    differences = scores.values[first] - scores.values[second]
    return PairedDifference(
        seeds=scores.seeds,
        estimate=student_estimate(differences),
        p_student=float(two_sided(student_greater(differences), student_greater(-differences))),
        p_sign_flips=float(two_sided(sign_flips_greater(differences), sign_flips_greater(-differences))),
        floor=min(1.0, 2 * 2.0 ** -len(differences)),
        notes=scores.notes,
    )
