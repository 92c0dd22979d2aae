"""Supervised fine-tuning: loss, perplexity, and the distance from the data's own entropy."""

from __future__ import annotations

from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import Label, end_labels, heading
from rlhf_lightning.plots.kit.style import HELD_OUT, TRAIN, number, span, styled
from rlhf_lightning.records.runs import Run

_PANELS = (
    ("Loss", "nats per token", "sft/loss", "eval/loss"),
    ("Perplexity", "exp(loss), log scale", "sft/perplexity", "eval/perplexity"),
    ("Above the data's entropy", "nats per token, log scale", "", "eval/nats_above_entropy"),
)


@styled
def sft_curve(run: Run) -> Figure:
    """Training and held-out curves of a supervised run.

    Args:
        run: a supervised run, or a pipeline with one.

    Raises:
        UserError: the run has no supervised losses.
    """
    found = run.find("sft")
    shown = [panel for panel in _PANELS if found and any(len(found.series(name)) for name in panel[2:] if name)]
    if found is None or not shown:
        raise UserError(f"{run.path}: no supervised run with metrics in it")
    figure, axes = panels.sheet(len(shown), columns=3, size=(2.75, 2.1), gap=(1.15, 0.8), right=0.95)
    heading(figure, _headline(found), run.name)
    last = float(found.metrics[found.axis].max())
    for place, (title, unit, train, held_out) in zip(axes, shown, strict=True):
        panels.dress(place, title, unit, xlabel=found.axis)
        panels.counter_axis(place, last)
        pair = {"train": (found.series(train), TRAIN), "held out": (found.series(held_out), HELD_OUT)}
        pair = {name: (series, color) for name, (series, color) in pair.items() if len(series)}
        values = [series for series, _ in pair.values()]
        if "log scale" in unit and all((series > 0).all() for series in values):
            panels.log_limits(place, values)
        else:
            panels.limits(place, values, floor=0)
        if "train" in pair:
            panels.trace(place, *pair["train"])
        if "held out" in pair:
            panels.points(place, *pair["held out"])
        panels.zero_line(place)
        end_labels(
            place,
            [
                Label(float(series.iloc[-1]), name, color, number(series.iloc[-1]))
                for name, (series, color) in pair.items()
            ],
        )
    return figure


def _headline(run: Run) -> str:
    perplexity = run.series("eval/perplexity")
    if not len(perplexity):
        return "Supervised fine-tuning"
    return f"Held-out perplexity: {span(float(perplexity.iloc[0]), float(perplexity.iloc[-1]))}"
