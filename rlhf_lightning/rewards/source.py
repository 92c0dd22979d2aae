"""`RewardSource`: the interface of everything that scores responses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.records.constructed import Constructed
from rlhf_lightning.types import Prompt

RESERVED = ("score", "gold", "reward", "entropy", "perplexity", "length_mean", "eos_rate", "distinct_2")
RESERVED_BEGINNINGS = ("weight_", "kl_", "win_rate")
"""Names that no measure can have, since ``objective/NAME`` or ``eval/NAME`` is another metric."""


@dataclass
class Judgement:
    """The scores that a reward source gives to responses.

    Args:
        scores: one number per response; with several objectives, their weighted sum.
        objectives: the score of each objective by name; empty for a source that has one score only.
        measures: further numbers per response, which are logged and never trained on; none has the name of another
            metric, such as ``score``.
    """

    scores: Float[Tensor, " B"]
    objectives: dict[str, Float[Tensor, " B"]] = field(default_factory=dict)
    measures: dict[str, Float[Tensor, " B"]] = field(default_factory=dict)


class RewardSource(Constructed, nn.Module):
    """Scores responses as text. It is a torch module, so that a learned source moves to the device.

    A subclass implements `score`, or `judge` if it also has measures.
    """

    objectives: Mapping[str, float] = {}
    """Weight of each objective by name, in the order of the columns of `score`; empty if there is a single score."""

    @property
    def label(self) -> str:
        """The name of this source in messages."""
        return type(self).__name__

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """One score per response [B], or one per response and objective [B, O]."""
        raise NotImplementedError

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Judgement:
        """The scores, with those of each objective."""
        scores = self.score(prompts, responses)
        if not self.objectives:
            return Judgement(scores)
        _check_shape(self, scores, (len(responses), len(self.objectives)), prompts)
        weights = torch.tensor(list(self.objectives.values()), dtype=scores.dtype, device=scores.device)
        return Judgement(scores @ weights, dict(zip(self.objectives, scores.unbind(-1), strict=True)))


def judged(source: RewardSource, prompts: Sequence[Prompt], responses: Sequence[str]) -> Judgement:
    """The judgement of a source, checked.

    Raises:
        UserError: the source raised an exception, or did not return one finite number per response (and objective);
            the message names the prompt. Or a measure has the name of another metric.
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

    for name in judgement.measures:
        if is_reserved(name):
            raise UserError(
                f"reward source {source.label} measures {name}, which is another metric; expected other names"
            )

    def checked(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: _checked(source, name, values, prompts, responses) for name, values in parts.items()}

    # the total last: an error should name the cause
    objectives, measures = checked(judgement.objectives), checked(judgement.measures)
    return Judgement(_checked(source, "", judgement.scores, prompts, responses), objectives, measures)


def is_reserved(name: str) -> bool:
    """Whether ``objective/NAME`` or ``eval/NAME`` is a metric that no reward source has measured."""
    return name in RESERVED or name.startswith(RESERVED_BEGINNINGS)


def weighted_sum(scores: Mapping[str, Float[Tensor, " B"]], weights: Mapping[str, float]) -> Float[Tensor, " B"]:
    """Σ w s over the objectives, in the order of the weights."""
    return sum((weight * scores[name] for name, weight in weights.items()), torch.zeros(()))


def checked_weights(
    key: str, weights: Mapping[str, float] | None, names: Iterable[str] | None = None
) -> dict[str, float]:
    """The weights as floats, after a check.

    Args:
        key: configuration key of the weights, for messages.
        names: the known objectives; None if the weights themselves define them.

    Raises:
        UserError: a name is unknown, or a weight is not finite.
    """
    weights = weights or {}
    known = weights if names is None else list(names)
    for name, weight in weights.items():
        if name not in known:
            raise UserError(f"{key} names {name!r}, which is none of {', '.join(known)}")
        check_limits(key, {name: (math.isfinite(weight), "a finite number", weight)})
    return {name: float(weight) for name, weight in weights.items()}


def reason(error: BaseException) -> str:
    """Type and message of an exception, in one line."""
    return ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))


def _checked(
    source: RewardSource, name: str, values: Tensor, prompts: Sequence[Prompt], responses: Sequence[str]
) -> Float[Tensor, " B"]:
    """The values in at least float32, after a check of their shape and finiteness."""
    _check_shape(source, values, (len(responses),), prompts)
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        row = int(bad[0])
        role = f" as {name}" if name else ""
        raise UserError(
            f"reward source {source.label} returned {values[row].item()}{role} for the response "
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
