"""Callbacks that measure the updates of a policy optimizer: how noisy gradients are, and how far steps go.

Both look at the batch of an iteration and leave training as it is, to the bit. They are named in a configuration::

    --trainer.callbacks+=GradientDiagnostics --trainer.callbacks.every=10
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from rlhf_lightning.algorithms.base.on_policy import OnPolicy
from rlhf_lightning.algorithms.parts.critic import Critic
from rlhf_lightning.algorithms.parts.fisher import FisherOptions, PolicyGeometry
from rlhf_lightning.algorithms.parts.gradient_noise import (
    MeasuredGradient,
    cosine,
    independent_units,
    measured_gradient,
)
from rlhf_lightning.callbacks.listener import UpdateWatcher
from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.state import frozen_copy, trained_parameters
from rlhf_lightning.ops.trust_region import flatten
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import ScoredRollout, TrainBatch


class _Diagnostics(UpdateWatcher):
    """What both share: when they look, and that they do nothing but look.

    Args:
        every: iterations from one measurement to the next; the first iteration is measured.
    """

    def __init__(self, every: int) -> None:
        check_limits(type(self).__name__, {"every": (every >= 1, "at least 1", every)})
        self.every = every

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, OnPolicy):
            raise UserError(
                f"{type(self).__name__} measures the updates of a policy optimizer, and {type(pl_module).__name__} is "
                "none; expected PPO, REINFORCE or another that learns from its own rollouts"
            )

    def is_due(self, module: OnPolicy[Any]) -> bool:
        """Whether this iteration is measured."""
        return module.current_epoch % self.every == 0

    @contextmanager
    def measuring(self, module: OnPolicy[Any]) -> Iterator[None]:
        """Context of a measurement: it is timed, and random numbers go on as if it had not happened."""
        with module.timed("diagnostics"), isolate_rng():
            yield


class GradientDiagnostics(_Diagnostics):
    """Measures how much the policy gradient of an iteration is signal, and how much noise, before its first step.

    The gradient is that of the loss over the whole batch, before clipping; a minibatch of a k-th of the batch has k
    times the variance. Parts of the batch are independent of each other: a response with all others to the same prompt,
    or an environment with all its transitions, is never divided. A measurement costs one more gradient of the batch,
    two with ``against``, and memory for four gradients.

    It logs ``policy/grad_variance`` (the trace of the covariance of the gradient), ``policy/grad_snr`` (the squared
    norm of the expected gradient over that, estimated without bias of either, so that it may be negative), and
    ``policy/grad_cosine`` (between the gradients of two halves of the batch).

    Args:
        every: iterations from one measurement to the next; the first iteration is measured.
        parts: that the batch is divided into, at most; more make the variance more exact.
        against: another optimizer, whose gradient on the same rollout is compared (``policy/grad_cosine_against`` and
            ``policy/grad_variance_against``). It shares all networks, and remembers nothing from iteration to
            iteration: a moving average starts anew. In Python, a function of task and backbone.
    """

    def __init__(
        self, every: int = 10, parts: int = 32, against: Callable[[Task, Backbone], OnPolicy[Any]] | None = None
    ) -> None:
        super().__init__(every)
        check_limits(type(self).__name__, {"parts": (parts >= 2, "at least 2", parts)})
        self.parts = parts
        self.against = against

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, OnPolicy)
        if self.against is not None:
            self._other(pl_module)

    @override
    @contextmanager
    def watching(self, module: Any, scored: ScoredRollout, batch: TrainBatch) -> Iterator[dict[str, float]]:
        row: dict[str, float] = {}
        if self.is_due(module):
            with self.measuring(module):
                row = self._measured(module, scored, batch)
        yield row

    def _measured(self, module: OnPolicy[Any], scored: ScoredRollout, batch: TrainBatch) -> dict[str, float]:
        own = self._gradient(module, scored, batch)
        row = {
            "policy/grad_variance": own.variance,
            "policy/grad_snr": own.signal_to_noise,
            "policy/grad_cosine": cosine(*own.halves),
        }
        if self.against is not None:
            other = self._other(module)
            with torch.no_grad():
                prepared = other.prepare(scored)
            theirs = self._gradient(other, scored, prepared.batch)
            row["policy/grad_cosine_against"] = cosine(own.whole, theirs.whole)
            row["policy/grad_variance_against"] = theirs.variance
        return {name: value for name, value in row.items() if math.isfinite(value)}

    def _gradient(self, module: OnPolicy[Any], scored: ScoredRollout, batch: TrainBatch) -> MeasuredGradient:
        scaler = module.grad_scaler
        return measured_gradient(
            module.loss,
            trained_parameters(module.policy),
            module.as_one_minibatch(batch),
            batch,
            independent_units(batch, scored),
            parts=self.parts,
            microbatch_size=module.optimization.microbatch_size,
            loss_scale=1.0 if scaler is None else scaler.get_scale(),
        )

    def _other(self, module: OnPolicy[Any]) -> OnPolicy[Any]:
        """The optimizer of ``against``, with this one's trainer and, once they are built, its networks.

        Raises:
            UserError: it is none that could learn from this one's rollouts.
        """
        assert self.against is not None
        other = self.against(module.task, module.backbone)
        name, own = "GradientDiagnostics.against", type(module).__name__
        if not isinstance(other, OnPolicy):
            raise UserError(f"{name} is {type(other).__name__}; expected a policy optimizer, such as REINFORCE")
        other.trainer = module.trainer
        if "groups" in other.requires and module.rollouts.samples_per_prompt < 2:
            raise UserError(
                f"{name} is {type(other).__name__}, which compares responses to the same prompt; "
                "expected data.init_args.samples_per_prompt of at least 2"
            )
        if isinstance(other.critic, Critic):
            if not isinstance(module.critic, Critic):
                raise UserError(
                    f"{name} is {type(other).__name__}, which needs a critic, and {own} trains none; "
                    "expected one without"
                )
            other.critic.objectives = module.critic.objectives
            if hasattr(module.critic, "network"):
                other.critic.network = module.critic.network
        if hasattr(module, "policy"):
            other.policy, other.reference.policy = module.policy, module.reference.policy
        return other

    @override
    def metrics(self) -> tuple[Metric, ...]:
        own = (
            Metric("Variance of the gradient", "of the batch: E‖g − E[g]‖²", "policy/grad_variance", floor=0, own=True),
            Metric("Signal to noise", "of the gradient: ‖E[g]‖² over its variance", "policy/grad_snr", mark=0.0),
            Metric("Agreement of halves", "cosine of two halves' gradients", "policy/grad_cosine", mark=0.0),
        )
        if self.against is None:
            return own
        return (
            *own,
            Metric("Agreement with the other", "cosine of two optimizers' gradients", "policy/grad_cosine_against"),
            Metric("Variance of the other", "optimizer's gradient", "policy/grad_variance_against", floor=0, own=True),
        )


class KLDiagnostics(_Diagnostics):
    """Compares how far an update moved the policy with what the Fisher matrix predicts of it.

    With Δ the difference of all the policy's parameters over the update, of one step or several, F the Fisher matrix at
    the start and all means over the actions of the batch, ``policy/kl_predicted`` is ½ ΔᵀFΔ and ``policy/kl_measured``
    KL(π_old‖π), exact at every action, both in nats per action. They agree to second order in Δ (Schulman et al. 2015,
    "Trust Region Policy Optimization", appendix C). What TRPO and NPG log as ``trust_region/kl`` is the measured one.

    A measurement costs about five gradients of the batch, and memory for three copies of what is trained.

    Args:
        every: iterations from one measurement to the next; the first iteration is measured.
        fisher: the share of the batch that F is averaged over, and the microbatches in which; there is no damping.
    """

    def __init__(self, every: int = 10, fisher: FisherOptions = FisherOptions()) -> None:
        super().__init__(every)
        self.fisher = fisher

    @override
    @contextmanager
    def watching(self, module: Any, scored: ScoredRollout, batch: TrainBatch) -> Iterator[dict[str, float]]:
        row: dict[str, float] = {}
        if not self.is_due(module):
            yield row
            return
        with self.measuring(module):
            before = frozen_copy(module.policy)
            for copied, parameter in zip(before.parameters(), module.policy.parameters(), strict=True):
                copied.requires_grad_(parameter.requires_grad)
        yield row
        with self.measuring(module):
            size, key = module.optimization.microbatch_size, module.current_epoch
            geometry = PolicyGeometry(before, batch, self.fisher, microbatch_size=size, key=key)
            end = flatten(trained_parameters(module.policy)).detach()
            step = end - geometry.start
            row["policy/kl_predicted"] = (step @ geometry.fisher_product(step)).item() / 2
            geometry.move_to(end)
            row["policy/kl_measured"] = geometry.kl()

    @override
    def metrics(self) -> tuple[Metric, ...]:
        return (
            Metric("KL of the update", "nats per action, exact", "policy/kl_measured", role="kl", floor=0),
            Metric(
                "Predicted KL",
                "½ ΔᵀFΔ, as a share of the KL that was measured",
                "policy/kl_predicted",
                per="policy/kl_measured",
                mark=1.0,
                mark_name="as measured",
                floor=0,
            ),
        )
