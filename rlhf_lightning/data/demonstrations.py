"""Demonstrations for supervised training."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.data.passes import PassDataModule
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import Demonstration


class DemonstrationDataModule(PassDataModule[Demonstration]):
    """Prompts with responses to imitate, from the task.

    Args:
        batch_size: demonstrations per step, across all devices; 32 to 128.
        eval_limit: largest number of held-out demonstrations to evaluate on; None for all.
    """

    unit = "demonstrations"

    def __init__(self, task: Task, batch_size: int = 48, eval_limit: int | None = 1024) -> None:
        super().__init__(task, batch_size, eval_limit)

    def load(self) -> tuple[Sequence[Demonstration], Sequence[Demonstration]]:
        """The demonstrations of the task."""
        return self.task.demonstrations("train"), self.task.demonstrations("heldout")
