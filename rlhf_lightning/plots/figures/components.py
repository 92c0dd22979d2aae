"""What the gold reward is made of, and which part of it moves."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import Label, end_labels, heading
from rlhf_lightning.plots.kit.style import MUTED, RUNS, span, styled
from rlhf_lightning.records.runs import Run

PREFIX = "eval/gold_"


@styled
def components(run: Run) -> Figure:
    """Change of each component of the gold reward on held-out prompts.

    Args:
        run: a policy run, or a pipeline with one.

    Raises:
        UserError: the run has no components of gold.
    """
    found = run.find("policy", "preference")
    series = _components(found) if found else {}
    if found is None or not series:
        raise UserError(f"{run.path}: no policy run with components of the gold reward in it")
    figure, (axes,) = panels.sheet(1, columns=1, size=(6.6, 3.0), top=0.95, right=1.6)
    since = "before training" if min(values.index[0] for values in series.values()) == 0 else "the first evaluation"
    note = f"Change of each component on held-out prompts since {since} · {run.name}"
    heading(figure, "What gold is made of", note)
    panels.dress(axes, xlabel=found.axis)
    panels.counter_axis(axes, max(values.index[-1] for values in series.values()))
    gains = {name: values - values.iloc[0] for name, values in series.items()}
    panels.limits(axes, gains.values(), include=(0.0,))
    axes.axhline(0, color=MUTED, linewidth=0.9, zorder=1.5)
    labels = []
    for index, (name, gain) in enumerate(gains.items()):
        color = RUNS[index % len(RUNS)]
        panels.points(axes, gain, color)
        note = span(series[name].iloc[0], series[name].iloc[-1])
        labels.append(Label(float(gain.iloc[-1]), name, color, note))
    end_labels(axes, labels)
    return figure


def _components(run: Run) -> dict[str, pd.Series]:
    """The components of gold that were evaluated at least twice, by name."""
    names = [column for column in run.columns if column.startswith(PREFIX)]
    found = {name.removeprefix(PREFIX).replace("_", " "): run.series(name) for name in names}
    return {name: values for name, values in found.items() if len(values) > 1}
