"""Values that jsonargparse passes on although the class that gets them does not take them.

Null is taken for "not given", and a single value given to a group of arguments in a file for the whole group.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from jsonargparse import Namespace

from rlhf_lightning.errors import UserError


def check_values(key: str, component: Any, *, filled_in: Collection[str] = ()) -> None:
    """Check what a class and the classes among its arguments were given.

    Args:
        key: where it stands.
        component: ``class_path`` and ``init_args``.
        filled_in: arguments that come from the options of these names.

    Raises:
        UserError: null or a single value stands where neither is taken.
    """
    if component is None:
        return
    arguments = component.get("init_args")
    if isinstance(arguments, Namespace):
        given = {name: value for name, value in vars(arguments).items() if name not in filled_in}
        for name in filled_in:
            if arguments.get(name) is not None:
                raise UserError(f"{key}.init_args.{name} is filled in from --{name}; leave it out")
        _check(f"{key}.init_args", given, _types(_class(component.class_path)))


def _check(key: str, arguments: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        place, kind = f"{key}.{name}", expected.get(name, Any)
        if value is None and not _takes_null(kind):
            raise UserError(f"{place}: expected {_in_words(kind)}, got null")
        if isinstance(value, Namespace) and "class_path" in value:
            check_values(place, value)
        elif isinstance(value, Namespace) and dataclasses.is_dataclass(kind):
            _check(place, vars(value), _types(kind))
        elif isinstance(value, str | int | float) and dataclasses.is_dataclass(kind):
            raise UserError(f"{place}: expected {_in_words(kind)}, got {value!r}")


def _types(cls: type) -> dict[str, Any]:
    """Types of a class's arguments that are known here, those of its parents included where it passes them on."""
    found: dict[str, Any] = {}
    for base in inspect.getmro(cls):
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        hints = _hints(base)
        for parameter in parameters:
            if parameter.name in hints and parameter.default is not None:
                found.setdefault(parameter.name, hints[parameter.name])
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__)
    except (NameError, TypeError):  # imported for type checkers only
        return {}


def _takes_null(kind: Any) -> bool:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return any(_takes_null(part) for part in typing.get_args(kind))
    return kind in (Any, None, types.NoneType) or isinstance(kind, typing.TypeVar) or None in typing.get_args(kind)


def _in_words(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return "a mapping of its arguments"
    return {bool: "true or false", str: "text"}.get(kind) or getattr(kind, "__name__", str(kind))


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
