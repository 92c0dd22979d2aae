"""The perplexity of a policy on demonstrations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_lightning.distributed import row_slices
from rlhf_lightning.models.language.text import encode_responses
from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.types import Demonstration


def demonstration_nats(
    policy: TextPolicy, demonstrations: Sequence[Demonstration], *, microbatch_size: int | None
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Negative log-probability of all responses together, in nats, and the number of their tokens."""
    device = policy.device
    nats, tokens = torch.zeros((), device=device), torch.zeros((), dtype=torch.long, device=device)
    for rows in row_slices(len(demonstrations), microbatch_size):
        chosen = [demonstrations[i] for i in rows.tolist()]
        if not chosen:
            continue
        encoded = encode_responses(
            [d.prompt for d in chosen],
            [d.response for d in chosen],
            policy.tokenizer,
            stop_id=policy.stop_ids[0],
            context_length=policy.context_length,
            max_response_tokens=policy.context_length // 2,
        ).to(device)
        outputs = policy.evaluate(encoded.context, encoded.actions, encoded.action_mask)
        nats, tokens = nats - outputs.logprobs.sum(), tokens + encoded.action_mask.sum()
    return nats, tokens


def perplexity(nats: float, tokens: float) -> float:
    """The exponential of the mean nats per token."""
    return torch.tensor(nats / max(tokens, 1)).exp().item()
