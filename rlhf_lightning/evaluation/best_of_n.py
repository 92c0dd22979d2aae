"""What best-of-n sampling makes of a policy: proxy and gold reward for n = 1, 2, 4, …, from one sample of N."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.intervals import student_interval
from rlhf_lightning.ops.best_of_n import best_of_n, best_of_n_kl


def best_of_n_table(
    scores: Float[Tensor, "P N"], rewards: Mapping[str, Float[Tensor, "P N"]], *, level: float = 0.95
) -> pd.DataFrame:
    """One row for each n: its KL, and every reward of the response with the highest score.

    Args:
        scores: by which responses are selected; a row for each prompt.
        rewards: what is averaged, by name.
        level: of the intervals.

    Returns:
        Columns ``n``, ``kl``, and for each reward ``NAME``, ``NAME_low`` and ``NAME_high``, its mean over prompts with
        Student's interval, and ``NAME_gain``, ``NAME_gain_low`` and ``NAME_gain_high``, the same for its difference
        from n = 1 on the same prompt, which is measured far more precisely. Ends of intervals are NaN for one prompt.
    """
    first = {name: best_of_n(scores, values, n=1) for name, values in rewards.items()}
    rows = []
    for n in sizes(scores.shape[1]):
        row: dict[str, float] = {"n": n, "kl": best_of_n_kl(n)}
        for name, values in rewards.items():
            means = best_of_n(scores, values, n=n)
            row |= _with_ends(name, means, level) | _with_ends(f"{name}_gain", means - first[name], level)
        rows.append(row)
    return pd.DataFrame(rows)


def sizes(most: int) -> Iterator[int]:
    """1, 2, 4, … up to ``most``, and ``most`` itself."""
    n = 1
    while n < most:
        yield n
        n *= 2
    yield most


def _with_ends(name: str, values: Float[Tensor, " P"], level: float) -> dict[str, float]:
    mean, half = student_interval(values.tolist(), level=level)
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}
