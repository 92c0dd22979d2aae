"""`Actor`: what `ControlPolicy.act` computes, in numpy."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from rlhf_lightning.models.control.layers import Activation, CategoricalHead, GaussianHead
from rlhf_lightning.models.moments import EPS


class Actor:
    """A policy with the weights that it has now, for a few observations at a time, on the CPU.

    A rollout asks for one action after another: calling torch each time would take several times as long as the
    numbers themselves, and on a GPU each step would wait for two transfers.

    Args:
        trunk: linear layers with the activation after each.
        head: the output layer.
        temperature: divides logits, multiplies standard deviations.
        dtype: of the networks.
        moments: mean and variance of the observations, by which they are normalized; None where they are not.
    """

    def __init__(
        self,
        trunk: nn.Sequential,
        head: CategoricalHead | GaussianHead,
        *,
        activation: Activation,
        temperature: float,
        dtype: type[np.floating],
        moments: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.hidden = [_affine(layer) for layer in trunk if isinstance(layer, nn.Linear)]
        self.head = _affine(head.layer)
        self.activation, self.temperature, self.dtype = activation, temperature, dtype
        self.std = _array(head.log_std.exp() * temperature) if isinstance(head, GaussianHead) else None
        self.ends: list[int] = []  # where the logits of each entry of a vector of choices end, but for the last
        if isinstance(head, CategoricalHead) and not isinstance(head.choices, int):
            self.ends = np.cumsum(head.choices)[:-1].tolist()
        self.moments = None if moments is None else (_array(moments[0]), np.sqrt(_array(moments[1]) + EPS))

    def __call__(self, observations: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """Actions [n] or [n, D] for raw observations [n, O], before `Spaces.to_environment`.

        Args:
            noise: [n, K] from `ControlPolicy.noise`; None for the most probable actions.
        """
        hidden = observations.astype(self.dtype)
        if self.moments is not None:
            mean, scale = self.moments
            hidden = np.clip((hidden - mean) / scale, -10, 10).astype(self.dtype)
        for weight, bias in self.hidden:
            hidden = hidden @ weight + bias
            hidden = np.tanh(hidden) if self.activation == "tanh" else np.maximum(hidden, 0)
        weight, bias = self.head
        output = hidden @ weight + bias
        if self.std is not None:
            return output if noise is None else output + self.std * noise
        logits = output / self.temperature
        if noise is not None:
            logits = logits + noise
        if not self.ends:
            return logits.argmax(-1)
        return np.stack([entry.argmax(-1) for entry in np.split(logits, self.ends, axis=-1)], axis=-1)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


def _affine(layer: nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    """Weights [inputs, outputs] and biases."""
    return np.ascontiguousarray(_array(layer.weight).T), _array(layer.bias)
