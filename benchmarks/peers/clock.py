"""Seconds of an iteration of this package, as a run with its files does it."""

from __future__ import annotations

import tempfile
from typing import Any

from rlhf_lightning import train
from rlhf_lightning.bench.iteration import Clock


def seconds_of_iteration(times: list[float]) -> float:
    """Mean time from the second beginning to the last: whatever happens once is left out."""
    return (times[-1] - times[1]) / (len(times) - 2)


def run_of_ours(model: Any, data: Any, **length: Any) -> float:
    """Seconds of an iteration of ``train`` with everything that it writes."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        train(model, data, name="run", callbacks=[clock], runs_dir=folder, progress_bar=False, **length)
    return seconds_of_iteration(clock.times)
