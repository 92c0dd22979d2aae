"""The table at the head of a report, what the runs lack, and how their configurations differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rlhf_lightning.plots import style
from rlhf_lightning.plots.page.svg import sparkline
from rlhf_lightning.plots.style import number, span
from rlhf_lightning.plots.verdict import measured
from rlhf_lightning.runs import Run


@dataclass(frozen=True)
class Cell:
    """A figure, a quieter note beside it, and a sparkline (HTML)."""

    text: str
    note: str = ""
    spark: str = ""


@dataclass(frozen=True)
class Row:
    """One measure of all runs; None where a run lacks it."""

    label: str
    unit: str
    cells: list[Cell | None]


@dataclass(frozen=True)
class Group:
    """The measures of one stage."""

    title: str
    rows: list[Row]


@dataclass(frozen=True)
class _Measure:
    label: str
    unit: str
    read: Callable[[Run], Cell | None]


def summary(runs: Sequence[Run]) -> list[Group]:
    """Headline figures by stage; measures that no run has are left out."""
    groups = []
    for kind, title, measures in _STAGES:
        stages = [run.find(kind) for run in runs]
        rows = []
        for measure in measures:
            cells = [measure.read(stage) if stage else None for stage in stages]
            if any(cells):
                rows.append(Row(measure.label, measure.unit, cells))
        if rows:
            groups.append(Group(title, rows))
    return groups


def missing(runs: Sequence[Run]) -> list[str]:
    """What a reader might look for and these runs do not have."""
    notes = []
    for run in runs:
        parts = [run] if not run.stages else [*([run] if len(run.metrics) else []), *run.stages.values()]
        if run.stages:
            absent = [stage for stage in ("sft", "reward", "policy") if stage not in run.stages]
            notes += [f"{run.name} has no stage “{stage}”." for stage in absent]
        for part in parts:
            notes += [f"{part.name}: {note}" for note in _missing(part)]
    return notes


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The settings in which the policies' configurations differ, with their values; where runs are two or more."""
    configs = [_flat((run.find("policy") or run).config) for run in runs]
    if len(configs) < 2 or not all(configs):
        return []
    keys = list(dict.fromkeys(key for config in configs for key in config))
    rows = [(key, [config.get(key, "–") for config in configs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _missing(run: Run) -> list[str]:
    notes = []
    if not run.done and run.kind != "pairs":
        last = f"; its figures end at {run.axis} {run.metrics[run.axis].max():,}" if len(run.metrics) else ""
        notes.append(f"not finished (there is no DONE file){last}.")
    if run.kind != "pairs" and not len(run.metrics):
        notes.append("no metrics yet.")
    elif run.kind == "policy":
        if not len(run.series("eval/score")):
            notes.append("no evaluation on held-out prompts; its figures are of training batches.")
        if not len(measured(run, "gold")):
            notes.append("no gold reward, so an exploited reward model would not show.")
        if not run.samples:
            notes.append("no samples.jsonl, so there are no replies to show.")
    elif run.kind == "reward" and run.reliability is None:
        notes.append("calibration was not measured (there is no reliability.json).")
    if not run.config:
        notes.append("no config.yaml.")
    return notes


def _first_to_last(metric: str, color: str) -> Callable[[Run], Cell | None]:
    def read(run: Run) -> Cell | None:
        group, _, name = metric.partition("/")
        values = measured(run, name) if run.kind == "policy" and group == "eval" else run.series(metric)
        return _course(values, color)

    return read


def _course(values: pd.Series, color: str) -> Cell | None:
    if not len(values):
        return None
    if len(values) == 1:
        return Cell(number(float(values.iloc[0])))
    text = span(float(values.iloc[0]), float(values.iloc[-1]))
    return Cell(text, spark=sparkline([float(value) for value in values], color))


def _best_gold(run: Run) -> Cell | None:
    gold = measured(run, "gold")
    if len(gold) < 2:
        return None
    where = int(gold.idxmax())
    kl = measured(run, "kl_ref_sequence")
    far = f", {number(float(kl[where]))} nats" if where in kl.index else ""
    return Cell(number(float(gold.max())), f"at {run.axis} {where:,}{far}")


def _win_rate(run: Run) -> Cell | None:
    rate, low, high = (run.series(f"eval/win_rate{end}") for end in ("", "_low", "_high"))
    if not len(rate):
        return None
    note = f"{100 * low.iloc[-1]:.0f}–{100 * high.iloc[-1]:.0f} %" if len(low) and len(high) else ""
    line = sparkline([float(value) for value in rate], style.HELD_OUT)
    return Cell(f"{100 * rate.iloc[-1]:.0f} %", note, line)


def _accuracy(run: Run) -> Cell | None:
    cell = _course(run.series("eval/accuracy"), style.HELD_OUT)
    reliability = run.reliability or {}
    if cell is None and reliability.get("accuracy") is not None:
        cell = Cell(number(reliability["accuracy"]))
    ceiling = reliability.get("ceiling")
    note = f"of {number(ceiling)} attainable" if ceiling is not None else ""
    return Cell(cell.text, note, cell.spark) if cell else None


def _calibration(run: Run) -> Cell | None:
    cell = _course(run.series("eval/calibration_error"), style.HELD_OUT)
    value = (run.reliability or {}).get("calibration_error")
    return cell or (Cell(number(value)) if value is not None else None)


def _pairs(run: Run) -> Cell | None:
    path = run.path / "pairs.jsonl"
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as file:
        return Cell(f"{sum(1 for line in file if line.strip()):,}")


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = json.dumps(value, default=str, ensure_ascii=False).strip('"')
    return flat


_STAGES = (
    (
        "policy",
        "Policy",
        (
            _Measure("Gold reward", "", _first_to_last("eval/gold", style.GOLD)),
            _Measure("Best gold reward", "", _best_gold),
            _Measure("Proxy reward", "", _first_to_last("eval/score", style.PROXY)),
            _Measure("KL to the reference", "nats per sequence", _first_to_last("eval/kl_ref_sequence", style.KL)),
            _Measure("Win rate against the reference", "at the end, 95 % interval", _win_rate),
            _Measure("Perplexity on demonstrations", "", _first_to_last("eval/perplexity", style.HELD_OUT)),
            _Measure("Reply length", "tokens", _first_to_last("eval/length_mean", style.PLAIN)),
        ),
    ),
    (
        "reward",
        "Reward model",
        (
            _Measure("Held-out accuracy", "", _accuracy),
            _Measure("Held-out loss", "nats per pair", _first_to_last("eval/loss", style.HELD_OUT)),
            _Measure("Correlation with gold", "", _first_to_last("eval/correlation_gold", style.HELD_OUT)),
            _Measure("Calibration error", "", _calibration),
        ),
    ),
    ("pairs", "Preference pairs", (_Measure("Pairs", "", _pairs),)),
    (
        "sft",
        "Supervised fine-tuning",
        (
            _Measure("Held-out perplexity", "", _first_to_last("eval/perplexity", style.HELD_OUT)),
            _Measure("Held-out loss", "nats per token", _first_to_last("eval/loss", style.HELD_OUT)),
            _Measure(
                "Above the data's entropy",
                "nats per token",
                _first_to_last("eval/nats_above_entropy", style.HELD_OUT),
            ),
        ),
    ),
)
