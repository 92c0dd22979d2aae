"""Whether a run ends the same under other circumstances: ranks, microbatches, a death in between."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from rlhf_lightning.algorithms.base.on_policy import OnPolicy
from rlhf_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from rlhf_lightning.callbacks.checkpoints import Checkpoints
from rlhf_lightning.callbacks.listener import position
from rlhf_lightning.callbacks.metrics_file import MetricsFile
from rlhf_lightning.proofs.runs import ShortRun

TIMED = ("timing/", "rollout/tokens_per_second")
"""Metrics that say how fast a run was."""


@dataclass(frozen=True)
class Outcome:
    """What a run ends with.

    Args:
        start: parameters before the first step that was taken here.
        end: parameters and buffers after the last one.
        rows: of ``metrics.csv``, without what the clock says.
    """

    start: Mapping[str, Tensor]
    end: Mapping[str, Tensor]
    rows: list[dict[str, float]]


def outcome(
    run: ShortRun, folder: Path, *, microbatch_size: int | None = None, killed: bool = False, devices: int = 1
) -> Outcome:
    """Train in float64 on the CPU.

    Args:
        folder: of this run alone.
        microbatch_size: sequences, pairs or transitions at a time; None for all at once.
        killed: let it die in the middle, and continue in new objects from ``last.ckpt``, as a new process would.
        devices: above 1, every rank has to call this.
    """
    how: dict[str, Any] = {"folder": folder, "devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
    start, saving = _Start(), []
    if killed:
        saving = [Checkpoints(every=run.checkpoint_every)]
        with suppress(_KilledError):
            _train(run, microbatch_size, *saving, _Death(run.killed_at), **how)
        saving = [Checkpoints(every=run.checkpoint_every)]
        how["ckpt_path"] = folder / "checkpoints" / "last.ckpt"
    module = _train(run, microbatch_size, start, *saving, **how)
    return Outcome(start.parameters, _copied(module.state_dict()), logged(folder))


def logged(folder: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.csv`` that do not depend on the clock."""
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return [
            {name: float(cell) for name, cell in row.items() if cell and not name.startswith(TIMED)}
            for row in csv.DictReader(file)
        ]


def difference(first: Outcome, second: Outcome) -> float:
    """The largest between parameters or buffers, and between metrics, relative to those above 1; infinite for NaN."""
    if first.end.keys() != second.end.keys() or [list(row) for row in first.rows] != [list(row) for row in second.rows]:
        return math.inf
    gaps = [distance(first.end, second.end)]
    for row, other in zip(first.rows, second.rows, strict=True):
        gaps += [abs(row[name] - other[name]) / max(1.0, abs(row[name])) for name in row]
    return math.inf if any(map(math.isnan, gaps)) else max(gaps)


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """The largest difference between the tensors of the first and those of the same names; infinite for NaN."""
    gaps = [(tensor.double() - second[name].double()).abs().max().item() for name, tensor in first.items()]
    return math.inf if any(map(math.isnan, gaps)) else max(gaps)


@contextmanager
def run_seed_is(seed: int) -> Iterator[None]:
    """Inside, runs have this seed."""
    before = os.environ.get("PL_GLOBAL_SEED")
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    try:
        yield
    finally:
        del os.environ["PL_GLOBAL_SEED"]
        if before is not None:
            os.environ["PL_GLOBAL_SEED"] = before


class _KilledError(Exception):
    """Simulates a crash; nothing else raises or catches it."""


class _Death(Callback):
    """Ends a run where so many iterations or steps are complete and the next has begun; a rollout is collected then."""

    def __init__(self, at: int) -> None:
        self.at = at

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if position(trainer, None) == self.at:
            if isinstance(pl_module, OnPolicy):
                vars(pl_module)["update"] = _die
            else:
                raise _KilledError


def _die(*_: Any) -> NoReturn:
    raise _KilledError


class _Start(Callback):
    """Remembers the parameters before the first step."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.parameters = _copied(dict(pl_module.named_parameters()))


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _train(
    run: ShortRun,
    microbatch_size: int | None,
    *callbacks: Callback,
    folder: Path,
    ckpt_path: Path | None = None,
    **how: Any,
) -> LightningModule:
    """A trainer, a module and data that no other call has seen."""
    torch.set_num_threads(1)  # tiny networks: more threads only wait for each other, and round otherwise
    module, data = run.build(run.optimization(microbatch_size))
    arguments = {"max_epochs": -1} | run.length | how
    trainer = Trainer(
        accelerator="cpu",
        precision="64-true",
        default_root_dir=folder,
        callbacks=[MetricsFile(), *callbacks],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_checkpointing=any(isinstance(callback, Checkpoints) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0 if "max_epochs" in run.length else None,
        **arguments,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module
