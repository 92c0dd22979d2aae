"""How objects were constructed, so that a run that Python started is written as a configuration. Imports no torch."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from types import ModuleType
from typing import Any, Self, TypeAlias

Readable: TypeAlias = str | PurePath | ModuleType
"""A file, a folder, or a module of code."""


class Constructed:
    """Remembers the arguments that an object was constructed with; see `arguments_of`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Called before the constructor, with the same arguments."""
        self = super().__new__(cls)
        object.__setattr__(self, "_constructed_with", (args, kwargs))
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the signature of the constructor instead of that of `__new__`."""
        super().__init_subclass__(**kwargs)
        if cls.__init__ is object.__init__:
            return
        parameters = list(inspect.signature(cls.__init__).parameters.values())
        cls.__signature__ = inspect.Signature(parameters[1:])  # type: ignore[attr-defined]

    def reads(self) -> Iterable[Readable]:
        """Files and folders that the object reads, and modules whose code it calls, whatever lies in them.

        A run that goes on is refused where they have changed. The objects among the arguments name their own.
        """
        return ()


def arguments_of(value: Any) -> dict[str, Any] | None:
    """The arguments of an object's constructor by name, its defaults included; None where nobody recorded them."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    if not isinstance(value, Constructed):
        return None
    args, kwargs = value._constructed_with  # type: ignore[attr-defined]
    bound = inspect.signature(type(value)).bind(*args, **kwargs)
    bound.apply_defaults()
    named = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:  # options that are passed on to a parent
            named |= named.pop(parameter.name)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            named.pop(parameter.name)
    return named


class PlainValues:
    """Values as plain data, as they stand in a configuration.

    Attributes:
        inexpressible: by their keys, what cannot be written as a configuration, in words.
    """

    def __init__(self) -> None:
        self.inexpressible: dict[str, str] = {}

    def plain(self, key: str, value: Any) -> Any:
        """A number, text, list or mapping; ``class_path`` and ``init_args`` of an object; otherwise words."""
        if isinstance(value, Enum):
            return value.name
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, PurePath):
            return str(value)
        if isinstance(value, Mapping):
            return {str(name): self.plain(f"{key}.{name}", item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(f"{key}.{number}", item) for number, item in enumerate(value)]
        arguments = arguments_of(value)
        if arguments is None:
            return self._words(key, value)
        if dataclasses.is_dataclass(value) and not _has_variants(type(value)):
            return {name: self.plain(f"{key}.{name}", item) for name, item in arguments.items()}
        return self.component(key, value)

    def component(self, key: str, value: Any, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """``class_path`` and ``init_args`` of an object.

        Args:
            without: arguments that stand elsewhere in the configuration.
        """
        cls = type(value)
        arguments = arguments_of(value)
        if arguments is None or not _can_be_imported(cls):
            self._words(key, value)
        prefix = f"{key}.init_args"
        given = {name: item for name, item in (arguments or {}).items() if name not in without}
        init_args = {name: self.plain(f"{prefix}.{name}", item) for name, item in given.items()}
        return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}

    def _words(self, key: str, value: Any) -> str:
        """The same in every process: without addresses in memory."""
        words = re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(value).split()))
        self.inexpressible[key] = words
        return words


def _has_variants(cls: type) -> bool:
    """Whether a configuration has to say which of several related dataclasses is meant."""
    return bool(cls.__subclasses__()) or any(map(dataclasses.is_dataclass, cls.__mro__[1:]))


def _can_be_imported(cls: type) -> bool:
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        return False
    return getattr(importlib.import_module(cls.__module__), cls.__qualname__, None) is cls
