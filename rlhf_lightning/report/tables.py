"""Tables as text: the cells of a DataFrame, and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rlhf_lightning.plots.kit.style import number


def markdown_table(table: pd.DataFrame | Sequence[Sequence[Any]]) -> str:
    """A Markdown table with aligned columns, and no line break at its end.

    Columns of numbers stand to the right. What would end a cell is escaped; a missing value is a dash.

    Args:
        table: a DataFrame, without its index; or rows of equal length, of which the first is the head.
    """
    if not isinstance(table, pd.DataFrame):
        head, *body = table
        table = pd.DataFrame(body, columns=list(head), dtype=object)
    columns = [[_escaped(name), *map(_escaped, cells)] for name, cells in columns_of(table)]
    right = [is_numeric(table.iloc[:, place]) for place in range(len(columns))]
    padded, rules = [], []
    for column, at_right in zip(columns, right, strict=True):
        width = max(map(len, column))
        padded.append([cell.rjust(width) if at_right else cell.ljust(width) for cell in column])
        rules.append("-" * (width + 1) + (":" if at_right else "-"))
    head, *rows = [f"| {' | '.join(cells)} |" for cells in zip(*padded, strict=True)]
    return "\n".join([head, f"|{'|'.join(rules)}|", *rows])


def columns_of(table: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Name and cells of each column, as text."""
    return [(str(name), [as_text(cell) for cell in table.iloc[:, place]]) for place, name in enumerate(table.columns)]


def as_text(cell: Any) -> str:
    """A cell as text: a fraction at a meaningful precision, a whole number in full, a dash where nothing is."""
    if pd.api.types.is_scalar(cell) and pd.isna(cell):
        return "–"
    if pd.api.types.is_bool(cell):
        return "yes" if cell else "no"
    if not pd.api.types.is_number(cell):
        return str(cell)
    return f"{cell:,.0f}".replace("-", "−") if float(cell).is_integer() else number(float(cell))


def is_numeric(column: pd.Series) -> bool:
    """Whether a column holds numbers, and at least one."""
    cells = [cell for cell in column if as_text(cell) != "–"]
    return len(cells) > 0 and all(pd.api.types.is_number(cell) and not pd.api.types.is_bool(cell) for cell in cells)


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
