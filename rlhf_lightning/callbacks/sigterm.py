"""SIGTERM ends a command after the step, or the batch of an evaluation, in which it came: on all ranks at once."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from rlhf_lightning.distributed import all_max
from rlhf_lightning.lightning_seams import listen_for_sigterm, set_received_sigterm


class Sigterm(Callback):
    """Agrees after each step whether any rank was sent SIGTERM.

    Lightning would broadcast it from within the signal handler: where that interrupts one rank in the middle of another
    collective call, the ranks wait for each other for ever.
    """

    def __init__(self) -> None:
        self.came = False
        """Whether this rank was sent it."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        def notice() -> None:
            self.came = True
            if trainer.world_size == 1:
                set_received_sigterm(trainer, True)

        listen_for_sigterm(trainer, notice)

    @override
    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Tell Lightning, which then ends training, or the evaluation, on all ranks."""
        if trainer.world_size > 1:
            came = all_max(torch.tensor(int(self.came), device=trainer.strategy.root_device))
            set_received_sigterm(trainer, bool(came))

    on_validation_batch_end = on_train_batch_end
    on_test_batch_end = on_train_batch_end
