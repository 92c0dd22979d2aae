"""Small groups of responses to the same prompt."""

from __future__ import annotations

from typing import Any

from training_helpers import rollouts

from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.task import Task


def group_rollouts(
    task: Task, reward: RewardSource | None = None, *, samples: int = 4, size: int = 8, **settings: Any
) -> RolloutDataModule:
    """Two prompts with four answers each."""
    return rollouts(task, reward, size=size, samples_per_prompt=samples, **settings)
