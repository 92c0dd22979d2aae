"""Read a run directory back: metrics, samples, configuration, and the stages of a pipeline.

```python
run = load_run("runs/quickstart")
run.policy.series("eval/gold")
```
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.config_files import read_mapping, setting
from rlhf_lightning.records.metrics import Description, Metric, inferred_description
from rlhf_lightning.records.run_directory import DESCRIPTION, STAGES

POLICIES = ("policy", "control", "preference")
"""The kinds of run that train a policy further: on text by a reward, in an environment, on text from feedback."""

_MARKS = ("metrics.csv", "config.yaml", "samples.jsonl", "environment.json", "pairs.jsonl", "DONE")
_SAMPLE_KEYS = ("iteration", "row", "prompt", "response", "score")
_WARNING_KEYS = ("detector", "message")


@dataclass
class Run:
    """One run directory, or a pipeline's directory with its stages.

    Args:
        metrics: one row per iteration or step, sorted, that counter being the first column; NaN where a row lacks
            a metric. Rows that a resumed run wrote again count once, with their last values.
        description: what the run said of itself when it started, or else what its metrics tell; None where they
            tell nothing.
        samples: replies to held-out prompts: ``iteration, row, prompt, response, score, gold, kl`` each.
        evaluation: accuracy, calibration and biases of a reward model on held-out pairs, where they were measured.
        warnings: what detectors warned of: ``iteration`` or ``step``, ``detector`` and ``message`` each.
        done: whether the run finished.
        stages: the stages found in a pipeline's directory, by name; empty for a single run.
    """

    path: Path
    name: str
    metrics: pd.DataFrame
    description: Description | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    warnings: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False
    stages: dict[str, Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.description is None:
            self.description = inferred_description(self.columns, self.config)

    @property
    def columns(self) -> list[str]:
        """Names of the counter and of all logged metrics."""
        return [str(column) for column in self.metrics.columns]

    @property
    def axis(self) -> str:
        """The counter that the metrics run over: ``iteration`` or ``step``."""
        return self.columns[0]

    @property
    def kind(self) -> str:
        """What was trained: one of `POLICIES`, ``reward``, ``sft``, ``pairs``, ``pipeline`` or ``unknown``."""
        if self.description is not None:
            return self.description.kind
        if self.stages:
            return "pipeline"
        return self.path.name if self.path.name in STAGES else "unknown"

    @property
    def algorithm(self) -> str:
        """Name of the algorithm's class; empty where it is unknown."""
        return "" if self.description is None else self.description.algorithm

    @property
    def panels(self) -> tuple[Metric, ...]:
        """The metrics that figures show: first those that the run declares, then those that it only logs."""
        return () if self.description is None else self.description.panels(self.columns)

    @property
    def policy(self) -> Run | None:
        """This run if it trained a policy, otherwise the stage that did."""
        return self.find(*POLICIES)

    @property
    def task(self) -> str:
        """Name of the environment, or of the task's class; empty where the configuration does not say."""
        environment = self.setting("task.init_args.environment")
        return str(environment or str(self.setting("task.class_path") or "").rpartition(".")[2])

    def setting(self, key: str) -> Any:
        """A value of the configuration by its dotted key; None where it is not there."""
        return setting(self.config, key)

    def series(self, metric: str) -> pd.Series:
        """The finite values of one metric, indexed by the run's counter; empty if it was never logged."""
        if metric not in self.metrics.columns:
            return pd.Series(dtype=float, name=metric)
        values = self.metrics.set_index(self.axis)[metric]
        return values[np.isfinite(values)]

    def find(self, *kinds: str) -> Run | None:
        """This run if it is of one of these kinds, otherwise the stage that is."""
        if self.kind in kinds:
            return self
        return next((stage for stage in self.stages.values() if stage.kind in kinds), None)


