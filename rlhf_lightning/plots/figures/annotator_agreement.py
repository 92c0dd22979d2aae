"""How far the annotators agree with one another: what no reward model can be expected to exceed by much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import heading, shortened, text_width, write
from rlhf_lightning.plots.kit.style import HELD_OUT, INK, MUTED, PAPER, TEXT_SIZE, WARN, fixed, styled
from rlhf_lightning.plots.measures import reward_evaluation
from rlhf_lightning.records.runs import Run

_FEW = 30
"""Pairs below which a κ is no more than an impression, and grey."""
_MOST, _CELL, _LONGEST = 12, 0.52, 1.6
"""Annotators that are shown; side of a cell and longest name, in inches."""


@styled
def annotator_agreement(run: Run) -> Figure:
    """Cohen's κ of each two annotators on the pairs that both judged: 1 is agreement, 0 is chance.

    Grey where the pairs are few: the standard error is about 1/√pairs. Cohen 1960; over all annotators Fleiss 1971.

    Args:
        run: a reward model's run, or a pipeline with one.

    Raises:
        UserError: no two annotators judged the same pairs.
    """
    name, measured = reward_evaluation(run)
    agreement = measured.get("annotator_agreement") or {}
    known = [row for row in agreement.get("cohen_kappa") or [] if row["kappa"] is not None]
    if not known:
        raise UserError(f"{run.path}: no reward model's run with an agreement of annotators in its evaluation.json")
    names, left_out = _annotators(known)
    figure, axes = _square(names)
    _draw_cells(axes, names, known)
    _write_names(axes, names)
    fleiss = agreement.get("fleiss_kappa")
    all_judged = agreement.get("items")
    enough = fleiss is not None and (all_judged is None or all_judged >= _FEW)
    overall = f": Fleiss' κ {fixed(fleiss)}" if enough else ""
    more = f" · {left_out} with fewer pairs are not shown" if left_out else ""
    grey = f" · grey: fewer than {_FEW} pairs, too few to tell" if any(row["count"] < _FEW for row in known) else ""
    note = f"Cohen's κ of each two (0 is chance), and the pairs that both judged{grey} · {name}{more}"
    heading(figure, f"Agreement of annotators{overall}", note)
    return figure


def _annotators(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], int]:
    """Their names, and how many are left out: those who share the fewest pairs with others."""
    shared: Counter[str] = Counter()
    for row in rows:
        shared[str(row["first"])] += row["count"]
        shared[str(row["second"])] += row["count"]
    kept = {name for name, _ in shared.most_common(_MOST)}
    return [name for name in sorted(shared) if name in kept], len(shared) - len(kept)


def _square(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with a square of cells, one row and one column fewer than there are annotators."""
    side, margin = _CELL * (len(names) - 1), min(_LONGEST, max(text_width(name, size=TEXT_SIZE) for name in names))
    left, below, above = margin + 0.3, 0.3, 0.85
    width, height = max(left + side + margin + 0.1, 5.2), above + side + below + 0.1
    figure = Figure(figsize=(width, height))
    return figure, figure.add_axes((left / width, below / height, side / width, side / height))


def _draw_cells(axes: Axes, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """The lower triangle; opaque enough to tell 0.2 from 0.6, and light enough to read the number."""
    panels.dress(axes)
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    last = len(names) - 1
    axes.set(xlim=(0, last), ylim=(last, 0), xticks=[], yticks=[])
    position = {name: index for index, name in enumerate(names)}
    for row in rows:
        first, second = str(row["first"]), str(row["second"])
        if first not in position or second not in position:
            continue
        x, y = sorted((position[first], position[second]))
        kappa = row["kappa"]
        color, alpha = (HELD_OUT if kappa >= 0 else WARN), min(0.06 + 0.6 * abs(kappa), 0.62)
        ink, weight = INK, "bold"
        if row["count"] < _FEW:
            color, alpha, ink, weight = MUTED, 0.12, MUTED, "normal"
        axes.add_patch(Rectangle((x, y - 1), 1, 1, facecolor=color, alpha=alpha, linewidth=0, zorder=1))
        axes.text(x + 0.5, y - 0.58, fixed(kappa), size=9, weight=weight, color=ink, ha="center", va="center")
        axes.text(x + 0.5, y - 0.24, f"{row['count']:,}", size=7, color=INK, alpha=0.8, ha="center", va="center")
    for line in range(last + 1):
        axes.axhline(line, color=PAPER, linewidth=2, zorder=2)
        axes.axvline(line, color=PAPER, linewidth=2, zorder=2)


def _write_names(axes: Axes, names: Sequence[str]) -> None:
    """Write the names of rows at the left, and those of columns along the diagonal, where each column begins."""
    style: dict[str, Any] = {"xycoords": "data", "size": TEXT_SIZE, "va": "center", "color": INK}
    for index, name in enumerate(names):
        short = shortened(name, width=_LONGEST, size=TEXT_SIZE)
        if index:
            write(axes, short, (0, index - 0.5), (-7, 0), ha="right", **style)
        if index < len(names) - 1:
            write(axes, short, (index, index - 0.17), (4, 0), ha="left", **style)
