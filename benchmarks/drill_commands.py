"""Commands that are killed with all their processes: whole pipelines, and runs of two ranks."""

from __future__ import annotations

import json
import os
import random
import shutil
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
RUN = Path("runs", "q")
PATIENCE = 600.0
"""Seconds after which a command counts as hanging."""


@dataclass(frozen=True)
class Command:
    """What is killed.

    Args:
        name: in the text.
        words: arguments of ``python -m rlhf_lightning``; it writes to `RUN`.
        parts: folders below `RUN` that are compared.
        starts: file with which the time begins from which moments are drawn; None for the start of the process.
    """

    name: str
    words: tuple[str, ...]
    parts: tuple[str, ...]
    starts: Path | None = None

    def run(self, folder: Path, kill_after: float | None = None) -> tuple[int, float]:
        """Exit status and seconds; after so many seconds everything is killed."""
        folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-W", "ignore", "-m", "rlhf_lightning", *self.words]
        with (
            open(folder / "said.txt", "a") as said,
            subprocess.Popen(
                words, cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True
            ) as process,
        ):
            while self.starts is not None and not (folder / self.starts).exists() and process.poll() is None:
                time.sleep(0.001)
            began = time.monotonic()
            try:
                process.wait(PATIENCE if kill_after is None else kill_after)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, time.monotonic() - began


def pipeline() -> Command:
    """SFT, preference pairs, reward model and PPO on the assistant task, all of them small."""
    sizes = (word for key, value in SIZES.items() for word in (f"--{key}", str(value)))
    words = ("pipeline", "--config", "configs/quickstart.yaml", "--name", "q", *sizes)
    return Command("pipelines", words, ("sft", "pairs", "reward", "policy"))


def on_two_ranks(config: Path) -> Command:
    """A run on two ranks; moments are drawn from the time that it trains and exports."""
    words = ("fit", "--config", str(config), "--name", "q", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    return Command("runs of two ranks", words, ("",), starts=RUN.with_name("q.marks"))


def command_lines(command: Command, folder: Path, count: int, generator: random.Random) -> Iterator[str]:
    """SIGKILL at moments drawn uniformly from the time that the uninterrupted command takes, in Markdown."""
    whole = folder / "whole"
    status, seconds = command.run(whole)
    if status:
        raise RuntimeError((whole / "said.txt").read_text())
    yield "| kill | after seconds | killed during | the same command again: exit status | differences |"
    yield "|---:|---:|---|---:|---:|"
    zero = 0
    for number in range(count):
        killed, after = folder / f"kill{number}", generator.uniform(0, seconds)
        while command.run(killed, after)[0] != -signal.SIGKILL or (killed / RUN / "DONE").exists():
            # it had ended before: another moment
            shutil.rmtree(killed)
            after = generator.uniform(0, seconds)
        where = _place(killed)
        status, _ = command.run(killed)
        pairs = [(whole / RUN / part, killed / RUN / part) for part in command.parts]
        found = [f"{other.name}: {name}" for one, other in pairs for name in differences(one, other)]
        zero += not found and status == 0
        if status:
            print((killed / "said.txt").read_text())
        yield f"| {number + 1} | {after:.1f} of {seconds:.1f} | {where} | {status} | {len(found)} |"
        for name in found[:5]:
            print(f"    differs: {name}")
    yield ""
    yield f"{zero} of {count} killed {command.name} ended, after the same command again, with zero differences."


def _place(folder: Path) -> str:
    """What a command was at when it was killed: the last mark of a run, or the stage of a pipeline."""
    marks = folder / RUN.with_name("q.marks")
    if marks.is_file():
        return " ".join(marks.read_text().split("\n")[-2].split()[1:])
    notes = sorted((folder / RUN).glob("*/stage.json"), key=lambda note: note.stat().st_mtime)
    undone = [note.parent.name for note in notes if not json.loads(note.read_text())["done"]]
    return undone[-1] if undone else "between stages"
