"""``metrics.csv``: every row of metrics, whatever loggers are configured."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from rlhf_lightning.callbacks.listener import Listener, axis_of, position, resumed
from rlhf_lightning.lightning_seams import is_dry_run
from rlhf_lightning.records.files import write_atomically, writing


class MetricsFile(Listener):
    """Appends each row to ``metrics.csv`` in the trainer's ``default_root_dir``.

    A fresh run replaces the file. A resumed one drops the rows after the point that it resumes from, so that the
    file reads as if the run had never stopped. A metric that appears late widens the table, and what is reported of
    an iteration later, as its evaluation is where a run ends early, goes into the same row.
    """

    def __init__(self, filename: str = "metrics.csv") -> None:
        self.filename = filename
        self._path: Path | None = None
        self._columns: list[str] = []
        self._last: str | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or is_dry_run(trainer):
            return
        self._path = Path(trainer.default_root_dir) / self.filename
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rows = _complete_rows(self._path) if resumed(trainer) else []
        if rows:
            axis = axis_of(rows[0])
            rows = [row for row in rows if float(row[axis]) <= position(trainer, axis)]
        self._rewrite(self._path, rows)

    @override
    def on_row(self, trainer: Trainer, module: LightningModule, row: Mapping[str, float]) -> None:
        if self._path is None:
            return
        cells = {name: _cell(value) for name, value in row.items()}
        axis = axis_of(row)
        again, self._last = axis == "iteration" and cells[axis] == self._last, cells[axis]
        if again:
            *before, last = _complete_rows(self._path)
            self._rewrite(self._path, [*before, last | cells])
        elif set(cells) <= set(self._columns):
            with writing(self._path), open(self._path, "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerow(cells)
        else:
            self._rewrite(self._path, [*_complete_rows(self._path), cells])

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._path = None

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._path = None

    def _rewrite(self, path: Path, rows: list[dict[str, str]]) -> None:
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        table = io.StringIO()
        if rows:
            writer = csv.DictWriter(table, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        write_atomically(path, table.getvalue())


def _complete_rows(path: Path) -> list[dict[str, str]]:
    """The rows of the file; a last line that was cut off in writing does not count."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [row for row in csv.DictReader(lines) if None not in row and None not in row.values()]


def _cell(value: Any) -> str:
    """Text from which the same number is read back."""
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)
