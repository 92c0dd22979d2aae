"""`Affine`: linear layers as decoding multiplies them."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.models.language.lora import merged_weight
from rlhf_lightning.models.language.onednn import packed, packed_linear


class Affine:
    """Linear layers of the same inputs as one, with adapters merged, in the dtype in which they are multiplied.

    On a CPU the weights are brought into the order in which oneDNN multiplies them; this takes as long as a few
    multiplications, and saves a quarter of each.
    """

    def __init__(self, *layers: nn.Module) -> None:
        weights = [merged_weight(layer) for layer in layers]
        weights = [w.t() if isinstance(_base(layer), Conv1D) else w for w, layer in zip(weights, layers, strict=True)]
        biases = [cast("Tensor | None", layer.bias) for layer in layers]
        weight = as_multiplied(weights[0] if len(weights) == 1 else torch.cat(weights))
        self.bias = None if biases[0] is None else as_multiplied(torch.cat(cast("list[Tensor]", biases)))
        self.sizes, self.dtype = [len(one) for one in weights], weight.dtype
        self.packed = packed(weight)
        self.weight = weight if self.packed is None else None  # not both, each of which may be a copy

    def __call__(self, inputs: Float[Tensor, "n I"]) -> Float[Tensor, "n O"]:
        """Inputs times weights, plus the biases."""
        if self.weight is not None:
            return linear(inputs, self.weight, self.bias)
        return packed_linear(inputs.to(self.dtype), cast(Tensor, self.packed), self.bias)

    def apart(self, inputs: Float[Tensor, "n I"]) -> tuple[Float[Tensor, "n O"], ...]:
        """The outputs of each layer."""
        return self(inputs).split(self.sizes, dim=-1)


def as_multiplied(tensor: Tensor) -> Tensor:
    """A tensor in the dtype in which mixed precision multiplies it, so that it is converted once."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _base(layer: nn.Module) -> nn.Module:
    """A layer without its adapter."""
    return getattr(layer, "base_layer", layer)
