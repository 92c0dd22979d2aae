"""Where scores come from: everything that judges a response implements `RewardSource`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.types import Prompt


@dataclass
class Judgement:
    """What a reward source says of responses.

    Args:
        scores: one number per response: the weighted sum of the objectives where there are several.
        objectives: the score of each objective by name; empty for a source that has one score only.
        measures: further numbers per response to log, never trained on.
    """

    scores: Float[Tensor, " B"]
    objectives: dict[str, Float[Tensor, " B"]] = field(default_factory=dict)
    measures: dict[str, Float[Tensor, " B"]] = field(default_factory=dict)


class RewardSource(nn.Module):
    """Judges responses as text. It is a module, so that a learned one moves to the device with the rest.

    A subclass implements `score`, or `judge` where it has more to say than numbers.
    """

    objectives: Mapping[str, float] = {}
    """Weight of each objective by name, in the order of the columns of `score`; empty where that has none."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """One score per response [B], or one for each of the objectives [B, O]."""
        raise NotImplementedError

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Judgement:
        """Scores and what they are made of."""
        scores = self.score(prompts, responses)
        if not self.objectives:
            return Judgement(scores)
        _check_shape(self, scores, (len(responses), len(self.objectives)), prompts)
        weights = torch.tensor(list(self.objectives.values()), dtype=scores.dtype, device=scores.device)
        return Judgement(scores @ weights, dict(zip(self.objectives, scores.unbind(-1), strict=True)))


def judged(source: RewardSource, prompts: Sequence[Prompt], responses: Sequence[str]) -> Judgement:
    """What the source says, or one line that names the prompt it failed on.

    Raises:
        UserError: the source raised, returned something else than one number per response (and objective), or a
            number that is not finite.
    """
    with torch.no_grad():
        try:
            judgement = source.judge(prompts, responses)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"reward source {source.label} raised {reason(error)} (first prompt of the batch: {prompts[0]!r})"
            ) from error
    if set(judgement.objectives) != set(source.objectives):
        raise UserError(
            f"reward source {source.label} judged the objectives {', '.join(judgement.objectives) or 'none'} and has "
            f"weights for {', '.join(source.objectives) or 'none'}; expected the same"
        )
    parts = {**judgement.objectives, **judgement.measures, "": judgement.scores}  # what the sum is made of comes first
    checked = {name: _checked(source, name, values, prompts, responses) for name, values in parts.items()}
    return Judgement(
        checked[""],
        {name: checked[name] for name in judgement.objectives},
        {name: checked[name] for name in judgement.measures},
    )


def checked_scores(source: RewardSource, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " B"]:
    """The source's scores alone; see `judged`."""
    return judged(source, prompts, responses).scores


def checked_weights(
    key: str, weights: Mapping[str, float] | None, names: Iterable[str] | None = None
) -> dict[str, float]:
    """The weights as floats.

    Args:
        key: of the configuration.
        names: of the objectives; None where the weights themselves name them.

    Raises:
        UserError: a name is unknown, or a weight is not finite.
    """
    known = None if names is None else list(names)
    for name, weight in (weights or {}).items():
        if known is not None and name not in known:
            raise UserError(f"{key} names {name!r}, which is none of {', '.join(known)}")
        if not math.isfinite(weight):
            raise UserError(f"{key}.{name} must be a finite number, got {weight}")
    return {name: float(weight) for name, weight in (weights or {}).items()}


def reason(error: BaseException) -> str:
    """Type and message of an error in one line."""
    return ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))


def _checked(
    source: RewardSource, name: str, values: Tensor, prompts: Sequence[Prompt], responses: Sequence[str]
) -> Float[Tensor, " B"]:
    """The numbers in float32 or better, if they are numbers."""
    _check_shape(source, values, (len(responses),), prompts)
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        row = int(bad[0])
        what = f" as {name}" if name else ""
        raise UserError(
            f"reward source {source.label} returned {values[row].item()}{what} for the response "
            f"{responses[row]!r} to the prompt {prompts[row]!r}; expected a finite number"
        )
    return values


def _check_shape(source: RewardSource, values: Tensor, shape: tuple[int, ...], prompts: Sequence[Prompt]) -> None:
    if not isinstance(values, Tensor) or values.shape != shape:
        given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise UserError(
            f"reward source {source.label} returned {given} for {shape[0]} responses, expected a tensor of "
            f"shape {shape} (first prompt of the batch: {prompts[0]!r})"
        )
