"""Training of a reward model: loss, accuracy, margin, calibration, and agreement with gold."""

from __future__ import annotations

import math
from dataclasses import replace

from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit.curves import CEILING, CurvePanel, Line, both, draw_training, logged
from rlhf_lightning.plots.kit.style import PLAIN, TRAIN, WARN, styled
from rlhf_lightning.records.runs import Run

_GROUP = "reward_model"
_PANELS = (
    CurvePanel("Loss", "nats per pair", both(_GROUP, "loss"), marks=((math.log(2), "coin toss"),)),
    CurvePanel("Accuracy", "share of pairs ordered rightly", both(_GROUP, "accuracy"), marks=((0.5, "coin toss"),)),
    CurvePanel("Over-fitting", "accuracy in training − held out", (Line("gap", "eval/accuracy_gap"),)),
    CurvePanel("Margin", "score of chosen − rejected", both(_GROUP, "margin"), floor=0.0),
    CurvePanel(
        "Correlation with gold",
        "of held-out scores: all, and within prompts",
        (Line("all", "eval/correlation_gold"), Line("within", "eval/correlation_within_gold", PLAIN)),
        floor=0.0,
    ),
    CurvePanel(
        "Calibration error",
        "expected, of the stated probabilities",
        (Line("as stated", "eval/calibration_error", TRAIN), Line("scaled", "eval/calibration_error_scaled")),
        floor=0.0,
    ),
    CurvePanel(
        "Biases",
        "score change, standard deviations",
        (
            Line("length", "eval/bias_length"),
            Line("politeness", "eval/bias_politeness", PLAIN),
            Line("repetition", "eval/bias_repetition", WARN),
        ),
    ),
    CurvePanel("Agreement of members", "share of pairs, each two", (Line("held out", "eval/agreement"),)),
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
    shown = logged(found, _PANELS) if found else []
    if found is None or not shown:
        raise UserError(f"{run.path}: no reward model's run with metrics in it")
    ceiling = (found.evaluation or {}).get("ceiling")
    if ceiling is not None:
        shown = [
            replace(panel, marks=(*panel.marks, (ceiling, CEILING))) if panel.title == "Accuracy" else panel
            for panel in shown
        ]
    return draw_training(found, shown, title=_headline(found, ceiling), note=found.name)


def _headline(run: Run, ceiling: float | None) -> str:
    accuracy = run.series("eval/accuracy")
    if not len(accuracy):
        return "Training of the reward model"
    most = f" of {100 * ceiling:.1f} % attainable" if ceiling is not None else ""
    return f"Held-out accuracy: {100 * accuracy.iloc[-1]:.1f} %{most}"
