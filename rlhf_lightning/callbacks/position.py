"""How far a run is, on the x-axis of its rows."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import Trainer


def axis_of(row: Mapping[str, float]) -> str:
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
