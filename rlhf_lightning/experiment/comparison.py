"""A comparison with its folders: what it runs, in which order, and what its runs have shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rlhf_lightning.errors import UserError, suggestion
from rlhf_lightning.experiment.budgets import check_equal_budgets
from rlhf_lightning.experiment.collect import MISSING, runs_table
from rlhf_lightning.experiment.declaration import add_seeds, declare, place_of, read_declaration
from rlhf_lightning.experiment.plan import ComparisonPlan, PlannedRun
from rlhf_lightning.experiment.results import ComparisonResult
from rlhf_lightning.experiment.spec import Budget, Experiment, with_seeds
from rlhf_lightning.experiment.statistics.scores import FINISHED
from rlhf_lightning.experiment.tuning import Trial, chosen_settings, trial_table, trials


@dataclass
class ArmComparison:
    """A declared comparison with one budget, and the folders of its runs and of its results.

    Args:
        budget: with the seeds that are to be run.
        runs: the folder of all runs.
        results: the folder of tables, figures and report.
        arms: names of those that are run; by default those of the budget.
    """

    experiment: Experiment
    budget: Budget
    runs: Path
    results: Path
    arms: Sequence[str]

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        budget: Budget,
        *,
        runs_dir: Path,
        results_dir: Path,
        arms: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        more_seeds: int = 0,
    ) -> ArmComparison:
        """The comparison of a declaration; writes nothing.

        Args:
            seeds: in the place of the budget's.
            more_seeds: how many further ones, beside all that were declared so far.

        Raises:
            UserError: an arm is unknown, or a seed is one of the tuning's.
        """
        for arm in arms or ():
            if arm not in experiment.arms:
                known = ", ".join(experiment.arms)
                raise UserError(
                    f"--arms {arm}: {suggestion(arm, experiment.arms, otherwise=f'expected some of {known}')}"
                )
        results = place_of(results_dir, experiment, budget)
        before = read_declaration(results).all_seeds if results.exists() else []
        chosen = list(seeds) if seeds is not None else list(dict.fromkeys([*before, *budget.seeds]))
        taken = set(experiment.tuning.seeds if experiment.tuning else ())
        fresh = (seed for seed in range(1, 10**9) if seed not in taken and seed not in {*before, *chosen})
        chosen += [next(fresh) for _ in range(more_seeds)]
        if both := sorted(taken & {*chosen}):
            raise UserError(f"seeds {both} are those of the tuning; expected others")
        if experiment.claims and len(chosen) < 2:
            raise UserError(f"{experiment.name} has claims, whose intervals need at least two seeds, and got {chosen}")
        comparison = cls(
            experiment,
            with_seeds(budget, chosen),
            place_of(runs_dir, experiment, budget, only_runs=True),
            results,
            list(arms or experiment.arms_of(budget)),
        )
        if experiment.tuning is None:
            check_equal_budgets(experiment, comparison.planned_runs())
        return comparison

    def declare(self) -> None:
        """Write down what is declared, before anything runs."""
        declare(self.runs, self.experiment, self.budget, only_runs=True)
        declare(self.results, self.experiment, self.budget)
        add_seeds(self.results, self.budget.seeds)

    # -- what is run ---------------------------------------------------------------------------------------------------

    def tuning_trials(self, arms: Sequence[str]) -> list[Trial]:
        """What is tried of some arms before they run; empty where nothing is tuned."""
        return trials(self.experiment, self.budget, self.runs, arms=arms)

    def tuning_table(self) -> pd.DataFrame | None:
        """What the trials of each arm have shown whose trials have all ended; None where nothing is tuned."""
        tuning = self.experiment.tuning
        if tuning is None:
            return None
        tried = self.tuning_trials(self.experiment.arms_of(self.budget))
        table = runs_table(self.experiment, [run for trial in tried for run in trial.runs]).set_index("directory")
        going_on = set(table.loc[table["status"] == MISSING, "arm"])
        found = table[tuning.measure].where(table["status"] == FINISHED)
        ended = [trial for trial in tried if trial.arm not in going_on]
        return trial_table(self.experiment, ended, lambda run: float(found[str(run.directory)]))

    def is_tuned(self) -> bool:
        """Whether all trials of the arms that are run have ended; also where there are none."""
        table = self.tuning_table()
        return table is None or {trial.arm for trial in self.tuning_trials(self.arms)} <= set(table["arm"])

    def planned_runs(self) -> list[PlannedRun]:
        """The runs of all arms, as tuned.

        Raises:
            UserError: the tuning has not ended, or has found nothing.
        """
        if not self.is_tuned():
            raise UserError(f"the tuning of {self.experiment.name} has not ended; the same command continues it")
        return self._plan(self.budget, self.arms, self.tuning_table()).runs()

    def declared_runs(self) -> list[PlannedRun]:
        """The same for every arm of the budget and every seed that was ever declared."""
        return self._declared_runs(self.tuning_table())

    def _declared_runs(self, tuned: pd.DataFrame | None) -> list[PlannedRun]:
        seeds = read_declaration(self.results).all_seeds if self.results.exists() else self.budget.seeds
        return self._plan(with_seeds(self.budget, seeds), self.experiment.arms_of(self.budget), tuned).runs()

    # -- what it has shown ---------------------------------------------------------------------------------------------

    def result(self) -> ComparisonResult:
        """What its runs have shown so far.

        Raises:
            UserError: nothing has been run, or no run has logged what is measured.
        """
        if not self.results.exists():
            raise UserError(f"{self.results}: nothing of {self.experiment.name} has been run with this declaration")
        tuned = self.tuning_table()  # reads every trial
        table = runs_table(self.experiment, self._declared_runs(tuned))
        if (table["status"] == MISSING).all():
            raise UserError(f"{self.runs}: no run of {self.experiment.name} has ended yet")
        return ComparisonResult(self.experiment, read_declaration(self.results), table, tuned)

    def _plan(self, budget: Budget, arms: Sequence[str], tuned: pd.DataFrame | None) -> ComparisonPlan:
        settings = {} if tuned is None else chosen_settings(tuned)
        return ComparisonPlan(self.experiment, budget, self.runs, arms=arms, settings=settings)
