"""What each run bought with its distance from the reference model."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.figures.comparison import charts, draw_charts, left_out
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.style import styled
from rlhf_lightning.plots.measures import Entry, entries, measured
from rlhf_lightning.records.runs import Run

KL = "kl_ref_sequence"


@styled
def frontier(runs: Run | Sequence[Run]) -> Figure:
    """Reward against KL to the reference, one curve per run: of those with gold, or else of the score.

    Args:
        runs: policy runs, or pipelines with one each.

    Raises:
        UserError: no run has both a reward and KL.
    """
    found = [entry for entry in entries(runs) if any(metric.key.endswith(KL) for metric in entry.run.panels)]
    shown = charts(found, _against_kl)
    if not shown:
        raise UserError("no policy run with a reward and KL to draw a frontier from")
    curves = [curve for chart in shown for _, curve in chart.curves]
    without = f"without {shown[0].metric} or KL"
    rewards = {chart.reward for chart in shown}
    reward = rewards.pop() if len(rewards) == 1 else "Reward"
    return draw_charts(
        shown,
        title=f"{reward} at each distance from the reference",
        note=f"One dot per evaluation{panels.apart(curves)}{left_out(found, shown, without)}",
        unit=lambda chart: chart.reward.lower(),
        x_axis=panels.kl_axis,
    )


def _against_kl(entry: Entry, reward: pd.Series) -> tuple[str, pd.Series]:
    return panels.KL_LABEL, panels.against(reward, measured(entry.run, KL))
