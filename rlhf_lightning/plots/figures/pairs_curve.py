"""How much more preference pairs would help: held-out accuracy by the number of pairs that were trained on."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.dots import DOT
from rlhf_lightning.plots.kit.labels import Label, end_labels, heading
from rlhf_lightning.plots.kit.style import GOLD, HELD_OUT, MUTED, TRAIN, number, styled
from rlhf_lightning.plots.measures import attainable, reward_evaluation
from rlhf_lightning.records.runs import Run


@styled
def learning_curve_of_pairs(runs: Sequence[Run], pairs: Sequence[int] | None = None) -> Figure:
    """Final accuracy and correlation with gold of several reward models against their numbers of training pairs.

    Every run is a dot; the line joins the means of runs with as many pairs. The distance between training and
    held-out accuracy is over-fitting, that between held-out accuracy and ceiling is what is left to learn.

    Args:
        runs: reward models' runs, or pipelines with one each.
        pairs: training pairs of each run; None for what their evaluation.json says (``train.pairs``).

    Raises:
        UserError: fewer than two different numbers of pairs are known.
    """
    table = _table(runs, pairs)
    if table["pairs"].nunique() < 2:
        raise UserError("no two reward models that were evaluated after training on different numbers of pairs")
    correlated = table["correlation"].notna().any()
    figure, axes = panels.sheet(1 + correlated, columns=2, size=(3.5, 2.4), gap=(1.35, 0.8), right=1.15, left=0.55)
    heading(figure, _headline(table), _note(table))
    _draw_accuracy(axes[0], table)
    if correlated:
        panels.dress(axes[1], "Correlation with gold", "Pearson's, of the scores of held-out replies")
        panels.limits(axes[1], [table["correlation"].dropna()])
        _pairs_axis(axes[1], table)
        last = _draw(axes[1], table, "correlation", HELD_OUT)
        end_labels(axes[1], [Label(last, "held out", HELD_OUT, number(last))])
    return figure


def _table(runs: Sequence[Run], pairs: Sequence[int] | None) -> pd.DataFrame:
    """A row for each run that was evaluated, fewest pairs first."""
    evaluations = [reward_evaluation(run)[1] for run in runs]
    counts = [measured.get("fitted_to") for measured in evaluations] if pairs is None else pairs
    rows = [
        (
            count,
            measured.get("accuracy"),
            measured.get("accuracy_low"),
            measured.get("accuracy_high"),
            (measured.get("train") or {}).get("accuracy"),
            measured.get("ceiling"),
            (measured.get("correlation") or {}).get("pearson"),
        )
        for count, measured in zip(counts, evaluations, strict=True)
    ]
    columns = ["pairs", "accuracy", "low", "high", "train", "ceiling", "correlation"]
    table = pd.DataFrame(rows, columns=columns).astype(float)
    return table.dropna(subset=["pairs", "accuracy"]).sort_values("pairs")


def _draw_accuracy(axes: Axes, table: pd.DataFrame) -> None:
    panels.dress(axes, "Accuracy", "share of pairs ordered rightly, 95 % intervals")
    shown = [table[name].dropna() for name in ("accuracy", "low", "high", "train", "ceiling")]
    panels.limits(axes, shown, include=(0.5,))
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    _pairs_axis(axes, table)
    panels.reference(axes, 0.5, "coin toss")
    axes.vlines(table["pairs"], table["low"], table["high"], color=HELD_OUT, linewidth=1.4, alpha=0.4, zorder=3)
    beside = []
    if table["train"].notna().any():
        beside.append((_draw(axes, table, "train", TRAIN), "train", TRAIN))
    if table["ceiling"].notna().any():
        panels.reference(axes, table["ceiling"].mean(), color=GOLD)
        beside.append((table["ceiling"].mean(), "ceiling", GOLD))
    held_out = (_draw(axes, table, "accuracy", HELD_OUT), "held out", HELD_OUT)
    labels = [Label(share, name, color, f"{100 * share:.1f} %") for share, name, color in (held_out, *beside)]
    end_labels(axes, labels, offset=12)


def _draw(axes: Axes, table: pd.DataFrame, column: str, color: str) -> float:
    """A dot for each run, and a line through the means of as many pairs; the last of these is returned."""
    means = table.groupby("pairs")[column].mean().dropna()
    axes.plot(means.index, means, color=color, linewidth=1.8, zorder=3.5)
    axes.plot(table["pairs"], table[column], "o", color=color, zorder=4, clip_on=False, **DOT)
    return float(means.iloc[-1])


def _pairs_axis(axes: Axes, table: pd.DataFrame) -> None:
    """A logarithmic axis with a tick at every number of pairs, unless they are close."""
    counts = sorted(table["pairs"].unique())
    axes.set_xscale("log")
    axes.set_xlim(counts[0] / 1.12, counts[-1] * 1.12)
    ticks = [counts[0]]
    for count in counts[1:]:
        if count / ticks[-1] >= (counts[-1] / counts[0]) ** 0.09:
            ticks.append(count)
    axes.set_xticks(ticks, [f"{count / 1000:g}k" if count >= 1000 else f"{count:.0f}" for count in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training pairs (log scale)", size=8.5, color=MUTED, labelpad=3)


def _headline(table: pd.DataFrame) -> str:
    means = table.groupby("pairs")["accuracy"].mean()
    first, last = 100 * means.iloc[0], 100 * means.iloc[-1]
    most = attainable(table["ceiling"].mean() if table["ceiling"].notna().any() else None)
    sizes = f"from {means.index[0]:,.0f} to {means.index[-1]:,.0f} pairs"
    return f"Accuracy: {first:.1f} → {last:.1f} %{most}, {sizes}"


def _note(table: pd.DataFrame) -> str:
    gap = (table["train"] - table["accuracy"]).groupby(table["pairs"]).mean().dropna()
    text = f"{len(table)} reward models on held-out pairs"
    if len(gap) > 1:
        text += f"; training is ahead by {100 * gap.iloc[0]:.1f} points at first, {100 * gap.iloc[-1]:.1f} at last"
    return f"{text}."
