"""``fit``, ``validate`` and ``test``: LightningCLI in subclass mode, with a run directory."""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rlhf_lightning import callbacks
from rlhf_lightning.callbacks.run_files import RunFiles
from rlhf_lightning.cli_errors import one_line
from rlhf_lightning.config_files import find_config, read_config
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.rundir import LAST_CHECKPOINT, Plan, RunDirectory, plan_run
from rlhf_lightning.tasks.task import Task

_COMPONENTS = ("algorithms", "data", "rewards", "tasks", "models", "callbacks")
"""Packages whose classes a configuration may name by their short names."""

_OWN_SETTINGS = ("overwrite", "pipeline", "config")
"""Settings of one command, not of the run: they are not saved with its configuration."""


def main(command: str, argv: Sequence[str]) -> int:
    """Run ``fit``, ``validate`` or ``test``; returns the exit status."""
    quiet_libraries()
    import_components()
    try:
        CommandLine(command, argv)
    except SIGTERMException:
        print("stopped by SIGTERM; the same command continues the run", file=sys.stderr)
        return 143
    except SystemExit as exit_:
        if exit_.code == 1 and isinstance(exit_.__context__, KeyboardInterrupt):
            print("interrupted; the same command continues the run", file=sys.stderr)
            return 130
        raise
    return 0


def import_components() -> None:
    """Import every module whose classes can be named in a configuration: a new optimizer is one new file."""
    importlib.import_module("rlhf_lightning.reward_modeling")
    for name in _COMPONENTS:
        package = importlib.import_module(f"rlhf_lightning.{name}")
        for module in pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}."):
            importlib.import_module(module.name)


def quiet_libraries() -> None:
    """Leave out what Lightning says on every run and nobody acts on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")


class FoundConfig(ActionConfigFile):
    """``--config``: in the working directory or among the package's own, checked before it is taken apart."""

    def __call__(
        self, parser: ArgumentParser, cfg: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        path = find_config(values)
        read_config(path)
        super().__call__(parser, cfg, str(path), option_string)


class Parser(LightningArgumentParser):
    """Ends a mistake in one line."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise `UserError` with the useful line of a long message."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UserError(one_line(message, self)) from ex


class CommandLine(LightningCLI):
    """One command: parse, plan the run directory, build, run.

    Args:
        command: ``fit``, ``validate`` or ``test``.
        argv: its arguments.
    """

    def __init__(self, command: str, argv: Sequence[str]) -> None:
        self.command = command
        self.directory = Path()
        self.writer: RunDirectory | None = None
        self.plan: Plan | None = None
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,
            trainer_defaults={
                "devices": 1,
                "logger": False,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "enable_model_summary": False,
            },
            seed_everything_default=1,
            parser_kwargs={"allow_abbrev": False},
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=[command, *argv],
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # -- parsing ----------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the command that is run: building a parser for each takes seconds."""
        return {self.command: super().subcommands()[self.command]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that finds the package's configurations."""
        kwargs.setdefault("dump_header", [])
        parser = self.parser_class(**{"allow_abbrev": False, **kwargs})
        parser.add_argument("-c", "--config", action=FoundConfig, help="YAML file; several are merged in order")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Task and backbone, the run directory, and who gets what."""
        parser.add_subclass_arguments(Task, "task", required=True)
        parser.add_subclass_arguments(Backbone, "backbone", required=True)
        parser.link_arguments("task", "model.init_args.task", apply_on="instantiate")
        parser.link_arguments("task", "data.init_args.task", apply_on="instantiate")
        parser.link_arguments("backbone", "model.init_args.backbone", apply_on="instantiate")
        parser.add_argument("--name", type=str | None, help="name of the run (default: MODEL-TASK-SEED)")
        parser.add_argument("--runs_dir", type=str, default="runs", help="folder of all runs")
        parser.add_argument("--overwrite", type=bool, nargs="?", const=True, default=False, help="replace the run")
        parser.add_argument("--checkpoint_every", type=int | None, help="iterations or steps between checkpoints")
        parser.add_argument("--pipeline", type=dict | None, help="for the pipeline command; not used here")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, without Lightning's warning about arguments in ``sys.argv``."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Checkpoints hold no configuration: everything comes from ``config.yaml``."""
