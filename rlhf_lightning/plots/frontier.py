"""What each run bought with its distance from the reference model."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots import panels
from rlhf_lightning.plots.style import RUNS, styled
from rlhf_lightning.plots.verdict import measured
from rlhf_lightning.runs import Run, names


@styled
def frontier(runs: Run | Sequence[Run]) -> Figure:
    """Reward against KL to the reference, one curve per run: of those with gold, or else of the proxy.

    Args:
        runs: policy runs, or pipelines with one each.

    Raises:
        UserError: no run has both a reward and KL.
    """
    found = [runs] if isinstance(runs, Run) else list(runs)
    found = [run for run in found if run.find("policy") is not None]
    metric = "gold" if any(len(_curve(run, "gold")) > 1 for run in found) else "score"
    curves = [(name, _curve(run, metric)) for name, run in zip(names(found), found, strict=True)]
    # Colours are given before runs are left out, so that they are the dashboard's.
    drawn = [(*curve, RUNS[index % len(RUNS)]) for index, curve in enumerate(curves) if len(curve[1]) > 1]
    if not drawn:
        raise UserError("no policy run with a reward and KL to draw a frontier from")
    right = 0.35 + max(panels.text_width(name, size=9.5, weight="bold") for name, _, _ in drawn)
    figure, (axes,) = panels.sheet(1, columns=1, size=(6.4, 3.4), top=0.95, right=right)
    title = {"gold": "Gold reward", "score": "Proxy reward"}[metric]
    left_out = [name for name, curve in curves if len(curve) < 2]
    note = f" · without {metric} or KL: {', '.join(left_out)}" if left_out else ""
    panels.heading(figure, f"{title} at each distance from the reference", f"One dot per evaluation{note}")
    panels.dress(axes, xlabel=panels.KL_LABEL)
    panels.kl_axis(axes, max(float(curve.index.max()) for _, curve, _ in drawn))
    panels.limits(axes, [curve for _, curve, _ in drawn])
    panels.zero_line(axes)
    labels = []
    for name, curve, color in drawn:
        panels.points(axes, curve, color)
        labels.append(panels.Label(float(curve.iloc[-1]), name, color, x=float(curve.index[-1])))
    panels.end_labels(axes, labels)
    return figure


def _curve(run: Run, metric: str) -> pd.Series:
    policy = run.find("policy") or run
    return panels.against(measured(policy, metric), measured(policy, "kl_ref_sequence"))
