"""Iterations in environments: what is collected, scaled, reported, kept and refused."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from scripted_environments import Told, scattered
from training_helpers import AtHook, Letters, fit, quiet_trainer, run_seed_is, same, snapshot

from rlhf_lightning.actor_critic import CriticOptions
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.data import environments as module_under_test
from rlhf_lightning.data.environments import EnvironmentDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.kl_control import KLControl
from rlhf_lightning.models.backbone import LanguageBackbone
from rlhf_lightning.models.control import ControlCritic, ControlPolicy
from rlhf_lightning.models.control_backbone import ControlBackbone
from rlhf_lightning.ops.advantages import gae
from rlhf_lightning.optimization import Optimization
from rlhf_lightning.tasks.control import Control

SEEDED = Control("Seeded-v0")


def data(task=SEEDED, **settings):
    """Three environments and twelve steps in each, unless told otherwise."""
    module = EnvironmentDataModule(
        task, **{"environments": 3, "rollout_batch_size": 36, "eval_episodes": 4, **settings}
    )
    module.setup()
    return module


def acting(task=SEEDED, **settings):
    return scattered(ControlPolicy(task.interface(), hidden=(4,), **settings).double(), 0.5)


def scripted(script):
    return Control("Scripted-v0", kwargs={"script": script})


def told(task, steps):
    return Told([0] * steps, task.interface())


def ppo(task=SEEDED, backbone=None, **settings):
    defaults = {"minibatch_size": 9, "inner_epochs": 2, "eval_every": 1000, "gamma": 0.9, "kl": KLControl(coef=0.0)}
    defaults["optimization"] = Optimization(lr=1e-2)
    return PPO(task, backbone or ControlBackbone(hidden=(6,)), **{**defaults, **settings})


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
    assert same_rollout(one.collect(policy, 0), other.collect(policy, 0))
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
    scored = module.collect(acting(), 0)
    assert [module.counters(scored, iteration) for iteration in (0, 4)] == [{"env_steps": 36}, {"env_steps": 180}]


# -- advantages ------------------------------------------------------------------------------------------------


def test_termination_cuts_the_bootstrap_and_both_ends_cut_the_trace():
    task = scripted("3T 2X")
    module = data(task, environments=1, rollout_batch_size=8)
    scored = module.collect(told(task, 8), 0)
    rollout, gamma, lam = scored.rollout, 0.9, 0.8
    critic = scattered(ControlCritic(2, (4,), "tanh"), 0.3)
    with torch.no_grad():
        values = critic.values(rollout.context, rollout.actions, rollout.action_mask)
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
    assert module.critic.score(module.critic.trunk(seen)).item() == pytest.approx(10, rel=0.005)
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
        module.finish(scored)
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
        scaling.finish(scored)


# -- whole runs ------------------------------------------------------------------------------------------------


def every_iteration(folder):
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)


def finished(task, *callbacks, **settings):
    """Train; rows, networks and everything else that a further iteration would depend on."""
    module = ppo(task, ControlBackbone(hidden=(6,), normalize_observations=True), critic=CriticOptions(lr=1e-2))
    collecting = EnvironmentDataModule(task, 3, 36, normalize_rewards=True, eval_episodes=3)
    rows = fit(module, collecting, *callbacks, **settings)
    state = collecting.state_dict()
    return rows.untimed(), snapshot(module), state["reward_scale"], state["episodes"]


@pytest.mark.parametrize(("name", "precision"), [("Seeded-v0", "32-true"), ("Pushed-v0", "64-true")])
def test_resumed_run_is_bit_identical(tmp_path, name, precision):
    task = Control(name)
    whole = finished(task, every_iteration(tmp_path), max_epochs=4, precision=precision)
    checkpoint = tmp_path / "epoch=1.ckpt"
    open_episodes = torch.load(checkpoint, weights_only=True)["EnvironmentDataModule"]["episodes"]["actions"]
    assert sum(len(actions) for actions in open_episodes) > 2  # which span the interruption
    resumed = finished(task, max_epochs=4, ckpt_path=checkpoint, precision=precision)
    assert [row["iteration"] for row in whole[0]] == [0, 1, 2, 3, 4]
    assert resumed[0] == whole[0][3:]
    assert same(resumed[1], whole[1])
    assert same(resumed[2], whole[2])
    for name in ("numbers", "returns"):
        assert resumed[3][name] == whole[3][name]
    assert all(torch.equal(a, b) for a, b in zip(resumed[3]["actions"], whole[3]["actions"], strict=True))
    expected = torch.float64 if precision == "64-true" else torch.float32
    assert whole[1]["policy.trunk.0.weight"].dtype == expected


def test_rows_have_the_documented_names():
    rows = fit(ppo(eval_every=1), data(), max_epochs=2).rows
    assert {"eval/score", "eval/length_mean", "eval/episodes"} == {n for n in rows[0] if n != "iteration"}
    names = {"env_steps", "objective/score", "rollout/length_mean", "rollout/episodes", "timing/rollout_seconds"}
    assert names <= set(rows[-1])
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert [row.get("env_steps") for row in rows] == [None, 36, 72]
    assert rows[-1]["rollout/logprob_gap"] < 1e-5


def test_second_run_with_the_same_data_starts_over():
    collecting = data()
    runs = [fit(ppo(), collecting, max_epochs=2).untimed() for _ in range(2)]
    assert runs[0] == runs[1]


def test_environments_are_closed_when_the_run_ends():
    collecting, closed = data(), []

    def watch(trainer, module):
        for environments in (collecting._training, collecting._heldout):
            environments.vector.close_extras = lambda **kwargs: closed.append(True)

    fit(ppo(), collecting, AtHook("on_train_end", watch), max_epochs=1)
    assert closed == [True, True]


def test_checkpoint_of_other_data_is_refused(tmp_path):
    fit(ppo(), data(), every_iteration(tmp_path), max_epochs=1)
    for settings, message in (
        ({"environments": 4}, "environments is 4, and the checkpoint has 3"),
        ({"normalize_rewards": True}, "normalize_rewards is True, unlike in the checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            fit(ppo(), data(**settings), max_epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")


def test_checkpoint_is_evaluated_as_it_was_in_training(tmp_path):
    def module():
        return ppo(backbone=ControlBackbone(hidden=(6,), normalize_observations=True), eval_every=1)

    rows = fit(module(), data(), every_iteration(tmp_path), max_epochs=2).rows
    [row] = quiet_trainer().validate(module(), data(), ckpt_path=tmp_path / "epoch=1.ckpt", verbose=False)
    assert row["eval/score"] == pytest.approx(rows[-1]["eval/score"], rel=1e-6)


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
