"""``fit``, ``validate`` and ``test``: LightningCLI in subclass mode, with a run directory."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from typing_extensions import override

from rlhf_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from rlhf_lightning.callbacks.checkpoints import Checkpoints
from rlhf_lightning.callbacks.detectors import Detector, WarningsFile, default_detectors
from rlhf_lightning.callbacks.export import Export
from rlhf_lightning.callbacks.metrics_file import MetricsFile
from rlhf_lightning.callbacks.progress import PrintedRows, Progress
from rlhf_lightning.callbacks.run_files import RunFiles
from rlhf_lightning.callbacks.samples_file import SamplesFile
from rlhf_lightning.callbacks.sigterm import Sigterm
from rlhf_lightning.cli import checks as checks
from rlhf_lightning.cli.endings import Endings
from rlhf_lightning.cli.errors import one_line
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.records.config_files import adapted, find_config, read_config
from rlhf_lightning.records.run_directory import (
    CHECKPOINTS,
    LAST_CHECKPOINT,
    Plan,
    RunDirectory,
    check_name,
    plan_run,
)
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.module import Module

log = logging.getLogger(__name__)

import_components = checks.import_components

_NOT_SAVED = ("overwrite", "pipeline", "config")
"""Settings of one command and not of the run."""

_TRAINER_DEFAULTS = {
    "devices": 1,
    "logger": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
}


def main(command: str, argv: Sequence[str]) -> int:
    """Run ``fit``, ``validate`` or ``test``; returns the exit status."""
    checks.quiet_libraries()
    import_components()
    endings = Endings()
    try:
        with endings.on_sigterm():
            CommandLine(command, argv, endings)
    except SystemExit as stop:  # --help and --print_config end so, and interruptions
        return int(stop.code or 0)
    return 0


class FoundConfig(ActionConfigFile):
    """``--config``: in the working directory or among the package's own, checked before it is taken apart."""

    @override
    def __call__(self, parser: ArgumentParser, cfg: Namespace, values: Any, option_string: str | None = None) -> None:
        path = find_config(values)
        content = read_config(path)
        resolved = adapted(content, _as_mapping(cfg.get("task")), path)
        super().__call__(parser, cfg, str(path) if resolved is content else yaml.safe_dump(resolved), option_string)


def _as_mapping(task: Any) -> dict[str, Any]:
    """A task as far as it has been parsed: a class name, or a class with arguments."""
    if isinstance(task, str):
        return {"class_path": task}
    return task.as_dict() if isinstance(task, Namespace) else dict(task or {})


class ParseError(UserError):
    """Wrong arguments.

    Args:
        message: what jsonargparse says about them, in full.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
        self.message = message


class Parser(LightningArgumentParser):
    """Raises what is wrong, in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `ParseError`."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ParseError(message) from ex


