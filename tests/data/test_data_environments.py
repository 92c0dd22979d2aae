"""Iterations in environments: what is collected, scaled, reported, kept and refused."""

import numpy as np
import pytest
import torch
from scripted_environments import acting, data, ppo, scattered, scripted, told
from training_helpers import Letters, fit, run_seed_is, same, snapshot

from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.data import environments as module_under_test
from rlhf_lightning.data.environments import EnvironmentDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.control.policy import ControlCritic
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.ops.advantages import gae
from rlhf_lightning.tasks.control import Control


def same_rollout(first, second):
    ours, theirs = ({**vars(s.rollout), **vars(s.rollout.context), **vars(s)} for s in (first, second))
    tensors = [name for name, value in ours.items() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 12
    return all(torch.equal(ours[name], theirs[name]) for name in tensors)


# -- collecting ------------------------------------------------------------------------------------------------


def test_rollout_holds_what_the_policy_did():
    module, policy = data(), acting(temperature=0.8)
    scored = module.collect(policy, 0)
    rollout = scored.rollout
    assert rollout.actions.shape == rollout.old_logprobs.shape == scored.rewards.shape == (3, 12)
    assert rollout.action_mask.all()
    assert rollout.rows.tolist() == [0, 1, 2]
    outputs = policy.evaluate(rollout.context, rollout.actions, rollout.action_mask)
    torch.testing.assert_close(rollout.old_logprobs, outputs.logprobs.detach())
    assert not rollout.old_logprobs.requires_grad
    assert torch.equal(scored.scores, scored.rewards.sum(-1))
    assert torch.equal(rollout.continues, ~(rollout.terminated | rollout.truncated))


def test_rollout_is_a_function_of_seed_and_iteration():
    assert same_rollout(data().collect(acting(), 3), data().collect(acting(), 3))
    first = data().collect(acting(), 3).rollout
    for other in (data().collect(acting(), 4), data().collect(acting(), 3, attempt=1)):
        assert torch.equal(other.rollout.context.observations[:, 0], first.context.observations[:, 0])
        assert not torch.equal(other.rollout.actions, first.actions)
    with run_seed_is(1):
        other = data().collect(acting(), 3).rollout
    assert not torch.equal(other.context.observations[:, 0], first.context.observations[:, 0])


def test_judging_disturbs_no_training():
    one, other, policy = data(), data(), acting()
    first = other.collect_heldout(policy)
    training = one.collect(policy, 0)
    assert same_rollout(training, other.collect(policy, 0))
    assert not torch.equal(first.observations[:3, 0], training.observations[:, 0])  # other episodes
    assert same_rollout(first, other.collect_heldout(policy))
    assert same_rollout(one.collect(policy, 1), other.collect(policy, 1))


def test_policy_is_judged_by_whole_episodes_with_its_most_probable_actions():
    module, policy = data(eval_episodes=5), acting()
    scored = module.collect_heldout(policy)
    rollout = scored.rollout
    assert len(scored) == 5
    assert (rollout.terminated | rollout.truncated).sum(-1).tolist() == [1] * 5
    context, mask = rollout.context, rollout.action_mask
    assert torch.equal(policy.act(context.observations[mask]), rollout.actions[mask])
    row = module.statistics(scored)
    assert row["objective/score"] == pytest.approx(scored.rewards.sum().item() / 5)
    assert row["rollout/length_mean"] == mask.sum().item() / 5
    assert row["rollout/episodes"] == 5


# -- reporting -------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_episodes_that_ended_with_their_beginnings():
    task = scripted("3T 2X")
    module = data(task, environments=1, rollout_batch_size=4)
    rows = [module.statistics(module.collect(told(task, 4), iteration)) for iteration in range(3)]
    # step t of episode k pays 10 k + t + 1: 1 2 3 | 11 — 12 | 21 22 23 — | 31 32 | 41 42
    assert rows[0] == {"rollout/episodes": 1, "objective/score": 1 + 2 + 3, "rollout/length_mean": 3}
    assert rows[1] == {"rollout/episodes": 2, "objective/score": (23 + 66) / 2, "rollout/length_mean": 2.5}
    assert rows[2] == {"rollout/episodes": 1, "objective/score": 31 + 32, "rollout/length_mean": 2}


def test_rollout_in_which_no_episode_ended_has_no_mean_score():
    task = scripted("9T")
    module = data(task, environments=1, rollout_batch_size=5)
    assert module.statistics(module.collect(told(task, 5), 0)) == {"rollout/episodes": 0}
    assert module.statistics(module.collect(told(task, 5), 1))["objective/score"] == sum(range(1, 10))


def test_steps_are_counted():
    module = data()
    module.collect(acting(), 0)
    assert [module.counters(iteration) for iteration in (0, 4)] == [{"env_steps": 36}, {"env_steps": 180}]


# -- advantages ------------------------------------------------------------------------------------------------


def test_termination_cuts_the_bootstrap_and_both_ends_cut_the_trace():
    task = scripted("3T 2X")
    module = data(task, environments=1, rollout_batch_size=8)
    scored = module.collect(told(task, 8), 0)
    rollout, gamma, lam = scored.rollout, 0.9, 0.8
    critic = scattered(ControlCritic(2, (4,), "tanh"), 0.3)
    with torch.no_grad():
        values = critic.values(rollout)
        following = critic.next_values(rollout, values)
        advantages, _ = gae(scored.rewards, values, following, rollout.continues, gamma=gamma, lam=lam)

        def value(episode, step):
            return critic.score(critic.trunk(torch.tensor([float(episode), step]))).item()

    # terminated after 3, truncated after 2, and the rollout stops at the end of the third episode
    expected = []
    for episode, length, after in ((0, 3, 0.0), (1, 2, value(1, 2)), (2, 3, 0.0)):
        known = [value(episode, step) for step in range(length)] + [after]
        deltas = [10 * episode + t + 1 + gamma * known[t + 1] - known[t] for t in range(length)]
        expected += [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]
    assert advantages[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_value_of_a_constant_reward_is_learned():
    """V = 1 + γ V, so 1/(1 − γ) = 10; were truncation an end, the mean over ten steps would be 4.1."""
    task = Control("Paying-v0", max_episode_steps=10)
    module = ppo(task, critic=CriticOptions(lr=0.05, warmup=100), lam=0.9, inner_epochs=10, minibatch_size=80)
    rows = fit(module, EnvironmentDataModule(task, environments=4, rollout_batch_size=80), max_epochs=10).rows
    seen = torch.tensor([[1.0, 0.0]])
    critic = module.critic.network
    assert critic.score(critic.trunk(seen)).item() == pytest.approx(10, rel=0.005)
    assert rows[-1]["objective/score"] == 10


# -- normalizers -----------------------------------------------------------------------------------------------


def test_observation_moments_rest_during_a_rollout_and_move_once_after_the_update():
    module, policy = data(), acting(normalize_observations=True)
    shown = np.zeros((0, 2))
    for iteration in range(3):
        before = snapshot(policy)
        scored = module.collect(policy, iteration)
        assert same(before, snapshot(policy))
        mean, variance = (shown.mean(0), shown.var(0)) if iteration else (0.0, 1.0)
        expected = ((scored.observations.numpy() - mean) / np.sqrt(variance + 1e-8)).clip(-10, 10)
        np.testing.assert_allclose(scored.rollout.context.observations, expected, rtol=1e-9, atol=1e-12)
        module.collect_heldout(policy)
        assert same(before, snapshot(policy))
        module.finish(scored, policy)
        shown = np.concatenate([shown, scored.observations.flatten(0, 1).numpy()])
        np.testing.assert_allclose(policy.normalizer.moments.mean, shown.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(policy.normalizer.moments.variance, shown.var(0), rtol=1e-9)


def test_rewards_are_divided_by_what_was_known_before_the_rollout():
    plain, scaling, policy = data(), data(normalize_rewards=True, reward_gamma=0.9), acting()
    discounted, running = np.zeros((3, 0)), np.zeros(3)
    for iteration in range(3):
        expected, scored = plain.collect(policy, iteration), scaling.collect(policy, iteration)
        for t in range(12):
            running = 0.9 * running + expected.rewards[:, t].numpy()
            discounted = np.column_stack([discounted, running])
            running = np.where(expected.rollout.continues[:, t], running, 0.0)
        known = discounted[:, : 12 * max(iteration, 1)]  # the first rollout is scaled by its own
        np.testing.assert_allclose(scored.rewards * known.std(), expected.rewards, rtol=1e-6)
        assert scaling.statistics(scored) == plain.statistics(expected)
        assert torch.equal(scored.scores, expected.scores)
        scaling.finish(scored, policy)


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rollout_batch_size": 35},
            r"rollout_batch_size is 35; expected a multiple of data.init_args.environments \(3\)",
        ),
        ({"environments": 0}, "environments must be at least 1, got 0"),
        ({"rollout_batch_size": 0}, "rollout_batch_size must be at least 1, got 0"),
        ({"eval_episodes": 0}, "eval_episodes must be at least 1, got 0"),
        ({"reward_gamma": 1.0}, "reward_gamma must be at least 0 and below 1, got 1.0"),
        ({"task": Letters()}, "EnvironmentDataModule needs environments, which task Letters does not provide"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(settings, message):
    with pytest.raises(UserError, match=message) as refusal:
        data(**settings)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "environments is 3, which 2 devices do not divide"),
        ({"environments": 4, "eval_episodes": 1}, "eval_episodes"),
    ],
)
def test_environments_that_devices_cannot_share_are_refused(monkeypatch, settings, message):
    monkeypatch.setattr(module_under_test, "world_size", lambda: 2)
    with pytest.raises(UserError, match=message):
        data(**settings)


def test_policy_of_another_kind_is_refused():
    policy = LanguageBackbone(width=8, layers=1, heads=2, context_length=8).policy(Letters().tokenizer)
    with pytest.raises(UserError, match="policy that acts in environments, got LanguagePolicy"):
        data().collect(policy, 0)


def test_numbers_that_are_not_finite_name_the_environment():
    task = Control("Broken-v0")
    with pytest.raises(UserError, match=r"Broken-v0 gave rewards that are not finite \(environment 0\)"):
        data(task, environments=1).collect(acting(task), 0)
