"""What is known of a reward model from held-out feedback: plain dictionaries, as `evaluation.json` holds them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, TypeAlias

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
from rlhf_lightning.types import PreferencePair, Prompt, Ranking, Rating

Statistics: TypeAlias = dict[str, Any]
"""What JSON can hold."""

GROUPS = 5
"""Groups of pairs of about equal size, by a number that has more values than that."""


@dataclass
class JudgedComparisons:
    """Held-out pairs and rankings with a reward model's scores.

    Args:
        examples: the comparisons.
        scores: of each example's responses, best first; what stands where an example has fewer than K does not count.
        members: the scores of each member of an ensemble.
        gold: the true reward of the same responses, where there is one.
    """

    examples: Sequence[PreferencePair | Ranking]
    scores: Float[Tensor, "B K"]
    members: Float[Tensor, "M B K"] | None = None
    gold: Float[Tensor, "B K"] | None = None

    def __post_init__(self) -> None:
        self.scores = _exact(self.scores)
        self.members = None if self.members is None else _exact(self.members)
        self.gold = None if self.gold is None else _exact(self.gold)

    @property
    def mask(self) -> Bool[Tensor, "B K"]:
        """Where an example has a response."""
        counts = torch.tensor([len(example.responses) for example in self.examples])
        return torch.arange(self.scores.shape[1]) < counts[:, None]

    @cached_property
    def places(self) -> Int[Tensor, "N 3"]:
        """Every pair that the comparisons imply: row, column of the preferred response, column of the other."""
        found = [
            (row, first, second)
            for row, example in enumerate(self.examples)
            for first, second in combinations(range(len(example.responses)), 2)
        ]
        return torch.tensor(found, dtype=torch.long).reshape(-1, 3)

    @cached_property
    def pairs(self) -> list[PreferencePair]:
        """Those pairs; the margin is that of a pair, and a ranking has none."""
        return [
            PreferencePair(
                prompt=self.examples[row].prompt,
                chosen=self.examples[row].responses[first],
                rejected=self.examples[row].responses[second],
                annotator=self.examples[row].annotator,
                margin=getattr(self.examples[row], "margin", None),
                objective=self.examples[row].objective,
            )
            for row, first, second in self.places.tolist()
        ]

    def differences(self, values: Float[Tensor, "*M B K"]) -> Float[Tensor, "*M N"]:
        """Preferred − other, of each of the pairs."""
        rows, first, second = self.places.T
        return values[..., rows, first] - values[..., rows, second]


def comparison_statistics(judged: JudgedComparisons) -> Statistics:
    """Accuracy with its 95 % Wilson interval, overall and by group; calibration; gold and members where there are.

    ``loss`` is Bradley and Terry's without a margin. Calibration after scaling is measured out of fold: the prompts
    are divided into two halves, and each is scaled by the temperature of the other. The intervals take pairs as
    independent, which those of one ranking are not.
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
        scores: under each rated objective, in the order of an example's ``ratings``; the others do not count.
    """
    given = [
        (row, column, objective, rating)
        for row, example in enumerate(examples)
        for column, (objective, rating) in enumerate(example.ratings.items())
    ]
    rows, columns, objectives, ratings = zip(*given, strict=True)
    found, wanted = _exact(scores)[list(rows), list(columns)], torch.tensor(ratings, dtype=torch.float64)
    inside = {name: torch.tensor([other == name for other in objectives]) for name in sorted(set(objectives))}
    fit = _fit(found, wanted)
    return {
        "ratings": fit["count"],
        "mean_squared_error": fit["mean_squared_error"],
        "correlation_rating": fit["correlation"],
        "by_objective": [{"name": name, **_fit(found[own], wanted[own])} for name, own in inside.items()],
    }


def correlations(scores: Float[Tensor, " R"], others: Float[Tensor, " R"]) -> dict[str, float] | None:
    """Pearson's, Spearman's and Kendall's (τ_b) correlation of two judgements of the same responses.

    None where either side is constant.
    """
    scores, others = _exact(scores), _exact(others)
    if len(scores) < 2 or (scores == scores[0]).all() or (others == others[0]).all():
        return None
    return {
        "pearson": pearson_corrcoef(scores, others).item(),
        "spearman": spearman_corrcoef(scores, others).item(),
        "kendall": kendall_rank_corrcoef(scores, others).item(),
    }


def gold_correlations(
    scores: Float[Tensor, "B K"], gold: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"]
) -> dict[str, float | None] | None:
    """`correlations` with the true reward among all responses, and Pearson's ``within`` prompts.

    Comparisons leave open by how much all responses to one prompt are better than all to another: a number added to
    every score of a prompt changes no likelihood. What they can teach are the deviations from each example's mean.
    None where examples have one response only.
    """
    found = correlations(scores[mask], gold[mask])
    if found is None:
        return None
    deviations = [_exact(values).where(mask, torch.nan) for values in (scores, gold)]
    own, true = ((values - values.nanmean(-1, keepdim=True))[mask] for values in deviations)
    within = correlations(own, true)
    return {**found, "within": None if within is None else within["pearson"]}


def bias_statistics(
    probes: Mapping[str, Sequence[tuple[Prompt, str, str]]],
    score: Callable[[Sequence[Prompt], Sequence[str]], Tensor],
    *,
    spread: float,
) -> list[Statistics]:
    """By how much a response's score changes when it is changed in one respect only.

    Args:
        probes: by respect, such as ``length``: a prompt, a response, and the response changed in that respect.
        score: one number per response.
        spread: the unit of the changes, such as the standard deviation of the scores of held-out responses.
    """
    found = []
    for name, triples in probes.items():
        if not triples:
            continue
        prompts, plain, changed = zip(*triples, strict=True)
        scores = _exact(score([*prompts, *prompts], [*plain, *changed]))
        before, after = scores.chunk(2)
        # without a spread all scores are the same, and so is every change
        change = (after - before) / (spread or 1.0)
        found.append(
            {
                "name": name,
                "change": change.mean().item(),
                "standard_error": standard_error(change) if len(change) > 1 else None,
                "share_up": rightness(change).mean().item(),
                "count": len(change),
            }
        )
    return found


def evaluation_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The row of metrics that an evaluation gives; what was not measured has none."""
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
"""What each coefficient is called among the metrics."""


