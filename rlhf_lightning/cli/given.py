"""The settings of a command as they were given, to say where a wrong one stands, and to look at the others."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from rlhf_lightning.records.config_files import setting


class Given:
    """The arguments of a command, and the files that they name."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)
        self.dropped: list[str] = []
        """Keys that have been left out."""
        self._files: dict[str, dict[str, Any]] = {}
        self._dropped_in: dict[str, list[str]] = {}

    def config_files(self) -> list[str]:
        """The files named by ``--config`` and ``-c``."""
        files = [value for option, value in itertools.pairwise(self.argv) if option in ("--config", "-c")]
        return files + [word.partition("=")[2] for word in self.argv if word.startswith(("--config=", "-c="))]

    def read(self, file: str, content: dict[str, Any]) -> dict[str, Any]:
        """Take in the content of a file; returns it without the keys that have been left out."""
        for key in self._dropped_in.get(file, ()):
            content = _without(content, key.split("."))
        self._files[file] = content
        return content

    def file_of(self, key: str) -> str | None:
        """The file in which a key stands; None where it stands among the arguments, or nowhere."""
        path = _without_indices(key)
        if self._words(path) or self._words(path.removesuffix(".class_path")):
            return None
        return next((file for file in reversed(list(self._files)) if _contains(self._files[file], path)), None)

    def value(self, key: str) -> Any:
        """The value of a setting in the file where it stands; None where it stands in none."""
        file = self.file_of(key)
        return None if file is None else setting(self._files[file], _without_indices(key))

    def where(self, key: str) -> str:
        """The end of a line that says in which file a key stands; empty where that is clear."""
        file = self.file_of(key)
        return f" (in {file})" if file else ""

    def drop(self, key: str) -> bool:
        """Leave out a setting, and arguments below it; returns whether it was found.

        Args:
            key: as a configuration spells it, or an argument.
        """
        if not key:
            return False
        path = _without_indices(key)
        file = self.file_of(path)
        numbers = self._words(path) or ([self.argv.index(key)] if key in self.argv else [])
        if file is not None:
            self._dropped_in.setdefault(file, []).append(path)
        elif not numbers:
            return False
        numbers += self._words(path, below=True)
        for number in sorted(numbers, reverse=True):
            self._remove_word(number)
        self.dropped.append(path)
        return True

    def is_below_dropped(self, key: str) -> bool:
        """Whether a setting belongs to one that has been left out, and cannot be judged without it."""
        return any(key.startswith(f"{path}.") for path in self.dropped)

    def _words(self, path: str, *, below: bool = False) -> list[int]:
        """Places of the arguments that give a setting, or those below it."""
        wanted = shortened(path)
        names = [shortened(word.lstrip("-").partition("=")[0].rstrip("+")) for word in self.argv]
        return [
            number
            for number, name in enumerate(names)
            if self.argv[number].startswith("--") and (name.startswith(f"{wanted}.") if below else name == wanted)
        ]

    def _remove_word(self, number: int) -> None:
        """Remove an argument, and the value that follows it where it is an option."""
        word, end = self.argv[number], number + 1
        while word.startswith("-") and "=" not in word and end < len(self.argv) and self.argv[end][:2] != "--":
            end += 1
        del self.argv[number:end]


def _without_indices(key: str) -> str:
    return re.sub(r"\[.*?\]", "", key)


def shortened(key: str) -> str:
    """A key as it may be given on the command line."""
    return key.replace(".init_args.", ".")


def _contains(content: Any, path: str) -> bool:
    for part in path.split("."):
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True


def _without(content: dict[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    """A mapping without one key, and without mappings that are empty then."""
    key, *rest = parts
    value = content.get(key)
    if rest and isinstance(value, dict) and (remaining := _without(value, rest)):
        return {**content, key: remaining}
    return {name: item for name, item in content.items() if name != key}
