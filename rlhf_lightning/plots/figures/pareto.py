"""What can be had at once: two objectives at the end of several arms, and the arms that no other beats in both."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox, BboxTransformTo

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import HALO, heading, size_of, text_width, write
from rlhf_lightning.plots.kit.style import AXIS, GRID, INK, MUTED, PAPER, PLAIN, TEXT_SIZE, styled
from rlhf_lightning.plots.measures import Entry, Runs, entries
from rlhf_lightning.plots.quantities import objectives
from rlhf_lightning.records.runs import Run

WEIGHTS = "data.init_args.weights"
"""Key of the weights in a run's configuration."""

_SHADES = LinearSegmentedColormap.from_list("shades", ["#e3b448", "#3f8f86", "#2d2a6b"])
"""From light to dark, so that it is read in grey too."""

_WIDTH, _HEIGHT, _TOP, _BOTTOM, _LEFT = 5.6, 3.9, 1.25, 0.62, 0.75
_BAR, _BAR_GAP, _RIGHT = 0.13, 0.3, 0.75
"""Lengths in inches: of the panel, around it, and of the scale of colours."""


@dataclass(frozen=True)
class EndPoint:
    """Where an arm ended, on average over its seeds.

    Args:
        label: the weights that set it apart from the others, or its name.
        point: means of the two objectives at the last evaluation.
        start: the same before training; None where that was not measured.
        shade: mean of the third objective; NaN where there is none.
    """

    label: str
    point: tuple[float, float]
    start: tuple[float, float] | None
    shade: float


@styled
def pareto(runs: Runs, x: str = "helpful", y: str = "concise", color: str | None = "harmless") -> Figure:
    """Two objectives against each other, one point for each arm, and the front of those that no other arm dominates.

    For runs that differ in the weights of their objectives. A point is labelled by the weights in which the runs
    differ, by the floors that a `Lagrangian` keeps, or else by the arm's name. Below the staircase some arm is better
    in both; the third objective is not looked at.

    Args:
        runs: policy runs, or pipelines with one each; those that differ in the seed alone are one arm. Or arms by name.
        x: objective on the x-axis: a part of gold where that was measured, or of the reward.
        y: objective on the y-axis.
        color: objective that colours the points; None for one colour.

    Raises:
        UserError: no run has both objectives evaluated.
    """
    found = [entry for entry in entries(runs) if entry.run.kind == "policy"]
    kind = "gold" if any(_has(entry, "gold", x, y) for entry in found) else "score"
    shown = [entry for entry in found if _has(entry, kind, x, y)]
    if not shown:
        raise UserError(f"no policy run in which the objectives {x} and {y} were evaluated")
    labels = _Labels.of([entry.run for entry in shown])
    outcomes = [_outcome(entry, labels.label(entry.run) or entry.name, kind, (x, y, color)) for entry in shown]
    shaded = color is not None and all(math.isfinite(outcome.shade) for outcome in outcomes)
    right = _BAR_GAP + _BAR + _RIGHT if shaded else 0.3
    figure, (axes,) = panels.sheet(
        1, columns=1, size=(_WIDTH, _HEIGHT), top=_TOP, bottom=_BOTTOM, left=_LEFT, right=right
    )
    scale = _scale(figure, outcomes, str(color)) if shaded else None
    left_out = [entry.name for entry in found if not _has(entry, kind, x, y)]
    heading(figure, f"{x} against {y}".capitalize(), _note(kind, labels, left_out), left=0.4)
    panels.dress(axes, unit=f"{y}, higher is better", xlabel=f"{x}, higher is better")
    _draw(axes, outcomes, scale)
    return figure


