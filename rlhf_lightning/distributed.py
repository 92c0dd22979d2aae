"""Rows across ranks: who computes which, and how every rank gets them all.

Rank r of W computes the global rows r, r + W, r + 2W, …. Every function here works unchanged in a single process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.types import Trajectories

Item = TypeVar("Item")
Batch = TypeVar("Batch", bound=Trajectories)


class Stream(IntEnum):
    """The uses of noise: each draws from numbers of its own."""

    ROLLOUT = 0
    EVALUATION = 1
    MINIBATCH = 2
    PROMPT = 3
    PASS = 4
    PAIR = 5
    GENERATE = 6
    EPISODE = 7
    FISHER = 8


FURTHER = 1 << 32
"""More than the iterations, or passes, of any run: a multiple is added for further noise in the same iteration."""


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among all ranks."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def run_seed() -> int:
    """The seed given to ``lightning.seed_everything`` (``--seed_everything``), 0 where none was given."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def own_rows(count: int) -> Tensor:
    """Global numbers of the rows that this rank computes, of ``count`` in all."""
    return torch.arange(rank(), count, world_size())


def row_slices(count: int, size: int | None) -> Iterator[Tensor]:
    """Row numbers 0 … count − 1 in runs of ``size`` (all at once where it is None)."""
    yield from torch.arange(count).split(size or max(count, 1))


def all_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_max(tensor: Tensor) -> Tensor:
    """The largest over ranks."""
    if world_size() == 1:
        return tensor
    largest = tensor.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def gather_rows(own: Tensor, count: int) -> Tensor:
    """Every rank's rows in global order.

    Args:
        own: this rank's rows ``own_rows(count)``, equal in shape on all ranks but for the number of rows.
    """
    if world_size() == 1:
        return own
    shard = -(-count // world_size())
    padded = own.new_zeros((shard, *own.shape[1:]))
    padded[: len(own)] = own
    as_sent = padded.to(torch.uint8) if own.dtype is torch.bool else padded
    parts = [torch.empty_like(as_sent) for _ in range(world_size())]
    dist.all_gather(parts, as_sent.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)[:count].to(own.dtype)


def gather_padded(own: Tensor, count: int) -> Tensor:
    """`gather_rows` of [b, T] where T may differ between ranks: padded on the right to the largest."""
    width = int(all_max(torch.tensor(own.shape[1], device=own.device)))
    return gather_rows(torch.nn.functional.pad(own, (0, width - own.shape[1])), count)


def over_own_rows(
    evaluate: Callable[[Batch], tuple[Tensor, ...]], batch: Batch, *, microbatch_size: int | None
) -> tuple[Float[Tensor, "B T"], ...]:
    """Evaluate a batch in microbatches, each rank its own rows, and give every rank the whole result."""
    width, outputs = batch.actions.shape[1], []
    mine = own_rows(len(batch)).to(batch.actions.device)
    for part in row_slices(len(mine), microbatch_size):
        results = evaluate(batch.select(mine[part.to(mine.device)]))
        outputs.append([torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in results])
    return tuple(gather_padded(torch.cat(column), len(batch)) for column in zip(*outputs, strict=True))


def gather_items(own: Sequence[Item], count: int) -> list[Item]:
    """`gather_rows` of Python objects."""
    if world_size() == 1:
        return list(own)
    parts: list[list[Item]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, list(own))
    return [parts[row % world_size()][row // world_size()] for row in range(count)]


def of_first_rank(item: Item) -> Item:
    """What rank 0 has: for decisions that all ranks must take alike, to the last bit of a number."""
    if world_size() == 1:
        return item
    boxed = [item]
    dist.broadcast_object_list(boxed, src=0)
    return boxed[0]


@contextmanager
def failing_together() -> Iterator[None]:
    """Around work that each rank does by itself: where it fails on one rank, the others do not wait for that one.

    Every rank must come by, and the work inside must not be collective.

    Raises:
        UserError: another rank has raised it; the message is that one's.
        RuntimeError: another rank has raised something else.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    failures = gather_items([_told(failure)], world_size())
    if failure is not None:
        raise failure
    for by_user, message in filter(None, failures):
        raise UserError(message) if by_user else RuntimeError(message)


def _told(failure: Exception | None) -> tuple[bool, str] | None:
    """Whether it is the user's to put right, and what to say of it on other ranks."""
    if failure is None or isinstance(failure, UserError):
        return failure and (True, str(failure))
    return False, f"rank {rank()} failed: {type(failure).__name__}: {failure}"


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add up the ranks' gradients, in one collective call; a missing gradient counts as zeros."""
    if world_size() == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter)
