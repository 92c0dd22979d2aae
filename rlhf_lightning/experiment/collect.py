"""What the runs of a comparison have measured: one row per run, read from their directories alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_lightning.experiment.measures import check_logged
from rlhf_lightning.experiment.plan import PlannedRun
from rlhf_lightning.experiment.spec import PRIMARY, UNITS, Experiment
from rlhf_lightning.experiment.statistics.scores import FINISHED
from rlhf_lightning.pipeline.processes import failed_before, seconds_of
from rlhf_lightning.pipeline.stages import Stage
from rlhf_lightning.plots.measures import experience
from rlhf_lightning.records.run_directory import DONE
from rlhf_lightning.records.runs import Run, load_run

FAILED, MISSING = "failed", "not run"
"""How runs stand that have not finished."""

TOLERANCE = 0.02
"""Share by which the budgets of runs may differ and are still equal: the last batch of one may be larger."""


def runs_table(experiment: Experiment, planned: Sequence[PlannedRun]) -> pd.DataFrame:
    """One row per run: what it was, how it ended, what it measured and what it used.

    Columns: ``arm``, ``task``, ``seed``, ``status`` (``finished``, ``failed``, ``not run``), one per measure (NaN where
    a run has none), ``used`` and ``unit`` (of the experience that it learned from), ``seconds``, ``note``,
    ``directory``, ``started`` (when), ``commit``, ``versions``, ``hardware`` and ``command``.

    Raises:
        UserError: no run has logged a metric that is measured.
    """
    read = _Reader()
    finished = {one.directory: read(one) for one in planned if (one.directory / DONE).is_file()}
    if finished:
        check_logged(experiment.measures.values(), finished.values())
    return pd.DataFrame([_row(experiment, one, finished.get(one.directory)) for one in planned])


class _Reader:
    """Reads runs with the stages before them, each directory once."""

    def __init__(self) -> None:
        self._known: dict[Path, Run] = {}

    def __call__(self, planned: PlannedRun) -> Run:
        """The measured run, with what was trained before it as its stages."""
        before = {stage.directory.name: self._load(stage) for stage in planned.stages[:-1] if stage.command[0] == "fit"}
        return replace(self._load(planned.stages[-1]), stages=before)

    def _load(self, stage: Stage) -> Run:
        if stage.directory not in self._known:
            self._known[stage.directory] = load_run(stage.directory)
        return self._known[stage.directory]


def _row(experiment: Experiment, planned: PlannedRun, run: Run | None) -> dict[str, Any]:
    status, notes = _status(planned)
    found = {name: measure.read(run) for name, measure in experiment.measures.items()} if run is not None else {}
    notes += [text for one in found.values() for text in (one.missing, one.note) if text]
    used = experience(run) if run is not None else None
    seconds = seconds_of(planned.stages[-1])
    environment = {} if run is None else run.environment
    return {
        "arm": planned.arm,
        "task": planned.task,
        "seed": planned.seed,
        "status": status,
        **{name: found[name].value if name in found else math.nan for name in experiment.measures},
        "used": math.nan if used is None else float(used.count.max()),
        "unit": "" if used is None else used.unit,
        "seconds": math.nan if seconds is None else seconds,
        "note": "; ".join(dict.fromkeys(notes)),
        "directory": str(planned.directory),
        "started": environment.get("started", ""),
        "commit": environment.get("git_commit") or "",
        "versions": ", ".join(f"{name} {text}" for name, text in (environment.get("versions") or {}).items() if text),
        "hardware": _hardware(environment.get("hardware") or {}),
        "command": environment.get("command", ""),
    }


def _hardware(found: Mapping[str, Any]) -> str:
    """Processors and graphics cards in words; empty where nothing is known."""
    if not found:
        return ""
    cards = [f"{count} × {name}" for name, count in Counter(found.get("gpus") or []).items()]
    return ", ".join([f"{found.get('cpus')} CPUs ({found.get('processor')})", *cards])


def _status(planned: PlannedRun) -> tuple[str, list[str]]:
    """How a run stands, and why if it failed."""
    if (planned.directory / DONE).is_file():
        return FINISHED, []
    for stage in planned.stages:
        if (status := failed_before(stage)) is not None:
            return FAILED, [f"{stage.directory.name} ended with status {status}"]
    return MISSING, []


def scores(experiment: Experiment, runs: pd.DataFrame) -> pd.DataFrame:
    """The table that claims are judged by: runs that finished or failed, groups as arms, tasks on one scale.

    On several tasks the primary measure is rescaled, so that the scale of each goes from 0 to 1. A group has the mean
    of its members for each seed and task, and fails where one of them does.
    """
    table = runs[runs["status"] != MISSING].copy()
    for task in experiment.tasks:
        if task.name:
            mine = table["task"] == task.name
            low, high = task.scale
            table.loc[mine, PRIMARY] = (table.loc[mine, PRIMARY] - low) / (high - low)
    return pd.concat([table, *_groups(experiment, table)], ignore_index=True)


def _groups(experiment: Experiment, table: pd.DataFrame) -> list[pd.DataFrame]:
    found = []
    for name, members in experiment.groups.items():
        mine = table[table["arm"].isin(members)]
        means = mine.groupby(["task", "seed"], as_index=False)[list(experiment.measures)].mean()
        count = mine.groupby(["task", "seed"])["arm"].transform("count")
        complete = mine[count == len(members)]
        status = complete.groupby(["task", "seed"])["status"].agg(lambda all_of: _together(all_of)).reset_index()
        found.append(means.merge(status, on=["task", "seed"]).assign(arm=name))
    return found


def _together(status: pd.Series) -> str:
    return FINISHED if (status == FINISHED).all() else FAILED


def unequal(experiment: Experiment, runs: pd.DataFrame) -> str:
    """How the budgets of finished runs differ; empty where they are equal, or are not to be."""
    if experiment.equal is None:
        return ""
    column = "seconds" if experiment.equal == "seconds" else "used"
    used = runs[runs["status"] == FINISHED].groupby("arm")[column].median()
    if used.empty or used.max() <= (1 + TOLERANCE) * used.min():
        return ""
    least, most = used.idxmin(), used.idxmax()
    return f"{least} used {used[least]:,.0f} {UNITS[experiment.equal]}, {most} {used[most]:,.0f}"
