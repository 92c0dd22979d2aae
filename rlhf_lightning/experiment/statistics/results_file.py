"""A table of anybody's results, from a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import pandas as pd

from rlhf_lightning.errors import UserError, raise_all, suggestion
from rlhf_lightning.experiment.statistics.scores import ARM, SEED, STATUS, TASK

_Lines: TypeAlias = Mapping[int, Mapping[str, str]]
"""The cells of each line of a file, by its number."""

_MISSING = ("", "nan", "na", "none", "null")
"""How programs write that there is no value, in lower case."""


def from_csv(path: str | Path) -> pd.DataFrame:
    """Read a scores table: ``arm``, ``seed``, if wanted ``task`` and ``status``, and columns of numbers.

    An empty cell is a failed run. Columns without any number, such as comments, are left out.

    Raises:
        UserError: the file cannot be read, or with line and column: a column is missing, a seed is no whole number, a
            cell among numbers is none, or a run is there twice.
    """
    lines = _read(Path(path))
    columns = list(next(iter(lines.values())))
    measures = [name for name in columns if name not in (ARM, SEED, TASK, STATUS) and _has_numbers(lines, name)]
    raise_all(f"{path}, {mistake}" for mistake in _mistakes(lines, measures))
    if not measures:
        raise UserError(f"{path}: no column of numbers besides arm and seed")
    rows = [
        {
            ARM: cells[ARM],
            SEED: int(cells[SEED]),
            **{name: cells[name] for name in (TASK, STATUS) if name in columns},
            **{name: _number(cells[name]) for name in measures},
        }
        for cells in lines.values()
    ]
    return pd.DataFrame(rows)


def _read(path: Path) -> _Lines:
    lines: dict[int, dict[str, str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True, skipinitialspace=True)
            columns = list(reader.fieldnames or [])
            for cells in reader:
                lines[reader.line_num] = cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from error
    for name in (ARM, SEED):
        if name not in columns:
            hint = suggestion(name, columns, otherwise=f"its columns are {', '.join(columns) or 'none'}")
            raise UserError(f"{path} has no column {name!r}: {hint}")
    if len(set(columns)) < len(columns):
        raise UserError(f"{path} has two columns of the same name: {', '.join(columns)}")
    raise_all(
        f"{path}, line {line}: expected {len(columns)} cells"
        for line, cells in lines.items()
        if None in cells or None in cells.values()
    )
    if not lines:
        raise UserError(f"{path} has no row")
    return {line: {name: cell.strip() for name, cell in cells.items()} for line, cells in lines.items()}


def _mistakes(lines: _Lines, measures: list[str]) -> Iterator[str]:
    first: dict[tuple[str, ...], int] = {}
    for line, cells in lines.items():
        if not cells[ARM]:
            yield f"line {line}, column arm: empty"
        if not cells[SEED].removeprefix("-").isdecimal():
            yield f"line {line}, column seed: expected a whole number, got {cells[SEED]!r}"
        for name in measures:
            if not _is_number(cells[name]):
                yield f"line {line}, column {name}: expected a number, got {cells[name]!r}"
        run = tuple(f"{name} {cells[name]}" for name in (ARM, SEED, TASK) if name in cells)
        if first.setdefault(run, line) != line:
            yield f"line {line}: {', '.join(run)} is on line {first[run]} already"


def _has_numbers(lines: _Lines, name: str) -> bool:
    return any(_is_number(cells[name]) and cells[name].lower() not in _MISSING for cells in lines.values())


def _is_number(cell: str) -> bool:
    try:
        _number(cell)
    except ValueError:
        return False
    return True


def _number(cell: str) -> float:
    return float("nan" if cell.lower() in _MISSING else cell)
