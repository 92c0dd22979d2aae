"""Log-probability, entropy and KL of categorical distributions, from hidden states, in chunks.

The logits of a language model, [B, T, V] in float32, are the largest tensor of a training step by far. Here they
exist for one chunk of tokens at a time, in the forward and in the backward pass.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head: TypeAlias = Callable[[Tensor], Tensor]
"""Maps hidden states [N, H] to logits [N, V]."""


def tempered_log_softmax(logits: Float[Tensor, "*N V"], *, temperature: float) -> Float[Tensor, "*N V"]:
    """Log-probabilities of softmax(logits / temperature), in float32 or better."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return torch.log_softmax(logits / temperature, dim=-1)


def entropy_of(logprobs: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """H = −Σ p log p in nats; a token of probability 0 contributes 0."""
    # The replacement comes before the product, whose gradient would be 0 × ∞; NaN is not hidden.
    return -(logprobs.exp() * torch.where(logprobs == -torch.inf, 0.0, logprobs)).sum(-1)


def exact_kl(logprobs: Float[Tensor, "*N V"], other_logprobs: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """KL(p‖q) = Σ p (log p − log q) over the full vocabulary, in nats; p is the first argument."""
    delta = torch.where(logprobs == -torch.inf, 0.0, logprobs - other_logprobs)
    return (logprobs.exp() * delta).sum(-1)


def _statistics(
    hidden: Float[Tensor, "N H"], targets: Int[Tensor, " N"], head: Head, temperature: float
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    logprobs = tempered_log_softmax(head(hidden), temperature=temperature)
    return logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy_of(logprobs)


def _divergence(
    hidden: Float[Tensor, "N H"],
    other: Float[Tensor, "N J"],
    head: Head,
    other_head: Head,
    temperature: float,
) -> Float[Tensor, " N"]:
    return exact_kl(
        tempered_log_softmax(head(hidden), temperature=temperature),
        tempered_log_softmax(other_head(other), temperature=temperature),
    )


def token_statistics(
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, " N"],
    *,
    head: Head,
    temperature: float,
    chunk_tokens: int,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probability of each target and entropy at each position, without ever holding all logits.

    Args:
        hidden: last hidden states at the positions that predict the targets.
        head: hidden states to logits.
        temperature: of the distribution that is described.
        chunk_tokens: positions whose logits exist at one time; their logits are computed again in backward.
    """
    if len(hidden) <= chunk_tokens:
        return _statistics(hidden, targets, head, temperature)
    parts = [
        checkpoint(_statistics, h, t, head, temperature, use_reentrant=False)
        for h, t in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def token_kl(
    hidden: Float[Tensor, "N H"],
    other_hidden: Float[Tensor, "N J"],
    *,
    head: Head,
    other_head: Head,
    temperature: float,
    chunk_tokens: int,
) -> Float[Tensor, " N"]:
    """Exact KL(first‖other) at each position, both tempered, without ever holding all logits.

    Where both sides ask for gradients they are held: that is for a derivative in one side which is differentiated in
    the other, and its graph keeps the logits of every chunk anyway; to compute them twice would only cost memory.
    """
    differentiated_twice = torch.is_grad_enabled() and hidden.requires_grad and other_hidden.requires_grad
    if len(hidden) <= chunk_tokens or differentiated_twice:
        return _divergence(hidden, other_hidden, head, other_head, temperature)
    parts = [
        checkpoint(_divergence, h, o, head, other_head, temperature, use_reentrant=False)
        for h, o in zip(hidden.split(chunk_tokens), other_hidden.split(chunk_tokens), strict=True)
    ]
    return torch.cat(parts)
