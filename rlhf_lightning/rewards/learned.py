"""A trained reward model as a reward source."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import check_counts
from rlhf_lightning.models.reward.combination import Combination
from rlhf_lightning.models.reward.reward_model import RewardModel
from rlhf_lightning.rewards.source import Judgement, RewardSource
from rlhf_lightning.types import Prompt


class LearnedReward(RewardSource):
    """Scores from a reward model or an ensemble; 0 is the mean score of the responses that it was evaluated on.

    Several objectives are summed with the weights of the model's training. An ensemble also has the measure
    ``disagreement``, the standard deviation of its members' scores.

    Args:
        path: export folder of a reward-modeling run, or folder or hub name of a sequence-classification model.
        combine: how members of an ensemble become one score: ``MeanScore``, ``WorstCase`` or ``UncertaintyWeighted``;
            None for the way stored with the model.
        annotator: whose score is used, for a model with one head per annotator; None for the mean over annotators.
        batch_size: number of responses scored at once.
    """

    def __init__(
        self, path: str, combine: Combination | None = None, annotator: str | None = None, batch_size: int = 256
    ) -> None:
        super().__init__()
        check_counts("reward.init_args", batch_size=batch_size)
        self.path = path
        self.annotator = annotator
        self.batch_size = batch_size
        self.model = RewardModel.from_pretrained(path, combine=combine).requires_grad_(False)
        self.objectives = self.model.objectives

    def reads(self) -> list[str]:
        """The folder of the model."""
        return [self.path]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " B"]:
        """The weighted scores."""
        return self.judge(prompts, responses).scores

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Judgement:
        """Scores, objectives and, for an ensemble, the disagreement."""
        members = self.model.member_scores(
            prompts, responses, annotator=self.annotator, batch_size=self.batch_size
        ).float()
        scores = self.model.combined(members)
        disagreement = self.model.weighted(members).std(0, correction=0)
        return Judgement(
            self.model.weighted(scores),
            dict(zip(self.objectives, torch.unbind(scores, -1), strict=True)) if self.objectives else {},
            {"disagreement": disagreement} if len(members) > 1 else {},
        )
