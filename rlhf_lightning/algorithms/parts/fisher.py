"""The geometry of a policy: its parameters as one vector, the KL to where it started, and its Fisher matrix."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlhf_lightning.distributed import Stream, all_sum, run_seed
from rlhf_lightning.errors import check_limits
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.state import frozen_copy, trained_parameters
from rlhf_lightning.ops.masking import selected
from rlhf_lightning.ops.noise import permutation
from rlhf_lightning.ops.trust_region import conjugate_gradient, damped, flatten, trust_region_scale, unflatten
from rlhf_lightning.training.minibatches import whole_batch
from rlhf_lightning.types import TrainBatch


@dataclass(frozen=True)
class FisherOptions:
    """How the natural direction is computed.

    Args:
        damping: added to the diagonal of the Fisher matrix, which has directions without any curvature; 0.01 to 0.1.
        iterations: of conjugate gradient, 10; each costs about one gradient, with microbatches about three.
        tolerance: the residual over the gradient's norm at which they end.
        fraction: of the responses (or transitions) that the Fisher matrix is averaged over.
        microbatch_size: responses per device whose activations exist at one time, of a language model with about ten
            times the logits of all their tokens; None as in ``optimization``.
    """

    damping: float = 0.1
    iterations: int = 10
    tolerance: float = 1e-5
    fraction: float = 1.0
    microbatch_size: int | None = None

    def __post_init__(self) -> None:
        size = self.microbatch_size
        limits = {
            "damping": (0 <= self.damping < math.inf, "0 or more", self.damping),
            "iterations": (self.iterations >= 1, "at least 1", self.iterations),
            "tolerance": (0 <= self.tolerance < 1, "at least 0 and below 1", self.tolerance),
            "fraction": (0 < self.fraction <= 1, "above 0 and at most 1", self.fraction),
            "microbatch_size": (size is None or size >= 1, "at least 1 (null for that of optimization)", size),
        }
        check_limits("fisher", limits)


@dataclass(frozen=True)
class NaturalDirection:
    """Where the natural gradient points.

    Args:
        gradient: g, of what is maximized.
        direction: an approximate solution of (F + λI) x = g.
        residual: of that, over the norm of g.
        scale: the factor at which the quadratic model of the KL is δ; 1 where no δ was given.
    """

    gradient: Float[Tensor, " P"]
    direction: Float[Tensor, " P"]
    residual: float
    scale: float

    def metrics(self) -> dict[str, float]:
        """To report."""
        return {"policy/grad_norm": self.gradient.norm().item(), "trust_region/cg_residual": self.residual}


class PolicyGeometry:
    """A policy in the neighborhood of its current parameters.

    Everything is a mean over actions, in nats, in full precision, and the same on all ranks. Only what is trained
    counts: with adapters the vectors hold their parameters alone.

    Args:
        policy: is moved by `move_to`.
        batch: what the KL is averaged over, the same on all ranks.
        options: of the Fisher matrix.
        microbatch_size: of the KL, and of the Fisher matrix unless its options say otherwise.
        key: of the noise that draws the fraction.
    """

    def __init__(
        self, policy: Policy, batch: TrainBatch, options: FisherOptions, *, microbatch_size: int | None, key: int
    ) -> None:
        self.policy, self.options = policy, options
        self.old = frozen_copy(policy)
        for parameter, copied in zip(policy.parameters(), self.old.parameters(), strict=True):
            copied.requires_grad_(parameter.requires_grad)  # for the Fisher matrix, see there
        self.parameters = trained_parameters(policy)
        self.start = flatten([parameter.detach() for parameter in self.parameters]).clone()
        self._full_minibatch = whole_batch(batch, microbatch_size=microbatch_size)
        self._fisher_minibatch = whole_batch(
            _share(batch, options.fraction, key), microbatch_size=options.microbatch_size or microbatch_size
        )
        self._slope: Tensor | None = None

    def gradient(self, scaler: torch.amp.GradScaler | None = None) -> Float[Tensor, " P"]:
        """The accumulated gradient, summed over ranks; it is cleared on the policy.

        Args:
            scaler: that has multiplied it; None for none.
        """
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        total = all_sum(flatten(own))
        for parameter in self.parameters:
            parameter.grad = None
        return total if scaler is None else total / scaler.get_scale()

    def natural_direction(self, scaler: torch.amp.GradScaler | None, *, max_kl: float | None) -> NaturalDirection:
        """The natural direction of the accumulated gradient, which is cleared on the policy.

        Args:
            scaler: that has multiplied the gradient; None for none.
            max_kl: δ that the step is to be scaled to, in nats per action; None for a scale of 1.
        """
        gradient = -self.gradient(scaler)  # of what is maximized: losses are its negative
        product = damped(self.fisher_product, damping=self.options.damping)
        direction, residual = conjugate_gradient(
            product, gradient, iterations=self.options.iterations, tolerance=self.options.tolerance
        )
        scale = 1.0 if max_kl is None else trust_region_scale(direction, product(direction), max_kl=max_kl).item()
        return NaturalDirection(gradient, direction, residual.item(), scale)

    def move_to(self, vector: Float[Tensor, " P"]) -> None:
        """Set the policy's parameters."""
        self._slope = None  # the graph of the former parameters
        with torch.no_grad():
            for parameter, values in zip(self.parameters, unflatten(vector, like=self.parameters), strict=True):
                parameter.copy_(values)

    def fisher_product(self, vector: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """The Fisher-vector product F v at the initial parameters; valid only before `move_to`.

        F = E[∇ log π ∇ log πᵀ] is the second derivative of KL(π_old‖π) in π (Schulman et al. 2015, "Trust Region
        Policy Optimization", appendix C), and equally minus the mixed one in π and π_old (Eguchi 1983, "Second Order
        Efficiency of Minimum Contrast Estimators in a Curved Exponential Family"): the derivative in π is
        −E_old[∇ log π], and of that the one in π_old −E[∇ log π_old ∇ log πᵀ]. The mixed one is far cheaper, because
        it differentiates each of the two networks once and none of them twice.
        """
        total = torch.zeros_like(vector)
        with full_precision(vector.device.type), sdpa_kernel(SDPBackend.MATH):  # others have no second derivative
            for part in self._fisher_minibatch.parts:
                total -= self._mixed_product(part, vector)
        return all_sum(total) / self._fisher_minibatch.tokens

    def _mixed_product(self, part: TrainBatch, vector: Tensor) -> Tensor:
        """Of one microbatch. Its graph is kept for further products only if it is the only one, to bound memory."""
        slope = self._slope
        if slope is None:
            kl = self._kl_sum(part)
            slope = flatten(torch.autograd.grad(kl, self.parameters, create_graph=True, materialize_grads=True))
        if keep := len(self._fisher_minibatch.parts) == 1:
            self._slope = slope
        along = slope @ vector
        return flatten(
            torch.autograd.grad(along, trained_parameters(self.old), retain_graph=keep, materialize_grads=True)
        )

    @torch.no_grad()
    def kl(self) -> float:
        """KL(π_old‖π) at the current parameters, exact at every action of the batch."""
        with full_precision(self.start.device.type):
            own = [self._kl_sum(part).double() for part in self._full_minibatch.parts]
        total = sum(own, start=torch.zeros((), dtype=torch.float64, device=self.start.device))
        return (all_sum(total) / self._full_minibatch.tokens).item()

    def _kl_sum(self, part: TrainBatch) -> Float[Tensor, ""]:
        """Over the actions of a microbatch."""
        outputs = self.old.evaluate(part.context, part.actions, part.action_mask, against=self.policy)
        assert outputs.kl is not None
        return selected(outputs.kl, part.action_mask).sum()


def full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Context without autocast, which would round products of vectors to half precision, too."""
    return torch.autocast(device_type, enabled=False)


def _share(batch: TrainBatch, fraction: float, key: int) -> TrainBatch:
    """A random fraction of the rows, the same on all ranks."""
    count = math.ceil(fraction * len(batch))
    if count == len(batch):
        return batch
    order = permutation(seed=run_seed(), stream=Stream.FISHER, iteration=key, size=len(batch))
    return batch.select(order[:count].sort().values.to(batch.actions.device))
