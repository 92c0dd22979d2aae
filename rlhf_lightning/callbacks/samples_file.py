"""``samples.jsonl``: prompts with the policy's responses, for logged iterations."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from rlhf_lightning.callbacks.listener import Listener, axis_of, position, resumed
from rlhf_lightning.callbacks.tracking import tell_loggers
from rlhf_lightning.lightning_seams import is_dry_run
from rlhf_lightning.records.json_lines import add_lines, keep_lines


class SamplesFile(Listener):
    """Appends samples to ``samples.jsonl`` in the trainer's ``default_root_dir``, and to W&B as a table, ``responses``.

    A fresh run replaces the file; a resumed one drops the samples after the point that it resumes from.
    """

    def __init__(self, filename: str = "samples.jsonl") -> None:
        self.filename = filename
        self._path: Path | None = None
        self._axis: str | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or is_dry_run(trainer):
            return
        self._path = Path(trainer.default_root_dir) / self.filename
        done = position(trainer, self._axis)
        keep_lines(self._path, lambda sample: resumed(trainer) and sample["iteration"] <= done)

    @override
    def on_row(self, trainer: Trainer, module: LightningModule, row: Mapping[str, float]) -> None:
        self._axis = axis_of(row)

    @override
    def on_samples(self, trainer: Trainer, module: LightningModule, samples: Sequence[Mapping[str, Any]]) -> None:
        if self._path is None or not samples:
            return
        add_lines(self._path, ({name: _plain(value) for name, value in sample.items()} for sample in samples))
        columns = list(samples[0])
        data = [[_table_cell(sample.get(name)) for name in columns] for sample in samples]
        table = {"key": "responses", "columns": columns, "data": data, "step": int(samples[0]["iteration"])}
        tell_loggers(trainer, lambda one: one.log_table(**table) if hasattr(one, "log_table") else None)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"axis": self._axis}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._axis = state_dict["axis"]


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers that are not finite become null."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table_cell(value: Any) -> Any:
    value = _plain(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
