"""A task whose responses can all be enumerated, and the exact answers to it."""

from rlhf_lightning.tasks.bandit.task import Bandit

__all__ = ["Bandit"]
