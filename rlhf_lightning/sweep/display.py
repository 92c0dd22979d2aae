"""What a sweep shows: how far it is while it runs, and what came out in the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import pandas as pd
from optuna.trial import TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rlhf_lightning.plots.kit.style import number
from rlhf_lightning.sweep.results import importances, is_guess, parameters_of, short_names, trials_table
from rlhf_lightning.sweep.search import Search
from rlhf_lightning.sweep.study import REASON, VALUES, best_trial
from rlhf_lightning.sweep.worker import RunningTrial

_WIDE = 200
"""Columns of a table that is written to a file."""


class Display:
    """A line for each trial that ends, and on a terminal a bar and what is running.

    Args:
        count: the number of trials in all.
    """

    def __init__(self, search: Search, count: int) -> None:
        self.search, self.names = search, short_names(list(search.space.searched))
        self._told: set[int] | None = None
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self._task = self._progress.add_task("", total=count)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, study: optuna.Study, running: Sequence[RunningTrial]) -> None:
        """Show what goes on."""
        ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        if self._told is None:
            self._told = {trial.number for trial in ended}
            if ended:
                print(f"{len(ended)} trials have ended already", flush=True)
        for trial in ended:
            if trial.number not in self._told:
                self._told.add(trial.number)
                print(
                    f"trial {trial.number}: {self._outcome(trial)}  {self._values(trial.user_attrs.get(VALUES, {}))}",
                    flush=True,
                )
        best = best_trial(study)
        parts = [_at_work(one) for one in running] + ([f"best {number(best.value)}"] if best is not None else [])
        self._progress.update(self._task, completed=len(ended), description=" · ".join(parts))

    def _outcome(self, trial: optuna.trial.FrozenTrial) -> str:
        if trial.state is TrialState.FAIL:
            return f"failed ({trial.user_attrs.get(REASON, 'it was told so')})"
        given_up = f", given up after {len(trial.intermediate_values)} evaluations"
        return f"{self.search.metric} {number(trial.value)}{given_up if trial.state is TrialState.PRUNED else ''}"

    def _values(self, values: Mapping[str, Any]) -> str:
        return "  ".join(
            f"{self.names[name]} {_text(one)}" for name, one in parameters_of(self.search.space, values).items()
        )


def _at_work(one: RunningTrial) -> str:
    seeds, done = one.seeds
    times, last = one.measured
    runs = f" ({done}/{seeds} seeds)" if seeds > 1 else ""
    return f"trial {one.number}{runs}" + (f" {number(last)} after {times}" if last is not None else "")


def print_results(study: optuna.Study, search: Search) -> None:
    """Print the table of the trials, the best first, and the importance of each parameter."""
    table = trials_table(study, search)
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    order = table.sort_values(search.metric, ascending=search.goal == "minimize") if search.metric in table else table
    console.print(_trials(order, search))
    shares = importances(study)
    if not shares:
        print("importance of the parameters: too few complete trials")
        return
    names = short_names(list(search.space.searched))
    caution = " (few trials for so many parameters: a guess)" if is_guess(study) else ""
    told = ", ".join(f"{names[name]} {share:.0%}" for name, share in shares.items())
    print(f"importance of the parameters{caution}: {told}")


def _trials(table: pd.DataFrame, search: Search) -> Table:
    """The table for people: short names, and numbers at a meaningful precision."""
    names = short_names(list(search.space.searched))
    shown = Table(box=None, header_style="bold", pad_edge=False)
    columns = [column for column in table.columns if column != REASON]
    for column in columns:
        shown.add_column(names.get(column, column), justify="left" if column == "state" else "right", overflow="fold")
    for row in table[columns].to_dict("records"):
        shown.add_row(*(_text(row[column]) for column in columns))
    return shown


def _text(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)
