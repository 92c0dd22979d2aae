"""A report of runs as one page: HTML with everything in it, and nothing fetched or executed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from rlhf_lightning.plots import Section
from rlhf_lightning.plots.measures import trained_on_gold
from rlhf_lightning.plots.verdict import describe_reward, judge, judge_arm
from rlhf_lightning.records.arms import Arm, arms
from rlhf_lightning.records.runs import Run, names
from rlhf_lightning.report import replies, summary
from rlhf_lightning.report.contrasts import contrasts
from rlhf_lightning.report.templates import fill, inline_figures


@dataclass(frozen=True)
class Picture:
    """A figure that was saved, to be put into the page.

    Args:
        section: where it belongs.
        path: the SVG file.
        title: what it shows, for those who cannot see it.
    """

    section: Section
    path: Path
    title: str


def render(runs: Sequence[Run], pictures: Sequence[Picture]) -> str:
    """The page, as HTML text. All text of prompts, replies and configurations is escaped."""
    drawn = inline_figures([(picture.path, picture.title) for picture in pictures])
    figures = {
        section: [figure for figure, picture in zip(drawn, pictures, strict=True) if picture.section == section]
        for section in get_args(Section)
    }
    its_arms = arms(runs)
    labels = dict(zip(map(id, runs), names(runs), strict=True))
    policies = {arm.name: [run.policy for run in arm.runs if run.policy is not None] for arm in its_arms}
    most = 6 if len(runs) == 1 else 3
    return fill(
        "page.html",
        title=" · ".join(arm.name for arm in its_arms),
        names=[arm.name for arm in its_arms],
        several=len(runs) > 1,
        seeds=[len(arm.runs) for arm in its_arms],
        state=[_state(arm) for arm in its_arms],
        verdicts=[(name, judge_arm(its)) for name, its in policies.items() if its],
        warnings=[(labels[id(run)], entry) for run in runs for entry in _warnings(run)],
        supervised=_supervised(runs[0]) if len(runs) == 1 else [],
        groups=summary.summary(its_arms),
        contrasts=contrasts(its_arms),
        missing=summary.missing(runs),
        differences=summary.differences(its_arms),
        figures=figures,
        conversations=[_conversations(labels[id(arm.shown)], arm.shown, most) for arm in its_arms],
        configurations=_configurations(runs),
    )


def _state(arm: Arm) -> str:
    if len(arm.runs) > 1:
        done = sum(run.done for run in arm.runs)
        return f"{len(arm.runs)} seeds, {'finished' if done == len(arm.runs) else f'{done} finished'}"
    (run,) = arm.runs
    if run.done:
        return "finished"
    metrics = run.policy or run
    last = metrics.metrics[metrics.axis].max() if len(metrics.metrics) else None
    return "not finished" if last is None else f"not finished, {metrics.axis} {last:,}"


def _warnings(run: Run) -> list[dict[str, str]]:
    """What detectors warned of in a run or in a pipeline's stages, and when."""
    entries = [entry for part in (run, *run.stages.values()) for entry in part.warnings]
    return [
        {**entry, "when": next((f"{axis} {entry[axis]:,}" for axis in ("iteration", "step") if axis in entry), "")}
        for entry in entries
    ]


def _supervised(run: Run) -> list[str]:
    """Sentences on the reward model and on the supervised model."""
    sentences = []
    reward, sft = run.find("reward"), run.find("sft")
    if reward:
        sentences += describe_reward(reward)
    if sft and len(perplexity := sft.series("eval/perplexity")):
        above = sft.series("eval/nats_above_entropy")
        far = f", {above.iloc[-1]:.3f} nats per token above the data's own entropy" if len(above) else ""
        sentences.append(f"Supervised fine-tuning reached a held-out perplexity of {perplexity.iloc[-1]:.2f}{far}.")
    return sentences


def _conversations(name: str, run: Run, most: int) -> dict[str, Any]:
    policy = run.policy
    samples = policy.samples if policy else []
    peak = judge(policy).peak if policy else None
    gold = any(sample.get("gold") is not None for sample in samples)
    scored = bool(policy and len(policy.series("eval/score")) and not (gold and trained_on_gold(policy)))
    # Where nobody judges replies, every score in the samples is 0.
    measure = "score" if scored else "gold" if gold else "kl"
    return {
        "name": name,
        "axis": policy.axis if policy else "",
        "gold": gold,
        "score": scored,
        "chosen": _chosen(list(replies.changes(samples, measure).values()), measure),
        "course": replies.through_training(samples, peak, measure),
        "exchanges": replies.before_and_after(samples, peak, most=most),
    }


def _chosen(moved: Sequence[float], measure: str) -> str:
    """Why a prompt is shown, and how many others went its way."""
    if measure == "kl":
        return "reply moved furthest"
    rose = sum(moved) >= 0
    alike = sum(change > 0 if rose else change < 0 for change in moved)
    name = "gold reward" if measure == "gold" else measure
    return f"{name} {'rose' if rose else 'fell'} most, as it did for {alike} of {len(moved)}"


def _configurations(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [
        {
            "name": part.name,
            "command": part.environment.get("command") or part.environment.get("command_line") or "",
            "config": yaml.safe_dump(part.config, sort_keys=False, allow_unicode=True) if part.config else "",
            "environment": json.dumps(part.environment, indent=2, ensure_ascii=False) if part.environment else "",
        }
        for run in runs
        for part in (run, *run.stages.values())
        if part.config or part.environment
    ]
