"""A task of random words: what is measured does not depend on what they say."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.task import Split, Task
from rlhf_lightning.tasks.word_tokenizer import SPECIAL_TOKENS
from rlhf_lightning.types import PreferencePair, Prompt


def distinct_words(responses: Sequence[str]) -> list[float]:
    """A reward that costs nothing: the share of different words in each response."""
    return [len(set(words)) / max(1, len(words)) for words in map(str.split, responses)]


class DistinctWords(RewardSource):
    """`distinct_words` as a source of rewards."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> torch.Tensor:
        """One number per response."""
        return torch.tensor(distinct_words(responses))


class RandomWords(Task):
    """Prompts of 12 to 24 random words, and pairs of responses of 20 to 120; training and evaluation get the same.

    Args:
        vocabulary: number of tokens, of which some are special.
    """

    provides = frozenset({"prompts", "groups", "preferences"})

    def __init__(self, vocabulary: int) -> None:
        draw = random.Random(1)
        words = range(vocabulary - len(SPECIAL_TOKENS))

        def text(low: int, high: int) -> str:
            return " ".join(f"w{word}" for word in draw.choices(words, k=draw.randint(low, high)))

        self.texts = [text(12, 24) for _ in range(512)]
        self.pairs = [PreferencePair(text(12, 24), text(20, 120), text(20, 120)) for _ in range(512)]

    def prompts(self, split: Split) -> list[str]:
        """512 for training, 2 of them for evaluation."""
        return self.texts if split == "train" else self.texts[:2]

    def preferences(self, split: Split) -> list[PreferencePair]:
        """512 for training, 2 of them for evaluation."""
        return self.pairs if split == "train" else self.pairs[:2]

    def gold(self) -> RewardSource:
        """The share of different words."""
        return DistinctWords()
