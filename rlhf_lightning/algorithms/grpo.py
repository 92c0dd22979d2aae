"""Group relative policy optimization, and what others made of it.

Shao et al. 2024, "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", eq. 3 and
§ 4.1.2 (outcome supervision). Without a critic: all tokens of response i to a prompt have the advantage
(Rᵢ − mean) / std over the G responses to it, in PPO's clipped surrogate, and a penalty on the KL to the reference
stands in the loss (eq. 4). Later papers change one thing or another, which are arguments here:

| argument             | GRPO         | Dr. GRPO    | DAPO            | GSPO             |
|----------------------|--------------|-------------|-----------------|------------------|
| ``normalize_std``    | true         | false       | true            | true             |
| ``average``          | ResponseMean | ResponseSum | TokenMean       | ResponseMean     |
| ``ratio``            | TokenRatio   | TokenRatio  | TokenRatio      | MeanRatio        |
| ``surrogate``        | Clip(0.2)    | Clip(0.2)   | Clip(0.2, 0.28) | Clip(3e-4, 4e-4) |
| ``kl.coef``, in loss | 0.04         | 0           | 0               | 0                |
| ``dynamic_sampling`` | 1            | 1           | 2 or more       | 1                |
| ``overlong_cache``   | 0            | 0           | 1/5 of maximum  | 0                |

Dr. GRPO: Liu et al. 2025, "Understanding R1-Zero-Like Training". DAPO: Yu et al. 2025, "DAPO: An Open-Source LLM
Reinforcement Learning System at Scale", eq. 8 to 13. GSPO: Zheng et al. 2025, "Group Sequence Policy Optimization".

The gradient at the first step on a rollout: without ``normalize_std`` and with ``ResponseSum`` it is (1 − 1/G) ∇J in
expectation. The standard deviation raises the weight of prompts with little spread, ``ResponseMean`` that of the tokens
of short responses; neither leaves a policy gradient. The KL in the loss is differentiated at the tokens that were
drawn, not in how often they are drawn. There k3, the paper's estimator, has the value of KL(π‖π_ref) but the gradient
of KL(π_ref‖π); k2 and exact have that of KL(π‖π_ref), and so has ``k3_ratio``, k3 times the token's probability ratio
(DeepSeek-V3.2, and TRL's default), in later steps on the rollout, too. The ratio is the token's own even where
``ratio`` is of whole responses, because that of a response has another gradient. With ``kl.loss`` null the KL is a
part of the rewards, before they are compared.

Deviations from the papers: ``TokenMean`` divides by the tokens of the minibatch instead of each group, ``ResponseSum``
by the responses alone (Dr. GRPO's further constant is a matter of the learning rate). ``dynamic_sampling`` has a limit,
and asks for rewards that differ, punishment included, instead of verdicts. The deviation is that of a sample (G − 1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.algorithms.base.on_policy import OnPolicy, Prepared, with_advantages
from rlhf_lightning.algorithms.parts.claims import BIASED, SHORT_BY_GROUP, Variant
from rlhf_lightning.algorithms.parts.kl_control import KLControl, KLLoss
from rlhf_lightning.algorithms.parts.metrics import CLIP_FRACTION, KL_OLD, STEPS
from rlhf_lightning.algorithms.parts.surrogates import Clip, MeanRatio, Ratio, Surrogate, TokenRatio
from rlhf_lightning.algorithms.parts.updates import check_stop_kl
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.ops.groups import group_advantages, groups_that_differ, overlong_penalty
from rlhf_lightning.ops.kl import k3
from rlhf_lightning.ops.masking import masked, selected, sequence_sum
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.rollout.joining import join_scored, select_scored
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.minibatches import Loss, Minibatch
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import AdvantageBatch, Rollout, ScoredRollout

STD_EPS = 1e-4
"""Added to a group's standard deviation."""


