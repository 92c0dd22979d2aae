"""What each run bought with its distance from the reference model."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots import panels
from rlhf_lightning.plots.dashboard import names
from rlhf_lightning.plots.style import RUNS, number, styled
from rlhf_lightning.plots.verdict import measured
from rlhf_lightning.runs import Run


@styled
def frontier(runs: Run | Sequence[Run]) -> Figure:
    """Reward against KL to the reference, one curve per run: gold, where every run has it, or else the proxy.

    Args:
        runs: policy runs, or pipelines with one each.

    Raises:
        UserError: fewer than one run has both a reward and KL.
    """
    found = [runs] if isinstance(runs, Run) else list(runs)
    policies = [policy for run in found if (policy := run.find("policy")) is not None]
    policies = [run for run in policies if len(measured(run, "kl_ref_sequence")) > 1]
    metric = "gold" if all(len(measured(run, "gold")) > 1 for run in policies) else "score"
    curves = [panels.against(measured(run, metric), measured(run, "kl_ref_sequence")) for run in policies]
    if not any(len(curve) for curve in curves):
        raise UserError(f"{', '.join(str(run.path) for run in found)}: no policy run with a reward and KL")
    labels = names(policies)
    right = 0.35 + max(panels.text_width(name, size=9.5, weight="bold") for name in labels)
    figure, (axes,) = panels.sheet(1, columns=1, size=(6.4, 3.4), top=0.95, right=right)
    title = {"gold": "Gold reward", "score": "Proxy reward"}[metric]
    panels.heading(figure, f"{title} at each distance from the reference", "One dot per evaluation, joined in order")
    panels.dress(axes, xlabel=panels.KL_LABEL)
    panels.kl_axis(axes, max(float(curve.index.max()) for curve in curves if len(curve)))
    panels.limits(axes, curves)
    panels.zero_line(axes)
    ends = []
    for index, (name, curve) in enumerate(zip(labels, curves, strict=True)):
        if len(curve):
            color = RUNS[index % len(RUNS)]
            panels.points(axes, curve, color)
            ends.append(panels.Label(float(curve.iloc[-1]), name, color, number(float(curve.iloc[-1]))))
    panels.end_labels(axes, ends)
    return figure
