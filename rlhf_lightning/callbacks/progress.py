"""Where a run stands: a bar on a terminal, about ten lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from typing_extensions import override

from rlhf_lightning.callbacks.listener import Listener, Reporting, axis_of, position, total


class Progress(ProgressBar, Listener):
    """Shows the stage, how far it is, its main metrics and the time left.

    Args:
        lines: lines printed over the whole run where the output is not a terminal.
    """

    def __init__(self, lines: int = 10) -> None:
        super().__init__()
        self.lines = lines
        self._enabled = True
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._axis: str | None = None
        self._shown: dict[str, float] = {}
        self._began, self._began_at, self._printed = 0.0, 0, 0

    def enable(self) -> None:
        """Show progress."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing: other ranks, and Lightning's own searches."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without breaking the bar."""
        if self._bar is not None:
            self._bar.console.print(*args, markup=False, highlight=False)
        else:
            print(*args, **kwargs, flush=True)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        self._began, self._began_at = time.monotonic(), position(trainer, self._axis)
        budget = total(trainer, self._axis)
        self._printed = self._line_number(self._began_at, budget)
        console = Console(file=sys.stdout)
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[done]}  {task.fields[metrics]}"),
                TimeRemainingColumn(),
            )
            self._bar = RichProgress(*columns, console=console, refresh_per_second=4)
            self._task = self._bar.add_task(type(pl_module).__name__, total=budget, done="", metrics="")
            self._bar.start()

    @override
    def on_phase(self, trainer: Trainer, module: LightningModule, phase: str) -> None:
        if self._enabled:
            self.print(f"{type(module).__name__}  {phase} …")

    @override
    def on_row(self, trainer: Trainer, module: LightningModule, row: Mapping[str, float]) -> None:
        self._axis = axis_of(row)
        self._shown.update({key: float(value) + 0.0 for key, value in row.items()})  # no negative zero
        if self._axis != "step":
            self._show(trainer, module, int(row[self._axis]))

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # the last step is shown at the end, after its evaluation
        if self._axis == "step" and trainer.global_step != total(trainer, self._axis):
            self._show(trainer, pl_module, trainer.global_step)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._axis == "step":
            self._show(trainer, pl_module, trainer.global_step)
        self._stop()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"axis": self._axis}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._axis = state_dict["axis"]

    def _show(self, trainer: Trainer, module: LightningModule, done: int) -> None:
        if not self._enabled:
            return
        budget = total(trainer, self._axis)
        labels = module.progress() if isinstance(module, Reporting) else {}
        metrics = "  ".join(
            f"{label} {_number(self._shown[key])}" for key, label in labels.items() if key in self._shown
        )
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=budget, done=_share(done, budget), metrics=metrics)
            return
        number = self._line_number(done, budget)
        if number > self._printed or (self._printed == 0 and done == self._began_at + 1):
            self._printed = number
            parts = [type(module).__name__, f"{self._axis} {_share(done, budget)}", metrics, self._left(done, budget)]
            print("  ".join(part for part in parts if part), flush=True)

    def _line_number(self, done: int, budget: int | None) -> int:
        """How many lines belong to the part of the run that is done."""
        return done * self.lines // budget if budget else done // 100

    def _left(self, done: int, budget: int | None) -> str:
        if budget is None or done <= self._began_at or done >= budget:
            return ""
        seconds = (time.monotonic() - self._began) / (done - self._began_at) * (budget - done)
        return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def _share(done: int, budget: int | None) -> str:
    return f"{done}/{budget}" if budget is not None else str(done)


class PrintedRows(Listener):
    """Prints the rows of an evaluation, one metric a line."""

    @override
    def on_row(self, trainer: Trainer, module: LightningModule, row: Mapping[str, float]) -> None:
        if trainer.is_global_zero:
            metrics = list(row.items())[1:]  # without the x-axis, which an evaluation by itself has not got
            width = max(len(name) for name, _ in metrics)
            print("\n".join(f"{name:<{width}}  {value:.6g}" for name, value in metrics), flush=True)
