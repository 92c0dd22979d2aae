"""Whether verdicts err as rarely, and find as much, as they say: simulated comparisons, whose truth is known.

    python benchmarks/calibration.py

Every comparison goes through the p values, and the correction for several claims that verdicts rest on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, t

from rlhf_lightning.experiment.claims.base import ArmClaim
from rlhf_lightning.experiment.claims.chains import BestOf, Ordered
from rlhf_lightning.experiment.claims.contrasts import Better, Increasing, LessSpread
from rlhf_lightning.experiment.claims.together import adjusted_p
from rlhf_lightning.experiment.statistics.arms import mean_estimate
from rlhf_lightning.experiment.statistics.multiplicity import adjusted
from rlhf_lightning.experiment.statistics.power import seeds_for_equivalence, seeds_to_detect
from rlhf_lightning.experiment.statistics.scores import ArmValues, MeasureScale, Numbers

ROOT = Path(__file__).resolve().parent.parent
SCALE = MeasureScale("score")
ALPHA = 0.05
ARMS = ("a", "b", "c", "d", "e")
SEEDS = (5, 10, 12, 20)

Flags: TypeAlias = NDArray[np.bool_]
Correction: TypeAlias = Callable[[Sequence[ArmClaim], Sequence[tuple[Any, Any]]], Numbers]

DRAWS: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], Numbers]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "lognormal": lambda rng, shape: rng.lognormal(size=shape) / np.sqrt((np.e - 1) * np.e),
    # half of the runs solve the task
    "bimodal": lambda rng, shape: rng.choice([-1.0, 1.0], size=shape) + 0.25 * rng.normal(size=shape),
    # one run in five collapses
    "collapsing": lambda rng, shape: 0.25 * rng.normal(size=shape) - 2.5 * (rng.random(shape) < 0.2),
}
"""How the results of an arm spread over seeds; the standard deviation is about 1."""


def simulated(
    draw: str,
    comparisons: int,
    seeds: int,
    *,
    common: float = 0.0,
    shifts: Mapping[str, float] | None = None,
    arms: Sequence[str] = ARMS,
    seed: int = 0,
) -> dict[str, Numbers]:
    """Results of some arms, ``[comparisons, seeds]``.

    Args:
        common: standard deviation of what the runs of one seed share.
        shifts: true means of the arms that are not 0.
    """
    rng = np.random.default_rng([seed, seeds])
    shared = common * rng.normal(size=(comparisons, seeds))
    return {arm: DRAWS[draw](rng, (comparisons, seeds)) + shared + (shifts or {}).get(arm, 0.0) for arm in arms}


@dataclass(frozen=True)
class Shown:
    """What is shown at level α, all claims accounted for: bool, ``[comparisons, claims]``."""

    better: Flags
    worse: Flags
    equivalent: Flags


def shown(claims: Sequence[ArmClaim], values: ArmValues, *, correct: Correction = adjusted_p) -> Shown:
    """What each comparison shows of each claim.

    Args:
        correct: for the number of claims.
    """
    evidence = [claim.p_values(values, SCALE) for claim in claims]
    p = [(found.difference, found.equivalent) for found in evidence]
    corrected = np.array(
        [
            correct(claims, [(one[comparison], None if two is None else two[comparison]) for one, two in p])
            for comparison in range(len(p[0][0]))
        ]
    )
    toward = np.stack([found.toward < found.against for found in evidence], axis=1)
    different, equivalent = (corrected[..., hypothesis] <= ALPHA for hypothesis in (0, 1))
    return Shown(better=different & toward, worse=different & ~toward, equivalent=equivalent)


def two_families(claims: Sequence[ArmClaim], p: Sequence[tuple[Any, Any]]) -> Numbers:
    """Holm's procedure for differences, and another one for equivalences."""
    rows = np.array(p, dtype=float)
    return np.concatenate([adjusted(rows[:, :1]), adjusted(rows[:, 1:])], axis=1)


def share_with_any(wrong: Flags) -> float:
    """The share of comparisons in which anything wrong was shown."""
    return float(np.mean(wrong.any(axis=1)))


def differences(count: int, *, margin: float | None = None) -> list[ArmClaim]:
    """Claims that further arms are better than the first."""
    return [Better(measure="score", first=arm, second="a", margin=margin) for arm in ARMS[1 : count + 1]]


