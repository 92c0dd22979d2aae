"""Everything that moves during policy training, in small multiples, for one run or several of a kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.bands import BAND, THIN, curve, draw_band, extents
from rlhf_lightning.plots.kit.key import draw_key, height_of, key_of
from rlhf_lightning.plots.kit.labels import heading
from rlhf_lightning.plots.kit.style import styled
from rlhf_lightning.plots.measures import Entry, Runs, XAxis, by_iteration, experience, of_one_family
from rlhf_lightning.plots.quantities import COLORS, Quantity, interval, quantities, training
from rlhf_lightning.records.metrics import Metric


@styled
def dashboard(runs: Runs, *, family: str | None = None) -> Figure:
    """Small multiples of one arm of a policy's training, or of several overlaid.

    A quantity that no run logged has no panel. With one arm the colours mean quantities (proxy, gold, KL); with
    several they mean arms.

    Args:
        runs: policy runs, or pipelines with one each; those that differ in the seed alone are one arm. Or arms by name.
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
    names = [("●", entry.name, entry.color) for entry in entries if len(entries) > 1]  # one has its name in the title
    key = key_of(names, width=columns * 3.05 + (columns - 1) * gap[0] + 0.6)
    top = 1.25 + (0.1 + height_of(key) if key else 0)
    figure, sheet = panels.sheet(len(shown), columns=columns, size=(3.05, 1.6), top=top, gap=gap)
    grown = heading(figure, _title(entries), _note(entries, shown))
    draw_key(figure, key, grown + 0.9)
    x_axes = _x_axes(entries)
    last = max(float(x_axis.count.max()) for x_axis in x_axes.values())
    unit = next(iter(x_axes.values())).unit
    for index, (quantity, axes) in enumerate(zip(shown, sheet, strict=True)):
        lowest_row = index + columns >= len(shown)
        panels.dress(axes, quantity.title, quantity.metric.unit, xlabel=unit if lowest_row else "")
        panels.counter_axis(axes, last)
        _draw(axes, quantity, entries, x_axes)
    return figure


def _x_axes(entries: Sequence[Entry]) -> dict[Path, XAxis]:
    """The x-axis by run: iterations or steps, which samples and headlines name, unless they differ in size."""
    policies = [run for entry in entries for run in entry.runs if len(run.metrics)]
    by_experience = {policy.path: experience(policy) for policy in policies}
    if policies[0].kind == "control":
        return by_experience
    counts = [x_axis.count for x_axis in by_experience.values()]
    sizes = {round(float(count.iloc[-1] / max(count.index[-1], 1))) for count in counts}
    units = {x_axis.unit for x_axis in by_experience.values()}
    if len(sizes) > 1 and len(units) == 1:
        return by_experience
    return {policy.path: by_iteration(policy) for policy in policies}


def _title(entries: Sequence[Entry]) -> str:
    if len(entries) == 1:
        return entries[0].name
    kind, task = entries[0].run.kind, entries[0].run.task
    on = {"control": f" on {task}", "preference": f" on {experience(entries[0].run).unit}"}.get(kind, "")
    count = sum(len(entry.runs) for entry in entries)
    return f"{count} policy runs{on}" if count == len(entries) else f"{len(entries)} arms, {count} policy runs{on}"


def _note(entries: Sequence[Entry], shown: Sequence[Quantity]) -> str:
    policies = [entry.run for entry in entries]
    kind = policies[0].kind
    evaluated = any(
        metric is not None and len(policy.series(metric.heldout))
        for quantity in shown
        for policy, metric in zip(policies, quantity.metrics, strict=True)
    )
    judged_on = {"control": "evaluation episodes", "preference": f"held-out prompts and {experience(policies[0]).unit}"}
    dots = f"Dots: {judged_on.get(kind, 'held-out prompts')}. " if evaluated else ""
    batches = "iterations of training" if kind == "control" else "training batches"
    if any(len(entry.runs) > 1 for entry in entries):
        where = f"{judged_on.get(kind, 'held-out prompts')} where they were evaluated, otherwise {batches}"
        return f"{where.capitalize()}. {f'{BAND}; {THIN}' if len(entries) == 1 else BAND}."
    if len(policies) > 1:
        return f"{dots}Lines without dots: {batches}, moving average."
    return f"{dots}Lines: {batches}, each of them (thin) and their moving average (thick)."


def _draw(axes: Axes, quantity: Quantity, entries: Sequence[Entry], x_axes: Mapping[Path, XAxis]) -> None:
    """A quantity of each arm, limits that show all that is drawn, and the lines that mean something."""
    alone = len(entries) == 1
    shown: list[pd.Series] = []
    marks: dict[tuple[float, str], None] = {}
    for entry, metric in zip(entries, quantity.metrics, strict=True):
        if metric is None:
            continue
        color = COLORS[quantity.metric.role] if alone else entry.color
        draw = _draw_run if len(entry.runs) == 1 else _draw_arm
        shown += draw(axes, entry, metric, x_axes, color=color, alone=alone)
        if metric.mark is not None:
            marks[metric.mark, metric.mark_name] = None
    first = quantity.metric
    panels.limits(axes, shown, floor=first.floor, lowest=first.lowest, include=[value for value, _ in marks])
    for value, name in marks:
        panels.reference(axes, value, name)
    panels.zero_line(axes)


def _draw_run(
    axes: Axes, entry: Entry, metric: Metric, x_axes: Mapping[Path, XAxis], *, color: str, alone: bool
) -> list[pd.Series]:
    """A metric of an arm's only run: its evaluations, or its training batches where there are none.

    Returns:
        What must be in view.
    """
    run, x_axis = entry.run, x_axes[entry.run.path]
    trained = x_axis.along(training(run, metric))
    evaluated = x_axis.along(run.series(metric.heldout))
    if not len(evaluated) and metric.smooth:
        panels.trace(axes, trained, color, faint=alone)
        return [trained if alone else panels.averaged(trained)]
    if not len(evaluated):
        axes.plot(trained.index, trained, color=color, linewidth=1.8, zorder=3)
        return [trained]
    shown = [evaluated]
    if ends := interval(run, metric):
        low, high = (x_axis.along(end) for end in ends)
        axes.fill_between(low.index, low, high, color=color, alpha=0.14 if alone else 0.08, linewidth=0)
        shown += [low, high]
    if alone and len(trained):
        axes.plot(trained.index, trained, color=color, linewidth=0.8, alpha=0.35, zorder=2)
        shown.append(trained)
    panels.points(axes, evaluated, color)
    return shown


def _draw_arm(
    axes: Axes, entry: Entry, metric: Metric, x_axes: Mapping[Path, XAxis], *, color: str, alone: bool
) -> list[pd.Series]:
    """Mean and interval of a metric over an arm's seeds; each seed where there is no other arm.

    Returns:
        What must be in view.
    """
    runs = [run for run in entry.runs if run.path in x_axes]
    seeds = [x_axes[run.path].along(run.series(metric.heldout)) for run in runs]
    if not any(map(len, seeds)):
        batches = [(run, training(run, metric)) for run in runs]
        seeds = [x_axes[run.path].along(panels.averaged(one) if metric.smooth else one) for run, one in batches]
    seeds = [seed for seed in seeds if len(seed)]
    if not seeds:
        return []
    joined = curve(seeds, least=math.ceil(len(seeds) / 2))
    draw_band(axes, joined, color, faint=0.4 if alone else 0.0)
    return extents([joined])
