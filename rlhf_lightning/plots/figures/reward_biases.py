"""What a reward model pays for beside the content: length, politeness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit.dots import Dot, DotGroup, Z, dot_plot, fit, level
from rlhf_lightning.plots.kit.labels import heading
from rlhf_lightning.plots.kit.style import INK, fixed, signed, styled
from rlhf_lightning.plots.measures import bias_is_clear, reward_evaluation
from rlhf_lightning.records.runs import Run


@styled
def reward_biases(run: Run) -> Figure:
    """How the score of a reply changes when one thing about it is changed that should not matter.

    Args:
        run: a reward model's run, or a pipeline with one.

    Raises:
        UserError: its biases were not measured.
    """
    name, measured = reward_evaluation(run)
    rows = measured.get("biases") or []
    if not rows:
        raise UserError(f"{run.path}: no reward model's run with biases in its evaluation.json")
    dots = [_dot(row) for row in rows]
    group = DotGroup("Change of the score", "in standard deviations of the scores, 95 % intervals", dots)
    figure, (axes,) = dot_plot([group], tick=lambda change: fixed(change, 1).removesuffix(".0"), width=3.2)
    fit(axes, dots, include=[0.0])
    level(axes, 0.0, INK, dashed=False)
    heading(figure, _headline(rows), f"When nothing else is changed · {name}")
    return figure


def _dot(row: Mapping[str, Any]) -> Dot:
    change, error = row["change"], Z * (row["standard_error"] or 0.0)
    note = f"{signed(change)}; up in {100 * row['share_up']:.0f} % of {row['count']:,}"
    return Dot(str(row["name"]), change, change - error, change + error, note)


def _headline(rows: list[Mapping[str, Any]]) -> str:
    clear = sorted((row for row in rows if bias_is_clear(row)), key=lambda row: -abs(row["change"]))
    if not clear:
        return "No clear bias"
    return "Biases: " + ", ".join(f"{row['name']} {signed(row['change'])}" for row in clear)
