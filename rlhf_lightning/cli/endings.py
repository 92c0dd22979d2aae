"""How a command ends: in one line for mistakes, with an exit status for interruptions, and on all ranks."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from rlhf_lightning.callbacks.sigterm import Sigterm
from rlhf_lightning.cli.checks import as_user_error, is_out_of_memory
from rlhf_lightning.errors import UserError
from rlhf_lightning.lightning_seams import callbacks_of, launched_processes, process_rank, translate_restore_errors

LAUNCHED_RANK_PATIENCE = 10.0
"""Seconds for a launched rank to end, when the connection to it broke."""

INTERRUPTED, TERMINATED = 130, 143
"""Exit statuses, as a shell reports these signals."""


class Endings:
    """Ends one command. Lightning alone would exit with status 0 after SIGTERM and leave other ranks waiting."""

    def __init__(self) -> None:
        self._running: Trainer | None = None
        self._checkpoint: Path | None = None

    @contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Listen for SIGTERM."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._terminated)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextmanager
    def of(self, trainer: Trainer, checkpoint: Path | None = None) -> Iterator[None]:
        """Around a call of the trainer.

        Args:
            checkpoint: where the run's last checkpoint would be, from which the same command continues.
        """
        self._running, self._checkpoint = trainer, checkpoint
        translate_restore_errors(trainer, _restore_error)
        try:
            yield
        except SIGTERMException:
            self._stop("stopped by SIGTERM", TERMINATED)
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):
                self._stop("interrupted", INTERRUPTED)
            raise
        except _ONE_LINE as error:
            self._fail(as_user_error(error), error)
        except Exception as error:
            if is_out_of_memory(error):
                self._fail(as_user_error(error), error)
            if type(error).__module__.startswith("wandb."):
                self._fail(UserError(f"W&B: {error}; WANDB_MODE=offline needs no account"), error)
            if isinstance(error, RuntimeError):
                self._blame_launched_rank(error)
            if _raised_by_lightning(error):
                self._fail(UserError(f"trainer: {' '.join(str(error).split()) or type(error).__name__}"), error)
            raise

    def _terminated(self, *_: Any) -> None:
        """Before training, end at once; during it Lightning ends it after the step, and calls this as well."""
        callbacks = [] if self._running is None else callbacks_of(self._running)
        if not any(isinstance(callback, Sigterm) and callback.came for callback in callbacks):
            for process in self._launched_ranks():
                process.kill()
            self._stop("stopped by SIGTERM", TERMINATED)

    def _stop(self, reason: str, status: int) -> NoReturn:
        if process_rank() != 0:
            sys.exit(0)  # rank 0 speaks; another status would make Lightning kill it first
        continues = self._checkpoint is not None and self._checkpoint.is_file()
        print(f"{reason}{'; the same command continues the run' if continues else ''}", file=sys.stderr, flush=True)
        sys.exit(status)

    def _fail(self, error: UserError, cause: BaseException) -> NoReturn:
        """Raise, and end the launched ranks, which would wait for this one in a collective call."""
        for process in self._launched_ranks():
            process.kill()
        raise error from cause

    def _launched_ranks(self) -> list[subprocess.Popen[bytes]]:
        return [] if self._running is None else launched_processes(self._running)

    def _blame_launched_rank(self, error: RuntimeError) -> None:
        """If another rank failed, exit with its status instead of reporting the broken connection."""
        for number, process in enumerate(self._launched_ranks(), start=1):
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(timeout=LAUNCHED_RANK_PATIENCE)
                if status == 2:
                    sys.exit(2)  # it has said why
                if status < 0:
                    name = signal.Signals(-status).name
                    self._fail(UserError(f"rank {number} was ended by {name} (out of memory?)"), error)


_ONE_LINE = (UserError, MisconfigurationException, torch.OutOfMemoryError)
"""What ends in one line wherever it is raised."""


def _raised_by_lightning(error: Exception) -> bool:
    """Whether the trainer, or one of Lightning's callbacks, refuses something; other code has bugs, to be traced."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(lightning.__file__).parent)


def _restore_error(error: Exception) -> Exception:
    """What to raise for an error while a checkpoint's content was put back."""
    if isinstance(error, _ONE_LINE):
        return error
    reason = " ".join(str(error).split())[:300]
    return UserError(f"the checkpoint is not one of this model with these settings: {reason}")
