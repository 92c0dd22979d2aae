"""Rewards of several arms side by side: those of one task share a panel, other tasks have their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lightning.intervals import student_interval
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.bands import Curve, draw_band, extents
from rlhf_lightning.plots.kit.labels import NAME, Label, end_labels, heading, shortened, size_of, text_width
from rlhf_lightning.plots.kit.style import GOLD, PROXY, TRAIN, plus_minus, span
from rlhf_lightning.plots.measures import Entry, measured
from rlhf_lightning.plots.quantities import reward_name
from rlhf_lightning.records.runs import Run

LONGEST = 1.9
"""Inches that the name of an arm may take beside its line."""


@dataclass
class Chart:
    """One panel: the reward of some arms, or another metric.

    Args:
        metric: ``gold``, or ``score`` where no run of the task has gold; another one by its whole name.
        axis: name of the x-axis.
        curves: arm and reward, the latter indexed by what the x-axis counts.
    """

    task: str
    metric: str
    reward: str
    axis: str
    curves: list[tuple[Entry, Curve]] = field(default_factory=list)


def charts(
    entries: Sequence[Entry],
    against: Callable[[Run, pd.Series], tuple[str, pd.Series]],
    join: Callable[[Sequence[pd.Series]], Curve],
    metric: str | None = None,
) -> list[Chart]:
    """Sort the rewards of some arms into panels, by task and x-axis; a run with fewer than two values is left out.

    A single arm has the colour of gold or score, since there is no other to tell it from.

    Args:
        against: puts a reward on an x-axis: its name, and the reward indexed by it.
        join: makes one curve of those of an arm's seeds.
        metric: whole name of the metric to show; None for gold, or the score where there is no gold.
    """
    grouped: dict[tuple[str, str], Chart] = {}
    for entry in entries:
        shown, title = _reward([other for other in entries if other.run.task == entry.run.task], metric)
        placed = [against(run, values_of(run, shown)) for run in entry.runs]
        seeds = [(axis, values) for axis, values in placed if len(values) > 1]
        if seeds:
            axis = seeds[0][0]
            chart = grouped.setdefault((entry.run.task, axis), Chart(entry.run.task, shown, title, axis))
            alone = replace(entry, color=GOLD if shown == "gold" else PROXY)
            joined = join([values for its_axis, values in seeds if its_axis == axis])
            chart.curves.append((alone if len(entries) == 1 else entry, joined))
    return list(grouped.values())


def values_of(run: Run, metric: str) -> pd.Series:
    """A metric by its whole name, or gold or score as far as they were `measured`."""
    return run.series(metric) if "/" in metric else measured(run, metric)


def _reward(of_task: Sequence[Entry], metric: str | None) -> tuple[str, str]:
    """Which metric is compared among the runs of a task, and what it is called."""
    if metric is not None:
        titles = (one.title for entry in of_task for one in entry.run.panels if metric in (one.name, one.heldout))
        return metric, next(titles, metric)
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
        panels.limits(axes, extents(curve for other in alike for _, curve in other.curves) + more)
        panels.zero_line(axes)
        titles = (chart.task or chart.reward, unit(chart)) if len(shown) > 1 else ()
        panels.dress(axes, *titles, xlabel=chart.axis)
        x_axis(axes, max(curve.furthest for _, curve in chart.curves))
        _draw_curves(axes, chart, more)
    return figure


def _sheet(shown: Sequence[Chart]) -> tuple[Figure, list[Axes]]:
    """A sheet with room for the names of the arms beside their lines."""
    names = [_name(entry) for chart in shown for entry, _ in chart.curves]
    notes = [_values(curve) for chart in shown for _, curve in chart.curves if curve.several]
    widths = [text_width(name, size=NAME, weight="bold") for name in names]
    right = 0.35 + max(0.7, *widths, *(text_width(note, size=8.0) for note in notes))
    width, height, top = (6.4, 3.4, 0.95) if len(shown) == 1 else (4.1, 2.6, 1.25)
    height = max(height, 0.2 * max(len(chart.curves) for chart in shown))
    return panels.sheet(len(shown), columns=2, size=(width, height), top=top, right=right, gap=(right + 0.5, 0.95))


def _draw_curves(axes: Axes, chart: Chart, more: Sequence[pd.Series]) -> None:
    """The curves, each with its arm's name, and with what its values were where there is room for that."""
    ends = []
    for training in more:
        panels.trace(axes, training, TRAIN)
        ends.append(Label(float(training.iloc[-1]), "training", TRAIN))
    room = size_of(axes)[1] > 0.4 * (len(chart.curves) + len(more))
    crowded = sum(len(curve.seeds) for _, curve in chart.curves) > 30
    for entry, curve in chart.curves:
        if curve.several:
            draw_band(axes, curve, entry.color, marker=entry.marker, faint=0.22 if crowded else 0.4)
        else:
            panels.points(axes, curve.mean, entry.color)
        last = float(curve.mean.iloc[-1]) if len(curve.mean) else fmean(curve.lasts)
        ends.append(Label(last, _name(entry), entry.color, _values(curve) if room else ""))
    end_labels(axes, ends)


def _values(curve: Curve) -> str:
    """First and last value of one seed, or the mean of the last values of several."""
    if curve.several:
        return f"{plus_minus(*student_interval(curve.lasts))}, n = {len(curve.seeds)}"
    return span(float(curve.mean.iloc[0]), float(curve.mean.iloc[-1]))


def left_out(entries: Sequence[Entry], shown: Sequence[Chart], why: str) -> str:
    """The names of the arms that no chart shows, or not all seeds of, and the reason, to be appended to a note."""
    drawn = {entry.name: len(curve.seeds) for chart in shown for entry, curve in chart.curves}
    missing = [entry.name for entry in entries if entry.name not in drawn]
    missing += [
        f"{count} of the {len(entry.runs)} seeds of {entry.name}"
        for entry in entries
        if (count := len(entry.runs) - drawn.get(entry.name, len(entry.runs)))
    ]
    return f" · {why}: {', '.join(missing)}" if missing else ""


def _name(entry: Entry) -> str:
    return shortened(entry.title, width=LONGEST, size=NAME, weight="bold")
