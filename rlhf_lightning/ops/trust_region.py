"""Trust-region steps on flat parameter vectors: conjugate gradient, step size, line search.

Schulman et al. 2015, "Trust Region Policy Optimization", appendix C. The matrix H (the Fisher matrix, which is the
Hessian of the KL at the current policy) is available only through products H v. All arithmetic happens in the dtype of
the vectors, which should be float32 or better.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.ops.masking import masked

Product: TypeAlias = Callable[[Tensor], Tensor]
"""Maps a vector v [P] to H v [P], with H symmetric and positive semi-definite."""


def flatten(tensors: Sequence[Tensor]) -> Float[Tensor, " P"]:
    """One vector of all entries, in the order of the tensors."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Float[Tensor, " P"], *, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of ``flatten``: pieces with the shapes of ``like``, as views of the vector."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def damped(product: Product, *, damping: float) -> Product:
    """The product v ↦ H v + λ v, whose matrix is positive definite even if H is only semi-definite.

    Args:
        damping: λ > 0, 0.01 to 0.1.
    """

    def damped_product(vector: Tensor) -> Tensor:
        return product(vector) + damping * vector

    return damped_product


def conjugate_gradient(
    product: Product, target: Float[Tensor, " P"], *, iterations: int, tolerance: float
) -> tuple[Float[Tensor, " P"], Float[Tensor, ""]]:
    """Solve H x = b; returns x and ‖b − H x‖ / ‖b‖ as the recursion tracks it. One product per iteration.

    Hestenes and Stiefel 1952, "Methods of Conjugate Gradients for Solving Linear Systems", § 3. It starts at x = 0,
    so b = 0 gives 0, and stops at a direction p with pᵀHp ≤ 0, along which the quadratic has no minimum.

    Args:
        target: b, such as the gradient of the surrogate.
        iterations: maximum number of products, 10 to 20.
        tolerance: relative residual at which to stop, such as 1e-5; 0 uses every iteration.
    """
    solution, residual, direction = torch.zeros_like(target), target, target
    squared = start = target @ target
    for _ in range(iterations):
        # Products may be collective calls, so all ranks must stop together. They do: the target and the products, from
        # which every number compared here is computed, are bit-identical on all ranks.
        if squared <= tolerance**2 * start:
            break
        image = product(direction)
        curvature = direction @ image
        if curvature <= 0:
            break
        step = squared / curvature
        solution = solution + step * direction
        residual = residual - step * image
        previous, squared = squared, residual @ residual
        direction = residual + squared / previous * direction
    return solution, masked((squared / start).sqrt(), start != 0)


def trust_region_scale(
    direction: Float[Tensor, " P"], image: Float[Tensor, " P"], *, max_kl: float
) -> Float[Tensor, ""]:
    """β = √(2δ / xᵀHx), which takes the quadratic model of the KL, ½ (βx)ᵀH(βx), to δ; 0 where xᵀHx ≤ 0.

    Args:
        direction: x.
        image: H x.
        max_kl: δ > 0, in nats per action, 0.01 to 0.05.
    """
    curvature = direction @ image
    return torch.where(curvature <= 0, 0, (2 * max_kl / curvature).sqrt())


@dataclass(frozen=True)
class LineSearch:
    """Result of a line search; if no step is accepted, the start with step size, improvement and KL 0.

    Args:
        accepted: whether any step was accepted.
        parameters: the first accepted candidate, or the start itself.
        step_size: fraction of the full step.
        backtracks: how many times the step was shrunk.
        improvement: of the surrogate, measured at ``parameters``.
        kl: from the start, measured at ``parameters``, in nats per action.
    """

    accepted: bool
    parameters: Float[Tensor, " P"]
    step_size: float
    backtracks: int
    improvement: float
    kl: float


def backtracking_line_search(
    evaluate: Callable[[Tensor], tuple[float, float]],
    start: Float[Tensor, " P"],
    full_step: Float[Tensor, " P"],
    *,
    expected_improvement: float,
    max_kl: float,
    shrink: float,
    max_backtracks: int,
    accept_ratio: float,
) -> LineSearch:
    """The first of the steps θ + sᵏ Δ, k = 0, 1, …, that improves the surrogate and keeps the measured KL ≤ δ.

    The improvement must be finite, positive and at least the given share of what the linear model predicts for that
    step. A step that is not finite is rejected without evaluation.

    Args:
        evaluate: maps parameters [P] to (surrogate there − surrogate at the start, KL from the start); must return
            the same numbers on every rank, so that all ranks take the same decision.
        start: θ.
        full_step: Δ, scaled to the trust region.
        expected_improvement: gᵀΔ, g the gradient of the surrogate at the start.
        max_kl: δ, in nats per action.
        shrink: s, between 0 and 1, such as 0.5.
        max_backtracks: how many times the step may shrink, such as 10.
        accept_ratio: required share of the expected improvement, such as 0.1; with 0 any improvement is accepted.
    """
    # A non-finite entry that the evaluation happens not to read would pass every other check.
    tries = max_backtracks + 1 if full_step.isfinite().all() else 0
    for backtracks in range(tries):
        step_size = shrink**backtracks
        candidate = start + step_size * full_step
        improvement, kl = evaluate(candidate)
        enough = improvement > 0 and improvement >= accept_ratio * step_size * expected_improvement
        if enough and kl <= max_kl and math.isfinite(improvement) and math.isfinite(kl):
            return LineSearch(True, candidate, step_size, backtracks, improvement, kl)
    return LineSearch(False, start, step_size=0.0, backtracks=max(tries - 1, 0), improvement=0.0, kl=0.0)
