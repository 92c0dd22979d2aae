"""Statistics of a reward model on held-out feedback, as plain dictionaries for ``evaluation.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics.functional import kendall_rank_corrcoef, pearson_corrcoef, spearman_corrcoef

from rlhf_lightning.intervals import wilson_interval
from rlhf_lightning.ops.preference import bradley_terry_loss
from rlhf_lightning.reward_modeling.calibration import (
    calibration_error,
    fitted_temperature,
    reliability_bins,
    rightness,
    scaled_out_of_fold,
)
from rlhf_lightning.rollout.statistics import standard_error
from rlhf_lightning.tasks.feedback import as_pairs
from rlhf_lightning.tasks.text.splits import prompt_key
from rlhf_lightning.types import Feedback, PreferencePair, Prompt, Rating

Statistics: TypeAlias = dict[str, Any]
"""A dictionary that can be written as JSON."""

GROUPS = 5
"""Number of groups of about equal size, for a quantity with more values than that."""


@dataclass
class JudgedComparisons:
    """Held-out pairs and rankings with the scores of a reward model.

    Args:
        examples: the pairs or rankings.
        scores: scores of each example's responses, best first; entries beyond an example's responses are ignored.
        members: the scores of each member of an ensemble.
        gold: the true reward of the same responses, if there is one.
    """

    examples: Sequence[Feedback]
    scores: Float[Tensor, "B K"]
    members: Float[Tensor, "M B K"] | None = None
    gold: Float[Tensor, "B K"] | None = None

    def __post_init__(self) -> None:
        self.scores = _exact(self.scores)
        self.members = None if self.members is None else _exact(self.members)
        self.gold = None if self.gold is None else _exact(self.gold)

    @property
    def mask(self) -> Bool[Tensor, "B K"]:
        """True for the responses that an example has."""
        counts = torch.tensor([len(example.responses) for example in self.examples])
        return torch.arange(self.scores.shape[1]) < counts[:, None]

    @cached_property
    def pairs(self) -> list[PreferencePair]:
        """Every pair that the comparisons imply."""
        return [pair for example in self.examples for pair in as_pairs(example)]

    def differences(self, values: Float[Tensor, "*M B K"]) -> Float[Tensor, "*M N"]:
        """The difference preferred − other of each of the `pairs`."""
        width = values.shape[-1]
        preferred, other = torch.triu_indices(width, width, offset=1)
        return (values[..., preferred] - values[..., other])[..., self.mask[:, other]]


def comparison_statistics(judged: JudgedComparisons) -> Statistics:
    """Accuracy with its 95 % Wilson interval, overall and by group; calibration; correlation with gold; members.

    ``loss`` is the Bradley–Terry loss without margins. Calibration after scaling is measured out of fold: each half of
    the prompts is scaled by the temperature of the other half. The intervals assume independent pairs, which the pairs
    of one ranking are not.
    """
    differences = judged.differences(judged.scores)
    right = rightness(differences)
    overall = _share("all", right)
    loss = bradley_terry_loss(differences, torch.zeros_like(differences), margin=0.0, label_smoothing=0.0)
    return {
        "pairs": overall["count"],
        "accuracy": overall["accuracy"],
        "accuracy_low": overall["low"],
        "accuracy_high": overall["high"],
        "loss": loss.mean().item(),
        "margin": differences.mean().item(),
        **_calibration(differences, halves([pair.prompt for pair in judged.pairs])),
        "by_margin": _by_value(_margins(judged), right),
        "by_length_difference": _by_value([_extra_words(pair) for pair in judged.pairs], right, " words"),
        "by_annotator": _by_label([pair.annotator for pair in judged.pairs], right),
        "by_objective": _by_label([pair.objective for pair in judged.pairs], right),
        "correlation": None if judged.gold is None else gold_correlations(judged.scores, judged.gold, judged.mask),
        "members": None if judged.members is None else _member_statistics(judged),
    }


def rating_statistics(examples: Sequence[Rating], scores: Float[Tensor, "B K"]) -> Statistics:
    """Mean squared error of the scores and their correlation with the ratings, overall and by objective.

    Args:
        scores: score in each rated objective, in the order of an example's ``ratings``; further entries are ignored.
    """
    entries = [
        (row, column, objective, rating)
        for row, example in enumerate(examples)
        for column, (objective, rating) in enumerate(example.ratings.items())
    ]
    rows, columns, objectives, ratings = zip(*entries, strict=True)
    predicted, rated = _exact(scores)[list(rows), list(columns)], torch.tensor(ratings, dtype=torch.float64)
    inside = {name: torch.tensor([other == name for other in objectives]) for name in sorted(set(objectives))}
    fit = _fit(predicted, rated)
    return {
        "ratings": fit["count"],
        "mean_squared_error": fit["mean_squared_error"],
        "correlation_rating": fit["correlation"],
        "by_objective": [{"name": name, **_fit(predicted[own], rated[own])} for name, own in inside.items()],
    }


def correlations(scores: Float[Tensor, " R"], others: Float[Tensor, " R"]) -> dict[str, float] | None:
    """Pearson's, Spearman's and Kendall's (τ_b) correlation of two judgements of the same responses.

    None if either side is constant.
    """
    scores, others = _exact(scores), _exact(others)
    if len(scores) < 2 or (scores == scores[0]).all() or (others == others[0]).all():
        return None
    return {
        "pearson": pearson_corrcoef(scores, others).item(),
        "spearman": spearman_corrcoef(_with_ties(scores), _with_ties(others)).item(),
        # a pair only with a test
        "kendall": cast(Tensor, kendall_rank_corrcoef(_with_ties(scores), _with_ties(others))).item(),
    }


def _with_ties(values: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    """The values in units of 1e-9 of their spread, rounded: what only the order of sums tells apart has one rank."""
    return (values / values.std() * 1e9).round()


def gold_correlations(
    scores: Float[Tensor, "B K"], gold: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"]
) -> dict[str, float | None] | None:
    """`correlations` with the true reward over all responses, and Pearson's correlation ``within`` prompts.

    Comparisons say nothing about differences between prompts: a constant added to all scores of one prompt changes no
    likelihood. ``within`` therefore correlates the deviations from each example's mean. None if scores are constant.
    """
    overall = correlations(scores[mask], gold[mask])
    if overall is None:
        return None
    deviations = [_exact(values).where(mask, torch.nan) for values in (scores, gold)]
    own, true = ((values - values.nanmean(-1, keepdim=True))[mask] for values in deviations)
    within = correlations(own, true)
    return {**overall, "within": None if within is None else within["pearson"]}


def bias_statistics(
    probes: Mapping[str, Sequence[tuple[Prompt, str, str]]],
    score: Callable[[Sequence[Prompt], Sequence[str]], Tensor],
    *,
    spread: float,
) -> list[Statistics]:
    """The change of a response's score when one property of the response is changed.

    Args:
        probes: by property, such as ``length``: a prompt, a response, and the response with this property changed.
        score: one number per response.
        spread: the unit of the changes, such as the standard deviation of the scores of held-out responses.
    """
    biases = []
    for name, triples in probes.items():
        if not triples:
            continue
        prompts, plain, changed = zip(*triples, strict=True)
        scores = _exact(score([*prompts, *prompts], [*plain, *changed]))
        before, after = scores.chunk(2)
        # with a spread of 0 all scores are the same, and all changes are 0
        change = (after - before) / (spread or 1.0)
        biases.append(
            {
                "name": name,
                "change": change.mean().item(),
                "standard_error": standard_error(change) if len(change) > 1 else None,
                "share_up": rightness(change).mean().item(),
                "count": len(change),
            }
        )
    return biases


def evaluation_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation, without those that were not measured."""
    measured = {name: evaluation.get(name) for name in ("loss", "accuracy", "margin", "mean_squared_error")}
    for name in ("calibration_error", "calibration_error_scaled", "temperature", "ceiling"):
        measured[name] = evaluation.get(name)
    for key, other in (("correlation", "gold"), ("correlation_rating", "rating")):
        correlation = evaluation.get(key) or {}
        measured |= {f"{name}_{other}": correlation.get(kind) for name, kind in CORRELATIONS.items()}
    train = (evaluation.get("train") or {}).get("accuracy")
    if train is not None:
        measured["accuracy_gap"] = train - evaluation["accuracy"]
    measured["agreement"] = (evaluation.get("members") or {}).get("agreement")
    measured |= {f"bias_{bias['name']}": bias["change"] for bias in evaluation.get("biases") or ()}
    return {f"eval/{name}": value for name, value in measured.items() if value is not None}


