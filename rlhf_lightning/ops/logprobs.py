"""Log-probability, entropy and KL of categorical distributions, from hidden states, in chunks.

The logits of a language model, [B, T, V] in float32, are by far the largest tensor of a training step. Here they
are computed for one chunk of tokens at a time, in the forward and again in the backward pass.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
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
    # Replace −∞ before the product, whose gradient would be 0 × ∞. NaN is not hidden.
    return -(logprobs.exp() * torch.where(logprobs == -torch.inf, 0.0, logprobs)).sum(-1)


def exact_kl(logprobs: Float[Tensor, "*N V"], other_logprobs: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """KL(p‖q) = Σ p (log p − log q) over the full vocabulary, in nats; p is the first argument."""
    delta = torch.where(logprobs == -torch.inf, 0.0, logprobs - other_logprobs)
    return (logprobs.exp() * delta).sum(-1)


def token_statistics(
    hidden: Float[Tensor, "N H"], targets: Int[Tensor, " N"], *, head: Head, temperature: float, chunk_tokens: int
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probability of each target and entropy at each position, without keeping all logits in memory.

    Args:
        hidden: last hidden states at the positions that predict the targets.
        head: hidden states to logits.
        temperature: divides the logits.
        chunk_tokens: number of positions whose logits are in memory at one time; recomputed in the backward pass.
    """

    def statistics(hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        logprobs = tempered_log_softmax(head(hidden), temperature=temperature)
        return logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy_of(logprobs)

    def sparing(hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return _Statistics.apply(head(hidden), targets, temperature)

    function = statistics if len(hidden) <= chunk_tokens else sparing
    logprobs, entropy = _in_chunks(function, hidden, targets, chunk_tokens)
    return logprobs, entropy


class _Statistics(torch.autograd.Function):
    """The same from logits, with a gradient that keeps one tensor of their size and makes one more.

    Autograd keeps half a dozen of them. This gradient has no derivative of its own.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], temperature: float
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Log-probability of each target, and entropy."""
        logprobs = tempered_log_softmax(logits, temperature=temperature)
        finite = logprobs.clamp(min=torch.finfo(logprobs.dtype).min)  # 0 × −∞ is no number
        entropy = -finite.mul_(logprobs.exp()).sum(-1)
        ctx.save_for_backward(logprobs, targets, entropy)
        ctx.set_materialize_grads(False)  # most losses have no entropy in them
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_logprob: Float[Tensor, " N"] | None, of_entropy: Float[Tensor, " N"] | None
    ) -> tuple[Tensor, None, None]:
        """With p = softmax(x): ∂ log p_a / ∂x = 1_a − p, ∂H/∂x = −p (log p + H)."""
        logprobs, targets, entropy = ctx.saved_tensors
        of_logprob = torch.zeros_like(entropy) if of_logprob is None else of_logprob
        weights = of_logprob[:, None].expand_as(logprobs)
        if of_entropy is not None:
            finite = logprobs.clamp(min=torch.finfo(logprobs.dtype).min)
            weights = finite.add_(entropy[:, None]).mul_(of_entropy[:, None]).add_(of_logprob[:, None])
        gradient = logprobs.exp().mul_(weights).neg_()
        gradient.scatter_add_(1, targets[:, None], of_logprob[:, None])
        return gradient.div_(ctx.temperature).to(ctx.dtype), None, None


def token_kl(
    hidden: Float[Tensor, "N H"],
    other_hidden: Float[Tensor, "N J"],
    *,
    head: Head,
    other_head: Head,
    temperature: float,
    chunk_tokens: int,
) -> Float[Tensor, " N"]:
    """Exact KL(first‖other) at each position, both tempered, without keeping all logits in memory.

    If both sides require gradients, chunking is off. This happens for a second derivative (one side is differentiated,
    then the other), whose graph keeps the logits of every chunk anyway: recomputing them would only add memory.
    """

    def divergence(hidden: Tensor, other_hidden: Tensor) -> tuple[Tensor, ...]:
        logprobs = tempered_log_softmax(head(hidden), temperature=temperature)
        return (exact_kl(logprobs, tempered_log_softmax(other_head(other_hidden), temperature=temperature)),)

    differentiated_twice = torch.is_grad_enabled() and hidden.requires_grad and other_hidden.requires_grad
    (kl,) = _in_chunks(divergence, hidden, other_hidden, len(hidden) if differentiated_twice else chunk_tokens)
    return kl


def _in_chunks(
    function: Callable[[Tensor, Tensor], tuple[Tensor, ...]], first: Tensor, second: Tensor, size: int
) -> tuple[Tensor, ...]:
    """Apply a function of N rows to chunks of them; each chunk is computed again in the backward pass."""
    if len(first) <= size:
        return function(first, second)
    chunks = zip(first.split(size), second.split(size), strict=True)
    results = [checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks]
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
