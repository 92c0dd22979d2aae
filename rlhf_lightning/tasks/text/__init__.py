"""The task for the user's own prompts, demonstrations and preference pairs."""

from rlhf_lightning.tasks.text.task import TextTask

__all__ = ["TextTask"]
