"""Several tasks pooled: interquartile mean, probability of improvement, performance profile (Agarwal et al. 2021).

With one task none of them is offered. The interquartile mean of five seeds is the mean of the middle three, which
hides the seeds that failed instead of the tasks that are odd; the other two describe how results spread over tasks.

Intervals are percentiles of a stratified bootstrap: runs are resampled within each task, so that every resample has
as many runs of each task as there are. Resamples are drawn from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd

from rlhf_lightning.errors import UserError, suggestion
from rlhf_lightning.experiment.statistics.scores import ARM, TASK, MeasureScale, Numbers, filled

REPETITIONS = 2_000

_Tasks: TypeAlias = list[Numbers]
"""For each task the values of its runs, ``[..., runs]``."""


def interquartile_means(table: pd.DataFrame, scale: MeasureScale) -> pd.DataFrame:
    """Per arm the mean of the middle half of all its runs: ``arm``, ``iqm``, ``iqm_low``, ``iqm_high`` (95 %).

    Raises:
        UserError: the table has one task only, or as `filled`.
    """
    rows = []
    for arm, tasks in _by_arm(table, scale).items():
        low, high = _percentiles(_interquartile_mean(_resampled(tasks)))
        rows.append(
            {ARM: arm, "iqm": float(_interquartile_mean(tasks)), "iqm_low": float(low), "iqm_high": float(high)}
        )
    return pd.DataFrame(rows)


def probability_of_improvement(
    table: pd.DataFrame, scale: MeasureScale, first: str, second: str
) -> tuple[float, float, float]:
    """How probable it is that a run of the first arm is better than one of the second, on a task drawn at random.

    The mean over tasks of the Mann–Whitney statistic; a tie counts one half. Pairs by seed play no part.

    Returns:
        The probability, and both ends of its 95 % interval.

    Raises:
        UserError: the table has one task only, an arm has no run, or as `filled`.
    """
    tasks = _by_arm(table, scale)
    for arm in (first, second):
        if arm not in tasks:
            raise UserError(
                f"no run of arm {arm!r}: {suggestion(arm, tasks, otherwise='arms are ' + ', '.join(tasks))}"
            )

    def probability(one: _Tasks, other: _Tasks) -> Numbers:
        return np.mean([_mann_whitney(scale.sign * x, scale.sign * y) for x, y in zip(one, other, strict=True)], axis=0)

    low, high = _percentiles(probability(_resampled(tasks[first]), _resampled(tasks[second], stream=1)))
    return float(probability(tasks[first], tasks[second])), float(low), float(high)


def performance_profile(
    table: pd.DataFrame, scale: MeasureScale, thresholds: Sequence[float] | None = None
) -> pd.DataFrame:
    """Which share of an arm's runs does better than a threshold: ``arm, threshold, share, low, high`` (95 %).

    The share is the mean over tasks of the share of runs (Agarwal et al. 2021, section 4.2), pointwise intervals.

    Args:
        thresholds: by default all values that occur, or 101 that are spread evenly where there are more.

    Raises:
        UserError: the table has one task only, or as `filled`.
    """
    tasks = _by_arm(table, scale)
    if thresholds is None:
        thresholds = np.unique(np.concatenate([values for runs in tasks.values() for values in runs])).tolist()
        if len(thresholds) > 101:
            thresholds = np.linspace(thresholds[0], thresholds[-1], 101).tolist()
    frames = []
    for arm, runs in tasks.items():
        again = _resampled(runs)
        bands = [_percentiles(_share_beyond(again, threshold, scale.sign)) for threshold in thresholds]
        frames.append(
            pd.DataFrame(
                {
                    ARM: arm,
                    "threshold": list(thresholds),
                    "share": [float(_share_beyond(runs, threshold, scale.sign)) for threshold in thresholds],
                    "low": [low for low, _ in bands],
                    "high": [high for _, high in bands],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _by_arm(table: pd.DataFrame, scale: MeasureScale) -> Mapping[str, _Tasks]:
    """By arm, for each task the values of its runs."""
    runs, _ = filled(table, scale)
    names = sorted(runs[TASK].unique())
    if len(names) < 2:
        raise UserError("statistics over several tasks need a column 'task' with at least two tasks")
    found = {}
    for arm, mine in runs.groupby(ARM, sort=False):
        tasks = [mine.loc[mine[TASK] == name, scale.name].to_numpy(dtype=float) for name in names]
        for name, values in zip(names, tasks, strict=True):
            if not len(values):
                raise UserError(f"arm {arm} has no run of task {name}: pooling needs every task of every arm")
        found[str(arm)] = tasks
    return found


def _interquartile_mean(tasks: _Tasks) -> Numbers:
    """Of all runs together, without the lowest and the highest quarter."""
    from scipy.stats import trim_mean

    return trim_mean(np.concatenate(tasks, axis=-1), 0.25, axis=-1)


def _mann_whitney(x: Numbers, y: Numbers) -> Numbers:
    """P(X > Y) + ½ P(X = Y)."""
    one, other = x[..., :, None], y[..., None, :]
    return np.mean((one > other) + 0.5 * (one == other), axis=(-2, -1))


def _share_beyond(tasks: _Tasks, threshold: float, sign: int) -> Numbers:
    return np.mean([np.mean(sign * values > sign * threshold, axis=-1) for values in tasks], axis=0)


def _resampled(tasks: _Tasks, *, stream: int = 0) -> _Tasks:
    """`REPETITIONS` resamples of the runs of each task."""
    rng = np.random.default_rng(stream)
    return [values[rng.integers(len(values), size=(REPETITIONS, len(values)))] for values in tasks]


def _percentiles(repeated: Numbers) -> Numbers:
    return np.percentile(repeated, [2.5, 97.5])
