"""Supervised fine-tuning: loss, perplexity, and the distance from the data's own entropy."""

from __future__ import annotations

from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit.curves import CurvePanel, Line, both, draw_training, logged
from rlhf_lightning.plots.kit.style import span, styled
from rlhf_lightning.records.runs import Run

_PANELS = (
    CurvePanel("Loss", "nats per token", both("sft", "loss"), floor=0),
    CurvePanel("Perplexity", "exp(loss), log scale", both("sft", "perplexity"), floor=0, log=True),
    CurvePanel(
        "Above the data's entropy",
        "nats per token, log scale",
        (Line("held out", "eval/nats_above_entropy"),),
        floor=0,
        log=True,
    ),
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
    shown = logged(found, _PANELS) if found else []
    if found is None or not shown:
        raise UserError(f"{run.path}: no supervised run with metrics in it")
    title, perplexity = "Supervised fine-tuning", found.series("eval/perplexity")
    if len(perplexity):
        title = f"Held-out perplexity: {span(perplexity.iloc[0], perplexity.iloc[-1])}"
    return draw_training(found, shown, title=title, note=run.name, height=2.1)
