"""From the scores that a reward source gives to the rewards that a policy is trained on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.ops.rewards import last_action_rewards
from rlhf_lightning.rewards.objectives import ObjectiveWeights
from rlhf_lightning.rewards.scaling import Scaling
from rlhf_lightning.types import Rollout, ScoredRollout

_SCORE = "score"
"""Under which the scaling of a source with one score only is kept."""


@dataclass(frozen=True)
class Penalties:
    """What is subtracted from the score of a response for its form.

    Args:
        missing_eos_penalty: for a response that was cut.
        length_penalty: for each token beyond ``length_free``, the end-of-sequence token included.
        length_free: tokens that cost nothing.
    """

    missing_eos_penalty: float = 0.0
    length_penalty: float = 0.0
    length_free: int = 0

    def __post_init__(self) -> None:
        for name in ("missing_eos_penalty", "length_penalty", "length_free"):
            value = getattr(self, name)
            check_limits("data.init_args", {name: (0 <= value < float("inf"), "0 or more, and finite", value)})

    def of(self, rollout: Rollout, like: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Of each response, in the precision of the scores."""
        surplus = (rollout.lengths() - self.length_free).clamp(min=0)
        return self.missing_eos_penalty * rollout.truncated.any(-1).to(like) + self.length_penalty * surplus.to(like)


class RewardHandling:
    """Scales, weighs and penalizes: R = Σ wᵒ scaledᵒ(sᵒ) − penalties, at a response's last action.

    Each objective is scaled by itself, with moments of its own; where the source has one score only, that is. Penalties
    come last: they are in the units of what is trained on. What is learned on the way, running moments and weights,
    rests within an iteration and is the same on every rank, since all of them see the whole batch.

    Args:
        scaling: what scores go through, in this order; copied for each objective.
        weights: of the objectives; copied.
        penalties: for the form of a response.
    """

    def __init__(self, scaling: Sequence[Scaling], weights: ObjectiveWeights, penalties: Penalties) -> None:
        self.scaling = copy.deepcopy(list(scaling))
        self.weights = copy.deepcopy(weights)
        self.penalties = penalties
        self._by_objective: dict[str, list[Scaling]] = {}
        self._means: dict[str, float] = {}

    def for_training(self, scored: ScoredRollout, *, learn: bool) -> ScoredRollout:
        """With rewards to train on, and the objectives and weights that they are made of.

        Args:
            scored: as it was judged: scores, objectives and the source's own weights.
            learn: whether moments and weights learn from these scores: once an iteration.
        """
        weights = self.weights.of(scored.weights)
        judged = scored.objectives or {_SCORE: scored.scores}
        if learn:
            self._means = {name: scores.double().mean().item() for name, scores in scored.objectives.items()}
        scaled = {name: self._scaled(name, scores, learn=learn) for name, scores in judged.items()}
        total = sum(weights[name] * scaled[name] for name in weights) if scored.objectives else scaled[_SCORE]
        return replace(self._penalized(scored, total), objectives=scaled if scored.objectives else {}, weights=weights)

    def for_evaluation(self, scored: ScoredRollout) -> ScoredRollout:
        """With penalties alone: neither scaled nor weighed anew, and nothing is learned."""
        return self._penalized(scored, scored.scores)

    def finish(self) -> None:
        """At the end of an iteration: learned weights move by the means of its scores."""
        if self._means:
            self.weights.update(self._means)

    def _scaled(self, name: str, scores: Float[Tensor, " B"], *, learn: bool) -> Float[Tensor, " B"]:
        if name not in self._by_objective:
            self._by_objective[name] = copy.deepcopy(self.scaling)
        for scaling in self._by_objective[name]:
            if learn:
                scaling.update(scores)
            scores = scaling(scores)
        return scores

    def _penalized(self, scored: ScoredRollout, worth: Float[Tensor, " B"]) -> ScoredRollout:
        rollout, penalties = scored.rollout, self.penalties.of(scored.rollout, scored.scores)
        rewards = last_action_rewards((worth - penalties).to(rollout.old_logprobs.dtype), rollout.action_mask)
        return replace(scored, rewards=rewards, scores=scored.scores - penalties)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Moments by objective, and learned weights."""
        moments = {name: [scaling.state_dict() for scaling in used] for name, used in self._by_objective.items()}
        return {"scaling": moments, "weights": self.weights.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with them.

        Raises:
            UserError: they are those of another scaling.
        """
        self._by_objective = {name: copy.deepcopy(self.scaling) for name in state["scaling"]}
        for name, used in self._by_objective.items():
            kept = state["scaling"][name]
            if [set(one) for one in kept] != [set(scaling.state_dict()) for scaling in used]:
                raise UserError("data.init_args.scaling is not that of the checkpoint; expected the same")
            for scaling, one in zip(used, kept, strict=True):
                scaling.load_state_dict(one)
        self.weights.load_state_dict(state["weights"])
