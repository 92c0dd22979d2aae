"""Expectations over all batches of the enumerable task.

A batch of B responses has probability Π p(τᵢ), so the expectation of anything that is computed from it is a finite sum.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.algorithms.base.on_policy import OnPolicy
from rlhf_lightning.data.preferences import LabelDataModule
from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.models.tabular import PREFIXES
from rlhf_lightning.ops.rewards import last_action_rewards
from rlhf_lightning.tasks.bandit.exact import flat_gradient, probabilities
from rlhf_lightning.tasks.bandit.tree import PROMPT, RESPONSES, as_rollout
from rlhf_lightning.training.offline import Offline, Part
from rlhf_lightning.types import LabelledResponse, PreferencePair, Rollout, ScoredRollout


@dataclass(frozen=True)
class GradientMoments:
    """Mean and spread of the gradient of a loss with respect to the policy's parameters.

    Args:
        mean: E[g].
        variance: E‖g − E[g]‖², the trace of the covariance.
    """

    mean: Float[Tensor, " P"]
    variance: Float[Tensor, ""]


def expected_gradient(module: OnPolicy[Any], scores: Float[Tensor, " 15"], *, batch_size: int) -> GradientMoments:
    """Moments of the gradient that an algorithm computes from a batch that its own policy samples, as one group.

    The module needs no trainer, only its networks (`configure_model`), best in float64. Each batch finds it as it was
    given: what `prepare` changes (a moving average, the coefficient of the KL) is forgotten again.

    A batch counts as often as its responses can be ordered; so the loss must not depend on that order. There are
    C(B + 14, B) batches of B responses: 15, 120, 680, 3060, ….

    Args:
        scores: of each response, in place of the task's own.
        batch_size: responses.
    """
    policy = module.policy
    assert isinstance(policy, TextPolicy)
    every = as_rollout(policy)
    p = probabilities(policy).detach()
    return _moments(
        (orders * p[numbers].prod(), batch_gradient(module, scored_batch(every, scores, numbers, batch_size)))
        for numbers, orders in batches(batch_size)
    )


def expected_feedback_gradient(
    module: FeedbackAlgorithm[Any], scores: Float[Tensor, " 15"], writer: TextPolicy
) -> GradientMoments:
    """Moments of the gradient that an algorithm computes from a batch of feedback on another policy's responses.

    Two responses are drawn independently; the first is preferred with probability σ(r₁ − r₂) (Bradley and Terry). As
    labels of single responses, the preferred one is desirable and the other undesirable. Where the loss depends on the
    rest of the batch (`Offline.statistics`), batches have two examples, otherwise one.

    Args:
        scores: r of each response.
        writer: the policy whose responses are judged.
    """
    p = probabilities(writer).detach()
    preferred = 2 * p[:, None] * p[None, :] * torch.sigmoid(scores[:, None] - scores[None, :])  # [chosen, rejected]
    examples: list[tuple[Any, Tensor]]
    if issubclass(module.data_class, LabelDataModule):
        shares = {True: preferred.sum(1) / 2, False: preferred.sum(0) / 2}
        examples = [
            (LabelledResponse(PROMPT, RESPONSES[number], label), share[number])
            for label, share in shares.items()
            for number in range(PREFIXES)
        ]
    else:
        examples = [
            (PreferencePair(PROMPT, RESPONSES[first], RESPONSES[second]), preferred[first, second])
            for first, second in product(range(PREFIXES), repeat=2)
        ]
    size = 1 if type(module).statistics is Offline.statistics else 2
    return _moments(
        (
            torch.stack([share for _, share in batch]).prod(),
            feedback_gradient(module, [example for example, _ in batch]),
        )
        for batch in product(examples, repeat=size)
    )


def feedback_gradient(module: FeedbackAlgorithm[Any], examples: Sequence[Any]) -> Float[Tensor, " P"]:
    """Gradient of the loss of one batch of feedback with respect to the policy's parameters.

    A pair of equal responses, which training leaves out, counts like any other.
    """
    with torch.no_grad():
        statistics = module.statistics(examples)
    part = Part(examples, module.encode(examples).to(module.device), statistics)
    return flat_gradient(module.loss_sum(part)[0] / module.weight(part), module.policy)


def _moments(weighted: Iterable[tuple[Tensor, Tensor]]) -> GradientMoments:
    """Of gradients, each behind its probability."""
    weights, gradients = map(torch.stack, zip(*weighted, strict=True))
    mean = weights @ gradients
    return GradientMoments(mean, weights @ ((gradients - mean) ** 2).sum(-1))


def batches(size: int) -> Iterator[tuple[list[int], int]]:
    """Every batch as the numbers of its responses, and in how many orders it can come."""
    for numbers in combinations_with_replacement(range(PREFIXES), size):
        repeats = math.prod(math.factorial(count) for count in Counter(numbers).values())
        yield list(numbers), math.factorial(size) // repeats


def scored_batch(
    every: Rollout, scores: Float[Tensor, " 15"], numbers: Sequence[int], group_size: int = 1
) -> ScoredRollout:
    """A batch of given responses as it would have been collected.

    Args:
        every: all responses once, by number (`as_rollout`).
        scores: of each response.
        numbers: which responses.
    """
    chosen = torch.tensor(numbers)
    rollout = every.select(chosen)
    return ScoredRollout(
        rollout=replace(rollout, rows=torch.arange(len(numbers))),
        rewards=last_action_rewards(scores[chosen], rollout.action_mask),
        scores=scores[chosen],
        group_size=group_size,
        prompts=[PROMPT] * len(numbers),
        responses=[RESPONSES[number] for number in numbers],
    )


def batch_gradient(module: OnPolicy[Any], scored: ScoredRollout) -> Float[Tensor, " P"]:
    """Gradient of the loss of one batch with respect to the policy's parameters; the module stays as it was."""
    module = copy_sharing_networks(module)
    with torch.no_grad():
        batch = module.prepare(scored).batch
    minibatch = module.as_one_minibatch(batch)
    loss = torch.stack([module.loss(part, minibatch).value for part in minibatch.parts]).sum()
    return flat_gradient(loss, module.policy)


def copy_sharing_networks(module: OnPolicy[Any]) -> OnPolicy[Any]:
    """A copy of everything but networks, task and backbone."""
    kept = (*module.networks().values(), module.reference, module.task, module.backbone)
    return copy.deepcopy(module, {id(one): one for one in kept})
