"""Whether results of one arm spread less over seeds than those of another.

Pitman's and Morgan's test for paired variances assumes normal values: among equal log-normal arms it finds a
difference in 40 to 49 % of comparisons (``benchmarks/results/calibration.md``). What is compared here instead is how
far each run is from the median of its arm (Brown and Forsythe 1974; for pairs, Grambsch 1994): one number per run,
whose paired differences are tested as any others.
"""

from __future__ import annotations

import numpy as np

from rlhf_lightning.experiment.statistics.scores import Numbers


def distances_from_median(values: Numbers) -> Numbers:
    """|x − median|, over the last axis."""
    if not values.shape[-1]:
        return values
    return np.abs(values - np.median(values, axis=-1, keepdims=True))
