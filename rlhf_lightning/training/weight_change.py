"""How far the weights of a network are from where a run started."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rlhf_lightning.distributed import Stream
from rlhf_lightning.models.state import trained_parameters
from rlhf_lightning.ops.noise import row_keys, uniform
from rlhf_lightning.records.metrics import Metric

MOST = 4096
"""Entries of a tensor that are looked at: all of a smaller one."""


class WeightChange:
    """‖θ − θ₀‖ / ‖θ₀‖ of the trained parameters θ of a network, θ₀ those at the start of the run.

    Of each tensor at most `MOST` entries are remembered, in the precision of the weights: one from each of `MOST`
    stretches of equal length. Both norms are estimated from them, each entry standing for as many as its stretch has,
    so that the squared norms are unbiased; of a network of small tensors they are exact. Where the entries of large
    tensors differ by orders of magnitude (an embedding of which few rows are ever used) the estimate is rough; that it
    is 0 means that none of the entries moved by a single bit.

    Which entries they are depends on the shapes alone, so that a resumed run looks at the same ones.

    Args:
        network: is looked at, now and in each `value`.
        start: what `state` gave at the start of the run; None if that is now.
    """

    def __init__(self, network: nn.Module, start: Float[Tensor, " K"] | None = None) -> None:
        self.parameters = trained_parameters(network)
        self.places = [_places(parameter, number) for number, parameter in enumerate(self.parameters)]
        shares = [
            torch.full((len(places),), parameter.numel() / len(places), dtype=torch.float64, device=parameter.device)
            for parameter, places in zip(self.parameters, self.places, strict=True)
        ]
        self.shares = torch.cat(shares)
        now = self._entries()
        self.start = now if start is None else start.to(now.device)

    def value(self) -> float:
        """The change; where the weights started at 0, ‖θ‖ itself."""
        change = self._norm(self._entries().double() - self.start.double())
        norm = self._norm(self.start.double())
        return (change / torch.where(norm > 0, norm, 1.0)).item()

    def state(self) -> Float[Tensor, " K"]:
        """What a checkpoint keeps: the remembered entries of θ₀."""
        return self.start

    @torch.no_grad()
    def _entries(self) -> Float[Tensor, " K"]:
        chosen = zip(self.parameters, self.places, strict=True)
        return torch.cat([parameter.detach().flatten()[places] for parameter, places in chosen])

    def _norm(self, entries: Float[Tensor, " K"]) -> Float[Tensor, ""]:
        return (self.shares * entries**2).sum().sqrt()


def change_metric(network: str, *, shown: bool = True) -> Metric:
    """How the change of a network's weights is logged and shown."""
    unit = f"of the {network.replace('_', ' ')}, relative to the start"
    return Metric("Change of the weights", unit, f"{network}/weight_change", floor=0, shown=shown)


def _places(tensor: Tensor, number: int) -> Int[Tensor, " K"]:
    """The entries of a tensor that are looked at.

    Args:
        number: of the tensor in its network, so that tensors of one shape have different ones.
    """
    size = tensor.numel()
    if size <= MOST:
        return torch.arange(size, device=tensor.device)
    stretches = torch.arange(MOST)
    within = uniform(row_keys(seed=0, stream=Stream.WEIGHTS, iteration=number, rows=stretches))
    return ((stretches + within) * (size / MOST)).long().clamp(max=size - 1).to(tensor.device)