CORRELATIONS = {"correlation": "pearson", "spearman": "spearman", "kendall": "kendall", "correlation_within": "within"}
"""Name of each coefficient among the metrics."""


def halves(prompts: Sequence[Prompt]) -> Int[Tensor, " N"]:
    """0 or 1 for each example: equal for all examples of a prompt, and each for half of the prompts."""
    keys = [prompt_key(prompt) for prompt in prompts]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] % 2 for key in keys], dtype=torch.long)


def _calibration(differences: Float[Tensor, " N"], folds: Int[Tensor, " N"]) -> Statistics:
    """Calibration before temperature scaling and, if there are two prompts, after it."""
    scaled = scaled_out_of_fold(differences, folds) if folds.any() else None
    return {
        "calibration_error": calibration_error(differences),
        "temperature": fitted_temperature(differences),
        "calibration_error_scaled": None if scaled is None else calibration_error(scaled),
        "bins": reliability_bins(differences),
        "bins_scaled": [] if scaled is None else reliability_bins(scaled),
    }


def _member_statistics(judged: JudgedComparisons) -> Statistics:
    """Agreement between the members of an ensemble; a tie agrees half with either side."""
    assert judged.members is not None
    right = torch.stack([rightness(member) for member in judged.differences(judged.members)])
    agreements = [1 - (right[i] - right[j]).abs().mean().item() for i, j in combinations(range(len(right)), 2)]
    spread = judged.members[:, judged.mask].std(0, correction=0)
    return {
        "accuracy": right.mean(-1).tolist(),
        "agreement": sum(agreements) / len(agreements) if agreements else None,
        "disagreement": spread.mean().item(),
    }


