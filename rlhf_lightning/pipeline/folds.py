"""k-fold cross-validation: a ``fit`` for each fold, and what their runs measured. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rlhf_lightning.errors import UserError
from rlhf_lightning.intervals import student_interval
from rlhf_lightning.pipeline.stages import Stage, config_words

if TYPE_CHECKING:
    from rlhf_lightning.records.runs import Run

FOLDS, FOLD = "data.init_args.folds", "data.init_args.fold"

Row: TypeAlias = Mapping[str, float | None]
"""What was measured in a fold, by name; None where it was not."""
Interval: TypeAlias = Mapping[str, float]
"""``mean``, ``low`` and ``high``."""

_COLUMNS = {"accuracy": "accuracy", "loss": "loss", "train_accuracy": "train accuracy", "gap": "over-fitting gap"}


def fold_stages(directory: Path, folds: int, configs: Sequence[str], options: Sequence[str]) -> list[Stage]:
    """A ``fit`` for each fold.

    Args:
        options: further words of every command.

    Raises:
        UserError: a configuration is missing, or an option sets the fold.
    """
    words = [*config_words(configs), "--runs_dir", str(directory)]
    options = _separated(options)
    stages = []
    for fold in range(folds):
        name = f"fold_{fold}"
        held_out = [f"--{FOLDS}", str(folds), f"--{FOLD}", str(fold)]
        command = ["fit", *words, "--name", name, *options, *held_out]
        stages.append(Stage(name, command, directory / name, {}, directory / name / "export"))
    return stages


def _separated(words: Sequence[str]) -> list[str]:
    """``--KEY=VALUE`` as two words, as the pipeline compares options."""
    parts = [word.split("=", 1) if word.startswith("--") else [word] for word in words]
    for key in (FOLDS, FOLD):
        if any(part[0] == f"--{key}" for part in parts):
            raise UserError(f"--{key} is what crossval sets; give --folds K instead")
    return [word for part in parts for word in part]


def fold_row(run: Run) -> dict[str, float | None]:
    """What is known of a fold's run at its end.

    The over-fitting gap is the accuracy on training pairs minus the accuracy on held-out pairs.
    """
    measured = run.evaluation or {}
    row = {name: measured.get(name, _last(run, f"eval/{name}")) for name in ("accuracy", "loss")}
    train = (measured.get("train") or {}).get("accuracy")
    gap = train - row["accuracy"] if train is not None and row["accuracy"] is not None else None
    return {**row, "train_accuracy": train, "gap": gap}


def _last(run: Run, metric: str) -> float | None:
    series = run.series(metric)
    return float(series.iloc[-1]) if len(series) else None


def summarized(rows: Sequence[Row]) -> dict[str, Interval]:
    """Mean of each measure with a 95 % Student interval over folds; a measure that a fold lacks is left out.

    The interval treats the folds as independent. Their training data overlap, so it tends to be too narrow, and no
    unbiased estimate can be had from one cross-validation (Bengio and Grandvalet 2004).
    """
    summary: dict[str, Interval] = {}
    for name in _COLUMNS:
        values = [value for row in rows if (value := row[name]) is not None]
        if len(values) == len(rows):
            mean, half = student_interval(values)
            summary[name] = {"mean": mean, "low": mean - half, "high": mean + half}
    return summary


def table(rows: Sequence[Row], summary: Mapping[str, Interval]) -> str:
    """A line for each fold, the means, and their intervals."""
    lines = [["fold", *(_COLUMNS[name] for name in summary)]]
    lines += [[str(fold), *(_cell(name, row[name]) for name in summary)] for fold, row in enumerate(rows)]
    lines.append(["mean", *(_cell(name, interval["mean"]) for name, interval in summary.items())])
    lines.append(["95 %", *(_range(name, interval) for name, interval in summary.items())])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    header, *text = ["  ".join(map(str.rjust, line, widths)) for line in lines]
    rule = "─" * len(header)
    return "\n".join([header, rule, *text[: len(rows)], rule, *text[len(rows) :]])


def in_words(row: Row) -> str:
    """The measures of a fold on one line."""
    return ", ".join(f"{_COLUMNS[name]} {_cell(name, value)}" for name, value in row.items() if value is not None)


def _range(name: str, interval: Interval) -> str:
    return f"{_cell(name, interval['low']).partition(' ')[0]} to {_cell(name, interval['high'])}"


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "loss":
        return f"{value:.3f}"
    return f"{100 * value:.1f} {'points' if name == 'gap' else '%'}".replace("-", "−")
