"""Configuration files: where they are looked up, and how they are read. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning.errors import UserError, raise_all, suggestion

MOST_VALUES = 100_000
"""Number of values that a file may hold."""

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(folder: str) -> Path | None:
    """A folder of files that come with the package: inside it when installed, beside it in a checkout."""
    return next((f for f in (_PACKAGE / f"_{folder}", _PACKAGE.parent / folder) if f.is_dir()), None)


def shipped_configs() -> Path | None:
    """The folder of configurations that come with the package."""
    return shipped("configs")


def find_config(path: str | Path) -> Path:
    """The configuration itself, or the one of that name that comes with the package (``configs/…`` works anywhere).

    Raises:
        UserError: there is no such file; the message names close matches.
    """
    return find_file(path, "configs", f"--config {path}")


def find_file(path: str | Path, folder: str, what: str) -> Path:
    """The YAML file itself, or the one of that name that comes with the package.

    Args:
        folder: in which the package has such files; a path that begins with it works anywhere.
        what: the file as the user gave it, for messages.

    Raises:
        UserError: there is no such file; the message names close matches.
    """
    given = Path(path).expanduser()
    if given.is_file():
        return given
    if given.is_dir():
        found = ", ".join(sorted(p.name for p in given.glob("*.yaml"))[:8])
        raise UserError(f"{what} is a directory; expected a YAML file{f' such as {found}' if found else ''}")
    own = shipped(folder)
    if own is not None and given.parts[:1] == (folder,):
        inside = own.joinpath(*given.parts[1:])
        if inside.is_file():
            return inside
    hint = suggestion(given.as_posix(), _known_files(given, folder), otherwise="", most=3)
    raise UserError(f"{what}: no such file" + (f"; {hint}" if hint else ""))


def _known_files(near: Path, folder: str) -> list[str]:
    """Names under which files of a folder could have been given."""
    known = {p.as_posix() for p in near.parent.glob("*.yaml")} if near.parent.is_dir() else set()
    for place in (Path(folder), shipped(folder)):
        if place is not None and place.is_dir():
            known |= {(Path(folder) / p.relative_to(place)).as_posix() for p in place.rglob("*.yaml")}
    return sorted(known)


def read_config(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, whose keys are names of settings.

    Raises:
        UserError: see `read_mapping`; or a key is no name.
    """
    content = read_mapping(path)
    _check_keys(content, path)
    return content


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty for an empty file.

    Raises:
        UserError: it cannot be read, is no YAML, is too deep or too large, holds a key twice, or is not a mapping; the
            message names the line.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{where}: {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML text ({' '.join(str(error).split())})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    if _size(content, {}) > MOST_VALUES:
        raise UserError(f"{path}: more than {MOST_VALUES:,} values, with those that its aliases repeat")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {type(content).__name__}")
    return content


def _size(content: Any, known: dict[int, float]) -> float:
    """Number of values, those counted again that an alias repeats; infinite where something contains itself."""
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in known:
        known[id(content)] = math.inf
        values = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_size(value, known) for value in values)
    return known[id(content)]


def setting(config: Mapping[str, Any], key: str) -> Any:
    """A value of a configuration by its dotted key; None where it is not there."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _check_keys(content: Any, path: str | Path) -> None:
    """Refuse keys that cannot be the name of a setting."""
    for key, value in content.items():
        if not isinstance(key, str) or len(key.split()) != 1:
            raise UserError(f"{path}: key {key!r}; expected the name of a setting")
        if isinstance(value, dict):
            _check_keys(value, path)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file that a command is given.

    Raises:
        UserError: see `read_config`; or the file is empty, or arguments of a class do not stand under ``init_args``.
    """
    content = read_config(path)
    if not content:
        raise UserError(f"{path} is empty; expected settings, such as those of a task or of a model")
    settings = {key: value for key, value in content.items() if key != "pipeline"}
    raise_all(f"{path}: {line}" for line in _misplaced(settings))
    return content


_OF_CLASSES = ("class_path", "init_args", "dict_kwargs")


def _misplaced(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys that stand beside a ``class_path``, where they would be taken for something else."""
    if "class_path" in content:
        for name in content:
            if name not in _OF_CLASSES:
                expected = suggestion(name, _OF_CLASSES, otherwise=f"expected it under {prefix}init_args", cutoff=0.8)
                yield f"{prefix}{name} stands beside {prefix}class_path; {expected}"
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _misplaced(value, f"{prefix}{name}.")


PER_TASK = "per_task"
"""Key of a configuration's section with other values for some tasks: {TASK: {...}}."""


def adapted(content: dict[str, Any], task: Mapping[str, Any] | None, path: str | Path) -> dict[str, Any]:
    """A configuration with the values that it has for this task, which replace its own.

    A section applies where its name is the task's class or one of the task's arguments, such as the name of an
    environment; later sections are on top.

    Args:
        content: of the file.
        task: ``class_path`` and ``init_args``, as far as they are known.

    Raises:
        UserError: there are such values and no task is known yet, or they are no mappings.
    """
    sections = content.get(PER_TASK)
    if sections is None:
        return content
    if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
        raise UserError(f"{path}: {PER_TASK} is a mapping of tasks to the values that are different for them")
    task = content.get("task") or task
    if not task or not task.get("class_path"):
        raise UserError(f"{path} has values that depend on the task: give the task's configuration before it")
    names = {task["class_path"].rpartition(".")[2], *map(str, dict(task.get("init_args") or {}).values())}
    result = {key: value for key, value in content.items() if key != PER_TASK}
    for name, section in sections.items():
        if name in names:
            result = merged(result, section)
    return result


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merged key by key; one that names another class replaces all of the old one."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = value
        if isinstance(value, dict) and isinstance(old, dict):
            old_class = old.get("class_path")
            if value.get("class_path", old_class) == old_class:
                result[key] = merged(old, value)
    return result


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe loading that refuses a key given twice, where plain YAML keeps the last one and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
