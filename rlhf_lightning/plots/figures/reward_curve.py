"""Training of a reward model: loss, accuracy, margin, calibration, and agreement with gold."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit.curves import CEILING, CurvePanel, Line, both, draw_training, logged
from rlhf_lightning.plots.kit.style import PLAIN, TRAIN, WARN, styled
from rlhf_lightning.plots.measures import attainable, reward_evaluation
from rlhf_lightning.records.runs import Run

_GROUP = "reward_model"


@styled
def reward_curve(run: Run) -> Figure:
    """Training and held-out curves of a reward model.

    Args:
        run: a reward model's run, or a pipeline with one.

    Raises:
        UserError: the run has no reward-model metrics.
    """
    found = run.find("reward")
    ceiling = reward_evaluation(run)[1].get("ceiling")
    shown = logged(found, _panels(ceiling)) if found else []
    if found is None or not shown:
        raise UserError(f"{run.path}: no reward model's run with metrics in it")
    title, accuracy = "Training of the reward model", found.series("eval/accuracy")
    if len(accuracy):
        title = f"Held-out accuracy: {100 * accuracy.iloc[-1]:.1f} %{attainable(ceiling)}"
    return draw_training(found, shown, title=title, note=found.name)


def _panels(ceiling: float | None) -> tuple[CurvePanel, ...]:
    attained = ((0.5, "coin toss"),) if ceiling is None else ((0.5, "coin toss"), (ceiling, CEILING))
    return (
        CurvePanel("Loss", "nats per pair", both(_GROUP, "loss"), marks=((math.log(2), "coin toss"),)),
        CurvePanel("Accuracy", "share of pairs ordered rightly", both(_GROUP, "accuracy"), marks=attained),
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
