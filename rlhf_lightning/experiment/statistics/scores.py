"""The table that all statistics read: one row per run, what a failed run counts as, and pairs of runs by seed.

A *scores table* holds runs that ended, well or badly, and none that is still on its way. Its columns are ``arm`` and
``seed``; ``task`` where there are several tasks; ``status`` where runs may fail (``finished``, anything else is a
failed run); and one column of numbers per measure. The arms share their seeds: runs of one seed start from the same
models, prompts and noise, and are compared with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlhf_lightning.errors import UserError, raise_all, suggestion

ARM, SEED, TASK, STATUS, FAILED = "arm", "seed", "task", "status", "failed"
FINISHED = "finished"

Numbers: TypeAlias = NDArray[np.float64]
"""An array whose last axis is the seeds."""
ArmValues: TypeAlias = Mapping[str, Numbers]
"""By arm: one value per seed, the seeds being the same and in the same order for all arms."""


@dataclass(frozen=True)
class MeasureScale:
    """What is measured, and how it is read.

    Args:
        name: the column of the table.
        worst: what a run that failed or diverged counts as, such as the lowest value of the scale; None: as the worst
            value that any run of the comparison had.
    """

    name: str
    higher_is_better: bool = True
    worst: float | None = None

    @property
    def sign(self) -> int:
        """1 where more is better, −1 where less is."""
        return 1 if self.higher_is_better else -1


@dataclass(frozen=True)
class PairedScores:
    """What some arms measured at the seeds that all of them have.

    Args:
        seeds: in increasing order.
        values: by arm, in the order of ``seeds``; where there are several tasks, the mean over them.
        notes: what failed runs counted as, and which seeds were left out.
    """

    seeds: tuple[int, ...]
    values: ArmValues
    notes: tuple[str, ...]


def checked_table(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The columns that the statistics read, always with a task.

    Raises:
        UserError: a column is missing, the measure is no number, or a run is there twice.
    """
    columns = [str(column) for column in table.columns]
    listed = f"its columns are {', '.join(columns)}"
    raise_all(
        f"the table has no column {name!r}: {suggestion(name, columns, otherwise=listed)}"
        for name in (ARM, SEED, measure)
        if name not in columns
    )
    runs = pd.DataFrame({ARM: table[ARM].astype(str), SEED: _numbers(table, SEED)})
    if not (runs[SEED] % 1 == 0).all():
        raise UserError(f"column {SEED!r} must hold whole numbers")
    runs[SEED] = runs[SEED].astype(int)
    runs[TASK] = table[TASK].astype(str) if TASK in columns else ""
    runs[measure] = _numbers(table, measure).astype(float)
    runs[STATUS] = table[STATUS].astype(str) if STATUS in columns else FINISHED
    twice = runs[runs.duplicated([ARM, SEED, TASK])]
    raise_all(f"two rows are of {_run_name(row)}: a run has one row" for _, row in twice.iterrows())
    return runs


def _numbers(table: pd.DataFrame, name: str) -> pd.Series:
    """A column, None being NaN."""
    try:
        return pd.to_numeric(table[name])
    except (TypeError, ValueError) as error:
        raise UserError(f"column {name!r} must hold numbers: {error}") from error


def _run_name(row: pd.Series) -> str:
    task = f", task {row[TASK]}" if row[TASK] else ""
    return f"arm {row[ARM]}, seed {row[SEED]}{task}"


def filled(table: pd.DataFrame, scale: MeasureScale) -> tuple[pd.DataFrame, dict[str, str]]:
    """Give failed and diverged runs the value that they count as; no run is dropped.

    A run failed if its status is not ``finished`` or its value is not finite. Leaving such runs out would reward an
    arm for them (Henderson et al. 2018; Patterson et al. 2024).

    Returns:
        The columns ``arm``, ``seed``, ``task``, ``failed`` and the measure; and by arm, where runs of it failed, a
        sentence about what they counted as.

    Raises:
        UserError: as `checked_table`; or no run has a value, and no worst value is declared.
    """
    runs = checked_table(table, scale.name)
    failed = (runs[STATUS] != FINISHED) | ~np.isfinite(runs[scale.name])
    runs = runs.drop(columns=STATUS).assign(**{FAILED: failed})
    if not failed.any():
        return runs, {}
    worst, why = scale.worst, "declared for failed runs"
    if worst is None:
        values = runs.loc[~failed, scale.name]
        if values.empty:
            raise UserError(f"no run finished with a value of {scale.name}, and no worst value is declared")
        worst = float(values.min() if scale.higher_is_better else values.max())
        why = "the worst value of any run; no worst value is declared"
    runs.loc[failed, scale.name] = worst
    counts = runs.loc[failed, ARM].value_counts(sort=False)
    notes = {
        str(arm): f"{count} failed {'run' if count == 1 else 'runs'} of {arm} counted as {worst:g} ({why})"
        for arm, count in counts.items()
    }
    return runs, notes


def paired_scores(table: pd.DataFrame, scale: MeasureScale, arms: Sequence[str]) -> PairedScores:
    """Values of some arms at the seeds for which all of them have a run, of every task.

    With several tasks a seed's value is the mean over the tasks: they are the same in every comparison, and only the
    seeds are a sample. Scores of different tasks must have been brought to one scale before.

    Raises:
        UserError: as `filled`; or an arm has no run.
    """
    runs, failures = filled(table, scale)
    known = list(dict.fromkeys(runs[ARM]))
    raise_all(
        f"no run of arm {arm!r}: {suggestion(arm, known, otherwise='arms are ' + ', '.join(known))}"
        for arm in arms
        if arm not in known
    )
    mine = runs[runs[ARM].isin(arms)]
    columns = pd.MultiIndex.from_product([arms, sorted(runs[TASK].unique())])
    wide = mine.pivot(index=SEED, columns=[ARM, TASK], values=scale.name).reindex(columns=columns).sort_index()
    complete = wide.notna().all(axis="columns")
    notes = [failures[arm] for arm in arms if arm in failures]
    notes += _left_out(wide[~complete])
    kept = wide[complete]
    values = {arm: kept[[arm]].mean(axis="columns").to_numpy(dtype=float) for arm in arms}
    return PairedScores(tuple(int(seed) for seed in kept.index), values, tuple(notes))


def _left_out(incomplete: pd.DataFrame) -> list[str]:
    """A sentence for the seeds that lack the same runs."""
    seeds: dict[str, list[str]] = {}
    for seed, row in incomplete.iterrows():
        lacking = [f"{arm} on {task}" if task else str(arm) for arm, task in row.index[row.isna()]]
        seeds.setdefault(", ".join(lacking), []).append(str(seed))
    return [
        f"{'seed' if len(some) == 1 else 'seeds'} {', '.join(some)} left out: no run of {lacking}"
        for lacking, some in seeds.items()
    ]
