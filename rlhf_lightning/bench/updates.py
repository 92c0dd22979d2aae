"""Gradients of the log-probabilities of responses: how long they take, and how much memory at most."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rlhf_lightning.bench.models import Size, prompts
from rlhf_lightning.bench.timing import Timings, timed_in_turn
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.models.language.states import hidden_states, padded_states
from rlhf_lightning.models.language.trunk import chunk_tokens
from rlhf_lightning.ops.logprobs import token_statistics
from rlhf_lightning.ops.masking import selected
from rlhf_lightning.types import TokenContext

PROMPTS, SAMPLES, PROMPT_LENGTH, LENGTH = 16, 4, 24, 64
ROWS, LONG = 8, 512
"""Where memory is measured."""


def responses(
    policy: LanguagePolicy, count: int, *, length: int, least: int
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Responses of random tokens, ``least`` to ``length`` long."""
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
    device: torch.device,
    rounds: int,
    *,
    least: int,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Timings:
    """Seconds of a gradient on `SAMPLES` responses to each of `PROMPTS` prompts, padded and laid end to end.

    Args:
        least: length of the shortest responses; the longest have `LENGTH` tokens.
    """
    policy = size.policy(device, context_length=PROMPT_LENGTH + LENGTH)
    alone = prompts(policy, PROMPTS, length=PROMPT_LENGTH)
    context = alone.select(torch.arange(PROMPTS, device=device).repeat_interleave(SAMPLES))
    given = responses(policy, PROMPTS * SAMPLES, length=LENGTH, least=least)
    chunk = chunk_tokens(policy.model)
    ways: Mapping[str, Callable[[], object]] = {
        "padded": lambda: gradient(policy, padded_states, context, *given, chunk=chunk),
        "end to end": lambda: gradient(policy, hidden_states, context, *given, chunk=chunk),
    }
    return timed_in_turn(ways, rounds, track=track)


def peak_memory(size: Size, device: torch.device) -> dict[str, float]:
    """Bytes that a gradient on `ROWS` responses of `LONG` tokens needs at most, beyond the model, by way."""
    return {
        way: _in_new_process(size, device, whole=whole) for way, whole in (("all logits", True), ("in chunks", False))
    }


def _in_new_process(size: Size, device: torch.device, *, whole: bool) -> float:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (size, str(device), whole))


def _peak(size: Size, device: str, whole: bool) -> float:
    policy = size.policy(torch.device(device), context_length=PROMPT_LENGTH + LONG)
    context = prompts(policy, ROWS, length=PROMPT_LENGTH)
    given: Any = responses(policy, ROWS, length=LONG, least=LONG)
    few: Any = tuple(part[:, :2] for part in given)
    gradient(policy, hidden_states, context, *few, chunk=2)  # whatever is allocated once
    chunk = ROWS * LONG if whole else chunk_tokens(policy.model)
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
