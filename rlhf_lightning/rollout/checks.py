"""Refusing rollouts on which no policy can be trained."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.text import plain_text
from rlhf_lightning.ops.masking import masked
from rlhf_lightning.types import ScoredRollout


def check_finite(name: str, values: Float[Tensor, "B T"], scored: ScoredRollout) -> None:
    """Check the numbers of a rollout; they are named ``name`` in the message.

    Raises:
        UserError: the number of an action is not finite; the message names the prompt or the environment.
    """
    bad_rows = (~torch.isfinite(masked(values, scored.rollout.action_mask))).any(-1).nonzero()
    if len(bad_rows):
        row = int(bad_rows[0])
        where = f"the prompt {plain_text(scored.prompts[row])!r}" if scored.prompts else f"environment {row}"
        raise UserError(f"{name} are not finite for {where}")
