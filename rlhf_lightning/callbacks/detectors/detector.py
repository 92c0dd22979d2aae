"""`Detector`: reads rows of metrics and warns once when a failure begins."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from rlhf_lightning.callbacks.detectors.history import History, Series
from rlhf_lightning.callbacks.detectors.warnings_file import WarningsFile
from rlhf_lightning.callbacks.listener import Listener, axis_of
from rlhf_lightning.errors import UserError
from rlhf_lightning.lightning_seams import callbacks_of, is_dry_run

log = logging.getLogger(__name__)

CALM = 20
"""Number of rows without a finding after which a failure is over and the next one gives a new warning."""


class Detector(Listener, ABC):
    """Warns once per failure: in the log, and in ``warnings.jsonl`` if the run has a `WarningsFile`.

    A warning depends only on the rows so far, so that a resumed run gives the same warnings, and a recorded run can be
    replayed (`replay`). A failure is over after `CALM` rows without a finding.

    Args:
        reads: the metrics whose history is kept.
        stop: end training at the first warning and export the state of ``best.ckpt``.
    """

    advice: ClassVar[str]
    """What to try, for the message."""

    best_by: str | None = None
    """Metric that replaces the score in the choice of the best checkpoint, if it is logged."""

    def __init__(self, reads: Iterable[str], *, stop: bool) -> None:
        gold = next((name for name in reads if "gold" in name), None)
        if gold is not None:
            raise UserError(f"{type(self).__name__} cannot look at {gold}: the gold reward is there to judge")
        self.stop = stop
        self.history: dict[str, Series] = {name: Series() for name in reads}
        self.in_trouble = False
        self.stopped = False
        self._warned, self._calm = False, 0

    @abstractmethod
    def finding(self, history: History) -> str | None:
        """The failure after the last row, described with its numbers; None if there is none.

        Args:
            history: the metrics of ``reads``; a metric that was never logged has an empty series.
        """

    def taints(self, metric: str) -> bool:
        """Whether this metric must not choose the best checkpoint during a failure."""
        return self.stop

    def observe(self, row: Mapping[str, float]) -> str | None:
        """Add a row; returns a warning if a failure begins with it."""
        at = int(row[axis_of(row)])
        for name, series in self.history.items():
            if name in row:
                series.add(at, float(row[name]))
        finding = self.finding(self.history)
        self.in_trouble = finding is not None
        self._calm = 0 if self.in_trouble else self._calm + 1
        begins = self.in_trouble and not self._warned
        self._warned = self.in_trouble or (self._warned and self._calm < CALM)
        return f"{finding}; try {self.advice}" if begins else None

    # -- the trainer -------------------------------------------------------------------------------------------

    @override
    def on_row(self, trainer: Trainer, module: LightningModule, row: Mapping[str, float]) -> None:
        if trainer.state.fn != "fit":
            return
        message = self.observe(row)
        if message is None:
            return
        axis, name = axis_of(row), type(self).__name__
        if self.stop:
            self.stopped = trainer.should_stop = True  # on all ranks, since their rows are identical
            message += "; training stops here"
        if trainer.is_global_zero:
            log.warning("%s at %s %d: %s", name, axis, int(row[axis]), message)
        for callback in callbacks_of(trainer):
            if isinstance(callback, WarningsFile):
                callback.add({axis: int(row[axis]), "detector": name, "message": message})

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stopped and not is_dry_run(trainer):
            restore_best(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        history = {name: asdict(series) for name, series in self.history.items() if len(series)}
        return {"history": history, "warned": self._warned, "calm": self._calm, "stopped": self.stopped}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, saved in state_dict["history"].items():
            if name in self.history:
                self.history[name] = Series(**saved)
        self._warned, self._calm = state_dict["warned"], state_dict["calm"]
        self.stopped = state_dict["stopped"] and self.stop


def restore_best(trainer: Trainer, module: LightningModule) -> None:
    """Load the weights of ``best.ckpt`` into the module, on every rank; without one, the last weights stay."""
    trainer.strategy.barrier("best.ckpt is written")
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not path or not Path(path).is_file():
        if trainer.is_global_zero:
            log.warning("there is no best.ckpt from before the trouble: what is exported is the last state")
        return
    checkpoint = trainer.strategy.load_checkpoint(path)
    module.on_load_checkpoint(checkpoint)
    trainer.strategy.load_model_state_dict(checkpoint, strict=module.strict_loading)
    if trainer.is_global_zero:
        log.warning("what is exported is the state of %s", path)


def replay(detector: Detector, rows: Iterable[Mapping[str, float]]) -> list[tuple[int, str]]:
    """The warnings that a detector would have given in a recorded run, as pairs of iteration or step and message.

    Args:
        detector: is copied and not changed.
        rows: all rows of the run, with the x-axis as the first key of each.
    """
    fresh = copy.deepcopy(detector)
    warned = ((int(row[axis_of(row)]), fresh.observe(row)) for row in rows)
    return [(at, message) for at, message in warned if message is not None]
