"""Limits of time and memory for what a checkpoint brings along and is run, such as its chat template."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rlhf_lightning.errors import UserError


@contextmanager
def limited(what: str, *, seconds: float, gigabytes: float) -> Iterator[None]:
    """Run a block that may take so much time and so much more memory than the process has, and no more.

    Time is limited in the main thread of Unix, memory on Linux; elsewhere there is no such means. It is time that the
    process computes: one that is suspended in the middle, with the computer or by a scheduler, goes on afterwards.

    Args:
        what: it is, for the message.

    Raises:
        UserError: the block takes more of either.
    """
    try:
        with _time_limit(what, seconds), _memory_limit(gigabytes):
            yield
    except MemoryError as error:
        raise UserError(f"{what} takes more than {gigabytes:g} GB of memory; expected one that is modest") from error


@contextmanager
def _time_limit(what: str, seconds: float) -> Iterator[None]:
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def refuse(number: int, frame: FrameType | None) -> None:
        raise UserError(f"{what} takes more than {seconds:g} seconds; expected one that ends")

    handler = signal.signal(signal.SIGVTALRM, refuse)
    timer = signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, *timer)
        signal.signal(signal.SIGVTALRM, handler)


@contextmanager
def _memory_limit(gigabytes: float) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(gigabytes * 2**30)
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
