"""What losses report of preference pairs whose two responses each have a reward that the policy implies."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.records.metrics import Metric

PAIR_SUMS = ("accuracy", "margin", "chosen_reward", "rejected_reward")
"""Names of `pair_sums`."""


def pair_sums(chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"]) -> dict[str, Tensor]:
    """Over pairs: whether the chosen response has the higher reward, the difference of the rewards, and both."""
    chosen, rejected = chosen.detach(), rejected.detach()
    margin = chosen - rejected
    right = (margin.sign() + 1) / 2  # a tie is half right
    return {
        "accuracy": right.sum(),
        "margin": margin.sum(),
        "chosen_reward": chosen.sum(),
        "rejected_reward": rejected.sum(),
    }


def accuracy_metric(group: str, unit: str) -> Metric:
    """Of judgements that a coin would get right half the time."""
    return Metric("Accuracy", unit, f"{group}/accuracy", "eval/accuracy", mark=0.5, mark_name="coin toss")


def pair_metrics(group: str, unit: str, *, own: bool = False) -> tuple[Metric, ...]:
    """How figures show them.

    Args:
        group: of the algorithm.
        unit: of the rewards.
        own: whether rewards mean the same only among runs of one algorithm.
    """
    return (
        accuracy_metric(group, "share of pairs ordered rightly"),
        Metric("Margin", "reward of chosen − rejected", f"{group}/margin", "eval/margin", own=own),
        Metric("Reward of the chosen", unit, f"{group}/chosen_reward", "eval/chosen_reward", own=own),
        Metric("Reward of the rejected", unit, f"{group}/rejected_reward", "eval/rejected_reward", own=own),
    )
