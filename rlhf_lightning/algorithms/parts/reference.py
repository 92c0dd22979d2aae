"""`Reference`: the frozen policy that training starts from, and the price of leaving it."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.algorithms.parts.kl_control import KLControl, estimated
from rlhf_lightning.algorithms.parts.metrics import KL_COEFFICIENT, KL_TO_REFERENCE
from rlhf_lightning.distributed import over_own_rows
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.policy import Policy, PolicyOutputs, TextPolicy
from rlhf_lightning.models.state import fingerprint, frozen_copy
from rlhf_lightning.ops.masking import masked, selected, sequence_sum
from rlhf_lightning.ops.rewards import kl_shaped_rewards
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.rollout.checks import check_finite
from rlhf_lightning.types import ScoredRollout, TrainBatch, Trajectories


@dataclass
class ShapedRewards:
    """The task's rewards, less the price of the KL where that is paid in the reward.

    Args:
        rewards: of each action.
        kl: mean KL to the reference in nats per sequence; None without a reference.
        ref_logprobs: under the reference, where the loss needs them.
        metrics: to report, the mean reward of a trajectory included.
    """

    rewards: Float[Tensor, "B T"]
    kl: float | None = None
    ref_logprobs: Float[Tensor, "B T"] | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Reference(nn.Module):
    """A frozen copy of the policy at the start, and the price of the KL to it, in the reward or in the loss.

    Without `freeze` there is no reference, as for environments: nothing is measured and nothing is paid.

    Args:
        kl: the price.
        microbatch_size: sequences that are evaluated at one time; None for all at once.
    """

    def __init__(self, kl: KLControl, *, microbatch_size: int | None) -> None:
        super().__init__()
        if kl.reward_coef and kl.needs_full_vocabulary:
            raise UserError(
                "model.init_args.kl.estimator exact is the same for every action in a state, so in a reward it cannot "
                "hold the policy back; expected k1 (unbiased), k2 or k3, or a kl.loss"
            )
        self.kl = copy.deepcopy(kl)
        self.microbatch_size = microbatch_size
        self.policy: Policy | None = None
        self.fingerprint: str | None = None

    def freeze(self, policy: Policy) -> None:
        """Take a copy of the policy as it is now."""
        self.policy = frozen_copy(policy)
        self.fingerprint = fingerprint(self.policy)  # now: a precision plugin may convert the weights later

    # -- the price in the reward -------------------------------------------------------------------------------

    def shape(self, scored: ScoredRollout, policy: Policy) -> ShapedRewards:
        """Measure the KL to the reference at each action, and subtract its price from the rewards."""
        started, rollout = time.perf_counter(), scored.rollout
        mask = rollout.action_mask
        if self.policy is None:
            return ShapedRewards(masked(scored.rewards, mask))
        kl, ref_logprobs = over_own_rows(
            lambda part: self._measure(part, policy), rollout, microbatch_size=self.microbatch_size
        )
        kl = masked(kl, mask)
        check_finite("logprobs", rollout.old_logprobs + kl, scored)
        rewards = kl_shaped_rewards(scored.rewards, kl, mask, kl_coef=self.kl.reward_coef)
        kl_sequence = sequence_sum(kl, mask).mean().item()
        metrics = {
            "objective/reward": sequence_sum(rewards, mask).mean().item(),
            "objective/kl_ref_sequence": kl_sequence,
            "objective/kl_ref_token": (kl.sum() / mask.sum()).item(),
            "kl_control/coef": self.kl.coef,
            "timing/reference_seconds": time.perf_counter() - started,
        }
        return ShapedRewards(rewards, kl_sequence, None if self.kl.active_loss is None else ref_logprobs, metrics)

    def _measure(self, part: Trajectories, policy: Policy) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """KL to the reference at each action, by the estimator of ``kl``, and log-probabilities under the reference."""
        assert self.policy is not None
        reference = self.policy.evaluate(
            part.context,
            part.actions,
            part.action_mask,
            against=policy if self.kl.needs_full_vocabulary else None,
            direction="forward",  # for the reference, forward is KL(π‖ref)
        )
        kl = estimated(self.kl.estimator, part.old_logprobs, reference.logprobs, reference.kl)
        return kl, reference.logprobs

    # -- the price in the loss ---------------------------------------------------------------------------------

    def evaluate(self, policy: Policy, part: TrainBatch) -> PolicyOutputs:
        """What the policy says of the actions, with the KL over the vocabulary where the loss has it."""
        loss = self.kl.active_loss
        if loss is None or not loss.needs_full_vocabulary:
            return policy.evaluate(part.context, part.actions, part.action_mask)
        return policy.evaluate(
            part.context, part.actions, part.action_mask, against=self.policy, direction=loss.direction
        )

    def losses(self, part: TrainBatch, outputs: PolicyOutputs) -> Float[Tensor, " N"]:
        """β times the KL to the reference at each action that counts, to be added to the loss; 0 where it has none."""
        mask, loss = part.action_mask, self.kl.active_loss
        if loss is None:
            return outputs.logprobs.new_zeros(int(mask.sum()))
        ref_logprobs = None if part.ref_logprobs is None else selected(part.ref_logprobs, mask)
        exact = None if outputs.kl is None else selected(outputs.kl, mask)
        kl = estimated(
            loss.estimator, selected(outputs.logprobs, mask), ref_logprobs, exact, selected(part.old_logprobs, mask)
        )
        return self.kl.coef * kl

    @property
    def text_policy(self) -> TextPolicy:
        """The frozen policy, where it is one of text."""
        if not isinstance(self.policy, TextPolicy):
            raise ValueError("there is no reference that answers text")
        return self.policy

    def metrics(self) -> tuple[Metric, ...]:
        """The KL and its coefficient."""
        return () if self.policy is None else (KL_TO_REFERENCE, KL_COEFFICIENT)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def save(self, checkpoint: dict[str, Any], *, path: str | None) -> None:
        """Write the KL controller into a checkpoint, and of the frozen policy only where it came from and its hash.

        Args:
            path: folder or name of the model that the policy started from.
        """
        state = checkpoint["state_dict"]
        for name in [name for name in state if name.startswith(_PREFIX)]:
            del state[name]
        checkpoint["reference"] = {"path": path, "hash": self.fingerprint}
        checkpoint["kl_control"] = self.kl.state_dict()

    def load(self, checkpoint: dict[str, Any], *, algorithm: str) -> None:
        """Restore the KL controller, and check that the frozen policy is the one of the checkpoint.

        Args:
            algorithm: name of the algorithm that loads.

        Raises:
            UserError: the reference or the KL controller is another, or the checkpoint names none.
        """
        saved = checkpoint.get("reference")
        if saved is None:
            raise UserError(f"the checkpoint is not one of {algorithm}: it names no reference policy")
        if self.fingerprint != saved["hash"]:
            raise UserError(
                f"the reference policy is not the one of the checkpoint (it was {saved['path']}); "
                "expected the same backbone.init_args.checkpoint with unchanged files"
            )
        frozen = {} if self.policy is None else self.policy.state_dict()
        checkpoint["state_dict"] |= {f"{_PREFIX}{name}": tensor for name, tensor in frozen.items()}
        if "kl_control" in checkpoint:
            self.kl.load_state_dict(checkpoint["kl_control"])


_PREFIX = "reference.policy."
