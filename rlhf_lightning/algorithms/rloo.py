"""REINFORCE with a leave-one-out baseline.

Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; for language models Ahmadian et al. 2024, "Back
to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs". A response y to a prompt x
is one action, and each of the k responses to a prompt is compared with the mean of the others:

    R = score − β Σₜ KLₜ,   Âᵢ = Rᵢ − (1/(k−1)) Σ_{j≠i} Rⱼ,   g = mean over responses of Âᵢ ∇ log π(yᵢ|x).

The baseline of a response does not depend on it, so E[g] is the gradient of the objective (with KL estimator k1).

Deviations from the papers: AdamW with gradient clipping. One step is taken on each batch, where Ahmadian et al. take
two; with more (``inner_epochs``, ``minibatch_size``) Âᵢ ∇ log π becomes the gradient of r Âᵢ with the ratio
r = π(yᵢ|x) / π_old(yᵢ|x), which is 1 at the first step and has no limit unless ``surrogate`` sets one.
"""

from __future__ import annotations

from typing import ClassVar

from rlhf_lightning.algorithms.base.on_policy import OnPolicy, Prepared, with_advantages
from rlhf_lightning.algorithms.parts.claims import UNBIASED, Variant
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.parts.metrics import CLIP_FRACTION, KL_OLD, STEPS
from rlhf_lightning.algorithms.parts.surrogates import SequenceRatio, Surrogate
from rlhf_lightning.algorithms.parts.updates import check_stop_kl
from rlhf_lightning.errors import UserError, check_counts
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.ops.groups import leave_one_out_advantages
from rlhf_lightning.ops.kl import k3
from rlhf_lightning.ops.masking import masked, selected, sequence_sum
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.minibatches import Loss, Minibatch
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import AdvantageBatch, ScoredRollout


class RLOO(OnPolicy[AdvantageBatch]):
    """Policy gradient of whole responses; the other responses to the same prompt are the baseline.

    Args:
        task: what is to be done.
        backbone: builds the policy.
        optimization: learning rate 1e-6 to 1e-5 for pretrained models, 1e-3 for small ones from scratch.
        kl: penalty on the KL to the reference, β 0.01 to 0.1.
        surrogate: for steps after the first on a batch: ``Surrogate`` has no limit, ``Clip`` one on the ratio of whole
            responses.
        inner_epochs: passes over each rollout, 1 or 2.
        minibatch_size: responses per step, across all devices; None for all of the rollout.
        stop_kl: an update ends when KL(π_old‖π) exceeds this, in nats per action; None never.
        temperature: of the policy, 0.7 to 1.
        eval_every: iterations between evaluations.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"groups"})
    ratio = SequenceRatio()

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        kl: KLControl = KLControl(),
        surrogate: Surrogate = Surrogate(),
        inner_epochs: int = 1,
        minibatch_size: int | None = None,
        stop_kl: float | None = None,
        temperature: float = 1.0,
        eval_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, kl, temperature=temperature, eval_every=eval_every)
        check_counts("model.init_args", inner_epochs=inner_epochs, minibatch_size=minibatch_size)
        check_stop_kl(stop_kl)
        if surrogate.kl_coef:
            raise UserError("model.init_args.surrogate Penalty belongs to PPO; expected Surrogate (no limit) or Clip")
        self.surrogate = surrogate
        self.inner_epochs = inner_epochs
        self.minibatch_size = minibatch_size
        self.stop_kl = stop_kl

    def prepare(self, scored: ScoredRollout) -> Prepared[AdvantageBatch]:
        """The return of each response, the price of the KL subtracted, less the mean of the others' to its prompt."""
        mask = scored.rollout.action_mask
        shaped = self.reference.shape(scored, self.policy)
        advantages = leave_one_out_advantages(sequence_sum(shaped.rewards, mask), group_size=scored.group_size)
        advantages = masked(advantages[:, None].expand(mask.shape), mask)
        return with_advantages(scored, shaped, advantages)

    def update(self, prepared: Prepared[AdvantageBatch]) -> dict[str, float]:
        """One step on the whole batch, or several on minibatches, ended early when the policy has moved far enough."""
        return self.take_steps(
            prepared.batch, epochs=self.inner_epochs, minibatch_size=self.minibatch_size, stop_kl=self.stop_kl
        )

    def loss(self, part: AdvantageBatch, minibatch: Minibatch[AdvantageBatch]) -> Loss:
        """−r Â of each response, with the gradient −Â ∇ log π(y|x) where the policy is still the old one.

        The KL to the reference is added where it is part of the loss.
        """
        mask = part.action_mask
        outputs = self.policy_outputs(part)
        log_ratio = self.ratio.log_ratio(outputs.logprobs, part.old_logprobs, mask)
        advantages = part.advantages[self.ratio.positions(mask)]
        surrogate = self.surrogate.loss(log_ratio, advantages)
        per_response = minibatch.tokens / minibatch.sequences  # sums are reported as means per action
        sums = {
            "policy/loss": surrogate.sum() * per_response,
            "policy/clip_fraction": self.surrogate.is_clipped(log_ratio, advantages).sum() * per_response,
            "policy/kl_old": selected(k3(part.old_logprobs, outputs.logprobs), mask).sum(),
            "objective/entropy": selected(outputs.entropy, mask).sum(),
        }
        gap = selected(outputs.logprobs - part.old_logprobs, mask).abs().max()
        largest = {"policy/ratio_max": log_ratio.exp().max(), "rollout/logprob_gap": gap}
        value = (surrogate.sum() + self.reference.losses(part, outputs).sum()) / minibatch.sequences
        return Loss(value, sums, largest)

    def metrics(self) -> tuple[Metric, ...]:
        """Also those of the update."""
        return (*super().metrics(), KL_OLD, STEPS, CLIP_FRACTION)

    variants = (Variant("RLOO", UNBIASED),)
