"""Which quantities the panels of a dashboard show: those that its runs declare or log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from rlhf_lightning.plots.kit.style import GOLD, HELD_OUT, KL, PLAIN, PROXY, WARN
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.records.runs import Run

COLORS = {"plain": PLAIN, "score": PROXY, "gold": GOLD, "heldout": HELD_OUT, "kl": KL, "warning": WARN}
"""The colour of each role of a metric, where a figure shows one run."""


@dataclass(frozen=True)
class Quantity:
    """What one panel shows: a metric of several runs.

    Args:
        metric: as the first run declares it, which says how the panel looks.
        metrics: as each of the runs declares it, in their order; None for a run without it.
        title: of the panel; it names the algorithm where others have a metric of the same name.
    """

    metric: Metric
    metrics: tuple[Metric | None, ...]
    title: str


def quantities(runs: Sequence[Run]) -> list[Quantity]:
    """What some runs of one family have logged: declared metrics in their order, then those that are only logged.

    Metrics are matched by name, and by algorithm where their meaning depends on it.
    """
    logged = [
        (index, run, metric) for index, run in enumerate(runs) for metric in run.panels if has_values(run, metric)
    ]
    logged.sort(key=lambda entry: entry[2] not in _declared(entry[1]))
    matched: dict[str, dict[str, dict[int, Metric]]] = {}
    for index, run, metric in logged:
        matched.setdefault(metric.key, {}).setdefault(run.algorithm if metric.own else "", {})[index] = metric
    several = len({run.algorithm for run in runs}) > 1
    found = []
    for algorithm, by_run in (item for by_algorithm in matched.values() for item in by_algorithm.items()):
        first = next(iter(by_run.values()))
        title = f"{first.title} of {algorithm}" if algorithm and several else first.title
        found.append(Quantity(first, tuple(by_run.get(index) for index in range(len(runs))), title))
    return found


def _declared(run: Run) -> tuple[Metric, ...]:
    return () if run.description is None else run.description.metrics


def has_values(run: Run, metric: Metric) -> bool:
    """Whether a run has logged a metric, with more than one value where it is shown only if it varies."""
    if metric.only_if_varying:
        return training(run, metric).nunique() > 1
    return len(training(run, metric)) > 0 or len(run.series(metric.heldout)) > 0


def training(run: Run, metric: Metric) -> pd.Series:
    """A metric in a run's training batches."""
    values = run.series(metric.name)
    if not metric.per:
        return values
    divisor = run.series(metric.per)
    return (values / divisor[divisor != 0]).dropna()


def interval(run: Run, metric: Metric) -> tuple[pd.Series, pd.Series] | None:
    """Both ends of a metric's confidence interval in evaluations, where there is one."""
    low, high = run.series(f"{metric.heldout}_low"), run.series(f"{metric.heldout}_high")
    return (low, high) if len(low) and len(low) == len(high) else None


def objectives(runs: Sequence[Run]) -> list[str]:
    """Names of the objectives that some runs were evaluated on, each by itself."""
    prefix = "eval/score_"
    keys = dict.fromkeys(metric.heldout for run in runs for metric in _declared(run) or run.panels)
    return [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]


def reward_name(runs: Sequence[Run]) -> str:
    """What the score of some runs is called: the title that the first of them declares."""
    titles = (m.title for run in runs for m in run.panels if m.key in ("eval/score", "objective/score"))
    return next(titles, "Reward")
