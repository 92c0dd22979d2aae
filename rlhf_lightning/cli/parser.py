"""The argument parser of commands outside the trainer: errors are one line, tasks come from configuration files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from rlhf_lightning.tasks.task import Task


class LineParser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are `UserError`."""

    def __init__(self, command: str, help_text: str, example: str) -> None:
        self.option_strings: list[str] = []
        """All options, as they are given."""
        super().__init__(
            prog=f"python -m rlhf_lightning {command}",
            description=help_text[0].upper() + help_text[1:] + ".",
            epilog=f"example: python -m rlhf_lightning {example}",
            allow_abbrev=False,
        )

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Add an argument, as argparse does."""
        self.option_strings += names
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        """One line, exit status 2."""
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_with_task(self, argv: list[str], *, required: bool = True) -> tuple[argparse.Namespace, Task | None]:
        """Own arguments, and the task that ``--config`` and ``--task.…`` describe."""
        self.add_argument("--config", action="append", default=[], help="task configuration (YAML)")
        self.add_argument(
            "--task.…", dest="task", metavar="VALUE", help="override of the task, e.g. --task.init_args.seed 1"
        )
        words, overrides = _without_task(argv)
        own = self.parse_intermixed_args(words)
        if not own.config and not overrides:
            if required:
                self.error("--config TASK.yaml is missing")
            return own, None
        return own, load_task(own.config, overrides)


def _without_task(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments without those that begin with ``--task``, and these with their values."""
    words, overrides, rest = [], [], iter(argv)
    for word in rest:
        if word == "--task" or word.startswith(("--task.", "--task=")):
            overrides += [word] if "=" in word else [word, *islice(rest, 1)]
        else:
            words.append(word)
    return words, overrides


def load_task(configs: Sequence[str], overrides: Sequence[str]) -> Task:
    """The task of configuration files; what they say of models and trainers is not read."""
    from rlhf_lightning.cli.checks import as_user_error
    from rlhf_lightning.cli.config_parser import ConfigFile, ConfigParser, parse
    from rlhf_lightning.cli.introspection import import_components
    from rlhf_lightning.tasks.task import Task

    import_components()
    parser = ConfigParser(allow_abbrev=False)
    parser.add_argument("--config", action=ConfigFile)
    parser.add_subclass_arguments(Task, "task", required=True)
    for other in ("backbone", "model", "data", "trainer", "pipeline"):
        parser.add_argument(f"--{other}", type=dict | None)
    words = [word for config in configs for word in ("--config", config)]
    config = parse(parser, [*words, *overrides])
    try:
        return parser.instantiate_classes(config).task
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise as_user_error(error) from error
