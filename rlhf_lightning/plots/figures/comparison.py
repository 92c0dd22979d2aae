"""Rewards of several policy runs side by side: those of one task share a panel, other tasks have their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import NAME, Label, end_labels, heading, shortened, size_of, text_width
from rlhf_lightning.plots.kit.style import GOLD, PROXY, TRAIN, span
from rlhf_lightning.plots.measures import Entry, measured
from rlhf_lightning.plots.quantities import reward_name

LONGEST = 1.9
"""Inches that the name of a run may take beside its line."""


@dataclass
class Chart:
    """One panel: the reward of some runs.

    Args:
        metric: ``gold``, or ``score`` where no run of the task has gold.
        axis: name of the x-axis.
        curves: run and reward, the latter indexed by what the x-axis counts.
    """

    task: str
    metric: str
    reward: str
    axis: str
    curves: list[tuple[Entry, pd.Series]] = field(default_factory=list)


def charts(entries: Sequence[Entry], against: Callable[[Entry, pd.Series], tuple[str, pd.Series]]) -> list[Chart]:
    """Sort the rewards of some runs into panels, by task and x-axis; a run with fewer than two values is left out.

    A single run has the colour of gold or score, since there is no other to tell it from.

    Args:
        against: puts a reward on an x-axis: its name, and the reward indexed by it.
    """
    grouped: dict[tuple[str, str], Chart] = {}
    for entry in entries:
        metric, reward = _reward([other for other in entries if other.run.task == entry.run.task])
        axis, curve = against(entry, measured(entry.run, metric))
        if len(curve) > 1:
            chart = grouped.setdefault((entry.run.task, axis), Chart(entry.run.task, metric, reward, axis))
            alone = replace(entry, color=GOLD if metric == "gold" else PROXY)
            chart.curves.append((alone if len(entries) == 1 else entry, curve))
    return list(grouped.values())


def _reward(of_task: Sequence[Entry]) -> tuple[str, str]:
    """Which metric is compared among the runs of a task, and what it is called."""
    if any(len(measured(entry.run, "gold")) > 1 for entry in of_task):
        return "gold", "Gold reward"
    return "score", reward_name([entry.run for entry in of_task])


def draw_charts(
    shown: Sequence[Chart],
    *,
    title: str,
    note: str,
    unit: Callable[[Chart], str],
    x_axis: Callable[[Axes, float], None],
    training: pd.Series | None = None,
) -> Figure:
    """A sheet of charts; where there are several, each is titled by its task and has its unit.

    Args:
        x_axis: sets the x-axis of a panel up to its largest value.
        training: rewards of training batches, drawn behind the curves.
    """
    more = [] if training is None else [training]
    figure, sheet = _sheet(shown)
    heading(figure, title, note)
    for axes, chart in zip(sheet, shown, strict=True):
        alike = [other for other in shown if (other.task, other.metric) == (chart.task, chart.metric)]
        panels.limits(axes, [curve for other in alike for _, curve in other.curves] + more)
        panels.zero_line(axes)
        titles = (chart.task or chart.reward, unit(chart)) if len(shown) > 1 else ()
        panels.dress(axes, *titles, xlabel=chart.axis)
        x_axis(axes, max(float(curve.index.max()) for _, curve in chart.curves))
        _draw_curves(axes, chart, more)
    return figure


def _sheet(shown: Sequence[Chart]) -> tuple[Figure, list[Axes]]:
    """A sheet with room for the names of the runs beside their lines."""
    names = [_name(entry) for chart in shown for entry, _ in chart.curves]
    right = 0.35 + max(0.7, *(text_width(name, size=NAME, weight="bold") for name in names))
    width, height, top = (6.4, 3.4, 0.95) if len(shown) == 1 else (4.1, 2.6, 1.25)
    height = max(height, 0.2 * max(len(chart.curves) for chart in shown))
    return panels.sheet(len(shown), columns=2, size=(width, height), top=top, right=right, gap=(right + 0.5, 0.95))


def _draw_curves(axes: Axes, chart: Chart, more: Sequence[pd.Series]) -> None:
    """The curves, each with its run's name, and its first and last value where there is room for them."""
    ends = []
    for training in more:
        panels.trace(axes, training, TRAIN)
        ends.append(Label(float(training.iloc[-1]), "training", TRAIN))
    room = size_of(axes)[1] > 0.4 * (len(chart.curves) + len(more))
    for entry, curve in chart.curves:
        panels.points(axes, curve, entry.color)
        first, last = float(curve.iloc[0]), float(curve.iloc[-1])
        ends.append(Label(last, _name(entry), entry.color, span(first, last) if room else ""))
    end_labels(axes, ends)


def left_out(entries: Sequence[Entry], shown: Sequence[Chart], why: str) -> str:
    """The names of the runs that no chart shows, with the reason, to be appended to a note."""
    drawn = {entry.name for chart in shown for entry, _ in chart.curves}
    missing = [entry.name for entry in entries if entry.name not in drawn]
    return f" · {why}: {', '.join(missing)}" if missing else ""


def _name(entry: Entry) -> str:
    return shortened(entry.name, width=LONGEST, size=NAME, weight="bold")
