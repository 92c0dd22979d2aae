"""A task whose prompts are of the words of `tiny_models`, with a gold reward that every response has."""

import torch

from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.task import Task


class Words(RewardSource):
    """Number of different words: whole numbers, so that there are ties."""

    def score(self, prompts, responses):
        return torch.tensor([len(set(text.split())) for text in responses]).float()


class Animals(Task):
    provides = frozenset({"prompts"})

    def prompts(self, split):
        return [f"the {one} sees the {other}" for one in ("cat", "dog", "cow") for other in ("red", "blue", "green")]

    def gold(self):
        return Words()
