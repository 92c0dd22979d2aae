"""The callback interface through which a module reports rows of metrics and samples, and how far along they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.records.constructed import Constructed
from rlhf_lightning.records.metrics import Description, Metric
from rlhf_lightning.types import ScoredRollout, TrainBatch


class Listener(Constructed, Callback):
    """A callback that also hears of each finished row of metrics and of each set of samples.

    The first key of a row is its x-axis: ``iteration`` for policy optimizers, ``step`` for supervised training,
    reward modeling and other passes over data. Every rank calls, with identical numbers.
    """

    def on_row(self, trainer: Trainer, module: LightningModule, row: Mapping[str, float]) -> None:
        """A row of metrics is complete."""

    def on_phase(self, trainer: Trainer, module: LightningModule, phase: str) -> None:
        """Work begins that may take minutes and belongs to no step: loading, a first evaluation."""

    def on_samples(self, trainer: Trainer, module: LightningModule, samples: Sequence[Mapping[str, Any]]) -> None:
        """Samples were drawn: ``iteration, row, prompt, response, score, gold, kl`` each."""


class UpdateWatcher(Listener):
    """A callback that measures the updates of a policy optimizer, and changes none of them."""

    def watching(
        self, module: Any, scored: ScoredRollout, batch: TrainBatch
    ) -> AbstractContextManager[dict[str, float]]:
        """Context of an update; its value has, afterwards, what is to be added to the row of the iteration.

        Every rank calls, and must get the same numbers; not called in iterations in which only a critic learns.

        Args:
            module: the optimizer.
            scored: what was collected.
            batch: what the update learns from.
        """
        raise NotImplementedError

    def metrics(self) -> tuple[Metric, ...]:
        """What it adds to rows, and how figures show it."""
        return ()


@runtime_checkable
class Reporting(Protocol):
    """A module that says what it logs."""

    def describe(self) -> Description:
        """What is trained and logged, for the run's record."""
        ...

    def progress(self) -> dict[str, str]:
        """Metrics that are shown while the run goes on, in this order, with short labels."""
        ...


def axis_of(row: Mapping[str, object]) -> str:
    """Name of a row's x-axis: its first key."""
    return next(iter(row))


def position(trainer: Trainer, axis: str | None) -> int:
    """Iterations or optimizer steps that are complete."""
    return trainer.global_step if _in_steps(trainer, axis) else trainer.current_epoch


def resumed(trainer: Trainer) -> bool:
    """Whether training goes on from a checkpoint."""
    return bool(trainer.global_step or trainer.current_epoch)


def total(trainer: Trainer, axis: str | None) -> int | None:
    """Iterations or optimizer steps of the whole run, None where only a time limit ends it."""
    budget = trainer.max_steps if _in_steps(trainer, axis) else trainer.max_epochs
    return budget if budget is not None and budget >= 0 else None


def _in_steps(trainer: Trainer, axis: str | None) -> bool:
    return trainer.max_steps >= 0 if axis is None else axis == "step"
