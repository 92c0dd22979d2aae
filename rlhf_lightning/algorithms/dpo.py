"""Direct preference optimization: a policy from preference pairs, without a reward model and without sampling.

Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", eq. 7. The
policy itself is the reward model: r(x, y) = β log π(y|x) / π_ref(y|x), up to a term that the prompt alone decides
(eq. 5). Other losses on the same log ratios: with label smoothing, for preferences that are recorded the wrong way
round now and then, Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO"; and IPO, Azar et al.
2024, "A General Theoretical Paradigm to Understand Learning from Human Preferences", eq. 17.

The log ratios are those of whole responses, the end-of-sequence token included, in IPO too: that is its formula, a
ratio of the probabilities of y_w and y_l. (TRL divides them by the responses' lengths, on the authors' later advice, so
that β means the same at any length.)

Deviations from the paper: AdamW instead of RMSprop, with a schedule of its own; the reference is the policy at the
start, whichever model that is (the paper fine-tunes it on the chosen responses first where no supervised model exists).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.algorithms.parts.claims import OTHER, Variant
from rlhf_lightning.algorithms.parts.pairs import PAIR_SUMS, pair_metrics, pair_sums
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.ops.preference import ipo_loss, sigmoid_preference_loss
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.offline import Part
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import PreferencePair


@dataclass(frozen=True)
class PreferenceLoss(ABC):
    """Loss of a preference pair as a function of its two log ratios.

    Args:
        beta: β, weight of the KL to the reference in the objective that is solved: 0.05 to 0.5.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise UserError(f"loss.beta must be above 0, got {self.beta}")

    @abstractmethod
    def per_pair(
        self, chosen_log_ratio: Float[Tensor, " B"], rejected_log_ratio: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """The loss of each pair, from log π(y) − log π_ref(y) of its two responses."""


@dataclass(frozen=True)
class SigmoidLoss(PreferenceLoss):
    """−log σ of the difference of the rewards: the Bradley–Terry model.

    Args:
        label_smoothing: ε, share of the preferences that are taken to be recorded the wrong way round; 0.1 for noisy
            annotators (conservative DPO).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"loss.label_smoothing must be from 0 to below 0.5, got {self.label_smoothing}")

    def per_pair(
        self, chosen_log_ratio: Float[Tensor, " B"], rejected_log_ratio: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """−(1 − ε) log σ(βh) − ε log σ(−βh)."""
        return sigmoid_preference_loss(
            chosen_log_ratio, rejected_log_ratio, beta=self.beta, label_smoothing=self.label_smoothing
        )


@dataclass(frozen=True)
class IPOLoss(PreferenceLoss):
    """(h − 1 / (2β))²: a margin to reach, not to outgrow, so that certain preferences do not drive β h to infinity."""

    def per_pair(
        self, chosen_log_ratio: Float[Tensor, " B"], rejected_log_ratio: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """The squared distance of h, the difference of the log ratios, from 1 / (2β)."""
        return ipo_loss(chosen_log_ratio, rejected_log_ratio, beta=self.beta)


class DPO(FeedbackAlgorithm[PreferencePair]):
    """Raises the chosen response over the rejected one, measured from the policy at the start.

    Args:
        task: what the pairs are about, and where held-out prompts come from.
        backbone: builds the policy; it should start from a supervised model, which is also the reference.
        optimization: learning rate 1e-6 for pretrained models, 1e-4 for small ones from scratch.
        loss: ``SigmoidLoss`` or ``IPOLoss``, with β.
        options: held-out evaluation and further limits, see `FeedbackAlgorithm`.
    """

    group = "dpo"
    measured = PAIR_SUMS

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        loss: PreferenceLoss = SigmoidLoss(),
        **options: Any,
    ) -> None:
        super().__init__(task, backbone, optimization, **options)
        self.loss = loss

    def loss_sum(self, part: Part[PreferencePair]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, summed over pairs; rewards β log π/π_ref, their difference, and whether it is above 0."""
        chosen, rejected = self.log_ratios(part.encoded).chunk(2)
        loss = self.loss.per_pair(chosen, rejected).sum()
        return loss, pair_sums(self.loss.beta * chosen, self.loss.beta * rejected)

    def own_metrics(self) -> tuple[Metric, ...]:
        """Of the pairs, by the reward that the policy implies."""
        return pair_metrics("dpo", "β times the log ratio to the reference")

    variants = (
        Variant("DPO", OTHER),
        Variant("DPO, conservative", OTHER, {"loss": SigmoidLoss(label_smoothing=0.1)}),
        Variant("IPO", OTHER, {"loss": IPOLoss()}),
    )
