"""Weights in the order in which oneDNN multiplies them on a CPU: the private interfaces of torch that are used."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

_ROWS = 64
"""Number of rows for which weights are packed."""


def packed(weight: Float[Tensor, "O I"]) -> Tensor | None:
    """A weight as `torch.compile` packs one that does not change; None where this is not known."""
    known = weight.dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available()
    if weight.device.type != "cpu" or not known or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS))


def packed_linear(
    inputs: Float[Tensor, "n I"], weight: Tensor, bias: Float[Tensor, " O"] | None
) -> Float[Tensor, "n O"]:
    """Inputs times a packed weight, plus the bias."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], ""))
