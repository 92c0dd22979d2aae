"""Unlikelihood: likelihood of the chosen response, less likelihood of the rejected one, without a reference.

A baseline of Rafailov et al. 2023, "Direct Preference Optimization", § 6 and appendix C.3, there with α from 0.05 to 1:

    L = −log π(y_w) + α log π(y_l), averaged over pairs, the default here: `LogLikelihood`.

The second term has no lower bound: trained for long, the policy spends everything on making rejected responses
impossible, and its text loses all meaning, as the authors report. A low learning rate and few steps keep it from that.

What the name comes from is another term, Welleck et al. 2020, "Neural Text Generation With Unlikelihood Training", § 5:
Σₜ −log(1 − π(y_l,ₜ)), of single tokens and bounded by 0: `TokenUnlikelihood`. There the tokens to avoid are repeated
ones; where the two responses of a pair share most of their tokens, as they do when both are samples of one policy, it
bites the shared ones, which a good policy is sure of: their probability falls to 1 / (1 + α).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.algorithms.parts.claims import OTHER, Variant
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.ops.losses import unlikelihood_loss
from rlhf_lightning.ops.masking import sequence_sum
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.offline import Part
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import PreferencePair


@dataclass(frozen=True)
class Avoidance(ABC):
    """Loss term of the rejected response."""

    @abstractmethod
    def per_response(self, logprobs: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """The loss of each response, from the log-probabilities of its tokens."""


@dataclass(frozen=True)
class LogLikelihood(Avoidance):
    """log π(y) of the whole response, which sinks without end."""

    def per_response(self, logprobs: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """Σₜ log π(yₜ)."""
        return sequence_sum(logprobs, action_mask)


@dataclass(frozen=True)
class TokenUnlikelihood(Avoidance):
    """The unlikelihood of single tokens, at least 0."""

    def per_response(self, logprobs: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """Σₜ −log(1 − π(yₜ))."""
        return sequence_sum(unlikelihood_loss(logprobs), action_mask)


class Unlikelihood(FeedbackAlgorithm[PreferencePair]):
    """Imitates the chosen responses and avoids the rejected ones.

    Args:
        task: what the pairs are about, and where held-out prompts come from.
        backbone: builds the policy; the model that it starts from is also the reference of ``eval/kl_ref_sequence``.
        optimization: learning rate 1e-6 for pretrained models, 1e-4 for small ones from scratch.
        alpha: α, weight of the rejected response, 0.05 to 1; below 1 what both responses share is still imitated.
        avoidance: ``LogLikelihood`` or ``TokenUnlikelihood``.
        options: held-out evaluation and further limits, see `FeedbackAlgorithm`.
    """

    group = "unlikelihood"
    measured = ("chosen_loss", "rejected_loss")

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        alpha: float = 0.1,
        avoidance: Avoidance = LogLikelihood(),
        **options: Any,
    ) -> None:
        super().__init__(task, backbone, optimization, **options)
        if not 0 <= alpha < math.inf:
            raise UserError(f"model.init_args.alpha must be 0 or more, got {alpha}")
        self.alpha = alpha
        self.avoidance = avoidance

    def loss_sum(self, part: Part[PreferencePair]) -> tuple[Tensor, dict[str, Tensor]]:
        """Both terms, summed over pairs; each also by itself, without α."""
        chosen, rejected = self.logprobs(self.policy, part.encoded).chunk(2)
        rejected_mask = part.encoded.action_mask.chunk(2)[1]
        chosen_loss = -chosen.sum()
        rejected_loss = self.avoidance.per_response(rejected, rejected_mask).sum()
        return chosen_loss + self.alpha * rejected_loss, {"chosen_loss": chosen_loss, "rejected_loss": rejected_loss}

    def own_metrics(self) -> tuple[Metric, ...]:
        """Both terms."""
        unit = "nats per reply"
        return (
            Metric("Loss of the chosen", unit, "unlikelihood/chosen_loss", "eval/chosen_loss"),
            Metric("Loss of the rejected", unit, "unlikelihood/rejected_loss", "eval/rejected_loss"),
        )

    variants = (Variant("unlikelihood", OTHER),)
