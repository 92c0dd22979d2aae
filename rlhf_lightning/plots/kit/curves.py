"""Curves of supervised training: small multiples, each with its lines in training and in evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import Label, end_labels, heading
from rlhf_lightning.plots.kit.style import GOLD, HELD_OUT, MUTED, TRAIN, number
from rlhf_lightning.records.runs import Run

CEILING = "ceiling"
"""Name of the mark for the best attainable value, which is drawn in the colour of gold."""


@dataclass(frozen=True)
class Line:
    """One metric of a panel.

    Args:
        noisy: measured on training batches, and therefore averaged.
    """

    name: str
    metric: str
    color: str = HELD_OUT
    noisy: bool = False


@dataclass(frozen=True)
class CurvePanel:
    """One quantity, in one or several lines.

    Args:
        floor: lowest possible value, at which the axis starts.
        marks: values that mean something, with their names.
        log: whether the axis is logarithmic where all values are positive.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    floor: float | None = None
    marks: tuple[tuple[float, str], ...] = ()
    log: bool = False


def both(group: str, name: str) -> tuple[Line, Line]:
    """A metric in training and on held-out examples."""
    return Line("train", f"{group}/{name}", TRAIN, noisy=True), Line("held out", f"eval/{name}")


def logged(run: Run, candidates: Sequence[CurvePanel]) -> list[CurvePanel]:
    """The panels of which a run has logged at least one line."""
    return [panel for panel in candidates if any(len(run.series(line.metric)) for line in panel.lines)]


def draw_training(run: Run, shown: Sequence[CurvePanel], *, title: str, note: str, height: float = 2.0) -> Figure:
    """Draw panels side by side, three in a row, with names and last values at the ends of their lines.

    Args:
        shown: panels that the run has `logged`.
        height: of a panel, in inches.
    """
    figure, sheet = panels.sheet(len(shown), columns=3, size=(2.75, height), gap=(1.15, 0.95), right=0.95)
    heading(figure, title, note)
    last = float(run.metrics[run.axis].max())
    for index, (axes, panel) in enumerate(zip(sheet, shown, strict=True)):
        panels.dress(axes, panel.title, panel.unit, xlabel=run.axis if index + 3 >= len(shown) else "")
        panels.counter_axis(axes, last)
        lines = [(line, series) for line in panel.lines if len(series := run.series(line.metric))]
        values = [series for _, series in lines]
        if panel.log and all((series > 0).all() for series in values):
            panels.log_limits(axes, values)
        else:
            panels.limits(axes, values, floor=panel.floor, include=[value for value, _ in panel.marks])
        for value, name in panel.marks:
            panels.reference(axes, value, name, color=GOLD if name == CEILING else MUTED)
        panels.zero_line(axes)
        labels = []
        for line, series in lines:
            (panels.trace if line.noisy else panels.points)(axes, series, line.color)
            end = float(series.iloc[-1])
            labels.append(Label(end, line.name, line.color, number(end)))
        end_labels(axes, labels)
    return figure
