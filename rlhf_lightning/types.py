"""The stage types: prompts → rollout → scores → batch to train on.

Each stage takes one type and returns the next, so a rollout without rewards cannot reach a loss.
Axes: ``B`` trajectories, ``T`` actions (response tokens or environment steps), ``P`` prompt tokens.
Masks are bool and True means *counts*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
        annotator: who preferred it, where that is known.
        margin: by how much, where a rating says so (in reward units).
        objective: in which respect, where one was asked for; None for all in all.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    annotator: str | None = None
    margin: float | None = None
    objective: str | None = None

    @property
    def responses(self) -> tuple[str, ...]:
        """Best first."""
        return self.chosen, self.rejected


@dataclass
class Ranking:
    """Two or more responses to one prompt, in the order of preference.

    Args:
        responses: best first.
        annotator: who ranked them, where that is known.
        objective: in which respect, where one was asked for; None for all in all.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    annotator: str | None = None
    objective: str | None = None


@dataclass
class Rating:
    """A response with what it was rated.

    Args:
        ratings: by objective; `OVERALL` is the name of a rating all in all.
        annotator: who rated it, where that is known.
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
        annotator: who judged it, where that is known.
        objective: in which respect, where one was asked for; None for an overall judgement.
    """

    prompt: Prompt
    response: str
    label: bool
    annotator: str | None = None
    objective: str | None = None

    @property
    def responses(self) -> tuple[str, ...]:
        """The single response, as a tuple."""
        return (self.response,)


OVERALL = "rating"
"""Name of a rating that is not of one objective."""

Feedback: TypeAlias = PreferencePair | Ranking | Rating | LabelledResponse
"""What people say about responses."""


class Context(Protocol):
    """What the policy and the critic condition on; opaque to the algorithms."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        ...

    def select(self, rows: Int[Tensor, " N"]) -> Self:
        """The chosen rows, in the given order."""
        ...


@dataclass
class TokenContext:
    """Prompts as token ids, padded on the left.

    Args:
        input_ids: the prompts; any id fills the padding.
        attention_mask: True at the prompts' own tokens.
    """

    input_ids: Int[Tensor, "B P"]
    attention_mask: Bool[Tensor, "B P"]

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str) -> TokenContext:
        """The same on another device."""
        return TokenContext(self.input_ids.to(device), self.attention_mask.to(device))

    def select(self, rows: Int[Tensor, " N"]) -> TokenContext:
        """The chosen rows, in the given order, without columns that only pad them."""
        mask = self.attention_mask[rows]
        width = max(int(mask.sum(-1).max()), 1) if len(rows) else 1
        return TokenContext(self.input_ids[rows][:, -width:], mask[:, -width:])


@dataclass
class ObservationContext:
    """What an environment showed before and after each action.

    Args:
        observations: before the action, as the policy reads them.
        next_observations: after it: an episode's last ones too, which nobody acts on.
    """

    observations: Float[Tensor, "B T *O"]
    next_observations: Float[Tensor, "B T *O"]

    def __len__(self) -> int:
        return self.observations.shape[0]

    def to(self, device: torch.device | str) -> ObservationContext:
        """The same on another device."""
        return ObservationContext(self.observations.to(device), self.next_observations.to(device))

    def select(self, rows: Int[Tensor, " N"]) -> ObservationContext:
        """The chosen rows, in the given order."""
        return ObservationContext(self.observations[rows], self.next_observations[rows])

    def first(self, steps: int) -> ObservationContext:
        """The first steps of each row."""
        return ObservationContext(self.observations[:, :steps], self.next_observations[:, :steps])

    def single(self, mask: Bool[Tensor, "B T"]) -> ObservationContext:
        """Each step that counts as a row of its own."""
        return ObservationContext(self.observations[mask][:, None], self.next_observations[mask][:, None])


@dataclass
class Trajectories:
    """B trajectories of at most T actions: what `Rollout` and `TrainBatch` have in common.

    Args:
        context: what the actions were conditioned on.
        actions: token ids or discrete actions, or vectors [B, T, D]; undefined where ``action_mask`` is False.
        action_mask: True at the actions that were taken, the end-of-sequence token included; without gaps.
        old_logprobs: log-probability of each action at sampling, under the tempered distribution.
    """

    context: Context
    actions: Int[Tensor, "B T"] | Float[Tensor, "B T D"]
    action_mask: Bool[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"]

    def __len__(self) -> int:
        return self.actions.shape[0]

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return replace(self, **{name: value.to(device) for name, value in self._given().items()})

    def select(self, rows: Int[Tensor, " N"]) -> Self:
        """The chosen rows, in the given order, without columns that only pad them."""
        width = max(int(self.action_mask[rows].sum(-1).max()), 1) if len(rows) else 1
        context = self.context.select(rows)
        chosen: dict[str, Any] = {
            "context": context.first(width) if isinstance(context, ObservationContext) else context
        }
        for name, value in self._given().items():
            if name != "context":
                chosen[name] = value[rows][:, :width] if value.ndim > 1 else value[rows]
        return replace(self, **chosen)

    def _given(self) -> dict[str, Any]:
        """The fields by name, without those that are None."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass
