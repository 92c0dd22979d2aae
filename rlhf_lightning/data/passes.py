"""`PassDataModule`: given data in shuffled passes, in global batches that are a function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from rlhf_lightning.data.numbered import NumberedDataModule
from rlhf_lightning.distributed import FURTHER, Stream, run_seed
from rlhf_lightning.errors import UserError, check_counts
from rlhf_lightning.ops.noise import permutation
from rlhf_lightning.tasks.task import Task

Example = TypeVar("Example")


class PassDataModule(NumberedDataModule, Generic[Example]):
    """Passes over examples; an epoch is one pass, and the batch of step n is a function of (seed, n).

    Args:
        task: where the examples come from.
        batch_size: examples per step, across all devices.
        eval_limit: largest number of held-out examples to evaluate on; None for all.
    """

    unit: ClassVar[str]
    """Name of the examples in the plural."""

    def __init__(self, task: Task, batch_size: int, eval_limit: int | None) -> None:
        super().__init__(task)
        check_counts("data.init_args", batch_size=batch_size, eval_limit=eval_limit)
        self.batch_size = batch_size
        self.eval_limit = eval_limit
        self.train: Sequence[Example] = []
        self.heldout: Sequence[Example] = []
        self._orders: dict[int, tuple[int, Any]] = {}

    def load(self) -> tuple[Sequence[Example], Sequence[Example]]:
        """The training and the held-out examples."""
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
        """The global batch of an optimizer step, counted from 0.

        Args:
            order: number of the shuffled order, for networks that each see the same examples in another order.
        """
        pass_number, batch = divmod(step, self.steps_per_pass())
        if self._orders.get(order, (-1, None))[0] != pass_number:
            shuffled = permutation(
                seed=run_seed(), stream=Stream.PASS, iteration=pass_number + order * FURTHER, size=len(self.train)
            )
            self._orders[order] = (pass_number, shuffled)
        chosen = self._orders[order][1][batch * self.batch_size : (batch + 1) * self.batch_size]
        return [self.train[i] for i in chosen.tolist()]

    def heldout_batches(self) -> int:
        """Batches of held-out examples; the last one may be smaller."""
        return -(-len(self.heldout) // self.batch_size)

    def heldout_batch(self, number: int) -> list[Example]:
        """The held-out examples of batch ``number``."""
        return list(self.heldout[number * self.batch_size : (number + 1) * self.batch_size])
