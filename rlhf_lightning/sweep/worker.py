"""A worker: runs the trials of a search, several processes at a time, and gives up those that fall behind."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import optuna
from optuna.trial import TrialState

from rlhf_lightning.errors import UserError
from rlhf_lightning.pipeline.processes import StageBusyError, StageProcess, share_of_threads, start_stage, stop_together
from rlhf_lightning.pipeline.stages import Stage
from rlhf_lightning.records.runs import logged
from rlhf_lightning.sweep.search import Search
from rlhf_lightning.sweep.study import SCORES, VALUES, Trials

POLL = 1.0
"""Seconds between two looks at what runs."""

MakeStages: TypeAlias = Callable[[int, Mapping[str, Any]], Sequence[Stage]]
"""The runs of a trial by its number and its values: one for each seed, the same seeds in every trial."""


@dataclass(frozen=True)
class RunningTrial:
    """A trial that a worker has begun.

    Args:
        seeds: number of its runs, and of those that are done.
        measured: how often its first run has logged the metric, and the last value.
    """

    number: int
    values: Mapping[str, Any]
    seeds: tuple[int, int]
    measured: tuple[int, float | None]


def run_trials(
    folder: Path,
    search: Search,
    stages: MakeStages,
    *,
    count: int,
    jobs: int = 1,
    environment: Mapping[str, str] | None = None,
    observe: Callable[[optuna.Study, Sequence[RunningTrial]], None] = lambda study, running: None,
    poll: float = POLL,
) -> optuna.Study:
    """Run the trials of a search until all have ended, beside any other workers on the same folder.

    What an earlier worker left is continued, and what has ended is not repeated. The value of a trial is the last one
    of the metric, in the mean over its seeds. Early termination judges a trial by its first seed, which all have in
    common, and the other seeds of a trial are run where it has not given up the first.

    Args:
        folder: of the search; that of its study, and of the output of its runs.
        count: the number of trials in all.
        jobs: runs at a time, among which this worker shares out its processors.
        environment: further variables of the runs.
        observe: hears what goes on, after each look at it.
        poll: seconds between two looks.

    Raises:
        UserError: the study cannot be read or written.
        KeyboardInterrupt: as it came, after the runs have been stopped; the same call continues them.
    """
    trials = Trials(folder, search, count)
    variables = {**share_of_threads(jobs), **(environment or {})}
    active: list[_Active] = []
    try:
        while True:
            _begin(trials, active, stages, jobs)
            for one in _in_order(active):
                free = jobs - sum(len(other.processes) for other in active)
                one.advance(free, variables, folder / "logs")
            active = [one for one in active if not one.ended]
            observe(trials.study, [one.state() for one in active])
            if not active and trials.unfinished() <= 0:
                return trials.study
            time.sleep(poll)
    finally:
        stop_together([process for one in active for process in one.processes.values()])
        trials.release()


def _begin(trials: Trials, active: list[_Active], stages: MakeStages, jobs: int) -> None:
    """Take trials while there are fewer runs to start than may run at a time."""
    while sum(one.wanted() for one in active) < jobs and (trial := trials.next()) is not None:
        values = trial.user_attrs[VALUES]
        active.append(_Active(trials, trial, stages(trial.number, values)))


def _in_order(active: Sequence[_Active]) -> list[_Active]:
    """Those that have run for longest first: a trial is finished before another is begun."""
    return sorted(active, key=lambda one: one.trial.number)


class _Active:
    """A trial that this worker runs.

    Args:
        stages: its runs.
    """

    def __init__(self, trials: Trials, trial: optuna.Trial, stages: Sequence[Stage]) -> None:
        self.trials, self.trial, self.stages = trials, trial, stages
        self.search = trials.search
        self.processes: dict[int, StageProcess] = {}
        self.waiting = deque(range(len(stages)))
        self.done: set[int] = set()
        self.ended = False
        self.judged = len(trials.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        self.values: list[float] = []

    def wanted(self) -> int:
        """Number of runs that it has or could have at this moment."""
        return len(self.processes) + self._startable()

    def _startable(self) -> int:
        """Number of runs that may be started: further ones wait for the first, by which early termination judges."""
        if self.search.halving is None or 0 in self.done:
            return len(self.waiting)
        return 1 if 0 in self.waiting else 0

    def advance(self, free: int, environment: Mapping[str, str], logs: Path) -> None:
        """Start runs, look at those that have begun, and tell how the trial ends.

        Args:
            free: number of runs that may be started.
        """
        while min(free, self._startable()) > 0 and self._start(self.waiting[0], environment, logs):
            free -= self.waiting.popleft() in self.processes
        for seed, process in list(self.processes.items()):
            status = process.poll()
            if status is not None:
                del self.processes[seed]
                self.done.add(seed)
                if status:
                    self._end(TrialState.FAIL, reason=f"{self.stages[seed].name} ended with status {status}")
                    return
        if self._falls_behind():
            self._end(TrialState.PRUNED)
        elif len(self.done) == len(self.stages):
            self._measure()

    def _start(self, seed: int, environment: Mapping[str, str], logs: Path) -> bool:
        """Start or continue a run; returns whether it runs, or has run already.

        One that a worker has left may still be running: it is waited for.
        """
        stage = self.stages[seed]
        try:
            process = start_stage(stage, log=logs / f"{stage.name}.log", environment=environment)
        except StageBusyError:
            return False
        except UserError as error:
            self._end(TrialState.FAIL, reason=str(error))
            return False
        if process is None:
            self.done.add(seed)
        else:
            self.processes[seed] = process
        return True

    def _falls_behind(self) -> bool:
        """Whether the first run, as far as it has come, is not among those that go on."""
        if self.search.halving is None or self.ended or 0 in self.done:
            return False
        self.values = self._logged(0)
        while self.judged < len(self.values):
            self.trial.report(self.values[self.judged], self.judged)
            self.judged += 1
            if self.trial.should_prune():
                return True
        return False

    def _measure(self) -> None:
        """The last value of the metric, in the mean over the seeds."""
        scores = [self._logged(seed)[-1:] for seed in range(len(self.stages))]
        missing = next((self.stages[seed].name for seed, score in enumerate(scores) if not score), None)
        if missing is not None:
            self._end(TrialState.FAIL, reason=f"{missing} logged no finite {self.search.metric}")
            return
        values = [score[0] for score in scores]
        self._end(TrialState.COMPLETE, fmean(values), **{SCORES: values})

    def _logged(self, seed: int) -> list[float]:
        return logged(self.stages[seed].directory, self.search.metric)

    def _end(self, state: TrialState, value: float | None = None, **notes: Any) -> None:
        stop_together(self.processes.values())
        self.processes.clear()
        if self.ended:
            return
        self.ended = True
        self.trials.tell(self.trial.number, state, value, **notes)

    def state(self) -> RunningTrial:
        """What is to be shown of it."""
        values = self.values or (self._logged(0) if 0 not in self.waiting else [])
        last = values[-1] if values else None
        seeds = (len(self.stages), len(self.done))
        return RunningTrial(self.trial.number, self.trial.user_attrs[VALUES], seeds, (len(values), last))
