"""What is known of a reward model once it has scored feedback that it was not trained on."""

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
"""Of each kind of bias."""


@dataclass
class Scored:
    """Feedback with every column of every response.

    Args:
        columns: of each member, for all responses one after the other; not centered.
    """

    examples: Sequence[Feedback]
    columns: Float[Tensor, "M N C"]

    @property
    def mask(self) -> Bool[Tensor, "B K"]:
        """Which of the scores that the examples judge there are."""
        return judged_scores(self.columns[0, :, :1], self.examples, lambda *_: torch.ones(1))[1]

    def members(
        self, model: RewardModel, weights: ColumnWeights | None = None, *, centered: bool = True
    ) -> Float[Tensor, "M B K"]:
        """The scores that each example judges; ratings have a level of their own, so theirs are not to be centered."""
        columns = self.columns - model.centers[:, None] if centered else self.columns
        return torch.stack([judged_scores(one, self.examples, weights or model.column_weights)[0] for one in columns])


def evaluated(
    task: Task, model: RewardModel, loss: RewardLoss, heldout: Scored, train: Scored, *, ceiling: float | None
) -> dict[str, Any]:
    """The content of ``evaluation.json``, but for what concerns the annotators alone.

    Args:
        loss: what the model was fitted by.
        ceiling: the accuracy of whoever knows the true reward (see `known_ceiling`).
    """
    examples = heldout.examples
    rated = isinstance(examples[0], Rating)
    members = heldout.members(model, centered=not rated)
    scores = model.combine.of(members)
    gold, mask = _gold(task, examples, like=scores), heldout.mask
    if rated:
        found = rating_statistics(examples, scores)
    else:
        several = members if len(members) > 1 else None
        found = comparison_statistics(JudgedComparisons(examples, scores, several, gold))
        found |= {"train": _train(model, train), "ceiling": ceiling}
    found["loss"] = loss.of(scores, mask, examples).double().mean().item()
    if gold is not None:  # of what the model says for all annotators, as it will be used
        by_all = model.combine.of(heldout.members(model, lambda objective, _: model.column_weights(objective, None)))
        found["correlation"] = gold_correlations(by_all, gold, mask)
    spread = scores[mask].std().item() if mask.sum() > 1 else 0.0
    return found | {"biases": bias_statistics(task.probes(PROBES), model.score, spread=spread)}


def _train(model: RewardModel, train: Scored) -> dict[str, float]:
    """How well the model does on what it was fitted to."""
    found = comparison_statistics(JudgedComparisons(train.examples, model.combine.of(train.members(model))))
    return {"accuracy": found["accuracy"], "loss": found["loss"]}


def known_ceiling(task: Task, train: Sequence[Feedback], heldout: Sequence[Feedback]) -> float | None:
    """Of pairs that were judged all in all: what people attend to in one respect is another matter."""
    whole = all(isinstance(one, PreferencePair) and one.objective is None for one in [*train, *heldout])
    return task.ceiling(train, heldout) if whole else None


def _gold(task: Task, examples: Sequence[Feedback], like: Tensor) -> Float[Tensor, "B K"] | None:
    """The true reward of each response, in the objective that was judged where gold has it."""
    gold = task.gold()
    if gold is None:
        return None
    judgement = judged(gold, *flat_texts(examples))
    names = ["", *judgement.objectives]
    table = torch.stack([judgement.scores, *judgement.objectives.values()], dim=-1).to(like)

    def column(objective: str | None, _: str | None) -> Tensor:
        return torch.tensor([float(name == (objective if objective in names else "")) for name in names])

    return judged_scores(table, examples, column)[0]