def _margins(judged: JudgedComparisons) -> list[float | None]:
    """The margins that the pairs state or, if none does, those of the true reward."""
    stated = [pair.margin for pair in judged.pairs]
    if judged.gold is None or any(margin is not None for margin in stated):
        return stated
    return judged.differences(judged.gold).abs().tolist()


def _extra_words(pair: PreferencePair) -> float:
    """Number of words of the preferred response minus that of the other one."""
    return float(len(pair.chosen.split()) - len(pair.rejected.split()))


def _by_value(values: Sequence[float | None], right: Float[Tensor, " N"], unit: str = "") -> list[Statistics]:
    """Accuracy in groups of similar values; the name of a group is the range of its values."""
    known = torch.tensor([value is not None for value in values], dtype=torch.bool)
    # rounded, so that a value in float32 and in float64 is the same
    numbers = np.array([value for value in values if value is not None]).round(6)
    right = right[known]
    if not len(numbers):
        return []
    edges = np.unique(numbers)[1:]
    if len(edges) >= GROUPS:
        edges = np.unique(np.quantile(numbers, np.arange(1, GROUPS) / GROUPS))
    group_of = np.searchsorted(edges, numbers, side="right")
    groups = [group_of == number for number in np.unique(group_of)]
    return [_share(_range(numbers[inside]) + unit, right[torch.from_numpy(inside)]) for inside in groups]


def _range(numbers: np.ndarray) -> str:
    low, high = f"{numbers.min():.3g}", f"{numbers.max():.3g}"
    return low if low == high else f"{low} to {high}"


def _by_label(labels: Sequence[str | None], right: Float[Tensor, " N"]) -> list[Statistics]:
    """Accuracy for each label."""
    names = sorted({label for label in labels if label is not None})
    return [_share(name, right[torch.tensor([label == name for label in labels])]) for name in names]


def _share(name: str, right: Float[Tensor, " N"]) -> Statistics:
    """The share of right pairs, with its interval."""
    low, high = wilson_interval(right.sum().item(), len(right))
    return {"name": name, "accuracy": right.mean().item(), "low": low, "high": high, "count": len(right)}


def _fit(scores: Float[Tensor, " R"], ratings: Float[Tensor, " R"]) -> Statistics:
    error = ((scores - ratings) ** 2).mean().item()
    return {"mean_squared_error": error, "correlation": correlations(scores, ratings), "count": len(scores)}


def _exact(values: Tensor) -> Tensor:
    """The values in double precision on the CPU."""
    return values.detach().double().cpu()
