"""One useful line out of jsonargparse's explanations, which run to fifty."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from lightning.pytorch import Callback, LightningDataModule, LightningModule

from rlhf_lightning.rewards.objectives import ObjectiveWeights
from rlhf_lightning.rewards.scaling import Scaling
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.task import Task

Configs: TypeAlias = Mapping[str, Mapping[str, Any]]

_KEY = re.compile(r'Parser key "([^"]+)"([^:\n]*):')
_NEEDS = re.compile(r"Problem with given class_path '([^']+)':\s+the following arguments are required: (.*)")
_UNKNOWN = re.compile(
    r"Option '([^']+)' is not accepted|"
    r"unrecognized arguments: --([^\s=]+)|"
    r"Group '([^']+)' does not accept option '([^']+)'"
)
_UNKNOWN_OPTION = re.compile(r"(?:Subcommand .* does not accept option|Key) '([^']+)'|unrecognized arguments: (\S+)")
_CLASS_PATH = re.compile(r"Problem with given class_path '([^']+)':")
_LINKED = {"task": "task", "backbone": "backbone"}
_REQUIRED = {
    "task": "a task (--config configs/tasks/….yaml)",
    "backbone": "a backbone (in the task's configuration)",
    "model": "a model (--config configs/algorithms/….yaml)",
    "data": "a data module (in the algorithm's configuration)",
}


def one_line(
    message: str, *, options: Iterable[str] = (), configs: Configs | None = None, argv: Iterable[str] = ()
) -> str:
    """The line that says which key was wrong and what was expected.

    Args:
        message: what jsonargparse says.
        options: keys that the command takes, for "did you mean".
        configs: configuration files that were given, by path, to say in which one a wrong key stands.
        argv: the command's arguments; a key that is among them is not looked for in files.
    """
    options = list(options)
    given = {_plain(word.lstrip("-").split("=")[0]) for word in argv if word.startswith("--")}
    where = _Where(configs or {}, given)
    if unknown := _UNKNOWN_OPTION.match(message):
        return _unknown_option(unknown[1] or unknown[2], options, where)
    if required := re.match(r"the following arguments are required: (.*)", message):
        keys = [key.strip().rpartition(".")[2] for key in required[1].split(",")]
        return "missing: " + ", ".join(what for key, what in _REQUIRED.items() if key in keys)
    keys = [name + index for name, index in _KEY.findall(message)]
    keys = [key for number, key in enumerate(keys) if key not in keys[:number]]
    if not keys:
        argument = re.match(r"argument (?:\S+/)?(--\S+): expected one argument", message)
        return f"{argument[1]} needs a value" if argument else " ".join(message.split())
    key = ".init_args.".join(keys)
    for name, source in _LINKED.items():
        if re.fullmatch(rf"(model|data)\.init_args\.{name}.*", key):
            return f"{key} is filled in from --{source}; leave it out"
    return _class_problem(message, key, where) or _type_problem(message, key, where) or " ".join(message.split())


class _Where:
    """Says in which file a key stands."""

    def __init__(self, configs: Configs, given: set[str]) -> None:
        self.configs, self.given = configs, given

    def __call__(self, key: str) -> str:
        path = re.sub(r"\[.*?\]", "", key)
        for file, content in reversed(self.configs.items()):
            at: Any = content
            for part in path.split("."):
                at = at.get(part) if isinstance(at, Mapping) else None
            if at is not None and _plain(path) not in self.given:
                return f" (in {file})"
        return ""


def _plain(key: str) -> str:
    """A key as it may be abbreviated on the command line."""
    return key.replace(".init_args.", ".")


def _unknown_option(given: str, options: list[str], where: _Where) -> str:
    name = given.lstrip("-").split("=")[0]
    prefix = "--" if given.startswith("--") else ""
    if not prefix and "=" in given:
        return f"unexpected argument {given!r}; every setting is an option: --{name} VALUE"
    if not prefix and not where(name):
        return f"unexpected argument {given!r}; every setting is an option: --KEY VALUE"
    return f"unknown key {prefix}{name}{where(name)}{_did_you_mean(name, options, prefix)}"


def _class_problem(message: str, key: str, where: _Where) -> str | None:
    """A class that does not exist, is of the wrong kind, or does not take an argument."""
    classes = _CLASS_PATH.findall(message)
    last = classes[-1] if classes else ""
    if option := _UNKNOWN.search(message):
        name = ".".join(part for part in option.groups() if part)
        unknown, known = f"{key}.init_args.{name}", _arguments(last)
        own = [argument for argument in known if "." not in argument]
        hint = _did_you_mean(name, known, "") or f"; it takes {', '.join(own)}"
        return f"unknown key {unknown}{where(unknown)}: {_short(last)} has no such argument{hint}"
    if re.search("Unable to load config", message):
        return f"{key}: expected a mapping of its arguments, got {_clipped(_given(message))}{where(key)}"
    if required := _NEEDS.search(message):
        return f"{key}: {_short(required[1])} needs {required[2]} ({key}.init_args.{required[2].split(',')[0]})"
    if missing := re.search(r"module '([^']+)' has no attribute '([^']+)'", message):
        hint = _did_you_mean(missing[2], _classes_in(missing[1]), "")
        return f"{key}: no class {missing[2]} in {missing[1]}{hint}{where(f'{key}.class_path')}"
    if missing := re.search(r"No module named '([^']+)'", message):
        return f"{key}: {last or 'the class'} cannot be imported (no module named {missing[1]!r})"
    if wrong := re.search(r"does not correspond to a subclass of (\w+)", message):
        return f"{key}: {_short(_given(message))} is not a {wrong[1]}"
    if name := re.search(r"Expected a dot import path string: (.*)", message):
        known = _subclasses(_bases(_innermost(message), last, key))
        own = [known_name for known_name, module in known.items() if module.startswith("rlhf_lightning.")] or known
        hint = _did_you_mean(name[1], known, "") or f"; expected one of {', '.join(own)}" * bool(own)
        return f"{key}: no class {name[1]!r}{hint}{where(f'{key}.class_path')}"
    return None


def _type_problem(message: str, key: str, where: _Where) -> str | None:
    """A value of the wrong type."""
    block = _innermost(message)
    if union := re.search(r"Subtypes: \[(.*)\]$", block, re.MULTILINE):
        names = " or ".join(_type_name(name) for name in _split(union[1]))
        types = " or ".join(dict.fromkeys(names.split(" or ")))
        return f"{key}: expected {types}, got {_clipped(_given(block))}{where(key)}"
    if single := re.search(r"Expected an? (.*?)(?:\. Got value: (.*))?$", block, re.MULTILINE):
        value = single[2] if single[2] is not None else _given(block)
        return f"{key}: expected {_type_name(single[1])}, got {_clipped(value)}{where(key)}"
    return None


def _innermost(message: str) -> str:
    """The part about the innermost key."""
    return message[[match.start() for match in _KEY.finditer(message)][-1] :]


def _given(block: str) -> str:
    values = re.findall(r"Given value: (.*)", block)
    nested = re.fullmatch(r"NestedArg\(key='[^']*', val=(.*)\)", values[0]) if values else None
    return nested[1].strip("'") if nested else "".join(values[:1])


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
    return repr(value if len(value) <= limit else f"{value[:limit]}…")


def _did_you_mean(name: str, known: Iterable[str], prefix: str) -> str:
    known = list(known)
    deeper = [other for other in known if other.endswith(f".{name}")]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8 if deeper else 0.6)
    found = dict.fromkeys(prefix + other for other in [*close, *deeper])
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _arguments(class_path: str) -> list[str]:
    """Names of a class's arguments, those of its parents included where it passes them on."""
    cls = _import(class_path)
    names: dict[str, None] = {}
    for base in inspect.getmro(cls) if isinstance(cls, type) else ():
        parameters = inspect.signature(base.__init__).parameters.values() if "__init__" in vars(base) else ()
        named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        names |= dict.fromkeys(name for name in named if name not in ("self", *_LINKED))
        hints = _hints(base) if parameters else {}
        for name in [name for name in names if dataclasses.is_dataclass(hints.get(name))]:
            family = [hints[name], *type.__subclasses__(hints[name])]
            fields = [field.name for kind in family for field in dataclasses.fields(kind)]
            names |= dict.fromkeys(f"{name}.{field}" for field in fields)
        if parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def _bases(block: str, owner: str, key: str) -> list[type]:
    """The classes whose subclasses a key takes: named in the message, or by the argument of the owning class."""
    types = re.search(r"Subtypes: (.*)", block)
    found = [_import(path) for path in re.findall(r"\w+(?:\.\w+)+", types[1])] if types else []
    owning = _import(owner)
    if isinstance(owning, type):
        found.append(_hints(owning).get(_short(key)))
    return [cls for cls in found if isinstance(cls, type)]


def _subclasses(bases: list[type]) -> dict[str, str]:
    """Short names of the classes that could have been given, with their modules."""
    found: dict[str, str] = {}
    pending = list(bases)
    while pending:
        cls = pending.pop()
        pending += type.__subclasses__(cls)
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_") and not _is_base(cls):
            found[cls.__name__] = cls.__module__
    return dict(sorted(found.items()))


_NAMED_BY_NOBODY = (LightningModule, LightningDataModule, Callback, Task, RewardSource, Scaling, ObjectiveWeights)
"""Classes that mean something only where others derive from them."""


def _is_base(cls: type) -> bool:
    """Whether others derive from the class and nobody names it."""
    derived = any(child.__module__.startswith("rlhf_lightning.") for child in type.__subclasses__(cls))
    return derived and issubclass(cls, _NAMED_BY_NOBODY)


def _classes_in(module: str) -> list[str]:
    return [name for name, _ in inspect.getmembers(importlib.import_module(module), inspect.isclass)]


def _hints(cls: type) -> dict[str, Any]:
    """Types of a class's arguments, as far as they can be told outside a type checker."""
    try:
        return typing.get_type_hints(cls.__init__)
    except (NameError, TypeError):
        return {}


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