def load_run(path: str | Path) -> Run:
    """Read a run directory, or a pipeline's directory with its stages.

    Raises:
        UserError: the directory is missing or is no run, or one of its files cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such directory; {_runs_in(path.parent, 'runs beside it')}")
    if not path.is_dir():
        raise UserError(f"{path} is a file; expected a run directory such as {path.parent}")
    if not _is_run(path):
        expected = f"metrics.csv, config.yaml or a pipeline's stages ({', '.join(STAGES)})"
        raise UserError(f"{path} is not a run: expected {expected} in it; {_runs_in(path, 'runs in it')}")
    run = load_numbers(path)
    run.samples = _read_samples(path / "samples.jsonl", done=run.done)
    run.warnings = list(_json_lines(path / "warnings.jsonl", _WARNING_KEYS, done=run.done))
    run.stages = {stage: load_run(path / stage) for stage in STAGES if has_marks(path / stage)}
    for name, stage in run.stages.items():
        stage.name = f"{path.resolve().name}/{name}"
    run.done = run.done or ("policy" in run.stages and all(stage.done for stage in run.stages.values()))
    return run


def load_numbers(path: Path) -> Run:
    """What one run directory says of itself and its numbers, without samples, warnings and stages.

    Raises:
        UserError: one of its files cannot be read.
    """
    done = (path / "DONE").exists()
    resolved = path.resolve()
    is_stage = (path / "stage.json").exists()  # the pipeline's note in each of its stages
    return Run(
        path=path,
        name=f"{resolved.parent.name}/{resolved.name}" if is_stage else resolved.name,
        metrics=_read_metrics(path / "metrics.csv", done=done),
        description=_read_description(path / DESCRIPTION),
        config=read_mapping(path / "config.yaml") if (path / "config.yaml").exists() else {},
        environment=_read_json(path / "environment.json") or {},
        evaluation=_read_json(path / "evaluation.json"),
        done=done,
    )


def logged(directory: Path, metric: str) -> list[float]:
    """The finite values of a metric so far, in the order of a run's counter; empty where there are none.

    Raises:
        UserError: the table of metrics cannot be read.
    """
    table = _read_metrics(directory / "metrics.csv", done=False)
    values = table[metric] if metric in table.columns else pd.Series(dtype=float)
    return [float(value) for value in values if np.isfinite(value)]


def names(runs: Sequence[Run]) -> list[str]:
    """Names that tell the runs apart: a stage that all share is left out, equal names get the folders above them."""
    found = [run.name for run in runs]
    above = [list(run.path.resolve().parts[1 : -1 - run.name.count("/")]) for run in runs]
    if len(found) > 1 and all(name.endswith("/policy") for name in found):
        found = [name.removesuffix("/policy") for name in found]
    while longer := [place for place, name in enumerate(found) if found.count(name) > 1 and above[place]]:
        found = [f"{above[place].pop()}/{name}" if place in longer else name for place, name in enumerate(found)]
    return found


def has_marks(path: Path) -> bool:
    """Whether a folder holds a file that only runs have."""
    return any((path / mark).exists() for mark in _MARKS)


def _is_run(path: Path) -> bool:
    return has_marks(path) or any(has_marks(path / stage) for stage in STAGES)


def _runs_in(directory: Path, label: str, most: int = 12) -> str:
    found = sorted(entry.name for entry in directory.iterdir() if _is_run(entry)) if directory.is_dir() else []
    if not found:
        return f"{label}: none"
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f"{label}: {', '.join(found[:most])}{more}"


def _read_metrics(path: Path, *, done: bool) -> pd.DataFrame:
    """The table of metrics; a last line that an interruption cut off is left out."""
    text = _read_text(path) if path.exists() else ""
    if not done:
        text = text[: text.rfind("\n") + 1]  # half a number is a number, too
    if not text:
        return pd.DataFrame({"iteration": pd.Series(dtype=float)})
    reader = csv.reader(text.splitlines())
    header = next(reader)
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UserError(f"{path}, line 1: column {twice!r} appears twice")
    rows = []
    for cells in reader:
        if not cells:
            continue
        try:
            rows.append(_numbers(header, cells))
        except ValueError as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}") from None
    table = pd.DataFrame(rows, columns=header, dtype=float)
    table = table.groupby(header[0], as_index=False).last()
    counter = table[header[0]]
    return table.astype({header[0]: int}) if (counter == counter.round()).all() else table


def _numbers(header: list[str], cells: list[str]) -> list[float]:
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} values for {len(header)} columns")
    if not cells[0].strip():
        raise ValueError(f"column {header[0]!r} is empty")
    numbers = []
    for name, cell in zip(header, cells, strict=True):
        try:
            numbers.append(float(cell) if cell.strip() else np.nan)
        except ValueError:
            raise ValueError(f"column {name!r} holds {cell!r}, expected a number") from None
    return numbers


def _read_samples(path: Path, *, done: bool) -> list[dict[str, Any]]:
    """Samples sorted by iteration and row, each pair of these once."""
    samples: dict[tuple[int, int], dict[str, Any]] = {}
    for sample in _json_lines(path, _SAMPLE_KEYS, done=done):
        samples[sample["iteration"], sample["row"]] = {"gold": None, "kl": None, **sample}
    return [samples[key] for key in sorted(samples)]


def _json_lines(path: Path, keys: Sequence[str], *, done: bool) -> Iterator[dict[str, Any]]:
    """Objects with at least these keys, none without a file; a last line that an interruption cut off is left out."""
    text = _read_text(path) if path.exists() else ""
    cut_off = not done and not text.endswith("\n")
    # Not str.splitlines: a response may hold U+2028 and its kin, which end no line of a JSONL file.
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            if cut_off and number == len(lines):
                return
            raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from None
        except RecursionError:
            raise UserError(f"{path}, line {number}: nested too deeply to be read; expected what a run wrote") from None
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise UserError(f"{path}, line {number}: {', '.join(missing)} missing")
        yield entry


def _read_description(path: Path) -> Description | None:
    content = _read_json(path)
    try:
        return None if content is None else Description.from_dict(content)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not the description of a run ({error})") from None


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be read; expected what a run wrote") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
