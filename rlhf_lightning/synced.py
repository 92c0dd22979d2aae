"""`SyncedModule`: gradients, steps and metrics that are the same on any number of devices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from rlhf_lightning.callbacks.listener import Listener
from rlhf_lightning.distributed import all_max, all_sum, rank, sum_gradients, world_size
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.optimization import Optimization
from rlhf_lightning.tasks.task import Task


class SyncedModule(LightningModule):
    """A module that computes its own rows of a global batch and sums gradients itself.

    A loss is a sum over this rank's rows divided by a *global* count, so summing the gradients of microbatches and of
    ranks gives the gradient of the whole batch. Backward passes run unsynchronized, inside `local_backward`; one
    flat all-reduce in `apply_gradients` joins them.

    Args:
        task: where data comes from.
        backbone: builds the networks.
        optimization: how they are stepped.
    """

    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, task: Task, backbone: Backbone, optimization: Optimization) -> None:
        super().__init__()
        task.require(self.requires, by=type(self).__name__)
        self.automatic_optimization = False
        self.task = task
        self.backbone = backbone
        self.optimization = optimization
        self.grad_norms: dict[str, float] = {}

    # -- to be said by the subclass ----------------------------------------------------------------------------

    def networks(self) -> dict[str, nn.Module]:
        """Trained networks by name; gradients are clipped and measured for each by itself."""
        raise NotImplementedError

    def learning_rates(self) -> dict[str, float]:
        """Learning rates of networks that do not follow ``optimization.lr``."""
        return {}

    def schedule_length(self) -> int:
        """Number of times that the learning-rate schedule is stepped in the run."""
        raise NotImplementedError

    def export(self, path: Path) -> None:
        """Write the trained networks into a folder, in the Hugging Face format."""
        raise NotImplementedError

    def position(self) -> str:
        """Where in the run we are, for messages."""
        return f"step {self.global_step}"

    # -- optimization ------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        """One AdamW over all trained networks."""
        return self.optimization.build(
            self.networks(), length=max(self.schedule_length(), 1), lrs=self.learning_rates()
        )

    def local_backward(self) -> AbstractContextManager[None]:
        """Inside, backward passes leave gradients on this rank; `apply_gradients` joins them."""
        strategy = self.trainer.strategy
        if world_size() > 1 and hasattr(strategy, "block_backward_sync"):
            return strategy.block_backward_sync()
        return nullcontext()

    def apply_gradients(self) -> None:
        """Sum gradients over ranks, clip, step, and forget them."""
        optimizer = self.optimizers()
        sum_gradients(p for group in optimizer.param_groups for p in group["params"])
        optimizer.step()
        optimizer.zero_grad()

    def forget_gradients(self) -> None:
        """Drop what has been accumulated."""
        self.optimizers().zero_grad()

    def step_schedule(self) -> None:
        """Advance the learning-rate schedule by one."""
        self.lr_schedulers().step()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure and clip, after a gradient scaler has unscaled.

        Raises:
            UserError: a gradient is not finite (without a scaler, which skips such steps itself).
        """
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        for group in optimizer.param_groups:
            limit = self.optimization.max_grad_norm
            norm = nn.utils.clip_grad_norm_(group["params"], math.inf if limit is None else limit).item()
            if not math.isfinite(norm) and not scaled:
                raise UserError(
                    f"the gradient of the {group['name']} is not finite at {self.position()}; "
                    "the checkpoint before it is kept: try a lower learning rate"
                )
            self.grad_norms[group["name"]] = norm

    # -- metrics -----------------------------------------------------------------------------------------------

    def reduced(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Sums over ranks, as numbers: one collective call, one transfer to the host."""
        total = all_sum(torch.stack([value.detach().double() for value in sums.values()]))
        return dict(zip(sums, total.tolist(), strict=True))

    def reduced_max(self, largest: Tensor) -> float:
        """The largest of the ranks' numbers."""
        return all_max(largest.detach().double()).item()

    def check_finite(self, name: str, value: float, culprit: str = "") -> None:
        """Stop the run on all ranks alike; the value must be reduced already."""
        if not math.isfinite(value):
            raise UserError(f"{name} is {value} at {self.position()}{culprit}; the checkpoint before it is kept")

    def publish(self, row: Mapping[str, float]) -> None:
        """Report a finished row of metrics, its x-axis first, to callbacks and loggers."""
        self.log_dict(
            {name: torch.tensor(float(value)) for name, value in row.items()},
            logger=False,
            on_step=False,
            on_epoch=True,
            batch_size=1,
        )
        for callback in self.trainer.callbacks:
            if isinstance(callback, Listener):
                callback.on_row(self.trainer, self, row)
        if rank() == 0:
            for logger in self.trainer.loggers:
                logger.log_metrics(dict(row), step=int(next(iter(row.values()))))
