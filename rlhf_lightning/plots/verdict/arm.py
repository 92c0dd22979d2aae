"""How the seeds of one arm went, together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from rlhf_lightning.intervals import student_interval
from rlhf_lightning.plots.kit.style import number, plus_minus
from rlhf_lightning.plots.measures import measured
from rlhf_lightning.plots.quantities import reward_name
from rlhf_lightning.plots.verdict.policy import judge
from rlhf_lightning.plots.verdict.statement import RunOutcome, Verdict
from rlhf_lightning.records.arms import seed_of
from rlhf_lightning.records.runs import Run

_CLAUSES: dict[RunOutcome, str] = {
    "exploited": "gold fell from its peak while the proxy rose on",
    "declined": "the reward fell from its peak",
    "improved": "the reward rose and held to the end",
    "flat": "the reward did not change beyond its noise",
    "trained_on_gold": "the reward trained on is the gold reward itself",
    "no_gold": "there is no gold reward to check the reward against",
    "unmeasured": "there are fewer than two evaluations",
}


def judge_arm(runs: Sequence[Run]) -> Verdict:
    """What happened in runs that differ in the seed alone; of a single one what `judge` says.

    The outcome is that of most seeds.
    """
    if len(runs) == 1:
        return judge(runs[0])
    metric = "gold" if any(len(measured(run, "gold")) for run in runs) else "score"
    series = [values for run in runs if len(values := measured(run, metric)) > 1]
    outcomes = {run.path: judge(run).outcome for run in runs}
    (common, count), *others = Counter(outcomes.values()).most_common()
    if not series:
        return Verdict("unmeasured", "Too early to tell", [f"{_seeds(count, len(runs))} {_CLAUSES[common]}."])
    name = "Gold reward" if metric == "gold" else reward_name(runs)
    first, ends = fmean(values.iloc[0] for values in series), [float(values.iloc[-1]) for values in series]
    headline = f"{name}: {number(first)} → {plus_minus(*student_interval(ends))}, mean of {len(series)} seeds"
    sentences = [f"{_seeds(count, len(runs))} {_CLAUSES[common]}."]
    for outcome, _ in others:
        which = ", ".join(str(seed_of(run)) for run in runs if outcomes[run.path] == outcome)
        sentences.append(f"In {'seeds' if ',' in which else 'seed'} {which} {_CLAUSES[outcome]}.")
    sentences.append(f"The seeds ended between {number(min(ends))} and {number(max(ends))}.")
    return Verdict(common, headline, sentences)


def _seeds(count: int, of: int) -> str:
    if count == of:
        return f"In {'both' if of == 2 else f'all {of}'} seeds"
    return f"In {count} of {of} seeds"
