"""What figures and report read from runs: rewards, the experience they cost, and what may be compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit.dots import Z
from rlhf_lightning.plots.kit.style import MARKERS, looks
from rlhf_lightning.records.arms import arms
from rlhf_lightning.records.runs import Run

Runs: TypeAlias = Run | Sequence[Run] | Mapping[str, Sequence[Run]]
"""What figures of several runs take: runs, those that differ in the seed alone being one arm; or arms by name."""


@dataclass(frozen=True)
class Entry:
    """One of several arms of a policy's training, as every figure of them shows it.

    Args:
        runs: that trained the policy, one for each seed.
        marker: of its line, where any arm has several seeds.
    """

    runs: tuple[Run, ...]
    name: str
    color: str
    marker: str = ""

    @property
    def run(self) -> Run:
        """The run that came furthest: what it declares, they all do."""
        return max(self.runs, key=lambda run: len(run.metrics))

    @property
    def title(self) -> str:
        """The name, after the arm's marker where it has one."""
        return f"{MARKERS[self.marker]} {self.name}" if self.marker else self.name


def entries(runs: Runs) -> list[Entry]:
    """The arms that trained a policy, with what sets them apart where a figure leaves some out."""
    if isinstance(runs, Mapping):
        found = {name: tuple(run.policy for run in its if run.policy is not None) for name, its in runs.items()}
    else:
        given = [runs] if isinstance(runs, Run) else runs
        trained = {id(run): run.policy for run in given if run.policy is not None}
        arms_of = arms([run for run in given if id(run) in trained])
        found = {arm.name: tuple(trained[id(run)] for run in arm.runs) for arm in arms_of}
    marked = any(len(its) > 1 for its in found.values())
    return [
        Entry(its, name, color, marker if marked else "")
        for (name, its), (color, marker) in zip(found.items(), looks(), strict=False)
        if its
    ]


def families(runs: Runs) -> list[str]:
    """The kinds of training among some runs; within one of them all figures share their units."""
    return list(dict.fromkeys(family(entry.run) for entry in entries(runs) if len(entry.run.metrics)))


def family(run: Run) -> str:
    """What a policy run is trained on, in words: an environment, a task, preference pairs."""
    if run.kind == "preference":
        declared = run.description and run.description.experience
        return f"{run.task} {declared.unit if declared else 'feedback'}".strip()
    return run.task or run.kind


def measured(run: Run, metric: str) -> pd.Series:
    """A metric of evaluations, or of the training batches where it was not evaluated."""
    held_out = run.series(f"eval/{metric}")
    return held_out if len(held_out) else run.series(f"objective/{metric}")


def trained_on_gold(run: Run) -> bool:
    """Whether the score that is trained on is the gold reward itself."""
    score, gold = measured(run, "score"), measured(run, "gold")
    shared = score.index.intersection(gold.index)
    return len(shared) > 0 and bool(np.allclose(score[shared], gold[shared], rtol=1e-4, atol=1e-6))


def has_proxy(run: Run) -> bool:
    """Whether a text policy is trained on a score other than gold, and gold is measured beside it."""
    return len(measured(run, "gold")) > 0 and len(measured(run, "score")) > 0 and not trained_on_gold(run)


def rewards_need_a_figure(runs: Sequence[Run]) -> bool:
    """Whether rewards are drawn by themselves: those of a single run with a proxy are in the proxy's figure."""
    return len(runs) > 1 or not all(has_proxy(run.policy) for run in runs if run.policy is not None)


@dataclass(frozen=True)
class XAxis:
    """What a figure counts from left to right, and how far a run had come at each of its iterations or steps.

    Args:
        unit: what is counted: environment steps, sampled responses, preference pairs, iterations or steps.
        count: by iteration or step, from the beginning.
    """

    unit: str
    count: pd.Series

    def along(self, series: pd.Series) -> pd.Series:
        """A metric, indexed by the count at each of its iterations or steps."""
        return pd.Series(series.to_numpy(), index=self.count[series.index].to_numpy(), name=series.name)


