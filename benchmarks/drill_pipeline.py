"""Pipelines that are killed: SFT, preference pairs, reward model and PPO on the assistant task, all of them small."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from drill_runs import PATHS, differences

SIZES = {
    "task.init_args.demonstrations": 200,
    "backbone.init_args.width": 16,
    "backbone.init_args.layers": 1,
    "sft.trainer.max_steps": 30,
    "sft.trainer.val_check_interval": 15,
    "pairs.count": 80,
    "reward.trainer.max_steps": 10,
    "reward.trainer.val_check_interval": 5,
    "policy.trainer.max_epochs": 3,
    "policy.data.init_args.rollout_batch_size": 32,
    "policy.data.init_args.eval_prompts": 16,
}
STAGES = ("sft", "pairs", "reward", "policy")
PATIENCE = 600.0
"""Seconds after which a pipeline counts as hanging."""


@dataclass
class Pipeline:
    """One command and the processes of its stages, in a working directory of its own.

    Args:
        folder: the working directory.
    """

    folder: Path

    @property
    def directory(self) -> Path:
        """Where it writes."""
        return self.folder / "runs" / "q"

    def run(self, kill_after: float | None = None) -> int:
        """The exit status; after so many seconds everything is killed."""
        self.folder.mkdir(exist_ok=True)
        words = [
            sys.executable,
            "-m",
            "rlhf_lightning",
            "pipeline",
            "--config",
            "configs/quickstart.yaml",
            "--name",
            "q",
        ]
        words += [word for key, value in SIZES.items() for word in (f"--{key}", str(value))]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1"}
        with (
            open(self.folder / "said.txt", "a") as said,
            subprocess.Popen(
                words, cwd=self.folder, env=environment, stdout=said, stderr=said, start_new_session=True
            ) as process,
        ):
            try:
                return process.wait(PATIENCE if kill_after is None else kill_after)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return process.wait()

    @property
    def stage(self) -> str:
        """What it is at: the first stage that is not done."""
        return next((name for name in STAGES if not self._done(name)), "the end")

    def _done(self, stage: str) -> bool:
        note = self.directory / stage / "stage.json"
        return note.is_file() and bool(json.loads(note.read_text())["done"])


def pipeline_lines(folder: Path, count: int, generator: random.Random) -> Iterator[str]:
    """SIGKILL at moments drawn uniformly from the time that a whole pipeline takes, in Markdown."""
    folder.mkdir()
    whole = Pipeline(folder / "whole")
    began = time.monotonic()
    if whole.run() != 0:
        raise RuntimeError((whole.folder / "said.txt").read_text())
    seconds = time.monotonic() - began
    yield "| kill | after seconds | killed during | the same command again: exit status | differences |"
    yield "|---:|---:|---|---:|---:|"
    zero = 0
    for number in range(count):
        killed, after = Pipeline(folder / f"kill{number}"), generator.uniform(0, seconds)
        killed.run(after)
        where, status = killed.stage, killed.run()
        found = unequal(whole, killed)
        zero += not found and status == 0
        yield f"| {number + 1} | {after:.1f} of {seconds:.1f} | {where} | {status} | {len(found)} |"
        for name in found[:5]:
            print(f"    differs: {name}")
    yield ""
    yield f"{zero} of {count} killed pipelines ended, after the same command again, with zero differences."


def unequal(first: Pipeline, second: Pipeline) -> list[str]:
    """Everything in which two finished pipelines differ, by name."""
    found = []
    for stage in STAGES:
        one, other = first.directory / stage, second.directory / stage
        found += [f"{stage}: {name}" for name in differences(one, other)]
    return found
