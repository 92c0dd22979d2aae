"""Training of a reward model: loss, accuracy, margin, and agreement with gold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots import panels
from rlhf_lightning.plots.labels import Label, end_labels, heading
from rlhf_lightning.plots.style import GOLD, HELD_OUT, MUTED, TRAIN, number, styled
from rlhf_lightning.runs import Run


@dataclass(frozen=True)
class Panel:
    """One quantity, on training batches and on held-out pairs.

    Args:
        mark: a value that means something, and its name.
    """

    title: str
    unit: str
    train: str
    held_out: str
    floor: float | None = None
    mark: tuple[float, str] | None = None


_PANELS = (
    Panel("Loss", "nats per pair", "reward_model/loss", "eval/loss", mark=(math.log(2), "coin toss")),
    Panel(
        "Accuracy", "share of pairs ordered rightly", "reward_model/accuracy", "eval/accuracy", None, (0.5, "coin toss")
    ),
    Panel("Margin", "score of chosen − rejected", "reward_model/margin", "eval/margin", 0.0),
    Panel("Correlation with gold", "of the scores of held-out replies", "", "eval/correlation_gold", 0.0),
    Panel("Calibration error", "expected, of the stated probabilities", "", "eval/calibration_error", 0.0),
)


@styled
def reward_curve(run: Run) -> Figure:
    """Training and held-out curves of a reward model.

    Args:
        run: a reward model's run, or a pipeline with one.

    Raises:
        UserError: the run has no reward-model metrics.
    """
    found = run.find("reward")
    shown = [
        panel
        for panel in _PANELS
        if found and any(len(found.series(name)) for name in (panel.train, panel.held_out) if name)
    ]
    if found is None or not shown:
        raise UserError(f"{run.path}: no reward model's run with metrics in it")
    figure, axes = panels.sheet(len(shown), columns=3, size=(2.75, 2.0), gap=(1.15, 0.95), right=0.95)
    heading(figure, _headline(found), run.name)
    ceiling = (found.reliability or {}).get("ceiling")
    last = float(found.metrics[found.axis].max())
    for index, (place, panel) in enumerate(zip(axes, shown, strict=True)):
        panels.dress(place, panel.title, panel.unit, xlabel=found.axis if index + 3 >= len(shown) else "")
        panels.counter_axis(place, last)
        marks = [panel.mark] if panel.mark else []
        if panel.title == "Accuracy" and ceiling is not None:
            marks.append((ceiling, "ceiling"))
        train, held_out = found.series(panel.train), found.series(panel.held_out)
        panels.limits(place, [train, held_out], floor=panel.floor, include=[value for value, _ in marks])
        for value, name in marks:
            panels.reference(place, value, name, color=GOLD if name == "ceiling" else MUTED)
        panels.zero_line(place)
        panels.trace(place, train, TRAIN)
        panels.points(place, held_out, HELD_OUT)
        ends = [("train", train, TRAIN), ("held out", held_out, HELD_OUT)]
        end_labels(
            place,
            [Label(_end(series), name, color, number(_end(series))) for name, series, color in ends if len(series)],
        )
    return figure


def _end(series: pd.Series) -> float:
    return float(series.iloc[-1])


def _headline(run: Run) -> str:
    accuracy = run.series("eval/accuracy")
    if not len(accuracy):
        return "Training of the reward model"
    ceiling = (run.reliability or {}).get("ceiling")
    most = f" of {100 * ceiling:.1f} % attainable" if ceiling is not None else ""
    return f"Held-out accuracy: {100 * _end(accuracy):.1f} %{most}"
