"""What a policy optimizer estimates, in exact numbers, and whether a run ends the same under other circumstances.

The gradient is averaged over every batch that it could meet; runs are repeated on two ranks, in microbatches, and with
a death in between.
"""

from rlhf_lightning.proofs.expectation import (
    GradientMoments,
    batch_gradient,
    batches,
    expected_gradient,
    scored_batch,
)

__all__ = ["GradientMoments", "batch_gradient", "batches", "expected_gradient", "scored_batch"]
