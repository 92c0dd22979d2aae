"""Writing files so that a crash or a full disk leaves the old content or the new, and one line. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rlhf_lightning.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around the writing of a file: one line where that is impossible, as when the disk is full.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, OSError) or "(os error " in reason:  # so say libraries that are written in Rust
            raise UserError(f"{path} cannot be written: {reason}") from error
        raise


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old or the new content and nothing between.

    Raises:
        UserError: it cannot be written.
    """
    with writing(path):
        replace_file(path, lambda file: file.write(text.encode("utf-8")))


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write beside the target, sync to disk and rename."""
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Where this process writes what will replace a file."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that is, or was, being written."""
    return name.startswith(".") and name.endswith(".tmp")


def remove_temporary(folder: Path) -> None:
    """Remove the files that a killed process was writing."""
    for path in folder.glob(".*.tmp"):
        if path.is_file():
            path.unlink()
