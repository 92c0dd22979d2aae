"""The table at the head of a report, what the runs lack, and how the configurations of arms differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lightning.plots.measures import measured
from rlhf_lightning.records.arms import SEED, Arm
from rlhf_lightning.records.run_plan import flattened
from rlhf_lightning.records.runs import POLICIES, Run
from rlhf_lightning.report.cells import Cell, sections


@dataclass(frozen=True)
class TableRow:
    """One measure of all arms; None where an arm lacks it."""

    label: str
    unit: str
    cells: list[Cell | None]


@dataclass(frozen=True)
class TableGroup:
    """The measures of one section."""

    title: str
    rows: list[TableRow]


def summary(arms: Sequence[Arm]) -> list[TableGroup]:
    """Headline figures of arms by kind of run; measures that no run has are left out."""
    groups = []
    for section in sections([run for arm in arms for run in arm.runs]):
        parts = [[part for run in arm.runs if (part := run.find(*section.kinds))] for arm in arms]
        rows = [
            TableRow(measure.label, measure.unit, [measure.of(its) if its else None for its in parts])
            for measure in section.measures
        ]
        groups.append(TableGroup(section.title, [row for row in rows if any(row.cells)]))
    return [group for group in groups if group.rows]


def missing(runs: Sequence[Run]) -> list[str]:
    """What a reader might look for and these runs do not have."""
    notes = []
    for run in runs:
        parts = [run] if not run.stages else [*([run] if len(run.metrics) else []), *run.stages.values()]
        if run.stages:
            absent = [stage for stage in ("sft", "reward", "policy") if stage not in run.stages]
            notes += [f"{run.name} has no stage “{stage}”." for stage in absent]
        notes += [f"{part.name}: {note}" for part in parts for note in _missing(part)]
    return notes


def _missing(run: Run) -> list[str]:
    notes = []
    if not run.done and run.kind != "pairs":
        last = f"; its figures end at {run.axis} {run.metrics[run.axis].max():,}" if len(run.metrics) else ""
        notes.append(f"not finished (there is no DONE file){last}.")
    if run.kind != "pairs" and not len(run.metrics):
        notes.append("no metrics yet.")
    elif run.kind in POLICIES:
        notes += _missing_of_policy(run)
    elif run.kind == "reward" and run.evaluation is None:
        notes.append("calibration and biases were not measured (there is no evaluation.json).")
    if not run.config and run.kind != "pairs":  # made by a command that is all options
        notes.append("no config.yaml.")
    return notes


def _missing_of_policy(run: Run) -> list[str]:
    if run.kind == "control":
        unseen = "no evaluation episodes; its figures are of training episodes."
        return [] if len(run.series("eval/score")) else [unseen]
    notes = []
    if not any(str(column).startswith("eval/") for column in run.metrics.columns):
        notes.append("no evaluation on held-out prompts; its figures are of training batches.")
    if not len(measured(run, "gold")):
        hidden = {"policy": "an exploited reward model", "preference": "replies that became worse"}
        notes.append(f"no gold reward, so {hidden[run.kind]} would not show.")
    if not run.samples:
        notes.append("no samples.jsonl, so there are no replies to show.")
    return notes


def differences(arms: Sequence[Arm]) -> list[tuple[str, list[str]]]:
    """The settings in which the policies' configurations differ, with their values; where arms are two or more.

    Of an arm of several seeds they are those of its first run, without the seed.
    """
    unsaid = {"name", "runs_dir"}  # which always differ, and say nothing of the training
    if any(len(arm.runs) > 1 for arm in arms):
        unsaid.add(SEED)
    configs = [
        {
            key: json.dumps(value, default=str, ensure_ascii=False).strip('"')
            for key, value in flattened((arm.runs[0].policy or arm.runs[0]).config)
            if key not in unsaid
        }
        for arm in arms
    ]
    if len(configs) < 2 or not all(configs):
        return []
    keys = list(dict.fromkeys(key for config in configs for key in config))
    rows = [(key, [config.get(key, "–") for config in configs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