def mixed_claims() -> list[ArmClaim]:
    """Four claims of different kinds."""
    return [
        Ordered(measure="score", ordered=("a", "b")),
        BestOf(measure="score", candidates=("a", "b"), rivals=("c",)),
        Increasing(measure="score", ordered=("a", "b", "c")),
        LessSpread(measure="score", first="a", second="e"),
    ]


def false_differences(claims: Sequence[ArmClaim], draw: str, comparisons: int, seeds: int, common: float) -> float:
    """The share of comparisons of equal arms in which a claim is found better or worse."""
    found = shown(claims, simulated(draw, comparisons, seeds, common=common))
    return share_with_any(found.better | found.worse)


def false_equivalences(draw: str, comparisons: int, seeds: int, *, claims: int, margin: float) -> float:
    """The share of comparisons in which an arm is found equivalent that differs by exactly the margin."""
    values = simulated(draw, comparisons, seeds, shifts=dict.fromkeys(ARMS[1:], margin))
    return share_with_any(shown(differences(claims, margin=margin), values).equivalent)


def false_of_both_kinds(draw: str, comparisons: int, seeds: int, margin: float) -> tuple[float, float]:
    """Two pairs of equal arms and two that differ by the margin: the share of comparisons that show anything false.

    Returns:
        With our correction, and with `two_families`.
    """
    pairs = [("a", "b"), ("c", "d"), ("e", "f"), ("g", "h")]
    values = simulated(draw, comparisons, seeds, shifts={"e": margin, "g": margin}, arms="abcdefgh")
    claims = [Better(measure="score", first=first, second=second, margin=margin) for first, second in pairs]
    differ = np.array([False, False, True, True])
    ours, theirs = (
        share_with_any(found.worse | np.where(differ, found.equivalent, found.better))
        for found in (shown(claims, values), shown(claims, values, correct=two_families))
    )
    return ours, theirs


def power_at(difference: float, seeds: int, level: float, comparisons: int) -> float:
    """How often a true difference is found, in units of the standard deviation of paired differences."""
    values = simulated("normal", comparisons, seeds, shifts={"b": difference * np.sqrt(2)})
    return float(np.mean(differences(1)[0].p_values(values, SCALE).difference <= level))


def equivalence_power_at(margin: float, seeds: int, level: float, comparisons: int) -> float:
    """How often equal arms are found equivalent within a margin, in units of the spread of paired differences."""
    claim = differences(1, margin=margin * np.sqrt(2))[0]
    p = claim.p_values(simulated("normal", comparisons, seeds), SCALE).equivalent
    assert p is not None
    return float(np.mean(p <= level))


def coverage(draw: str, comparisons: int, seeds: int) -> tuple[float, float]:
    """How often our 95 % interval of a mean and the percentile bootstrap's hold the true mean."""
    values = simulated(draw, comparisons, seeds, arms="a")["a"]
    truth = float(np.mean(simulated(draw, 1_000, 1_000, arms="a", seed=1)["a"]))
    ours = [mean_estimate(row) for row in values]
    percentile = bootstrap(
        (values,), np.mean, axis=-1, n_resamples=999, method="percentile", batch=100, rng=np.random.default_rng(0)
    ).confidence_interval
    held = np.mean([one.low <= truth <= one.high for one in ours])
    return float(held), float(np.mean((percentile.low <= truth) & (truth <= percentile.high)))


def false_spreads(draw: str, comparisons: int, seeds: int) -> tuple[float, float]:
    """How often ours and Pitman's and Morgan's test find that one of two equal arms spreads less."""
    values = simulated(draw, comparisons, seeds)
    ours = LessSpread(measure="score", first="a", second="b").p_values(values, SCALE).difference
    total, difference = values["a"] + values["b"], values["a"] - values["b"]
    total -= total.mean(axis=-1, keepdims=True)
    difference -= difference.mean(axis=-1, keepdims=True)
    r = np.sum(total * difference, axis=-1) / np.sqrt(np.sum(total**2, axis=-1) * np.sum(difference**2, axis=-1))
    pitman_morgan = 2 * t.sf(np.abs(r) * np.sqrt((seeds - 2) / (1 - r**2)), seeds - 2)
    return float(np.mean(ours <= ALPHA)), float(np.mean(pitman_morgan <= ALPHA))


