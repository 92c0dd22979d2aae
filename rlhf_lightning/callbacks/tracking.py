"""Forwarding metrics to loggers: a failure is a warning, since the run directory has every number."""

from __future__ import annotations

import logging
from collections.abc import Callable
from weakref import WeakSet

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger

log = logging.getLogger(__name__)

_failed: WeakSet[Logger] = WeakSet()
"""Loggers whose failure has been reported."""


def tell_loggers(trainer: Trainer, tell: Callable[[Logger], None]) -> None:
    """Pass something on to every logger; the first failure of each is a warning of one line, further ones are silent.

    A logger that failed is told again the next time: a server may come back.
    """
    for logger in trainer.loggers:
        try:
            tell(logger)
        except Exception as error:
            if logger not in _failed:
                _failed.add(logger)
                reason = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))
                log.warning(
                    "%s failed (%s): training goes on, and the run directory has every row",
                    type(logger).__name__,
                    reason,
                )
