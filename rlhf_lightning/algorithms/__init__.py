"""Algorithms: one file each, none importing another. A class in a file here is found without being registered."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_lightning.training.module import Module


def all_algorithms() -> list[type[Module]]:
    """Every algorithm class of this package, in the order of the file names."""
    from rlhf_lightning.training.module import Module

    found: list[type[Module]] = []
    for info in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        if not info.ispkg:
            module = importlib.import_module(info.name)
            found += [
                cls
                for cls in vars(module).values()
                if isinstance(cls, type) and issubclass(cls, Module) and cls.__module__ == info.name
            ]
    return found