def main() -> None:
    """Simulate, print the tables and write them to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=2_000, help="per number (default %(default)s)")
    count = parser.parse_args().comparisons
    text = "\n\n".join(
        [
            f"`python benchmarks/calibration.py --comparisons {count}`",
            f"{count:,} simulated comparisons per number; a share of 5 % is known to ± {error_of(0.05, count):.1%}.",
            *_errors(count),
            *_powers(count),
            *_intervals(count),
        ]
    )
    print(text)
    (ROOT / "benchmarks" / "results" / "calibration.md").write_text(text + "\n", encoding="utf-8")


def error_of(share: float, comparisons: int) -> float:
    """Two standard errors of a share."""
    return float(2 * np.sqrt(share * (1 - share) / comparisons))


def _errors(count: int) -> list[str]:
    sets = [
        ("one difference", differences(1), 0.0),
        ("four differences", differences(4), 0.0),
        ("four kinds", mixed_claims(), 0.0),
        ("four kinds, shared noise", mixed_claims(), 2.0),
    ]
    equal = [
        [name, draw, *(f"{false_differences(claims, draw, count, seeds, common):.1%}" for seeds in SEEDS)]
        for name, claims, common in sets
        for draw in DRAWS
    ]
    equivalent = [
        [str(claims), draw]
        + [f"{false_equivalences(draw, count, seeds, claims=claims, margin=3.0):.1%}" for seeds in SEEDS]
        for claims in (1, 4)
        for draw in DRAWS
    ]
    both = [[draw, *(_two(false_of_both_kinds(draw, count, seeds, 4.0)) for seeds in SEEDS)] for draw in DRAWS]
    spreads = [[draw, *(_two(false_spreads(draw, count, seeds)) for seeds in SEEDS)] for draw in DRAWS]
    columns = [f"{seeds} seeds" for seeds in SEEDS]
    return [
        "## Equal arms: any claim found better or worse\n\nAt most 5 % should be. *Four kinds*: an order, the best of "
        "two, a trend and a spread; noise that the runs of a seed share changes the last alone. "
        "Five seeds are too few for any verdict: sign flips of five pairs have "
        "p ≥ 0.0625.",
        table(["claims", "results", *columns], equal),
        "## True difference = margin: any claim found equivalent\n\nAt most 5 % should be.",
        table(["claims", "results", *columns], equivalent),
        "## Two pairs equal, two that differ by the margin: anything false\n\nAt most 5 % should be. In "
        "parentheses: with a Holm procedure for differences and another for equivalences.",
        table(["results", *columns], both),
        "## Equal arms: spread found to differ\n\nOurs, and in parentheses Pitman's and Morgan's test.",
        table(["results", *columns], spreads),
    ]


def _powers(count: int) -> list[str]:
    rows = []
    for claims in (1, 4):
        level = ALPHA / claims
        for size in (2.0, 1.5, 1.0, 0.7, 0.4):
            detect, equal = seeds_to_detect(size, 1.0, level=level), seeds_for_equivalence(size, 1.0, level=level)
            rows.append(
                [
                    str(claims),
                    f"{size:g}",
                    str(detect),
                    f"{power_at(size, detect, level, count):.1%}",
                    str(equal),
                    f"{equivalence_power_at(size, equal, level, count):.1%}",
                ]
            )
    header = ["claims", "size", "seeds for a difference", "found", "seeds for equivalence", "found"]
    return [
        "## Power at the number of seeds that is named\n\nIt should be 80 %, or somewhat more where few seeds are "
        "enough. Normal results; the size is the true difference, or the margin of arms that are equal, in standard "
        "deviations of paired differences. With four claims, at a quarter of the level.",
        table(header, rows),
    ]


def _intervals(count: int) -> list[str]:
    rows = [[draw, *(_two(coverage(draw, count, seeds)) for seeds in (5, 10, 15, 30))] for draw in DRAWS]
    return [
        "## Coverage of the 95 % interval of a mean\n\nStudent's below 15 seeds and BCa bootstrap from there on; in "
        "parentheses the percentile bootstrap.",
        table(["results", "5 seeds", "10", "15", "30"], rows),
    ]


def _two(shares: tuple[float, float]) -> str:
    return f"{shares[0]:.1%} ({shares[1]:.1%})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


if __name__ == "__main__":
    main()
