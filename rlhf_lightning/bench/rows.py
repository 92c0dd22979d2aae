"""What is measured, as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Protocol

import torch

from rlhf_lightning.bench.decoding import noise_timings, rollout, rollout_timings
from rlhf_lightning.bench.iteration import Stages, stages_of_iterations
from rlhf_lightning.bench.limits import step_bytes, update_operations
from rlhf_lightning.bench.machine import bandwidth, matrix_rate
from rlhf_lightning.bench.models import Shape, Size, workload
from rlhf_lightning.bench.timing import Timings, timed_in_turn
from rlhf_lightning.bench.updates import LONG, peak_memory, update, update_timings


class ShowsRounds(Protocol):
    """Shows how far a loop is, such as `cli.arguments.track`."""

    def __call__(self, items: Sequence[int], what: str) -> Iterable[int]:
        """The items, one after another."""
        ...


class BenchTableRow(Protocol):
    """What was measured."""

    @property
    def work(self) -> str:
        """What was done."""
        ...

    def cells(self) -> Iterator[list[str]]:
        """Lines of a table: work, way, amount, and how it compares."""
        ...


VOCABULARIES = (512, 50_257, 150_000)
WIDTH = 256


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
            ratio = "" if way == self.ours else f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            yield [self.work, way, _time(self.timings.median(way)), ratio]


@dataclass(frozen=True)
class StagesRow:
    """Where the time of an iteration goes."""

    work: str
    stages: Stages

    def cells(self) -> Iterator[list[str]]:
        """A line for each stage: work, stage, median time, and its share of the iteration."""
        whole = self.stages.whole
        yield [self.work, "iteration", _time(whole), ""]
        parts = {**self.stages.stages, "Lightning, metrics, files": self.stages.besides}
        for stage, seconds in parts.items():
            yield [self.work, stage, _time(seconds), f"{seconds / whole:.1%} of the iteration"]


@dataclass(frozen=True)
class LimitRow:
    """How much of what the machine can do one piece of work uses.

    Args:
        rate: operations, or bytes, per second.
        limit: of the machine, as it was measured.
        unit: such as GFLOP/s, in which both are shown.
    """

    work: str
    seconds: float
    rate: float
    limit: float
    unit: str

    def cells(self) -> Iterator[list[str]]:
        """One line: work, rate, time, and the share of the limit."""
        rate = f"{self.rate / 1e9:,.1f} {self.unit}"
        yield [self.work, rate, _time(self.seconds), f"{self.rate / self.limit:.0%} of the machine's"]


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
    sizes, shape = workload(device)
    for name, size in sizes.items():
        for ends, lengths in ((0, f"{shape.length} tokens"), (shape.ends(size), f"up to {shape.length} tokens")):
            work = f"{shape.responses} responses of {lengths} to {shape.prompts} prompts: {name}"
            timings = rollout_timings(size, shape, device, rounds, ends=ends, track=partial(track, what=work))
            yield BenchRow(work, timings, ours="fast")


def noise_rows(device: torch.device, rounds: int, track: ShowsRounds) -> Iterator[BenchRow]:
    """Drawing a token for each of 64 responses."""
    for vocabulary in VOCABULARIES:
        work = f"one token for each of 64 responses of {vocabulary:,}"
        yield BenchRow(work, noise_timings(vocabulary, device, rounds), ours="noise that matters")


def update_rows(device: torch.device, rounds: int, track: ShowsRounds) -> Iterator[BenchRow]:
    """Gradients on responses of full and of varying length."""
    sizes, shape = workload(device)
    for name, size in sizes.items():
        for least, lengths in ((shape.length, f"{shape.length} tokens"), (1, f"1 to {shape.length} tokens")):
            work = f"gradient on {shape.responses} responses of {lengths} to {shape.prompts} prompts: {name}"
            timings = update_timings(size, shape, device, rounds, least=least, track=partial(track, what=work))
            yield BenchRow(work, timings, ours="end to end")


def stages_rows(device: torch.device, rounds: int, track: ShowsRounds) -> Iterator[StagesRow]:
    """Iterations of RLOO with models of every size."""
    sizes, shape = workload(device)
    for name, size in sizes.items():
        for ends, lengths in ((0, f"{shape.length} tokens"), (shape.ends(size), f"up to {shape.length} tokens")):
            work = f"iteration of RLOO on {shape.responses} responses of {lengths}: {name}"
            show = partial(track, what=work)
            yield StagesRow(work, stages_of_iterations(size, shape, device, rounds, ends=ends, track=show))


def limit_rows(device: torch.device, rounds: int, track: ShowsRounds) -> Iterator[LimitRow]:
    """The rate at which updates multiply, and at which decoding reads memory."""
    sizes, shape = workload(device)
    read = bandwidth(device)
    for name, size in sizes.items():
        multiplied = matrix_rate(device, size.dtype)
        policy = size.policy(torch.device("cpu"), context_length=shape.context_length)
        ways = {
            "update": update(size, shape, device, least=shape.length),
            "rollout": rollout(size, shape, device),
        }
        timings = timed_in_turn(ways, rounds, track=partial(track, what=f"limits: {name}"))
        seconds = timings.median("update")
        operations = update_operations(policy, shape)
        yield LimitRow(
            f"products of weights in a gradient: {name}", seconds, operations / seconds, multiplied, "GFLOP/s"
        )
        step = timings.median("rollout") / shape.length
        yield LimitRow(
            f"weights, keys and values in a step of decoding: {name}",
            step,
            step_bytes(policy, shape) / step,
            read,
            "GB/s",
        )


def growth_rows(device: torch.device, rounds: int, track: ShowsRounds) -> Iterator[BenchRow]:
    """Rollouts and gradients of one model and shape, and of larger ones."""
    sizes, shape = workload(device)
    small = next(iter(sizes.values()))
    grown: Mapping[str, Mapping[str, tuple[Size, Shape]]] = {
        "responses": {
            f"{wider.responses} responses": (small, wider)
            for wider in (replace(shape, prompts=times * shape.prompts) for times in (1, 2, 4))
        },
        "length": {
            f"{longer.length} tokens": (small, longer)
            for longer in (replace(shape, length=times * shape.length) for times in (1, 2, 4))
        },
        "model": {name: (size, shape) for name, size in sizes.items()},
        "vocabulary": {
            f"{count:,} tokens to choose from": (replace(small, vocabulary=count), shape) for count in VOCABULARIES
        },
    }
    for what, pairs in grown.items():
        first, *_ = pairs
        for kind, make in (("rollout", rollout), ("gradient", _full_update)):
            ways = {name: make(*pair, device) for name, pair in pairs.items()}
            work = f"{kind}, by {what}"
            yield BenchRow(work, timed_in_turn(ways, rounds, track=partial(track, what=work)), ours=first)


def _full_update(size: Size, shape: Shape, device: torch.device) -> Callable[[], object]:
    return update(size, shape, device, least=shape.length)


def memory_rows(device: torch.device, rounds: int, track: ShowsRounds) -> Iterator[MemoryRow]:
    """Gradients with large vocabularies."""
    for vocabulary in track(VOCABULARIES[1:], "memory"):
        rows = f"{LONG.responses} responses of {LONG.length} tokens out of {vocabulary:,}"
        size = Size("gpt2", width=WIDTH, layers=4, heads=4, vocabulary=vocabulary)
        yield MemoryRow(f"gradient on {rows}: {WIDTH} wide, 4 layers", peak_memory(size, device), ours="in chunks")


PARTS: Mapping[str, Callable[[torch.device, int, ShowsRounds], Iterator[BenchTableRow]]] = {
    "decoding": decoding_rows,
    "noise": noise_rows,
    "updates": update_rows,
    "stages": stages_rows,
    "limits": limit_rows,
    "growth": growth_rows,
    "memory": memory_rows,
}
"""What can be measured, by name."""


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
