"""What is measured, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from rlhf_lightning.bench.decoding import NEW_TOKENS, PROMPTS, SAMPLES, noise_timings, rollout_timings
from rlhf_lightning.bench.models import SIZES
from rlhf_lightning.bench.timing import Timings


class ShowsRounds(Protocol):
    """Shows how far a loop is, such as `cli.arguments.track`."""

    def __call__(self, items: Sequence[int], what: str) -> Iterable[int]:
        """The items, one after another."""
        ...


VOCABULARIES = (512, 50_257, 150_000)
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


PARTS = {"decoding": decoding_rows, "noise": noise_rows}
"""What can be measured, by name."""


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
