"""``checkpoints/last.ckpt``, those before it and ``checkpoints/best.ckpt``, at iteration boundaries."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from rlhf_lightning.callbacks.detectors.detector import Detector
from rlhf_lightning.callbacks.listener import Listener, axis_of, position
from rlhf_lightning.errors import UserError
from rlhf_lightning.lightning_seams import callbacks_of, is_dry_run, validation_follows
from rlhf_lightning.records.checkpoint_files import BEST, LAST, kept, link, settle, sync_lines

log = logging.getLogger(__name__)

Mode: TypeAlias = Literal["max", "min"]

BEST_BY: tuple[tuple[str, Mode], ...] = (
    ("eval/score", "max"),
    ("eval/accuracy", "max"),
    ("eval/loss", "min"),
    ("eval/perplexity", "min"),
)
"""What ``best.ckpt`` goes by where no detector knows better: the first of these that a run reports."""


@runtime_checkable
class EvaluatesItself(Protocol):
    """A module that evaluates itself between iterations, without Lightning's validation."""

    def evaluate_last(self) -> None:
        """Evaluate what training ends with, unless that has been done."""
        ...


class Checkpoints(Checkpoint, Listener):
    """Saves ``last.ckpt`` regularly, and keeps those before it and the one with the best evaluation, ``best.ckpt``.

    The one before is ``last-1.ckpt``: what a run continues from where ``last.ckpt`` is damaged.

    Lightning's own ``ModelCheckpoint`` skips iterations that took no optimizer step (TRPO), serializes the same state
    twice when it keeps a last and a best one, and numbers the files anew after a resume.

    Args:
        dirpath: folder of the checkpoints; ``checkpoints`` in the trainer's ``default_root_dir`` by default.
        every: iterations, or steps of a run with ``max_steps``, between checkpoints; by default a hundredth of the
            iterations, and at least one, or a tenth of ``max_steps``.
        keep: number of last checkpoints kept: ``last.ckpt``, ``last-1.ckpt``, ….
        monitor: metric that ``best.ckpt`` goes by; by default one that a detector names (a second reward model beats
            the score that is optimized), or the first of `BEST_BY` that the run reports.
        mode: whether more or less of ``monitor`` is better.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        every: int | None = None,
        keep: int = 2,
        monitor: str | None = None,
        mode: Mode = "max",
    ) -> None:
        if every is not None and every < 1:
            raise UserError(f"checkpoint_every is {every}; expected at least 1")
        if keep < 1:
            raise UserError(f"checkpoint_keep is {keep}; expected at least 1")
        if monitor is not None and "gold" in monitor:
            raise UserError(f"best.ckpt cannot go by {monitor}: the gold reward is there to judge, not to select")
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.every, self.keep = every, keep
        self.monitor, self.mode = monitor, mode
        self.best: float | None = None
        self._improved = self._ended = False
        self._began_at = 0
        self._saved_at: tuple[int, int] | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.dirpath is None:
            self.dirpath = Path(trainer.default_root_dir) / "checkpoints"

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Repair the files after a crash: finish a rotation that was cut short, replace a damaged ``last.ckpt``."""
        start = Path(trainer.ckpt_path or "")
        if trainer.state.fn != "fit" or not start.is_file():
            return
        assert self.dirpath is not None
        own, saved = start.resolve().parent == self.dirpath.resolve(), checkpoint["callbacks"].get(self.state_key, {})
        self._ended = own and saved.get("ended", False)
        if own and trainer.is_global_zero:
            if start.name == LAST:
                settle(start, self.keep)
            else:
                link(start, self.dirpath / LAST)
        if saved.get("is_best") and trainer.is_global_zero:
            self.dirpath.mkdir(parents=True, exist_ok=True)
            link(start, self.dirpath / BEST)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began_at = position(trainer, None)
        if self._ended:  # killed between its last checkpoint and its end: Lightning's EarlyStopping would train on
            trainer.should_stop = True
            if trainer.is_global_zero:
                log.warning("a callback had ended this run before its length: it does not train on")

    @override
    def on_row(self, trainer: Trainer, module: LightningModule, row: Mapping[str, float]) -> None:
        detectors = [callback for callback in callbacks_of(trainer) if isinstance(callback, Detector)]
        if self.monitor is None:
            choices: list[tuple[str, Mode]] = [(one.best_by, "max") for one in detectors if one.best_by is not None]
            choices += BEST_BY
            self.monitor, self.mode = next((choice for choice in choices if choice[0] in row), (None, self.mode))
        if self.monitor is None or self.monitor not in row or row[axis_of(row)] == self._began_at:
            return
        # Lightning calls checkpoint callbacks last: the detectors have seen this row
        if any(detector.in_trouble and detector.taints(self.monitor) for detector in detectors):
            return
        value = float(row[self.monitor])
        better = self.best is None or (value > self.best if self.mode == "max" else value < self.best)
        if better and math.isfinite(value):
            self.best, self._improved = value, True

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.should_stop and isinstance(pl_module, EvaluatesItself):
            pl_module.evaluate_last()  # all callbacks that may end a run have been called
        if trainer.max_steps < 0:
            # the last iteration is always saved: the counter has moved past it when training ends
            due = trainer.current_epoch + 1 == trainer.max_epochs or trainer.should_stop
            every = self.every or max(1, (trainer.max_epochs or 0) // 100)
            self._save(trainer, due=due or (trainer.current_epoch + 1) % every == 0)

    @override
    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.max_steps >= 0 and not validation_follows(trainer):
            self._save(trainer, due=self._step_is_due(trainer))

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.max_steps >= 0 and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer, due=self._step_is_due(trainer))

    @property
    def best_model_path(self) -> str:
        """Path of ``best.ckpt``; empty where there is none (named as in Lightning's ``ModelCheckpoint``)."""
        return "" if self.best is None or self.dirpath is None else str(self.dirpath / BEST)

    @override
    def state_dict(self) -> dict[str, Any]:
        # asked for while a checkpoint is made: whether it is the best one so far, and whether something ends the run
        now = {"is_best": self._improved, "ended": self._ended}
        return {"monitor": self.monitor, "mode": self.mode, "best": self.best, **now}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.monitor is None:
            self.monitor, self.mode = state_dict["monitor"], state_dict["mode"]
        if (self.monitor, self.mode) == (state_dict["monitor"], state_dict["mode"]):
            self.best = state_dict["best"]

    def _step_is_due(self, trainer: Trainer) -> bool:
        every = self.every or max(1, trainer.max_steps // 10)
        last = trainer.global_step >= trainer.max_steps or trainer.should_stop or trainer.received_sigterm
        return trainer.global_step % every == 0 or last

    def _save(self, trainer: Trainer, *, due: bool) -> None:
        now = (trainer.current_epoch, trainer.global_step)
        if is_dry_run(trainer) or now == self._saved_at or not (due or self._improved):
            return
        assert self.dirpath is not None
        last = self.dirpath / LAST
        self._ended = trainer.should_stop and not 0 <= trainer.max_steps <= trainer.global_step
        if trainer.is_global_zero:
            sync_lines(Path(trainer.default_root_dir))
        with kept(last, self.keep) if trainer.is_global_zero else nullcontext():
            trainer.save_checkpoint(last)
        if self._improved and trainer.is_global_zero:
            link(last, self.dirpath / BEST)
        self._improved, self._saved_at = False, now
