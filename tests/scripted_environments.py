"""Environments whose every number can be said beforehand, and policies that do as they are told."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.data.environments import EnvironmentDataModule
from rlhf_lightning.models.control.backbone import ControlBackbone
from rlhf_lightning.models.control.policy import ControlPolicy
from rlhf_lightning.models.control.spaces import Spaces
from rlhf_lightning.tasks.control import Control
from rlhf_lightning.training.optimization import Optimization


class Watched(gymnasium.Env):
    """Remembers seeds and actions, and fails where it is stepped without an episode."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self):
        self.seeds, self.actions, self.running = [], [], False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.running, self.time = True, 0
        self.begin()
        return self.observation(), {}

    def step(self, action):
        assert self.running, "stepped after the end"
        self.actions.append(action)
        self.time += 1
        reward, terminated, truncated = self.outcome(action)
        self.running = not (terminated or truncated)
        return self.observation(), reward, terminated, truncated, {}

    def begin(self):
        """A new episode."""


class Scripted(Watched):
    """Episodes of given lengths: ``3T 2X`` is three steps to a termination, then two to a truncation, and so on.

    Step t of episode k (both from 0) is shown as [k, t] and pays 10 k + t + 1.
    """

    def __init__(self, script="3T 2X"):
        super().__init__()
        self.script = [(int(part[:-1]), part[-1]) for part in script.split()]
        self.episode = -1

    def begin(self):
        self.episode += 1

    def observation(self):
        return np.array([self.episode, self.time], np.float32)

    def outcome(self, action):
        length, end = self.script[self.episode % len(self.script)]
        over = self.time == length
        return 10.0 * self.episode + self.time, over and end == "T", over and end == "X"


class Seeded(Watched):
    """Everything comes from the seed and the actions: lengths, endings, observations and rewards."""

    def begin(self):
        self.left, self.cut = int(self.np_random.integers(1, 7)), bool(self.np_random.integers(2))
        self.sum = self.np_random.normal()

    def observation(self):
        return np.array([self.sum, self.time], np.float32)

    def outcome(self, action):
        self.sum = 0.5 * self.sum + float(np.sum(action)) + 0.1 * self.np_random.normal()
        over = self.time == self.left
        return self.sum, over and not self.cut, over and self.cut


class Pushed(Seeded):
    """`Seeded` with vectors as actions, from −1 to 1 and without bounds, shown in double precision."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(np.array([-1.0, -np.inf], np.float32), np.array([1.0, np.inf], np.float32))


class Forgetful(Watched):
    """Ends an episode after four steps, or after two where it has been reset only once."""

    def observation(self):
        return np.array([0.0, self.time], np.float32)

    def outcome(self, action):
        return 1.0, self.time == (2 if len(self.seeds) == 1 else 4), False


class Paying(Watched):
    """Pays 1 for every step and never ends."""

    def observation(self):
        return np.array([1.0, 0.0], np.float32)

    def outcome(self, action):
        return 1.0, False, False


class Broken(Watched):
    """Gives a reward that is not a number at its fifth step."""

    def observation(self):
        return np.zeros(2, np.float32)

    def outcome(self, action):
        return float("nan") if self.time == 5 else 1.0, False, False


class Numbered(Seeded):
    """`Seeded`, whose choices are 3, 4 and 5."""

    action_space = Discrete(3, start=3)


class Chosen(Seeded):
    """`Seeded`, whose actions are two choices: one of −1 and 0, and one of 4, 5 and 6."""

    action_space = MultiDiscrete([2, 3], dtype=np.int32, start=[-1, 4])


class Copied(Watched):
    """Shows two choices and pays one for each that is made alike, in an array; an episode has four steps."""

    observation_space = Dict(
        {"light": MultiBinary(1), "place": Tuple([Discrete(3, start=4), Box(0, 1, (2, 2), np.float64)])}
    )
    action_space = MultiDiscrete([2, 3], start=[0, 4])

    def observation(self):
        self.light, self.place = int(self.np_random.integers(2)), int(self.np_random.integers(4, 7))
        return {"light": np.array([self.light], np.int8), "place": (self.place, np.full((2, 2), 0.5))}

    def outcome(self, action):
        paid = np.array([float(action[0] == self.light) + float(action[1] == self.place)])
        return paid, self.time == 4, False


class Within(Watched):
    """Ends a run whose action is not in its action space, which it is given."""

    observation_space = Box(-1, 1, (2,))

    def __init__(self, action_space):
        super().__init__()
        self.action_space = action_space

    def observation(self):
        return np.zeros(2, np.float32)

    def outcome(self, action):
        assert self.action_space.contains(action)
        return 1.0, False, False


class Paid(Within):
    """Pays what it is told to."""

    def __init__(self, reward):
        super().__init__(Discrete(2))
        self.reward = reward

    def outcome(self, action):
        return self.reward, False, False


class Flagged(Scripted):
    """`Scripted`, whose flags are made by a function.

    Args:
        flag: of what is true or false.
    """

    def __init__(self, flag):
        super().__init__("2T 3X")
        self.flag = flag

    def outcome(self, action):
        reward, terminated, truncated = super().outcome(action)
        return reward, self.flag(terminated), self.flag(truncated)


for cls in (Scripted, Seeded, Pushed, Forgetful, Paying, Broken, Numbered, Chosen, Copied, Within, Paid, Flagged):
    gymnasium.register(f"{cls.__name__}-v0", cls, max_episode_steps=10, disable_env_checker=True)


class Told(ControlPolicy):
    """Takes given actions one after the other, in every environment the same."""

    def __init__(self, actions, spaces: Spaces):
        super().__init__(spaces, hidden=())
        self.actions = list(actions)

    def act(self, observations, noise=None):
        return torch.as_tensor(self.actions.pop(0)).expand(len(observations), *([-1] * self.spaces.continuous))

    def actor(self):
        return lambda observations, noise: self.act(observations).numpy()


def scattered(network: torch.nn.Module, scale: float = 1.0) -> torch.nn.Module:
    """The network with random weights of that size, so that what it says differs from state to state."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network


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
