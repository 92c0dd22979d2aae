"""MyReward: scores responses, at first by their length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.types import Prompt


class MyReward(RewardSource):
    """0 for a response of so many words, and 1 less for each word more or fewer.

    Args:
        words: the best length.
    """

    # Every argument is a key of the configuration: data.init_args.reward.init_args.words.
    def __init__(self, words: int = 3) -> None:
        super().__init__()
        self.words = words
        # Several objectives: self.objectives = {"brief": 1.0, "polite": 0.5} (names and weights), and `score` returns a
        # column for each [B, O]. They are logged as objective/score_brief and eval/score_brief.

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """One number per response [B]; a prompt is a text, or a conversation as a list of messages."""
        return torch.tensor([float(-abs(len(response.split()) - self.words)) for response in responses])
