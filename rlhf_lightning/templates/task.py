"""MyTask: prompts, demonstrations and a true reward, at first to say words in reverse."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.task import Split, Task
from rlhf_lightning.tasks.word_tokenizer import build_word_tokenizer
from rlhf_lightning.types import Demonstration, Prompt


class MyTask(Task):
    """Asked for ``reverse red blue``, a model answers ``blue red``.

    Args:
        length: number of words to reverse.
    """

    # What the methods below offer; algorithms name what they need of it. "reference" allows a price on the KL to the
    # policy at the start, "groups" several responses to the same prompt. Further offers: "preferences", "rankings",
    # "ratings", "labels" (feedback that the task comes with) and "annotators" (who judge any responses); see `Task`.
    provides: ClassVar[frozenset[str]] = frozenset({"prompts", "demonstrations", "gold", "reference", "groups"})

    words = ("red", "blue", "green", "black", "white")

    # Every argument is a key of the configuration: task.init_args.length.
    def __init__(self, length: int = 3) -> None:
        self.length = length

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Every fifth prompt is held out; both splits are the same in every process."""
        texts = [" ".join(words) for words in product(self.words, repeat=self.length)]
        chosen = [text for number, text in enumerate(texts) if (number % 5 == 0) == (split == "heldout")]
        return [[{"role": "user", "content": f"reverse {text}"}] for text in chosen]

    def demonstrations(self, split: Split) -> Sequence[Demonstration]:
        """The right answer to each prompt, for supervised training."""
        return [Demonstration(prompt, answer(prompt)) for prompt in self.prompts(split)]

    def gold(self) -> RewardSource:
        """The true reward, for measuring; it is also trained on unless the configuration names another one."""
        return MyTaskGold()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of models that are built from scratch; a checkpoint brings its own."""
        return build_word_tokenizer(["reverse", *self.words])


class MyTaskGold(RewardSource):
    """The share of the right words that stand in their places."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """One number per response, from 0 to 1 [B]."""
        pairs = zip(map(answer, prompts), responses, strict=True)
        return torch.tensor([_share(right.split(), response.split()) for right, response in pairs])


def answer(prompt: Prompt) -> str:
    """The right answer to a prompt, which is a conversation, or a text that was typed in."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return " ".join(reversed(text.removeprefix("reverse").split()))


def _share(right: Sequence[str], words: Sequence[str]) -> float:
    return sum(word == other for word, other in zip(right, words, strict=False)) / max(len(right), len(words), 1)
