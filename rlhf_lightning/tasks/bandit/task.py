"""A task so small that expectations are sums: 15 responses to one prompt, with a table of rewards."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.bandit.gold import GoldTable
from rlhf_lightning.tasks.bandit.tree import PROMPT, RESPONSES, build_tokenizer
from rlhf_lightning.tasks.task import Split, Task
from rlhf_lightning.types import PreferencePair, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS = 256
"""Times that the one prompt stands in each split: an evaluation answers each of them once."""


class Bandit(Task):
    """Up to three letters a or b; each of the 15 responses has a reward of its own.

    With ``TabularBackbone`` the policy is a table. Objective, gradient, Fisher matrix and optimum are known exactly.

    Args:
        scale: standard deviation of the rewards.
        comparisons: how often any two responses are compared in the preference pairs.
        seed: the rewards.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"prompts", "gold", "reference", "groups", "preferences"})

    def __init__(self, scale: float = 1.0, comparisons: int = 20, seed: int = 0) -> None:
        if not 0 < scale < math.inf:
            raise UserError(f"scale is {scale}; expected a standard deviation above 0")
        if comparisons < 1:
            raise UserError(f"comparisons is {comparisons}; expected at least 1")
        rng = random.Random(f"bandit/rewards/{seed}")
        self._table = {response: rng.gauss(0, scale) for response in RESPONSES}
        self.comparisons = comparisons

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """The one prompt, many times."""
        _check_split(split)
        return (PROMPT,) * PROMPTS

    def preferences(self, split: Split) -> Sequence[PreferencePair]:
        """Pairs as frequent as the Bradley–Terry model of the rewards has them; the same in both splits.

        Of the n comparisons of two responses, the first wins round(n σ(r₁ − r₂)): a share that is off by at most
        1 / 2n. They stand in n turns of all 105 pairs, and after each turn the shares are off by at most 1 / 2 turns.
        """
        _check_split(split)
        return self._pairs

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The end-of-sequence token, a and b."""
        return build_tokenizer()

    def gold(self) -> GoldTable:
        """The table of rewards."""
        return GoldTable(self._table)

    def scores(self) -> Float[Tensor, " 15"]:
        """The same rewards by the responses' numbers."""
        return torch.tensor(list(self._table.values()))

    @cached_property
    def _pairs(self) -> Sequence[PreferencePair]:
        pairs = list(combinations(self._table.items(), 2))
        return tuple(
            PreferencePair(PROMPT, *((first, second) if _wins(turn, r1 - r2) else (second, first)))
            for turn in range(self.comparisons)
            for (first, r1), (second, r2) in pairs
        )


def _wins(turn: int, difference: float) -> bool:
    """Whether the first of two wins this turn: after n turns it has won round(n σ(difference)) of them."""
    share = (1 + math.tanh(difference / 2)) / 2
    return math.floor((turn + 1) * share + 0.5) > math.floor(turn * share + 0.5)


def _check_split(split: str) -> None:
    if split not in ("train", "heldout"):
        raise UserError(f"the splits of the bandit task are 'train' and 'heldout', got {split!r}")
