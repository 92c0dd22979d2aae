"""``warnings.jsonl``: the warnings of the detectors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from rlhf_lightning.callbacks.listener import axis_of, position, resumed
from rlhf_lightning.lightning_seams import is_dry_run
from rlhf_lightning.records.json_lines import add_lines, keep_lines


class WarningsFile(Callback):
    """Appends each warning to ``warnings.jsonl`` in the trainer's ``default_root_dir``; no warning, no file.

    Each line holds ``iteration`` or ``step``, ``detector`` and ``message``. A new run removes the file; a resumed run
    drops the warnings after the point from which it resumes.
    """

    def __init__(self, filename: str = "warnings.jsonl") -> None:
        self.filename = filename
        self._path: Path | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or is_dry_run(trainer):
            return
        self._path = Path(trainer.default_root_dir) / self.filename

        def is_past(warning: Mapping[str, Any]) -> bool:
            axis = axis_of(warning)
            return resumed(trainer) and warning[axis] <= position(trainer, axis)

        keep_lines(self._path, is_past)

    def add(self, warning: Mapping[str, Any]) -> None:
        """Append a warning, on rank 0."""
        if self._path is not None:
            add_lines(self._path, [warning])
