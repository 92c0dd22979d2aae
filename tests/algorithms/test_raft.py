"""RAFT: what it keeps and how it imitates that, against loops that share no code with it."""

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
    BeforeUpdate,
    Iterations,
    Letters,
    OneToken,
    PaysFor,
    fit,
    tiny,
)

from rlhf_lightning.algorithms import raft as raft_module
from rlhf_lightning.algorithms.parts.kl_control import AdaptiveKLControl, KLControl
from rlhf_lightning.algorithms.raft import RAFT
from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.optimization import Optimization

BETA, SAMPLES = 2.0, 4


def raft(task=None, **settings):
    defaults = {"eval_every": 1000, "optimization": Optimization(lr=1e-2)}
    return RAFT(task or Letters(), tiny(), **{**defaults, **settings})


def best_rows(module, rollout):
    """Of each prompt, the row with the highest score less β log π/π_ref, the first of equals."""
    with torch.no_grad():
        own, reference = (action_logprobs(policy, rollout) for policy in (module.policy, module.reference.policy))
    chosen = []
    for first in range(0, len(rollout), SAMPLES):
        best, highest = None, float("-inf")
        for i, (_, actions) in list(enumerate(sequences(rollout)))[first : first + SAMPLES]:
            reward = share_of_b(module.policy, actions) - BETA * (own[i] - reference[i]).sum().item()
            if reward > highest + 1e-9:
                best, highest = i, reward
        chosen.append(best)
    return chosen


def test_raft_keeps_the_best_response_to_each_prompt_by_penalized_reward():
    task, found, unpenalized, seen = Letters(), [], [], Iterations()

    def compare(trainer, module, prepared):
        rows, scores = best_rows(module, prepared.rollout), seen.scored[-1].scores
        everything = list(sequences(prepared.rollout))
        assert list(sequences(prepared.batch)) == [everything[row] for row in rows]
        assert prepared.metrics["objective/score_kept"] == pytest.approx(scores[rows].mean().item())
        groups = scores.view(-1, SAMPLES)
        unpenalized.append([i * SAMPLES + int(best) for i, best in enumerate(groups.argmax(-1))])
        found.append(rows)

    module = raft(task, kl=KLControl(BETA), inner_epochs=4)
    fit(module, group_rollouts(task, size=16), seen, BeforeUpdate(compare), max_epochs=5, precision="64-true")
    assert found != unpenalized
    assert len({row % SAMPLES for rows in found for row in rows}) > 2


@pytest.mark.parametrize("inner_epochs", [1, 2])
def test_raft_gradient_is_that_of_the_likelihood_of_the_best(inner_epochs):
    def by_hand(module, prepared, old):
        if old is None:
            return best_rows(module, prepared.rollout)
        rows = action_logprobs(module.policy, prepared.rollout)
        return -sum(rows[i].sum() for i in old) / len(old)

    task = Letters()
    optimization = Optimization(lr=1e-2, microbatch_size=3, max_grad_norm=1e-3)
    module = raft(task, optimization=optimization, kl=KLControl(BETA), inner_epochs=inner_epochs, temperature=0.8)
    assert compared_gradients(module, group_rollouts(task, size=16), by_hand) == 3 * inner_epochs


def test_raft_steps_pass_several_times_over_what_was_kept():
    task, sizes, seen = Letters(), [], Iterations()

    def count(trainer, module):
        assert len(seen.batch) == 4
        sizes.append(len(seen.scored[-1]))

    module = raft(task, inner_epochs=3, minibatch_size=2)
    hooks = seen, AtHook("on_before_optimizer_step", count)
    rows = fit(module, group_rollouts(task, size=16), *hooks, max_epochs=1).rows
    assert sizes == [16] * 6
    assert rows[-1]["policy/steps"] == 6
    assert rows[-1]["samples"] == 16


def test_raft_reports_the_kl_to_the_old_policy_over_all_responses():
    task, before, measured, seen = Letters(), [], [], Iterations()

    @torch.no_grad()
    def remember(trainer, module, prepared):
        before.append(torch.cat(action_logprobs(module.policy, prepared.rollout)))

    def measure(trainer, module):
        now = torch.cat(action_logprobs(module.policy, seen.prepared[-1].rollout))
        difference = now - before.pop()
        measured.append((difference.exp() - 1 - difference).mean().item())

    hooks = seen, BeforeUpdate(remember), AtHook("on_train_batch_end", measure)
    rows = fit(raft(task), group_rollouts(task), *hooks, max_epochs=3, precision="64-true").rows[1:]
    assert [row["policy/kl_old"] for row in rows] == pytest.approx(measured, rel=1e-6)
    assert min(measured) > 1e-4


def test_raft_padding_changes_nothing():
    padding_changes_nothing(
        lambda: raft(minibatch_size=3), lambda: group_rollouts(Letters(), size=32, max_new_tokens=6)
    )


def test_raft_microbatches_change_nothing():
    def build(size):
        optimization = Optimization(lr=1e-2, microbatch_size=size)
        return raft(minibatch_size=4, kl=AdaptiveKLControl(0.1), optimization=optimization)

    microbatches_change_nothing(build, lambda: group_rollouts(Letters(), size=16, samples=2))


def test_raft_resumed_run_is_bit_identical(tmp_path):
    def build():
        kl = AdaptiveKLControl(0.1, target=0.05)
        return raft(minibatch_size=2, eval_every=2, kl=kl, optimization=Optimization(1e-2, "cosine"))

    resumed_run_is_identical(build, lambda: group_rollouts(Letters(), size=16), tmp_path)


def test_raft_learns_what_pays():
    class OneTokenGroups(OneToken):
        provides = OneToken.provides | {"groups"}

    task = OneTokenGroups()
    module = raft(task, kl=KLControl(0.0), optimization=Optimization(2e-2, "linear"))
    data = group_rollouts(task, PaysFor("b"), size=64, max_new_tokens=1, eval_prompts=32)
    rows = fit(module, data, max_epochs=15).rows
    assert rows[0]["eval/score"] < 0.5
    assert rows[-1]["eval/score"] > 0.95


def test_raft_needs_several_samples_of_a_prompt():
    task = Letters()
    with pytest.raises(UserError, match=r"data\.init_args\.samples_per_prompt is 1; expected at least 2") as error:
        fit(raft(task), group_rollouts(task, samples=1), max_epochs=1)
    assert "\n" not in str(error.value)


def test_raft_refuses_devices_that_cannot_share_what_is_kept(monkeypatch):
    task = Letters()
    monkeypatch.setattr(raft_module, "world_size", lambda: 2)
    with pytest.raises(UserError, match="leaves 3 responses to train on, which 2 devices do not divide") as error:
        fit(raft(task), group_rollouts(task, size=12), max_epochs=1)
    assert "\n" not in str(error.value)


def test_raft_refuses_a_task_without_groups():
    class Walk(Task):
        provides = frozenset({"environments", "step rewards"})

    with pytest.raises(UserError, match="RAFT needs groups, which task Walk does not provide"):
        raft(Walk())


@pytest.mark.parametrize("bad", [{"inner_epochs": 0}, {"minibatch_size": 0}, {"eval_every": 0}])
def test_raft_bad_arguments_are_named_in_one_line(bad):
    with pytest.raises(UserError, match=rf"model\.init_args\.{next(iter(bad))}") as error:
        raft(**bad)
    assert "\n" not in str(error.value)
