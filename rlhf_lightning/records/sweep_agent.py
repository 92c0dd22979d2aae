"""What an agent of a W&B sweep tells the runs that it starts: it says so in the environment. Imports no torch.

All ranks of a run see the same environment, those that Lightning launches too; ``wandb.config`` exists on rank 0 alone,
and is read nowhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.config_files import read_mapping


def agent_run() -> str | None:
    """The identifier that the agent has given to this run; None where no agent has started it."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def name_under_agent(name: str) -> str:
    """The name of a run, with the agent's identifier: all runs of a sweep are started with the same name."""
    run = agent_run()
    return name if run is None or name == run or name.endswith(f"-{run}") else f"{name}-{run}"


def swept_keys() -> frozenset[str]:
    """The keys that the sweep has set in W&B's record of the run, where only the sweep may set them.

    The agent writes them to a file before it starts the run.
    """
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if agent_run() is None or not path or not Path(path).is_file():
        return frozenset()
    try:
        return frozenset(read_mapping(path))
    except UserError:  # nothing of the run depends on it
        return frozenset()
