"""How reward grows with experience: what is compared between optimizers, whatever the size of their batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.figures.comparison import Chart, charts, draw_charts, left_out
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.bands import BAND, THIN, Curve, curve, mark_early_ends
from rlhf_lightning.plots.kit.style import styled
from rlhf_lightning.plots.measures import Runs, entries, experience
from rlhf_lightning.plots.verdict import judge
from rlhf_lightning.records.runs import Run


@styled
def learning_curves(runs: Runs, *, metric: str | None = None) -> Figure:
    """Reward in evaluations against experience: environment steps, sampled responses or preference pairs.

    Runs of one task share a panel if they count the same; the return of one environment says nothing about another.
    An arm of several seeds is a mean with its interval, and a thin line for each seed; a cross marks a seed that
    ended before the others, which are averaged without it from there on.

    Args:
        runs: policy runs, or pipelines with one each; those that differ in the seed alone are one arm. Or arms by name.
        metric: name of another metric than the reward, such as ``eval/win_rate``.

    Raises:
        UserError: no run was evaluated twice.
    """
    found = entries(runs)
    shown = charts(found, _over_experience, _mean_of_those_left, metric)
    if not shown:
        raise UserError("no policy run with two evaluations to draw a learning curve from")
    if len(found) == 1 and not shown[0].curves[0][1].several:
        return _of_one(shown[0])
    title, unit = "Learning curves", ""
    if len(shown) == 1:
        title, unit = f"{shown[0].reward} by {shown[0].axis}", f"{_unit(shown[0]).capitalize()}. "
    curves = [drawn for chart in shown for _, drawn in chart.curves]
    parts = f"{BAND}; {THIN}" if any(drawn.several for drawn in curves) else "One dot per evaluation"
    early = "; ×: a seed that ended early" if any(drawn.ended_early for drawn in curves) else ""
    note = f"{unit}{parts}{early}{left_out(found, shown, 'fewer than two')}"
    figure = draw_charts(shown, title=title, note=note, unit=_unit, x_axis=panels.counter_axis)
    for axes, chart in zip(figure.axes, shown, strict=True):
        for entry, drawn in chart.curves:
            mark_early_ends(axes, drawn, entry.color)
    return figure


def _of_one(chart: Chart) -> Figure:
    """Evaluations and training batches of a single run, in the colour of the reward."""
    ((entry, drawn),) = chart.curves
    x_axis = experience(entry.run)
    training = x_axis.along(entry.run.series(f"objective/{chart.metric}"))
    evaluated = len(entry.run.series(f"eval/{chart.metric}")) > 0
    named = replace(entry, name="evaluation" if evaluated else "training")
    return draw_charts(
        [replace(chart, curves=[(named, drawn)])],
        title=judge(entry.run).headline,
        note=f"{_unit(chart).capitalize()} · {entry.name}",
        unit=_unit,
        x_axis=lambda axes, _: panels.counter_axis(axes, float(x_axis.count.max())),
        training=training if evaluated and len(training) else None,
    )


def _over_experience(run: Run, reward: pd.Series) -> tuple[str, pd.Series]:
    x_axis = experience(run)
    return x_axis.unit, x_axis.along(reward)


def _mean_of_those_left(seeds: Sequence[pd.Series]) -> Curve:
    """The mean goes on where a seed ended early, as long as half of them are left."""
    return curve(seeds, least=math.ceil(len(seeds) / 2))


def _unit(chart: Chart) -> str:
    if "/" in chart.metric:
        declared = (
            one.unit for entry, _ in chart.curves for one in entry.run.panels if chart.metric in (one.name, one.heldout)
        )
        return next(declared, "") or chart.metric
    evaluated = all(len(entry.run.series(f"eval/{chart.metric}")) for entry, _ in chart.curves)
    if chart.curves[0][0].run.kind == "control":
        return f"mean return of {'evaluation' if evaluated else 'training'} episodes"
    return f"mean {chart.reward.lower()} on {'held-out' if evaluated else 'training'} prompts"
