"""A task so small that expectations are finite sums: 15 responses to one prompt, with a table of rewards."""

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
from rlhf_lightning.tasks.feedback import as_labels
from rlhf_lightning.tasks.task import Split, Task, is_heldout
from rlhf_lightning.types import LabelledResponse, PreferencePair, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS = 256
"""Copies of the single prompt in each split: an evaluation answers each of them once."""


class Bandit(Task):
    """Up to three letters a or b; each of the 15 responses has a reward of its own.

    With ``TabularBackbone`` the policy is a table; `exact` computes the objective, its gradient and values exactly.

    Args:
        scale: standard deviation of the rewards.
        comparisons: how often each two responses are compared in the preference pairs.
        seed: decides the rewards.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"prompts", "gold", "reference", "groups", "preferences", "labels"})

    def __init__(self, scale: float = 1.0, comparisons: int = 20, seed: int = 0) -> None:
        if not 0 < scale < math.inf:
            raise UserError(f"scale is {scale}; expected a standard deviation above 0")
        if comparisons < 1:
            raise UserError(f"comparisons is {comparisons}; expected at least 1")
        rng = random.Random(f"bandit/rewards/{seed}")
        self._table = {response: rng.gauss(0, scale) for response in RESPONSES}
        self.comparisons = comparisons

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """The single prompt, many times."""
        is_heldout(split, "bandit")  # refuses a split of any other name
        return (PROMPT,) * PROMPTS

    def preferences(self, split: Split) -> Sequence[PreferencePair]:
        """Pairs with the frequencies of the Bradley–Terry model of the rewards; the same in both splits.

        Of the n comparisons of two responses, the first wins round(n σ(r₁ − r₂)), so its share differs from the
        probability by at most 1 / 2n. The list has n rounds of all 105 pairs, and this holds after every round.
        """
        is_heldout(split, "bandit")  # refuses a split of any other name
        return self._pairs

    def labels(self, split: Split) -> Sequence[LabelledResponse]:
        """Two labels of each pair: the chosen response is desirable, the rejected one is undesirable."""
        return tuple(label for pair in self.preferences(split) for label in as_labels(pair))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The end-of-sequence token, a and b."""
        return build_tokenizer()

    def gold(self) -> GoldTable:
        """The table of rewards."""
        return GoldTable(self._table)

    def scores(self) -> Float[Tensor, " 15"]:
        """The rewards in the order of `RESPONSES`."""
        return torch.tensor(list(self._table.values()))

    @cached_property
    def _pairs(self) -> Sequence[PreferencePair]:
        pairs = list(combinations(self._table.items(), 2))
        return tuple(
            PreferencePair(PROMPT, first, second)
            if _wins(round_number, r1 - r2)
            else PreferencePair(PROMPT, second, first)
            for round_number in range(self.comparisons)
            for (first, r1), (second, r2) in pairs
        )


def _wins(round_number: int, difference: float) -> bool:
    """Whether the first of two responses wins this round: after n rounds it has won round(n σ(difference))."""
    share = (1 + math.tanh(difference / 2)) / 2
    return math.floor((round_number + 1) * share + 0.5) > math.floor(round_number * share + 0.5)
