"""``warnings.jsonl``: what the detectors warned of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from rlhf_lightning.callbacks.position import position
from rlhf_lightning.rundir import write_atomically, writing


class WarningsFile(Callback):
    """Appends each warning to ``warnings.jsonl`` in the trainer's ``default_root_dir``; no file without warnings.

    Each line holds ``iteration`` or ``step``, ``detector`` and ``message``. A fresh run removes the file; a resumed
    one drops the warnings after the point that it resumes from.
    """

    def __init__(self, filename: str = "warnings.jsonl") -> None:
        self.filename = filename
        self._path: Path | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        self._path = Path(trainer.default_root_dir) / self.filename
        if not self._path.is_file():
            return
        resumed = trainer.global_step or trainer.current_epoch
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if resumed and line.endswith("\n") and _is_past(json.loads(line), trainer)]
        if kept:
            write_atomically(self._path, "".join(kept))
        else:
            self._path.unlink()

    def add(self, warning: Mapping[str, Any]) -> None:
        """Append one, on rank 0."""
        if self._path is not None:
            with writing(self._path), open(self._path, "a", encoding="utf-8", newline="") as file:
                file.write(json.dumps(dict(warning)) + "\n")


def _is_past(warning: Mapping[str, Any], trainer: Trainer) -> bool:
    axis = next(iter(warning))
    return warning[axis] <= position(trainer, axis)
