"""`Detector`: watches rows of metrics and warns once when trouble begins."""

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
from rlhf_lightning.callbacks.listener import Listener
from rlhf_lightning.callbacks.position import axis_of
from rlhf_lightning.errors import UserError

log = logging.getLogger(__name__)

CALM = 20
"""Rows without a finding after which trouble counts as over, and the next is warned of again."""


class Detector(Listener, ABC):
    """Warns once per episode of trouble: in the log, and in ``warnings.jsonl`` where a run keeps one.

    What it says is a function of the rows so far and of nothing else, so that a resumed run warns of the same, and a
    recorded one can be replayed (`replay`). An episode is over when nothing has been found for `CALM` rows.

    Args:
        reads: the metrics that it remembers.
        stop: end training at the first warning, and go back to ``best.ckpt``: that is what is exported.
    """

    advice: ClassVar[str]
    """What to try."""

    best_by: str | None = None
    """Metric that says better than the score which checkpoint is best, where it is logged."""

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
        """What is wrong after the last row, with its numbers; None if nothing is.

        Args:
            history: the metrics of ``reads``; one that was never logged is an empty series.
        """

    def taints(self, metric: str) -> bool:
        """Whether, in trouble, the best value of this metric makes no checkpoint the best one."""
        return self.stop

    def observe(self, row: Mapping[str, float]) -> str | None:
        """Take in a row; the warning if trouble begins with it."""
        at = int(row[axis_of(row)])
        for name, series in self.history.items():
            if name in row:
                series.add(at, float(row[name]))
        found = self.finding(self.history)
        self.in_trouble = found is not None
        self._calm = 0 if self.in_trouble else self._calm + 1
        begins = self.in_trouble and not self._warned
        self._warned = self.in_trouble or (self._warned and self._calm < CALM)
        return f"{found}; try {self.advice}" if begins else None

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
            self.stopped = trainer.should_stop = True  # on all ranks: their rows are identical
            message += "; training stops here"
        if trainer.is_global_zero:
            log.warning("%s at %s %d: %s", name, axis, int(row[axis]), message)
        for callback in trainer.callbacks:
            if isinstance(callback, WarningsFile):
                callback.add({axis: int(row[axis]), "detector": name, "message": message})

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stopped and not trainer.fast_dev_run:
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
    """Give the module the weights of ``best.ckpt``, on every rank; the last ones stay where there is none."""
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
    """The warnings that a detector would have given in a run: iteration or step, and message.

    Args:
        detector: stays as it is.
        rows: of a run from its beginning, the x-axis first in each.
    """
    fresh = copy.deepcopy(detector)
    warned = ((int(row[axis_of(row)]), fresh.observe(row)) for row in rows)
    return [(at, message) for at, message in warned if message is not None]