def pareto_of_weights(runs: Sequence[Run]) -> Figure:
    """`pareto` of the first two or three objectives of runs that weigh these differently.

    Raises:
        UserError: no two runs do.
    """
    policies = [entry.run for entry in entries(runs)]
    judged = [run for run in policies if len(objectives([run])) > 1]
    if len({json.dumps(run.setting(WEIGHTS), sort_keys=True) for run in judged}) < 2:
        raise UserError("no two policy runs that weigh their objectives differently")
    x, y, *others = objectives(judged)
    return pareto(runs, x, y, others[0] if others else None)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other dominates (no worse in both, better in one), by their first coordinate."""

    def dominated(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in points)

    return sorted((i for i, point in enumerate(points) if not dominated(point)), key=lambda i: points[i])


# -- what is shown ---------------------------------------------------------------------------------------------


def _has(entry: Entry, kind: str, *objectives: str) -> bool:
    return all(len(run.series(f"eval/{kind}_{name}")) for run in entry.runs for name in objectives)


def _outcome(entry: Entry, label: str, kind: str, objectives: tuple[str, str, str | None]) -> EndPoint:
    x, y, shade = ([run.series(f"eval/{kind}_{name}") for run in entry.runs] for name in objectives)
    started = all(values.index[0] == 0 for values in (*x, *y))
    shaded = all(len(values) for values in shade)
    return EndPoint(
        label=label,
        point=(fmean(values.iloc[-1] for values in x), fmean(values.iloc[-1] for values in y)),
        start=(fmean(values.iloc[0] for values in x), fmean(values.iloc[0] for values in y)) if started else None,
        shade=fmean(values.iloc[-1] for values in shade) if shaded else math.nan,
    )


@dataclass(frozen=True)
class _Labels:
    """How runs are labelled that differ in the weights of their objectives.

    Args:
        differing: objectives that the runs do not all weigh the same.
        common: weights of the others.
    """

    differing: list[str]
    common: dict[str, float]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> _Labels:
        given = [weights for weights in map(_declared, runs) if weights]
        names = list(dict.fromkeys(name for weights in given for name in weights))
        differing = [name for name in names if len({weights.get(name) for weights in given}) > 1]
        if not differing:
            return cls(names, {})
        return cls(differing, {name: given[0][name] for name in names if name not in differing})

    def label(self, run: Run) -> str:
        """A run's weights, or the floors that it keeps; empty where its configuration gives neither."""
        floors = run.setting(f"{WEIGHTS}.init_args.floors") or {}
        if floors:
            return ", ".join(f"{name} ≥ {_plain(floor)}" for name, floor in floors.items())
        weights = _declared(run)
        return " : ".join(_plain(weights[name]) if name in weights else "–" for name in self.differing if weights)


def _declared(run: Run) -> dict[str, float]:
    """The weights that the configuration gives in place of the reward's own; empty where it gives none."""
    return dict(run.setting(f"{WEIGHTS}.init_args.weights") or {})


