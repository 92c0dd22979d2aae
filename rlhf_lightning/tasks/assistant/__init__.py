"""A shop's assistant: generated prompts, demonstrations, annotators, and a true reward."""

from rlhf_lightning.tasks.assistant.task import Assistant

__all__ = ["Assistant"]
