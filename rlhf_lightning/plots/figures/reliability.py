"""Does a reward model that says 80 % come true in 80 % of the pairs?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.intervals import wilson_interval
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import HALO, Label, end_labels, heading, write
from rlhf_lightning.plots.kit.style import AXIS, GOLD, HELD_OUT, INK, MUTED, PAPER, TRAIN, number, styled
from rlhf_lightning.plots.measures import chance_error, reward_evaluation
from rlhf_lightning.records.runs import Run

Bins = Sequence[Mapping[str, Any]]


@styled
def reliability(run: Run) -> Figure:
    """Stated probability against how often the preferred response was the one predicted.

    As the model states them (hollow), and with its score differences divided by one temperature (filled), which is
    fitted on other pairs than those that are shown. Guo et al. 2017.

    Bars are 95 % Wilson intervals; a bin with few pairs has a long one. The histogram below counts the pairs.

    Args:
        run: a reward model's run, or a pipeline with one.

    Raises:
        UserError: its calibration was not measured.
    """
    name, measured = reward_evaluation(run)
    stated, scaled = _filled(measured, "bins"), _filled(measured, "bins_scaled")
    if not stated:
        raise UserError(f"{run.path}: no reward model's run with a calibration in its evaluation.json")
    figure = Figure(figsize=(6.4, 6.0))
    main = figure.add_axes((0.095, 0.27, 0.65, 0.545))
    below = figure.add_axes((0.095, 0.09, 0.65, 0.13))
    for axes, unit in ((main, "how often the model was right, with 95 % intervals"), (below, "number of pairs")):
        panels.dress(axes, unit=unit)
        axes.set_xlim(0.5, 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    lowest = min(0.45, *(entry["accuracy"] - 0.03 for entry in [*stated, *scaled]))
    main.set_ylim(max(0.0, math.floor(10 * lowest) / 10), 1.0)
    main.tick_params(labelbottom=False)
    main.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    main.plot([0.5, 1], [0.5, 1], color=AXIS, linewidth=1.1, zorder=1.5)
    _diagram(main, stated, after=False)
    if scaled:
        _diagram(main, scaled, after=True)
    _levels(main, measured, stated, scaled)
    _counts(below, stated, scaled)
    heading(figure, _headline(measured), _note(name, measured, stated))
    return figure


def _filled(measured: Mapping[str, Any], key: str) -> Bins:
    return [entry for entry in measured.get(key) or [] if entry["count"] > 0]


def _headline(measured: Mapping[str, Any]) -> str:
    before, after = measured["calibration_error"], measured.get("calibration_error_scaled")
    text = f"Stated probabilities are off by {100 * before:.1f} points on average"
    if after is None:
        return text
    helps = after < before
    return f"{text}, by {100 * after:.1f} after temperature scaling" if helps else f"{text}: scaling does not help"


def _note(name: str, measured: Mapping[str, Any], stated: Bins) -> str:
    """Where the figures come from, in the words of the literature."""
    error = f"expected calibration error {measured['calibration_error']:.3f}"
    if measured.get("calibration_error_scaled") is not None:
        error += f" → {measured['calibration_error_scaled']:.3f}"
    if measured.get("temperature") is not None:
        error += f" at T = {number(measured['temperature'])}"
    chance = f"{chance_error(stated):.3f} would be chance on so many"
    return f"{name} · {sum(entry['count'] for entry in stated):,} held-out pairs · {error} · {chance}"


def _diagram(axes: Axes, bins: Bins, *, after: bool) -> None:
    color, layer = (HELD_OUT, 4) if after else (TRAIN, 3)
    stated = [entry["confidence"] for entry in bins]
    observed = [entry["accuracy"] for entry in bins]
    ends = [wilson_interval(entry["accuracy"] * entry["count"], entry["count"]) for entry in bins]
    axes.vlines(stated, *np.transpose(ends), color=color, linewidth=1.4, alpha=0.4, zorder=layer - 0.6)
    axes.plot(stated, observed, color=color, linewidth=1.6 if after else 1.2, zorder=layer - 0.4)
    face = color if after else PAPER
    edge, width = (PAPER, 0.8) if after else (color, 1.3)
    dots: dict[str, Any] = {"markersize": 6, "markerfacecolor": face, "markeredgecolor": edge, "markeredgewidth": width}
    axes.plot(stated, observed, "o", zorder=layer, clip_on=False, **dots)


def _levels(axes: Axes, measured: Mapping[str, Any], stated: Bins, scaled: Bins) -> None:
    """Mean accuracy, the best that was attainable, and what the lines are, named at the right."""
    labels = []
    for name, color, note in (("accuracy", INK, "over all pairs"), ("ceiling", GOLD, "best attainable")):
        if measured.get(name) is not None:
            panels.reference(axes, measured[name], color=color)
            labels.append(Label(measured[name], f"{name} {100 * measured[name]:.1f} %", color, note))
    labels.append(Label(stated[-1]["accuracy"], "as stated", TRAIN, "hollow dots"))
    if scaled:
        labels.append(Label(scaled[-1]["accuracy"], "scaled", HELD_OUT, "filled dots"))
    end_labels(axes, [*labels, Label(1.0, "perfect", MUTED, "came true as stated")])


def _counts(axes: Axes, before: Bins, after: Bins) -> None:
    """How many pairs each probability is stated for: after scaling (filled) and before (outlined)."""
    filled: dict[str, Any] = {"color": HELD_OUT, "alpha": 0.55}
    outlined: dict[str, Any] = {"fill": False, "edgecolor": TRAIN, "linewidth": 1.1}
    for bins, style in ((after, filled), (before, outlined)):
        stated = np.array([entry["confidence"] for entry in bins])
        width = min(0.04, 0.8 * float(np.median(np.diff(stated)))) if len(stated) > 1 else 0.04
        axes.bar(stated, [entry["count"] for entry in bins], width=width, **style)
    most = max(entry["count"] for entry in [*before, *after])
    axes.set_ylim(0, 1.25 * most)
    axes.grid(visible=False)
    axes.set_yticks([])
    for entry in after or before:
        style = {"xycoords": "data", "ha": "center", "size": 7.5, "color": MUTED, "path_effects": [HALO]}
        write(axes, f"{entry['count']:,}", (entry["confidence"], entry["count"]), (0, 2.5), **style)
    axes.set_xlabel("probability that the model states: σ(score difference)", size=8.5, color=MUTED, labelpad=4)
