"""The parser of configurations: files are found from anywhere, and one line names all mistakes that can be seen."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from jsonargparse.typing import Path_fr
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from rlhf_lightning.cli.assembly import ONLY_IN_PYTHON
from rlhf_lightning.cli.class_paths import with_todays_classes
from rlhf_lightning.cli.given import Given
from rlhf_lightning.cli.introspection import search_beside
from rlhf_lightning.cli.messages import explain
from rlhf_lightning.cli.values import value_mistakes
from rlhf_lightning.cli.words import as_parsed
from rlhf_lightning.errors import UserError
from rlhf_lightning.lightning_seams import option_names
from rlhf_lightning.records.config_files import adapted, find_config, read_settings

MOST_MISTAKES = 12
"""Number of mistakes that one line names at most."""


class ParseError(UserError):
    """Wrong arguments.

    Args:
        message: what jsonargparse says about them, in full.
    """

    def __init__(self, message: str) -> None:
        super().__init__(explain(message).line)
        self.message = message


class ConfigParser(LightningArgumentParser):
    """Raises what is wrong, in one line."""

    given: Given
    """The settings that are parsed."""

    @override
    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None, **options: Any
    ) -> Namespace:
        """Parse arguments.

        For an argument of an object among the arguments, jsonargparse calls the parser of that object with the value as
        text, and its null has become ``None`` by then (4.53).
        """
        if args is not None and "defaults" in options:
            args = [f"{word.removesuffix('None')}null" if word.endswith("=None") else word for word in args]
        return super().parse_args(args, namespace, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `ParseError`."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ParseError(message) from ex

    def parse_path(self, path: str | os.PathLike[str], *arguments: Any, **options: Any) -> Namespace:
        """Parse a file as UTF-8, in every locale; files that it names are looked for beside it."""
        file = Path_fr(path)
        with file.relative_path_context():
            content = Path(file.absolute).read_text(encoding="utf-8")
            return self.parse_string(content, Path(path).name, *arguments, **options)


class ConfigFile(ActionConfigFile):
    """``--config``: a file of the user's or one of the package's, checked before it is taken apart.

    Modules that it names are found beside it, too.
    """

    @override
    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        path = find_config(values)
        content = read_settings(path)
        search_beside(path)
        if only_in_python := content.get(ONLY_IN_PYTHON):
            what = "was started from Python with what no configuration can express"
            raise UserError(f"{path} {what}: {', '.join(only_in_python)}")
        settings = with_todays_classes(adapted(content, _as_mapping(cfg.get("task")), path))
        settings = parser.given.read(str(values), settings)
        super().__call__(parser, cfg, str(path) if settings == content else yaml.safe_dump(settings), option_string)


def _as_mapping(task: Any) -> dict[str, Any]:
    """A task as far as it has been parsed: a class name, or a class with arguments."""
    if isinstance(task, str):
        return {"class_path": task}
    return task.as_dict() if isinstance(task, Namespace) else dict(task or {})


def parse(parser: ConfigParser, argv: Sequence[str], command: ConfigParser | None = None) -> Namespace:
    """Parse arguments and the files that they name.

    After a mistake, what is wrong is left out and the rest is parsed again, as often as that shows another one.

    Args:
        command: the parser of the subcommand, where there is one: it has the options.

    Raises:
        UserError: something is wrong; the line names all mistakes that can be seen.
    """
    with_options = command or parser
    options = option_names(with_options)
    given = with_options.given = Given(as_parsed(argv))
    lines: list[str] = []
    first: Exception | None = None
    while len(lines) < MOST_MISTAKES:
        try:
            config = parser.parse_args(given.argv)
        except ParseError as error:
            first = first or error
            mistake = explain(error.message, options=options, given=given)
            if mistake.line in lines:
                break
            if mistake.line and not given.is_below_dropped(mistake.key):
                lines.append(mistake.line)
            if not given.drop(mistake.key):
                break
        except UserError as error:
            # a file is wrong, or depends on what has been left out
            first = first or error
            lines += [*([] if given.dropped else [str(error)]), *_wrong_files(given)]
            break
        else:
            values = value_mistakes(config if command is None else config[config.subcommand])
            lines += [line for key, line in values if not given.is_below_dropped(key)]
            if not lines:
                return config
            break
    raise UserError("; ".join(dict.fromkeys(lines))) from first


def _wrong_files(given: Given) -> Iterator[str]:
    """What is wrong with files, whatever stands in the others."""
    for file in given.config_files():
        try:
            read_settings(find_config(file))
        except UserError as error:
            yield str(error)
