"""Distribution of rows over ranks, and collective operations.

Rank r of W computes the global rows r, r + W, r + 2W, …. Every function here also works in a single process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.types import Trajectories

Item = TypeVar("Item")
Batch = TypeVar("Batch", bound=Trajectories)


class Stream(IntEnum):
    """The uses of noise; each has its own stream of random numbers."""

    ROLLOUT = 0
    EVALUATION = 1
    MINIBATCH = 2
    PROMPT = 3
    PASS = 4
    PAIR = 5
    GENERATE = 6
    EPISODE = 7
    FISHER = 8
    WEIGHTS = 9
    JUDGED = 10


FURTHER = 1 << 32
"""More than the iterations or passes of any run: multiples are added to their number to key further noise in one."""


def world_size() -> int:
    """Number of processes, W."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 to W − 1."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def run_seed() -> int:
    """The seed that was passed to ``lightning.seed_everything`` (``--seed_everything``); 0 if there was none."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def own_rows(count: int) -> Tensor:
    """Global numbers of the rows that this rank computes, out of ``count`` rows."""
    return torch.arange(rank(), count, world_size())


def row_slices(count: int, size: int | None) -> Iterator[Tensor]:
    """Row numbers 0 … count − 1 in consecutive slices of ``size``; None for a single slice."""
    yield from torch.arange(count).split(size or max(count, 1))


def all_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks."""
    return _reduced(tensor, "SUM")


def all_max(tensor: Tensor) -> Tensor:
    """Maximum over ranks."""
    return _reduced(tensor, "MAX")


def _reduced(tensor: Tensor, operation: Literal["SUM", "MAX"]) -> Tensor:
    if world_size() == 1:
        return tensor
    result = tensor.detach().clone()
    dist.all_reduce(result, op=getattr(dist.ReduceOp, operation))
    return result


def gather_rows(own: Tensor, count: int) -> Tensor:
    """The rows of all ranks in global order.

    Args:
        own: this rank's rows, ``own_rows(count)``; all ranks have the same shape except for the number of rows.
        count: number of rows on all ranks.
    """
    if world_size() == 1:
        return own
    shard = -(-count // world_size())
    padded = own.new_zeros((shard, *own.shape[1:]))
    padded[: len(own)] = own
    sent = padded.to(torch.uint8) if own.dtype is torch.bool else padded
    parts = [torch.empty_like(sent) for _ in range(world_size())]
    dist.all_gather(parts, sent.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)[:count].to(own.dtype)


def gather_padded(own: Tensor, count: int) -> Tensor:
    """`gather_rows` of [b, T] where T may differ between ranks; rows are padded on the right to the largest T."""
    width = int(all_max(torch.tensor(own.shape[1], device=own.device)))
    return gather_rows(torch.nn.functional.pad(own, (0, width - own.shape[1])), count)


def over_own_rows(
    evaluate: Callable[[Batch], tuple[Tensor, ...]], batch: Batch, *, microbatch_size: int | None
) -> tuple[Float[Tensor, "B T"], ...]:
    """Evaluate the rows of a batch, divided over ranks and into microbatches; every rank gets the results of all rows.

    Args:
        evaluate: maps some rows of the batch to tensors [b, T].
        microbatch_size: number of rows that are evaluated at one time; None for all rows of a rank.
    """
    width, outputs = batch.actions.shape[1], []
    rows = own_rows(len(batch)).to(batch.actions.device)
    for part in row_slices(len(rows), microbatch_size):
        results = evaluate(batch.select(rows[part.to(rows.device)]))
        outputs.append([torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in results])
    return tuple(gather_rows(torch.cat(parts), len(batch)) for parts in zip(*outputs, strict=True))


def gather_items(own: Sequence[Item], count: int) -> list[Item]:
    """`gather_rows` for Python objects."""
    if world_size() == 1:
        return list(own)
    parts: list[list[Item]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, list(own))
    return [parts[row % world_size()][row // world_size()] for row in range(count)]


def from_first_rank(item: Item) -> Item:
    """The object of rank 0, for decisions that must be the same on all ranks."""
    if world_size() == 1:
        return item
    boxed = [item]
    dist.broadcast_object_list(boxed, src=0)
    return boxed[0]


@contextmanager
def failing_together() -> Iterator[None]:
    """A context for work without collective calls: if it fails on one rank, it fails on all, and no rank waits forever.

    Every rank must enter the context.

    Raises:
        UserError: another rank has raised a `UserError`, with the same message.
        RuntimeError: another rank has raised another exception.
    """
    failure: Exception | None = None
    elsewhere: tuple[type[Exception], str] | None = None  # what the other ranks raise
    try:
        yield
    except UserError as error:
        failure, elsewhere = error, (UserError, str(error))
    except Exception as error:
        failure, elsewhere = error, (RuntimeError, f"rank {rank()} failed: {type(error).__name__}: {error}")
    failures = gather_items([elsewhere], world_size())
    if failure is not None:
        raise failure
    for error_type, message in filter(None, failures):
        raise error_type(message)


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum the gradients over ranks in one collective call; a missing gradient counts as 0."""
    if world_size() == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter)
