"""Does a reward model that says 80 % come true in 80 % of the pairs?"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots import panels
from rlhf_lightning.plots.labels import Label, end_labels, heading
from rlhf_lightning.plots.style import AXIS, GOLD, HELD_OUT, INK, MUTED, PAPER, TRAIN, WARN, number, styled
from rlhf_lightning.runs import Run


@styled
def reliability(run: Run) -> Figure:
    """Stated probability against how often the preferred response was the one predicted.

    Bars are 95 % Wilson intervals; a bin with few pairs has a long one. The histogram below counts the pairs.

    Args:
        run: a reward model's run, or a pipeline with one.

    Raises:
        UserError: its calibration was not measured.
    """
    found = run.find("reward")
    measured = found.reliability if found else None
    bins = [entry for entry in (measured or {}).get("bins", []) if entry["count"] > 0]
    if found is None or not measured or not bins:
        raise UserError(f"{run.path}: no reward model's run with a reliability.json in it")
    figure = Figure(figsize=(6.4, 6.0))
    main = figure.add_axes((0.095, 0.27, 0.65, 0.545))
    below = figure.add_axes((0.095, 0.09, 0.65, 0.13))
    for axes, unit in ((main, "how often the model was right, with 95 % intervals"), (below, "number of pairs")):
        panels.dress(axes, unit=unit)
        axes.set_xlim(0.5, 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    heading(
        figure,
        f"Stated probabilities are off by {100 * measured['calibration_error']:.1f} points on average",
        f"{run.name} · {sum(entry['count'] for entry in bins):,} held-out pairs · "
        f"expected calibration error {number(measured['calibration_error'])}",
    )
    _diagram(main, bins)
    _levels(main, measured)
    _counts(below, bins)
    return figure


def wilson(accuracy: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of ``count`` trials. Wilson 1927."""
    centre = accuracy + z * z / (2 * count)
    half = z * math.sqrt(accuracy * (1 - accuracy) / count + z * z / (4 * count * count))
    return (centre - half) / (1 + z * z / count), (centre + half) / (1 + z * z / count)


def _diagram(axes: Axes, bins: list[dict]) -> None:
    stated = np.array([entry["confidence"] for entry in bins])
    observed = np.array([entry["accuracy"] for entry in bins])
    intervals = [wilson(entry["accuracy"], entry["count"]) for entry in bins]
    axes.set_ylim(max(0.0, math.floor(10 * min(0.45, *(observed - 0.03))) / 10), 1.0)
    axes.tick_params(labelbottom=False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.plot([0.5, 1], [0.5, 1], color=AXIS, linewidth=1.1, zorder=1.5)
    axes.vlines(stated, [low for low, _ in intervals], [high for _, high in intervals], color=HELD_OUT, alpha=0.35)
    axes.vlines(stated, stated, observed, color=WARN, linewidth=3.2, alpha=0.35, zorder=2)
    axes.plot(stated, observed, color=HELD_OUT, linewidth=1.6, zorder=3)
    axes.plot(
        stated,
        observed,
        "o",
        color=HELD_OUT,
        markersize=6,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        zorder=4,
        clip_on=False,
    )


def _levels(axes: Axes, measured: dict) -> None:
    """Mean accuracy, and the best that was attainable, as levels named at the right."""
    levels = (
        ("accuracy", measured.get("accuracy"), INK, "over all pairs"),
        ("ceiling", measured.get("ceiling"), GOLD, "best attainable"),
    )
    known = [(name, value, color, note) for name, value, color, note in levels if value is not None]
    for _, value, color, _ in known:
        panels.reference(axes, value, color=color)
    labels = [Label(value, f"{name} {100 * value:.1f} %", color, note) for name, value, color, note in known]
    end_labels(axes, [*labels, Label(1.0, "as stated", MUTED, "perfectly calibrated")])


def _counts(axes: Axes, bins: list[dict]) -> None:
    stated = np.array([entry["confidence"] for entry in bins])
    width = min(0.04, 0.8 * float(np.median(np.diff(stated)))) if len(stated) > 1 else 0.04
    count = [entry["count"] for entry in bins]
    axes.bar(stated, count, width=width, color=TRAIN, alpha=0.75)
    axes.set_ylim(0, 1.25 * max(count))
    axes.grid(visible=False)
    axes.set_yticks([])
    for x, pairs in zip(stated, count, strict=True):
        axes.annotate(
            f"{pairs:,}", (x, pairs), (0, 2.5), textcoords="offset points", ha="center", size=7.5, color=MUTED
        )
    axes.set_xlabel("probability that the model states: σ(score difference)", size=8.5, color=MUTED, labelpad=4)