def halves(prompts: Sequence[Prompt]) -> Int[Tensor, " N"]:
    """0 or 1 for every example: the same for all examples of a prompt, and half of the prompts each."""
    keys = [json.dumps(prompt, sort_keys=True) for prompt in prompts]
    places = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([places[key] % 2 for key in keys], dtype=torch.long)


def _calibration(differences: Float[Tensor, " N"], folds: Int[Tensor, " N"]) -> Statistics:
    """Before temperature scaling and, where there are two prompts, after it."""
    scaled = scaled_out_of_fold(differences, folds) if folds.any() else None
    return {
        "calibration_error": calibration_error(differences),
        "temperature": fitted_temperature(differences),
        "calibration_error_scaled": None if scaled is None else calibration_error(scaled),
        "bins": reliability_bins(differences),
        "bins_scaled": [] if scaled is None else reliability_bins(scaled),
    }


def _member_statistics(judged: JudgedComparisons) -> Statistics:
    """How far the members of an ensemble are of one opinion; a tie agrees half with either side."""
    assert judged.members is not None
    right = torch.stack([rightness(one) for one in judged.differences(judged.members)])
    agreements = [1 - (right[i] - right[j]).abs().mean().item() for i, j in combinations(range(len(right)), 2)]
    spread = judged.members[:, judged.mask].std(0, correction=0)
    return {
        "accuracy": right.mean(-1).tolist(),
        "agreement": sum(agreements) / len(agreements) if agreements else None,
        "disagreement": spread.mean().item(),
    }


def _margins(judged: JudgedComparisons) -> list[float | None]:
    """By how much one response is better: what a pair says itself, or else what gold says."""
    stated = [pair.margin for pair in judged.pairs]
    if judged.gold is None or any(margin is not None for margin in stated):
        return stated
    return judged.differences(judged.gold).abs().tolist()


def _extra_words(pair: PreferencePair) -> float:
    """Words of the preferred response less those of the other."""
    return float(len(pair.chosen.split()) - len(pair.rejected.split()))


def _by_value(values: Sequence[float | None], right: Float[Tensor, " N"], unit: str = "") -> list[Statistics]:
    """Accuracy in groups of similar values, named by the lowest and the highest of them."""
    known = torch.tensor([value is not None for value in values], dtype=torch.bool)
    numbers = np.array([value for value in values if value is not None]).round(6)  # 0.3 is 0.3 in either precision
    right = right[known]
    if not len(numbers):
        return []
    edges = np.unique(numbers)[1:]
    if len(edges) >= GROUPS:
        edges = np.unique(np.quantile(numbers, np.arange(1, GROUPS) / GROUPS))
    place = np.searchsorted(edges, numbers, side="right")
    groups = [place == number for number in np.unique(place)]
    return [_share(_range(numbers[inside]) + unit, right[torch.from_numpy(inside)]) for inside in groups]


def _range(numbers: np.ndarray) -> str:
    low, high = f"{numbers.min():.3g}", f"{numbers.max():.3g}"
    return low if low == high else f"{low} to {high}"


def _by_label(labels: Sequence[str | None], right: Float[Tensor, " N"]) -> list[Statistics]:
    """Accuracy for each name."""
    names = sorted({label for label in labels if label is not None})
    return [_share(name, right[torch.tensor([label == name for label in labels])]) for name in names]


def _share(name: str, right: Float[Tensor, " N"]) -> Statistics:
    """Of the pairs that come out right, with its interval."""
    low, high = wilson_interval(right.sum().item(), len(right))
    return {"name": name, "accuracy": right.mean().item(), "low": low, "high": high, "count": len(right)}


def _fit(scores: Float[Tensor, " R"], ratings: Float[Tensor, " R"]) -> Statistics:
    error = ((scores - ratings) ** 2).mean().item()
    return {"mean_squared_error": error, "correlation": correlations(scores, ratings), "count": len(scores)}


def _exact(values: Tensor) -> Tensor:
    """In double precision on the CPU, where statistics are taken."""
    return values.detach().double().cpu()
