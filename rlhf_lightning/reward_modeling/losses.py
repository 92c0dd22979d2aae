"""Losses that a reward model is fitted with, each for certain kinds of feedback."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.errors import check_limits
from rlhf_lightning.ops.preference import (
    all_pairs_loss,
    bradley_terry_loss,
    plackett_luce_loss,
    regression_loss,
)
from rlhf_lightning.types import Feedback, PreferencePair, Ranking, Rating


@dataclass(frozen=True)
class RewardLoss(ABC):
    """A loss per example."""

    kinds: ClassVar[tuple[type[Feedback], ...]]
    """The types of feedback that the loss can use."""

    @abstractmethod
    def of(
        self, scores: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"], examples: Sequence[Feedback]
    ) -> Float[Tensor, " B"]:
        """Loss of each example.

        Args:
            scores: scores of each example's responses, best first; for a rating, the score in each rated objective in
                the order of its ``ratings``.
            mask: False where an example has fewer than K scores.
            examples: the feedback.
        """


@dataclass(frozen=True)
class BradleyTerry(RewardLoss):
    """−log σ(r_w − r_l − m), of pairs (Bradley and Terry 1952).

    Args:
        label_smoothing: assumed probability that a preference is reversed, 0 to 0.2; the loss then has its minimum at
            a finite difference of scores.
        margin: whether the m of a pair is its own margin, if it has one; otherwise 0.
    """

    kinds: ClassVar[tuple[type[Feedback], ...]] = (PreferencePair,)
    label_smoothing: float = 0.0
    margin: bool = True

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        fits = {"label_smoothing": (0 <= smoothing < 0.5, "at least 0 and below 0.5", smoothing)}
        check_limits("model.init_args.loss", fits)

    def of(
        self, scores: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"], examples: Sequence[Feedback]
    ) -> Float[Tensor, " B"]:
        """Loss of each pair."""
        margins = torch.zeros_like(scores[:, 0])
        if self.margin:
            margins = scores.new_tensor([getattr(example, "margin", None) or 0.0 for example in examples])
        return bradley_terry_loss(scores[:, 0], scores[:, 1], margin=margins, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class PlackettLuce(RewardLoss):
    """−log P(order) of rankings; the next response is chosen from those not yet ranked (Luce 1959, Plackett 1975)."""

    kinds: ClassVar[tuple[type[Feedback], ...]] = (PreferencePair, Ranking)

    def of(
        self, scores: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"], examples: Sequence[Feedback]
    ) -> Float[Tensor, " B"]:
        """Loss of each ranking."""
        return plackett_luce_loss(scores, mask)


@dataclass(frozen=True)
class AllPairs(RewardLoss):
    """The mean of −log σ(rᵢ − rⱼ) over the pairs of a ranking (Ouyang et al. 2022, eq. 1)."""

    kinds: ClassVar[tuple[type[Feedback], ...]] = (PreferencePair, Ranking)

    def of(
        self, scores: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"], examples: Sequence[Feedback]
    ) -> Float[Tensor, " B"]:
        """Loss of each ranking."""
        return all_pairs_loss(scores, mask)


@dataclass(frozen=True)
class Regression(RewardLoss):
    """(r − y)² of ratings, averaged over the rated objectives of a response."""

    kinds: ClassVar[tuple[type[Feedback], ...]] = (Rating,)

    def of(
        self, scores: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"], examples: Sequence[Feedback]
    ) -> Float[Tensor, " B"]:
        """Loss of each rating."""
        ratings = torch.zeros_like(scores)
        for row, example in enumerate(examples):
            assert isinstance(example, Rating)  # because of kinds
            given = tuple(example.ratings.values())
            ratings[row, : len(given)] = scores.new_tensor(given)
        return regression_loss(scores, ratings, mask)
