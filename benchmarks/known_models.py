"""What the losses of a reward model recover where the true model is known; a few seconds.

    python benchmarks/known_models.py --seeds 10

A linear reward fitted to pairs drawn from a Bradley–Terry model with one, judged on fresh items; and scores of a few
items fitted to rankings of 4 drawn from a Plackett–Luce model, listwise, by all pairs of the same rankings as if they
were independent, and by a single comparison from each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from rlhf_lightning.reward_modeling.losses import AllPairs, BradleyTerry, PlackettLuce, RewardLoss
from rlhf_lightning.types import PreferencePair

ROOT = Path(__file__).resolve().parent.parent
FEATURES, PAIRS, FRESH = 16, 2000, 5000
ITEMS, RANKED, RANKINGS = 10, 4, 8000
LISTWISE, ALL_PAIRS, ONE_PAIR = "listwise", "all pairs", "one pair per ranking"
READINGS: dict[str, tuple[RewardLoss, int]] = {
    LISTWISE: (PlackettLuce(), RANKED),
    ALL_PAIRS: (AllPairs(), RANKED),
    ONE_PAIR: (PlackettLuce(), 2),
}
"""Loss, and how many of each ranking's items it sees."""


def main() -> None:
    """Print the two tables and write them to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds (default %(default)s)")
    count = parser.parse_args().seeds
    text = "\n".join([*linear_lines(count), "", *ranking_lines(count)]) + "\n"
    print(text, end="")
    target = ROOT / "benchmarks" / "results" / "known_models.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"`python benchmarks/known_models.py --seeds {count}`\n\n{text}")


def linear_lines(seeds: int) -> list[str]:
    """The linear reward, in Markdown."""
    found = [linear_reward_correlation(seed) for seed in range(seeds)]
    return [
        f"Bradley–Terry: {PAIRS:,} pairs, a linear reward of {FEATURES} features, {seeds} seeds. Correlation with the "
        f"true reward on fresh items: {spread(found)}, the lowest {min(found):.4f}."
    ]


def ranking_lines(seeds: int) -> list[str]:
    """The rankings, in Markdown."""
    squares: dict[str, list[float]] = {name: [] for name in READINGS}
    largest = dict.fromkeys(READINGS, 0.0)
    for seed in range(seeds):
        for name, errors in ranking_errors(seed).items():
            squares[name].append(float((errors**2).mean()))
            largest[name] = max(largest[name], float(errors.abs().max()))
    limits = [rankings_needed(true_scores(seed)[0]) for seed in range(seeds)]
    lines = [
        f"Plackett–Luce: {ITEMS} items, {RANKINGS:,} rankings of {RANKED}, {seeds} seeds. Scores after centering.",
        "",
        "| fitted | root mean square error | largest error | squared error over listwise (paired p) | in the limit |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in READINGS:
        mean, limit = np.mean(squares[name]) / np.mean(squares[LISTWISE]), [row[name] for row in limits]
        certainty = "" if name == LISTWISE else f" ({paired(squares, name):.1g})"
        cells = [name, spread(np.sqrt(squares[name])), f"{largest[name]:.3f}", f"{mean:.2f}{certainty}", spread(limit)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def paired(squares: dict[str, list[float]], name: str) -> float:
    """Significance of a reading's larger squared error over seeds."""
    return float(stats.ttest_rel(squares[name], squares[LISTWISE], alternative="greater").pvalue)


def linear_reward_correlation(seed: int) -> float:
    """Pearson's correlation of the fitted reward with the true one, on items that were not compared."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(FEATURES, generator=generator, dtype=torch.float64)
    truth /= truth.norm()
    items = torch.randn(PAIRS, 2, FEATURES, generator=generator, dtype=torch.float64)
    swapped = torch.rand(PAIRS, generator=generator) > (items @ truth).diff(dim=-1).squeeze(-1).neg().sigmoid()
    items[swapped] = items[swapped].flip(1)
    weights = fit(BradleyTerry(), lambda weights: items @ weights, FEATURES)
    fresh = torch.randn(FRESH, FEATURES, generator=generator, dtype=torch.float64)
    return float(np.corrcoef(fresh @ weights, fresh @ truth)[0, 1])


def true_scores(seed: int) -> tuple[Float[Tensor, " I"], torch.Generator]:
    """Log-worths of the items, and the generator that the rankings are drawn from."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ITEMS, generator=generator, dtype=torch.float64), generator


