"""Losses on preferences, per pair."""

import torch
from jaxtyping import Float
from torch import Tensor


def bradley_terry_loss(
    chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"], *, margin: Float[Tensor, " B"] | float
) -> Float[Tensor, " B"]:
    """−log σ(r_w − r_l − m), in nats per pair.

    Bradley and Terry 1952; with a margin as in Touvron et al. 2023, "Llama 2", eq. 2.

    Args:
        chosen: r_w, scores of the preferred responses.
        rejected: r_l, scores of the others.
        margin: m ≥ 0, by how much the first should win; 0 for the plain loss.
    """
    return -torch.nn.functional.logsigmoid(chosen - rejected - margin)
