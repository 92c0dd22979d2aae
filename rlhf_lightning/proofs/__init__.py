"""What a policy optimizer estimates, in exact numbers: its gradient averaged over every batch that it could meet."""

from rlhf_lightning.proofs.expectation import (
    GradientMoments,
    batch_gradient,
    batches,
    expected_gradient,
    scored_batch,
)

__all__ = ["GradientMoments", "batch_gradient", "batches", "expected_gradient", "scored_batch"]
