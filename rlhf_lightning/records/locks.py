"""A file lock: one training process per run directory. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from rlhf_lightning.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


def check_free(directory: Path) -> None:
    """Check that no process is training in a directory.

    Raises:
        UserError: one is.
    """
    if (directory / LOCK).exists() and (lock := locked(directory, shared=True)) is not None:
        lock.close()


def locked(directory: Path, *, shared: bool = False, name: str = LOCK) -> IO[str] | None:
    """Hold the directory's lock until the file is closed or the process ends, where the system has such locks.

    Args:
        shared: with other processes that only look whether there is an exclusive one.
        name: of the lock's file.

    Raises:
        UserError: another process holds it.
    """
    if fcntl is None:
        return None
    file = open(directory / name, "w", encoding="utf-8")  # noqa: SIM115 held open as long as the run
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"another process is training in {directory}; choose another --name, or wait") from None
    except OSError:  # a file system without locks
        file.close()
        return None
    return file
