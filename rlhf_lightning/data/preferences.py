"""Preference pairs for reward modeling."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.data.passes import PassDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.tasks.text.task import TextTask
from rlhf_lightning.types import PreferencePair


class PreferenceDataModule(PassDataModule[PreferencePair]):
    """Pairs of responses with the preferred one named, from a file or from the task.

    Args:
        pairs: JSONL file of prompt, chosen and rejected, as the ``pairs`` command writes it; None takes the pairs
            that the task comes with.
        heldout_fraction: share of the file's prompts that is held out.
        batch_size: pairs per step, across all devices; 32 to 128.
        eval_limit: most held-out pairs that are looked at.
    """

    def __init__(
        self,
        task: Task,
        pairs: str | None = None,
        heldout_fraction: float = 0.1,
        batch_size: int = 64,
        eval_limit: int | None = 2048,
    ) -> None:
        super().__init__(task, batch_size, eval_limit)
        if pairs is None and "preferences" not in task.provides:
            raise UserError(
                f"data.init_args.pairs is missing: task {type(task).__name__} has no preference pairs of its own; "
                "make a file of them: python -m rlhf_lightning pairs --config TASK.yaml --policy runs/NAME/export "
                "--out pairs.jsonl"
            )
        self.source = task if pairs is None else TextTask(pairs, heldout_fraction=heldout_fraction)

    def load(self) -> tuple[Sequence[PreferencePair], Sequence[PreferencePair]]:
        """The two splits, which share no prompt."""
        return self.source.preferences("train"), self.source.preferences("heldout")
