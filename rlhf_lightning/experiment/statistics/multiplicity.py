"""One error rate for all claims together.

A claim may carry two hypotheses, "there is no difference" and "the difference is the margin or more". They exclude
each other, so at most one of them can be rejected falsely (partitioning; Stefansson, Kim and Hsu 1988): where the
true difference is the margin or more, a verdict "equivalent" is false, and so is a verdict for the wrong side, but
whatever shows the wrong side also shows "less than the margin", so that one test at α covers both mistakes. Hence a
claim counts once, not twice.

Over the claims hypotheses are rejected from the smallest p on, as Holm 1979 does, and p is multiplied by the number of
claims that have a hypothesis left (Shaffer 1986: the most hypotheses that can still be true). Without margins that is
Holm's procedure. With them, a claim leaves the count only when both of its hypotheses were rejected: one family of
differences and one of equivalences, each with its own Holm, would err in up to 2α of the comparisons.
"""

from __future__ import annotations

import numpy as np

from rlhf_lightning.experiment.statistics.scores import Numbers


def adjusted(p: Numbers) -> Numbers:
    """The p values that may be compared with α, whatever the number of claims.

    Args:
        p: ``[claims, hypotheses]``, the hypotheses of a claim excluding each other; NaN where it has fewer.

    Returns:
        The same shape, NaN in the same places.
    """
    open_hypotheses = np.isfinite(p).sum(axis=1)
    found = np.full_like(p, np.nan)
    largest = 0.0
    for place in np.argsort(p, axis=None, kind="stable")[: open_hypotheses.sum()]:  # NaN comes last
        claim, hypothesis = np.unravel_index(place, p.shape)
        largest = max(largest, min(1.0, float(np.count_nonzero(open_hypotheses) * p[claim, hypothesis])))
        found[claim, hypothesis] = largest
        open_hypotheses[claim] -= 1
    return found
