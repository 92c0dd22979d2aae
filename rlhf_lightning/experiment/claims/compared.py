"""Every arm against a baseline, or against every other: what can be said without claims."""

from __future__ import annotations

from itertools import combinations

import pandas as pd

from rlhf_lightning.errors import UserError, suggestion
from rlhf_lightning.experiment.claims.contrasts import Better
from rlhf_lightning.experiment.claims.declared import Kind
from rlhf_lightning.experiment.claims.judging import Judged, judge
from rlhf_lightning.experiment.statistics.scores import ARM, MeasureScale, checked_table


def compared(
    table: pd.DataFrame,
    scale: MeasureScale,
    *,
    baseline: str | None = None,
    margin: float | None = None,
    alpha: float = 0.05,
) -> list[Judged]:
    """Two-sided verdicts, with one error rate for all of them.

    Args:
        table: one row per run; see `statistics.scores`.
        baseline: what every other arm is compared with; None: all pairs, in the order of the table.
        margin: smallest difference that matters.

    Raises:
        UserError: the baseline is no arm, there is one arm only, or the table is wrong.
    """
    arms = list(dict.fromkeys(checked_table(table, scale.name)[ARM]))
    if baseline is not None and baseline not in arms:
        hint = suggestion(baseline, arms, otherwise=f"arms are {', '.join(arms)}")
        raise UserError(f"the baseline {baseline!r} is no arm: {hint}")
    if len(arms) < 2:
        raise UserError(f"a comparison needs at least two arms, and the table has {len(arms)}")
    if margin is not None and not margin > 0:
        raise UserError(f"margin must be above 0, got {margin}")
    pairs = combinations(arms, 2) if baseline is None else ((arm, baseline) for arm in arms if arm != baseline)
    claims = [
        Better(measure=scale.name, kind=Kind.TWO_SIDED, first=first, second=second, margin=margin)
        for first, second in pairs
    ]
    return judge(claims, table, [scale], alpha=alpha)
