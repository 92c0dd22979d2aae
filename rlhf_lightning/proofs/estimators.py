"""Every policy optimizer as an estimator of ∇J, and what its expectation is said to be.

A new optimizer gets its rows in `ESTIMATORS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rlhf_lightning.algorithms.a2c import A2C
from rlhf_lightning.algorithms.base.on_policy import OnPolicy
from rlhf_lightning.algorithms.cpi import CPI
from rlhf_lightning.algorithms.grpo import GRPO, ResponseSum, TokenMean
from rlhf_lightning.algorithms.npg import NPG
from rlhf_lightning.algorithms.parts.baselines import BatchMean, MovingAverage, NoBaseline, ValueBaseline
from rlhf_lightning.algorithms.parts.kl_control import KLControl, KLLoss
from rlhf_lightning.algorithms.parts.surrogates import MeanRatio, Penalty, SequenceRatio
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.raft import RAFT
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.algorithms.rloo import RLOO
from rlhf_lightning.algorithms.trpo import TRPO
from rlhf_lightning.proofs.instance import Instance

Build = Callable[[Instance], OnPolicy]


@dataclass(frozen=True)
class Claim:
    """What E[g] is said to be.

    Args:
        text: in symbols.
        scale: c in E[g] = c ∇J, from the number of responses in a batch or group; None where E[g] points elsewhere.
    """

    text: str
    scale: Callable[[int], float] | None = None


GRADIENT = Claim("∇J", lambda _: 1.0)
SHORT_BY_BATCH = Claim("(1 − 1/B) ∇J", lambda size: 1 - 1 / size)
SHORT_BY_GROUP = Claim("(1 − 1/G) ∇J", lambda size: 1 - 1 / size)
BIASED = Claim("biased")
OTHER = Claim("not ∇J by design")


@dataclass(frozen=True)
class Estimator:
    """An optimizer in one of its variants.

    Args:
        name: what stands in the table.
        build: the algorithm for an instance.
        claim: its expectation.
        wrong_critic: whether it gets a critic that errs.
    """

    name: str
    build: Build
    claim: Claim
    wrong_critic: bool = False

    def module(self, instance: Instance) -> OnPolicy:
        """The algorithm, in its place."""
        return instance.place(self.build(instance), wrong_critic=self.wrong_critic)


def of(algorithm: type[OnPolicy], **settings: Any) -> Build:
    """An algorithm with these arguments and the instance's KL in the reward."""
    return lambda at: algorithm(*at.problem, **{"kl": at.kl, **settings})


def with_kl_loss(algorithm: type[OnPolicy], loss: KLLoss, **settings: Any) -> Build:
    """An algorithm with these arguments and the instance's KL in the loss."""
    return lambda at: algorithm(*at.problem, kl=KLControl(at.kl_coef, loss=loss), **settings)


def with_history(mean_return: float) -> MovingAverage:
    """A moving average that has seen a batch with this mean return."""
    average = MovingAverage()
    average.update(torch.tensor([mean_return]))
    return average


PLAIN: dict[str, Any] = {"whiten_advantages": False}
SUM: dict[str, Any] = {"normalize_std": False, "average": ResponseSum()}

ESTIMATORS = (
    Estimator("REINFORCE, whole return", of(REINFORCE, baseline=NoBaseline(), reward_to_go=False), GRADIENT),
    Estimator("REINFORCE, reward to go", of(REINFORCE, baseline=NoBaseline()), GRADIENT),
    Estimator("REINFORCE, batch mean", of(REINFORCE, baseline=BatchMean()), SHORT_BY_BATCH),
    Estimator("REINFORCE, moving average (1.0 so far)", of(REINFORCE, baseline=with_history(1.0)), GRADIENT),
    Estimator("REINFORCE, exact values", of(REINFORCE, baseline=ValueBaseline()), GRADIENT),
    Estimator("REINFORCE, wrong values", of(REINFORCE, baseline=ValueBaseline()), GRADIENT, wrong_critic=True),
    Estimator("REINFORCE, whitened", of(REINFORCE, baseline=NoBaseline(), whiten_advantages=True), BIASED),
    Estimator("A2C, λ = 0, exact values", of(A2C, lam=0.0), GRADIENT),
    Estimator("A2C, λ = 0, wrong values", of(A2C, lam=0.0), BIASED, wrong_critic=True),
    Estimator("A2C, λ = 1, wrong values", of(A2C, lam=1.0), GRADIENT, wrong_critic=True),
    Estimator("PPO, λ = 0.95, exact values", of(PPO, **PLAIN), GRADIENT),
    Estimator("PPO, λ = 0.95, wrong values", of(PPO, **PLAIN), BIASED, wrong_critic=True),
    Estimator("PPO, λ = 0.95, exact values, whitened", of(PPO), BIASED),
    Estimator("PPO, penalty", of(PPO, surrogate=Penalty(), **PLAIN), GRADIENT),
    Estimator("PPO, ratio of responses", of(PPO, ratio=SequenceRatio(), lam=1.0, **PLAIN), GRADIENT),
    Estimator("PPO, geometric mean ratio", of(PPO, ratio=MeanRatio(), lam=1.0, **PLAIN), BIASED),
    Estimator("TRPO, before F⁻¹ (whitened)", of(TRPO), BIASED),
    Estimator("NPG, before F⁻¹", of(NPG), GRADIENT),
    Estimator("RLOO", of(RLOO), GRADIENT),
    Estimator("GRPO, no std, response sum", of(GRPO, **SUM), SHORT_BY_GROUP),
    Estimator("GRPO, no std, response sum, k2 in the loss", with_kl_loss(GRPO, KLLoss("k2"), **SUM), BIASED),
    Estimator("GRPO, no std, response sum, k3 in the loss", with_kl_loss(GRPO, KLLoss("k3"), **SUM), BIASED),
    Estimator("GRPO, no std, response mean", of(GRPO, normalize_std=False), BIASED),
    Estimator("GRPO, no std, token mean", of(GRPO, normalize_std=False, average=TokenMean()), BIASED),
    Estimator("GRPO, std, response sum", of(GRPO, average=ResponseSum()), BIASED),
    Estimator("GRPO, std, geometric mean ratio", of(GRPO, ratio=MeanRatio()), BIASED),
    Estimator("GRPO, std, response mean, k3 in the loss", with_kl_loss(GRPO, KLLoss("k3")), BIASED),
    Estimator("RAFT", of(RAFT), OTHER),
    Estimator("CPI", of(CPI), OTHER),
)
"""What the table shows, in this order; the first step on a batch, with γ = 1."""
