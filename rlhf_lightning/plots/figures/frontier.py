"""What each run bought with its distance from the reference model."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.figures.comparison import (
    chart_sheet,
    charts,
    draw_curves,
    in_color_of_reward,
    share_limits,
)
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import heading
from rlhf_lightning.plots.kit.style import styled
from rlhf_lightning.plots.measures import Entry, entries, measured
from rlhf_lightning.records.runs import Run


@styled
def frontier(runs: Run | Sequence[Run]) -> Figure:
    """Reward against KL to the reference, one curve per run: of those with gold, or else of the score.

    Args:
        runs: policy runs, or pipelines with one each.

    Raises:
        UserError: no run has both a reward and KL.
    """
    found = [entry for entry in entries(runs) if entry.run.kind != "control"]
    shown = charts(found, _against_kl)
    if not shown:
        raise UserError("no policy run with a reward and KL to draw a frontier from")
    if len(found) == 1:
        shown = [in_color_of_reward(shown[0])]
    figure, axes = chart_sheet(shown)
    drawn = {entry.name for chart in shown for entry, _ in chart.curves}
    left_out = [entry.name for entry in found if entry.name not in drawn]
    without = f" · without {shown[0].metric} or KL: {', '.join(left_out)}" if left_out else ""
    rewards = {chart.reward for chart in shown}
    reward = rewards.pop() if len(rewards) == 1 else "Reward"
    heading(figure, f"{reward} at each distance from the reference", f"One dot per evaluation{without}")
    share_limits(axes, shown)
    for place, chart in zip(axes, shown, strict=True):
        titles = (chart.task or chart.reward, chart.reward.lower()) if len(shown) > 1 else ()
        panels.dress(place, *titles, xlabel=chart.axis)
        panels.kl_axis(place, max(float(curve.index.max()) for _, curve in chart.curves))
        draw_curves(place, chart)
    return figure


def _against_kl(entry: Entry, reward: pd.Series) -> tuple[str, pd.Series]:
    return panels.KL_LABEL, panels.against(reward, measured(entry.run, "kl_ref_sequence"))
