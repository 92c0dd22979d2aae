"""What the claims of a comparison rest on: each estimate with its interval, and the verdict."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.plots.figures.arm_dots import check_columns
from rlhf_lightning.plots.kit.dots import Dot, DotGroup, dot_plot, fit, level
from rlhf_lightning.plots.kit.labels import heading
from rlhf_lightning.plots.kit.style import INK, change_within, styled


@styled
def claim_intervals(table: pd.DataFrame, *, title: str, unit: str = "", note: str = "") -> Figure:
    """A row for each claim in the order of the table: estimate, interval, the margin around zero, and the verdict.

    Claims of different units have panels of their own.

    Args:
        table: ``claim``, ``estimate``, ``low``, ``high``, ``verdict`` and, if there are such columns, ``margin``
            (the smallest difference that matters, NaN where none is declared) and ``unit``.
        title: of the figure.
        unit: of all estimates, where the table has no such column.
        note: what else is to be said below the title.

    Raises:
        UserError: a column is missing, or there is no row.
    """
    check_columns(table, ("claim", "estimate", "low", "high", "verdict"))
    units = table["unit"] if "unit" in table else pd.Series(unit, index=table.index)
    groups = [
        DotGroup("", str(its_unit), [_dot(row) for row in rows.to_dict("records")])
        for its_unit, rows in table.groupby(units, sort=False)
    ]
    figure, sheet = dot_plot(groups, columns=1, width=3.0, longest=3.4)
    for axes, group in zip(sheet, groups, strict=True):
        fit(axes, group.dots, include=[0.0])
        level(axes, 0.0, INK, dashed=False)
    shaded = "margin" in table and table["margin"].notna().any()
    parts = ["Estimates with 95 % intervals", "shaded: too small to matter" if shaded else "", note]
    heading(figure, title, " · ".join(filter(None, parts)))
    return figure


def _dot(row: dict[str, Any]) -> Dot:
    return Dot(
        str(row["claim"]),
        row["estimate"],
        row["low"],
        row["high"],
        change_within(row["estimate"], row["low"], row["high"]),
        margin=row.get("margin", float("nan")),
        remark=str(row["verdict"]),
    )