@dataclass(frozen=True)
class Average(ABC):
    """How the losses of tokens become one number."""

    @abstractmethod
    def reduce(
        self, losses: Float[Tensor, " N"], positions: Bool[Tensor, "B T"], *, responses: int, count: int
    ) -> Float[Tensor, ""]:
        """This microbatch's share of the average over a minibatch.

        Args:
            losses: at each of the positions, row by row.
            positions: which ones: every token, or one in each response.
            responses: number in the whole minibatch.
            count: number of positions in the whole minibatch.
        """


@dataclass(frozen=True)
class ResponseMean(Average):
    """Over the tokens of each response, then over responses: a token of a long one counts less (Shao et al., eq. 3)."""

    def reduce(
        self, losses: Float[Tensor, " N"], positions: Bool[Tensor, "B T"], *, responses: int, count: int
    ) -> Float[Tensor, ""]:
        """(1/B) Σᵢ (1/Tᵢ) Σₜ ℓᵢₜ."""
        lengths = positions.sum(-1)
        return (losses / lengths.repeat_interleave(lengths)).sum() / responses


@dataclass(frozen=True)
class TokenMean(Average):
    """Over all tokens alike: a long response counts more (Yu et al., eq. 12)."""

    def reduce(
        self, losses: Float[Tensor, " N"], positions: Bool[Tensor, "B T"], *, responses: int, count: int
    ) -> Float[Tensor, ""]:
        """Σᵢ Σₜ ℓᵢₜ / Σᵢ Tᵢ."""
        return losses.sum() / count


@dataclass(frozen=True)
class ResponseSum(Average):
    """Over responses, of the sum over their tokens: the policy gradient (Liu et al.)."""

    def reduce(
        self, losses: Float[Tensor, " N"], positions: Bool[Tensor, "B T"], *, responses: int, count: int
    ) -> Float[Tensor, ""]:
        """(1/B) Σᵢ Σₜ ℓᵢₜ."""
        return losses.sum() / responses


