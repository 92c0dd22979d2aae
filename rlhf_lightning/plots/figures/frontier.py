"""What each arm bought with its distance from the reference model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.figures.comparison import charts, draw_charts, left_out
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.bands import BAND, THIN, Curve, curve
from rlhf_lightning.plots.kit.style import styled
from rlhf_lightning.plots.measures import Runs, entries, measured
from rlhf_lightning.records.runs import Run

KL = "kl_ref_sequence"


@styled
def frontier(runs: Runs, *, metric: str | None = None) -> Figure:
    """Reward against KL to the reference, one curve per arm: of those with gold, or else of the score.

    Over several seeds it is the mean reward at the same KL, as far as three quarters of them came.

    Args:
        runs: policy runs, or pipelines with one each; those that differ in the seed alone are one arm. Or arms by name.
        metric: name of another metric than the reward, such as ``eval/win_rate``.

    Raises:
        UserError: no run has both a reward and KL.
    """
    found = [entry for entry in entries(runs) if any(metric.key.endswith(KL) for metric in entry.run.panels)]
    shown = charts(found, _against_kl, _mean_at_the_same_kl, metric)
    if not shown:
        raise UserError("no policy run with a reward and KL to draw a frontier from")
    curves = [drawn for chart in shown for _, drawn in chart.curves]
    dots = panels.apart(seed for drawn in curves if not drawn.several for seed in drawn.seeds)
    parts = f"{BAND}; {THIN}" if any(drawn.several for drawn in curves) else "One dot per evaluation"
    without = f"without {shown[0].metric} or KL"
    rewards = {chart.reward for chart in shown}
    reward = rewards.pop() if len(rewards) == 1 else "Reward"
    return draw_charts(
        shown,
        title=f"{reward} at each distance from the reference",
        note=f"{parts}{dots}{left_out(found, shown, without)}",
        unit=lambda chart: chart.reward.lower(),
        x_axis=panels.kl_axis,
    )


def _against_kl(run: Run, reward: pd.Series) -> tuple[str, pd.Series]:
    return panels.KL_LABEL, panels.against(reward, measured(run, KL))


def _mean_at_the_same_kl(seeds: Sequence[pd.Series]) -> Curve:
    """Along the KL that each seed reached for the first time; it may have been smaller again."""
    return curve(
        seeds if len(seeds) == 1 else [panels.outward(seed) for seed in seeds], least=math.ceil(0.75 * len(seeds))
    )
