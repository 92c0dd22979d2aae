"""What is compared, as it is declared before it runs: a file ``experiments/NAME.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from rlhf_lightning.errors import UserError, suggestion
from rlhf_lightning.experiment.claims.base import ArmClaim
from rlhf_lightning.experiment.measures import Measure
from rlhf_lightning.pipeline.stages import dotted
from rlhf_lightning.records.run_directory import STAGES
from rlhf_lightning.sweep.space import Space

Sections: TypeAlias = dict[str, dict[str, Any]]
"""Settings by stage (sft, pairs, reward, policy), by dotted key."""

PRIMARY = "primary"
"""The name of the primary measure."""

UNITS = {
    "samples": "sampled responses",
    "env_steps": "environment steps",
    "pairs": "preference pairs",
    "labels": "labelled responses",
    "seconds": "seconds",
}
"""What an equal budget may be counted in, and how runs call it."""


@dataclass(frozen=True)
class PublishedSource:
    """Where the comparison was published; empty texts where it was not."""

    paper: str = ""
    where: str = ""
    link: str = ""


@dataclass(frozen=True)
class TaskEntry:
    """One of several tasks that the arms are compared on.

    Args:
        scale: values of the primary measure that count as 0 and as 1 where tasks are pooled.
    """

    name: str
    configs: list[str]
    pipeline: Sections
    scale: tuple[float, float]


@dataclass(frozen=True)
class DeclaredArm:
    """What is compared: a pipeline whose last stage is measured.

    Args:
        pipeline: settings that differ from those of the experiment, by stage.
        published: the value of the primary measure in the source.
        seed_offset: what is added to each seed, so that runs are not paired with those of other arms.
    """

    name: str
    label: str
    pipeline: Sections
    published: float | None = None
    seed_offset: int = 0


@dataclass(frozen=True)
class Tuning:
    """A search that costs every arm the same.

    Args:
        trials: number of settings that are tried for each arm; the first is the arm as shipped.
        seeds: that each setting is tried on; none of them is a seed of the result.
        spaces: what is searched, by arm, of its last stage; an arm that is missing stays as shipped.
    """

    trials: int
    seeds: tuple[int, ...]
    measure: str
    spaces: dict[str, Space]


@dataclass(frozen=True)
class Budget:
    """How much a comparison may cost.

    Args:
        pipeline: settings by stage, for all arms.
        arms: settings by stage, for single arms.
        trials: of the tuning, where they are not those of the experiment.
        arms_only: the arms that are run; None for all. Claims about others are not judged.
        tasks_only: the tasks that they are run on; None for all.
    """

    name: str
    seeds: tuple[int, ...]
    pipeline: Sections = field(default_factory=dict)
    arms: dict[str, Sections] = field(default_factory=dict)
    trials: int | None = None
    arms_only: tuple[str, ...] | None = None
    tasks_only: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Experiment:
    """A declared comparison.

    Args:
        name: of the file.
        content: of the file, as it was read.
        groups: arms whose mean counts as one more arm, by its name.
        measures: by name; the primary one first.
        equal: what equal budgets are counted in, one of `UNITS`; None where they are not equal.
        margin: the smallest difference of the primary measure that matters.
    """

    name: str
    content: Mapping[str, Any]
    title: str
    question: str
    source: PublishedSource
    configs: list[str]
    tasks: list[TaskEntry]
    pipeline: Sections
    arms: dict[str, DeclaredArm]
    groups: dict[str, list[str]]
    baseline: str
    measures: dict[str, Measure]
    equal: str | None
    margin: float | None
    claims: list[ArmClaim]
    tuning: Tuning | None
    budgets: dict[str, Budget]

    @property
    def primary(self) -> Measure:
        """The measure that arms are compared by."""
        return self.measures[PRIMARY]

    def budget(self, name: str) -> Budget:
        """One of the budgets.

        Raises:
            UserError: there is none of this name.
        """
        if name not in self.budgets:
            expected = f"expected one of {', '.join(self.budgets)}"
            raise UserError(f"--budget {name}: {suggestion(name, self.budgets, otherwise=expected)}")
        return self.budgets[name]

    def arms_of(self, budget: Budget) -> list[str]:
        """Names of the arms that a budget pays for, in the order of the declaration."""
        return [name for name in self.arms if budget.arms_only is None or name in budget.arms_only]

    def tasks_of(self, budget: Budget) -> list[TaskEntry]:
        """The tasks that a budget pays for, in the order of the declaration."""
        return [task for task in self.tasks if budget.tasks_only is None or task.name in budget.tasks_only]

    def sections(
        self, arm: DeclaredArm, budget: Budget, task: TaskEntry, settings: Mapping[str, Any] | None = None
    ) -> Sections:
        """Everything that is set for an arm, by stage, later layers on top.

        Args:
            settings: of the last stage, such as those that tuning has chosen.
        """
        layers = [self.pipeline, task.pipeline, budget.pipeline, arm.pipeline, budget.arms.get(arm.name, {})]
        merged = overlaid(*layers)
        return overlaid(merged, {measured_stage(merged): dict(settings or {})})


def measured_stage(sections: Sections) -> str:
    """The last stage of a pipeline."""
    return [stage for stage in STAGES if stage in sections][-1]


def overlaid(*layers: Mapping[str, Mapping[str, Any]]) -> Sections:
    """Settings by stage, later layers on top; a key that is set anew replaces all that was set below it."""
    result: Sections = {}
    for layer in layers:
        for stage, settings in layer.items():
            merged = result.setdefault(stage, {})
            for key, value in dotted(settings):
                for old in [name for name in merged if name == key or name.startswith(f"{key}.")]:
                    del merged[old]
                merged[key] = value
    return result


def with_seeds(budget: Budget, seeds: Sequence[int]) -> Budget:
    """A budget with other seeds."""
    return replace(budget, seeds=tuple(seeds))
