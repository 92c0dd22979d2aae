"""The table of what each policy optimizer estimates, measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rlhf_lightning.proofs.estimators import MEASURED, Estimator
from rlhf_lightning.proofs.instance import Instance
from rlhf_lightning.report.tables import markdown_table

EXACT = 1e-9
"""Largest ‖E[g] − c ∇J‖ of an estimator that is said to be exact, and smallest of one that is said to be biased, over
what it is compared with (`EstimatorRow.size`)."""

HEADER = ("optimizer", "E[g]", "c", "‖E[g] − c ∇J‖", "variance / c²")

COLUMNS = """\
- E[g]: the expected gradient at the first step on a batch, sign turned so that it points uphill. A bias is measured:
  ‖E[g] − c ∇J‖ in percent of ‖c ∇J‖, and the cosine of the angle between E[g] and ∇J.
- c: the scale that the algorithm has by design; for a biased one (≈) the c that brings c ∇J nearest to E[g].
- variance / c²: E‖g − E[g]‖², as if the step size made up for the scale.
- Exact values are the policy's own; wrong ones are off by noise of standard deviation {error:g} at each prefix.
- Algorithms that learn from feedback (DPO and its kin) get batches of one pair, or of two labelled responses, that the
  reference wrote and that the Bradley–Terry model of the scores judged; their E[g] is no estimate of ∇J.
- The KL is part of the reward unless a row says that it stands in the loss.
- Which estimator varies least depends on the instance, that is on rewards, policy and batch size: this is no ranking.\
"""


@dataclass(frozen=True)
class EstimatorRow:
    """What was measured of an estimator.

    Args:
        estimator: which.
        scale: c, stated, or fitted where E[g] is biased.
        error: ‖E[g] − c ∇J‖.
        size: what the error is compared with: ‖c ∇J‖, and where a bias is said to come from a KL in the loss or from
            wrong values not more than β or their error, with which it vanishes.
        bias: the same over ‖c ∇J‖.
        cosine: of the angle between E[g] and ∇J.
        variance: E‖g − E[g]‖² / c².
    """

    estimator: Estimator
    scale: float
    error: float
    size: float
    bias: float
    cosine: float
    variance: float

    @property
    def exact(self) -> bool:
        """Whether E[g] is c ∇J."""
        return self.error < EXACT * self.size

    @property
    def holds(self) -> bool:
        """Whether the expectation is what it is said to be."""
        claim = self.estimator.variant.claim
        if claim is MEASURED:
            return True
        return self.exact if claim.scale is not None else self.error >= EXACT * self.size

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        claim = self.estimator.variant.claim
        text = claim.text
        if claim is MEASURED:
            text = f"{self.scale:.4g} ∇J" if self.exact else "biased"
        if claim.scale is None and not self.exact:
            text += f": {self.bias:.1%}, cosine {self.cosine:.3f}"
        return (
            self.estimator.variant.name,
            text + ("" if self.holds else " — REFUTED"),
            f"{self.scale:.4g}" if claim.scale is not None else f"≈ {self.scale:.3f}",
            f"< {EXACT * max(self.size, 1):.0e}" if self.exact else _number(self.error),
            f"{self.variance:.4f}",
        )


def measure(estimator: Estimator, instance: Instance, *, batch_size: int) -> EstimatorRow:
    """Moments of an estimator's gradient over all batches of so many responses, which are one group."""
    moments = estimator.moments(instance, batch_size=batch_size)
    found, exact = -moments.mean, instance.objective.gradient(instance.policy)
    variant = estimator.variant
    stated = variant.claim.scale
    scale = stated(batch_size) if stated else (found @ exact / (exact @ exact)).item()
    error, size = (found - scale * exact).norm(), abs(scale) * exact.norm()
    sizes = [size.item()]
    if stated is None:
        sizes += [instance.kl_coef] if variant.kl_loss is not None else []
        sizes += [instance.critic_error] if variant.wrong_critic else []
    return EstimatorRow(
        estimator=estimator,
        scale=scale,
        error=error.item(),
        size=min(sizes),
        bias=(error / size).item(),
        cosine=(found @ exact / (found.norm() * exact.norm())).item(),
        variance=(moments.variance / scale**2).item(),
    )


def _number(value: float) -> str:
    """With four decimals, unless these are all 0."""
    return f"{value:.4f}" if value >= 5e-5 else f"{value:.0e}"


def markdown(rows: Iterable[EstimatorRow], instance: Instance, *, batch_size: int) -> str:
    """The rows with the instance that they are about above, and what the columns mean below."""
    norm = instance.objective.gradient(instance.policy).norm().item()
    return "\n".join(
        [
            f"Bandit task, seed {instance.seed}: every batch of {batch_size} of its 15 responses, in float64.",
            f"J = E[score − β log π/π_ref], β = {instance.kl_coef:g}, γ = 1, ‖∇J‖ = {norm:.4f};"
            f" B = G = {batch_size}: a batch is one group.",
            "",
            markdown_table([HEADER, *(row.cells() for row in rows)]),
            "",
            COLUMNS.format(error=instance.critic_error),
        ]
    )
