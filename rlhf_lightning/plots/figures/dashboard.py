"""Everything that moves during policy training, in small multiples, for one run or several of a kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import NAME, heading, shortened, text_width
from rlhf_lightning.plots.kit.style import styled
from rlhf_lightning.plots.measures import Entry, XAxis, by_iteration, experience, of_one_family
from rlhf_lightning.plots.quantities import COLORS, Quantity, interval, quantities, training
from rlhf_lightning.records.runs import Run


@styled
def dashboard(runs: Run | Sequence[Run], *, family: str | None = None) -> Figure:
    """Small multiples of one policy run, or of several overlaid.

    A quantity that no run logged has no panel. With one run the colours mean quantities (proxy, gold, KL); with
    several they mean runs.

    Args:
        runs: policy runs, or pipelines with one each.
        family: what the runs to draw are trained on, one of `measures.families`; needed where there are several.

    Raises:
        UserError: none of them has policy metrics, or they are of several families.
    """
    entries = of_one_family(runs, family)
    policies = [entry.run for entry in entries]
    shown = quantities(policies)
    if not shown:
        raise UserError(f"{', '.join(str(policy.path) for policy in policies)}: no policy metrics")
    columns = min(3, len(shown))
    gap = (0.62, 0.82)
    key = _key(entries, width=columns * 3.05 + (columns - 1) * gap[0] + 0.6)
    top = 1.25 + (0.1 + 0.24 * (key[-1].line + 1) if key else 0)
    figure, sheet = panels.sheet(len(shown), columns=columns, size=(3.05, 1.6), top=top, gap=gap)
    grown = heading(figure, _title(entries), _note(policies, shown))
    _draw_key(figure, key, grown + 0.9)
    x_axes = _x_axes(policies)
    last = max(float(x_axis.count.max()) for x_axis in x_axes)
    for index, (quantity, axes) in enumerate(zip(shown, sheet, strict=True)):
        lowest_row = index + columns >= len(shown)
        panels.dress(axes, quantity.title, quantity.metric.unit, xlabel=x_axes[0].unit if lowest_row else "")
        panels.counter_axis(axes, last)
        _draw(axes, quantity, entries, x_axes)
    return figure


def _x_axes(policies: Sequence[Run]) -> list[XAxis]:
    """The x-axis: iterations or steps, which the samples and headlines name, unless they differ in size."""
    by_experience = [experience(policy) for policy in policies]
    if policies[0].kind == "control":
        return by_experience
    sizes = {round(float(x_axis.count.iloc[-1] / max(x_axis.count.index[-1], 1))) for x_axis in by_experience}
    units = {x_axis.unit for x_axis in by_experience}
    return by_experience if len(sizes) > 1 and len(units) == 1 else [by_iteration(policy) for policy in policies]


def _title(entries: Sequence[Entry]) -> str:
    if len(entries) == 1:
        return entries[0].name
    kind, task = entries[0].run.kind, entries[0].run.task
    on = {"control": f" on {task}", "preference": f" on {experience(entries[0].run).unit}"}.get(kind, "")
    return f"{len(entries)} policy runs{on}"


def _note(policies: Sequence[Run], shown: Sequence[Quantity]) -> str:
    kind = policies[0].kind
    evaluated = any(
        metric is not None and len(policy.series(metric.heldout))
        for quantity in shown
        for policy, metric in zip(policies, quantity.metrics, strict=True)
    )
    judged_on = {"control": "evaluation episodes", "preference": f"held-out prompts and {experience(policies[0]).unit}"}
    dots = f"Dots: {judged_on.get(kind, 'held-out prompts')}. " if evaluated else ""
    batches = "iterations of training" if kind == "control" else "training batches"
    if len(policies) > 1:
        return f"{dots}Lines without dots: {batches}, moving average."
    return f"{dots}Lines: {batches}, each of them (thin) and their moving average (thick)."


def _draw(axes: Axes, quantity: Quantity, entries: Sequence[Entry], x_axes: Sequence[XAxis]) -> None:
    """A quantity of each run, limits that show all that is drawn, and the lines that mean something."""
    alone = len(entries) == 1
    shown: list[pd.Series] = []
    marks: dict[tuple[float, str], None] = {}
    for entry, x_axis, metric in zip(entries, x_axes, quantity.metrics, strict=True):
        if metric is None:
            continue
        color = COLORS[quantity.metric.role] if alone else entry.color
        trained = x_axis.along(training(entry.run, metric))
        evaluated = x_axis.along(entry.run.series(metric.heldout))
        if len(evaluated):
            shown.append(evaluated)
            if ends := interval(entry.run, metric):
                low, high = (x_axis.along(end) for end in ends)
                axes.fill_between(low.index, low, high, color=color, alpha=0.14 if alone else 0.08, linewidth=0)
                shown += [low, high]
            if alone and len(trained):
                axes.plot(trained.index, trained, color=color, linewidth=0.8, alpha=0.35, zorder=2)
                shown.append(trained)
            panels.points(axes, evaluated, color)
        elif metric.smooth:
            panels.trace(axes, trained, color, faint=alone)
            shown.append(trained if alone else panels.averaged(trained))
        else:
            axes.plot(trained.index, trained, color=color, linewidth=1.8, zorder=3)
            shown.append(trained)
        if metric.mark is not None:
            marks[metric.mark, metric.mark_name] = None
    first = quantity.metric
    panels.limits(axes, shown, floor=first.floor, lowest=first.lowest, include=[value for value, _ in marks])
    for value, name in marks:
        panels.reference(axes, value, name)
    panels.zero_line(axes)


@dataclass(frozen=True)
class _Name:
    """A run's name in its colour; ``x`` in inches from the left, lines counted from the top."""

    text: str
    color: str
    x: float
    line: int


def _key(entries: Sequence[Entry], *, width: float) -> list[_Name]:
    """The names set one after the other, on as many lines as they need; a single run has its name in the title."""
    key: list[_Name] = []
    x, line = 0.0, 0
    for entry in entries if len(entries) > 1 else ():
        shown = shortened(entry.name, width=width - 0.5, size=NAME, weight="bold")
        needed = 0.17 + text_width(shown, size=NAME, weight="bold")
        if x > 0 and x + needed > width:
            x, line = 0.0, line + 1
        key.append(_Name(shown, entry.color, x, line))
        x += needed + 0.3
    return key


def _draw_key(figure: Figure, key: Sequence[_Name], below: float) -> None:
    """Write the names, the first line of them some inches below the figure's upper edge."""
    width, height = figure.get_size_inches()
    for name in key:
        x, y = 0.1 + name.x, (height - below - 0.24 * name.line) / height
        figure.text(x / width, y, "●", size=9, color=name.color, va="center_baseline")
        x += 0.17
        figure.text(x / width, y, name.text, size=NAME, weight="bold", color=name.color, va="center_baseline")
