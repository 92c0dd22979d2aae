"""Where a reward model orders pairs as the annotators did, and where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf_lightning.errors import UserError
from rlhf_lightning.intervals import wilson_interval
from rlhf_lightning.plots.kit.dots import Dot, DotGroup, dot_plot, level
from rlhf_lightning.plots.kit.labels import heading
from rlhf_lightning.plots.kit.style import AXIS, GOLD, INK, number, styled
from rlhf_lightning.plots.measures import attainable, reward_evaluation
from rlhf_lightning.records.runs import Run

_MOST = 12
"""Rows of a panel; of more annotators those with the most pairs are shown."""

_GROUPS = (
    ("by_margin", "By margin", "by how much the preferred reply is better"),
    ("by_length_difference", "By length", "words of the preferred reply − words of the other"),
    ("by_annotator", "By annotator", "whose preferences they are"),
    ("by_objective", "By objective", "what the replies were compared on"),
)

_RANGES = ("by_margin", "by_length")
"""Groups whose names are ranges of numbers."""


@styled
def reward_accuracy(run: Run) -> Figure:
    """Held-out accuracy by margin, length difference, annotator, objective and member of the ensemble.

    Each dot has its 95 % interval; a group that has one row only says nothing beside the whole, and is left out.

    Args:
        run: a reward model's run, or a pipeline with one.

    Raises:
        UserError: its accuracy was not broken down.
    """
    name, measured = reward_evaluation(run)
    groups = [group for group in (*_breakdowns(measured), _members(measured)) if len(group.dots) > 1]
    if not groups:
        raise UserError(f"{run.path}: no reward model's run with an accuracy by groups in its evaluation.json")
    figure, axes = dot_plot(groups, tick=lambda share: f"{100 * share:.0f} %")
    shares = [end for group in groups for dot in group.dots for end in (dot.low, dot.high)]
    levels = [(measured.get("accuracy"), INK), (measured.get("ceiling"), GOLD)]
    known = [(value, color) for value, color in levels if value is not None]
    shares += [0.5, *(value for value, _ in known)]
    low, high = min(shares), max(shares)
    for panel in axes:
        panel.set_xlim(max(0.0, low - 0.03), min(1.0, high + 0.03))
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        level(panel, 0.5, AXIS, dashed=False)
        for value, color in known:
            level(panel, value, color)
    most = attainable(measured.get("ceiling"))
    heading(figure, f"Held-out accuracy: {100 * measured['accuracy']:.1f} %{most}", _note(name, measured))
    return figure


def _breakdowns(measured: Mapping[str, Any]) -> list[DotGroup]:
    groups = []
    for key, title, unit in _GROUPS:
        rows = [row for row in measured.get(key) or [] if row.get("count") and "accuracy" in row]  # not of ratings
        if len(rows) > _MOST:
            kept = sorted(rows, key=lambda row: -row["count"])[:_MOST]
            unit = f"{_MOST} of {len(rows)}, those with the most pairs"
            rows = [row for row in rows if row in kept]
        groups.append(DotGroup(title, unit, [_dot(row, ranges=key.startswith(_RANGES)) for row in rows]))
    return groups


def _dot(row: Mapping[str, Any], *, ranges: bool) -> Dot:
    note = f"{100 * row['accuracy']:.0f} % of {row['count']:,}"
    name = str(row["name"]).replace("-", "−") if ranges else str(row["name"])
    return Dot(name, row["accuracy"], row["low"], row["high"], note)


def _members(measured: Mapping[str, Any]) -> DotGroup:
    """Each member of an ensemble by itself, and what they have in common."""
    members = measured.get("members") or {}
    agreement, disagreement = members.get("agreement"), members.get("disagreement")
    common = [f"two of them agree on {100 * agreement:.0f} % of the pairs"] if agreement is not None else []
    common += [f"scores differ by {number(disagreement)}"] if disagreement is not None else []
    dots = []
    for index, share in enumerate(members.get("accuracy") or []):
        low, high = wilson_interval(share * measured["pairs"], measured["pairs"])
        dots.append(Dot(f"member {index + 1}", share, low, high, f"{100 * share:.1f} %"))
    return DotGroup("By member of the ensemble", "; ".join(common), dots)


def _note(name: str, measured: Mapping[str, Any]) -> str:
    low, high = measured.get("accuracy_low"), measured.get("accuracy_high")
    interval = f", 95 % interval {100 * low:.1f}–{100 * high:.1f} %" if low is not None and high is not None else ""
    best = " and best attainable (gold)" if measured.get("ceiling") is not None else ""
    lines = f"Dashed lines: all pairs (dark){best}; solid: coin toss"
    return f"{name} · {measured['pairs']:,} held-out pairs{interval}. {lines}."
