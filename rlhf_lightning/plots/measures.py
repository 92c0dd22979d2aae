"""What figures and report read from runs: rewards, the experience they cost, and what may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit.dots import Z
from rlhf_lightning.plots.kit.style import RUNS
from rlhf_lightning.records.runs import Run, names


@dataclass(frozen=True)
class Entry:
    """One of several runs, with the name and the colour that it has in every figure of them.

    Args:
        run: the run that trained a policy; a pipeline's stage.
    """

    run: Run
    name: str
    color: str


def entries(runs: Run | Sequence[Run]) -> list[Entry]:
    """The runs that trained a policy. Names and colours are given before anybody leaves some of them out."""
    found = [runs] if isinstance(runs, Run) else list(runs)
    found = [run for run in found if run.policy is not None]
    return [
        Entry(policy, name, RUNS[index % len(RUNS)])
        for index, (run, name) in enumerate(zip(found, names(found), strict=True))
        if (policy := run.policy) is not None
    ]


def families(runs: Run | Sequence[Run]) -> list[str]:
    """The kinds of training among some runs; within one of them all figures share their units."""
    return list(dict.fromkeys(family(entry.run) for entry in entries(runs) if len(entry.run.metrics)))


def family(run: Run) -> str:
    """What a policy run is trained on, in words: an environment, a task, preference pairs."""
    return f"{run.task} preference pairs".strip() if run.kind == "preference" else run.task or run.kind


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
    """Whether a text policy has both gold and another score, so that the two can part."""
    return len(measured(run, "gold")) > 0 and len(measured(run, "score")) > 0 and not trained_on_gold(run)


@dataclass(frozen=True)
class Experience:
    """What a run has learned from at each of its iterations or steps.

    Args:
        unit: environment steps, sampled responses, or preference pairs; ``iteration`` or ``step`` where the run does
            not say how many of them it took.
        count: by iteration or step, from the beginning.
    """

    unit: str
    count: pd.Series

    def of(self, series: pd.Series) -> pd.Series:
        """A metric, indexed by the experience at each of its iterations or steps."""
        return pd.Series(series.to_numpy(), index=self.count[series.index].to_numpy(), name=series.name)


def by_iteration(run: Run) -> Experience:
    """Iterations or steps as they are."""
    steps = run.metrics[run.axis].to_numpy()
    return Experience(run.axis, pd.Series(steps.astype(float), index=steps))


def experience(run: Run) -> Experience:
    """What a policy run has learned from so far, in the unit of its kind."""
    along = by_iteration(run)
    steps = along.count.index
    if run.kind == "preference":
        size = run.setting("data.init_args.batch_size")
        return Experience("preference pairs", along.count * size) if isinstance(size, int) else along
    column, unit = ("env_steps", "environment steps") if run.kind == "control" else ("samples", "sampled responses")
    counted = run.series(column)
    if not len(counted):
        return along
    if counted.index[0] > 0:  # Before the first iteration nothing is counted yet.
        counted = pd.concat([pd.Series({0: 0.0}), counted])
    count = np.interp(steps, counted.index.to_numpy(dtype=float), counted)
    return Experience(unit, pd.Series(count, index=steps))


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


def of_one_family(runs: Run | Sequence[Run], wanted: str | None) -> list[Entry]:
    """The policy runs of one family.

    Raises:
        UserError: there is none, or no family was named and there are several.
    """
    found = entries(runs)
    paths = [runs.path] if isinstance(runs, Run) else [run.path for run in runs]
    if wanted is None:
        several = families(runs)
        if len(several) > 1:
            raise UserError(f"expected runs of one family, got {', '.join(several)}; name one of them as family")
        wanted = several[0] if several else None
    found = [entry for entry in found if family(entry.run) == wanted and len(entry.run.metrics)]
    if not found:
        raise UserError(f"{', '.join(str(path) for path in paths)}: no policy run with metrics")
    return found


def bias_is_clear(row: Mapping[str, Any]) -> bool:
    """Whether a bias is neither noise nor negligible: its 95 % interval misses 0, and it exceeds 0.1 deviations."""
    error = row["standard_error"]
    return error is not None and abs(row["change"]) > max(Z * error, 0.1)
