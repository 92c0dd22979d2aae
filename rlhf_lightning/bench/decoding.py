"""Sampling responses: the decoding engines beside each other, and beside ``generate`` of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from transformers import GenerationConfig

from rlhf_lightning.bench.models import Shape, Size, prompts
from rlhf_lightning.bench.timing import Timings, timed_in_turn
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.ops.noise import gumbel, gumbel_argmax, row_keys
from rlhf_lightning.rollout.decode import EagerDecoder, FastDecoder
from rlhf_lightning.rollout.engine import DecodingEngine
from rlhf_lightning.types import TokenContext


def rollout_timings(
    size: Size,
    shape: Shape,
    device: torch.device,
    rounds: int,
    *,
    ends: int,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Timings:
    """Seconds of a rollout, by engine.

    Args:
        ends: number of tokens that end a response; 0 for responses of full length.
    """
    policy, context = _drawn_from(size, shape, device, ends)
    ways: Mapping[str, Callable[[], object]] = {
        "generate": lambda: generate(policy, context, shape),
        "eager": lambda: sample(EagerDecoder(), policy, context, shape),
        "fast": lambda: sample(FastDecoder(), policy, context, shape),
    }
    return timed_in_turn(ways, rounds, track=track)


def rollout(size: Size, shape: Shape, device: torch.device) -> Callable[[], object]:
    """A rollout of responses of full length, by the engine that is the default."""
    policy, context = _drawn_from(size, shape, device, ends=0)
    return lambda: sample(FastDecoder(), policy, context, shape)


def _drawn_from(size: Size, shape: Shape, device: torch.device, ends: int) -> tuple[LanguagePolicy, TokenContext]:
    policy = size.policy(device, context_length=shape.context_length)
    policy.stop_ids = list(range(7, 7 + ends))
    return policy, prompts(policy, shape.prompts, length=shape.prompt_length)


def sample(engine: DecodingEngine, policy: LanguagePolicy, context: TokenContext, shape: Shape) -> object:
    """The responses of an engine."""
    rows = torch.arange(shape.responses, device=policy.device)
    keys = row_keys(seed=1, stream=0, iteration=0, rows=rows)
    return engine.generate(policy, context, keys=keys, rows=rows, max_new_tokens=shape.length)


@torch.no_grad()
def generate(policy: LanguagePolicy, context: TokenContext, shape: Shape) -> object:
    """The same number of responses by transformers."""
    settings = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=shape.length,
        eos_token_id=policy.stop_ids or None,
        pad_token_id=0,
        num_return_sequences=shape.samples,
    )
    return cast(Any, policy.model).generate(
        context.input_ids, attention_mask=context.attention_mask.long(), generation_config=settings
    )


def noise_timings(vocabulary: int, device: torch.device, rounds: int) -> Timings:
    """Seconds in which 64 tokens are drawn from logits: with noise for every token, and where it can matter.

    ``log-softmax`` is what any sampler has to do.
    """
    logits = 3 * torch.randn(64, vocabulary, generator=torch.Generator().manual_seed(1)).to(device)
    keys = row_keys(seed=1, stream=0, iteration=0, rows=torch.arange(64, device=device))
    logprobs = logits.log_softmax(-1)
    return timed_in_turn(
        {
            "log-softmax": lambda: logits.log_softmax(-1),
            "all noise": lambda: (logprobs + gumbel(keys, size=vocabulary).float()).argmax(-1),
            "noise that matters": lambda: gumbel_argmax(logprobs, keys),
        },
        rounds,
    )
