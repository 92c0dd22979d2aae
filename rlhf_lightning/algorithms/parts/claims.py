"""What an algorithm says of its expected gradient; ``prove`` measures whether it is true."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.algorithms.parts.kl_control import KLLoss


@dataclass(frozen=True)
class Claim:
    """What E[g] is said to be, at the first step on a batch and with γ = 1.

    Args:
        text: in symbols.
        scale: c in E[g] = c ∇J, from the number of responses in a batch or group; None where E[g] points elsewhere.
    """

    text: str
    scale: Callable[[int], float] | None = None


UNBIASED = Claim("∇J", lambda size: 1.0)
SHORT_BY_BATCH = Claim("(1 − 1/B) ∇J", lambda size: 1 - 1 / size)
SHORT_BY_GROUP = Claim("(1 − 1/G) ∇J", lambda size: 1 - 1 / size)
BIASED = Claim("biased")
OTHER = Claim("not ∇J by design")


@dataclass(frozen=True)
class Variant:
    """An algorithm with some settings, and its claim.

    Args:
        name: what the table calls it.
        claim: its expected gradient.
        settings: constructor arguments that differ from the defaults.
        kl_loss: puts the KL to the reference into the loss; None leaves it in the reward.
        wrong_critic: whether it gets a critic that errs, instead of one that knows the values.
    """

    name: str
    claim: Claim
    settings: Mapping[str, Any] = field(default_factory=dict)
    kl_loss: KLLoss | None = None
    wrong_critic: bool = False
