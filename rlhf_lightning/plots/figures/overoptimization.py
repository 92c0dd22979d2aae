"""Proxy against gold: through training, and against the distance from the reference model."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import Label, end_labels, heading, write
from rlhf_lightning.plots.kit.style import GOLD, MUTED, PROXY, WARN, number, span, styled
from rlhf_lightning.plots.measures import has_proxy, measured
from rlhf_lightning.plots.verdict import judge
from rlhf_lightning.records.runs import Run


@styled
def overoptimization(run: Run) -> Figure:
    """How far proxy and gold moved from where they were before training.

    A preference model's score is defined up to a constant, so both curves are drawn as gains: zero is the model
    before training. The second panel follows Gao et al. 2023, "Scaling Laws for Reward Model Overoptimization",
    in using a square-root scale for KL.

    Args:
        run: a policy run, or a pipeline with one.

    Raises:
        UserError: the run has not both, twice each, or it is trained on gold: there is nothing to over-optimize.
    """
    policy = run.find("policy")
    if policy is None or not has_proxy(policy):
        raise UserError(f"{run.path}: no policy run with a gold reward and another that it is trained on")
    score, gold, kl = (measured(policy, name) for name in ("score", "gold", "kl_ref_sequence"))
    if min(len(score), len(gold)) < 2:
        raise UserError(f"{run.path}: no policy run with two evaluations or more in it")
    verdict = judge(policy)
    count = 2 if len(kl) > 1 else 1
    figure, axes = panels.sheet(count, columns=2, size=(4.1, 3.0), top=1.05, right=1.3, gap=(0.45, 0.8))
    proxy_gain, gold_gain = score - score.iloc[0], gold - gold.iloc[0]
    gains = ((proxy_gain, PROXY), (gold_gain, GOLD))
    by_kl = [(panels.against(gain, kl), color) for gain, color in gains] if count == 2 else []
    heading(figure, verdict.headline, _note(policy, run.name) + panels.apart(curve for curve, _ in by_kl))
    for panel, xlabel in zip(axes, (policy.axis, panels.KL_LABEL), strict=False):
        panels.dress(panel, xlabel=xlabel)
    panels.counter_axis(axes[0], max(score.index[-1], gold.index[-1]))
    if count == 2:
        panels.kl_axis(axes[1], float(kl.max()))
        axes[1].tick_params(labelleft=False)
    for panel in axes:
        panels.limits(panel, [gain for gain, _ in gains], include=(0.0,))
        panel.axhline(0, color=MUTED, linewidth=0.9, zorder=1.5)
    for gain, color in gains:
        panels.points(axes[0], gain, color)
    for curve, color in by_kl:
        panels.points(axes[1], curve, color)
    if verdict.peak is not None:
        _mark_peak(axes, gold, kl, verdict.peak)
    proxy = Label(proxy_gain.iloc[-1], "proxy", PROXY, span(score.iloc[0], score.iloc[-1]))
    end_labels(axes[-1], [proxy, Label(gold_gain.iloc[-1], "gold", GOLD, span(gold.iloc[0], gold.iloc[-1]))])
    return figure


def _note(policy: Run, name: str) -> str:
    where = "held-out prompts" if len(policy.series("eval/score")) else "training prompts"
    since = "before training" if measured(policy, "score").index[0] == 0 else f"the first logged {policy.axis}"
    return f"Change of mean reward on {where} since {since}, each reward in its own unit · {name}"


def _mark_peak(axes: list[Axes], gold: pd.Series, kl: pd.Series, peak: int) -> None:
    """Mark where gold is best by a line, and shade the panel beyond it."""
    marks = [(axes[0], float(peak), f"gold is best: {number(gold[peak])}")]
    if len(axes) > 1 and peak in kl.index:
        marks.append((axes[1], max(float(kl[peak]), 0.0), f"at {number(kl[peak])} nats"))
    for panel, x, text in marks:
        panel.axvspan(x, panel.get_xlim()[1], color=WARN, alpha=0.05, linewidth=0, zorder=0)
        panel.axvline(x, color=GOLD, linewidth=0.9, linestyle=panels.DASHES, zorder=1.6)
        fraction = (panel.transData + panel.transAxes.inverted()).transform((x, 0))[0]
        align = "left" if fraction < 0.25 else "right" if fraction > 0.75 else "center"
        style = {"xycoords": ("data", "axes fraction"), "ha": align, "size": 8.5, "weight": "bold", "color": GOLD}
        write(panel, text, (x, 1), (0, 5), **style)
