"""One useful line out of jsonargparse's explanations, which run to fifty."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlhf_lightning.cli.given import Given
from rlhf_lightning.cli.introspection import (
    FILLED_IN,
    argument_names,
    argument_types,
    class_names,
    import_class,
    import_problem,
    subclasses,
)

_KEY = re.compile(r'Parser key "([^"]+)"([^:\n]*):')
_NEEDS = re.compile(r"Problem with given class_path '([^']+)':\s+the following arguments are required: (.*)")
_UNKNOWN = re.compile(
    r"Option '([^']+)' is not accepted|"
    r"unrecognized arguments: --([^\s=]+)|"
    r"Group '([^']+)' does not accept option '([^']+)'"
)
_UNKNOWN_OPTION = re.compile(r"(?:Subcommand .* does not accept option|Key) '([^']+)'|unrecognized arguments: (\S+)")
_CLASS_PATH = re.compile(r"Problem with given class_path '([^']+)':")
_REQUIRED = {
    "task": "a task (--config configs/tasks/….yaml)",
    "backbone": "a backbone (in the task's configuration)",
    "model": "a model (--config configs/algorithms/….yaml)",
    "data": "a data module (in the algorithm's configuration)",
}


@dataclass(frozen=True)
class Mistake:
    """A mistake in the arguments or in a file.

    Args:
        line: what is wrong, and what was expected; empty where it follows from other mistakes.
        key: the setting, or the argument, that is wrong; empty where the line is not about one.
    """

    line: str
    key: str = ""


def explain(message: str, *, options: Sequence[str] = (), given: Given | None = None) -> Mistake:
    """The mistake that a message of jsonargparse is about.

    Args:
        options: keys that the command takes, for "did you mean".
        given: the settings as they were given, to say in which file a wrong key stands.
    """
    given = given or Given(())
    plain = " ".join(message.split())
    if unknown := _UNKNOWN_OPTION.match(message):
        return _unknown_option(unknown[1] or unknown[2], options, given)
    if required := re.match(r"the following arguments are required: (.*)", message):
        keys = [key.strip().rpartition(".")[2] for key in required[1].split(",")]
        missing = [text for key, text in _REQUIRED.items() if key in keys and key not in given.dropped]
        return Mistake(f"missing: {', '.join(missing)}" if missing else "")
    keys = list(dict.fromkeys(name + index for name, index in _KEY.findall(message)))
    if not keys:
        argument = re.match(r"argument (?:\S+/)?(--\S+): expected one argument", message)
        return Mistake(f"{argument[1]} needs a value" if argument else plain)
    key = ".init_args.".join(keys)
    for name in FILLED_IN:
        if re.fullmatch(rf"(model|data)\.init_args\.{name}.*", key):
            return Mistake(f"{key} is filled in from --{name}; leave it out", key)
    if failed := _failed_import(message, key, given):
        return Mistake(failed)  # without its key: what else is wrong may follow from it
    return _unknown_argument(message, key, given) or Mistake(
        _class_problem(message, key, given) or _type_problem(message, key, given) or plain, key
    )


def _unknown_option(text: str, options: Sequence[str], given: Given) -> Mistake:
    name = text.lstrip("-").partition("=")[0]
    prefix = "--" if text.startswith("--") else ""
    where = given.where(name)
    if not prefix and ("=" in text or not where):
        form = f"{name} VALUE" if "=" in text else "KEY VALUE"
        return Mistake(f"unexpected argument {text!r}; every setting is an option: --{form}", text)
    return Mistake(f"unknown key {prefix}{name}{where}{_did_you_mean(name, options, prefix)}", text)


def _unknown_argument(message: str, key: str, given: Given) -> Mistake | None:
    """An argument that a class does not take."""
    option = _UNKNOWN.search(message)
    if option is None:
        return None
    name = ".".join(part for part in option.groups() if part)
    path, unknown = _last_class(message), f"{key}.init_args.{name}"
    known = argument_names(import_class(path))
    own = [argument for argument in known if "." not in argument]
    hint = _did_you_mean(name, known, "") or f"; it takes {', '.join(own)}"
    return Mistake(
        f"unknown key {unknown}{given.where(unknown)}: {_short(path)} has no such argument{hint}",
        unknown,
    )


def _failed_import(message: str, key: str, given: Given) -> str | None:
    """A class in a module of the user's own that cannot be imported because of an error in it."""
    path = _last_class(message) or str(given.value(f"{key}.class_path") or "")
    problem = import_problem(path) if "." in path else None
    where = given.where(f"{key}.class_path")
    return f"{key}: importing {path.rpartition('.')[0]} raised {problem}{where}" if problem else None


