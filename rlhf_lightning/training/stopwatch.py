"""How long parts of the work took, for the columns ``timing/NAME_seconds``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up seconds by name until they are taken."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._queued: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Context of work that is done when it is left."""
        started = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - started)

    @contextmanager
    def timed_on(self, device: torch.device, name: str) -> Iterator[None]:
        """Context of forward passes, which a GPU has only queued when it is left: it tells the time itself."""
        if device.type != "cuda":
            with self.timed(name):
                yield
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._queued.append((name, start, end))

    def take(self) -> dict[str, float]:
        """The columns, and begin anew."""
        for name, start, end in self._queued:
            end.synchronize()
            self.add(name, start.elapsed_time(end) / 1000)
        row = {f"timing/{name}_seconds": seconds for name, seconds in self._seconds.items()}
        self._seconds, self._queued = {}, []
        return row
