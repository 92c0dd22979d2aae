"""Read what ``compare`` has written.

```python
result = load_comparison("experiments/results/cartpole_optimizers-quick")
result.table      # one row per arm
result.verdicts   # one row per claim
result.figure()   # where the arms ended; "claims", "learning_curves", …
```
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError, suggestion
from rlhf_lightning.experiment.declaration import SPEC, read_declaration
from rlhf_lightning.experiment.pictures import figures
from rlhf_lightning.experiment.results import ComparisonResult
from rlhf_lightning.experiment.spec_file import read_experiment
from rlhf_lightning.experiment.writing import RUNS, TRIALS


class LoadedComparison(ComparisonResult):
    """A comparison as it was written, judged anew."""

    def figure(self, name: str = "arms") -> Figure:
        """One of its figures; curves need the directories of the runs.

        Raises:
            UserError: there is no such figure.
        """
        found = figures(self)
        if name not in found:
            known = f"there are {', '.join(found)}"
            raise UserError(f"no figure {name!r}; {suggestion(name, found, otherwise=known)}")
        return found[name]


def load_comparison(folder: str | Path) -> LoadedComparison:
    """Read what ``compare`` has written, and judge it anew.

    Args:
        folder: such as ``experiments/results/cartpole_optimizers-quick``.

    Raises:
        UserError: the folder holds no comparison, or one without runs.
    """
    folder = Path(folder)
    declaration = read_declaration(folder)
    if not (folder / RUNS).is_file():
        raise UserError(f"{folder} holds no {RUNS} yet; compare writes it when runs have ended")
    experiment = read_experiment(folder / SPEC, name=declaration.name)
    text = ["arm", "task", "unit", "note", "directory", "started", "commit", "versions", "hardware", "command"]
    runs = pd.read_csv(folder / RUNS, dtype=dict.fromkeys(text, str)).fillna(dict.fromkeys(text, ""))
    trials = None
    if (folder / TRIALS).is_file():
        trials = pd.read_csv(folder / TRIALS, dtype={"arm": str})
        trials["settings"] = trials["settings"].map(json.loads)
    return LoadedComparison(experiment, declaration, runs, trials)
