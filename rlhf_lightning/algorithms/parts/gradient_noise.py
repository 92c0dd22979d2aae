"""The gradient of a batch, and how far it would be another on another batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rlhf_lightning.distributed import all_sum, own_rows, row_slices
from rlhf_lightning.errors import UserError
from rlhf_lightning.ops.trust_region import flatten
from rlhf_lightning.training.minibatches import BatchT, Loss, Minibatch
from rlhf_lightning.types import ObservationContext, ScoredRollout, TrainBatch


@dataclass(frozen=True)
class MeasuredGradient:
    """The gradient g of the loss of a whole batch with respect to the policy's parameters.

    Args:
        halves: contributions of two halves of the batch.
        variance: an estimate of E‖g − E[g]‖², the trace of the covariance of g over batches.
    """

    halves: tuple[Float[Tensor, " P"], Float[Tensor, " P"]]
    variance: float

    @property
    def whole(self) -> Float[Tensor, " P"]:
        """Their sum, g."""
        return self.halves[0] + self.halves[1]

    @property
    def signal_to_noise(self) -> float:
        """‖E[g]‖² / E‖g − E[g]‖², of which the numerator is estimated by ‖g‖² less the variance; NaN for no variance.

        It is −1 where g is 0, and negative wherever g is shorter than noise alone would be expected to be.
        """
        return squared_norm(self.whole) / self.variance - 1 if self.variance else float("nan")


def measured_gradient(
    loss: Callable[[BatchT, Minibatch[BatchT]], Loss],
    parameters: Sequence[nn.Parameter],
    minibatch: Minibatch[BatchT],
    batch: BatchT,
    units: Int[Tensor, " N"],
    *,
    parts: int,
    microbatch_size: int | None,
    loss_scale: float,
) -> MeasuredGradient:
    """Differentiate the loss of independent parts of a batch, each on one of the ranks; all ranks get the same numbers.

    With n independent units, divided into K parts of m₁ … m_K of them, contributions c₁ … c_K and g = Σ cₖ,

        E‖g − E[g]‖² ≈ (n Σ ‖cₖ‖² / mₖ − ‖g‖²) / (K − 1),

    which is unbiased: n cₖ / mₖ is the mean gradient of mₖ units, with n / mₖ times the variance of g. What a loss
    takes from the whole batch (a mean or a deviation that advantages are normalized by, a count of tokens) counts as
    given; what that adds to the variance is not seen. No gradient is left on the parameters.

    Args:
        loss: of some rows, divided by the counts of the whole minibatch.
        minibatch: the whole batch.
        batch: the same on all ranks.
        units: number of the independent unit that each row belongs to, from 0, see `independent_units`.
        parts: K at most; each takes a backward pass at least.
        microbatch_size: rows whose activations exist at one time; None for all of a part.
        loss_scale: what the loss is multiplied by, and the gradient divided by, in 16-bit mixed precision.

    Raises:
        UserError: there is one unit only.
    """
    count = int(units.max()) + 1
    if count < 2:
        raise UserError(
            "the variance of a gradient needs at least two responses, groups or environments that are independent of "
            "each other in a rollout, and this one has one"
        )
    parts = min(parts, count)
    part_of = units * parts // count
    halves = [torch.zeros_like(flatten(parameters)) for _ in range(2)]
    squares = torch.zeros((), dtype=torch.float64, device=halves[0].device)
    for part in own_rows(parts).tolist():
        rows = (part_of == part).nonzero().squeeze(1)
        contribution = torch.zeros_like(halves[0])
        for chosen in row_slices(len(rows), microbatch_size):
            value = loss(batch.select(rows[chosen.to(rows.device)]), minibatch).value * loss_scale
            gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
            contribution += flatten(gradients) / loss_scale
        halves[part % 2] += contribution
        squares += count / len(units[rows].unique()) * squared_norm(contribution)
    first, second = (all_sum(half.detach()) for half in halves)
    spread = all_sum(squares).item() - squared_norm(first + second)
    return MeasuredGradient((first, second), max(0.0, spread / (parts - 1)))


def independent_units(batch: TrainBatch, scored: ScoredRollout) -> Int[Tensor, " N"]:
    """Which rows of a batch depend on each other: responses to one prompt, transitions in one environment.

    Args:
        batch: rows of the rollout in its order, or one for each of its groups.
        scored: the rollout.
    """
    mask = scored.rollout.action_mask
    if isinstance(batch.context, ObservationContext):
        return mask.nonzero()[:, 0]
    groups = len(scored) // scored.group_size
    return torch.arange(len(batch), device=mask.device) * groups // len(batch)


def squared_norm(vector: Float[Tensor, " P"]) -> float:
    """‖v‖², summed in double precision."""
    return torch.linalg.vector_norm(vector, dtype=torch.float64).item() ** 2


def cosine(first: Float[Tensor, " P"], second: Float[Tensor, " P"]) -> float:
    """Of the angle between two vectors; NaN where one of them is 0."""
    first, second = first.double(), second.double()
    return (first @ second / (first.norm() * second.norm())).item()
