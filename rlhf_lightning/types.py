"""The stage types: prompts → rollout → scores → batch to train on.

Each stage takes one type and returns the next, so a rollout without rewards cannot reach a loss.
Axes: ``B`` trajectories, ``T`` actions (response tokens or environment steps), ``P`` prompt tokens.
Masks are bool and True means *counts*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

Message: TypeAlias = dict[str, str]
"""One turn of a conversation: ``{"role": "user" | "assistant" | "system", "content": text}``."""

Prompt: TypeAlias = str | list[Message]
"""A text that is continued as it stands, or a conversation that the tokenizer's chat template renders."""


@dataclass
class Demonstration:
    """A prompt and a response to imitate."""

    prompt: Prompt
    response: str


@dataclass
class PreferencePair:
    """Two responses to one prompt, the first preferred.

    Args:
        annotator: who compared them, if known.
        margin: by how much the chosen response is better, in reward units, if known.
        objective: the quality that was compared; None for an overall judgement.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    annotator: str | None = None
    margin: float | None = None
    objective: str | None = None

    @property
    def responses(self) -> tuple[str, ...]:
        """The chosen and the rejected response."""
        return self.chosen, self.rejected


@dataclass
class Ranking:
    """Two or more responses to one prompt, in the order of preference.

    Args:
        responses: best first.
        annotator: who ranked them, if known.
        objective: the quality that was compared; None for an overall judgement.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    annotator: str | None = None
    objective: str | None = None


@dataclass
class Rating:
    """A response with its ratings.

    Args:
        ratings: ratings by objective; an overall rating has the name `OVERALL`.
        annotator: who rated it, if known.
    """

    prompt: Prompt
    response: str
    ratings: dict[str, float]
    annotator: str | None = None

    @property
    def responses(self) -> tuple[str, ...]:
        """The single response, as a tuple."""
        return (self.response,)


@dataclass
class LabelledResponse:
    """A single response that was judged good or bad, as KTO reads it.

    Args:
        label: True if the response is desirable, False if it is undesirable.
        annotator: who judged it, if known.
        objective: the quality that was judged; None for an overall judgement.
        compared_with: the other response, where the label was read from a pair: the same tokens are no judgement.
    """

    prompt: Prompt
    response: str
    label: bool
    annotator: str | None = None
    objective: str | None = None
    compared_with: str | None = None

    @property
    def responses(self) -> tuple[str, ...]:
        """The single response, as a tuple."""
        return (self.response,)


OVERALL = "rating"
"""Name of an overall rating."""

Feedback: TypeAlias = PreferencePair | Ranking | Rating | LabelledResponse
"""What people say about responses."""


@dataclass
class Rows:
    """Tensors with a row for each trajectory, or None."""

    def __len__(self) -> int:
        return len(next(iter(self._given().values())))

    def to(self, device: torch.device | str) -> Self:
        """A copy on another device."""
        return replace(self, **{name: value.to(device) for name, value in self._given().items()})

    def select(self, rows: Int[Tensor, " N"] | slice) -> Self:
        """The given rows, in this order, without columns that are padding in all of them."""
        raise NotImplementedError

    def _given(self) -> dict[str, Any]:
        """The fields that are not None, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


class Context(Rows):
    """The inputs of policy and critic; algorithms do not look into them."""


@dataclass
class TokenContext(Context):
    """Prompts as token ids, padded on the left.

    Args:
        input_ids: the prompts; any id fills the padding.
        attention_mask: True at the prompts' own tokens.
    """

    input_ids: Int[Tensor, "B P"]
    attention_mask: Bool[Tensor, "B P"]

    @override
    def select(self, rows: Int[Tensor, " N"] | slice) -> TokenContext:
        mask = self.attention_mask[rows]
        width = _width(mask)
        return TokenContext(self.input_ids[rows][:, -width:], mask[:, -width:])


def _width(mask: Bool[Tensor, "B S"]) -> int:
    """Number of columns that the longest row needs, and at least one."""
    return max(int(mask.sum(-1).max()), 1) if len(mask) and mask.shape[1] > 1 else 1


@dataclass
class ObservationContext(Context):
    """The observations before and after each action.

    Args:
        observations: before the action, as the policy reads them.
        next_observations: after the action, including an episode's last observation.
    """

    observations: Float[Tensor, "B T *O"]
    next_observations: Float[Tensor, "B T *O"]

    def __getitem__(self, index: Any) -> ObservationContext:
        """Some rows and steps, indexed like a tensor."""
        return ObservationContext(self.observations[index], self.next_observations[index])

    @override
    def select(self, rows: Int[Tensor, " N"] | slice) -> ObservationContext:
        return self[rows]


@dataclass
class Trajectories(Rows):
    """B trajectories of at most T actions: the fields that `Rollout` and `TrainBatch` share.

    Args:
        context: the inputs on which the actions are conditioned.
        actions: token ids or discrete actions, or vectors of whole or real numbers [B, T, D]; undefined where
            ``action_mask`` is False.
        action_mask: True at the actions that were taken, the end-of-sequence token included; without gaps.
        old_logprobs: log-probability of each action at sampling, under the tempered distribution.
    """

    context: Context
    actions: Int[Tensor, "B T *D"] | Float[Tensor, "B T D"]
    action_mask: Bool[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"]

    @override
    def select(self, rows: Int[Tensor, " N"] | slice) -> Self:
        width = _width(self.action_mask[rows])
        context = self.context.select(rows)
        if isinstance(context, ObservationContext):
            context = context[:, :width]
        chosen = {name: value[rows] for name, value in self._given().items() if name != "context"}
        chosen = {name: value[:, :width] if value.ndim > 1 else value for name, value in chosen.items()}
        return replace(self, context=context, **chosen)


@dataclass
class Rollout(Trajectories):
    """Trajectories sampled from a policy.

    Args:
        terminated: True at an action that ended its episode.
        truncated: True at an action after which the episode was cut, at the length limit of responses or at the time
            limit of an environment.
        rows: global row number of each trajectory, which is the key of its sampling noise.
    """

    terminated: Bool[Tensor, "B T"]
    truncated: Bool[Tensor, "B T"]
    rows: Int[Tensor, " B"]

    @property
    def continues(self) -> Bool[Tensor, "B T"]:
        """False at an episode's last action, however it ended."""
        return self.action_mask & ~(self.terminated | self.truncated)

    def lengths(self) -> Int[Tensor, " B"]:
        """Number of actions of each trajectory."""
        return self.action_mask.sum(-1)


