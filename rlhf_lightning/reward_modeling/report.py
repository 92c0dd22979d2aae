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
from rlhf_lightning.types import Feedback, PreferencePair, Rating

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

    def members(
        self, model: RewardModel, weights: ColumnWeights | None = None, *, centered: bool = True
    ) -> tuple[Float[Tensor, "M B K"], Bool[Tensor, "B K"]]:
        """The scores that each example judges, and a mask that is True for those that it has.

        Args:
            weights: weight of each output; None for that of the example's objective and annotator.
            centered: whether to subtract the centers; False for ratings, which have an absolute level.
        """
        columns = self.columns - model.centers[:, None] if centered else self.columns
        judged = [judged_scores(member, self.examples, weights or model.output_weights) for member in columns]
        return torch.stack([scores for scores, _ in judged]), judged[0][1]


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
    members, mask = heldout.members(model, centered=not ratings)
    scores = model.combine(members)
    gold = _gold(task, examples, like=scores)
    if ratings:
        result = rating_statistics(ratings, scores)
    else:
        ensemble = members if len(members) > 1 else None
        result = comparison_statistics(JudgedComparisons(examples, scores, ensemble, gold))
        result |= {"train": _train(model, train), "ceiling": ceiling}
    result["loss"] = loss.of(scores, mask, examples).double().mean().item()
    if gold is not None:  # with the mean over annotators, as the model will be used
        by_all, _ = heldout.members(model, lambda objective, _: model.output_weights(objective, None))
        result["correlation"] = gold_correlations(model.combine(by_all), gold, mask)
    spread = scores[mask].std().item() if mask.sum() > 1 else 0.0
    return result | {"biases": bias_statistics(task.probes(PROBES), model.score, spread=spread)}


def _train(model: RewardModel, train: Scored) -> dict[str, float]:
    """Accuracy and loss on training data."""
    members, _ = train.members(model)
    result = comparison_statistics(JudgedComparisons(train.examples, model.combine(members)))
    return {"accuracy": result["accuracy"], "loss": result["loss"]}


def known_ceiling(task: Task, train: Sequence[Feedback], heldout: Sequence[Feedback]) -> float | None:
    """`Task.ceiling` if all feedback is overall preference pairs; None otherwise."""
    examples = [*train, *heldout]
    pairs = [pair for pair in examples if isinstance(pair, PreferencePair) and pair.objective is None]
    return task.ceiling(pairs[: len(train)], pairs[len(train) :]) if len(pairs) == len(examples) else None


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
