"""Values that jsonargparse passes on although the class that gets them does not take them.

Null is taken for "not given", and a single value given to a group of arguments in a file for the whole group.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from jsonargparse import Namespace

from rlhf_lightning.cli.introspection import FILLED_IN, argument_types, import_class
from rlhf_lightning.cli.messages import type_name


def value_mistakes(config: Namespace) -> Iterator[tuple[str, str]]:
    """Keys with what is wrong with their values: null or a single value stands where neither is taken."""
    for key in ("task", "backbone", "model", "data"):
        yield from _of_class(key, config.get(key), links=FILLED_IN if key in ("model", "data") else ())


def _of_class(key: str, component: Any, links: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """What a class and the classes among its arguments were given, but for arguments that other options fill in."""
    arguments = component.get("init_args") if isinstance(component, Namespace) else None
    if not isinstance(arguments, Namespace):
        return
    for name in links:
        if arguments.get(name) is not None:
            place = f"{key}.init_args.{name}"
            yield place, f"{place} is filled in from --{name}; leave it out"
    own = {name: value for name, value in vars(arguments).items() if name not in links}
    yield from _of_arguments(f"{key}.init_args", own, argument_types(import_class(component.class_path)))


def _of_arguments(key: str, arguments: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in arguments.items():
        place, kind = f"{key}.{name}", expected.get(name, Any)
        options = kind if dataclasses.is_dataclass(kind) and isinstance(kind, type) else None
        if value is None and not _takes_null(kind):
            yield place, f"{place}: expected {_in_words(kind)}, got null"
        elif isinstance(value, Namespace) and "class_path" in value:
            yield from _of_class(place, value)
        elif isinstance(value, Namespace) and options:
            yield from _of_arguments(place, vars(value), argument_types(options))
        elif isinstance(value, str | int | float) and options:
            yield place, f"{place}: expected {_in_words(kind)}, got {value!r}"


def _takes_null(kind: Any) -> bool:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return any(_takes_null(part) for part in typing.get_args(kind))
    return kind in (Any, None, types.NoneType) or isinstance(kind, typing.TypeVar) or None in typing.get_args(kind)


def _in_words(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return "a mapping of its arguments"
    return type_name(getattr(kind, "__name__", str(kind)))