def by_iteration(run: Run) -> XAxis:
    """Iterations or steps as they are."""
    steps = run.metrics[run.axis].to_numpy()
    return XAxis(run.axis, pd.Series(steps.astype(float), index=steps))


def experience(run: Run) -> XAxis:
    """What a policy run has learned from so far, as it declares it; iterations or steps where nothing counts it."""
    iterations = by_iteration(run)
    declared = run.description and run.description.experience
    if not declared:
        return iterations
    if declared.per_step is not None:
        return XAxis(declared.unit, iterations.count * declared.per_step)
    counted = run.series(declared.counter)
    if not len(counted):
        return iterations
    if counted.index[0] > 0:  # Before the first iteration nothing is counted yet.
        counted = pd.concat([pd.Series({0: 0.0}), counted])
    steps = iterations.count.index
    count = np.interp(steps, counted.index.to_numpy(dtype=float), counted)
    return XAxis(declared.unit, pd.Series(count, index=steps))


def win_rate(run: Run) -> tuple[pd.Series, str]:
    """How often replies are preferred to the reference model's, and the last interval in percent; or empty."""
    rate, low, high = (run.series(f"eval/win_rate{end}") for end in ("", "_low", "_high"))
    return rate, f"{100 * low.iloc[-1]:.0f}–{100 * high.iloc[-1]:.0f} %" if len(low) and len(high) else ""


def tolerance(series: pd.Series) -> float:
    """A difference between two evaluations below this may be noise.

    Three times the noise of single values, estimated from second differences (white noise of deviation σ gives
    √6 σ), and at least 2 % of the series' range. Fewer than five values tell nothing of their noise: then it is a
    fifth of their range.
    """
    values = series.to_numpy(dtype=float)
    if len(values) < 5:
        return 0.2 * float(np.ptp(values))
    noise = float(np.median(np.abs(np.diff(values, 2)))) / 0.6745 / np.sqrt(6)
    return max(3 * noise, 0.02 * float(np.ptp(values)))


def of_one_family(runs: Runs, wanted: str | None) -> list[Entry]:
    """The policy runs of one family.

    Raises:
        UserError: there is none, or no family was named and there are several.
    """
    several = families(runs)
    if wanted is None and len(several) > 1:
        raise UserError(f"expected runs of one family, got {', '.join(several)}; name one of them as family")
    found = [entry for entry in entries(runs) if len(entry.run.metrics) and wanted in (None, family(entry.run))]
    if not found:
        lists = runs.values() if isinstance(runs, Mapping) else [[runs] if isinstance(runs, Run) else runs]
        given = itertools.chain.from_iterable(lists)
        raise UserError(f"{', '.join(str(run.path) for run in given)}: no policy run with metrics")
    return found


def reward_evaluation(run: Run) -> tuple[str, Mapping[str, Any]]:
    """Name of a reward model's run and what was measured of it, both empty where there is none."""
    found = run.find("reward")
    return (found.name, found.evaluation or {}) if found else ("", {})


def chance_error(bins: Sequence[Mapping[str, Any]]) -> float:
    """The calibration error that a perfectly calibrated model can be expected to show on so many pairs.

    The share that comes true in a bin of n pairs deviates from p by √(2/π · p (1 − p) / n) on average.
    """
    total = sum(entry["count"] for entry in bins)
    deviations = (math.sqrt(entry["confidence"] * (1 - entry["confidence"]) * entry["count"]) for entry in bins)
    return math.sqrt(2 / math.pi) * sum(deviations) / total if total else 0.0


def attainable(ceiling: float | None) -> str:
    """The best accuracy that was attainable, to be appended to one; empty where it is unknown."""
    return "" if ceiling is None else f" of {100 * ceiling:.1f} % attainable"


def bias_is_clear(row: Mapping[str, Any]) -> bool:
    """Whether a bias is neither noise nor negligible: its 95 % interval misses 0, and it exceeds 0.1 deviations."""
    error = row["standard_error"]
    return error is not None and abs(row["change"]) > max(Z * error, 0.1)