class GRPO(OnPolicy[AdvantageBatch]):
    """PPO's surrogate without a critic: responses to the same prompt are compared with each other.

    Args:
        task: what is to be done.
        backbone: builds the policy.
        optimization: learning rate 1e-6 to 1e-5 for pretrained models, 1e-4 to 1e-3 for small ones from scratch.
        kl: penalty on the KL to the reference, β 0.001 to 0.04, in the loss unless ``loss`` is null; with 0 it is only
            measured.
        ratio: of tokens, or of whole responses.
        surrogate: clipped, or ``Surrogate`` without a limit.
        average: how the losses of tokens are averaged, those of the KL included: ``ResponseMean``, ``TokenMean`` or
            ``ResponseSum``. A response as a whole has one loss, for which they are all the same.
        normalize_std: divide by the standard deviation of the group.
        inner_epochs: passes over each rollout.
        minibatch_size: responses per step, across all devices; None for all of the rollout.
        stop_kl: an update ends when KL(π_old‖π) exceeds this, in nats per action; None never.
        dynamic_sampling: rollouts drawn at most in an iteration to fill the batch with groups whose rewards differ; the
            others have no advantage. ``samples``, scores and lengths are reported of all that were drawn.
        overlong_cache: tokens before ``max_new_tokens`` over which up to 1 is subtracted from a response's reward; 0
            for none.
        temperature: of the policy, 0.7 to 1.
        eval_every: iterations between evaluations.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"groups"})
    counters = ("samples",)

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        kl: KLControl = KLControl(0.04, "k3", KLLoss("k3")),
        ratio: Ratio = TokenRatio(),
        surrogate: Surrogate = Clip(),
        average: Average = ResponseMean(),
        normalize_std: bool = True,
        inner_epochs: int = 1,
        minibatch_size: int | None = None,
        stop_kl: float | None = None,
        dynamic_sampling: int = 1,
        overlong_cache: int = 0,
        temperature: float = 1.0,
        eval_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, kl, temperature=temperature, eval_every=eval_every)
        limits = {
            "inner_epochs": (inner_epochs >= 1, "at least 1", inner_epochs),
            "minibatch_size": (minibatch_size is None or minibatch_size >= 1, "at least 1", minibatch_size),
            "dynamic_sampling": (dynamic_sampling >= 1, "at least 1", dynamic_sampling),
            "overlong_cache": (overlong_cache >= 0, "at least 0", overlong_cache),
        }
        check_limits("model.init_args", limits)
        check_stop_kl(stop_kl)
        if surrogate.kl_coef:
            raise UserError("model.init_args.surrogate Penalty belongs to PPO; expected Surrogate (no limit) or Clip")
        self.ratio = ratio
        self.surrogate = surrogate
        self.average = average
        self.normalize_std = normalize_std
        self.inner_epochs = inner_epochs
        self.minibatch_size = minibatch_size
        self.stop_kl = stop_kl
        self.dynamic_sampling = dynamic_sampling
        self.overlong_cache = overlong_cache
        self.samples = 0

    def setup(self, stage: str) -> None:
        """Check that the overlong cache fits into a response."""
        super().setup(stage)
        if self.overlong_cache > self.rollouts.responses.max_new_tokens:
            raise UserError(
                f"model.init_args.overlong_cache is {self.overlong_cache}, more than "
                f"data.init_args.max_new_tokens {self.rollouts.responses.max_new_tokens}"
            )

    @property
    def rollouts(self) -> RolloutDataModule:
        """The data module: groups are of responses to prompts."""
        return self.datamodule

    def collect(self) -> ScoredRollout:
        """Draw up to ``dynamic_sampling`` rollouts; keep the first groups whose rewards differ, then fill up."""
        assert isinstance(self.policy, TextPolicy)
        draws = [super().collect()]
        differ = [self._differs(draws[0])]
        while len(draws) < self.dynamic_sampling and torch.cat(differ).sum() < len(draws[0]):
            draws.append(self.rollouts.collect(self.policy, self.current_epoch, attempt=len(draws)))
            differ.append(self._differs(draws[-1]))
        drawn, useful = join_scored(draws), torch.cat(differ)
        self.samples += len(drawn)
        batch = select_scored(drawn, torch.argsort(~useful, stable=True)[: len(draws[0])].sort().values)
        return replace(batch, drawn=drawn)

    def collection_metrics(self, scored: ScoredRollout) -> dict[str, float]:
        """Also all responses so far, and how many groups of the batch differ in their rewards."""
        groups = int(self._differs(scored).sum()) // scored.group_size
        return super().collection_metrics(scored) | {"samples": self.samples, "rollout/groups_kept": groups}

    def _differs(self, scored: ScoredRollout) -> Bool[Tensor, " B"]:
        return groups_that_differ(self._returns(scored.rewards, scored.rollout), group_size=scored.group_size)

    def _returns(self, rewards: Float[Tensor, "B T"], rollout: Rollout) -> Float[Tensor, " B"]:
        """The rewards of each response, less the punishment of one that is nearly too long."""
        returns = sequence_sum(rewards, rollout.action_mask)
        if not self.overlong_cache:
            return returns
        limit = self.rollouts.responses.max_new_tokens
        return returns + overlong_penalty(rollout.lengths(), max_length=limit, cache_length=self.overlong_cache)

    def prepare(self, scored: ScoredRollout) -> Prepared[AdvantageBatch]:
        """Advantages within groups; log-probabilities under the reference where the KL to it is part of the loss."""
        rollout, mask = scored.rollout, scored.rollout.action_mask
        shaped = self.reference.shape(scored, self.policy)
        advantages = group_advantages(
            self._returns(shaped.rewards, rollout),
            group_size=scored.group_size,
            normalize_std=self.normalize_std,
            eps=STD_EPS,
        )
        advantages = masked(advantages[:, None].expand(mask.shape), mask)
        # The price is known of the responses that are trained on, the rewards of all that were drawn.
        drawn = scored.drawn or scored
        price = sequence_sum(scored.rewards - shaped.rewards, mask).mean().item()
        reward = self._returns(drawn.rewards, drawn.rollout).mean().item() - price
        return with_advantages(scored, shaped, advantages, metrics={**shaped.metrics, "objective/reward": reward})

    def update(self, prepared: Prepared[AdvantageBatch]) -> dict[str, float]:
        """One step on the whole batch, or several on minibatches, ended early when the policy has moved far enough."""
        return self.take_steps(
            prepared.batch, epochs=self.inner_epochs, minibatch_size=self.minibatch_size, stop_kl=self.stop_kl
        )

    def loss(self, part: AdvantageBatch, minibatch: Minibatch[AdvantageBatch]) -> Loss:
        """The surrogate and the KL to the reference, each averaged as ``average`` says."""
        mask, positions = part.action_mask, self.ratio.positions(part.action_mask)
        count = minibatch.sequences if self.ratio.whole_responses else minibatch.tokens
        outputs = self.policy_outputs(part)
        log_ratio = self.ratio.log_ratio(outputs.logprobs, part.old_logprobs, mask)
        advantages = part.advantages[positions]
        surrogate = self.surrogate.loss(log_ratio, advantages)
        value = self.average.reduce(surrogate, positions, responses=minibatch.sequences, count=count)
        kl = self.average.reduce(
            self.reference.losses(part, outputs), mask, responses=minibatch.sequences, count=minibatch.tokens
        )
        sums = {  # reported as means per action
            "policy/loss": value * minibatch.tokens,
            "policy/clip_fraction": self.surrogate.is_clipped(log_ratio, advantages).sum() * minibatch.tokens / count,
            "policy/kl_old": selected(k3(part.old_logprobs, outputs.logprobs), mask).sum(),
            "objective/entropy": selected(outputs.entropy, mask).sum(),
        }
        gap = selected(outputs.logprobs - part.old_logprobs, mask).abs().max()
        largest = {"policy/ratio_max": log_ratio.exp().max(), "rollout/logprob_gap": gap}
        return Loss(value + kl, sums, largest)

    def metrics(self) -> tuple[Metric, ...]:
        """Also those of the groups and of the update."""
        groups = Metric("Groups that differ", "in their scores, per batch", "rollout/groups_kept", floor=0)
        return (*super().metrics(), groups, KL_OLD, STEPS, CLIP_FRACTION)

    variants = (
        Variant("GRPO, no std, response sum", SHORT_BY_GROUP, {"normalize_std": False, "average": ResponseSum()}),
        Variant(
            "GRPO, no std, response sum, k2 in the loss",
            BIASED,
            {"normalize_std": False, "average": ResponseSum()},
            kl_loss=KLLoss("k2"),
        ),
        Variant(
            "GRPO, no std, response sum, k3 in the loss",
            BIASED,
            {"normalize_std": False, "average": ResponseSum()},
            kl_loss=KLLoss("k3"),
        ),
        Variant(
            "GRPO, no std, response sum, k3 × ratio in the loss",
            BIASED,
            {"normalize_std": False, "average": ResponseSum()},
            kl_loss=KLLoss("k3_ratio"),
        ),
        Variant("GRPO, no std, response mean", BIASED, {"normalize_std": False}),
        Variant("GRPO, no std, token mean", BIASED, {"normalize_std": False, "average": TokenMean()}),
        Variant("GRPO, std, response sum", BIASED, {"average": ResponseSum()}),
        Variant("GRPO, std, geometric mean ratio", BIASED, {"ratio": MeanRatio()}),
        Variant("GRPO, std, response mean, k3 in the loss", BIASED, kl_loss=KLLoss("k3")),
    )
