"""One useful line out of jsonargparse's explanations, which run to fifty."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

Configs: TypeAlias = Mapping[str, Mapping[str, Any]]

_KEY = re.compile(r'Parser key "([^"]+)"([^:\n]*):')
_NEEDS = re.compile(r"Problem with given class_path '([^']+)':\s+the following arguments are required: (.*)")
_CLASS_PATH = re.compile(r"Problem with given class_path '([^']+)':")
_BASES = ("SyncedModule", "PolicyAlgorithm", "PassDataModule", "Listener", "Task", "RewardSource")
"""Classes that others derive from and nobody names."""

_LINKED = {"task": "task", "backbone": "backbone"}
_REQUIRED = {
    "task": "a task (--config configs/tasks/….yaml)",
    "backbone": "a backbone (in the task's configuration)",
    "model": "a model (--config configs/algorithms/….yaml)",
    "data": "a data module (in the algorithm's configuration)",
}


def one_line(message: str, *, options: Iterable[str] = (), configs: Configs | None = None) -> str:
    """The line that says which key was wrong and what was expected.

    Args:
        message: what jsonargparse says.
        options: keys that the command takes, for "did you mean".
        configs: configuration files that were given, by path, to say in which one a wrong key stands.
    """
    options, configs = list(options), configs or {}
    if unknown := re.search(r"(?:does not accept option|Key) '([^']+)'|unrecognized arguments: (\S+)", message):
        given = unknown[1] or unknown[2]
        return _unknown_option(given, options, configs)
    if required := re.match(r"the following arguments are required: (.*)", message):
        keys = [key.strip().rpartition(".")[2] for key in required[1].split(",")]
        return "missing: " + ", ".join(what for key, what in _REQUIRED.items() if key in keys)
    keys = [name + index for name, index in _KEY.findall(message)]
    if not keys:
        argument = re.match(r"argument (?:\S+/)?(--\S+): expected one argument", message)
        return f"{argument[1]} needs a value" if argument else " ".join(message.split())
    key = ".init_args.".join(keys)
    for name, source in _LINKED.items():
        if re.fullmatch(rf"(model|data)\.init_args\.{name}.*", key):
            return f"{key} is filled in from --{source}; leave it out"
    problem = _class_problem(message, key) or _type_problem(message, key)
    return f"{problem}{_where(key, configs)}" if problem else " ".join(message.split())


def _unknown_option(given: str, options: list[str], configs: Configs) -> str:
    name = given.lstrip("-").split("=")[0]
    prefix = "--" if given.startswith("--") else ""
    if not prefix and name not in options and not _where(name, configs):
        return f"unexpected argument {given!r}; every setting is an option: --KEY VALUE"
    return f"unknown key {prefix}{name}{_where(name, configs)}{_did_you_mean(name, options, prefix)}"


def _class_problem(message: str, key: str) -> str | None:
    """A class that does not exist, is of the wrong kind, or does not take an argument."""
    classes = _CLASS_PATH.findall(message)
    last = classes[-1] if classes else ""
    if option := re.search(r"Option '([^']+)' is not accepted", message):
        known = _arguments(last)
        hint = _did_you_mean(option[1], known, "") or f"; it takes {', '.join(known)}"
        return f"unknown key {key}.init_args.{option[1]}: {_short(last)} has no such argument{hint}"
    if required := _NEEDS.search(message):
        return f"{key}: {_short(required[1])} needs {required[2]} ({key}.init_args.{required[2].split(',')[0]})"
    if missing := re.search(r"module '([^']+)' has no attribute '([^']+)'", message):
        return f"{key}: no class {missing[2]} in {missing[1]}{_did_you_mean(missing[2], _classes_in(missing[1]), '')}"
    if missing := re.search(r"No module named '([^']+)'", message):
        return f"{key}: {last or 'the class'} cannot be imported (no module named {missing[1]!r})"
    if wrong := re.search(r"does not correspond to a subclass of (\w+)", message):
        return f"{key}: {_short(_given(message))} is not a {wrong[1]}"
    if name := re.search(r"Expected a dot import path string: (.*)", message):
        known = _subclasses(_innermost(message))
        own = [known_name for known_name, module in known.items() if module.startswith("rlhf_lightning.")] or known
        hint = _did_you_mean(name[1], known, "") or f"; expected one of {', '.join(own)}" * bool(own)
        return f"{key}: no class {name[1]!r}{hint}"
    return None


def _type_problem(message: str, key: str) -> str | None:
    """A value of the wrong type."""
    block = _innermost(message)
    if union := re.search(r"Subtypes: \[(.*)\]$", block, re.MULTILINE):
        names = " or ".join(_type_name(name) for name in _split(union[1]))
        types = " or ".join(dict.fromkeys(names.split(" or ")))
        return f"{key}: expected {types}, got {_clipped(_given(block))!r}"
    if single := re.search(r"Expected an? (.*?)(?:\. Got value: (.*))?$", block, re.MULTILINE):
        value = single[2] if single[2] is not None else _given(block)
        return f"{key}: expected {_type_name(single[1])}, got {_clipped(value)!r}"
    return None


def _innermost(message: str) -> str:
    """The part about the innermost key."""
    return message[[match.start() for match in _KEY.finditer(message)][-1] :]


def _given(block: str) -> str:
    values = re.findall(r"Given value: (.*)", block)
    return values[0] if values else ""


def _split(types: str) -> list[str]:
    """Split at the commas that stand outside brackets."""
    parts, depth = [""], 0
    for character in types:
        depth += (character in "[<(") - (character in "]>)")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _type_name(name: str) -> str:
    name = re.sub(r"<class '([^']+)'>", lambda match: _short(match[1]), name)
    if literal := re.fullmatch(r"typing\.Literal\[(.*)\]", name):
        return literal[1].replace(", ", " or ").replace("'", "")
    if name.startswith(("list[", "tuple[", "dict[", "collections.")):
        name = re.sub(r"[\w.]+\.(\w+)", r"\1", name)
    return {"NoneType": "null", "bool": "true or false", "str": "text"}.get(name, name)


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def _clipped(value: str, limit: int = 60) -> str:
    return value if len(value) <= limit else f"{value[:limit]}…"


def _did_you_mean(name: str, known: Iterable[str], prefix: str) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _where(key: str, configs: Configs) -> str:
    """The file that holds the key, of several the last."""
    path = re.sub(r"\[.*?\]", "", key).split(".")
    for file, content in reversed(configs.items()):
        at: Any = content
        for part in path:
            at = at.get(part) if isinstance(at, Mapping) else None
        if at is not None:
            return f" (in {file})"
    return ""


def _arguments(class_path: str) -> list[str]:
    """Names of a class's arguments, those of its parents included where it passes them on."""
    cls = _import(class_path)
    names: dict[str, None] = {}
    for base in inspect.getmro(cls) if isinstance(cls, type) else ():
        parameters = inspect.signature(base.__init__).parameters.values() if "__init__" in vars(base) else ()
        named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        names |= dict.fromkeys(name for name in named if name not in ("self", *_LINKED))
        if parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def _subclasses(block: str) -> dict[str, str]:
    """Short names of the classes that could have been given, with their modules."""
    found: dict[str, str] = {}
    for path in re.findall(r"(?:<class '|\[)([\w.]+)(?:'>|\])", block):
        base = _import(path)
        pending = [base] if isinstance(base, type) and "." in path else []
        while pending:
            cls = pending.pop()
            pending += type.__subclasses__(cls)
            if not inspect.isabstract(cls) and not cls.__name__.startswith("_") and cls.__name__ not in _BASES:
                found[cls.__name__] = cls.__module__
    return dict(sorted(found.items()))


def _classes_in(module: str) -> list[str]:
    return [name for name, _ in inspect.getmembers(importlib.import_module(module), inspect.isclass)]


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
