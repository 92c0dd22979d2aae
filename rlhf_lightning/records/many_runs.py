"""Read a folder of runs into one table.

```python
runs = load_runs("runs")
runs[runs.done].groupby("algorithm")["eval/gold"].describe()
```
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.arms import SEED, seed_of
from rlhf_lightning.records.run_directory import CHECKPOINTS, STAGES
from rlhf_lightning.records.run_plan import changes_no_number, flattened
from rlhf_lightning.records.runs import Run, has_marks, load_numbers

_WITHOUT_RUNS = frozenset({CHECKPOINTS, "export", "report", "wandb", "lightning_logs"})
"""Folders of a run that hold many files and no runs."""


def load_runs(folder: str | Path = "runs") -> pd.DataFrame:
    """One row for each run that lies in a folder, at any depth; a pipeline has a row for each of its stages.

    The columns are, in this order:

    - ``name``: the run's path below the folder, such as ``quickstart/policy``; ``path``: what `load_run` takes;
    - ``kind`` (``policy``, ``control``, ``preference``, ``reward``, ``sft``, …), ``algorithm``, ``task``;
    - ``seed`` (missing where the run has none), ``done``;
    - ``problem``: why the run could not be read, empty for the others; all that follows is missing then;
    - ``last``: iteration or step of the last row of its metrics;
    - for each metric the last finite value, missing where the run never logged it;
    - ``config.KEY`` for each setting in which the runs that have it differ, the seed left out.

    Samples are not read, so that hundreds of runs take seconds.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one that holds runs, such as runs")
    rows, numbers, configs = [], [], []
    for path in _found(folder):
        try:
            run, problem = load_numbers(path), ""
        except (UserError, OSError) as error:
            run, problem = Run(path, path.name, pd.DataFrame({"iteration": []})), str(error)
        rows.append(_about(run, folder, problem))
        numbers.append(_last_values(run))
        configs.append(dict(flattened(run.config)))
    if not rows:
        raise UserError(f"{folder}: no run in it; expected folders with metrics.csv or config.yaml")
    settings = [{f"config.{key}": config.get(key) for key in _differing(configs)} for config in configs]
    table = pd.concat([pd.DataFrame(part) for part in (rows, numbers, settings)], axis=1)
    return table.astype({"seed": "Int64", "done": bool})


def _found(folder: Path) -> Iterator[Path]:
    """The run directories below a folder, and itself if it is one: by name, stages in the order in which they run."""
    for place, folders, _ in os.walk(folder):
        path = Path(place)
        kept = [name for name in folders if not name.startswith(".") and name not in _WITHOUT_RUNS]
        folders[:] = sorted(kept, key=lambda name: (STAGES.index(name) if name in STAGES else len(STAGES), name))
        is_pipeline = any(has_marks(path / stage) for stage in STAGES)
        if (path / "metrics.csv").exists() or (has_marks(path) and not is_pipeline):
            yield path


def _about(run: Run, folder: Path, problem: str) -> dict[str, Any]:
    below = run.path.relative_to(folder).as_posix()
    return {
        "name": folder.resolve().name if below == "." else below,
        "path": str(run.path),
        "kind": run.kind,
        "algorithm": run.algorithm,
        "task": run.task,
        "seed": seed_of(run),
        "done": run.done,
        "problem": problem,
        "last": run.metrics[run.axis].max() if len(run.metrics) else np.nan,
    }


def _last_values(run: Run) -> dict[str, float]:
    """The last finite value of each metric, the counter left out."""
    found = {}
    for name in run.columns[1:]:
        values = run.metrics[name].to_numpy(dtype=float)
        finite = values[np.isfinite(values)]
        if len(finite):
            found[name] = float(finite[-1])
    return found


def _differing(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The settings that have more than one value among the runs that have them, in the order of the files."""
    values: dict[str, set[str]] = {}
    for config in configs:
        for key, value in config.items():
            values.setdefault(key, set()).add(json.dumps(value, default=str))
    return [key for key, given in values.items() if len(given) > 1 and not (changes_no_number(key) or key == SEED)]
