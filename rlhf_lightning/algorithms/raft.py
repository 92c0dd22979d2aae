"""Reward-ranked fine-tuning: imitate the best of several own responses.

Dong et al. 2023, "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment", algorithm 1: draw k
responses to each prompt, keep the one with the highest reward, maximize the likelihood of those that were kept, repeat.
The reward is the score less β times the KL to the reference, the paper's variant with a penalty.

What was rejected teaches nothing here, and of the rewards only their order counts. So the gradient is not that of the
expected reward: it is a policy gradient with a weight of 1 for the best response to a prompt and 0 for the others.

Deviations from the paper: the best are those of each prompt, never of the whole batch (its local ranking, not the
global one); the loss is summed over a response's tokens and averaged over responses; AdamW and its schedule run through
the iterations, where the paper fine-tunes anew in each.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from rlhf_lightning.algorithms.base.on_policy import OnPolicy, Prepared
from rlhf_lightning.algorithms.parts.claims import OTHER, Variant
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.parts.metrics import KL_OLD, STEPS
from rlhf_lightning.algorithms.parts.updates import check_stop_kl
from rlhf_lightning.distributed import world_size
from rlhf_lightning.errors import UserError, check_counts
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.ops.groups import best_of_group
from rlhf_lightning.ops.masking import selected, sequence_sum
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.minibatches import Loss, Minibatch
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import ScoredRollout, TrainBatch


class RAFT(OnPolicy[TrainBatch]):
    """Fine-tuning on the best of the responses to each prompt.

    Args:
        task: what is to be done.
        backbone: builds the policy.
        optimization: learning rate 1e-5 for pretrained models, 1e-4 or more for small ones from scratch.
        kl: penalty on the KL to the reference in the reward that ranks, β 0 to 0.1. In the loss it is weighed against
            the likelihood of a response, and only ``exact`` can be: the best responses are no sample of the policy.
        inner_epochs: passes over the responses that were kept, 1 to 4.
        minibatch_size: responses per step, across all devices; None for all that were kept.
        stop_kl: an update ends when, after an epoch, KL(π_old‖π) exceeds this, in nats per action; None never.
        temperature: of the policy, 0.7 to 1.
        eval_every: iterations between evaluations.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"groups"})

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        kl: KLControl = KLControl(),
        inner_epochs: int = 2,
        minibatch_size: int | None = None,
        stop_kl: float | None = None,
        temperature: float = 1.0,
        eval_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, kl, temperature=temperature, eval_every=eval_every)
        check_counts("model.init_args", inner_epochs=inner_epochs, minibatch_size=minibatch_size)
        check_stop_kl(stop_kl)
        loss = kl.loss
        if loss is not None and not loss.needs_full_vocabulary:
            raise UserError(
                f"model.init_args.kl.loss.estimator {loss.estimator} looks at actions that the policy has drawn, and "
                "RAFT keeps the best of them; expected exact"
            )
        self.inner_epochs = inner_epochs
        self.minibatch_size = minibatch_size
        self.stop_kl = stop_kl

    def setup(self, stage: str) -> None:
        """Check that the devices can share the responses that are kept."""
        super().setup(stage)
        size, samples = self.rollouts.rollout_batch_size, self.rollouts.samples_per_prompt
        if self.fitting and size // samples % world_size():
            raise UserError(
                f"data.init_args.rollout_batch_size {size} with samples_per_prompt {samples} leaves "
                f"{size // samples} responses to train on, which {world_size()} devices do not divide"
            )

    def prepare(self, scored: ScoredRollout) -> Prepared[TrainBatch]:
        """Keep each prompt's best response, by its reward less the price of the KL; the first one on a tie.

        Where the policy is still the reference, the KL is a rounding error of log-probabilities, which must not choose.
        """
        shaped = self.reference.shape(scored, self.policy)
        mask = scored.rollout.action_mask
        rewards = sequence_sum(shaped.rewards, mask)
        added = rewards.abs() + self.reference.kl.coef * sequence_sum(scored.rollout.old_logprobs.abs(), mask)
        rounding = 16 * torch.finfo(added.dtype).eps * added.max()
        best = best_of_group(rewards, group_size=scored.group_size, tolerance=rounding)
        kept = {"objective/score_kept": scored.scores[best].double().mean().item()}
        batch = TrainBatch.of(scored.rollout.select(best))
        return Prepared(batch, scored.rollout, shaped.kl, {**shaped.metrics, **kept})

    def update(self, prepared: Prepared[TrainBatch]) -> dict[str, float]:
        """Some epochs of minibatches of the responses that were kept, fewer when the policy has moved far enough.

        The KL is measured over all responses: the best are no sample of the old policy.
        """

        def kl_old() -> float:
            return self.kl_to_old(prepared.rollout)

        row = self.take_steps(
            prepared.batch,
            epochs=self.inner_epochs,
            minibatch_size=self.minibatch_size,
            stop_kl=self.stop_kl,
            kl_old=kl_old,
        )
        return row | {"policy/kl_old": kl_old()}

    def loss(self, part: TrainBatch, minibatch: Minibatch[TrainBatch]) -> Loss:
        """Negative log-likelihood of each response, and the KL to the reference where it is part of the loss."""
        mask = part.action_mask
        outputs = self.policy_outputs(part)
        nats = -selected(outputs.logprobs, mask).sum()
        sums = {"policy/loss": nats, "objective/entropy": selected(outputs.entropy, mask).sum()}
        return Loss((nats + self.reference.losses(part, outputs).sum()) / minibatch.sequences, sums)

    def metrics(self) -> tuple[Metric, ...]:
        """Also those of the responses that are kept."""
        kept = Metric("Score of the best", "that are kept of each group", "objective/score_kept", role="score")
        return (*super().metrics(), kept, KL_OLD, STEPS)

    variants = (Variant("RAFT", OTHER),)
