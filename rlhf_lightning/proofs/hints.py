"""What may be wrong with a loss whose expected gradient is not ∇J: known mistakes, looked for on single batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.algorithms.base.on_policy import OnPolicy
from rlhf_lightning.models.policy import PolicyOutputs
from rlhf_lightning.models.tabular import TabularPolicy
from rlhf_lightning.proofs.expectation import copy_sharing_networks, scored_batch
from rlhf_lightning.proofs.instance import Instance, tabular
from rlhf_lightning.tasks.bandit.tree import as_rollout
from rlhf_lightning.types import AdvantageBatch

BATCHES = ((0, 3), (1, 8), (2, 10), (0, 14), (4, 1), (5, 2))
"""Responses, by number, of batches of two; their lengths differ."""
EQUAL = 1e-6
"""Losses may divide by counts in float32."""

MICROBATCHES = (
    "the gradient depends on the microbatch size: the loss divides by a count of its microbatch (`part`) where it "
    "should divide by one of the whole minibatch (`minibatch.sequences`)"
)
TOKENS = (
    "tokens are weighted by 1 over the tokens of the batch, so a response weighs less beside longer ones: sum over a "
    "response's tokens and divide by `minibatch.sequences`"
)
LENGTHS = (
    "tokens are weighted by 1 over their response's length: a log-probability or a ratio is averaged over tokens where "
    "it should be summed"
)
WHITENED = (
    "the advantages of every batch have mean 0 and variance 1: whitening by the batch's own statistics biases the "
    "gradient (less in larger batches)"
)


@dataclass(frozen=True)
class TokenWeights:
    """By how much a loss raises each token of a batch.

    Args:
        weights: −∂loss/∂log π(aₜ), of each token that counts.
        advantages: Â at the same tokens; None where the batch has none.
        lengths: of the response that each token belongs to.
    """

    weights: Float[Tensor, " N"]
    advantages: Float[Tensor, " N"] | None
    lengths: Float[Tensor, " N"]


def hints(module: OnPolicy[Any], instance: Instance) -> list[str]:
    """Known mistakes that explain the gradients of a module on an instance, in words.

    Args:
        module: with the networks of the instance (`Instance.place`).
    """
    found = []
    if _depends_on_microbatches(module, instance):
        found.append(MICROBATCHES)
    batches = list(_token_weights(module, instance))
    tokens = [one.weights * one.lengths.numel() for one in batches]
    lengths = [one.weights * one.lengths for one in batches]
    plain = [one.weights for one in batches]
    advantages = [one.advantages for one in batches if one.advantages is not None]
    if len(advantages) == len(batches):
        if not _proportional(plain, advantages):
            found += [TOKENS] if _proportional(tokens, advantages) else []
            found += [LENGTHS] if _proportional(lengths, advantages) else []
        moments = [(one.mean().abs().item(), (one.var(correction=0) - 1).abs().item()) for one in advantages]
        if all(mean < 1e-6 and variance < 1e-4 for mean, variance in moments):
            found.append(WHITENED)
    return found


def _token_weights(module: OnPolicy[Any], instance: Instance) -> Iterator[TokenWeights]:
    for numbers in BATCHES:
        at_work = copy_sharing_networks(module)
        scored = scored_batch(as_rollout(tabular(module.policy)), instance.scores, numbers, group_size=len(numbers))
        with torch.no_grad():
            batch = at_work.prepare(scored).batch
        minibatch = at_work.as_one_minibatch(batch)
        [part] = minibatch.parts
        recorder = _Recorder(tabular(module.policy))
        at_work.policy = recorder
        loss = at_work.loss(part, minibatch).value
        [gradient] = torch.autograd.grad(loss, [recorder.logprobs], materialize_grads=True)
        mask = part.action_mask
        yield TokenWeights(
            weights=-gradient[mask],
            advantages=part.advantages[mask] if isinstance(part, AdvantageBatch) else None,
            lengths=mask.sum(-1, keepdim=True).expand(mask.shape)[mask].double(),
        )


class _Recorder(TabularPolicy):
    """A policy that keeps the log-probabilities that it was asked for, so that a loss can be differentiated in them."""

    def __init__(self, policy: TabularPolicy) -> None:
        super().__init__(policy.tokenizer, policy.logits.detach().clone(), temperature=policy.temperature)
        self.logprobs: Tensor

    def evaluate(self, *arguments: Any, **options: Any) -> PolicyOutputs:
        """The policy's own outputs."""
        outputs = super().evaluate(*arguments, **options)
        self.logprobs = outputs.logprobs
        return outputs


def _depends_on_microbatches(module: OnPolicy[Any], instance: Instance) -> bool:
    """Whether the gradient of a batch changes when its responses are evaluated one at a time."""
    at_work = copy_sharing_networks(module)
    scored = scored_batch(as_rollout(tabular(module.policy)), instance.scores, BATCHES[0], group_size=2)
    with torch.no_grad():
        batch = at_work.prepare(scored).batch
    gradients = []
    for size in (None, 1):
        at_work.optimization = type(at_work.optimization)(microbatch_size=size)
        minibatch = at_work.as_one_minibatch(batch)
        loss = torch.stack([at_work.loss(part, minibatch).value for part in minibatch.parts]).sum()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*at_work.policy.parameters()])]))
    together, separate = gradients
    return not torch.allclose(together, separate, rtol=0, atol=EQUAL)


def _proportional(weights: list[Tensor], advantages: list[Tensor]) -> bool:
    """Whether all weights are the same multiple of their advantages."""
    x, y = torch.cat(advantages), torch.cat(weights)
    factor = (x @ y) / (x @ x)
    return factor.abs().item() > EQUAL and torch.allclose(y, factor * x, rtol=0, atol=EQUAL)
