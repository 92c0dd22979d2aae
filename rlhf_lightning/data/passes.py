"""Data that is passed over: demonstrations and preference pairs, in global batches that are a function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from rlhf_lightning.distributed import FURTHER, Stream, run_seed
from rlhf_lightning.errors import UserError, check_counts
from rlhf_lightning.ops.noise import permutation
from rlhf_lightning.tasks.task import Task

Example = TypeVar("Example")


class PassDataModule(LightningDataModule, Generic[Example]):
    """Passes over examples; an epoch is one pass.

    The batch of step n is a function of (seed, n), so a resumed run continues where it stopped and every rank knows
    the whole global batch. The loaders only count: they yield batch numbers, `train_batch` and `heldout_batch` give
    the examples.

    Args:
        task: where the examples come from.
        batch_size: examples per step, across all devices.
        eval_limit: most held-out examples that are looked at.
    """

    unit: ClassVar[str]
    """What the examples are called, in the plural."""

    def __init__(self, task: Task, batch_size: int, eval_limit: int | None) -> None:
        super().__init__()
        check_counts("data.init_args", batch_size=batch_size, eval_limit=eval_limit)
        self.task = task
        self.batch_size = batch_size
        self.eval_limit = eval_limit
        self.train: Sequence[Example] = []
        self.heldout: Sequence[Example] = []
        self._orders: dict[int, tuple[int, Any]] = {}

    def load(self) -> tuple[Sequence[Example], Sequence[Example]]:
        """Training and held-out examples."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read the examples, once."""
        if self.train:
            return
        self.train, heldout = self.load()
        self.heldout = heldout[: self.eval_limit]
        if not self.train or not self.heldout:
            raise UserError(
                f"{type(self.task).__name__} gives {len(self.train)} training and {len(self.heldout)} held-out "
                "examples; expected at least one of each"
            )

    def steps_per_pass(self) -> int:
        """Batches in one pass; the last one may be smaller."""
        return -(-len(self.train) // self.batch_size)

    def train_batch(self, step: int, order: int = 0) -> list[Example]:
        """The global batch of optimizer step ``step``.

        Args:
            order: number of the order in which each pass goes, for networks that are to see the same examples in
                orders of their own.
        """
        number, place = divmod(step, self.steps_per_pass())
        if self._orders.get(order, (-1, None))[0] != number:
            shuffled = permutation(
                seed=run_seed(), stream=Stream.PASS, iteration=number + order * FURTHER, size=len(self.train)
            )
            self._orders[order] = (number, shuffled)
        chosen = self._orders[order][1][place * self.batch_size : (place + 1) * self.batch_size]
        return [self.train[i] for i in chosen.tolist()]

    def heldout_batch(self, number: int) -> list[Example]:
        """The held-out examples of batch ``number``."""
        return list(self.heldout[number * self.batch_size : (number + 1) * self.batch_size])

    def train_dataloader(self) -> DataLoader:
        """Batch numbers of one pass."""
        return DataLoader(range(self.steps_per_pass()), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """Batch numbers of the held-out examples."""
        return DataLoader(range(-(-len(self.heldout) // self.batch_size)), batch_size=None)

    def test_dataloader(self) -> DataLoader:
        """The held-out examples again."""
        return self.val_dataloader()
