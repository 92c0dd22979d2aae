"""RLOO: its gradient against a loop that shares no code with it, and what must not change it."""

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
from training_helpers import (
    AtHook,
    Iterations,
    Letters,
    OneToken,
    PaysFor,
    fit,
    quiet_trainer,
    tiny,
)

from rlhf_lightning.algorithms.parts.kl_control import AdaptiveKLControl, KLControl
from rlhf_lightning.algorithms.parts.surrogates import Clip, Penalty
from rlhf_lightning.algorithms.rloo import RLOO
from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.optimization import Optimization

BETA, SAMPLES = 0.3, 4


def rloo(task=None, **settings):
    defaults = {"eval_every": 1000, "optimization": Optimization(lr=1e-2)}
    return RLOO(task or Letters(), tiny(), **{**defaults, **settings})


def by_hand(module, prepared, old):
    """The loss of whole responses, each compared with the others to its prompt, by a loop.

    Args:
        old: advantages and log-probabilities from the start of the update; None to return them.
    """
    batch = prepared.batch
    logprobs = action_logprobs(module.policy, batch)
    if old is None:
        reference = action_logprobs(module.reference.policy, batch)
        returns = [
            share_of_b(module.policy, actions) - BETA * (logprobs[i] - reference[i]).sum().item()
            for i, (_, actions) in enumerate(sequences(batch))
        ]
        advantages = []
        for i, value in enumerate(returns):
            first = i // SAMPLES * SAMPLES
            others = [returns[j] for j in range(first, first + SAMPLES) if j != i]
            advantages.append(value - sum(others) / (SAMPLES - 1))
        return advantages, [row.sum().item() for row in logprobs]
    loss = 0.0
    for advantage, before, row in zip(*old, logprobs, strict=True):
        ratio = (row.sum() - before).exp()
        loss = loss - advantage * ratio
    return loss / len(batch)


@pytest.mark.parametrize("inner_epochs", [1, 2])
def test_rloo_gradient_is_that_of_the_leave_one_out_estimator(inner_epochs):
    task = Letters()
    optimization = Optimization(lr=1e-2, microbatch_size=3, max_grad_norm=1e-3)
    module = rloo(task, optimization=optimization, kl=KLControl(BETA), inner_epochs=inner_epochs, temperature=0.8)
    assert compared_gradients(module, group_rollouts(task), by_hand) == 3 * inner_epochs


def test_rloo_gradient_at_the_first_step_is_the_score_function_times_the_advantage():
    task, checked, seen = Letters(), [], Iterations()

    def compare(trainer, module):
        gradients = [parameter.grad.clone() for parameter in module.policy.parameters()]
        with torch.enable_grad():
            advantages, _ = by_hand(module, seen.prepared[-1], None)
            rows = action_logprobs(module.policy, seen.batch)
            loss = -sum(a * row.sum() for a, row in zip(advantages, rows, strict=True)) / len(rows)
            expected = torch.autograd.grad(loss, list(module.policy.parameters()))
        assert all(torch.allclose(g, e, rtol=1e-7, atol=1e-11) for g, e in zip(gradients, expected, strict=True))
        checked.append(max(e.abs().max() for e in expected))

    hook = AtHook("on_before_optimizer_step", compare)
    fit(rloo(task, kl=KLControl(BETA)), group_rollouts(task), seen, hook, max_epochs=2, precision="64-true")
    assert len(checked) == 2
    assert min(checked) > 1e-3


def test_rloo_advantages_of_a_group_sum_to_zero_and_stand_at_every_token():
    task, seen = Letters(), Iterations()
    fit(rloo(task), group_rollouts(task, samples=2), seen, max_epochs=1)
    batch = seen.batch
    first = batch.advantages[:, 0]
    assert torch.allclose(first.view(-1, 2).sum(-1), torch.zeros(4), atol=1e-6)
    assert first.abs().max() > 0.01
    assert torch.equal(batch.advantages, torch.where(batch.action_mask, first[:, None], 0.0))


def test_rloo_padding_changes_nothing():
    settings = {"minibatch_size": 3, "inner_epochs": 2, "surrogate": Clip(0.1)}
    padding_changes_nothing(lambda: rloo(**settings), lambda: group_rollouts(Letters()))


