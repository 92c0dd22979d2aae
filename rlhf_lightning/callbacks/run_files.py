"""The run directory's own files, written when training starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from typing_extensions import override

from rlhf_lightning.callbacks.listener import Reporting, position
from rlhf_lightning.callbacks.tracking import tell_loggers
from rlhf_lightning.records.run_directory import RunDirectory
from rlhf_lightning.records.sweep_agent import agent_run, swept_keys


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
        evaluated = [metric.heldout for metric in description.metrics if metric.heldout] if description else []
        tell_loggers(trainer, lambda logger: self._introduce(logger, evaluated))

    def _introduce(self, logger: Logger, evaluated: Sequence[str]) -> None:
        """Tell a logger the configuration, and have W&B keep the best values of a run in a sweep beside the last ones.

        Args:
            evaluated: metrics of evaluations.
        """
        if not isinstance(logger, WandbLogger) or agent_run() is None:
            logger.log_hyperparams(self.config)
            return
        for metric in evaluated:  # one by one: of a pattern and that of `WandbLogger`, "*", any one applies
            axis = {"step_metric": "trainer/global_step", "step_sync": True}
            # whether the least or the largest value is the best one only the server knows
            logger.experiment.define_metric(metric, summary="min,max,last", **axis)
        swept = swept_keys()
        logger.log_hyperparams({key: value for key, value in self.config.items() if key not in swept})
