"""Stages as jobs of SLURM, through submitit: those that can start at the same time are one job array."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.pipeline.processes import INTERRUPTED, StageBusyError, is_done, start_stage
from rlhf_lightning.pipeline.stages import Stage

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job
    from submitit.helpers import DelayedSubmission

_PAUSE = 10.0
"""Seconds between two looks at a stage that another job is making."""


@dataclass
class MakeStage:
    """What a job does: make a stage, or continue it; gives its exit status.

    A job that meets its time limit, or is preempted, saves and is queued again, and then continues.
    """

    stage: Stage
    log: Path

    def __call__(self) -> int:
        """Run the stage to its end."""
        while True:
            try:
                process = start_stage(self.stage, log=self.log, same_code=False)
            except StageBusyError:  # made by a job of an earlier call
                time.sleep(_PAUSE)
            except UserError as error:
                with open(self.log, "a", encoding="utf-8") as log:
                    print(f"error: {error}", file=log)
                return 2
            else:
                return 0 if process is None else process.wait()

    def checkpoint(self) -> DelayedSubmission:
        """What is queued in the place of this job when its time is over."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SubmittedStage:
    """A stage that was submitted."""

    def __init__(self, job: Job[int]) -> None:
        self._job = job

    def poll(self) -> int | None:
        """Exit status; None while it waits or runs. A job that was cancelled or lost was interrupted."""
        if not self._job.done():
            return None
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            return self._job.result()
        except FailedJobError:
            return 1
        except UncompletedJobError:
            return min(INTERRUPTED)

    def terminate(self) -> None:
        """Leave it be: jobs outlive whoever submitted them, and the same command finds them again."""

    stop = terminate


class SubmititLauncher:
    """Submits stages to a cluster.

    Args:
        folder: for what submitit notes of its jobs, on a disk that all machines share.
        cluster: ``slurm``, or ``local`` or ``debug`` to try it without one.
        parameters: of the jobs, as submitit names them, such as ``timeout_min`` and ``slurm_partition``.
        log: where the output of a stage goes.

    Raises:
        UserError: submitit is not installed, there is no such cluster, or a parameter is unknown.
    """

    def __init__(self, folder: Path, cluster: str, parameters: Mapping[str, Any], log: Callable[[Stage], Path]) -> None:
        try:
            import submitit
        except ModuleNotFoundError:
            raise UserError("--launcher slurm needs submitit: pip install 'rlhf-lightning[slurm]'") from None
        self._log = log
        try:
            self._executor: AutoExecutor = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
            self._executor.update_parameters(**parameters)
        except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
            raise UserError(f"--launcher {cluster}: {' '.join(str(error).split())}") from None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around stages that are started at the same time: they are one array."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No submission happened")  # all of them were done already
            with self._executor.batch():
                yield

    def start(self, stage: Stage) -> SubmittedStage | None:
        """Submit a stage; None if it is done already."""
        if is_done(stage, same_code=False):
            return None
        self._log(stage).parent.mkdir(parents=True, exist_ok=True)
        return SubmittedStage(self._executor.submit(MakeStage(stage, self._log(stage))))
