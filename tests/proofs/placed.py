"""Algorithms in the middle of a run on the enumerable task."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.proofs.instance import Instance


def placed(at: Instance, algorithm: Any, *, wrong_critic: bool = False, **settings: Any) -> Any:
    """An algorithm with the policy, the reference and the critic of an instance, at the instance's price of the KL."""
    module = algorithm(at.task, at.backbone, **{"kl": KLControl(at.kl_coef), **settings})
    return at.place(module, wrong_critic=wrong_critic)
