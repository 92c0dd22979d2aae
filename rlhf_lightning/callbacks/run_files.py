"""The run directory's own files, written when training starts, and what loggers are told of the run then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from typing_extensions import override

from rlhf_lightning.callbacks.listener import Listener, Reporting, position
from rlhf_lightning.callbacks.tracking import tell_loggers
from rlhf_lightning.records.run_directory import RunDirectory
from rlhf_lightning.records.sweep_agent import agent_run, swept_keys


class RunFiles(Listener):
    """Writes configuration, environment and description when training starts: a run that never does leaves nothing.

    Args:
        directory: where to; None on ranks other than 0.
        config: the full configuration, for the loggers.
        begins: whether the run begins here, be it at a checkpoint of another run, as opposed to one that goes on.
    """

    def __init__(self, directory: RunDirectory | None, config: dict[str, Any], *, begins: bool) -> None:
        self.directory, self.begins = directory, begins
        self.config = config
        self._evaluated: set[str] = set()
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
        tell_loggers(trainer, self._tell_configuration)

    @override
    def on_row(self, trainer: Trainer, module: LightningModule, row: Mapping[str, float]) -> None:
        if self.directory is None or agent_run() is None:
            return
        evaluated = [name for name in row if name.startswith("eval/") and name not in self._evaluated]
        if evaluated:
            self._evaluated.update(evaluated)
            tell_loggers(trainer, lambda logger: _keep_best(logger, evaluated))

    def _tell_configuration(self, logger: Logger) -> None:
        """Tell a logger the configuration; but for what a sweep has set, where W&B takes it from the sweep alone."""
        swept = swept_keys() if isinstance(logger, WandbLogger) else frozenset()
        logger.log_hyperparams({key: value for key, value in self.config.items() if key not in swept})


def _keep_best(logger: Logger, metrics: Sequence[str]) -> None:
    """Have W&B keep the best values of metrics beside the last ones: which are best only the server knows.

    One metric at a time: of a pattern and that of `WandbLogger`, ``*``, any one would apply.
    """
    if not isinstance(logger, WandbLogger):
        return
    for metric in metrics:
        axis = {"step_metric": "trainer/global_step", "step_sync": True}
        logger.experiment.define_metric(metric, summary="min,max,last", **axis)
