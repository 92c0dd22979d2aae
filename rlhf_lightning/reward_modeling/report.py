"""Evaluating a reward model on held-out feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.models.reward.reward_model import RewardModel
from rlhf_lightning.reward_modeling.evaluation import (
    JudgedComparisons,
    bias_statistics,
    comparison_statistics,
    gold_correlations,
    rating_statistics,
)
from rlhf_lightning.reward_modeling.losses import RewardLoss
from rlhf_lightning.reward_modeling.scores import ColumnWeights, flat_texts, judged_scores
from rlhf_lightning.rewards.source import judged
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import Feedback, PreferencePair, Ranking, Rating

PROBES = 128
"""Largest number of probes of each kind of bias."""


@dataclass
class Scored:
    """Feedback with all outputs of the reward networks.

    Args:
        columns: outputs of each member for the responses of all examples in order; not centered.
    """

    examples: Sequence[Feedback]
    columns: Float[Tensor, "M N C"]

    @property
    def mask(self) -> Bool[Tensor, "B K"]:
        """True for the scores that an example has."""
        return judged_scores(self.columns[0, :, :1], self.examples, lambda *_: torch.ones(1))[1]

    def members(
        self, model: RewardModel, weights: ColumnWeights | None = None, *, centered: bool = True
    ) -> Float[Tensor, "M B K"]:
        """The scores that each example judges.

        Args:
            weights: weight of each output; None for that of the example's objective and annotator.
            centered: whether to subtract the centers; False for ratings, which have an absolute level.
        """
        columns = self.columns - model.centers[:, None] if centered else self.columns
        return torch.stack(
            [judged_scores(member, self.examples, weights or model.output_weights)[0] for member in columns]
        )


def evaluated(
    task: Task, model: RewardModel, loss: RewardLoss, heldout: Scored, train: Scored, *, ceiling: float | None
) -> dict[str, Any]:
    """The content of ``evaluation.json``, without the agreement between annotators.

    Args:
        loss: the loss that the model was fitted with.
        ceiling: accuracy of a model that knows the true reward; see `known_ceiling`.
    """
    examples = heldout.examples
    ratings = [example for example in examples if isinstance(example, Rating)]
    members = heldout.members(model, centered=not ratings)
    scores = model.combine(members)
    gold, mask = _gold(task, examples, like=scores), heldout.mask
    if ratings:
        result = rating_statistics(ratings, scores)
    else:
        ensemble = members if len(members) > 1 else None
        result = comparison_statistics(JudgedComparisons(_comparisons(examples), scores, ensemble, gold))
        result |= {"train": _train(model, train), "ceiling": ceiling}
    result["loss"] = loss.of(scores, mask, examples).double().mean().item()
    if gold is not None:  # with the mean over annotators, as the model will be used
        by_all = model.combine(heldout.members(model, lambda objective, _: model.output_weights(objective, None)))
        result["correlation"] = gold_correlations(by_all, gold, mask)
    spread = scores[mask].std().item() if mask.sum() > 1 else 0.0
    return result | {"biases": bias_statistics(task.probes(PROBES), model.score, spread=spread)}


def _train(model: RewardModel, train: Scored) -> dict[str, float]:
    """Accuracy and loss on training data."""
    scores = model.combine(train.members(model))
    result = comparison_statistics(JudgedComparisons(_comparisons(train.examples), scores))
    return {"accuracy": result["accuracy"], "loss": result["loss"]}


def _comparisons(examples: Sequence[Feedback]) -> list[PreferencePair | Ranking]:
    return [example for example in examples if isinstance(example, PreferencePair | Ranking)]


def known_ceiling(task: Task, train: Sequence[Feedback], heldout: Sequence[Feedback]) -> float | None:
    """`Task.ceiling` if all feedback is overall preference pairs; None otherwise."""
    train_pairs, heldout_pairs = (
        [pair for pair in examples if isinstance(pair, PreferencePair) and pair.objective is None]
        for examples in (train, heldout)
    )
    if len(train_pairs) < len(train) or len(heldout_pairs) < len(heldout):
        return None
    return task.ceiling(train_pairs, heldout_pairs)


def _gold(task: Task, examples: Sequence[Feedback], like: Tensor) -> Float[Tensor, "B K"] | None:
    """The true reward of each response: of the objective that was judged if gold has it, otherwise the total."""
    gold = task.gold()
    if gold is None:
        return None
    judgement = judged(gold, *flat_texts(examples))
    names = ["", *judgement.objectives]
    table = torch.stack([judgement.scores, *judgement.objectives.values()], dim=-1).to(like)

    def column(objective: str | None, _: str | None) -> Tensor:
        return torch.tensor([float(name == (objective if objective in names else "")) for name in names])

    return judged_scores(table, examples, column)[0]
