"""Where scores come from: everything that judges a response implements `RewardSource`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.types import Prompt


class RewardSource(nn.Module):
    """Judges responses as text. It is a module, so that a learned one moves to the device with the rest."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " B"]:
        """One score per response."""
        raise NotImplementedError

    def components(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, Float[Tensor, " B"]]:
        """The parts that the score is made of, by name, where it has parts."""
        return {}


def checked_scores(source: RewardSource, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " B"]:
    """The source's scores, or one line that names the prompt it failed on.

    Raises:
        UserError: the source raised, returned something else than one number per response, or a number that is
            not finite.
    """
    name = type(source).__name__
    with torch.no_grad():
        try:
            scores = source.score(prompts, responses)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"reward source {name} raised {type(error).__name__}: {error} "
                f"(first prompt of the batch: {prompts[0]!r})"
            ) from error
    if not isinstance(scores, Tensor) or scores.shape != (len(responses),):
        given = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise UserError(
            f"reward source {name} returned {given} for {len(responses)} responses, expected a tensor of shape "
            f"({len(responses)},) (first prompt of the batch: {prompts[0]!r})"
        )
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    bad = (~torch.isfinite(scores)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise UserError(
            f"reward source {name} returned {scores[row].item()} for the response {responses[row]!r} "
            f"to the prompt {prompts[row]!r}; expected a finite number"
        )
    return scores
