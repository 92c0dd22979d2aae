"""What the drills put into a run: marks of what it is doing, and the faults.

A run's configuration names these parts; whether one of them fails, and where, is said by the environment, so that the
run that goes on afterwards has the same configuration.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from rlhf_lightning.callbacks.listener import Listener

FAULT = "DRILL_FAULT"
"""Environment variable ``KIND:ITERATION``: what fails, and when."""

_now = {"iteration": 0}


def due(kind: str) -> bool:
    """Whether this fault was asked for, and its iteration has come."""
    wanted, _, iteration = os.environ.get(FAULT, "").partition(":")
    return wanted == kind and _now["iteration"] >= int(iteration)


class Marks(Listener):
    """Appends what begins to a file beside the run directory, ``NAME.marks``: time, phase and iteration."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The run directory is being written."""
        self._mark(trainer, "start")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Responses are collected."""
        _now["iteration"] = trainer.current_epoch + 1
        self._mark(trainer, "rollout")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """The policy is updated."""
        if trainer.max_steps >= 0:
            _now["iteration"] = trainer.global_step + 1
        self._mark(trainer, "update")
        if due("data truncated"):
            path = Path("words.jsonl")
            os.truncate(path, path.stat().st_size // 2)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """The iteration is evaluated, and its row is written."""
        self._mark(trainer, "evaluation")

    def on_row(self, trainer: Trainer, module: LightningModule, row: Mapping[str, float]) -> None:
        """A disk may be full from here on."""
        if due("disk full, metrics"):
            self._fill(Path(trainer.default_root_dir, "metrics.csv"))

    def on_samples(self, trainer: Trainer, module: LightningModule, samples: Sequence[Mapping[str, Any]]) -> None:
        """A disk may be full from here on."""
        if due("disk full, samples"):
            self._fill(Path(trainer.default_root_dir, "samples.jsonl"))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is written."""
        self._mark(trainer, "checkpoint")
        if due("disk full, checkpoint"):
            _limit(4096)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The networks are exported."""
        self._mark(trainer, "export")
        if due("disk full, export"):
            _limit(100)

    @staticmethod
    def _fill(path: Path) -> None:
        _limit(path.stat().st_size + 100 if path.exists() else 100)

    @staticmethod
    def _mark(trainer: Trainer, phase: str) -> None:
        with contextlib.suppress(OSError), open(f"{trainer.default_root_dir}.marks", "a") as file:
            print(time.monotonic(), phase, _now["iteration"], file=file)


def _limit(size: int) -> None:
    """No file can grow beyond this size, in bytes: as on a full disk, writing fails after a part."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class FailingLogger(DummyLogger):
    """A tracker whose server goes away."""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Fail from the given iteration on."""
        if due("logger raises"):
            raise ConnectionError("503 Service Unavailable")


def reward(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """A little more for each letter; raises, hangs or returns NaN when it is asked to."""
    if due("reward raises"):
        raise ZeroDivisionError("no words to divide by")
    if due("reward hangs"):
        time.sleep(3600)
    if due("reward returns NaN"):
        return [math.nan, *(0.0 for _ in responses[1:])]
    return [len(response) - 0.1 * len(response) ** 2 for response in responses]
