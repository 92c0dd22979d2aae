"""Numbers of an update: means over its minibatches, and the limit on how far it may move the policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from rlhf_lightning.errors import check_limits


def total(numbers: Iterable[Tensor]) -> Tensor:
    """The sum of some tensors of one shape, in their order."""
    return reduce(torch.add, numbers)


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over minibatches; empty without any."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in (rows[0] if rows else ())}


def summary(rows: Sequence[Mapping[str, float]], steps: int) -> dict[str, float]:
    """Of an update: means over minibatches, the largest ratio, and the number of steps that were taken."""
    row = means(rows) | {"policy/steps": steps}
    if "policy/ratio_max" in row:
        row["policy/ratio_max"] = max(one["policy/ratio_max"] for one in rows)
    if "rollout/logprob_gap" in row:
        # Before the first step: logprobs captured while decoding against those of the training forward.
        row["rollout/logprob_gap"] = rows[0]["rollout/logprob_gap"]
    return row


def check_stop_kl(stop_kl: float | None) -> None:
    """Raise `UserError` unless the limit on the KL to the old policy is None or above 0.

    Raises:
        UserError: it is not above 0.
    """
    fits = stop_kl is None or stop_kl > 0
    check_limits("model.init_args", {"stop_kl": (fits, "above 0 nats per action (null for never)", stop_kl)})
