"""Trust region policy optimization.

Schulman et al. 2015, "Trust Region Policy Optimization": maximize the surrogate E[r Â] (eq. 14) subject to a mean
KL(π_old‖π) of at most δ. The direction solves (F + λI) x = g by conjugate gradient on Fisher-vector products
(appendix C), is scaled to the trust region, and a line search shortens the step until the surrogate improves and the
measured KL, exact at every action, is within δ. A step that no length saves is rejected: the policy stays as it is.

Deviations from the paper: damping λ; advantages by GAE (Schulman et al. 2016) with a critic that is fitted by AdamW
after each step; means are over actions, so δ is in nats per action; the Fisher matrix may be averaged over a share of
the rollout only. All of the step is computed in full precision, also where training is in mixed precision.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.algorithms.base.natural import NaturalGradient
from rlhf_lightning.algorithms.base.on_policy import Prepared, with_advantages
from rlhf_lightning.algorithms.parts.claims import BIASED, Variant
from rlhf_lightning.algorithms.parts.critic import Critic, CriticOptions
from rlhf_lightning.algorithms.parts.fisher import FisherOptions, PolicyGeometry
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.parts.metrics import CG_RESIDUAL, kl_of_step
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.ops.masking import selected, whiten
from rlhf_lightning.ops.trust_region import backtracking_line_search
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.minibatches import Loss, Minibatch
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import AdvantageBatch, ScoredRollout


class TRPO(NaturalGradient):
    """TRPO with a critic and GAE: one step per rollout.

    Args:
        task: what is to be done.
        backbone: builds policy and critic.
        optimization: of the critic; the policy's step has no learning rate.
        critic: the value network.
        kl: penalty on the KL to the reference, β 0.01 to 0.1.
        max_kl: δ, in nats per action, 0.01 to 0.05.
        fisher: damping, conjugate gradient, and how much of the rollout the Fisher matrix sees.
        max_backtracks: how often the line search shortens the step before it gives up.
        shrink: by what factor.
        critic_epochs: passes of the critic over each rollout.
        minibatch_size: responses per step of the critic, or an environment's transitions, across all devices.
        gamma: discount; 1 for language, 0.99 for control.
        lam: λ of GAE, 0.95.
        temperature: of the policy, 0.7 to 1.
        eval_every: iterations between evaluations.
    """

    counters = ("rejections",)

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        critic: CriticOptions = CriticOptions(),
        kl: KLControl = KLControl(),
        max_kl: float = 0.01,
        fisher: FisherOptions = FisherOptions(),
        max_backtracks: int = 10,
        shrink: float = 0.5,
        critic_epochs: int = 4,
        minibatch_size: int = 16,
        gamma: float = 1.0,
        lam: float = 0.95,
        temperature: float = 1.0,
        eval_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, kl, temperature=temperature, eval_every=eval_every)
        self.critic = Critic(critic, gamma=gamma, lam=lam, microbatch_size=optimization.microbatch_size)
        self.max_kl = max_kl
        self.fisher = fisher
        self.critic_epochs = critic_epochs
        self.minibatch_size = minibatch_size
        self.max_backtracks, self.shrink = max_backtracks, shrink
        self.rejections = 0
        self.check_arguments(
            max_backtracks=(max_backtracks >= 0, "0 or more", max_backtracks),
            shrink=(0 < shrink < 1, "between 0 and 1", shrink),
        )

    def prepare(self, scored: ScoredRollout) -> Prepared[AdvantageBatch]:
        """Advantages by GAE, whitened over the rollout."""
        shaped = self.reference.shape(scored, self.policy)
        estimate = self.critic.estimate(self.policy, scored, shaped.rewards)
        return with_advantages(
            scored, shaped, whiten(estimate.advantages, scored.rollout.action_mask, eps=1e-8), estimate
        )

    def natural_step(self, batch: AdvantageBatch, geometry: PolicyGeometry) -> dict[str, float]:
        """The step to the edge of the trust region, shortened by a line search."""
        natural = geometry.natural_direction(self.grad_scaler, max_kl=self.max_kl)
        step = natural.scale * natural.direction
        expected = (natural.gradient @ step).item()

        def try_out(parameters: Float[Tensor, " P"]) -> tuple[float, float]:
            geometry.move_to(parameters)
            return self._surrogate(batch) - before, geometry.kl()

        before = self._surrogate(batch)
        search = backtracking_line_search(
            try_out,
            geometry.start,
            step,
            expected_improvement=expected,
            max_kl=self.max_kl,
            shrink=self.shrink,
            max_backtracks=self.max_backtracks,
            accept_ratio=0.0,
        )
        geometry.move_to(search.parameters)
        self.rejections += not search.accepted
        return {
            **natural.metrics(),
            "trust_region/kl": search.kl,
            "trust_region/step_size": search.step_size,
            "trust_region/backtracks": search.backtracks,
            "trust_region/improvement_expected": expected,
            "trust_region/improvement_actual": search.improvement,
            "trust_region/rejections": self.rejections,
        }

    def loss(self, part: AdvantageBatch, minibatch: Minibatch[AdvantageBatch]) -> Loss:
        """The negative surrogate, and the KL to the reference where it is part of the loss."""
        mask = part.action_mask
        outputs = self.policy_outputs(part)
        log_ratio = selected(outputs.logprobs - part.old_logprobs, mask)
        surrogate = -(log_ratio.exp() * selected(part.advantages, mask)).sum()
        sums = {"policy/loss": surrogate, "objective/entropy": selected(outputs.entropy, mask).sum()}
        value = (surrogate + self.reference.losses(part, outputs).sum()) / minibatch.sequences
        return Loss(value, sums, {"rollout/logprob_gap": log_ratio.abs().max()})

    @torch.no_grad()
    def _surrogate(self, batch: AdvantageBatch) -> float:
        """The surrogate objective of the current policy, over the whole rollout."""
        minibatch = self.as_one_minibatch(batch)
        losses = [self.loss(part, minibatch).value.double() for part in minibatch.parts]
        return -self.reduced({"loss": torch.stack(losses).sum()})["loss"]

    def metrics(self) -> tuple[Metric, ...]:
        """Also those of the step and of the line search."""
        length = Metric(
            "Length of the step",
            "share of the full step; 0 where rejected",
            "trust_region/step_size",
            floor=0,
            smooth=False,
            own=True,
        )
        rejected = Metric("Rejected steps", "so far", "trust_region/rejections", floor=0, smooth=False)
        improvement = Metric(
            "Improvement",
            "of the surrogate, as a share of what is expected",
            "trust_region/improvement_actual",
            per="trust_region/improvement_expected",
            mark=1.0,
            mark_name="as expected",
            floor=0,
        )
        return (*super().metrics(), kl_of_step(self.max_kl), length, rejected, improvement, CG_RESIDUAL)

    def progress(self) -> dict[str, str]:
        """Also the rejected steps."""
        return super().progress() | {"trust_region/rejections": "rejected"}

    variants = (Variant("TRPO, before F⁻¹ (whitened)", BIASED),)
