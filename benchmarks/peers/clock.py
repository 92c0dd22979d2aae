"""Seconds of an iteration of this package, as a run with its files does it."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from lightning.pytorch import Callback

from rlhf_lightning import train


class Clock(Callback):
    """The time at which each iteration, or each step, begins."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Look at the clock."""
        self.times.append(time.perf_counter())


def seconds_of_iteration(times: list[float]) -> float:
    """Mean time from the second beginning to the last: whatever happens once is left out."""
    return (times[-1] - times[1]) / (len(times) - 2)


def run_of_ours(model: Any, data: Any, **length: Any) -> float:
    """Seconds of an iteration of ``train`` with everything that it writes."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        train(model, data, name="run", callbacks=[clock], runs_dir=folder, progress_bar=False, **length)
    return seconds_of_iteration(clock.times)
