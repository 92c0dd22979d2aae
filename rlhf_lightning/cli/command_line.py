"""``fit``, ``validate`` and ``test``: LightningCLI in subclass mode, with a run directory."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from rlhf_lightning.cli import checks
from rlhf_lightning.cli.assembly import TRAINER_DEFAULTS, TrainingRun, completed
from rlhf_lightning.cli.class_paths import with_todays_classes
from rlhf_lightning.cli.config_parser import ConfigFile, ConfigParser, parse
from rlhf_lightning.cli.endings import Endings
from rlhf_lightning.cli.introspection import import_components
from rlhf_lightning.errors import UserError, raise_all
from rlhf_lightning.lightning_seams import OneConfigCLI, process_rank
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.records.config_files import merged, read_config
from rlhf_lightning.records.run_directory import LAST_CHECKPOINT, check_name
from rlhf_lightning.records.run_plan import first_difference
from rlhf_lightning.tasks.task import Task

_NOT_SAVED = ("overwrite", "pipeline", "config")
"""Settings of one command and not of the run."""

REFUSALS = (ValueError, OSError, ModuleNotFoundError, MisconfigurationException)
"""What classes of Lightning, of libraries and of the user raise for arguments that do not fit."""


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


class CommandLine(OneConfigCLI):
    """``fit``, ``validate`` or ``test``: parse, plan the run directory, build, run."""

    def __init__(self, command: str, argv: Sequence[str], endings: Endings) -> None:
        self.command = command
        self.command_parser: ConfigParser
        self.endings = endings
        self.directory = Path()
        self.run: TrainingRun | None = None
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=1,
            parser_kwargs={"allow_abbrev": False, "prog": "python -m rlhf_lightning"},
            parser_class=ConfigParser,
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
        parser.add_argument("-c", "--config", action=ConfigFile, help="YAML file; several are merged in order")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Task and backbone, who gets them, and the run directory."""
        assert isinstance(parser, ConfigParser)
        self.command_parser = parser
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
        """Parse; see `parse` for what is said of mistakes."""
        assert isinstance(parser, ConfigParser)
        self.config = parse(parser, args, self.command_parser)

    def _resolved(self, config: Namespace) -> dict[str, Any]:
        """The whole configuration as plain data (through JSON: jsonargparse's YAML cannot hold string enums)."""
        saved = config.clone()
        for key in _NOT_SAVED:
            saved.pop(key, None)
        text = self.command_parser.dump(saved, format="json", skip_unset=False, skip_validation=True)
        return with_todays_classes(json.loads(text))

    def _earlier(self, path: Path, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The configuration of an unfinished run, with the class paths and the defaults of this version.

        Only settings of this command are parsed: no class is imported because a file of the run names it.
        """
        earlier = with_todays_classes(read_config(path))
        filled = merged(settings, earlier)
        if first_difference(filled, settings) is not None:
            return filled
        own = copy.deepcopy(_restricted(settings, earlier))  # parsing changes lists in place
        return self._resolved(self.command_parser.parse_object(own))

    # -- building ----------------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Name the run, refuse what cannot work, and decide between start and resume, before anything is built."""
        config = self.config[self.command]
        config.name = checks.run_name(config)
        self.directory = Path(config.runs_dir) / check_name(config.name)
        checks.check_config(config, self.command)
        settings = self._resolved(config)
        if self.command == "fit" and not config.trainer.fast_dev_run:
            self.run = TrainingRun(
                self.directory, settings, overwrite=config.overwrite, read=lambda path: self._earlier(path, settings)
            )
        resumed = self.run is not None and self.run.plan.resume_from is not None
        checks.complete_loggers(config.trainer.logger, self.directory, config.name, resumed=resumed)

    def instantiate_classes(self) -> None:
        """Build everything; what a class refuses is one line."""
        with self._cleaning_up():
            if self.run is not None:
                self.run.set_aside()
            try:
                super().instantiate_classes()
            except (UserError, *REFUSALS) as error:
                raise_all([str(checks.as_user_error(error)), *self._further_mistakes()])
            if self.run is not None:
                built = self.config_init[self.command]
                parts = {key: built[key] for key in ("task", "backbone", "model", "data")}
                self.run.note_inputs({**parts, "trainer.callbacks": built.trainer.callbacks})

    def _further_mistakes(self) -> Iterator[str]:
        """What a run without its model, and one without its data, would be refused for."""
        for part in ("model", "data"):
            config = self.config.clone()
            config[self.command].pop(part)
            try:
                self.parser.instantiate_classes(config)
            except (UserError, *REFUSALS) as error:
                yield str(checks.as_user_error(error))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that writes to the run directory."""
        given = {**self.config_init[self.command].trainer, **kwargs}
        arguments = completed(given, self.directory, self.model if self.command == "fit" else None, self.run)
        try:
            return Trainer(**arguments)
        except (TypeError, ValueError, RuntimeError, ModuleNotFoundError, MisconfigurationException) as error:
            raise checks.trainer_error(error, arguments) from error

    # -- running -----------------------------------------------------------------------------------------------

    def fit(self, model: LightningModule, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train, or go on training, and mark the run as done when it is."""
        with self._cleaning_up(), self.endings.of(self.trainer, self.directory / LAST_CHECKPOINT):
            if self.run is None:
                if process_rank() == 0:
                    print("fit: fast_dev_run tries a few batches; nothing is saved", flush=True)
                self.trainer.fit(model, ckpt_path=None if ckpt_path == "last" else ckpt_path, **kwargs)
            else:
                self.run.fit(self.trainer, model, ckpt_path, **kwargs)
        if self.run is not None:
            self.run.finish()

    def validate(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Evaluate a checkpoint, by default the run's own, on the held-out data or, as ``test``, on the test data."""
        own = self.directory / LAST_CHECKPOINT
        if ckpt_path in (None, "last") and own.is_file():
            ckpt_path = str(own)
        if process_rank() == 0:
            print(f"{self.command}: {ckpt_path or 'the model before training (no --ckpt_path, no run)'}", flush=True)
        evaluate = getattr(self.trainer, self.command)
        with self.endings.of(self.trainer):
            evaluate(ckpt_path=ckpt_path, **kwargs | {"verbose": False})

    test = validate

    def _cleaning_up(self) -> AbstractContextManager[None]:
        """Inside, an error before training leaves no half-written run directory behind."""
        return nullcontext() if self.run is None else self.run.cleaning_up()


def _restricted(settings: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those whose keys are not in another configuration."""
    result = {key: value for key, value in settings.items() if key in keys}
    for key, value in result.items():
        if isinstance(value, Mapping) and isinstance(keys[key], Mapping):
            result[key] = _restricted(value, keys[key])
    return result
