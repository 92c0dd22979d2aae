"""Scripts that start a second rank of themselves, run from tests."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

PATIENCE = 900.0
"""Seconds after which ranks count as waiting for each other."""


def on_two_ranks(script: str, folder: Path):
    """What each of two ranks has written to FOLDER/RANK.pt."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name(script)), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, output
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
