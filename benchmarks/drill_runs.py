"""Runs for the drills: started, killed, and compared with an uninterrupted one."""

from __future__ import annotations

import csv
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from rlhf_lightning.__main__ import main
from rlhf_lightning.proofs.same_run import TIMED

PATHS = (str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent))
PATIENCE = 300.0
"""Seconds after which a run counts as hanging."""


@dataclass
class Run:
    """One process that trains, in ``runs/NAME`` of the working directory.

    Processes are forks of this one, which has imported everything: a drill spends its time in the runs.

    Args:
        name: of the run.
        config: a file.
        options: further arguments.
        environment: further variables.
        separate: whether to start Python anew: for W&B, which wants to end its own way.
    """

    name: str
    config: str
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    separate: bool = False

    def __post_init__(self) -> None:
        self._said: list[str] = []
        self._process: BaseProcess | None = None
        self.began, self.seconds = 0.0, 0.0
        self._signalled: float | None = None
        self.reaction: float | None = None
        """Seconds from the signal to the end."""

    @property
    def directory(self) -> Path:
        """Where it writes."""
        return Path("runs", self.name)

    def start(self) -> Run:
        """Begin, or go on."""
        argv = ["fit", "--config", self.config, "--name", self.name, *self.options]
        context = multiprocessing.get_context("fork")
        self._output, output = os.pipe()  # a file would be subject to the limits that stand for a full disk
        self._process = context.Process(target=_train, args=(argv, output, self.environment, self.separate))
        self.began = time.monotonic()
        self._process.start()
        os.close(output)
        return self

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process is not None
        assert self._process.pid is not None
        self._signalled = time.monotonic()
        os.kill(self._process.pid, number)

    def wait(self) -> int:
        """The exit status, negative for a signal."""
        assert self._process is not None
        self._process.join(PATIENCE)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"{self.name} hung")
        ended = time.monotonic()
        self.seconds = ended - self.began
        self.reaction = None if self._signalled is None else ended - self._signalled
        self._signalled = None
        os.set_blocking(self._output, False)  # a process that is left behind may hold the other end
        with open(self._output, "rb") as output:
            self._said = (output.read() or b"").decode().splitlines()
        return self._process.exitcode

    def children(self) -> list[int]:
        """The processes that it started (Linux only)."""
        assert self._process is not None
        listed = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(number) for number in listed.read_text().split()]

    @property
    def alive(self) -> bool:
        """Whether it is still running."""
        return self._process is not None and self._process.is_alive()

    def said(self) -> list[str]:
        """What it printed, the last time."""
        return self._said

    def marks(self) -> list[tuple[float, str, int]]:
        """What it began to do, and when; see `drill_parts.Marks`."""
        path = Path(f"{self.directory}.marks")
        if not path.exists():
            return []
        lines = [line.split() for line in path.read_text().splitlines()]
        return [(float(line[0]), line[1], int(line[2])) for line in lines if len(line) == 3]


def complete(run: Run) -> int:
    """How many iterations were complete when the run ended: something was begun after their checkpoint."""
    marks = run.marks()
    return max((at for _, phase, at in marks[:-1] if phase == "checkpoint"), default=0)


def went_on(run: Run) -> int:
    """The iteration that a run went on from."""
    text = "\n".join(run.said())
    found = re.search(r"(?:resuming from|starts at) (?:iteration|step) (\d+)", text)
    return int(found[1]) if found else complete(run)  # nothing was left to train


def _train(argv: list[str], output: int, environment: Mapping[str, str], separate: bool) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    if separate:
        os.environ["PYTHONPATH"] = os.pathsep.join((*PATHS, os.environ.get("PYTHONPATH", "")))
        os.execv(sys.executable, [sys.executable, "-W", "ignore", "-m", "rlhf_lightning", *argv])
    torch.set_num_threads(1)
    status = 1
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def rows(directory: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv`` without what the clock says."""
    path = directory / "metrics.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        table = [row for row in csv.DictReader(file) if None not in row.values()]
    return [{name: cell for name, cell in row.items() if not name.startswith(TIMED)} for row in table]


def differences(first: Path, second: Path) -> list[str]:
    """Everything in which two finished runs differ, by name: empty if nothing does."""
    same = rows(first) == rows(second) and all(len(rows(run)) == _lines(run) for run in (first, second))
    found = [] if same else ["metrics.csv"]
    for name in _files(first) | _files(second):
        one, other = (folder / name for folder in (first, second))
        if one.is_file() != other.is_file() or (one.is_file() and one.read_bytes() != other.read_bytes()):
            found.append(str(name))
    for name in ("last.ckpt", "last-1.ckpt", "best.ckpt"):
        one, other = (_checkpoint(folder / "checkpoints" / name) for folder in (first, second))
        found += [f"{name}: {place}" for place in _unequal(one, other, "")]
    return found


def _files(folder: Path) -> set[Path]:
    names = {path.relative_to(folder) for path in (folder / "export").rglob("*") if path.is_file()}
    return names | {Path(name) for name in ("samples.jsonl", "warnings.jsonl", "evaluation.json", "pairs.jsonl")}


def _lines(folder: Path) -> int:
    """The lines of ``metrics.csv`` below its head, whole or not."""
    path = folder / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def _checkpoint(path: Path) -> Any:
    return torch.load(path, weights_only=True) if path.exists() else None


def _unequal(first: Any, second: Any, place: str) -> Iterator[str]:
    if isinstance(first, Mapping) and isinstance(second, Mapping) and first.keys() == second.keys():
        for key in first:
            yield from _unequal(first[key], second[key], f"{place}/{key}")
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        for number, pair in enumerate(zip(first, second, strict=True)):
            yield from _unequal(*pair, f"{place}/{number}")
    elif isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        if first.dtype != second.dtype or not torch.equal(first, second):
            yield place
    elif first != second:
        yield place
