"""A sweep in W&B's format, as far as it can be run without W&B: what is searched, and the command line of a trial."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rlhf_lightning.errors import UserError, raise_all, suggestion
from rlhf_lightning.records.config_files import find_file, read_mapping
from rlhf_lightning.sweep.search import METHODS, Goal, Halving, Search
from rlhf_lightning.sweep.space import Space, option_words, read_space

_PASSED_OVER = ("name", "description", "project", "entity", "apiVersion", "kind")
"""What only W&B's pages show."""

_READ = ("program", "command", "method", "metric", "parameters", "early_terminate", "run_cap")
_UNSUPPORTED = ("job", "image_uri", "controller", "scheduler", "metrics")
"""W&B launches, schedules and pursues several goals by these."""

_HYPERBAND = ("type", "min_iter", "max_iter", "s", "eta", "strict")
_INTERPRETERS = ("${interpreter}", "python", "python3")
_STARTS = (*([first, "-m", "rlhf_lightning"] for first in _INTERPRETERS), ["rlhf-lightning"])
"""How a command starts the program."""

_ARGUMENTS: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "${args}": option_words,
    "${args_no_equals}": lambda values: [word for key, value in values.items() for word in (f"--{key}", str(value))],
}
"""How a trial's values may stand in its command line."""


@dataclass(frozen=True)
class SweepFile:
    """A sweep.

    Args:
        path: of the file.
        count: the most trials; None where the file does not say.
        words: of the command, after the program's name; one of them stands for a trial's values.
        environment: variables that the command sets.
    """

    path: Path
    search: Search
    count: int | None
    words: tuple[str, ...]
    environment: dict[str, str]

    def command(self, values: Mapping[str, Any], more: Sequence[str] = ()) -> list[str]:
        """Words of the command line of a trial, after the program's name.

        Args:
            values: of the trial, by key.
            more: to be appended.
        """
        expanded = [_ARGUMENTS[word](values) if word in _ARGUMENTS else [word] for word in self.words]
        return [word for words in expanded for word in words] + list(more)


def read_sweep(path: str | Path) -> SweepFile:
    """Read a sweep of the user's own, or one that comes with the package (``sweeps/…`` works anywhere).

    Raises:
        UserError: there is no such file, or something in it is wrong or not supported; the line names all places.
    """
    found = find_file(path, "sweeps", str(path))
    content = read_mapping(found)
    place = str(path)
    readers: dict[str, Callable[[], Any]] = {
        "keys": lambda: raise_all(_wrong_keys(content, place)),
        "space": lambda: read_space(content.get("parameters"), f"{place}: parameters"),
        "method": lambda: _method(content, place),
        "metric": lambda: _metric(content.get("metric"), f"{place}: metric"),
        "halving": lambda: _halving(content.get("early_terminate"), f"{place}: early_terminate"),
        "count": lambda: _count(content.get("run_cap"), f"{place}: run_cap"),
        "command": lambda: _command(content, f"{place}: command"),
    }
    read: dict[str, Any] = {}
    mistakes: list[str] = []
    for part, reader in readers.items():
        try:
            read[part] = reader()
        except UserError as error:
            mistakes.append(str(error))
    raise_all(mistakes)
    if read["method"] == "grid":
        _check_grid(read["space"], place)
    metric, goal = read["metric"]
    search = Search(read["space"], read["method"], metric, goal, read["halving"])
    words, environment = read["command"]
    return SweepFile(found, search, read["count"], words, environment)


def _check_grid(space: Space, place: str) -> None:
    """Refuse a grid without an end."""
    try:
        space.grid()
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _count(cap: Any, place: str) -> int | None:
    """The most trials."""
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        raise UserError(f"{place}: expected a whole number from 1, got {cap!r}")
    return cap


