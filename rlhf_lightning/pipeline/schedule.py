"""Run many stages, several at a time, each when what it reads is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from rlhf_lightning.errors import UserError
from rlhf_lightning.pipeline.processes import (
    INTERRUPTED,
    StageBusyError,
    Stoppable,
    share_of_threads,
    start_stage,
    stop_together,
)
from rlhf_lightning.pipeline.stages import Stage

State: TypeAlias = Literal["waiting", "running", "elsewhere", "finished", "failed", "interrupted", "left out"]
"""``elsewhere``: another process is making it; ``left out``: something that it reads could not be made."""

PAUSE = 0.2
"""Seconds between two looks at what runs."""


class Running(Stoppable, Protocol):
    """A stage that was started."""

    def poll(self) -> int | None:
        """Exit status; None while it runs."""


class Launcher(Protocol):
    """Starts stages, on this machine or on others."""

    def together(self) -> AbstractContextManager[None]:
        """Around stages that are started at the same time, such as an array of jobs."""

    def start(self, stage: Stage) -> Running | None:
        """Start or continue a stage; None if it is done already.

        Raises:
            StageBusyError: another process is making it.
            UserError: it cannot be started.
        """


@dataclass
class LocalLauncher:
    """Stages as processes of this machine, the output of each in a file.

    Args:
        jobs: how many run at a time, and share the cores.
        log: where the output of a stage goes.
    """

    jobs: int
    log: Callable[[Stage], Path]

    def together(self) -> AbstractContextManager[None]:
        """Processes need nothing around them."""
        return nullcontext()

    def start(self, stage: Stage) -> Running | None:
        """See `Launcher`."""
        return start_stage(stage, log=self.log(stage), environment=share_of_threads(self.jobs), same_code=False)


@dataclass
class StageProgress:
    """How far a stage is.

    Args:
        status: exit status, of one that failed.
        reason: why it could not be started, or what is missing; empty otherwise.
        started: when it was started; None if it was not.
        seconds: how long it took, once it has ended.
    """

    stage: Stage
    state: State = "waiting"
    status: int = 0
    reason: str = ""
    started: float | None = None
    seconds: float | None = None


class StageSchedule:
    """Stages in the order in which they are started, and how far each is.

    Args:
        stages: by directory once; a stage stands after those that make what it reads.
        jobs: how many run at a time.
        skip: the exit status with which a stage failed before and that keeps it from being tried again; None for
            none.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        launcher: Launcher,
        *,
        jobs: int,
        skip: Callable[[Stage], int | None] = lambda stage: None,
    ) -> None:
        self.progress = {stage.directory: StageProgress(stage) for stage in stages}
        self._makers = {stage.makes: stage.directory for stage in stages}
        self._launcher, self._jobs, self._skip = launcher, jobs, skip
        self._running: dict[Path, Running] = {}

    def run(self, look: Callable[[Mapping[Path, StageProgress]], None] = lambda progress: None) -> None:
        """Run them all to their ends; what runs when an exception comes, such as Ctrl-C, is stopped first.

        Args:
            look: is shown all progress, again and again.
        """
        try:
            while any(one.state in ("waiting", "running", "elsewhere") for one in self.progress.values()):
                self._advance()
                look(self.progress)
                time.sleep(PAUSE)
        finally:
            self._stop()

    def _advance(self) -> None:
        for directory, running in list(self._running.items()):
            if (status := running.poll()) is not None:
                del self._running[directory]
                self._ended(self.progress[directory], status)
        ready = [one for one in self.progress.values() if one.state in ("waiting", "elsewhere") and self._ready(one)]
        if ready and len(self._running) < self._jobs:
            with self._launcher.together():
                for one in ready:
                    if len(self._running) < self._jobs:
                        self._start(one)

    def _ready(self, one: StageProgress) -> bool:
        """Whether what a stage reads is there; one that will never be is left out."""
        makers = [self.progress[self._makers[path]] for path in one.stage.inputs.values() if path in self._makers]
        missing = [maker for maker in makers if maker.state in ("failed", "interrupted", "left out")]
        if missing:
            one.state, one.reason = "left out", f"{missing[0].stage.directory} could not be made"
            return False
        return all(maker.state == "finished" for maker in makers)

    def _start(self, one: StageProgress) -> None:
        if (status := self._skip(one.stage)) is not None:
            one.state, one.status = "failed", status
            return
        try:
            running = self._launcher.start(one.stage)
        except StageBusyError:
            one.state = "elsewhere"
        except UserError as error:
            one.state, one.status, one.reason = "failed", 2, str(error)
        else:
            if running is None:
                one.state = "finished"
            else:
                one.state, one.started = "running", time.monotonic()
                self._running[one.stage.directory] = running

    def _ended(self, one: StageProgress, status: int) -> None:
        one.status, one.seconds = status, time.monotonic() - (one.started or 0.0)
        one.state = "finished" if status == 0 else "interrupted" if status in INTERRUPTED else "failed"

    def _stop(self) -> None:
        stop_together(self._running.values())
        for directory in self._running:
            self.progress[directory].state = "interrupted"
        self._running.clear()
