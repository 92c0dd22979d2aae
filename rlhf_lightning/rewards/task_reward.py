"""The task's own gold reward, or one component of it, as a part of another reward."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.source import Judgement, RewardSource
from rlhf_lightning.types import Prompt


class TaskReward(RewardSource):
    """The reward that ``reward: null`` means, with a name, so that it can be a part of a `CompositeReward`.

    The data module passes the gold reward of its task to each `TaskReward` with `give_gold`.

    Args:
        objective: one of the objectives of the task's reward; None for their weighted sum.
    """

    def __init__(self, objective: str | None = None) -> None:
        super().__init__()
        self.objective = objective
        self.gold: RewardSource | None = None

    def receive(self, gold: RewardSource | None) -> None:
        """Set the gold reward.

        Raises:
            UserError: the task has no gold reward, or it does not have the objective.
        """
        if gold is None:
            raise UserError("reward TaskReward: the task has no reward of its own; expected one that has, or another")
        if self.objective is not None and self.objective not in gold.objectives:
            known = ", ".join(gold.objectives) or "a single score"
            raise UserError(
                f"reward TaskReward: objective {self.objective!r} is unknown; the task's reward has {known}"
            )
        self.gold = gold
        self.objectives = gold.objectives if self.objective is None else {}

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Judgement:
        """The judgement of the gold reward."""
        if self.gold is None:
            raise UserError("reward TaskReward has no task here; expected it in data.init_args.reward")
        judgement = self.gold.judge(prompts, responses)
        return judgement if self.objective is None else Judgement(judgement.objectives[self.objective])


def give_gold(source: RewardSource, gold: RewardSource | None) -> None:
    """Pass the gold reward to each `TaskReward` in a source."""
    for part in list(source.modules()):
        if isinstance(part, TaskReward):
            part.receive(gold)