def _plain(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _note(kind: str, labels: _Labels, left_out: Sequence[str]) -> str:
    what = "Parts of gold" if kind == "gold" else "Objectives"
    parts = [f"{what} on held-out prompts at the last evaluation"]
    if labels.differing:
        parts.append(f"labels: weights of {' : '.join(labels.differing)}")
    if labels.common:
        parts.append("all with " + ", ".join(f"{name}\u00a0{_plain(weight)}" for name, weight in labels.common.items()))
    parts.append("filled: no other is better in both")
    if left_out:
        parts.append(f"without these objectives: {', '.join(left_out)}")
    return " · ".join(parts)


# -- how it is drawn -------------------------------------------------------------------------------------------


def _scale(figure: Figure, outcomes: Sequence[EndPoint], name: str) -> ScalarMappable:
    """The colours of the third objective, and their scale right of the panel."""
    shades = [outcome.shade for outcome in outcomes]
    room = 0.5 * max(abs(shades[0]), 1e-3) * (min(shades) == max(shades))
    scale = ScalarMappable(Normalize(min(shades) - room, max(shades) + room), cmap=_SHADES)
    width, height = figure.get_size_inches()
    box = ((_LEFT + _WIDTH + _BAR_GAP) / width, _BOTTOM / height, _BAR / width, _HEIGHT / height)
    bar = figure.colorbar(scale, cax=figure.add_axes(box))
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(nbins=5)
    bar.update_ticks()
    bar.ax.tick_params(length=0, labelcolor=MUTED, labelsize=TEXT_SIZE, pad=4)
    bar.ax.set_title(name, size=TEXT_SIZE, color=MUTED, loc="left", pad=7)
    return scale


def _limit(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Both directions are measured, so both have a grid and room around all points."""
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.xaxis.set_major_formatter(panels.PlainTicks())
    x, y = np.transpose(points)
    axes.set(xlim=_around(x), ylim=_around(y))


def _around(values: np.ndarray) -> tuple[float, float]:
    room = 0.18 * float(np.ptp(values)) or 0.1 * max(abs(float(values[0])), 1.0)
    return values.min() - room, values.max() + room


def _draw(axes: Axes, outcomes: Sequence[EndPoint], scale: ScalarMappable | None) -> None:
    """The front as a staircase, the points and the start, and what each is called."""
    points = [outcome.point for outcome in outcomes]
    starts = list(dict.fromkeys(outcome.start for outcome in outcomes if outcome.start is not None))
    _limit(axes, [*points, *starts])
    best = front(points)
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    corners = [(left, points[best[0]][1]), *(points[i] for i in best), (points[best[-1]][0], bottom)]
    axes.plot(*zip(*corners, strict=True), color=AXIS, linewidth=1.2, drawstyle="steps-pre", zorder=2)
    for index, outcome in enumerate(outcomes):
        shade = PLAIN if scale is None else scale.to_rgba(np.asarray(outcome.shade))
        fill = shade if index in best else PAPER
        axes.plot(*outcome.point, "o", color=fill, markeredgecolor=shade, markersize=7, markeredgewidth=1.6, zorder=4)
    for start in starts:
        axes.plot(*start, "X", color=MUTED, markeredgecolor=PAPER, markersize=8, zorder=3)
    texts = [(outcome.label, outcome.point, INK) for outcome in outcomes]
    texts += [("before training", start, MUTED) for start in starts[:1]]
    _write(axes, texts, [*points, *starts])


_AROUND = [(1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 2), (1, -2), (-1, 2), (-1, -2)]
"""Where a label may stand beside its point: to the right first, then wherever nothing else is."""


def _write(
    axes: Axes, texts: Sequence[tuple[str, tuple[float, float], str]], dots: Sequence[tuple[float, float]]
) -> None:
    """Write each label beside its point, where it overlaps the least with other labels and points."""
    panel = Bbox.from_bounds(0, 0, *(72 * inches for inches in size_of(axes)))
    to_points = axes.transData + axes.transAxes.inverted() + BboxTransformTo(panel)
    taken = [_box(to_points.transform(dot), (0, 0), (8.0, 8.0)) for dot in dots]
    for text, point, color in texts:
        extent = (text_width(text, size=TEXT_SIZE) * 72, TEXT_SIZE)
        choices = [(side, _box(to_points.transform(point), side, extent)) for side in _AROUND]
        side, chosen = min(choices, key=lambda choice: _clash(choice[1], taken, panel))
        taken.append(chosen)
        align = {1: "left", 0: "center", -1: "right"}[side[0]]
        style: dict[str, Any] = {"ha": align, "va": "center", "color": color, "path_effects": [HALO], "zorder": 5}
        write(axes, text, point, (7.0 * side[0], 10.0 * side[1]), xycoords="data", size=TEXT_SIZE, **style)


def _box(centre: np.ndarray, side: tuple[int, int], extent: tuple[float, float]) -> Bbox:
    """The box of a text beside a point, in points (1/72 inch) as everything here."""
    x, y = centre[0] + 7.0 * side[0] + extent[0] / 2 * (side[0] - 1), centre[1] + 10.0 * side[1] - extent[1] / 2
    return Bbox.from_bounds(x, y, *extent)


def _clash(box: Bbox, taken: Sequence[Bbox], panel: Bbox) -> float:
    """Area of a box that overlaps others or lies outside of the panel."""
    return box.width * box.height - _shared(box, panel) + sum(_shared(box, other) for other in taken)


def _shared(one: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(one, other)
    return common.width * common.height if common else 0.0
