"""How reward grows with experience: what is compared between optimizers, whatever the size of their batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.figures.comparison import Chart, charts, draw_charts, left_out
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.style import styled
from rlhf_lightning.plots.measures import Entry, entries, experience
from rlhf_lightning.plots.verdict import judge
from rlhf_lightning.records.runs import Run


@styled
def learning_curves(runs: Run | Sequence[Run]) -> Figure:
    """Reward in evaluations against experience: environment steps, sampled responses or preference pairs.

    Runs of one task share a panel if they count the same; the return of one environment says nothing about another.

    Args:
        runs: policy runs, or pipelines with one each.

    Raises:
        UserError: no run was evaluated twice.
    """
    found = entries(runs)
    shown = charts(found, _over_experience)
    if not shown:
        raise UserError("no policy run with two evaluations to draw a learning curve from")
    if len(found) == 1:
        return _of_one(shown[0])
    title, unit = "Learning curves", ""
    if len(shown) == 1:
        title, unit = f"{shown[0].reward} by {shown[0].axis}", f"{_unit(shown[0]).capitalize()}. "
    note = f"{unit}One dot per evaluation{left_out(found, shown, 'fewer than two')}"
    return draw_charts(shown, title=title, note=note, unit=_unit, x_axis=panels.counter_axis)


def _of_one(chart: Chart) -> Figure:
    """Evaluations and training batches of a single run, in the colour of the reward."""
    ((entry, curve),) = chart.curves
    x_axis = experience(entry.run)
    training = x_axis.along(entry.run.series(f"objective/{chart.metric}"))
    evaluated = len(entry.run.series(f"eval/{chart.metric}")) > 0
    named = replace(entry, name="evaluation" if evaluated else "training")
    return draw_charts(
        [replace(chart, curves=[(named, curve)])],
        title=judge(entry.run).headline,
        note=f"{_unit(chart).capitalize()} · {entry.name}",
        unit=_unit,
        x_axis=lambda axes, _: panels.counter_axis(axes, float(x_axis.count.max())),
        training=training if evaluated and len(training) else None,
    )


def _over_experience(entry: Entry, reward: pd.Series) -> tuple[str, pd.Series]:
    x_axis = experience(entry.run)
    return x_axis.unit, x_axis.along(reward)


def _unit(chart: Chart) -> str:
    evaluated = all(len(entry.run.series(f"eval/{chart.metric}")) for entry, _ in chart.curves)
    if chart.curves[0][0].run.kind == "control":
        return f"mean return of {'evaluation' if evaluated else 'training'} episodes"
    return f"mean {chart.reward.lower()} on {'held-out' if evaluated else 'training'} prompts"
