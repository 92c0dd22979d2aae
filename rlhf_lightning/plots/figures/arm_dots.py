"""Where the arms of a comparison ended, beside what was published of them."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit.dots import Dot, DotGroup, dot_plot, fit
from rlhf_lightning.plots.kit.labels import heading
from rlhf_lightning.plots.kit.style import WARN, number, plus_minus, styled


@styled
def arm_dots(table: pd.DataFrame, *, title: str, label: str, published_label: str = "", source: str = "") -> Figure:
    """A row for each arm in the order of the table: our mean with its interval, and the published value.

    A published value is a hollow diamond: in the same panel, or in one of its own where its unit is another. An arm
    of which runs failed says so.

    Args:
        table: ``arm``, ``mean``, ``low``, ``high``, ``n`` (runs that count), ``published`` (NaN where there is none)
            and, if there is such a column, ``failed`` (how many of these).
        title: of the figure.
        label: what the means measure, with the unit.
        published_label: what the published values measure, where that is not the same.
        source: of the published values.

    Raises:
        UserError: a column is missing, or there is no row.
    """
    check_columns(table, ("arm", "mean", "low", "high", "n", "published"))
    rows = table.to_dict("records")
    apart = bool(published_label) and any(math.isfinite(row["published"]) for row in rows)
    ours = [_ours(row, beside=not apart) for row in rows]
    groups = [DotGroup("Here" if apart else "", label, ours)]
    if apart:
        theirs = [
            Dot(str(row["arm"]), math.nan, math.nan, math.nan, number(row["published"]), row["published"])
            for row in rows
        ]
        groups.append(DotGroup("Published", published_label, theirs))
    figure, sheet = dot_plot(groups, width=2.3 if apart else 3.2, longest=2.6)
    for axes, group in zip(sheet, groups, strict=True):
        fit(axes, group.dots)
    published = f" · ◇: published{f' ({source})' if source else ''}" if table["published"].notna().any() else ""
    heading(figure, title, f"Mean over n runs with its 95 % interval{published}")
    return figure


def _ours(row: dict[str, Any], *, beside: bool) -> Dot:
    half = (row["high"] - row["low"]) / 2
    failed, count = int(row.get("failed", 0) or 0), int(row["n"])
    return Dot(
        str(row["arm"]),
        row["mean"],
        row["low"],
        row["high"],
        f"{plus_minus(row['mean'], half)}, n = {count}" if math.isfinite(row["mean"]) else "no run",
        other=row["published"] if beside else math.nan,
        remark=f"× {failed} of {count} failed" if failed else "",
        remark_color=WARN,
    )


def check_columns(table: pd.DataFrame, expected: Collection[str]) -> None:
    """Raise `UserError` for a table without rows or without one of these columns."""
    absent = [name for name in expected if name not in table.columns]
    if absent:
        raise UserError(f"the table has no column {', '.join(absent)}; expected {', '.join(expected)}")
    if not len(table):
        raise UserError(f"the table has no row; expected {', '.join(expected)} of one at least")
