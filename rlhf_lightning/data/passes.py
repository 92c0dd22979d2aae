"""`PassDataModule`: given data in shuffled passes, in global batches that are a function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

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
        done = batch * self.batch_size
        count = min(self.batch_size, len(self.train) - done)
        start = pass_number * len(self.train) + done
        return from_passes(self.train, start, count, seed=run_seed(), stream=Stream.PASS, order=order)

    def heldout_batches(self) -> int:
        """Batches of held-out examples; the last one may be smaller."""
        return -(-len(self.heldout) // self.batch_size)

    def heldout_batch(self, number: int) -> list[Example]:
        """The held-out examples of batch ``number``."""
        return list(self.heldout[number * self.batch_size : (number + 1) * self.batch_size])


def from_passes(
    items: Sequence[Example], start: int, count: int, *, seed: int, stream: Stream, order: int = 0
) -> list[Example]:
    """``count`` items from shuffled passes over all of them, one pass after the other.

    Args:
        start: items that were taken before.
        order: number of the shuffled order; each has passes of its own.
    """
    chosen: list[Example] = []
    while len(chosen) < count:
        pass_number, place = divmod(start + len(chosen), len(items))
        shuffled = _shuffled(seed, stream, pass_number + order * FURTHER, len(items))
        chosen += [items[i] for i in shuffled[place : place + count - len(chosen)].tolist()]
    return chosen


@lru_cache(maxsize=32)
def _shuffled(seed: int, stream: Stream, iteration: int, size: int) -> Tensor:
    """`permutation`, which many batches share."""
    return permutation(seed=seed, stream=stream, iteration=iteration, size=size)
