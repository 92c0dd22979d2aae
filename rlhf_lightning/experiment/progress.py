"""What a running comparison shows: arms by seeds, what runs, how long is left, and the estimates so far."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.measures import check_logged
from rlhf_lightning.experiment.plan import PlannedRun
from rlhf_lightning.experiment.spec import Experiment
from rlhf_lightning.intervals import student_interval
from rlhf_lightning.pipeline.schedule import StageProgress, State
from rlhf_lightning.plots.kit.style import number
from rlhf_lightning.records.config_files import read_mapping, setting
from rlhf_lightning.records.run_directory import CONFIG
from rlhf_lightning.records.runs import load_run

SYMBOLS: dict[State, str] = {
    "waiting": "·",
    "running": "▸",
    "elsewhere": "◦",
    "finished": "✓",
    "failed": "✗",
    "interrupted": "∥",
    "left out": "–",
}
_INTERVAL = 1.0
"""Seconds between two drawings."""
_MOST_SEEDS = 24
"""Of a table; of more seeds only their number is shown."""


class Board:
    """Shows how far a comparison is: a live table on a terminal, or else a line for each run that ends.

    The estimates are there to be looked at: nothing is stopped or chosen by them.

    Args:
        runs: that are shown, one cell each; the stages before them are counted.
    """

    def __init__(self, experiment: Experiment, runs: Sequence[PlannedRun], console: Console, *, jobs: int) -> None:
        self._experiment, self._runs, self._console, self._jobs = experiment, runs, console, jobs
        self._measured = {run.directory for run in runs}
        self._values: dict[Path, float] = {}
        self._told: set[Path] = set()
        self._drawn = -math.inf
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def look(self, progress: Mapping[Path, StageProgress]) -> None:
        """Take note of what has ended, and draw.

        Raises:
            UserError: the first run that finished has not logged what is measured.
        """
        for directory, one in progress.items():
            if directory not in self._told and one.state in ("finished", "failed", "left out", "interrupted"):
                self._told.add(directory)
                self._tell(directory, one, progress)
        if self._live is not None and time.monotonic() > self._drawn + _INTERVAL:
            self._drawn = time.monotonic()
            self._live.update(self._picture(progress), refresh=True)

    # -- what has ended ----------------------------------------------------------------------------------------------

    def _tell(self, directory: Path, one: StageProgress, progress: Mapping[Path, StageProgress]) -> None:
        what = f"{_place(directory)}: {one.state}"
        if one.state == "finished" and directory in self._measured:
            what += self._read(directory)
        if one.seconds is not None:
            what += f" after {duration(one.seconds)}"
        if one.state == "failed":
            what += f" with status {one.status}" + (f": {one.reason}" if one.reason else "")
        if one.seconds is not None or one.state != "finished":  # what was finished before is not told again
            count = sum(each.state not in ("waiting", "running", "elsewhere") for each in progress.values())
            self._console.print(f"[{count} of {len(progress)}] {what}", highlight=False, markup=False, soft_wrap=True)

    def _read(self, directory: Path) -> str:
        primary, run = self._experiment.primary, load_run(directory)
        if not self._values:  # further measures may be of some arms only, or of stages before
            check_logged([primary], [run])
        found = primary.read(run)
        if math.isnan(found.value):
            return f", the run {found.missing}"
        self._values[directory] = found.value
        return f", {primary.metric} {number(found.value)}"

    # -- the picture ---------------------------------------------------------------------------------------------------

    def _picture(self, progress: Mapping[Path, StageProgress]) -> RenderableType:
        seeds = list(dict.fromkeys(run.seed for run in self._runs))
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(self._experiment.title, no_wrap=True)
        if len(seeds) <= _MOST_SEEDS:
            for seed in seeds:
                table.add_column(str(seed), justify="right")
        table.add_column(f"{self._experiment.primary.metric} so far", justify="right")
        for name, mine in self._rows():
            cells = [self._cell(run, progress) for run in mine] if len(seeds) <= _MOST_SEEDS else []
            table.add_row(name, *cells, self._estimate(mine))
        return Group(table, Text(self._footer(progress), style="dim"))

    def _rows(self) -> list[tuple[str, list[PlannedRun]]]:
        rows: dict[str, list[PlannedRun]] = {}
        for run in self._runs:
            rows.setdefault(f"{run.arm} {run.task}".strip(), []).append(run)
        return list(rows.items())

    def _cell(self, run: PlannedRun, progress: Mapping[Path, StageProgress]) -> str:
        state = progress[run.directory].state
        share = done_share(run.directory) if state == "running" else None
        return SYMBOLS[state] if share is None else f"{100 * share:.0f}%"

    def _estimate(self, runs: Sequence[PlannedRun]) -> str:
        values = [self._values[run.directory] for run in runs if run.directory in self._values]
        if not values:
            return ""
        mean, half = student_interval(values)
        return number(mean) + ("" if math.isnan(half) else f" ± {number(half)}")

    def _footer(self, progress: Mapping[Path, StageProgress]) -> str:
        running = [_place(path) for path, one in progress.items() if one.state == "running"]
        ended = sum(one.state not in ("waiting", "running", "elsewhere") for one in progress.values())
        parts = [f"{ended} of {len(progress)} stages", *(f"running: {', '.join(running)}" for _ in running[:1])]
        left = seconds_left(progress, self._jobs)
        return " · ".join([*parts, *([] if left is None else [f"about {duration(left)} left"])])


def seconds_left(progress: Mapping[Path, StageProgress], jobs: int) -> float | None:
    """An estimate from what stages of the same name took, or else from what any took; None before one has ended."""
    took: dict[str, list[float]] = {}
    for path, one in progress.items():
        if one.seconds is not None and one.state == "finished":
            took.setdefault(path.name, []).append(one.seconds)
    if not took:
        return None
    usual = fmean(seconds for each in took.values() for seconds in each)
    left = 0.0
    for path, one in progress.items():
        if one.state in ("waiting", "running", "elsewhere"):
            whole = fmean(took[path.name]) if path.name in took else usual
            ran = time.monotonic() - one.started if one.started is not None else 0.0
            left += max(whole - ran, 0.0)
    return left / jobs


def done_share(directory: Path) -> float | None:
    """How much of its length a run has behind it, from the last row that it has written; None where that is unknown."""
    try:
        config = read_mapping(directory / CONFIG)
        with open(directory / "metrics.csv", "rb") as file:
            axis = file.readline().split(b",")[0].strip().decode()
            file.seek(max(0, file.seek(0, 2) - 16_384))
            last = file.read().rstrip(b"\n").split(b"\n")[-1].split(b",")[0]
        length = setting(config, {"iteration": "trainer.max_epochs", "step": "trainer.max_steps"}[axis])
        return min(1.0, float(last) / float(length))
    except (OSError, UserError, KeyError, ValueError, TypeError, ZeroDivisionError):  # it has only just started
        return None


def duration(seconds: float) -> str:
    """``41 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _place(directory: Path) -> str:
    """The end of a path: seed and stage."""
    return "/".join(directory.parts[-2:])
