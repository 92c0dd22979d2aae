"""MyOptimizer: a policy optimizer, at first REINFORCE with a leave-one-out baseline.

Name here the paper and the equations that the code follows, and where it deviates from them.
"""

from __future__ import annotations

from typing import ClassVar

from rlhf_lightning.algorithms.base.on_policy import OnPolicy, Prepared, with_advantages
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.ops.groups import leave_one_out_advantages
from rlhf_lightning.ops.losses import policy_gradient_loss
from rlhf_lightning.ops.masking import masked, sequence_sum
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.minibatches import Loss, Minibatch
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import AdvantageBatch, ScoredRollout


class MyOptimizer(OnPolicy[AdvantageBatch]):
    """One gradient step on each rollout. `OnPolicy.training_step` shows the iteration that the steps below fill in.

    Args:
        task: where prompts come from.
        backbone: builds the policy.
        optimization: learning rate 1e-6 to 1e-5 for pretrained models, 1e-3 for small ones from scratch.
        kl: price of the KL to the reference, in the reward or in the loss.
        entropy_coef: weight of the entropy bonus.
        temperature: of the policy, 0.7 to 1.
        eval_every: iterations between evaluations.
    """

    # What the task must provide, such as frozenset({"groups"}) for several responses to the same prompt.
    requires: ClassVar[frozenset[str]] = frozenset({"prompts"})

    # Every argument is a key of the configuration: model.init_args.entropy_coef.
    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        kl: KLControl = KLControl(),
        entropy_coef: float = 0.0,
        temperature: float = 1.0,
        eval_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, kl, temperature=temperature, eval_every=eval_every)
        self.entropy_coef = entropy_coef

    # Step 1, prepare: from a scored rollout to what the update needs. No gradients are recorded here.
    def prepare(self, scored: ScoredRollout) -> Prepared[AdvantageBatch]:
        """The return of each response minus the mean return of the others."""
        mask = scored.rollout.action_mask  # [B T]: True where an action counts, False in the padding
        shaped = self.reference.shape(scored, self.policy)  # rewards [B T], less the price of the KL
        returns = sequence_sum(shaped.rewards, mask)  # [B]
        advantages = leave_one_out_advantages(returns, group_size=len(returns))
        advantages = masked(advantages[:, None].expand(mask.shape), mask)  # [B T]
        metrics = {**shaped.metrics, "rollout/return_deviation": returns.std().item()}
        return with_advantages(scored, shaped, advantages, metrics=metrics)

    # Step 2, update: improve the policy on the batch. For several epochs of shuffled minibatches, report
    # ``policy/kl_old`` in the loss and return self.take_steps(batch, epochs=4, minibatch_size=32, stop_kl=0.02).
    def update(self, prepared: Prepared[AdvantageBatch]) -> dict[str, float]:
        """One gradient step on the whole batch."""
        return self.take_one_step(prepared.batch)

    # Step 3, loss: of some rows of a minibatch. The convention of all optimizers: summed over the actions of a
    # trajectory, averaged over the trajectories of the whole minibatch. The expected gradient is then the policy
    # gradient, whatever the lengths, the size of the microbatches and the number of devices. Select actions with the
    # mask instead of multiplying by it: nothing in the padding may matter.
    def loss(self, part: AdvantageBatch, minibatch: Minibatch[AdvantageBatch]) -> Loss:
        """−Σₜ Âₜ log π(aₜ) of each trajectory, the entropy bonus, and the KL where it stands in the loss."""
        mask = part.action_mask
        outputs = self.policy_outputs(part)
        policy_loss = policy_gradient_loss(outputs.logprobs[mask], part.advantages[mask]).sum()
        entropy = outputs.entropy[mask].sum()
        kl = self.reference.losses(part, outputs).sum()
        value = (policy_loss + kl - self.entropy_coef * entropy) / minibatch.sequences
        # Sums over actions; they are reported as means per action.
        return Loss(value, {"policy/loss": policy_loss, "objective/entropy": entropy})

    # Step 4, metrics: how reports name what is logged. Anything else that is logged gets a panel with its plain name.
    def metrics(self) -> tuple[Metric, ...]:
        """Those of all optimizers, and the spread of the returns."""
        deviation = Metric("Spread of the returns", "standard deviation in a rollout", "rollout/return_deviation")
        return (*super().metrics(), deviation)
