"""A/A: a comparison of an arm with itself, in which no difference may be found."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.experiment.spec import Experiment
from rlhf_lightning.experiment.spec_file import experiment_of

AGAIN = "again"
OTHER_SEEDS = 10_000


def against_itself(experiment: Experiment) -> Experiment:
    """The baseline, as shipped, against itself under other seeds."""
    arm = experiment.arms[experiment.baseline]
    sections: dict[str, Any] = {"label": arm.label, **arm.pipeline}
    again = {**sections, "label": f"{arm.label}, other seeds", "seed_offset": OTHER_SEEDS}
    budgets = {}
    for name, entry in (experiment.content.get("budgets") or {}).items():
        own = experiment.budgets[name].arms.get(arm.name)
        rest = {key: value for key, value in (entry or {}).items() if key not in ("arms", "arms_only", "trials")}
        budgets[name] = rest if own is None else {**rest, "arms": {arm.name: own, f"{arm.name} {AGAIN}": own}}
    kept = {
        key: value for key, value in experiment.content.items() if key not in ("groups", "tune", "equal", "baseline")
    }
    content = {
        **kept,
        "title": f"{arm.label} against itself",
        "arms": {arm.name: sections, f"{arm.name} {AGAIN}": again},
        "claims": [{"better": [arm.name, f"{arm.name} {AGAIN}"], "kind": "two-sided"}],
        "budgets": budgets,
    }
    return experiment_of(content, f"{experiment.name}-aa", experiment.name)
