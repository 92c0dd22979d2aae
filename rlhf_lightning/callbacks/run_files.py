"""The run directory's own files, written when training starts."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from typing_extensions import override

from rlhf_lightning.callbacks.listener import Reporting, position
from rlhf_lightning.callbacks.tracking import tell_loggers
from rlhf_lightning.records.run_directory import RunDirectory


class RunFiles(Callback):
    """Writes configuration, environment and description when training starts: a run that never does leaves nothing.

    Args:
        directory: where to; None on ranks other than 0.
        config: the full configuration, for the loggers.
        begins: whether the run begins here, be it at a checkpoint of another run, as opposed to one that goes on.
    """

    def __init__(self, directory: RunDirectory | None, config: dict[str, Any], *, begins: bool) -> None:
        self.directory, self.begins = directory, begins
        self.config = config
        self.started = False
        """Whether training has started; on every rank."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = True
        if self.directory is None:
            return
        done = position(trainer, None)
        resumed = not self.begins
        wandb_run = next((logger.version for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)
        description = pl_module.describe() if isinstance(pl_module, Reporting) else None
        self.directory.start(description, resumed_at=done if resumed else None, wandb_run=wandb_run)
        unit = "step" if trainer.max_steps >= 0 else "iteration"
        what = f"resuming from {unit} {done}" if resumed else f"{type(pl_module).__name__} starts at {unit} {done}"
        print(f"{self.directory.path}: {what}", flush=True)
        tell_loggers(trainer, lambda logger: logger.log_hyperparams(self.config))
