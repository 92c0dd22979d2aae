"""`PenalizedModule`: a policy, its frozen reference, and the price of leaving it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.algorithms.parts.kl_control import KLControl, estimated
from rlhf_lightning.algorithms.parts.reference import leave_out_reference, put_reference_back
from rlhf_lightning.distributed import Batch, over_own_rows
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.language.text import plain_text
from rlhf_lightning.models.policy import Policy, PolicyOutputs
from rlhf_lightning.models.state import fingerprint, frozen_copy
from rlhf_lightning.ops.masking import sequence_sum
from rlhf_lightning.ops.rewards import kl_shaped_rewards
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.module import SyncedModule, on_cpu
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import ScoredRollout, TrainBatch, Trajectories


class PenalizedModule(SyncedModule):
    """A policy that pays for the KL to its reference, in the reward or in the loss.

    Args:
        kl: the price; tasks without a reference (environments) take a coefficient of 0.
        temperature: of the policy, 0.7 to 1.
    """

    def __init__(
        self, task: Task, backbone: Backbone, optimization: Optimization, kl: KLControl, temperature: float
    ) -> None:
        super().__init__(task, backbone, optimization)
        self.kl = copy.deepcopy(kl)
        self.has_reference = "prompts" in task.provides
        if self.kl.coef and not self.has_reference:
            raise UserError(
                f"model.init_args.kl.coef is {self.kl.coef}, and task {type(task).__name__} has no reference policy "
                "to stay close to; expected 0"
            )
        if self.kl.reward_coef and self.kl.needs_full_vocabulary:
            raise UserError(
                "model.init_args.kl.estimator exact is the same for every action in a state, so in a reward it cannot "
                "hold the policy back; expected k1 (unbiased), k2 or k3, or a kl.loss"
            )
        self.temperature = temperature
        self.policy: Policy
        self.reference: Policy | None = None
        self.reference_hash: str | None = None
        self.row: dict[str, float] = {}

    # -- networks ----------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build policy and reference, once."""
        if hasattr(self, "policy"):
            return
        with on_cpu():
            self.policy = self.backbone.policy(self.task.interface, temperature=self.temperature)
        self.reference = frozen_copy(self.policy) if self.has_reference else None
        # now: a precision plugin may convert the weights later
        self.reference_hash = fingerprint(self.reference) if self.reference is not None else None

    def networks(self) -> dict[str, nn.Module]:
        """The policy."""
        return {"policy": self.policy}

    def export(self, path: Path) -> None:
        """The policy."""
        self.policy.save(path)

    # -- the price in the reward -------------------------------------------------------------------------------

    def over_own_rows(
        self, evaluate: Callable[[Batch], tuple[Tensor, ...]], batch: Batch
    ) -> tuple[Float[Tensor, "B T"], ...]:
        """Evaluate a batch in microbatches, each rank its own rows, and give every rank the whole result."""
        return over_own_rows(evaluate, batch, microbatch_size=self.optimization.microbatch_size)

    def shaped_rewards(self, scored: ScoredRollout) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        """The task's rewards, less the price of the KL to the reference where that is paid in the reward; reports both.

        Returns:
            the rewards; log-probabilities under the reference where the loss needs them, which `TrainBatch` takes.
        """
        rollout = scored.rollout
        mask = rollout.action_mask
        if self.reference is None:
            return torch.where(mask, scored.rewards, torch.zeros_like(scored.rewards)), None
        kl, ref_logprobs = self.over_own_rows(self._against_reference, rollout)
        kl = torch.where(mask, kl, torch.zeros_like(kl))
        self.check_rows("logprobs", rollout.old_logprobs + kl, scored)
        rewards = kl_shaped_rewards(scored.rewards, kl, mask, kl_coef=self.kl.reward_coef)
        self.row |= {
            "objective/reward": sequence_sum(rewards, mask).mean().item(),
            "objective/kl_ref_sequence": sequence_sum(kl, mask).mean().item(),
            "objective/kl_ref_token": (kl.sum() / mask.sum()).item(),
            "kl_control/coef": self.kl.coef,
        }
        return rewards, None if self.kl.active_loss is None else ref_logprobs

    def _against_reference(self, part: Trajectories) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """KL to the reference at each action, by the estimator of ``kl``, and log-probabilities under the reference."""
        inputs = part.context, part.actions, part.action_mask
        other = self.policy if self.kl.needs_full_vocabulary else None
        # forward for the reference is KL(π‖ref)
        reference = self.reference.evaluate(*inputs, against=other, direction="forward")
        return self.kl.estimate(part.old_logprobs, reference.logprobs, reference.kl), reference.logprobs

    def check_rows(self, name: str, values: Float[Tensor, "B T"], scored: ScoredRollout) -> None:
        """Stop where a number of the rollout is not finite, and name the prompt."""
        mask = scored.rollout.action_mask
        bad = (~torch.isfinite(torch.where(mask, values, torch.zeros_like(values)))).any(-1).nonzero()
        if len(bad):
            row = int(bad[0])
            where = f"the prompt {plain_text(scored.prompts[row])!r}" if scored.prompts else f"environment {row}"
            raise UserError(f"{name} are not finite at {self.position()} for {where}; the checkpoint before it is kept")

    # -- the price in the loss ---------------------------------------------------------------------------------

    def evaluated(self, part: TrainBatch) -> PolicyOutputs:
        """What the policy says of the actions, with the KL over the vocabulary where the loss has it."""
        inputs, loss = (part.context, part.actions, part.action_mask), self.kl.active_loss
        if loss is None or not loss.needs_full_vocabulary:
            return self.policy.evaluate(*inputs)
        return self.policy.evaluate(*inputs, against=self.reference, direction=loss.direction)

    def kl_losses(self, part: TrainBatch, outputs: PolicyOutputs) -> Float[Tensor, " N"]:
        """β times the KL to the reference at each action that counts, to be added to the loss; 0 where it has none."""
        mask, loss = part.action_mask, self.kl.active_loss
        if loss is None:
            return torch.zeros_like(outputs.logprobs[mask])
        numbers = outputs.logprobs, part.ref_logprobs, outputs.kl
        return self.kl.coef * estimated(loss.estimator, *(None if x is None else x[mask] for x in numbers))

    # -- checkpoints -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the KL controller; the reference by path and hash only."""
        checkpoint["algorithm"] = type(self).__name__
        checkpoint["kl_control"] = self.kl.state_dict()
        path = getattr(self.backbone, "checkpoint", None)
        leave_out_reference(checkpoint, path=path, fingerprint=self.reference_hash)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the KL controller and see that the reference is the same.

        Raises:
            UserError: another algorithm wrote it, or its reference or KL controller is another.
        """
        super().on_load_checkpoint(checkpoint)
        writer, name = checkpoint.get("algorithm"), type(self).__name__
        if writer != name:
            raise UserError(f"the checkpoint is not one of {name}: {writer or 'no policy optimizer'} wrote it")
        put_reference_back(checkpoint, self.reference, fingerprint=self.reference_hash, by=type(self).__name__)
        self.kl.load_state_dict(checkpoint["kl_control"])
