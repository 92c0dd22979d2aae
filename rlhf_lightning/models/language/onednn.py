"""Linear layers by oneDNN on a CPU: the private interfaces of torch that are used.

Torch multiplies matrices of float32 by MKL, which reaches half of what an AMD processor with AVX-512 can do. oneDNN,
which torch uses in other precisions, is made for both manufacturers' processors.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

_ROWS = 64
"""Number of rows for which weights are packed."""

_FEWEST = 512
"""Number of rows from which on weights that are not packed are multiplied faster by oneDNN than by MKL."""


def packed(weight: Float[Tensor, "O I"]) -> Tensor | None:
    """A weight in oneDNN's order, as `torch.compile` packs one that does not change; None where this is not known."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16) or not _known():
        return None
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS))


def packed_linear(
    inputs: Float[Tensor, "n I"], weight: Tensor, bias: Float[Tensor, " O"] | None
) -> Float[Tensor, "n O"]:
    """Inputs times a weight [O, I], packed or not, plus the bias."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], ""))


def use_onednn(model: nn.Module) -> None:
    """Let a model's linear layers multiply many rows of float32 by oneDNN when they are on a CPU."""
    if not _known():
        return
    faster: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: OneDNNLinear, Conv1D: OneDNNConv1D}
    for module in model.modules():
        if type(module) in faster:
            module.__class__ = faster[type(module)]  # keeps parameters, hooks and whatever refers to the layer


class OneDNNLinear(nn.Linear):
    """A linear layer that multiplies many rows of float32 by oneDNN; all else is the same."""

    @override
    def forward(self, input: Float[Tensor, "*n I"]) -> Float[Tensor, "*n O"]:
        if _pays(input, self.weight):
            return _linear(input, self.weight, self.bias)
        return super().forward(input)


class OneDNNConv1D(Conv1D):
    """The same for GPT-2's layers, whose weight is [I, O]."""

    @override
    def forward(self, x: Float[Tensor, "*n I"]) -> Float[Tensor, "*n O"]:
        if _pays(x, self.weight):
            return _linear(x, self.weight.t(), self.bias)
        return cast(Tensor, super().forward(x))


def round_up(rows: int) -> int:
    """A number of rows that recurs, at most 3 % above the given one.

    oneDNN compiles a product for each shape that it has not met, which takes longer than a product of small matrices.
    """
    step = 1 << max(rows.bit_length() - 6, 0) if rows >= _FEWEST else 1
    return -(-rows // step) * step


def _known() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _pays(inputs: Tensor, weight: Tensor) -> bool:
    return (
        inputs.dtype is weight.dtype is torch.float32
        and inputs.device.type == "cpu"
        and inputs.numel() >= _FEWEST * inputs.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    )


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = inputs.reshape(-1, inputs.shape[-1])
    more = round_up(len(rows)) - len(rows)
    outputs = _Linear.apply(pad(rows, (0, 0, 0, more)) if more else rows, weight, bias)
    return cast(Tensor, outputs)[: len(rows)].view(*inputs.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """x Wᵀ + b. Its derivatives are products of the same two kinds, so that it has derivatives of every order."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "n I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
    ) -> Float[Tensor, "n O"]:
        """One row for each row of x."""
        ctx.save_for_backward(x, weight)
        return packed_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, of_y: Float[Tensor, "n O"]) -> tuple[Tensor | None, ...]:
        """With G = ∂L/∂y: G W, Gᵀ x, and the sum of the rows of G."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _Linear.apply(of_y, weight.t(), None) if of_x else None,
            _Correlation.apply(of_y, x) if of_weight else None,
            of_y.sum(0) if of_bias else None,
        )


class _Correlation(torch.autograd.Function):
    """Gᵀ x, the gradient of a weight."""

    @staticmethod
    def forward(ctx: Any, g: Float[Tensor, "n O"], x: Float[Tensor, "n I"]) -> Float[Tensor, "O I"]:
        """The sum over rows of the outer products."""
        ctx.save_for_backward(g, x)
        shape = x.new_empty(g.shape[1], x.shape[1])
        product, _ = torch.ops.aten.mkldnn_linear_backward_weights(g.to_mkldnn(), x.to_mkldnn(), shape, False)
        return cast(Tensor, product.to_dense() if product.is_mkldnn else product)

    @staticmethod
    def backward(ctx: Any, of_y: Float[Tensor, "O I"]) -> tuple[Tensor | None, ...]:
        """With H = ∂L/∂(Gᵀ x): x Hᵀ and G H."""
        g, x = ctx.saved_tensors
        of_g, of_x = ctx.needs_input_grad
        return _Linear.apply(x, of_y, None) if of_g else None, _Linear.apply(g, of_y.t(), None) if of_x else None
