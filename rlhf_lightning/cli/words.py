"""The words of a command line, in the one form that is parsed.

Whoever writes command lines by program, as the agents of W&B's sweeps do, writes values as Python's ``str`` does, and
options in no order. Both are put right here, once, before anything is parsed.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence

from rlhf_lightning.cli.given import shortened


def as_parsed(argv: Sequence[str]) -> list[str]:
    """The words with null for ``None``, JSON for Python's collections, and options of a class after the class."""
    options = [[_option(group[0]), *map(_value, group[1:])] for group in _groups(argv)]
    return [word for option in _classes_first(options) for word in option]


def _groups(argv: Sequence[str]) -> list[list[str]]:
    """Each option with the values that follow it; the words before the first option are groups of their own."""
    groups: list[list[str]] = []
    for word in argv:
        if not groups or _is_option(word) or not _is_option(groups[-1][0]) or "=" in groups[-1][0]:
            groups.append([word])
        else:
            groups[-1].append(word)
    return groups


def _is_option(word: str) -> bool:
    return word.startswith("--") or word == "-c" or word.startswith("-c=")


def _option(word: str) -> str:
    """An option whose value, where it is in the same word, can be parsed."""
    name, equals, value = word.partition("=")
    return f"{name}={_value(value)}" if equals and _is_option(word) else word


def _value(text: str) -> str:
    """A value as JSON, where it is what Python prints for None, a list, a tuple or a dict; otherwise as it is."""
    if text == "None":
        return "null"
    if not text.startswith(("{", "[", "(")):
        return text
    try:
        return json.dumps(ast.literal_eval(text), ensure_ascii=False)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # not Python: YAML, JSON, or a plain text
        return text


def _classes_first(options: Sequence[list[str]]) -> list[list[str]]:
    """The options, with those of an object that stand before its class moved behind it.

    A class that is given replaces the one before it, together with its arguments: arguments that stand before it would
    be lost, or refused as those of the other class.
    """
    keys = [_key(option[0]) for option in options]
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    behind = list(range(len(keys)))
    for key, place in sorted(first.items(), key=lambda item: item[0].count(".")):  # a class before its arguments
        for child, name in enumerate(keys[:place]):
            if key and name.startswith(f"{key}."):
                behind[child] = max(behind[child], behind[place])
    order = sorted(range(len(keys)), key=lambda place: (behind[place], keys[place].count("."), place))
    return [options[place] for place in order]


def _key(word: str) -> str:
    """The setting that an option gives, spelled as short as it may be; empty for what is no setting."""
    if not word.startswith("--"):
        return ""
    return shortened(word[2:].partition("=")[0].removesuffix("+").removesuffix(".class_path"))
