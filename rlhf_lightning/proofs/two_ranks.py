"""``python -m rlhf_lightning.proofs.two_ranks FOLDER KEY…``: runs on two ranks, in one launch.

Each rank writes the parameters that it ends with to FOLDER/NUMBER/whole/RANK.pt, beside the run's ``metrics.csv``, and
those after a death in between to FOLDER/NUMBER/killed/RANK.pt.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_lightning.cli.checks import quiet_libraries
from rlhf_lightning.distributed import rank
from rlhf_lightning.errors import UserError
from rlhf_lightning.proofs.runs import ShortRun, run_of_key
from rlhf_lightning.proofs.same_run import Outcome, logged, outcome

PATIENCE = 600.0
"""Seconds after which ranks count as waiting for each other."""


@dataclass(frozen=True)
class TwoRanks:
    """How a run ends on two ranks.

    Args:
        whole: uninterrupted, on each rank.
        killed: with a death of both in between.
    """

    whole: list[Outcome]
    killed: list[Outcome]


def on_two_ranks(folder: Path, runs: Sequence[ShortRun]) -> list[TwoRanks]:
    """Start two processes that do the runs, and read how each run ended.

    Raises:
        UserError: they failed, or did not end.
    """
    command = [sys.executable, "-m", "rlhf_lightning.proofs.two_ranks", str(folder)]
    with subprocess.Popen(
        [*command, *(run.key for run in runs)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise UserError(f"two ranks did not end within {PATIENCE:.0f} s") from None
            raise
    if process.returncode:
        last = (output.strip().splitlines() or ["without a word"])[-1]
        raise UserError(f"two ranks ended with status {process.returncode}: {last}")
    return [
        TwoRanks(_read(folder / number / "whole"), _read(folder / number / "killed"))
        for number in map(str, range(len(runs)))
    ]


def _read(folder: Path) -> list[Outcome]:
    ends = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return [Outcome({}, end, logged(folder)) for end in ends]


def main(folder: Path, keys: Sequence[str]) -> None:
    """Do these runs, on the rank that this process is."""
    quiet_libraries()
    for number, run in enumerate(map(run_of_key, keys)):
        for name in ("whole", "killed"):
            own = folder / str(number) / name
            result = outcome(run, own, killed=name == "killed", devices=2)
            torch.save(dict(result.end), own / f"{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
