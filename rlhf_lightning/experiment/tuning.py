"""Equal tuning: every arm gets as many trials as any other, on seeds that the result does not have.

Unequal tuning is the commonest unfairness of comparisons (Patterson et al. 2024, "Empirical Design in Reinforcement
Learning", JMLR). Settings are drawn at random before anything runs, so that all trials can run at once and anywhere;
the first trial of each arm is the arm as shipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.plan import ComparisonPlan, PlannedRun
from rlhf_lightning.experiment.spec import Budget, Experiment, Tuning, with_seeds
from rlhf_lightning.pipeline.stages import dotted
from rlhf_lightning.sweep.space import Space

FOLDER = "tuning"

SEED = 0
"""Of the settings that are drawn."""


@dataclass(frozen=True)
class Trial:
    """Settings of an arm that are tried.

    Args:
        settings: of the arm's measured stage, by key; empty for the arm as shipped.
        runs: one for each tuning seed and task.
    """

    arm: str
    number: int
    settings: Mapping[str, Any]
    runs: list[PlannedRun]


def trials(
    experiment: Experiment, budget: Budget, directory: Path, *, arms: Sequence[str] | None = None
) -> list[Trial]:
    """All trials of all arms that are tuned, the first one of each arm as shipped.

    Args:
        directory: of the comparison's runs.
        arms: the names of those that run.
    """
    tuning = experiment.tuning
    if tuning is None:
        return []
    plan = ComparisonPlan(experiment, with_seeds(budget, tuning.seeds), directory / FOLDER, arms=arms)
    found = []
    for arm in plan.arms:
        if arm.name in tuning.spaces:
            drawn = random_settings(tuning.spaces[arm.name], count_of(tuning, budget) - 1)
            for number, settings in enumerate([{}, *drawn]):
                runs = [
                    PlannedRun(
                        arm.name, task.name, seed, plan.stages(arm, task, seed, settings, f"{arm.name}-{number}")
                    )
                    for seed in tuning.seeds
                    for task in experiment.tasks_of(budget)
                ]
                found.append(Trial(arm.name, number, settings, runs))
    return found


def random_settings(space: Space, count: int) -> list[dict[str, Any]]:
    """Settings by dotted key, drawn at random; always the same ones."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=SEED))
    return [dict(dotted(space.suggest(study.ask()))) for _ in range(count)]


def count_of(tuning: Tuning, budget: Budget) -> int:
    """Number of trials of each arm."""
    return budget.trials or tuning.trials


def trial_table(experiment: Experiment, tried: Sequence[Trial], value: Callable[[PlannedRun], float]) -> pd.DataFrame:
    """One row per trial: ``arm``, ``trial``, ``settings``, ``value`` (the mean over seeds and tasks) and ``chosen``.

    A trial with a failed run has no value, and is not chosen. Where all trials of an arm failed none is chosen.

    Args:
        value: what the tuning's measure found in a run; NaN where it failed.
    """
    assert experiment.tuning is not None
    lower = experiment.measures[experiment.tuning.measure].better == "lower"
    rows = []
    for trial in tried:
        values = [value(run) for run in trial.runs]
        mean = math.nan if any(map(math.isnan, values)) else sum(values) / len(values)
        rows.append({"arm": trial.arm, "trial": trial.number, "settings": dict(trial.settings), "value": mean})
    table = pd.DataFrame(rows, columns=["arm", "trial", "settings", "value"])
    ranked = table["value"] if not lower else -table["value"]
    best = ranked.groupby(table["arm"]).transform("max")
    first_best = (ranked == best) & ~(ranked == best).groupby(table["arm"]).cumsum().gt(1)
    return table.assign(chosen=first_best)


def chosen_settings(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The settings that were best, by arm.

    Raises:
        UserError: no trial of an arm finished.
    """
    best = table[table["chosen"]]
    without = [arm for arm in table["arm"].unique() if arm not in set(best["arm"])]
    if without:
        raise UserError(f"tuning: no trial of {', '.join(without)} finished; the logs beside the runs say why")
    return {str(row.arm): dict(row.settings) for row in best.itertuples()}
