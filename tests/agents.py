"""Plays the agent of a W&B sweep, by W&B's own code, without its server; and reads what a run has told W&B offline."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from wandb import wandb_agent
from wandb.proto import wandb_internal_pb2

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 32768
"""Bytes of a block of W&B's offline file; no record's header crosses the end of one."""


def agent_command(
    sweep: Path, values: dict[str, Any], run: str, folder: Path, monkeypatch
) -> tuple[list[str], dict[str, str]]:
    """The command line with which an agent starts a run, and its environment.

    Args:
        values: that the server has chosen.
        run: the identifier that the server has given.
        folder: from which the agent was started.
    """
    started: list[tuple[list[str], dict[str, str]]] = []

    class Recorded:
        def __init__(self, env, command, forward_signals):
            started.append((command, dict(env)))

    monkeypatch.setattr(wandb_agent, "AgentProcess", Recorded)
    for name, value in {"WANDB_SWEEP_ID": "sw33p", "WANDB_DIR": str(folder)}.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them
        monkeypatch.delenv(name, raising=False)
    content = yaml.safe_load(sweep.read_text(encoding="utf-8"))
    agent = wandb_agent.Agent(api=None, queue=None, sweep_id="sw33p")
    agent._sweep_command = content["command"]
    arguments = {key: {"value": value} for key, value in values.items()}
    answer = agent._process_command(
        {"type": "run", "id": 1, "run_id": run, "program": content["program"], "args": arguments}
    )
    assert "exception" not in answer, answer
    monkeypatch.delenv("WANDB_RUN_ID")
    monkeypatch.delenv("WANDB_SWEEP_PARAM_PATH")
    return started[0]


def run_offline(command: list[str], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line of an agent, with W&B offline."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env={**environment, **own}, cwd=folder, capture_output=True, text=True, timeout=400, check=False
    )


def told_wandb(run: Path) -> Iterator[Any]:
    """The records of a run's offline file (LevelDB's log format: checksum, length and kind before each part)."""
    (path,) = run.rglob("*.wandb")
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            parsed = wandb_internal_pb2.Record()
            parsed.ParseFromString(record)
            yield parsed
            record = b""


def summary_of(run: Path) -> dict[str, Any]:
    """The last values of what is in a run's summary, and of what it has told W&B of its configuration."""
    summary: dict[str, Any] = {}
    for record in told_wandb(run):
        for update in record.summary.update:
            summary["/".join(update.nested_key) or update.key] = json.loads(update.value_json)
    return summary


def configuration_of(run: Path) -> dict[str, list[Any]]:
    """What W&B has been told of the run's configuration, each value of a key in its turn."""
    told: dict[str, list[Any]] = {}
    for record in told_wandb(run):
        for update in [*record.run.config.update, *record.config.update]:
            told.setdefault(update.key, []).append(json.loads(update.value_json))
    return told