@dataclass
class ScoredRollout:
    """A rollout with rewards and scores.

    Args:
        rewards: reward of each action; the score of a response is the reward of its last action.
        scores: one number per trajectory: the score of a response, or the return of an episode.
        objectives: the scores of each objective by name, if there are several.
        weights: weights of the objectives by name.
        raw_objective_means: mean score of each objective before any scaling, where weights are learned from them.
        group_size: number of consecutive rows that are responses to the same prompt.
        prompts: the prompts as text or conversation; empty for environments.
        responses: the responses as text; empty for environments.
        measures: further numbers per trajectory, which are logged and never trained on (such as ``gold``).
        timings: seconds by stage.
        prompts_shortened: number of prompts that lost their first tokens to fit into the context.
        prompts_spelled: number of prompts that spell out special tokens, which are read as plain text.
        drawn: the whole collection, if these rows are a selection from it; metrics describe the whole collection.
    """

    rollout: Rollout
    rewards: Float[Tensor, "B T"]
    scores: Float[Tensor, " B"]
    objectives: dict[str, Float[Tensor, " B"]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    raw_objective_means: dict[str, float] = field(default_factory=dict)
    group_size: int = 1
    prompts: Sequence[Prompt] = ()
    responses: Sequence[str] = ()
    measures: dict[str, Float[Tensor, " B"]] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    prompts_shortened: int = 0
    prompts_spelled: int = 0
    drawn: ScoredRollout | None = None

    def __len__(self) -> int:
        return len(self.rollout)


@dataclass
class TrainBatch(Trajectories):
    """The inputs of a policy update, ``[B, T]`` each; None for what an algorithm does not have.

    Args:
        ref_logprobs: log-probability of each action under the reference; None if the loss has no KL to it.
        old_values: values at collection, with one more axis if each objective has its own; None without a critic.
        returns: targets of the values, of the same shape; None without a critic.
    """

    ref_logprobs: Float[Tensor, "B T"] | None = None
    old_values: Float[Tensor, "B T *O"] | None = None
    returns: Float[Tensor, "B T *O"] | None = None

    @classmethod
    def of(cls, rollout: Trajectories, **parts: Any) -> Self:
        """A batch of all trajectories of a rollout.

        Args:
            parts: the fields of the batch that are not fields of the rollout.
        """
        shared: dict[str, Any] = {f.name: getattr(rollout, f.name) for f in fields(Trajectories)}
        return cls(**shared, **parts)

    def units(self) -> Self:
        """The rows that minibatches consist of: whole responses, or the single transitions of environments, [N, 1]."""
        if not isinstance(self.context, ObservationContext):
            return self
        mask = self.action_mask
        return replace(self, **{name: value[mask][:, None] for name, value in self._given().items()})


@dataclass(kw_only=True)
class AdvantageBatch(TrainBatch):
    """A batch with an advantage of each action.

    Args:
        advantages: how much better an action is than the average action of the policy.
    """

    advantages: Float[Tensor, "B T"]
