"""Policy-gradient losses as a user would write them in one file: one that is right, and some with a known mistake."""

from typing import ClassVar

from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.algorithms.base.on_policy import OnPolicy, Prepared
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.data.preferences import RankingDataModule
from rlhf_lightning.ops.groups import leave_one_out_advantages
from rlhf_lightning.ops.masking import masked, sequence_sum, whiten
from rlhf_lightning.training.minibatches import Loss
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import AdvantageBatch


class Right(OnPolicy[AdvantageBatch]):
    """Leave-one-out advantages, summed over tokens and averaged over responses."""

    requires: ClassVar[frozenset[str]] = frozenset({"groups"})

    def __init__(
        self, task, backbone, optimization: Optimization = Optimization(), kl: KLControl = KLControl(), eval_every=10
    ):
        super().__init__(task, backbone, optimization, kl, temperature=1.0, eval_every=eval_every)

    def prepare(self, scored):
        rollout, mask = scored.rollout, scored.rollout.action_mask
        shaped = self.reference.shape(scored, self.policy)
        returns = leave_one_out_advantages(sequence_sum(shaped.rewards, mask), group_size=scored.group_size)
        advantages = self.normalized(masked(returns[:, None].expand(mask.shape), mask), mask)
        return Prepared(AdvantageBatch.of(rollout, advantages=advantages), rollout, shaped.kl, shaped.metrics)

    def normalized(self, advantages, mask):
        return advantages

    def update(self, prepared):
        return self.take_one_step(prepared.batch)

    def loss(self, part, minibatch):
        mask = part.action_mask
        losses = -(self.policy_outputs(part).logprobs * part.advantages)[mask]
        return Loss((losses * self.weights(part, minibatch)).sum(), {"policy/loss": losses.sum()})

    def weights(self, part, minibatch):
        return 1 / minibatch.sequences


class OverMicrobatchTokens(Right):
    def weights(self, part, minibatch):
        return 1 / part.action_mask.sum()


class OverTokens(Right):
    def weights(self, part, minibatch):
        return 1 / minibatch.tokens


class OverLengths(Right):
    def weights(self, part, minibatch):
        mask = part.action_mask
        return 1 / mask.sum(-1, keepdim=True).expand(mask.shape)[mask] / minibatch.sequences


class Whitened(Right):
    def normalized(self, advantages, mask):
        return whiten(advantages, mask, eps=1e-8)


class Imitation(FeedbackAlgorithm):
    """Likelihood of the chosen responses, in one method."""

    group = "imitation"

    def __init__(self, task, backbone, optimization: Optimization = Optimization()):
        options = {"reward": None, "max_response_tokens": None, "max_new_tokens": 3, "eval_prompts": 7, "log_every": 1}
        super().__init__(task, backbone, optimization, **options)

    def loss_sum(self, part):
        chosen, _ = self.logprobs(self.policy, part.encoded).chunk(2)
        return -chosen.sum(), {}


class OfRankings(Imitation):
    """Learns from feedback that the enumerated task does not have."""

    data_class = RankingDataModule
