"""`ControlBackbone`: the networks of a run in an environment."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

from rlhf_lightning.distributed import run_seed
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.control.layers import Activation
from rlhf_lightning.models.control.policy import ControlCritic, ControlPolicy
from rlhf_lightning.models.control.spaces import Spaces
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.state import seeded

Distribution: TypeAlias = Literal["auto", "categorical", "gaussian"]


class ControlBackbone(Backbone):
    """Perceptrons for an environment: a policy and a critic that share no weights.

    Args:
        hidden: sizes of the hidden layers; none for linear networks.
        activation: after each hidden layer.
        distribution: of the actions; ``auto`` is categorical for choices (independently for each entry of a vector of
            them) and Gaussian for vectors of real numbers.
        normalize_observations: scale observations by their running mean and standard deviation.
        initial_log_std: logarithm of a Gaussian's standard deviations at the start, in units of the actions.
        critic_hidden: sizes of the critic's hidden layers; None for the policy's.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (64, 64),
        activation: Activation = "tanh",
        distribution: Distribution = "auto",
        normalize_observations: bool = False,
        initial_log_std: float = 0.0,
        critic_hidden: tuple[int, ...] | None = None,
    ) -> None:
        for name, sizes in (("hidden", hidden), ("critic_hidden", critic_hidden or ())):
            if any(size < 1 for size in sizes):
                raise UserError(f"backbone.init_args.{name} must be sizes of at least 1, got {list(sizes)}")
        for name, value, known in (
            ("activation", activation, Activation),
            ("distribution", distribution, Distribution),
        ):
            if value not in get_args(known):
                raise UserError(f"backbone.init_args.{name} is {value!r}; expected {' or '.join(get_args(known))}")
        if not math.isfinite(initial_log_std):
            raise UserError(f"backbone.init_args.initial_log_std must be a finite number, got {initial_log_std}")
        self.hidden, self.activation, self.distribution = tuple(hidden), activation, distribution
        self.critic_hidden = self.hidden if critic_hidden is None else tuple(critic_hidden)
        self.normalize_observations = normalize_observations
        self.initial_log_std = initial_log_std

    def policy(self, interface: Callable[[], object], *, temperature: float = 1.0) -> ControlPolicy:
        """A policy for the spaces of the task's environment.

        Raises:
            UserError: the task is not an environment, or its actions do not fit the distribution.
        """
        spaces = interface()
        if not isinstance(spaces, Spaces):
            raise UserError(
                "ControlBackbone acts in environments, and the task is one of text; expected LanguageBackbone"
            )
        kind = "gaussian" if spaces.continuous else "categorical"
        if self.distribution not in ("auto", kind):
            raise UserError(
                f"backbone.init_args.distribution is {self.distribution}, and the actions of {spaces.environment} are "
                f"{spaces.actions}; expected {kind} or auto"
            )
        with seeded(2 * run_seed()):
            return ControlPolicy(
                spaces,
                hidden=self.hidden,
                activation=self.activation,
                temperature=temperature,
                normalize_observations=self.normalize_observations,
                initial_log_std=self.initial_log_std,
            )

    def critic(
        self, policy: Policy, *, init: str | None = None, shared: bool = False, outputs: int | None = None
    ) -> ControlCritic:
        """A critic with weights of its own.

        Raises:
            UserError: it should start from a reward model, or share the policy's trunk.
        """
        if init is not None:
            raise UserError(
                "critic.init is a reward model of text, and there is none for an environment; expected null"
            )
        if shared:
            raise UserError(
                "critic.shared true is for language models; the critic of ControlBackbone is a network of its own"
            )
        assert isinstance(policy, ControlPolicy)
        with seeded(2 * run_seed() + 1):  # not the policy's seed
            return ControlCritic(policy.spaces.observation_size, self.critic_hidden, self.activation, outputs)
