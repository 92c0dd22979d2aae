"""All uses of the private interfaces of Lightning, LightningCLI, argparse and atexit stand here, one function each.

No version promises to keep what these functions rely on. ``tests/test_lightning_seams.py`` pins each of them, and says
what to do where a new version breaks one.
"""

from __future__ import annotations

import argparse
import atexit
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning_utilities.core.rank_zero import rank_zero_only
from typing_extensions import override

from rlhf_lightning.errors import UserError

# -- the trainer ---------------------------------------------------------------------------------------------------


def has_trainer(module: LightningModule) -> bool:
    """Whether a trainer runs the module; ``module.trainer`` raises where none does.

    Relies on ``LightningModule._trainer``.
    """
    return module._trainer is not None


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The trainer's callbacks, in the order in which they are called.

    Relies on ``Trainer.callbacks``, a public attribute that Lightning sets from elsewhere and declares nowhere.
    """
    return trainer.callbacks  # type: ignore[attr-defined]


def is_dry_run(trainer: Trainer) -> bool:
    """Whether the trainer only tries a few batches (``fast_dev_run``), so that nothing is to be written.

    Relies on ``Trainer.fast_dev_run``, a public attribute that Lightning sets from elsewhere and declares nowhere.
    """
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def attach_data(trainer: Trainer, data: LightningDataModule) -> None:
    """Give a trainer that does not train its data, for modules that look there.

    Relies on ``Trainer.datamodule``, an attribute that Lightning sets from elsewhere and declares nowhere.
    """
    trainer.datamodule = data  # type: ignore[attr-defined]


def keep_loaders_whole(trainer: Trainer) -> None:
    """Have every rank see all batches of a loader: loaders only count here, and rows are shared out elsewhere.

    Relies on ``_accelerator_connector.use_distributed_sampler``, which is read when loaders are set up.
    """
    trainer._accelerator_connector.use_distributed_sampler = False


def validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates after the training batch that has just ended.

    Relies on ``_should_check_val_fx`` of the epoch loop, which Lightning asks right after ``on_train_batch_end``.
    """
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


# -- processes and signals -----------------------------------------------------------------------------------------


def process_rank() -> int:
    """This process among all ranks, also before they are connected.

    Relies on ``rank_zero_only.rank``, an attribute of a function that Lightning sets on import and on launch.
    """
    return getattr(rank_zero_only, "rank", 0)


def launched_processes(trainer: Trainer) -> list[subprocess.Popen[bytes]]:
    """The other ranks, where this process has launched them as commands.

    Relies on ``trainer.strategy.launcher.procs``.
    """
    return getattr(trainer.strategy.launcher, "procs", [])


def listen_for_sigterm(trainer: Trainer, listener: Callable[[], None]) -> None:
    """Have SIGTERM call ``listener``, in place of Lightning's broadcast to the other ranks; from ``Callback.setup``.

    Relies on ``_signal_connector._sigterm_notifier_fn``, which Lightning registers as the signal's handler later.
    """

    def notify(signal_number: int, frame: FrameType | None) -> None:
        listener()

    trainer._signal_connector._sigterm_notifier_fn = notify  # type: ignore[method-assign, assignment]


def set_received_sigterm(trainer: Trainer, received: bool) -> None:
    """Tell Lightning whether SIGTERM came: it then ends after the current batch.

    Relies on ``_signal_connector.received_sigterm``, from which ``Trainer.received_sigterm`` is read.
    """
    trainer._signal_connector.received_sigterm = received


# -- checkpoints ---------------------------------------------------------------------------------------------------


def translate_restore_errors(trainer: Trainer, translate: Callable[[Exception], Exception]) -> None:
    """Replace what is raised while a checkpoint is chosen and restored by ``translate`` of it.

    Relies on ``_checkpoint_connector``, whose methods ``_select_ckpt_path``, ``_restore_modules_and_callbacks`` and
    ``restore_training_state`` find a checkpoint and put all of its content back.
    """
    connector = trainer._checkpoint_connector
    for name in ("_select_ckpt_path", "_restore_modules_and_callbacks", "restore_training_state"):
        setattr(connector, name, partial(_translated, getattr(connector, name), translate))


def _translated(
    step: Callable[..., Any], translate: Callable[[Exception], Exception], *args: Any, **kwargs: Any
) -> Any:
    try:
        return step(*args, **kwargs)
    except Exception as error:
        translated = translate(error)
        if translated is error:
            raise
        raise translated from error


# -- the command line ----------------------------------------------------------------------------------------------


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """The keys of all options of a parser.

    Relies on ``ArgumentParser._actions``.
    """
    return [action.dest for action in parser._actions]


class OneConfigCLI(LightningCLI):
    """LightningCLI that takes everything from the command line and ``--config``, and refuses a bad seed in one line.

    Relies on `LightningCLI` calling ``_set_seed`` and ``_parse_ckpt_path`` after it has parsed the arguments.
    """

    @override
    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {error}") from error

    @override
    def _parse_ckpt_path(self) -> None:
        """Take no configuration from checkpoints, where Lightning would look for hyperparameters."""


# -- the interpreter -----------------------------------------------------------------------------------------------


def end_process(status: int) -> NoReturn:
    """End this process with a status, after what is to be done at its exit.

    The interpreter's own end may abort where the threads of a process group of torch still run.

    Relies on ``atexit._run_exitfuncs``.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
