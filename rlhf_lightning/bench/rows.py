"""What is measured, as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from rlhf_lightning.bench.decoding import NEW_TOKENS, PROMPTS, SAMPLES, noise_timings, rollout_timings
from rlhf_lightning.bench.models import SIZES, Size
from rlhf_lightning.bench.timing import Timings
from rlhf_lightning.bench.updates import LENGTH, LONG, ROWS, peak_memory, update_timings


class ShowsRounds(Protocol):
    """Shows how far a loop is, such as `cli.arguments.track`."""

    def __call__(self, items: Sequence[int], what: str) -> Iterable[int]:
        """The items, one after another."""
        ...


VOCABULARIES = (512, 50_257, 150_000)
WIDTH = 256
_ENDS = 16
"""Of 512 tokens, how many end a response where lengths vary: half of `NEW_TOKENS` on average."""


@dataclass(frozen=True)
class BenchRow:
    """One piece of work that was done in several ways.

    Args:
        ours: the way that the package takes.
    """

    work: str
    timings: Timings
    ours: str

    def cells(self) -> Iterator[list[str]]:
        """A line for each way: work, way, median time, and how many times as long as ours, with its range."""
        for way in self.timings.seconds:
            ratios = self.timings.ratios(way, to=self.ours)
            middle = ratios[len(ratios) // 2]
            ratio = "" if way == self.ours else f"{middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            yield [self.work, way, _time(self.timings.median(way)), ratio]


@dataclass(frozen=True)
class MemoryRow:
    """Bytes that one piece of work needs at most, by way.

    Args:
        ours: the way that the package takes.
    """

    work: str
    peaks: Mapping[str, float]
    ours: str

    def cells(self) -> Iterator[list[str]]:
        """A line for each way: work, way, memory, and how many times as much as ours."""
        for way, peak in self.peaks.items():
            ratio = "" if way == self.ours else f"{peak / self.peaks[self.ours]:.2f}"
            yield [self.work, way, f"{peak / 1e6:,.0f} MB", ratio]


def decoding_rows(device: torch.device, rounds: int, track: ShowsRounds) -> Iterator[BenchRow]:
    """Rollouts of models of every size, of full and of varying length."""
    for name, size in SIZES.items():
        for ends, lengths in ((0, f"{NEW_TOKENS} tokens"), (_ENDS, f"up to {NEW_TOKENS} tokens")):
            work = f"{PROMPTS * SAMPLES} responses of {lengths} to {PROMPTS} prompts: {name}"
            timings = rollout_timings(size, device, rounds, ends=ends, track=partial(track, what=work))
            yield BenchRow(work, timings, ours="fast")


def noise_rows(device: torch.device, rounds: int, track: ShowsRounds) -> Iterator[BenchRow]:
    """Drawing a token for each of 64 responses."""
    for vocabulary in VOCABULARIES:
        work = f"one token for each of 64 responses of {vocabulary:,}"
        yield BenchRow(work, noise_timings(vocabulary, device, rounds), ours="noise that matters")


def update_rows(device: torch.device, rounds: int, track: ShowsRounds) -> Iterator[BenchRow]:
    """Gradients on responses of full and of varying length."""
    for name, size in SIZES.items():
        for least, lengths in ((LENGTH, f"{LENGTH} tokens"), (1, f"1 to {LENGTH} tokens")):
            work = f"gradient on {PROMPTS * SAMPLES} responses of {lengths} to {PROMPTS} prompts: {name}"
            timings = update_timings(size, device, rounds, least=least, track=partial(track, what=work))
            yield BenchRow(work, timings, ours="end to end")


def memory_rows(device: torch.device, rounds: int, track: ShowsRounds) -> Iterator[MemoryRow]:
    """Gradients with large vocabularies."""
    for vocabulary in track(VOCABULARIES[1:], "memory"):
        work = f"gradient on {ROWS} responses of {LONG} tokens out of {vocabulary:,}: {WIDTH} wide, 4 layers"
        size = Size("gpt2", width=WIDTH, layers=4, heads=4, vocabulary=vocabulary)
        yield MemoryRow(work, peak_memory(size, device), ours="in chunks")


PARTS: Mapping[str, Callable[[torch.device, int, ShowsRounds], Iterator[BenchRow | MemoryRow]]] = {
    "decoding": decoding_rows,
    "noise": noise_rows,
    "updates": update_rows,
    "memory": memory_rows,
}
"""What can be measured, by name."""


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
