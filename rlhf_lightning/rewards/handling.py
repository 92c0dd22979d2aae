"""Turning the scores of a reward source into the rewards that a policy is trained on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.ops.rewards import last_action_rewards
from rlhf_lightning.rewards.objectives import ObjectiveWeights
from rlhf_lightning.rewards.scaling import Scaling
from rlhf_lightning.rewards.source import weighted_sum
from rlhf_lightning.types import ScoredRollout

_SCORE = "score"
"""Name under which the scaling of a source with a single score is kept."""


class RewardHandling:
    """Scales, weights and penalizes scores: R = Σ wᵒ scaledᵒ(sᵒ) − penalties, at a response's last action.

    Each objective, or the single score, is scaled separately, with moments of its own. Penalties come last, so they are
    in the units of the reward that is trained on. Running moments and learned weights are constant within an iteration,
    and are the same on every rank, since each rank sees the global batch.

    Args:
        scaling: applied to the scores in this order; copied for each objective.
        weights: weights of the objectives; copied.
        missing_eos_penalty: subtracted if the response was cut at the length limit.
        length_penalty: subtracted for each token beyond ``length_free``; the end-of-sequence token counts.
        length_free: number of tokens without penalty.
    """

    def __init__(
        self,
        scaling: Sequence[Scaling],
        weights: ObjectiveWeights,
        *,
        missing_eos_penalty: float = 0.0,
        length_penalty: float = 0.0,
        length_free: int = 0,
    ) -> None:
        self.scaling = copy.deepcopy(list(scaling))
        self.weights = copy.deepcopy(weights)
        self.missing_eos_penalty = missing_eos_penalty
        self.length_penalty = length_penalty
        self.length_free = length_free
        for name in ("missing_eos_penalty", "length_penalty", "length_free"):
            value = getattr(self, name)
            check_limits("data.init_args", {name: (0 <= value < float("inf"), "0 or more, and finite", value)})
        self._by_objective: dict[str, list[Scaling]] = {}

    def for_training(self, scored: ScoredRollout, *, learn: bool) -> ScoredRollout:
        """The rollout with rewards to train on, and the scaled objectives and weights that they consist of.

        Args:
            scored: the rollout with scores, objectives and weights as the source gave them.
            learn: whether moments and weights are updated by these scores, which happens once per iteration.
        """
        weights = self.weights.of(scored.weights)
        judged = scored.objectives or {_SCORE: scored.scores}
        means = {name: scores.double().mean().item() for name, scores in scored.objectives.items()} if learn else {}
        scaled = {name: self._scaled(name, scores, learn=learn) for name, scores in judged.items()}
        total = weighted_sum(scaled, weights) if scored.objectives else scaled[_SCORE]
        return replace(
            self._penalized(scored, total),
            objectives=scaled if scored.objectives else {},
            weights=weights,
            raw_objective_means=means,
        )

    def for_evaluation(self, scored: ScoredRollout) -> ScoredRollout:
        """The rollout with penalties only: scores are not scaled or reweighted, and nothing is learned."""
        return self._penalized(scored, scored.scores)

    def finish(self, scored: ScoredRollout) -> None:
        """Update learned weights by the mean scores of an iteration, at its end.

        Args:
            scored: what `for_training` returned, or a selection of it.
        """
        if scored.raw_objective_means:
            self.weights.update(scored.raw_objective_means)

    def _scaled(self, name: str, scores: Float[Tensor, " B"], *, learn: bool) -> Float[Tensor, " B"]:
        if name not in self._by_objective:
            self._by_objective[name] = copy.deepcopy(self.scaling)
        for scaling in self._by_objective[name]:
            if learn:
                scaling.update(scores)
            scores = scaling(scores)
        return scores

    def _penalized(self, scored: ScoredRollout, total: Float[Tensor, " B"]) -> ScoredRollout:
        rollout, scores = scored.rollout, scored.scores
        cut = rollout.truncated.any(-1).to(scores)
        surplus = (rollout.lengths() - self.length_free).clamp(min=0).to(scores)
        penalties = self.missing_eos_penalty * cut + self.length_penalty * surplus
        rewards = last_action_rewards((total - penalties).to(rollout.old_logprobs.dtype), rollout.action_mask)
        return replace(scored, rewards=rewards, scores=scores - penalties)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Moments by objective, and learned weights."""
        moments = {name: [scaling.state_dict() for scaling in used] for name, used in self._by_objective.items()}
        return {"scaling": moments, "weights": self.weights.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore moments and weights.

        Raises:
            UserError: the checkpoint was written with another scaling.
        """
        self._by_objective = {name: copy.deepcopy(self.scaling) for name in state["scaling"]}
        for name, used in self._by_objective.items():
            saved = state["scaling"][name]
            if [set(moments) for moments in saved] != [set(scaling.state_dict()) for scaling in used]:
                raise UserError("data.init_args.scaling is not that of the checkpoint; expected the same")
            for scaling, moments in zip(used, saved, strict=True):
                scaling.load_state_dict(moments)
        self.weights.load_state_dict(state["weights"])
