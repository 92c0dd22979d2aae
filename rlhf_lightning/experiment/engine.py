"""Run a comparison: its tuning, then its arms; what is done is never repeated, what was interrupted goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlhf_lightning.experiment.comparison import ArmComparison
from rlhf_lightning.experiment.plan import PlannedRun, all_stages
from rlhf_lightning.experiment.progress import Board
from rlhf_lightning.pipeline.processes import command_line, failed_before
from rlhf_lightning.pipeline.schedule import Launcher, LocalLauncher, StageSchedule
from rlhf_lightning.pipeline.stages import Stage
from rlhf_lightning.records.run_directory import DONE, STAGE


def local_launcher(jobs: int) -> LocalLauncher:
    """Processes of this machine that share its cores, each with a log beside its directory."""
    return LocalLauncher(jobs, log_of)


def log_of(stage: Stage) -> Path:
    """Where the output of a stage goes: beside its directory, which may be replaced."""
    return stage.directory.with_name(f"{stage.directory.name}.log")


def run(comparison: ArmComparison, launcher: Launcher, console: Console, *, jobs: int, retry: bool = False) -> bool:
    """Declare the comparison, and run what is not done yet, until nothing is left; returns whether all has finished.

    Args:
        jobs: how many stages run at a time.
        retry: try again what has failed before.

    Raises:
        UserError: no run has logged what is measured, or the tuning of an arm has found nothing.
    """
    comparison.declare()
    if not comparison.is_tuned():
        tried = _next_runs(comparison)
        console.print(f"tuning: {len(tried)} runs before those of the result", highlight=False)
        _run(comparison, tried, launcher, console, jobs=jobs, retry=retry)
    return _run(comparison, comparison.planned_runs(), launcher, console, jobs=jobs, retry=retry)


def _run(
    comparison: ArmComparison,
    runs: Sequence[PlannedRun],
    launcher: Launcher,
    console: Console,
    *,
    jobs: int,
    retry: bool,
) -> bool:
    skip = (lambda stage: None) if retry else failed_before
    schedule = StageSchedule(all_stages(runs), launcher, jobs=jobs, skip=skip)
    with Board(comparison.experiment, runs, console, jobs=jobs) as board:
        schedule.run(board.look)
    return all(one.state == "finished" for one in schedule.progress.values())


def first_lines(comparison: ArmComparison) -> list[tuple[str, list[str]]]:
    """The ``fit`` commands of the first run of each arm and task that have not been started, with the arm's place."""
    first_runs = _next_runs(comparison)
    first = {(run.arm, run.task, run.directory.name): run for run in reversed(first_runs)}
    return [
        (f"arms.{run.arm}", stage.command[1:])
        for run in reversed(first.values())
        for stage in run.stages
        if stage.command[0] == "fit" and not (stage.directory / STAGE).exists()
    ]


def commands(comparison: ArmComparison) -> list[str]:
    """The command lines of what is not done yet, in an order in which they can be run.

    Where the tuning has not ended these are those of the tuning: what comes after depends on it.
    """
    return [
        command_line(stage.command)
        for stage in all_stages(_next_runs(comparison))
        if not (stage.directory / DONE).is_file()
    ]


def _next_runs(comparison: ArmComparison) -> list[PlannedRun]:
    """The runs of the tuning until it has ended, and then those of the arms."""
    if comparison.is_tuned():
        return comparison.planned_runs()
    return [run for trial in comparison.tuning_trials(comparison.arms) for run in trial.runs]
