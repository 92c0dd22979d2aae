"""`DecodingStep`: what a transformer computes for one token."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from rlhf_lightning.models.language.decoding.key_values import KeyValues


class DecodingStep(Protocol):
    """What an architecture computes for one new token of each row, from the weights at the time of its construction.

    A model's own forward serves sequences of any length, masks, caches and outputs of any kind, and pays for that at
    every token: in a small model most of the time. A layer itself is a dozen operations.
    """

    def __call__(
        self, tokens: Int[Tensor, " n"], positions: Int[Tensor, " n"], key_values: KeyValues
    ) -> Float[Tensor, "n H"]:
        """The last hidden states; keys and values of the tokens are written."""
        ...
