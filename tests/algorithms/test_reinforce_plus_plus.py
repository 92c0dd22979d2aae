"""REINFORCE++: its advantages and gradient against loops, what must not change it, and that it learns."""

import pytest
import torch
from group_helpers import group_rollouts
from plain_forward import action_logprobs, sequences, share_of_b
from run_checks import (
    compared_gradients,
    microbatches_change_nothing,
    padding_changes_nothing,
    resumed_run_is_identical,
)
from training_helpers import Iterations, Letters, fit, rollouts, tiny

from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.parts.surrogates import Clip, Penalty
from rlhf_lightning.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.control import Control
from rlhf_lightning.training.optimization import Optimization

BETA, SAMPLES = 0.3, 4


def build(task=None, **settings):
    defaults = {"eval_every": 1000, "optimization": Optimization(lr=1e-2), "kl": KLControl(BETA)}
    return ReinforcePlusPlus(task or Letters(), tiny(), **{**defaults, **settings})


def advantages_by_hand(module, batch, group_baseline):
    """Returns to go, less their group's mean, normalized over all tokens of the batch."""
    own, reference = (action_logprobs(policy, batch) for policy in (module.policy, module.reference.policy))
    returns = []
    for (_, actions), logprobs, other in zip(sequences(batch), own, reference, strict=True):
        kl = (logprobs - other).tolist()
        returns.append([share_of_b(module.policy, actions) - BETA * sum(kl[t:]) for t in range(len(kl))])
    if group_baseline:
        for first in range(0, len(returns), SAMPLES):
            group = returns[first : first + SAMPLES]
            mean = sum(row[0] for row in group) / SAMPLES
            returns[first : first + SAMPLES] = [[value - mean for value in row] for row in group]
    flat = [value for row in returns for value in row]
    mean = sum(flat) / len(flat)
    deviation = (sum((value - mean) ** 2 for value in flat) / len(flat)) ** 0.5
    return [[(value - mean) / (deviation + 1e-8) for value in row] for row in returns]


@pytest.mark.parametrize("group_baseline", [False, True])
def test_gradient_is_that_of_the_clipped_surrogate_with_advantages_by_hand(group_baseline):
    def by_hand(module, prepared, old):
        batch = prepared.batch
        rows = action_logprobs(module.policy, batch)
        if old is None:
            return advantages_by_hand(module, batch, group_baseline), [row.tolist() for row in rows]
        loss = 0.0
        for advantages, before, row in zip(*old, rows, strict=True):
            for advantage, logprob_before, logprob in zip(advantages, before, row, strict=True):
                ratio = (logprob - logprob_before).exp()
                loss = loss - torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage)
        return loss / len(batch)

    task = Letters()
    optimization = Optimization(lr=1e-2, microbatch_size=3, max_grad_norm=1e-3)
    module = build(task, optimization=optimization, surrogate=Clip(0.1), inner_epochs=2, group_baseline=group_baseline)
    assert compared_gradients(module, group_rollouts(task), by_hand) == 6


def test_advantages_have_mean_0_and_variance_1_over_the_tokens_of_the_batch():
    seen = Iterations()
    fit(build(), rollouts(Letters()), seen, max_epochs=1, precision="64-true")
    values = seen.batch.advantages[seen.batch.action_mask]
    assert values.mean().abs().item() < 1e-12
    assert values.var(correction=0).item() == pytest.approx(1.0, abs=1e-6)


def test_padding_microbatches_and_interruptions_change_nothing(tmp_path):
    settings = {"minibatch_size": 4, "inner_epochs": 2, "surrogate": Clip(0.05)}

    def module(size=None):
        return build(optimization=Optimization(lr=1e-2, microbatch_size=size), **settings)

    def collect():
        return group_rollouts(Letters())

    padding_changes_nothing(module, collect)
    microbatches_change_nothing(module, collect)
    resumed_run_is_identical(module, collect, tmp_path)


def test_reinforce_plus_plus_learns():
    module = build(optimization=Optimization(lr=5e-3), kl=KLControl(0.0), inner_epochs=2)
    rows = fit(module, rollouts(Letters(), size=32), max_epochs=25).rows
    assert rows[-1]["objective/score"] > rows[1]["objective/score"] + 0.3


def test_single_responses_are_refused_where_groups_are_compared():
    with pytest.raises(UserError, match="samples_per_prompt is 1; expected at least 2"):
        fit(build(group_baseline=True), rollouts(Letters()), max_epochs=1)
    with pytest.raises(UserError, match="ReinforcePlusPlus with group_baseline needs groups"):
        build(Control("CartPole-v1"), kl=KLControl(0.0), group_baseline=True)


def test_settings_that_would_be_ignored_are_refused():
    with pytest.raises(UserError, match=r"surrogate Penalty belongs to PPO"):
        build(surrogate=Penalty())
    with pytest.raises(UserError, match=r"group_baseline compares whole returns: expected gamma 1, got 0\.9"):
        build(group_baseline=True, gamma=0.9)
