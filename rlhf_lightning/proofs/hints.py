"""What may be wrong with a loss whose expected gradient is not ∇J: known mistakes, looked for on single batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.algorithms.base.on_policy import OnPolicy
from rlhf_lightning.models.policy import PolicyOutputs
from rlhf_lightning.models.tabular import TabularPolicy
from rlhf_lightning.proofs.expectation import batch_gradient, copy_sharing_networks, scored_batch
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


def hints(module: OnPolicy[Any], instance: Instance) -> list[str]:
    """Known mistakes that explain the gradients of a module on an instance, in words.

    Args:
        module: with the networks of the instance (`Instance.place`).
    """
    found = [MICROBATCHES] if _depends_on_microbatches(module, instance) else []
    batches = list(_token_weights(module, instance))
    if not batches:
        return found
    weights, advantages, lengths = zip(*batches, strict=True)
    if not _proportional(weights, advantages):
        per_token = [weight * len(weight) for weight in weights]
        per_response = [weight * length for weight, length in zip(weights, lengths, strict=True)]
        found += [TOKENS] if _proportional(per_token, advantages) else []
        found += [LENGTHS] if _proportional(per_response, advantages) else []
    if all(one.mean().abs() < 1e-6 and (one.var(correction=0) - 1).abs() < 1e-4 for one in advantages):
        found.append(WHITENED)
    return found


def _token_weights(module: OnPolicy[Any], instance: Instance) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each batch with advantages, and for each token that counts: −∂loss/∂log π(aₜ), Âₜ, its response's length."""
    for numbers in BATCHES:
        at_work = copy_sharing_networks(module)
        scored = scored_batch(as_rollout(tabular(module.policy)), instance.scores, numbers, group_size=len(numbers))
        with torch.no_grad():
            batch = at_work.prepare(scored).batch
        minibatch = at_work.as_one_minibatch(batch)
        [part] = minibatch.parts
        if not isinstance(part, AdvantageBatch):
            return
        recorder = _Recorder(tabular(module.policy))
        at_work.policy = recorder
        loss = at_work.loss(part, minibatch).value
        [gradient] = torch.autograd.grad(loss, [recorder.logprobs], materialize_grads=True)
        mask = part.action_mask
        yield -gradient[mask], part.advantages[mask], mask.sum(-1, keepdim=True).expand(mask.shape)[mask].double()


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
    gradients = []
    for size in (None, 1):
        at_work.optimization = type(at_work.optimization)(microbatch_size=size)
        gradients.append(batch_gradient(at_work, scored))
    together, separate = gradients
    return not torch.allclose(together, separate, rtol=0, atol=EQUAL)


def _proportional(weights: Sequence[Tensor], advantages: Sequence[Tensor]) -> bool:
    """Whether all weights are the same multiple of their advantages."""
    x, y = torch.cat(list(advantages)), torch.cat(list(weights))
    factor = (x @ y) / (x @ x)
    return factor.abs().item() > EQUAL and torch.allclose(y, factor * x, rtol=0, atol=EQUAL)
