"""By how much arms differ that were run with several seeds, and whether that is more than chance."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlhf_lightning.intervals import student_interval, welch_interval
from rlhf_lightning.plots.kit.style import plus_minus
from rlhf_lightning.records.arms import Arm, seed_of
from rlhf_lightning.report.cells import CellReader, sections

_MOST_FOR_ALL_PAIRS = 4


@dataclass(frozen=True)
class Contrast:
    """How one arm differs from another at the last evaluation.

    Args:
        difference: of the means, with half the width of its 95 % interval.
        verdict: ``higher``, ``lower`` or ``not told apart``.
        seeds: how many, and whether they were paired.
    """

    measure: str
    arm: str
    baseline: str
    difference: str
    verdict: str
    seeds: str


def contrasts(arms: Sequence[Arm]) -> list[Contrast]:
    """The differences of the first measure that the arms of one kind and task share.

    Between all pairs of up to four arms; of more, between each and the first. Where two arms share two seeds or more,
    it is the mean difference of runs of the same seed (Student); otherwise that of the means (Welch). An arm of one
    seed has none.
    """
    runs = [run for arm in arms for run in arm.runs]
    found: list[Contrast] = []
    for section in sections(runs):
        by_task: dict[str, list[Arm]] = {}
        for arm in arms:
            parts = tuple(part for run in arm.runs if (part := run.find(*section.kinds)) is not None)
            if len(parts) > 1:
                by_task.setdefault(parts[0].task, []).append(Arm(arm.name, parts))
        for of_task in by_task.values():
            found += _of_task(of_task, section.measures)
    return found


def _of_task(arms: Sequence[Arm], measures: Sequence[CellReader]) -> Iterator[Contrast]:
    for measure in measures:
        values = {arm.name: _by_seed(arm, measure) for arm in arms}
        if all(len(its) > 1 for its in values.values()):
            names = [arm.name for arm in arms]
            pairs = [*itertools.combinations(names, 2)]
            if len(names) > _MOST_FOR_ALL_PAIRS:
                pairs = [(names[0], name) for name in names[1:]]
            yield from (_contrast(measure.label, baseline, name, values) for baseline, name in pairs)
            return


def _by_seed(arm: Arm, measure: CellReader) -> dict[int | None, float]:
    """The last value of a measure in each run that has one, by the run's seed."""
    if measure.values is None:
        return {}
    series = {seed_of(run): measure.values(run) for run in arm.runs}
    return {seed: float(values.iloc[-1]) for seed, values in series.items() if len(values)}


def _contrast(label: str, baseline: str, name: str, values: Mapping[str, Mapping[int | None, float]]) -> Contrast:
    ours, theirs = values[name], values[baseline]
    shared = [seed for seed in ours if seed in theirs]
    if len(shared) > 1:
        mean, half = student_interval([ours[seed] - theirs[seed] for seed in shared])
        seeds = f"{len(shared)}, paired"
    else:
        mean, half = welch_interval([*ours.values()], [*theirs.values()])
        seeds = f"{len(ours)} and {len(theirs)}, not paired"
    verdict = "higher" if mean - half > 0 else "lower" if mean + half < 0 else "not told apart"
    return Contrast(label, name, baseline, plus_minus(mean, half, sign=True), verdict, seeds)
