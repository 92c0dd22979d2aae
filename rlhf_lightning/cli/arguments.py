"""What commands outside the trainer share: their parser, the tasks and networks that they are given, a progress bar."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from rlhf_lightning.models.language.policy import LanguagePolicy
    from rlhf_lightning.rewards.source import RewardSource
    from rlhf_lightning.tasks.task import Task

Item = TypeVar("Item")


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


def exported(path: str, *stages: str) -> str:
    """The Hugging Face folder behind a run directory, a pipeline directory, or the folder itself.

    Args:
        stages: stages of a pipeline to look into, the first that is there wins.
    """
    folder = Path(path)
    for candidate in (*(folder / stage / "export" for stage in stages), folder / "export", folder):
        if (candidate / "config.json").is_file():
            return str(candidate)
    if folder.exists():
        raise UserError(f"{path} holds no exported model; expected a finished run or a folder with config.json")
    if path.count("/") == 1 and not folder.parent.exists() and folder.parts[0] != "runs":
        return path
    raise UserError(
        f"{path} does not exist; expected a folder with a model, a hub name, or a run directory, which "
        "python -m rlhf_lightning pipeline (or fit) makes"
    )


def load_policy(path: str, *, temperature: float) -> LanguagePolicy:
    """A trained policy, on the fastest device there is."""
    import torch

    from rlhf_lightning.models.language.backbone import LanguageBackbone

    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = LanguageBackbone(checkpoint=exported(path, "policy", "sft")).policy(_no_task, temperature=temperature)
    return policy.eval().requires_grad_(False).to(device)


def gold_reward(task: Task) -> RewardSource:
    """The gold reward of a task, which must have one."""
    gold = task.gold()
    if gold is None:
        raise UserError(f"task {type(task).__name__} has no gold reward; expected one that knows the true reward")
    return gold


def load_reward(name: str, task: Task, *, batch_size: int) -> RewardSource:
    """A trained reward model, on the fastest device there is; or the task's reward, named ``gold``."""
    if name == "gold":
        return gold_reward(task)
    import torch

    from rlhf_lightning.rewards.learned import LearnedReward

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return LearnedReward(exported(name, "reward"), batch_size=batch_size).to(device)


def _no_task() -> Any:
    raise UserError("the checkpoint has no tokenizer")


def track(items: Sequence[Item], what: str) -> Iterable[Item]:
    """Show how far a loop is, on a terminal only."""
    from rich.console import Console
    from rich.progress import track as rich_track

    return rich_track(items, what, console=Console(stderr=True), disable=not sys.stderr.isatty())


def positive(text: str) -> int:
    """An argument that counts something."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def writable(text: str) -> str:
    """An argument that names a file to write: refused before the work rather than after it."""
    target = Path(text).expanduser()
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if target.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory; expected a file to write")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {folder} is not a folder one can write to")
    return text
