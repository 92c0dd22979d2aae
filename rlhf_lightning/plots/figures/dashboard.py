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
from rlhf_lightning.plots.measures import Entry, Experience, by_iteration, experience, of_one_family
from rlhf_lightning.plots.quantities import Panel, quantities
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
    found = of_one_family(runs, family)
    policies = [entry.run for entry in found]
    shown = [panel for panel in quantities(policies) if any(_has(policy, panel) for policy in policies)]
    if not shown:
        raise UserError(f"{', '.join(str(policy.path) for policy in policies)}: no policy metrics")
    columns = min(3, len(shown))
    gap = (0.62, 0.82)
    key = _key(found, width=columns * 3.05 + (columns - 1) * gap[0] + 0.6) if len(found) > 1 else []
    top = 1.25 + (0.1 + 0.24 * len({line.line for line in key}) if key else 0)
    figure, axes = panels.sheet(len(shown), columns=columns, size=(3.05, 1.6), top=top, gap=gap)
    extra = heading(figure, _title(found), _note(policies, shown))
    for name in key:
        _draw_name(figure, name, extra)
    course = _course(policies)
    last = max(float(along.count.max()) for along in course)
    for index, (panel, place) in enumerate(zip(shown, axes, strict=True)):
        lowest_row = index + columns >= len(shown)
        panels.dress(place, panel.title, panel.unit, xlabel=course[0].unit if lowest_row else "")
        panels.counter_axis(place, last)
        for entry, along in zip(found, course, strict=True):
            color = panel.color if len(found) == 1 else entry.color
            _draw(place, entry.run, along, panel, color, alone=len(found) == 1)
        _limit(place, found, panel)
    return figure


def _has(run: Run, panel: Panel) -> bool:
    return len(panel.training(run)) > 0 or len(panel.evaluated(run)) > 0


def _course(policies: Sequence[Run]) -> list[Experience]:
    """The x-axis: iterations or steps, which the samples and headlines name, unless they differ in size."""
    by_experience = [experience(policy) for policy in policies]
    if policies[0].kind == "control":
        return by_experience
    sizes = {round(float(along.count.iloc[-1] / max(along.count.index[-1], 1))) for along in by_experience}
    units = {along.unit for along in by_experience}
    return by_experience if len(sizes) > 1 and len(units) == 1 else [by_iteration(policy) for policy in policies]


def _title(found: Sequence[Entry]) -> str:
    if len(found) == 1:
        return found[0].name
    kind, task = found[0].run.kind, found[0].run.task
    on = {"control": f" on {task}", "preference": " on preference pairs"}.get(kind, "")
    return f"{len(found)} policy runs{on}"


def _note(policies: Sequence[Run], shown: Sequence[Panel]) -> str:
    evaluated = any(len(panel.evaluated(policy)) for policy in policies for panel in shown)
    judged = {"control": "evaluation episodes", "preference": "held-out prompts and pairs"}
    dots = f"Dots: {judged.get(policies[0].kind, 'held-out prompts')}. " if evaluated else ""
    batches = "iterations of training" if policies[0].kind == "control" else "training batches"
    if len(policies) > 1:
        return f"{dots}Lines without dots: {batches}, moving average."
    return f"{dots}Lines: {batches}, each of them (thin) and their moving average (thick)."


def _draw(axes: Axes, run: Run, along: Experience, panel: Panel, color: str, *, alone: bool) -> None:
    batch, held_out = along.of(panel.training(run)), along.of(panel.evaluated(run))
    if len(held_out):
        interval = panel.interval(run)
        if interval:
            low, high = (along.of(end) for end in interval)
            axes.fill_between(low.index, low, high, color=color, alpha=0.14 if alone else 0.08, linewidth=0)
        if alone and len(batch):
            axes.plot(batch.index, batch, color=color, linewidth=0.8, alpha=0.35, zorder=2)
        panels.points(axes, held_out, color)
    elif panel.smooth:
        panels.trace(axes, batch, color, faint=alone)
    else:
        axes.plot(batch.index, batch, color=color, linewidth=1.8, zorder=3)


def _limit(axes: Axes, found: Sequence[Entry], panel: Panel) -> None:
    """Limits, and the lines that mean something."""
    shown: list[pd.Series] = []
    for entry in found:
        evaluated = panel.evaluated(entry.run)
        if len(evaluated):
            shown += [evaluated, *(panel.interval(entry.run) or ())]
        if len(found) == 1:
            shown.append(panel.training(entry.run))
        elif not len(evaluated):  # what is drawn of it
            training = panel.training(entry.run)
            shown.append(panels.averaged(training) if panel.smooth and len(training) else training)
    bounds = {entry.name: panel.bound(entry.run) for entry in found if panel.bound and _has(entry.run, panel)}
    marks = list(dict.fromkeys(mark for mark in (panel.mark, *bounds.values()) if mark))
    include = [value for value, _ in marks]
    panels.limits(axes, shown, floor=panel.floor, lowest=panel.lowest, include=include)
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


def _key(found: Sequence[Entry], *, width: float) -> list[_Name]:
    """The names set one after the other, on as many lines as they need."""
    key: list[_Name] = []
    x, line = 0.0, 0
    for entry in found:
        shown = shortened(entry.name, width=width - 0.5, size=NAME, weight="bold")
        needed = 0.17 + text_width(shown, size=NAME, weight="bold")
        if x > 0 and x + needed > width:
            x, line = 0.0, line + 1
        key.append(_Name(shown, entry.color, x, line))
        x += needed + 0.3
    return key


def _draw_name(figure: Figure, name: _Name, extra: float) -> None:
    width, height = figure.get_size_inches()
    x, y = 0.1 + name.x, height - extra - 0.9 - 0.24 * name.line
    place = {"color": name.color, "va": "center_baseline"}
    figure.text(x / width, y / height, "●", size=9, **place)
    figure.text((x + 0.17) / width, y / height, name.text, size=NAME, weight="bold", **place)
