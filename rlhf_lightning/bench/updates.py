"""Gradients of the log-probabilities of responses: how long they take, and how much memory at most."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rlhf_lightning.bench.models import Shape, Size, prompts
from rlhf_lightning.bench.timing import Timings, timed_in_turn
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.models.language.states import hidden_states, padded_states
from rlhf_lightning.models.language.trunk import chunk_tokens
from rlhf_lightning.ops.logprobs import token_statistics
from rlhf_lightning.ops.masking import selected
from rlhf_lightning.types import TokenContext

LONG = Shape(prompts=8, samples=1, length=512)
"""Where memory is measured."""


def prompts_of_responses(policy: LanguagePolicy, shape: Shape) -> TokenContext:
    """A prompt for each response."""
    alone = prompts(policy, shape.prompts, length=shape.prompt_length)
    return alone.select(torch.arange(shape.prompts, device=policy.device).repeat_interleave(shape.samples))


def responses(policy: LanguagePolicy, shape: Shape, *, least: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Responses of random tokens, the shortest ``least`` long."""
    count, length = shape.responses, shape.length
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, policy.vocabulary, (count, length), generator=generator)
    lengths = torch.randint(least, length + 1, (count,), generator=generator)
    lengths[0] = length
    return ids.to(policy.device), (torch.arange(length) < lengths[:, None]).to(policy.device)


def gradient(
    policy: LanguagePolicy,
    states: Callable[..., Tensor],
    context: TokenContext,
    actions: Int[Tensor, "B T"],
    action_mask: Bool[Tensor, "B T"],
    *,
    chunk: int,
) -> None:
    """The gradient of the sum of all log-probabilities.

    Args:
        chunk: number of tokens whose logits are in memory at one time.
    """
    start = context.input_ids.shape[1] - 1
    hidden = states(policy.model, context, actions, action_mask)[:, start : start + actions.shape[1]]
    at_actions, targets = selected(hidden, action_mask), actions[action_mask]
    logprobs, _ = token_statistics(at_actions, targets, head=policy.head(), temperature=1.0, chunk_tokens=chunk)
    policy.zero_grad()
    logprobs.sum().backward()


def update_timings(
    size: Size,
    shape: Shape,
    device: torch.device,
    rounds: int,
    *,
    least: int,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Timings:
    """Seconds of a gradient, of rows that are padded and that are laid end to end.

    Args:
        least: length of the shortest responses.
    """
    ways = {
        "padded": update(size, shape, device, least=least, states=padded_states),
        "end to end": update(size, shape, device, least=least),
    }
    return timed_in_turn(ways, rounds, track=track)


def update(
    size: Size, shape: Shape, device: torch.device, *, least: int, states: Callable[..., Tensor] = hidden_states
) -> Callable[[], object]:
    """A gradient on responses of random tokens, the shortest ``least`` long."""
    policy = size.policy(device, context_length=shape.context_length)
    context, given = prompts_of_responses(policy, shape), responses(policy, shape, least=least)
    chunk = chunk_tokens(policy.model)
    return lambda: gradient(policy, states, context, *given, chunk=chunk)


def peak_memory(size: Size, device: torch.device) -> dict[str, float]:
    """Bytes that a gradient on responses of the shape `LONG` needs at most, beyond the model, by way."""
    return {
        way: _in_new_process(size, device, whole=whole) for way, whole in (("all logits", True), ("in chunks", False))
    }


def _in_new_process(size: Size, device: torch.device, *, whole: bool) -> float:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (size, str(device), whole))


def _peak(size: Size, device: str, whole: bool) -> float:
    policy = size.policy(torch.device(device), context_length=LONG.context_length)
    context = prompts(policy, LONG.prompts, length=LONG.prompt_length)
    given: Any = responses(policy, LONG, least=LONG.length)
    few: Any = tuple(part[:, :2] for part in given)
    gradient(policy, hidden_states, context, *few, chunk=2)  # whatever is allocated once
    chunk = LONG.responses * LONG.length if whole else chunk_tokens(policy.model)
    before = _memory(reset=True)
    gradient(policy, hidden_states, context, *given, chunk=chunk)
    return _memory() - before


def _memory(*, reset: bool = False) -> float:
    """The most memory, in bytes, that has been in use since the last reset, which gives what is in use now."""
    if torch.cuda.is_available():
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.max_memory_allocated())
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        raise UserError("bench --only memory reads Linux's own count; expected Linux, or a GPU")
    if reset:
        clear.write_text("5")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024.0 * float(line.split()[1])