def ranking_errors(seed: int) -> dict[str, Float[Tensor, " I"]]:
    """Centered score of every item less its true log-worth, by how the same rankings are read."""
    truth, generator = true_scores(seed)
    rankings = draw_rankings(truth, RANKINGS, generator)
    seen = torch.rand(RANKINGS, RANKED, generator=generator).argsort(-1)
    errors = {}
    for name, (loss, count) in READINGS.items():
        read = rankings.gather(1, seen[:, :count].sort(-1).values)
        scores = fit(loss, lambda scores, read=read: scores[read], ITEMS)
        errors[name] = scores - scores.mean() - (truth - truth.mean())
    return errors


def rankings_needed(truth: Float[Tensor, " I"]) -> dict[str, float]:
    """How many times the rankings each reading needs to be as close as the listwise one, in the limit of many."""
    variances = {name: asymptotic_variance(truth, *reading) for name, reading in READINGS.items()}
    return {name: variance / variances[LISTWISE] for name, variance in variances.items()}


def asymptotic_variance(truth: Float[Tensor, " I"], loss: RewardLoss, count: int) -> float:
    """Of the fitted scores, summed over items, times the number of rankings, by enumeration of all rankings.

    The covariance of a minimizer is H⁻¹ J H⁻¹, with H the loss's expected Hessian and J the covariance of its gradient
    (Huber 1967).
    """
    items = torch.tensor(list(combinations(range(len(truth)), count)))
    rankings = items[:, torch.tensor(list(permutations(range(count))))].flatten(0, 1)
    scores = truth[rankings].requires_grad_()
    (by_place,) = torch.autograd.grad(each(loss, scores).sum(), scores)
    gradients = torch.zeros(len(rankings), len(truth), dtype=truth.dtype).scatter(1, rankings, by_place)
    probabilities = each(PlackettLuce(), truth[rankings]).neg().exp() / len(items)
    covariance = gradients.T @ (gradients * probabilities[:, None])
    hessian = torch.autograd.functional.hessian(lambda scores: probabilities @ each(loss, scores[rankings]), truth)
    inverse = torch.linalg.pinv(hessian)  # the level of the scores is free
    return float((inverse @ covariance @ inverse).trace())


def draw_rankings(scores: Float[Tensor, " I"], count: int, generator: torch.Generator) -> Int[Tensor, "R K"]:
    """Rankings of random items: choose the best of them, then the best of the rest, and so on."""
    chosen = torch.rand(count, len(scores), generator=generator).argsort(-1)[:, :RANKED]
    worths, places = scores[chosen].exp(), []
    for _ in range(RANKED):
        places.append(torch.multinomial(worths, 1, generator=generator))
        worths = worths.scatter(1, places[-1], 0.0)
    return chosen.gather(1, torch.cat(places, dim=1))


def fit(loss: RewardLoss, scores_of: Callable[[Tensor], Float[Tensor, "B K"]], parameters: int) -> Float[Tensor, " P"]:
    """The parameters with the least mean loss."""
    found = torch.zeros(parameters, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        mean = each(loss, scores_of(found)).mean()
        mean.backward()
        return mean

    optimizer.step(closure)
    return found.detach()


def each(loss: RewardLoss, scores: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """Loss of examples without a margin and of equal length."""
    examples = [PreferencePair("", "", "")] * len(scores)
    return loss.of(scores, torch.ones_like(scores, dtype=torch.bool), examples)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


if __name__ == "__main__":
    main()
