"""What the components of a run read: data files, folders, the source of the user's own code; and whether it changed.

As a compiler notes the headers that it met, a run keeps in ``inputs.json`` what its components named, with a digest of
each; whoever builds on the run (its continuation, a pipeline) asks `changed_inputs`. Imports no torch.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

from rlhf_lightning.records.constructed import Readable, arguments_of
from rlhf_lightning.records.files import write_atomically

INPUTS = "inputs.json"


@dataclass(frozen=True)
class Input:
    """A file or folder that a run reads.

    Args:
        name: of the component that reads it, as a configuration spells it.
        path: relative to the working directory where it lies below that.
        digest: of its content; see `digest`.
    """

    name: str
    path: str
    digest: str

    def __str__(self) -> str:
        return f"{self.path} ({self.name})"


def inputs_of(components: Mapping[str, Any]) -> list[Input]:
    """What components, and the objects among their arguments, read: what their ``reads()`` names, and their own code.

    What does not exist, such as a model on a hub, is left out.

    Args:
        components: by their keys in a configuration, such as ``task``.
    """
    found: dict[str, Input] = {}
    for name, component in components.items():
        for key, readable in _readables(name, component):
            for path in _files(readable):
                known = _relative(path)
                found.setdefault(known, Input(key, known, ""))
    return [dataclasses.replace(one, digest=digest(Path(path))) for path, one in found.items()]


def write_inputs(directory: Path, inputs: Iterable[Input]) -> None:
    """Keep them with a run; no file where there are none."""
    content = [asdict(one) for one in inputs]
    if content:
        write_atomically(directory / INPUTS, json.dumps(content, indent=1) + "\n")
    else:
        (directory / INPUTS).unlink(missing_ok=True)


def read_inputs(directory: Path) -> list[Input]:
    """Those of a run; none where it did not keep them, as earlier versions did not."""
    try:
        return [Input(**one) for one in json.loads((directory / INPUTS).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def changed_inputs(directory: Path) -> list[Input]:
    """The inputs of a run that are not there any more, or not what they were when it read them."""
    return [one for one in read_inputs(directory) if digest(Path(one.path)) != one.digest]


def digest(path: Path) -> str:
    """Hash of a file, or of all files below a folder; of Python code without its comments and layout."""
    hashed = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        hashed.update(str(file.relative_to(path)).encode())
        hashed.update(_code(file) if file.suffix == ".py" else _content(file))
    return hashed.hexdigest()


def _content(file: Path) -> bytes:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").digest()


def _code(file: Path) -> bytes:
    try:
        return ast.unparse(ast.parse(file.read_bytes())).encode()
    except (SyntaxError, ValueError):
        return _content(file)


# -- what is read --------------------------------------------------------------------------------------------------


def _readables(key: str, value: Any) -> Iterator[tuple[str, Readable]]:
    """Everything that an object, and those among its arguments, reads, with the keys of the objects."""
    if value is None or isinstance(value, bool | int | float | str | PurePath):
        return
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _readables(f"{key}.{name}", item)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _readables(f"{key}.{number}", item)
    else:
        owner = value if hasattr(value, "__qualname__") else type(value)  # a function or class itself, or an object's
        if (module := sys.modules.get(owner.__module__)) is not None:
            yield key, module
        if hasattr(value, "reads"):
            yield from ((key, readable) for readable in value.reads())
        for name, item in (arguments_of(value) or {}).items():
            yield from _readables(f"{key}.init_args.{name}", item)


def _files(readable: Readable) -> Iterator[Path]:
    if isinstance(readable, ModuleType):
        yield from _own_code(readable)
    elif (path := Path(readable).expanduser()).exists():
        yield path


def _relative(path: Path) -> str:
    """From the working directory where the path lies below it, so that both can be moved together."""
    absolute = Path(os.path.abspath(path))
    here = Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


# -- the user's own code -------------------------------------------------------------------------------------------

_PACKAGE = __name__.partition(".")[0]


def _own_code(module: ModuleType) -> Iterator[Path]:
    """The file of a module, and of those that it imports, as far as they are neither installed nor of this package."""
    seen: set[str] = set()
    pending = [module]
    while pending:
        one = pending.pop()
        file = _own_file(one)
        if file is not None and one.__name__ not in seen:
            seen.add(one.__name__)
            yield file
            pending += [sys.modules[name] for name in _imported(one, file) if name in sys.modules]


def _own_file(module: ModuleType) -> Path | None:
    """Where a module of the user's stands; None for others, and for the script that runs, which starts the run."""
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py") or module.__name__.partition(".")[0] in (_PACKAGE, "__main__"):
        return None
    installed = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return None if installed or Path(file).is_relative_to(sysconfig.get_path("stdlib")) else Path(file)


def _imported(module: ModuleType, file: Path) -> Iterator[str]:
    """Names of modules that a module's import statements may mean."""
    try:
        statements = list(ast.walk(ast.parse(file.read_bytes())))
    except (OSError, SyntaxError, ValueError):
        return
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            name = "." * statement.level + (statement.module or "")
            if statement.level:
                try:
                    name = importlib.util.resolve_name(name, module.__package__)
                except ImportError:
                    continue
            yield name
            yield from (f"{name}.{alias.name}" for alias in statement.names)
