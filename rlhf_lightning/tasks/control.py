"""Control: a gymnasium environment as a task."""

from __future__ import annotations

import sys
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.control.spaces import Spaces
from rlhf_lightning.tasks.plain_steps import PlainSteps, in_line
from rlhf_lightning.tasks.task import Task

if TYPE_CHECKING:
    from gymnasium import Env, Space, Wrapper
    from gymnasium.vector import SyncVectorEnv


MOST_CHOICES = 2**20
"""Of an action, in all of its entries."""


class Control(Task):
    """An environment of numbers: whatever it shows becomes one vector, and it is told a choice or a vector.

    Observations are Box, Discrete, MultiDiscrete or MultiBinary spaces, or a Dict or Tuple of them, which gymnasium's
    ``FlattenObservation`` puts into one vector (choices as 0 and 1); images are refused. Actions are choices
    (Discrete), vectors of choices (MultiDiscrete, MultiBinary, a bounded Box of whole numbers) or vectors of real
    numbers (Box).

    Args:
        environment: id of the environment; ``module:id`` if another package registers it.
        kwargs: arguments of the environment itself.
        max_episode_steps: an episode is truncated after this many steps; None for the environment's own limit.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"environments"})

    def __init__(
        self,
        environment: str = "CartPole-v1",
        kwargs: dict[str, Any] | None = None,
        max_episode_steps: int | None = None,
    ) -> None:
        if max_episode_steps is not None and max_episode_steps < 1:
            raise UserError(f"task.init_args.max_episode_steps must be at least 1, got {max_episode_steps}")
        self.environment = environment
        self.kwargs = dict(kwargs or {})
        self._time_limit = max_episode_steps
        vector = self.environments(1)
        try:
            self.spaces = _spaces(environment, vector)
            spec = vector.envs[0].spec
            # the package that registers the environment, and the module that its class stands in
            self._code = (environment.rpartition(":")[0], type(vector.envs[0].unwrapped).__module__)
        finally:
            vector.close()
        if spec is None or spec.max_episode_steps is None:
            raise UserError(
                f"{environment} has no time limit, so an episode may never end; "
                "give task.init_args.max_episode_steps, such as 1000"
            )
        self.max_episode_steps = spec.max_episode_steps

    def reads(self) -> list[ModuleType]:
        """The environment's code."""
        return [sys.modules[name] for name in self._code if name in sys.modules]

    def interface(self) -> Spaces:
        """What the networks read and write."""
        return self.spaces

    def environments(self, count: int) -> SyncVectorEnv:
        """Copies of the environment that are stepped together and do not reset themselves.

        Raises:
            UserError: there is no such environment, or a package that it needs is not installed.
        """
        import gymnasium

        options = dict(self.kwargs)
        if self._time_limit is not None:
            options["max_episode_steps"] = self._time_limit
        try:
            vector = gymnasium.make_vec(
                self.environment,
                num_envs=count,
                vectorization_mode="sync",
                wrappers=[partial(_plain, environment=self.environment)],
                vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED, "copy": False},
                **options,
            )
        except Exception as error:  # whatever an environment raises
            raise UserError(_refusal(self.environment, self.kwargs, error)) from error
        assert isinstance(vector, gymnasium.vector.SyncVectorEnv)  # because of vectorization_mode
        return vector


def _refusal(environment: str, kwargs: dict[str, Any], error: Exception) -> str:
    """Why an environment cannot be made and what to do about it, in one line."""
    from gymnasium import error as errors

    reason = " ".join(str(error).split()) or type(error).__name__
    name = f"task.init_args.environment {environment}"
    if isinstance(error, errors.UnregisteredEnv):
        return f"{name} is not known: {reason} An environment of another package is named module:id"
    if isinstance(error, errors.DependencyNotInstalled):
        return f"{name} needs a package that is not installed: {reason}"
    if isinstance(error, ModuleNotFoundError) and ":" in environment:
        module = environment.partition(":")[0]
        return f"{name}: module {module} cannot be imported ({reason}); install the package that it belongs to"
    if isinstance(error, TypeError) and kwargs:
        return f"task.init_args.kwargs {kwargs} are not arguments of {environment}: {reason}"
    return f"{name} cannot be made: {reason}"


def _plain(env: Env[Any, Any], *, environment: str) -> Wrapper[Any, Any, Any, Any]:
    """The environment with each observation as one vector, where its space can be flattened, and plain rewards.

    Images (bytes in three dimensions) are left as they are: perceptrons do not see in them what is where.
    """
    from gymnasium.spaces import Box
    from gymnasium.wrappers import FlattenObservation

    numbers = PlainSteps(env, environment)
    space = numbers.observation_space
    if isinstance(space, Box) and (len(space.shape) == 1 or (len(space.shape) == 3 and space.dtype == np.uint8)):
        return numbers
    try:
        flat = FlattenObservation(numbers)
    except NotImplementedError:  # a space of another package
        return numbers
    return flat if isinstance(flat.observation_space, Box) else numbers


def _spaces(environment: str, vector: SyncVectorEnv) -> Spaces:
    """The environment's spaces, if the networks can read and write them."""
    from gymnasium.spaces import Box, Discrete

    shown, taken = vector.single_observation_space, vector.single_action_space
    if not (isinstance(shown, Box) and len(shown.shape) == 1):
        raise UserError(
            f"the observations of {environment} are {in_line(shown)}, and the networks read vectors; "
            "expected an environment with a Box, Discrete, MultiDiscrete or MultiBinary space, or a Dict or Tuple of "
            "them, and no images"
        )
    size = shown.shape[0]
    if isinstance(taken, Box) and len(taken.shape) == 1 and taken.dtype.kind == "f":
        low, high = tuple(taken.low.tolist()), tuple(taken.high.tolist())
        return Spaces(environment, size, low=low, high=high, dtype=str(taken.dtype))
    first, choices = _choices(taken)
    if not choices:
        raise UserError(
            f"the actions of {environment} are {in_line(taken)}, and the networks write choices or vectors; "
            "expected an environment with a Discrete, MultiDiscrete or MultiBinary space or a Box of one dimension"
        )
    if sum(choices) > MOST_CHOICES:
        raise UserError(
            f"the actions of {environment} are {in_line(taken)}, that is {sum(choices):,} choices, and the networks "
            f"write a probability of each; expected at most {MOST_CHOICES:,}"
        )
    if isinstance(taken, Discrete):
        return Spaces(environment, size, choices=choices[0], first_choice=first[0])
    return Spaces(environment, size, choices=choices, first_choice=first, dtype=str(taken.dtype))


def _choices(space: Space[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The first of the choices for each entry of an action, and their number; nothing for other actions."""
    from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

    if isinstance(space, Discrete):
        return (int(space.start),), (int(space.n),)
    if isinstance(space, MultiDiscrete) and len(space.shape) == 1:
        return tuple(space.start.tolist()), tuple(space.nvec.tolist())
    if isinstance(space, MultiBinary) and len(space.shape) == 1:
        return (0,) * space.shape[0], (2,) * space.shape[0]
    if isinstance(space, Box) and len(space.shape) == 1:  # of whole numbers
        first, last = (tuple(map(int, bounds.tolist())) for bounds in (space.low, space.high))
        return first, tuple(high - low + 1 for low, high in zip(first, last, strict=True))
    return (), ()
