"""SimPO: preference pairs without a reference, by the mean log-probability of a response's tokens.

Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", eq. 6:

    L = −log σ( β/|y_w| log π(y_w|x) − β/|y_l| log π(y_l|x) − γ ).

The reward of a response is β times the average log-probability of its tokens, which is also what guides generation, and
the chosen response has to win by a margin γ. Nothing keeps the policy near where it started but a low learning rate and
the bounded gradient of the loss; the distance is measured in evaluations (``eval/kl_ref_sequence``), not trained on.

Deviation from the paper: AdamW's schedule is the configuration's. The end-of-sequence token counts as a token.
"""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.algorithms.parts.claims import OTHER, Variant
from rlhf_lightning.algorithms.parts.pairs import PAIR_SUMS, pair_metrics, pair_sums
from rlhf_lightning.errors import check_limits
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.ops.masking import sequence_sum
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.offline import Part
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import PreferencePair


class SimPO(FeedbackAlgorithm[PreferencePair]):
    """Raises the mean log-probability of the chosen response over that of the rejected one, by a margin.

    Args:
        task: what the pairs are about, and where held-out prompts come from.
        backbone: builds the policy; the model that it starts from is also the reference of ``eval/kl_ref_sequence``.
        optimization: learning rate 3e-7 to 1e-6 for pretrained models, 2e-5 for small ones; a high one ruins policies.
        beta: β, the scale of rewards, 2 to 10.
        gamma: γ, the margin in units of the reward; the paper's settings are between a tenth and 0.8 of β.
        options: held-out evaluation and further limits, see `FeedbackAlgorithm`.
    """

    group = "simpo"
    measured = PAIR_SUMS

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        beta: float = 2.0,
        gamma: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(task, backbone, optimization, **options)
        limits = {
            "beta": (0 < beta < math.inf, "above 0", beta),
            "gamma": (0 <= gamma < math.inf, "0 or more", gamma),
        }
        check_limits("model.init_args", limits)
        self.beta, self.gamma = beta, gamma

    def loss_sum(self, part: Part[PreferencePair]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, summed over pairs; the two rewards, their difference, and whether it is above 0."""
        chosen, rejected = self._rewards(part).chunk(2)
        loss = -logsigmoid(chosen - rejected - self.gamma)
        return loss.sum(), pair_sums(chosen, rejected)

    def _rewards(self, part: Part[PreferencePair]) -> Float[Tensor, " 2B"]:
        """β times the mean log-probability of each response's tokens: the chosen ones, then the rejected ones."""
        mask = part.encoded.action_mask
        return self.beta * sequence_sum(self.logprobs(self.policy, part.encoded), mask) / mask.sum(-1)

    def own_metrics(self) -> tuple[Metric, ...]:
        """Of the pairs, by the reward that the policy implies."""
        return pair_metrics("simpo", "β times the mean log-probability of its tokens", own=True)

    variants = (Variant("SimPO", OTHER),)