def _wrong_keys(content: Mapping[str, Any], place: str) -> Iterator[str]:
    known = (*_READ, *_PASSED_OVER)
    for key in content:
        if key in _UNSUPPORTED:
            yield f"{place}: {key} is not supported here; W&B alone does what it asks for"
        elif key not in known:
            hint = suggestion(str(key), known, otherwise=f"expected {', '.join(_READ)}")
            yield f"{place}: unknown key {key}; {hint}"


def _method(content: Mapping[str, Any], place: str) -> str:
    method = content.get("method")
    if method not in METHODS:
        raise UserError(f"{place}: method: expected one of {', '.join(METHODS)}, got {method!r}")
    return str(method)


def _metric(metric: Any, place: str) -> tuple[str, Goal]:
    """Name and goal of the metric."""
    if not isinstance(metric, Mapping) or not isinstance(metric.get("name"), str):
        raise UserError(f"{place}: expected the metric of a trial, such as {{name: eval/score, goal: maximize}}")
    for key in metric:
        if key not in ("name", "goal"):
            raise UserError(f"{place}.{key} is not supported; expected name and goal")
    goal = metric.get("goal", "minimize")
    if goal not in get_args(Goal):
        raise UserError(f"{place}.goal: expected minimize or maximize, got {goal!r}")
    return metric["name"], goal


def _halving(settings: Any, place: str) -> Halving | None:
    """When trials are judged, and how many go on."""
    if settings is None:
        return None
    if not isinstance(settings, Mapping) or settings.get("type") != "hyperband":
        raise UserError(f"{place}: expected {{type: hyperband, min_iter: …}}, got {settings!r}")
    for key, value in settings.items():
        if key not in _HYPERBAND:
            raise UserError(f"{place}: unknown key {key}; {suggestion(key, _HYPERBAND, otherwise='expected min_iter')}")
        if key == "strict" and value:
            raise UserError(f"{place}.strict is not supported; leave it out")
        if key not in ("type", "strict") and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{place}.{key}: expected a whole number from 1, got {value!r}")
    eta = settings.get("eta", 3)
    if eta < 2:
        raise UserError(f"{place}.eta: expected at least 2, got {eta}")
    if "min_iter" in settings:
        return Halving(settings["min_iter"], eta)
    if not {"max_iter", "s"} <= settings.keys():
        raise UserError(f"{place}: expected min_iter, or max_iter and s")
    return Halving(max(1, settings["max_iter"] // eta ** settings["s"]), eta)


# -- the command ---------------------------------------------------------------------------------------------------


def _command(content: Mapping[str, Any], place: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The words of a trial's command after the program's name, and the variables that it sets."""
    command = content.get("command")
    if not isinstance(command, list) or not command:
        example = "[${env}, python, -m, rlhf_lightning, fit, --config, …, ${args}]"
        raise UserError(f"{place}: expected the words of a command, such as {example}")
    words = [_variables(str(word)).replace("${program}", str(content.get("program", ""))) for word in command]
    environment: dict[str, str] = {}
    if words[0] in ("${env}", "/usr/bin/env", "env"):
        del words[0]
        while words and (given := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", words[0])):
            environment[given[1]] = given[2]
            del words[0]
    start = next((start for start in _STARTS if words[: len(start)] == start), None)
    if start is None or words[len(start) : len(start) + 1] != ["fit"]:
        raise UserError(f"{place}: expected it to start with python -m rlhf_lightning fit, got {' '.join(words[:4])}")
    words = words[len(start) :]
    for word in words:
        if word.startswith("${") and word not in _ARGUMENTS:
            raise UserError(f"{place}: {word} is not supported; {_instead(word)}")
    if sum(word in _ARGUMENTS for word in words) != 1:
        raise UserError(f"{place}: expected ${{args}} once, where the values of a trial go")
    return tuple(words), environment


def _variables(word: str) -> str:
    """A word with the values of the variables that it names, as W&B puts them in."""
    return re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", lambda name: os.environ.get(name[1], name[1]), word)


def _instead(word: str) -> str:
    if word == "${args_no_boolean_flags}":
        return "it leaves out what is False, and every option here takes a value: give ${args}"
    return "give ${args}"
