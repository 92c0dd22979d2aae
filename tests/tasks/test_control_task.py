"""Environments as a task: their spaces, and one line for each that does not fit."""

import sys

import gymnasium
import numpy as np
import pytest
import scripted_environments  # noqa: F401 registers environments
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Sequence, Tuple
from gymnasium.vector import AutoresetMode
from training_helpers import Letters

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.control.spaces import Spaces
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.tasks.control import Control


class OfSpaces(gymnasium.Env):
    """Has spaces and nothing else."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space


class Strange(gymnasium.Space):
    """A space that gymnasium does not know."""


class Unmade(gymnasium.Env):
    """Cannot be made."""

    def __init__(self):
        raise gymnasium.error.DependencyNotInstalled('Engine is not installed,\nrun `pip install "engine"`')


VECTOR, CHOICES = Box(-1, 1, (3,)), Discrete(2)
gymnasium.register("OfSpaces-v0", OfSpaces, max_episode_steps=5, disable_env_checker=True)
gymnasium.register("Unlimited-v0", OfSpaces, disable_env_checker=True)
gymnasium.register("Unmade-v0", Unmade)


def of_spaces(shown, taken):
    return Control("OfSpaces-v0", kwargs={"observation_space": shown, "action_space": taken})


def test_spaces_are_those_of_the_environment():
    assert Control("CartPole-v1").interface() == Spaces("CartPole-v1", observation_size=4, choices=2)
    pendulum = Control("Pendulum-v1").interface()
    assert pendulum == Spaces("Pendulum-v1", observation_size=3, low=(-2.0,), high=(2.0,))
    assert pendulum.continuous
    assert of_spaces(VECTOR, Discrete(4, start=-1)).interface().first_choice == -1


def test_environments_do_not_reset_themselves():
    vector = Control("CartPole-v1").environments(3)
    assert vector.num_envs == 3
    assert vector.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    vector.close()


def test_time_limit_is_the_environments_own_unless_given():
    assert Control("CartPole-v1").max_episode_steps == 500
    task = Control("CartPole-v1", max_episode_steps=7)
    assert task.max_episode_steps == 7
    assert task.environments(1).envs[0].spec.max_episode_steps == 7


def test_arguments_reach_the_environment():
    task = Control("Pendulum-v1", kwargs={"g": 3.0})
    assert [env.unwrapped.g for env in task.environments(2).envs] == [3.0, 3.0]


def test_task_gives_environments_and_no_prompts():
    task = Control("CartPole-v1")
    assert task.provides == {"environments"}
    with pytest.raises(UserError, match=r"needs prompts, which task Control does not provide"):
        task.prompts("train")
    with pytest.raises(UserError, match="Letters does not provide"):
        Letters().require(frozenset({"environments"}), by="EnvironmentDataModule")


@pytest.mark.parametrize(
    ("environment", "settings", "message"),
    [
        ("CartPol-v1", {}, r"CartPol-v1 is not known: .*Did you mean: `CartPole`"),
        ("CartPole-v7", {}, r"CartPole-v7 is not known: .*\[ `v0`, `v1` \]"),
        ("Nowhere/Game-v0", {}, "Nowhere/Game-v0 is not known: .*module:id"),
        ("no_such_module:Game-v0", {}, "module no_such_module cannot be imported .* install the package"),
        ("Cart Pole", {}, "Cart Pole cannot be made: Malformed"),
        ("Unmade-v0", {}, 'needs a package that is not installed: .*pip install "engine"'),
        ("Pendulum-v1", {"kwargs": {"gravity": 3.0}}, "kwargs .*gravity.* are not arguments of Pendulum-v1"),
        ("CartPole-v1", {"max_episode_steps": 0}, "max_episode_steps must be at least 1, got 0"),
        (
            "Unlimited-v0",
            {"kwargs": {"observation_space": VECTOR, "action_space": CHOICES}},
            "Unlimited-v0 has no time limit.*task.init_args.max_episode_steps",
        ),
    ],
)
def test_environment_that_cannot_be_used_is_one_line(environment, settings, message):
    with pytest.raises(UserError, match=message) as refusal:
        Control(environment, **settings)
    assert "\n" not in str(refusal.value)


def test_environment_without_its_package_says_what_to_install(monkeypatch):
    for module in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(UserError, match=r'HalfCheetah-v5 needs a package .*pip install "gymnasium\[mujoco\]"'):
        Control("HalfCheetah-v5")


@pytest.mark.parametrize(
    "shown",
    [
        Box(0, 255, (8, 8, 3), np.uint8),
        Graph(VECTOR, None),
        Sequence(VECTOR),
        Dict({"all": Sequence(VECTOR)}),
        Strange(),
    ],
)
def test_observations_that_are_no_vectors_are_refused(shown):
    with pytest.raises(UserError, match=r"the observations of OfSpaces-v0 are .* expected an environment with a Box"):
        of_spaces(shown, CHOICES)


@pytest.mark.parametrize(
    ("shown", "size"),
    [
        (Discrete(5, start=2), 5),
        (MultiDiscrete([2, 3]), 5),
        (MultiBinary(3), 3),
        (Box(-1, 1, (2, 2)), 4),
        (Box(0, 2, (3, 3), np.uint8), 9),
        (Dict({"position": VECTOR, "gear": Discrete(4)}), 7),
        (Tuple([VECTOR, Dict({"switches": MultiBinary(2)})]), 5),
    ],
)
def test_observations_of_other_spaces_are_flattened(shown, size):
    assert of_spaces(shown, CHOICES).interface().observation_size == size


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (MultiDiscrete([2, 3]), {"choices": (2, 3), "first_choice": (0, 0), "dtype": "int64"}),
        (MultiDiscrete([4], start=[-1]), {"choices": (4,), "first_choice": (-1,), "dtype": "int64"}),
        (MultiBinary(3), {"choices": (2, 2, 2), "first_choice": (0, 0, 0), "dtype": "int8"}),
        (
            Box(np.array([-1, 0]), np.array([1, 5]), dtype=np.int32),
            {"choices": (3, 6), "first_choice": (-1, 0), "dtype": "int32"},
        ),
        (Box(-0.5, 0.5, (1,), np.float64), {"low": (-0.5,), "high": (0.5,), "dtype": "float64"}),
    ],
)
def test_actions_of_every_supported_space(taken, expected):
    assert of_spaces(VECTOR, taken).interface() == Spaces("OfSpaces-v0", observation_size=3, **expected)


@pytest.mark.parametrize("taken", [MultiDiscrete([[2, 2], [2, 2]]), Box(-1, 1, (2, 2)), Box(0, 5, (1, 1), np.int64)])
def test_actions_that_are_neither_choices_nor_vectors_are_refused(taken):
    with pytest.raises(UserError, match=r"the actions of OfSpaces-v0 are .* expected an environment with a Discrete"):
        of_spaces(VECTOR, taken)


@pytest.mark.parametrize(("taken", "count"), [(Box(-np.inf, np.inf, (1,), np.int32), 2**32), (Discrete(2**30), 2**30)])
def test_more_choices_than_a_network_can_weigh_are_refused(taken, count):
    with pytest.raises(UserError, match=f"that is {count:,} choices, .* expected at most 1,048,576"):
        of_spaces(VECTOR, taken)


def test_language_backbone_is_refused():
    with pytest.raises(UserError, match="ControlBackbone"):
        LanguageBackbone().policy(Control("CartPole-v1").interface, temperature=1.0)
