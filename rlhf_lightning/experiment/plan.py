"""From a declaration to plain commands: the stages of every arm, task and seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.experiment.spec import Budget, DeclaredArm, Experiment, TaskEntry, measured_stage
from rlhf_lightning.pipeline.stages import Settings, Stage, build_stages
from rlhf_lightning.records.run_directory import STAGES


@dataclass(frozen=True)
class PlannedRun:
    """One measured run, and the stages before it.

    Args:
        stages: in their order; the last one is measured.
    """

    arm: str
    task: str
    seed: int
    stages: list[Stage]

    @property
    def directory(self) -> Path:
        """Of the run that is measured."""
        return self.stages[-1].directory


class ComparisonPlan:
    """The runs of a comparison with one budget.

    Every run is a pipeline of its arm. Stages before the measured one that have the same settings are the same stage:
    arms of one seed share their supervised model, pairs and reward model.

    Args:
        directory: where all runs go.
        arms: those to run.
        settings: of measured stages that tuning has chosen, by arm.
    """

    def __init__(
        self,
        experiment: Experiment,
        budget: Budget,
        directory: Path,
        *,
        arms: Sequence[str] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.experiment, self.budget, self.directory = experiment, budget, directory
        self.arms = [experiment.arms[name] for name in (experiment.arms if arms is None else arms)]
        self._settings = settings or {}
        self._folders = _folders(experiment, budget)

    def runs(self) -> list[PlannedRun]:
        """All runs, those of one seed after those of another, so that a part of them is a comparison, too."""
        return [
            PlannedRun(arm.name, task.name, seed, self.stages(arm, task, seed))
            for seed in self.budget.seeds
            for task in self.experiment.tasks_of(self.budget)
            for arm in self.arms
        ]

    def stages(
        self, arm: DeclaredArm, task: TaskEntry, seed: int, settings: Mapping[str, Any] | None = None, folder: str = ""
    ) -> list[Stage]:
        """The stages that an arm needs with one seed, the measured one last.

        Args:
            settings: of the measured stage, if not those that were chosen for the arm.
            folder: of the measured stage, if it is not called like the arm.
        """
        chosen = self._settings.get(arm.name) if settings is None else settings
        sections = self.experiment.sections(arm, self.budget, task, chosen)
        pipeline = Settings(
            configs=[*self.experiment.configs, *task.configs],
            directory=self.directory / task.name / f"seed-{seed + arm.seed_offset}",
            seed=seed + arm.seed_offset,
            pipeline={stage: dict(sections[stage]) for stage in STAGES if stage in sections},
            folders={**self._folders[arm.name, task.name], measured_stage(sections): folder or arm.name},
        )
        return _needed(build_stages(pipeline))


def _needed(stages: Sequence[Stage]) -> list[Stage]:
    """The last stage, and those that make what it reads, directly or not."""
    needed, kept = {stages[-1].makes}, []
    for stage in reversed(stages):
        if stage.makes in needed:
            kept.append(stage)
            needed |= set(stage.inputs.values())
    return kept[::-1]


def _folders(experiment: Experiment, budget: Budget) -> dict[tuple[str, str], dict[str, str]]:
    """Names of the folders of stages, by arm and task: one for each stage that has other settings than those before.

    The first is called like the stage, others like the arm that first has them.
    """
    folders: dict[tuple[str, str], dict[str, str]] = {}
    for task in experiment.tasks:
        known: dict[str, dict[str, str]] = {stage: {} for stage in STAGES}
        for arm in experiment.arms.values():
            sections = experiment.sections(arm, budget, task)
            names = folders.setdefault((arm.name, task.name), {})
            for stage in STAGES[: STAGES.index(measured_stage(sections))]:
                if stage in sections:
                    before = [sections[one] for one in STAGES[: STAGES.index(stage) + 1] if one in sections]
                    settings = json.dumps(before, sort_keys=True)
                    name = stage if not known[stage] else f"{stage}-{arm.name}"
                    names[stage] = known[stage].setdefault(settings, name)
    return folders


def all_stages(runs: Sequence[PlannedRun]) -> list[Stage]:
    """The stages of all runs, each directory once, in an order in which they can be run."""
    found: dict[Path, Stage] = {}
    for run in runs:
        for stage in run.stages:
            found.setdefault(stage.directory, stage)
    return list(found.values())
