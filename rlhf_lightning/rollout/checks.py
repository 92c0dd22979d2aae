"""Refusing numbers that no policy can be trained on."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.text import plain_text
from rlhf_lightning.ops.masking import masked
from rlhf_lightning.types import ScoredRollout


def check_finite(name: str, values: Float[Tensor, "B T"], scored: ScoredRollout) -> None:
    """Refuse numbers of a rollout that are not finite, and name the prompt.

    Raises:
        UserError: one is not, at an action that counts.
    """
    bad = (~torch.isfinite(masked(values, scored.rollout.action_mask))).any(-1).nonzero()
    if len(bad):
        row = int(bad[0])
        where = f"the prompt {plain_text(scored.prompts[row])!r}" if scored.prompts else f"environment {row}"
        raise UserError(f"{name} are not finite for {where}")
