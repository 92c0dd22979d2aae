"""Timing several ways to do the same work, in turn, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timings:
    """Seconds that each way took, by round."""

    seconds: Mapping[str, list[float]]

    def median(self, way: str) -> float:
        """Median seconds of one way."""
        return statistics.median(self.seconds[way])

    def ratios(self, way: str, to: str) -> list[float]:
        """How many times as long as another a way takes, within each round, smallest first."""
        return sorted(a / b for a, b in zip(self.seconds[way], self.seconds[to], strict=True))


def timed_in_turn(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Timings:
    """Run each way once per round, after a first round that does not count.

    Args:
        track: shows how many rounds are done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in track(range(rounds + 1)):
        for name, run in ways.items():
            took = seconds_of(run)
            if number:
                seconds[name].append(took)
    return Timings(seconds)


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds of one call, with whatever it left for a GPU to do."""
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
