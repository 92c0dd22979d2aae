"""The checkpoint files of a run: which of them are whole, and which of the earlier ones are kept. Imports no torch."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from rlhf_lightning.records.files import temporary_path

LAST = "last.ckpt"
BEST = "best.ckpt"
_ASIDE = f".{LAST}.earlier.tmp"


def is_intact(path: Path) -> bool:
    """Whether a checkpoint's bytes are as they were written.

    It is a zip archive with a checksum of each part, which torch does not compare when it loads one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # a damaged archive can raise anything while it is taken apart
        return False


def newest_intact(folder: Path) -> tuple[Path | None, list[Path]]:
    """The checkpoint to continue from, and the newer ones that are damaged."""
    damaged: list[Path] = []
    for path in [folder / LAST, *earlier_ones(folder)]:
        if is_intact(path):
            return path, damaged
        if path.is_file():
            damaged.append(path)
    return None, damaged


def earlier_ones(folder: Path) -> list[Path]:
    """What ``last.ckpt`` was before, newest first: ``last-1.ckpt``, ``last-2.ckpt``, …."""
    numbers = [path.stem.removeprefix("last-") for path in folder.glob("last-*.ckpt")]
    return [_earlier(folder, number) for number in sorted(int(number) for number in numbers if number.isdecimal())]


@contextlib.contextmanager
def kept(last: Path, keep: int) -> Iterator[None]:
    """Around the replacement of ``last.ckpt``: keeps what it was as ``last-1.ckpt``, and so on.

    At no moment are there fewer whole checkpoints than before, and a failure inside leaves all of them as they are.

    Args:
        keep: number of checkpoints, the new one included.
    """
    aside = last.with_name(_ASIDE)
    if last.is_file():
        link(last, aside)
    try:
        yield
        _shift(last, keep)
    finally:
        aside.unlink(missing_ok=True)


def settle(last: Path, keep: int) -> None:
    """After a crash: finish what `kept` had begun, or undo it where ``last.ckpt`` had not been replaced yet."""
    aside = last.with_name(_ASIDE)
    if aside.is_file() and filecmp.cmp(aside, last, shallow=False):
        aside.unlink()
    _shift(last, keep)


def _shift(last: Path, keep: int) -> None:
    """Make what was set aside ``last-1.ckpt``, and drop what is too old; can be done again after a crash."""
    folder, aside = last.parent, last.with_name(_ASIDE)
    if aside.is_file():
        for number in range(max(keep - 2, 0), 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(_earlier(folder, number), _earlier(folder, number + 1))
        os.replace(aside, _earlier(folder, 1))
    for path in earlier_ones(folder)[keep - 1 :]:
        path.unlink()


def sync_lines(run: Path) -> None:
    """Have the rows and lines of a run on the disk, before a checkpoint counts them as written."""
    for path in (*run.glob("*.csv"), *run.glob("*.jsonl")):
        with open(path, "r+b") as file:
            os.fsync(file.fileno())


def link(source: Path, target: Path) -> None:
    """Give a file a second name, atomically. The first one can be replaced later and leaves this one as it is."""
    temporary = temporary_path(target)
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _earlier(folder: Path, number: int) -> Path:
    return folder / f"last-{number}.ckpt"