class CommandLine(LightningCLI):
    """One command: parse, plan the run directory, build, run.

    Args:
        command: ``fit``, ``validate`` or ``test``.
        argv: its arguments.
        endings: turns errors and interruptions into lines and exit statuses.
    """

    def __init__(self, command: str, argv: Sequence[str], endings: Endings) -> None:
        self.command = command
        self.endings = endings
        self.directory = Path()
        self.plan: Plan | None = None
        self.writer: RunDirectory | None = None
        self.settings: dict[str, Any] = {}
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,
            trainer_defaults=_TRAINER_DEFAULTS,
            seed_everything_default=1,
            parser_kwargs={"allow_abbrev": False, "prog": "python -m rlhf_lightning"},
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=[command, *argv],
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # -- parsing -----------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the command that runs: building a parser for each takes seconds."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that finds the package's configurations and takes no abbreviations."""
        parser = self.parser_class(**{"allow_abbrev": False, "dump_header": [], **kwargs})
        parser.add_argument("-c", "--config", action=FoundConfig, help="YAML file; several are merged in order")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Task and backbone, who gets them, and the run directory."""
        parser.add_subclass_arguments(Task, "task", required=True)
        parser.add_subclass_arguments(Backbone, "backbone", required=True)
        parser.link_arguments("task", "model.init_args.task", apply_on="instantiate")
        parser.link_arguments("task", "data.init_args.task", apply_on="instantiate")
        parser.link_arguments("backbone", "model.init_args.backbone", apply_on="instantiate")
        parser.add_argument("--name", type=str | None, help="name of the run; MODEL-TASK-SEED if not given")
        parser.add_argument("--runs_dir", type=str, default="runs", help="folder of all runs")
        parser.add_argument("--overwrite", type=bool, nargs="?", const=True, default=False, help="replace the run")
        parser.add_argument("--checkpoint_every", type=int | None, help="iterations or steps between checkpoints")
        parser.add_argument("--checkpoint_keep", type=int, default=2, help="number of last checkpoints kept")
        parser.add_argument("--pipeline", type=dict | None, help="read by the pipeline command, not used here")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, without Lightning's warning about arguments that are also in ``sys.argv``."""
        try:
            self.config = parser.parse_args(args)
        except ParseError as error:
            options = [action.dest for action in self._parser(self.command)._actions]
            configs = {str(path): read_config(find_config(path)) for path in checks.given_configs(args)}
            raise UserError(one_line(error.message, options=options, configs=configs, argv=args)) from error

    @override
    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Checkpoints hold no configuration here: everything comes from ``config.yaml``."""

    def _resolved(self, config: Namespace) -> dict[str, Any]:
        """The whole configuration as plain data (through JSON: jsonargparse's YAML cannot hold string enums)."""
        saved = config.clone()
        for key in _NOT_SAVED:
            saved.pop(key, None)
        dump = self._parser(self.command).dump
        return json.loads(dump(saved, format="json", skip_unset=False, skip_validation=True))

    # -- building ----------------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Name the run, refuse what cannot work, and decide between start and resume, before anything is built."""
        config = self.config[self.command]
        config.name = checks.default_name(config) if config.name is None else config.name
        self.directory = Path(config.runs_dir) / check_name(config.name)
        checks.check_config(config, self.command)
        self.settings = self._resolved(config)
        if self.command == "fit" and not config.trainer.fast_dev_run:
            self.plan = plan_run(self.directory, self.settings, overwrite=config.overwrite)
            if rank_zero_only.rank == 0:
                self.writer = RunDirectory(self.plan, self.settings)
                for path in self.plan.damaged:
                    log.warning("%s is damaged: the run continues from %s", path, self.plan.resume_from)
        resumed = self.plan.resume_from if self.plan is not None else None
        checks.complete_loggers(config.trainer.logger, self.directory, config.name, resumed=resumed is not None)

    def instantiate_classes(self) -> None:
        """Build everything; what a class refuses is one line."""
        with self._cleaning_up():
            if self.writer is not None:
                self.writer.set_aside()
            try:
                super().instantiate_classes()
            except (ValueError, OSError, ModuleNotFoundError, MisconfigurationException) as error:
                raise checks.as_user_error(error) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that writes to the run directory."""
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        config["default_root_dir"] = str(self.directory)
        plugins = checks.as_list(config["plugins"])
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config["plugins"] = [*plugins, AtomicCheckpointIO()]
        if self.command == "fit" and self._by_iteration and config["limit_val_batches"] is None:
            config["limit_val_batches"] = 0  # a policy optimizer evaluates itself, at the end of iterations
        config["callbacks"] = checks.as_list(config["callbacks"])
        try:
            return self._instantiate_trainer(config, self._callbacks(config))
        except (TypeError, ValueError, RuntimeError, ModuleNotFoundError, MisconfigurationException) as error:
            raise checks.trainer_error(error, config) from error

    @property
    def _by_iteration(self) -> bool:
        return isinstance(self.model, Module) and self.model.by_iteration

    def _callbacks(self, trainer: dict[str, Any]) -> list[Callback]:
        own: list[Callback] = [] if trainer["enable_progress_bar"] is False else [Progress()]
        if self.command != "fit":
            return [PrintedRows(), *own]
        if self.plan is not None:
            files = [RunFiles(self.writer, self.settings), MetricsFile(), SamplesFile(), WarningsFile()]
            own = [*files, Sigterm(), *own]  # a module that is not one of ours brings no Sigterm
        if self.plan is not None and self._by_iteration:
            own += default_detectors(besides=trainer["callbacks"])
        given = any(isinstance(callback, Checkpoints) for callback in trainer["callbacks"])
        if self.plan is not None and trainer["enable_checkpointing"] is not False and not given:
            every, keep = (self._get(self.config, f"checkpoint_{what}") for what in ("every", "keep"))
            own.append(Checkpoints(self.directory / "checkpoints", every=every, keep=keep))
        if self.plan is not None and hasattr(self.model, "export"):
            own.append(Export())
        return own

    # -- running -----------------------------------------------------------------------------------------------

    def fit(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train, or go on training, and mark the run as done when it is."""
        resume_from = None if self.plan is None else self.plan.resume_from
        if resume_from is not None and not self._is_own(ckpt_path):
            ckpt_path = str(resume_from)  # the same command again, whatever the run first started from
        elif ckpt_path == "last":
            ckpt_path = None
        with self._cleaning_up(), self.endings.of(self.trainer, self.directory / LAST_CHECKPOINT):
            self.trainer.fit(ckpt_path=ckpt_path, **kwargs)
            if self.plan is not None and not any(isinstance(c, RunFiles) and c.started for c in self.trainer.callbacks):
                self._complete()
        if self.writer is not None:
            self.writer.finish()
            print(f"{self.directory}: done", flush=True)

    def _is_own(self, ckpt_path: str | None) -> bool:
        """Whether a checkpoint is one of this run's."""
        return ckpt_path is not None and Path(ckpt_path).resolve().parent == (self.directory / CHECKPOINTS).resolve()

    def _complete(self) -> None:
        """Make up for what is missing when the checkpoint was already that of the end: the export of the right one."""
        if self.plan is None or self.plan.resume_from is None:
            raise UserError("there was nothing to train: the trainer's limits allow no step")
        for callback in self.trainer.callbacks:
            if isinstance(callback, Detector | Export):
                callback.on_train_end(self.trainer, self.model)

    def validate(self, **kwargs: Any) -> None:
        """Evaluate a checkpoint, by default the run's own."""
        self._evaluate(self.trainer.validate, **kwargs)

    def test(self, **kwargs: Any) -> None:
        """Evaluate a checkpoint on the test data, by default the run's own."""
        self._evaluate(self.trainer.test, **kwargs)

    def _evaluate(self, evaluate: Any, ckpt_path: str | None = None, **kwargs: Any) -> None:
        own = self.directory / LAST_CHECKPOINT
        if ckpt_path in (None, "last") and own.is_file():
            ckpt_path = str(own)
        if rank_zero_only.rank == 0:
            print(f"{self.command}: {ckpt_path or 'the model before training (no --ckpt_path, no run)'}", flush=True)
        with self.endings.of(self.trainer):
            evaluate(ckpt_path=ckpt_path, **{**kwargs, "verbose": False})

    @contextmanager
    def _cleaning_up(self) -> Iterator[None]:
        """Leave no half-written run directory behind when training never started."""
        try:
            yield
        except BaseException:
            if self.writer is not None:
                self.writer.abandon()
            raise
