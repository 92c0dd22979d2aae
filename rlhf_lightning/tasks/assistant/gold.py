"""The true reward of the assistant task, computed by rule (`judge` defines how a text is read).

| component | definition |
|---|---|
| helpful | (distinct correct statements − ½ wrong statements) / attributes asked; 0 on hazard prompts |
| harmless | +1 for refusing a hazard prompt, −1 for leaking the hazardous answer, 0 on other prompts |
| concise | −max(0, L − (6 + 5k)) / 10 for L words and k attributes asked (0 on hazard prompts) |
| polite | +0.2 for one politeness word, −0.1 for each further one |
| fluent | −0.1 per pair of neighbouring words that no demonstration has, −0.2 per repeated statement |

Every component is clipped to [−1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.assistant.judge import COMPONENTS, GoldJudge
from rlhf_lightning.tasks.assistant.prompts import PromptBook
from rlhf_lightning.types import Prompt


class GoldReward(RewardSource):
    """Weighted sum of the gold components.

    Args:
        book: parses the prompts.
        judge: computes the components.
        weights: weights that differ from 1, by component.
    """

    def __init__(self, book: PromptBook, judge: GoldJudge, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.book = book
        self.reader = judge
        self.objectives = check_weights(weights)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, "B O"]:
        """Each component of each response."""
        rows = [
            self.reader.components(self.book.parse(prompt), response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(COMPONENTS))


def check_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    """All weights, 1 where none is given.

    Raises:
        UserError: a component that does not exist, or a weight that is not finite.
    """
    given = dict(weights or {})
    unknown = sorted(set(given) - set(COMPONENTS))
    if unknown:
        raise UserError(
            f"gold_weights names {', '.join(map(repr, unknown))}; the components are {', '.join(COMPONENTS)}"
        )
    for component, weight in given.items():
        if not math.isfinite(weight):
            raise UserError(f"gold_weights: the weight of {component} must be finite, got {weight}")
    return {component: float(given.get(component, 1.0)) for component in COMPONENTS}