def _class_problem(message: str, key: str, given: Given) -> str | None:
    """A class that does not exist, is of the wrong kind, or lacks an argument."""
    path = _last_class(message)
    where = given.where(f"{key}.class_path")
    if re.search("Unable to load config", message):
        return f"{key}: expected a mapping of its arguments, got {_clipped(_given_value(message))}{given.where(key)}"
    if required := _NEEDS.search(message):
        return f"{key}: {_short(required[1])} needs {required[2]} ({key}.init_args.{required[2].split(',')[0]})"
    if absent := re.search(r"module '([^']+)' has no attribute '([^']+)'|No module named '([^']+)'", message):
        module, name, missing = absent.groups()
        if name == _short(path):
            hint = _did_you_mean(name, class_names(module), "") or _of_another_version(path)
            return f"{key}: no class {name} in {module}{hint}{where}"
        reason = f"{path or 'the class'} cannot be imported (no module named {missing or f'{module}.{name}'!r})"
        return f"{key}: {reason}{_of_another_version(path)}{where}"
    if wrong := re.search(r"does not correspond to a subclass of (\w+)", message):
        return f"{key}: {_short(_given_value(message))} is not a {wrong[1]}"
    if name := re.search(r"Expected a dot import path string: (.*)", message):
        known = subclasses(_bases(_innermost(message), path, key))
        own = [short for short, module in known.items() if module.startswith("rlhf_lightning.")] or list(known)
        hint = _did_you_mean(name[1], known, "") or (f"; expected one of {', '.join(own)}" if own else "")
        return f"{key}: no class {name[1]!r}{hint}{where}"
    return None


def _of_another_version(path: str) -> str:
    """What to do where a class of the package is not there any more."""
    if not path.startswith("rlhf_lightning."):
        return ""
    return "; name the class of this version that replaces it, or use the version that wrote the configuration"


def _type_problem(message: str, key: str, given: Given) -> str | None:
    """A value of the wrong type."""
    block = _innermost(message)
    if union := re.search(r"Subtypes: \[(.*)\]$", block, re.MULTILINE):
        names = " or ".join(type_name(name) for name in _split(union[1]))
        types = " or ".join(dict.fromkeys(names.split(" or ")))
        return f"{key}: expected {types}, got {_clipped(_given_value(block))}{given.where(key)}"
    if single := re.search(r"Expected an? (.*?)(?:\. Got value: (.*))?$", block, re.MULTILINE):
        value = single[2] if single[2] is not None else _given_value(block)
        return f"{key}: expected {type_name(single[1])}, got {_clipped(value)}{given.where(key)}"
    return None


def _bases(block: str, owner: str, key: str) -> list[type]:
    """The classes whose subclasses a key takes: named in the message, or by the argument of the owning class."""
    types = re.search(r"Subtypes: (.*)", block)
    bases = [import_class(path) for path in re.findall(r"\w+(?:\.\w+)+", types[1])] if types else []
    owning = import_class(owner)
    if isinstance(owning, type):
        bases.append(argument_types(owning).get(_short(key)))
    return [base for base in bases if isinstance(base, type)]


def _last_class(message: str) -> str:
    """The path of the innermost class that a message names; empty where it names none."""
    return next(reversed(_CLASS_PATH.findall(message)), "")


def _innermost(message: str) -> str:
    """The part about the innermost key."""
    return message[[match.start() for match in _KEY.finditer(message)][-1] :]


def _given_value(block: str) -> str:
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


def type_name(name: str) -> str:
    """The name of a type as a user would say it."""
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
    suggestions = dict.fromkeys(prefix + other for other in [*close, *deeper])
    return f"; did you mean {' or '.join(suggestions)}?" if suggestions else ""
