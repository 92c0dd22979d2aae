"""Running sums: generated problems whose answers are verified by rule."""

from rlhf_lightning.tasks.arithmetic.task import Arithmetic

__all__ = ["Arithmetic"]