class Rollout(Trajectories):
    """What a policy did.

    Args:
        terminated: True at an action that ended its episode: nothing follows.
        truncated: True at an action after which the episode was cut: at the length limit of responses, at the time
            limit of an environment.
        rows: global row number of each trajectory, the key of its noise.
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
    """A rollout with what it was worth.

    Args:
        rewards: of each action, from the task: a response's score stands at its last action.
        scores: one number per trajectory: a response's score, the return of an environment's episode.
        objectives: the score of each objective by name, where there are several.
        weights: of the objectives, by name.
        group_size: that many rows, one after the other, answer the same prompt.
        prompts: what was asked, as text or conversation; none in an environment.
        responses: what was answered, as text without special tokens; none in an environment.
        measures: further numbers per trajectory to log, never trained on (``gold`` among them).
        timings: seconds spent, by stage.
        prompts_shortened: how many prompts lost their first tokens to fit into the context.
        drawn: everything that was collected, where these rows are a selection of it; metrics are about all of it.
    """

    rollout: Rollout
    rewards: Float[Tensor, "B T"]
    scores: Float[Tensor, " B"]
    objectives: dict[str, Float[Tensor, " B"]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    group_size: int = 1
    prompts: Sequence[Prompt] = ()
    responses: Sequence[str] = ()
    measures: dict[str, Float[Tensor, " B"]] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    prompts_shortened: int = 0
    drawn: ScoredRollout | None = None

    def __len__(self) -> int:
        return len(self.rollout)


@dataclass
class TrainBatch(Trajectories):
    """What a policy update reads, ``[B, T]`` each; what an algorithm does not have is None.

    Args:
        ref_logprobs: log-probability of each action under the reference; None where the loss has no KL to it.
        old_values: at collection; with one more axis where each objective has a value of its own.
        returns: what the values are fitted to, of their shape; None, like ``old_values``, without a critic.
    """

    ref_logprobs: Float[Tensor, "B T"] | None = None
    old_values: Float[Tensor, "B T *O"] | None = None
    returns: Float[Tensor, "B T *O"] | None = None

    @classmethod
    def of(cls, rollout: Trajectories, **parts: Any) -> Self:
        """A batch of all trajectories of a rollout.

        Args:
            parts: the fields that a batch has beside those of the rollout.
        """
        shared: dict[str, Any] = {f.name: getattr(rollout, f.name) for f in fields(Trajectories)}
        return cls(**shared, **parts)

    def units(self) -> Self:
        """What minibatches are made of: whole responses, or an environment's single transitions, [N, 1] each."""
        if not isinstance(self.context, ObservationContext):
            return self
        mask = self.action_mask
        cut = {name: value[mask][:, None] for name, value in self._given().items() if name != "context"}
        return replace(self, context=self.context.single(mask), **cut)


@dataclass(kw_only=True)
class AdvantageBatch(TrainBatch):
    """A batch of which each action has an advantage.

    Args:
        advantages: how much better an action was than what the policy does on average.
    """

    advantages: Float[Tensor, "B T"]
