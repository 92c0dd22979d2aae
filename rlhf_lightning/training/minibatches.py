"""Cutting a batch into minibatches and microbatches, the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.distributed import Stream, rank, run_seed, world_size
from rlhf_lightning.ops.noise import permutation
from rlhf_lightning.types import TrainBatch

BatchT = TypeVar("BatchT", bound=TrainBatch)


@dataclass
class Minibatch(Generic[BatchT]):
    """This rank's part of a global minibatch, in microbatches.

    Args:
        parts: this rank's rows; together with the other ranks' they are the minibatch.
        tokens: actions in the whole minibatch, on all ranks.
        sequences: trajectories in the whole minibatch, on all ranks.
    """

    parts: list[BatchT]
    tokens: int
    sequences: int


@dataclass
class Loss:
    """Loss and metrics of some rows of a minibatch.

    Args:
        value: to be minimized, divided by the counts of the whole minibatch already.
        sums: to report as means per action: summed over the actions of these rows.
        largest: to report as the largest over all rows.
    """

    value: Float[Tensor, ""]
    sums: dict[str, Tensor]
    largest: dict[str, Tensor] = field(default_factory=dict)

    def detached(self) -> Loss:
        """The same numbers without their graph."""
        numbers = ({name: value.detach() for name, value in group.items()} for group in (self.sums, self.largest))
        return Loss(self.value.detach(), *numbers)


def whole_batch(batch: BatchT, *, microbatch_size: int | None) -> Minibatch[BatchT]:
    """The whole batch as a single minibatch, in the order of the rows."""
    return _minibatch(batch, 0, len(batch), microbatch_size)


def shuffled_minibatches(
    batch: BatchT, *, size: int, key: int, microbatch_size: int | None
) -> Iterator[Minibatch[BatchT]]:
    """Global minibatches in an order that is a function of (seed, key); this rank gets rows r, r + W, … of each."""
    order = permutation(seed=run_seed(), stream=Stream.MINIBATCH, iteration=key, size=len(batch))
    shuffled = batch.select(order.to(batch.actions.device))
    for start in range(0, len(batch), size):
        yield _minibatch(shuffled, start, min(start + size, len(batch)), microbatch_size)


def _minibatch(batch: BatchT, start: int, stop: int, microbatch_size: int | None) -> Minibatch[BatchT]:
    ranks, mine = world_size(), range(start + rank(), stop, world_size())
    size = (microbatch_size or len(mine) or 1) * ranks
    return Minibatch(
        parts=[batch.select(slice(first, min(first + size, stop), ranks)) for first in mine[:: size // ranks]],
        tokens=int(batch.action_mask[start:stop].sum()),
        sequences=stop - start,
    )