def test_rloo_microbatches_change_nothing():
    def build(size):
        optimization = Optimization(lr=1e-2, microbatch_size=size)
        settings = {"surrogate": Clip(0.01), "kl": AdaptiveKLControl(0.1), "optimization": optimization}
        return rloo(minibatch_size=4, inner_epochs=3, **settings)

    _, rows = microbatches_change_nothing(build, lambda: group_rollouts(Letters()))
    assert rows[-1]["policy/clip_fraction"] > 0.1


def test_rloo_resumed_run_is_bit_identical(tmp_path):
    def build():
        kl = AdaptiveKLControl(0.1, target=0.05)
        return rloo(minibatch_size=4, inner_epochs=2, eval_every=2, kl=kl, optimization=Optimization(1e-2, "cosine"))

    resumed_run_is_identical(build, lambda: group_rollouts(Letters()), tmp_path)


def test_rloo_ratio_is_one_at_the_first_step():
    task = Letters()
    rows = fit(rloo(task), group_rollouts(task, max_new_tokens=6), max_epochs=3).rows[1:]
    assert all(row["policy/ratio_max"] == pytest.approx(1, abs=1e-4) for row in rows)
    assert all(0 <= row["rollout/logprob_gap"] < 1e-4 for row in rows)
    assert all(row["policy/steps"] == 1 for row in rows)
    row = fit(rloo(task, inner_epochs=2), group_rollouts(task), max_epochs=1).rows[-1]
    assert row["policy/ratio_max"] > 1.01
    assert row["rollout/logprob_gap"] < 1e-4


def test_rloo_clipped_share_is_that_of_the_responses():
    task, shares, seen = Letters(), [], Iterations()

    def count(trainer, module):
        batch, clipped = seen.batch, 0
        rows = action_logprobs(module.policy, batch)
        for i, row in enumerate(rows):
            old = batch.old_logprobs[i][batch.action_mask[i]].sum()
            ratio, advantage = (row.sum() - old).exp(), batch.advantages[i, 0]
            clipped += bool((advantage > 0 and ratio > 1.02) or (advantage < 0 and ratio < 0.98))
        shares.append(clipped / len(rows))

    module = rloo(task, surrogate=Clip(0.02), inner_epochs=3)
    hook = AtHook("on_before_optimizer_step", count)
    [_, row] = fit(module, group_rollouts(task), seen, hook, max_epochs=1, precision="64-true").rows
    assert shares[0] == 0
    assert shares[-1] > 0
    assert row["policy/clip_fraction"] == pytest.approx(sum(shares) / 3)


def test_rloo_reaches_the_optimum_of_a_bandit():
    class OneTokenGroups(OneToken):
        provides = OneToken.provides | {"groups"}

    task = OneTokenGroups()
    module = rloo(task, kl=KLControl(0.0), optimization=Optimization(2e-2, "linear"))
    data = group_rollouts(task, PaysFor("b"), size=64, max_new_tokens=1, eval_prompts=32)
    rows = fit(module, data, max_epochs=25).rows
    assert rows[0]["eval/score"] < 0.5
    assert rows[-1]["eval/score"] > 0.95


def test_rloo_needs_several_samples_of_a_prompt_to_train_and_not_to_evaluate():
    task = Letters()
    with pytest.raises(UserError, match=r"data\.init_args\.samples_per_prompt is 1; expected at least 2") as error:
        fit(rloo(task), group_rollouts(task, samples=1), max_epochs=1)
    assert "\n" not in str(error.value)
    [row] = quiet_trainer().validate(rloo(task), group_rollouts(task, samples=1), verbose=False)
    assert "eval/score" in row


def test_rloo_group_size_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(UserError, match="rollout_batch_size is 8, which samples_per_prompt 3 does not divide"):
        group_rollouts(Letters(), samples=3)


def test_rloo_refuses_a_task_without_groups():
    class Walk(Task):
        provides = frozenset({"environments", "step rewards"})

    with pytest.raises(UserError, match="RLOO needs groups, which task Walk does not provide"):
        rloo(Walk())


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"inner_epochs": 0}, r"model\.init_args\.inner_epochs"),
        ({"minibatch_size": 0}, r"model\.init_args\.minibatch_size"),
        ({"surrogate": Penalty()}, r"model\.init_args\.surrogate"),
        ({"kl": KLControl(0.1, "exact")}, r"model\.init_args\.kl\.estimator"),
        ({"eval_every": 0}, r"model\.init_args\.eval_every"),
    ],
)
def test_rloo_bad_arguments_are_named_in_one_line(bad, named):
    with pytest.raises(UserError, match=named) as error:
        rloo(**bad)
    assert "\n" not in str(error.value)
