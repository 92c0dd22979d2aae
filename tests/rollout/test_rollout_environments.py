"""Steps in environments against a script, and against each environment stepped by itself."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from scripted_environments import Told, scattered
from training_helpers import run_seed_is

from rlhf_lightning.distributed import Stream
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.control.policy import ControlPolicy
from rlhf_lightning.ops.noise import fold, row_keys
from rlhf_lightning.rollout.environments import Environments, play
from rlhf_lightning.rollout.episodes import EpisodeLog
from rlhf_lightning.tasks.control import Control


def opened(name, rows, *, stream=Stream.EPISODE, log=None, **kwargs):
    """Environments at their beginning, or where a log has left them."""
    task = Control(name, kwargs=kwargs)
    environments = Environments(task.environments(len(rows)), task.interface(), rows=torch.tensor(rows), stream=stream)
    environments.begin(log or EpisodeLog(max(rows) + 1))
    return environments


def keys(rows, iteration=0):
    return row_keys(seed=0, stream=Stream.ROLLOUT, iteration=iteration, rows=torch.tensor(rows))


def acting(environments, **settings):
    """A policy whose choices vary."""
    return scattered(ControlPolicy(environments.spaces, hidden=(4,), **settings).double(), 0.5)


def inner(environments):
    return [env.unwrapped for env in environments.vector.envs]


def same_steps(first, second, rows=slice(None)):
    return all(torch.equal(a[rows], b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))


def test_steps_are_those_of_the_script():
    environments = opened("Scripted-v0", [0, 1], script="3T 2X")
    steps = play(Told([1, 0, 1, 1, 0, 0, 1, 0], environments.spaces), environments, steps=8)
    assert steps.observations[0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0], [2, 1], [2, 2]]
    assert steps.next_observations[0].tolist() == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2], [2, 1], [2, 2], [2, 3]]
    assert steps.rewards[0].tolist() == [1, 2, 3, 11, 12, 21, 22, 23]
    assert steps.terminated[0].nonzero().flatten().tolist() == [2, 7]
    assert steps.truncated[0].nonzero().flatten().tolist() == [4]
    assert steps.actions[0].tolist() == [1, 0, 1, 1, 0, 0, 1, 0]
    assert steps.action_mask.all()
    assert steps.rewards.dtype == torch.float64
    assert steps.observations.dtype == torch.float32
    # the next episode has begun, and whoever goes on sees it
    assert play(Told([0], environments.spaces), environments, steps=1).observations[0].tolist() == [[3, 0]]
    for env in inner(environments):
        assert env.actions == [1, 0, 1, 1, 0, 0, 1, 0, 0]  # nothing else was done in between
        assert len(env.seeds) == 4


@pytest.mark.parametrize("name", ["Seeded-v0", "Pushed-v0", "Numbered-v0", "Chosen-v0"])
def test_steps_are_those_of_each_environment_by_itself(name):
    rows, count = [0, 1, 2, 5], 40
    environments = opened(name, rows)
    policy = acting(environments)
    steps = play(policy, environments, steps=count, keys=keys(rows))
    assert len({tuple(ended.tolist()) for ended in steps.ended}) == len(rows)  # they are out of step
    assert steps.terminated.any()
    assert steps.truncated.any()
    for row in range(len(rows)):
        env, seeds = gymnasium.make(name), iter(inner(environments)[row].seeds)
        observation, _ = env.reset(seed=next(seeds))
        for t in range(count):
            assert steps.observations[row, t].tolist() == observation.tolist()
            action = environments.spaces.to_environment(steps.actions[row, t].numpy())
            observation, reward, terminated, truncated, _ = env.step(action)
            assert steps.next_observations[row, t].tolist() == observation.tolist()
            assert steps.rewards[row, t].item() == reward
            assert (steps.terminated[row, t], steps.truncated[row, t]) == (terminated, truncated)
            if terminated or truncated:
                observation, _ = env.reset(seed=next(seeds))


def test_episodes_have_seeds_of_their_own():
    def seeds(run_seed, stream):
        with run_seed_is(run_seed):
            environments = opened("Seeded-v0", [0, 1, 2], stream=stream)
            play(acting(environments), environments, steps=30)
        return [env.seeds for env in inner(environments)]

    found = [
        seed for run in (0, 1) for s in (Stream.EPISODE, Stream.EVALUATION) for env in seeds(run, s) for seed in env
    ]
    assert len(found) > 60
    assert len(set(found)) == len(found)
    assert all(0 <= seed < 2**31 for seed in found)
    assert seeds(0, Stream.EPISODE) == seeds(0, Stream.EPISODE)


@pytest.mark.parametrize("name", ["Seeded-v0", "Pushed-v0"])
def test_some_environments_are_stepped_as_among_all(name):
    rows = [0, 1, 2, 3, 4]
    whole = opened(name, rows)
    steps = play(acting(whole), whole, steps=20, keys=keys(rows))
    some = opened(name, [1, 4])
    part = play(acting(some), some, steps=20, keys=keys([1, 4]))
    assert torch.equal(part.ended, steps.ended[[1, 4]])
    for one, other in zip(vars(part).values(), vars(steps).values(), strict=True):
        torch.testing.assert_close(one, other[[1, 4]], rtol=0, atol=1e-12)  # matrix products round by batch size


def test_noise_is_that_of_its_key():
    def played(iteration):
        environments = opened("Pushed-v0", [0, 1])
        return play(acting(environments), environments, steps=12, keys=keys([0, 1], iteration))

    assert same_steps(played(0), played(0))
    assert not torch.equal(played(0).actions, played(1).actions)


def test_noise_of_a_step_is_that_of_its_key_and_number():
    environments = opened("Pushed-v0", [0, 1])
    policy = acting(environments)
    steps = play(policy, environments, steps=12, keys=keys([0, 1]))
    distribution = policy.head(policy.trunk(steps.observations), temperature=1.0).normal
    noise = (steps.actions - distribution.mean) / distribution.stddev
    for t in range(12):
        expected = policy.noise(fold(keys([0, 1]), t))
        torch.testing.assert_close(noise[:, t], expected, rtol=0, atol=1e-9)


def test_vectors_are_clipped_for_the_environment_alone():
    environments = opened("Pushed-v0", [0])
    wide = acting(environments, initial_log_std=0.0)
    with torch.no_grad():
        wide.head.log_std.fill_(2.0)
    steps = play(wide, environments, steps=20, keys=keys([0]))
    drawn, taken = steps.actions[0].numpy(), np.stack(inner(environments)[0].actions)
    assert (np.abs(drawn[:, 0]) > 1).any()
    np.testing.assert_array_equal(taken[:, 0], drawn[:, 0].clip(-1, 1).astype(np.float32))
    np.testing.assert_array_equal(taken[:, 1], drawn[:, 1].astype(np.float32))  # without bounds


@pytest.mark.parametrize(
    "space",
    [
        Box(-0.1, 0.1, (2,), np.float64),  # −0.1 in float32 is below it
        Box(-0.1, 0.1, (2,), np.float32),
        Box(-0.1, 0.1, (2,), np.float16),
        Box(-1, 3, (2,), np.int8),
        Box(250, 255, (2,), np.uint8),
        Box(0, 1, (2,), np.bool_),
        Discrete(3, start=-1),
        MultiDiscrete([2, 3], dtype=np.int16, start=[-1, 4]),
        MultiBinary(2),
    ],
    ids=str,
)
def test_actions_lie_in_the_environments_own_space(space):
    environments = opened("Within-v0", [0, 1], action_space=space)
    play(acting(environments), environments, steps=20, keys=keys([0, 1]))
    taken = np.stack([action for env in inner(environments) for action in env.actions]).astype(np.float64)
    if isinstance(space, Box):  # every bound is reached
        assert (taken.min(0) == space.low).all()
        assert (taken.max(0) == space.high).all()
    assert len(np.unique(taken)) > 1


@pytest.mark.parametrize("reward", [1.5, np.float32(1.5), np.array([1.5]), np.array([[1.5]]), torch.tensor([1.5])])
def test_reward_may_be_an_array_of_one_entry(reward):
    environments = opened("Paid-v0", [0], reward=reward)
    assert play(Told([0, 0], environments.spaces), environments, steps=2).rewards.tolist() == [[1.5, 1.5]]


@pytest.mark.parametrize(("reward", "said"), [(np.ones(2), r"\[1\. 1\.\]"), ("much", "much"), ([], r"\[\]")])
def test_reward_that_is_no_number_is_one_line(reward, said):
    environments = opened("Paid-v0", [0], reward=reward)
    with pytest.raises(UserError, match=f"Paid-v0 gave the reward {said}; expected one number"):
        play(Told([0], environments.spaces), environments, steps=1)


@pytest.mark.parametrize("flag", [bool, int, np.bool_, lambda x: np.array([x]), lambda x: torch.tensor([[x]])])
def test_flags_may_be_arrays_of_one_entry(flag):
    environments = opened("Flagged-v0", [0], flag=flag)
    steps = play(Told([0] * 5, environments.spaces), environments, steps=5)
    assert steps.terminated.tolist() == [[False, True, False, False, False]]
    assert steps.truncated.tolist() == [[False, False, False, False, True]]
    # and as an episode is continued from its log
    log = EpisodeLog(1)
    log.actions[0] = torch.zeros(1, dtype=torch.long)
    again = play(Told([0], environments.spaces), opened("Flagged-v0", [0], flag=flag, log=log), steps=1)
    assert again.terminated.tolist() == [[True]]


@pytest.mark.parametrize("flag", [lambda x: [x, x], lambda x: "ended", lambda x: None, lambda x: float("nan")])
def test_flag_that_is_no_truth_value_is_one_line(flag):
    environments = opened("Flagged-v0", [0], flag=flag)
    with pytest.raises(UserError, match=r"Flagged-v0 gave the flag terminated .*; expected one truth value"):
        play(Told([0], environments.spaces), environments, steps=1)


def test_observations_of_several_spaces_are_one_vector():
    environments = opened("Copied-v0", [0, 1])
    steps = play(acting(environments), environments, steps=6, keys=keys([0, 1]))
    for env, shown in zip(inner(environments), steps.next_observations[:, -1].tolist(), strict=True):
        assert env.time == 2  # the second of the second episode, so nothing was shown since
        place = [float(env.place == number) for number in (4, 5, 6)]
        assert shown == [env.light, *place, 0.5, 0.5, 0.5, 0.5]


def test_only_first_episodes_count_where_that_is_asked():
    rows = [0, 1, 2, 3]
    environments = opened("Seeded-v0", rows)
    steps = play(acting(environments), environments, steps=10, once=True)
    lengths = steps.action_mask.sum(-1)
    assert lengths.unique().numel() > 1
    assert steps.rewards.shape == (4, lengths.max())  # it stops with the last one
    for row, length in enumerate(lengths.tolist()):
        assert steps.ended[row].nonzero().flatten().tolist() == [length - 1]
        assert steps.action_mask[row].tolist() == [True] * length + [False] * (len(steps.rewards[row]) - length)
        for values in vars(steps).values():
            assert not values[row, length:].any()
    again = opened("Seeded-v0", rows)
    longer = play(acting(again), again, steps=10)
    mask = steps.action_mask
    assert torch.equal(longer.rewards[:, : mask.shape[1]][mask], steps.rewards[mask])


def test_most_probable_actions_are_taken_without_keys():
    environments = opened("Pushed-v0", [0, 1])
    policy = acting(environments)
    steps = play(policy, environments, steps=9)
    torch.testing.assert_close(steps.actions, policy.head.layer(policy.trunk(steps.observations)).detach())


def test_log_counts_returns_from_the_start_of_each_episode():
    log = EpisodeLog(2)
    actions = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1]])
    rewards = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    ended = torch.tensor([[False, True, False, False], [False, False, False, False]])
    returns, lengths = log.extend(actions, rewards, ended)
    assert (returns.tolist(), lengths.tolist()) == ([3.0], [2])
    assert log.numbers == [1, 0]
    assert [a.tolist() for a in log.actions] == [[0, 1], [1, 1, 1, 1]]
    ended = torch.tensor([[True, True, False, False], [False, False, False, True]])
    returns, lengths = log.extend(actions, rewards, ended)
    assert returns.tolist() == [4 + 8 + 1, 2, 4 + 4]
    assert lengths.tolist() == [2 + 1, 1, 4 + 4]
    assert log.numbers == [3, 1]
    assert log.returns == [4 + 8, 0]
    assert [a.tolist() for a in log.actions] == [[0, 1], []]
    returns, lengths = log.extend(actions[:, :0], rewards[:, :0], ended[:, :0])
    assert (len(returns), len(lengths)) == (0, 0)


@pytest.mark.parametrize("name", ["Seeded-v0", "Pushed-v0", "Numbered-v0", "Chosen-v0"])
def test_environments_are_led_back_to_where_the_log_left_them(name):
    rows = [0, 1, 2, 3, 4]
    environments, log = opened(name, rows), EpisodeLog(5)
    policy = acting(environments)
    for iteration in (0, 1):
        steps = play(policy, environments, steps=9, keys=keys(rows, iteration))
        log.extend(steps.actions, steps.rewards, steps.ended)
    assert sum(len(actions) > 0 for actions in log.actions) > 2
    saved = EpisodeLog(5)
    saved.load_state_dict(log.state_dict())
    expected = play(policy, environments, steps=12, keys=keys(rows, 2))
    again = opened(name, rows, log=saved)
    assert same_steps(expected, play(policy, again, steps=12, keys=keys(rows, 2)))


def test_environment_that_does_not_repeat_itself_is_refused():
    environments, log = opened("Forgetful-v0", [0]), EpisodeLog(1)
    told = Told([0] * 5, environments.spaces)
    steps = play(told, environments, steps=5)  # two steps, then three of four
    log.extend(steps.actions, steps.rewards, steps.ended)
    with pytest.raises(UserError, match="Forgetful-v0 does not repeat an episode"):
        opened("Forgetful-v0", [0], log=log)


def test_log_of_other_environments_is_refused():
    with pytest.raises(UserError, match="environments is 3, and the checkpoint has 2"):
        EpisodeLog(3).load_state_dict(EpisodeLog(2).state_dict())
