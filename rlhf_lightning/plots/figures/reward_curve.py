"""Training of a reward model: loss, accuracy, margin, calibration, and agreement with gold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import Label, end_labels, heading
from rlhf_lightning.plots.kit.style import GOLD, HELD_OUT, MUTED, PLAIN, TRAIN, WARN, number, styled
from rlhf_lightning.records.runs import Run


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
class Panel:
    """One quantity, in one or several lines.

    Args:
        mark: a value that means something, and its name.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    floor: float | None = None
    mark: tuple[float, str] | None = None


def _both(name: str) -> tuple[Line, Line]:
    return Line("train", f"reward_model/{name}", TRAIN, noisy=True), Line("held out", f"eval/{name}")


_PANELS = (
    Panel("Loss", "nats per pair", _both("loss"), mark=(math.log(2), "coin toss")),
    Panel("Accuracy", "share of pairs ordered rightly", _both("accuracy"), mark=(0.5, "coin toss")),
    Panel("Over-fitting", "accuracy in training − held out", (Line("gap", "eval/accuracy_gap"),)),
    Panel("Margin", "score of chosen − rejected", _both("margin"), floor=0.0),
    Panel(
        "Correlation with gold",
        "of held-out scores: all, and within prompts",
        (Line("all", "eval/correlation_gold"), Line("within", "eval/correlation_within_gold", PLAIN)),
        floor=0.0,
    ),
    Panel(
        "Calibration error",
        "expected, of the stated probabilities",
        (Line("as stated", "eval/calibration_error", TRAIN), Line("scaled", "eval/calibration_error_scaled")),
        floor=0.0,
    ),
    Panel(
        "Biases",
        "score change, standard deviations",
        (
            Line("length", "eval/bias_length"),
            Line("politeness", "eval/bias_politeness", PLAIN),
            Line("repetition", "eval/bias_repetition", WARN),
        ),
    ),
    Panel("Agreement of members", "share of pairs, each two", (Line("held out", "eval/agreement"),)),
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
        panel for panel in _PANELS if found is not None and any(len(found.series(line.metric)) for line in panel.lines)
    ]
    if found is None or not shown:
        raise UserError(f"{run.path}: no reward model's run with metrics in it")
    figure, axes = panels.sheet(len(shown), columns=3, size=(2.75, 2.0), gap=(1.15, 0.95), right=0.95)
    heading(figure, _headline(found), found.name)
    ceiling = (found.evaluation or {}).get("ceiling")
    last = float(found.metrics[found.axis].max())
    for index, (place, panel) in enumerate(zip(axes, shown, strict=True)):
        panels.dress(place, panel.title, panel.unit, xlabel=found.axis if index + 3 >= len(shown) else "")
        panels.counter_axis(place, last)
        marks = [panel.mark] if panel.mark else []
        if panel.title == "Accuracy" and ceiling is not None:
            marks.append((ceiling, "ceiling"))
        lines = [(line, series) for line in panel.lines if len(series := found.series(line.metric))]
        panels.limits(place, [series for _, series in lines], floor=panel.floor, include=[value for value, _ in marks])
        for value, name in marks:
            panels.reference(place, value, name, color=GOLD if name == "ceiling" else MUTED)
        panels.zero_line(place)
        for line, series in lines:
            (panels.trace if line.noisy else panels.points)(place, series, line.color)
        end_labels(place, [Label(_end(series), line.name, line.color, number(_end(series))) for line, series in lines])
    return figure


def _end(series: pd.Series) -> float:
    return float(series.iloc[-1])


def _headline(run: Run) -> str:
    accuracy = run.series("eval/accuracy")
    if not len(accuracy):
        return "Training of the reward model"
    ceiling = (run.evaluation or {}).get("ceiling")
    most = f" of {100 * ceiling:.1f} % attainable" if ceiling is not None else ""
    return f"Held-out accuracy: {100 * _end(accuracy):.1f} %{most}"
