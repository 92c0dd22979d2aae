"""The faults of the drills: how each is brought about, and what became of the run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from drill_parts import FAULT
from drill_runs import Run, complete, differences, went_on
from safetensors.torch import load_file, save_file

AT = 3
"""The iteration at which things go wrong."""

WANDB = ["--trainer.logger", "WandbLogger", "--trainer.logger.project", "drills"]
WANDB_PATIENCE = "5"
"""Seconds that W&B is given to answer at the start; 90 by default."""

PROGRESS = re.compile(r"^runs/\S+: |^\w+  (iteration|step) \d|^made |^(\x1b\S*)?wandb")
"""Lines of a run to which nothing happened, and what W&B itself says."""

AT_EXIT = "Exception ignored in atexit callback"
"""From here on a traceback of W&B's own, after the run is done."""


@dataclass(frozen=True)
class Fault:
    """Something bad.

    Args:
        name: in the table.
        bring: does it to a run, or to a run's surroundings, and gives the exit status.
        ends: whether the run is expected to end of it, as opposed to going on.
        redone: complete iterations that it may cost: they are trained again.
        warns: whether there is anything to be told, in one line.
        whole: makes the uninterrupted run to compare with, if that is another one.
    """

    name: str
    bring: Callable[[Run, Run], int]
    ends: bool = True
    redone: int = 0
    warns: bool = True
    whole: Callable[[], Run] | None = None


def fault_line(fault: Fault, whole: Run) -> tuple[str, bool]:
    """A row of the table, and whether the run was none the worse for it."""
    if fault.whole is not None:
        whole = fault.whole()
    run = Run(re.sub(r"\W+", "-", fault.name), whole.config)
    began = time.monotonic()
    status = fault.bring(run, whole)
    seconds, reaction = time.monotonic() - began, run.reaction
    read = told(run)
    done = complete(run)
    run.environment, run.options, run.separate = {}, [], False
    if status == 0:
        lost, found = 0, differences(whole.directory, run.directory)
        after = "it had gone on to the end: " + said_of(found)
    else:
        again = run.start().wait()
        lost, found = max(done - went_on(run), 0), differences(whole.directory, run.directory)
        after = f"exit status {again}, {said_of(found)}"
        read = read or told(run)
    fine = not found and lost <= fault.redone and (status != 0) == fault.ends and len(read) == (1 if fault.warns else 0)
    text = "<br>".join(f"`{line}`" for line in read).replace("|", "\\|") or "nothing"
    print(f"    {seconds:.1f} s")
    name = fault.name + (f", ended after {reaction:.2f} s" if reaction and status > 0 else "")
    return f"| {name} | {status} | {text} | {lost} | {after} |", fine


def told(run: Run) -> list[str]:
    """What a run said besides its progress."""
    lines = run.said()
    end = next((number for number, line in enumerate(lines) if line.startswith(AT_EXIT)), len(lines))
    return [line for line in lines[:end] if line.strip() and not (PROGRESS.match(line) or line.endswith(" …"))]


def said_of(found: list[str]) -> str:
    """How many differences, and the first."""
    return f"{len(found)} differences" + (f" ({found[0]})" if found else "")


def planted(kind: str) -> Callable[[Run, Run], int]:
    """A fault that a part of the run brings about; see `drill_parts`."""

    def bring(run: Run, whole: Run) -> int:
        run.environment = {FAULT: f"{kind}:{4 if 'samples' in kind else AT}"}
        if kind == "logger raises":
            run.options = ["--trainer.logger", "drill_parts.FailingLogger"]
        return run.start().wait()

    return bring


def signalled(number: int, iteration: int = AT) -> Callable[[Run, Run], int]:
    """A signal in the middle of an update."""

    def bring(run: Run, whole: Run) -> int:
        run.start()
        while run.alive and ("update", iteration) not in [mark[1:] for mark in run.marks()]:
            time.sleep(0.001)
        run.signal(number)
        return run.wait()

    return bring


def damaged(damage: Callable[[Path], None]) -> Callable[[Run, Run], int]:
    """A run that is killed, and whose last checkpoint is damaged before it goes on."""

    def bring(run: Run, whole: Run) -> int:
        signalled(signal.SIGKILL, AT + 1)(run, whole)
        damage(run.directory / "checkpoints" / "last.ckpt")
        return -signal.SIGKILL

    return bring


def cut(path: Path) -> None:
    """Half of it is missing."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """One bit of a tensor is wrong: torch itself does not notice."""
    content = bytearray(path.read_bytes())
    content[content.index(b"data/0") + 200] ^= 1
    path.write_bytes(content)


def nan_weights(run: Run, whole: Run) -> int:
    """The policy starts from an export with a weight that is no number."""
    shutil.copytree("runs/words/export", "nan")
    file = Path("nan", "model.safetensors")
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    run.options = ["--backbone.init_args.checkpoint", "nan"]
    return run.start().wait()


def wandb_at(address: str) -> Callable[[Run, Run], int]:
    """A run that reports to a server which is not there, or does not answer."""

    def bring(run: Run, whole: Run) -> int:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            if address == "silent":
                server.listen(64)
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
            run.environment = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": WANDB_PATIENCE}
            run.options, run.separate = WANDB, True
            return run.start().wait()

    return bring


def wandb_killed(run: Run, whole: Run) -> int:
    """W&B's own process is killed in mid-run."""
    run.environment, run.options, run.separate = {"WANDB_MODE": "offline"}, WANDB, True
    run.start()
    while run.alive and ("update", AT) not in [mark[1:] for mark in run.marks()]:
        time.sleep(0.001)
    for process in run.children():
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return run.wait()


def words_run() -> Run:
    """Supervised training on a file."""
    lines = [json.dumps({"prompt": f"say {n}", "response": f"word {n * n}"}) for n in range(64)]
    Path("words.jsonl").write_text("\n".join(lines) + "\n")
    size = {"width": 16, "layers": 1, "heads": 2, "context_length": 32}
    return finished(
        "words",
        {
            "task": {"class_path": "TextTask", "init_args": {"path": "words.jsonl", "vocabulary": 300}},
            "backbone": {"class_path": "LanguageBackbone", "init_args": size},
            "model": {"class_path": "SFT", "init_args": {"log_every": 1}},
            "data": {"class_path": "DemonstrationDataModule", "init_args": {"batch_size": 8}},
            "checkpoint_every": 1,
            "trainer": {"max_steps": 5, "accelerator": "cpu", "callbacks": [{"class_path": "drill_parts.Marks"}]},
        },
    )


def policy_run() -> Run:
    """PPO from what `words_run` exports."""
    words = yaml.safe_load(Path(words_run().config).read_text())
    reward = {"class_path": "FunctionReward", "init_args": {"function": "drill_parts:reward"}}
    size = {"rollout_batch_size": 16, "max_new_tokens": 8, "eval_prompts": 4, "reward": reward}
    return finished(
        "policy",
        {
            "task": words["task"],
            "backbone": {"class_path": "LanguageBackbone", "init_args": {"checkpoint": "runs/words/export"}},
            "model": {"class_path": "PPO", "init_args": {"eval_every": 2}},
            "data": {"class_path": "RolloutDataModule", "init_args": size},
            "trainer": {**words["trainer"], "max_steps": -1, "max_epochs": 3},
        },
    )


def finished(name: str, config: dict[str, Any]) -> Run:
    """An uninterrupted run of this configuration, the first time that it is asked for."""
    whole = Run(name, f"{name}.yaml")
    Path(whole.config).write_text(yaml.safe_dump(config))
    if not whole.directory.exists() and whole.start().wait() != 0:
        raise RuntimeError(whole.said())
    return whole


def data_cut_between(run: Run, whole: Run) -> int:
    """A run is killed, and finds half of its data when it goes on; then the data come back."""
    content = Path("words.jsonl").read_bytes()
    signalled(signal.SIGKILL)(run, whole)
    cut(Path("words.jsonl"))
    status = run.start().wait()
    Path("words.jsonl").write_bytes(content)
    return status


def data_replaced_between(run: Run, whole: Run) -> int:
    """A run is killed, and finds other data of the same size when it goes on; then its own come back."""
    content = Path("words.jsonl").read_bytes()
    signalled(signal.SIGKILL)(run, whole)
    Path("words.jsonl").write_bytes(content.replace(b"say", b"ask"))
    status = run.start().wait()
    Path("words.jsonl").write_bytes(content)
    return status


def data_cut_while_open(run: Run, whole: Run) -> int:
    """Half of the data vanishes under a run that has opened them."""
    content = Path("words.jsonl").read_bytes()
    status = planted("data truncated")(run, whole)
    Path("words.jsonl").write_bytes(content)
    return status


DISK = ("checkpoint", "metrics", "samples", "export")
REWARD = ("raises", "hangs", "returns NaN")
FAULTS = (
    *(Fault(f"disk full, {what}", planted(f"disk full, {what}")) for what in DISK),
    *(Fault(f"reward {how}", planted(f"reward {how}")) for how in REWARD),
    Fault("NaN in the policy's weights", nan_weights, whole=policy_run),
    Fault("last.ckpt cut to a half", damaged(cut), redone=1),
    Fault("last.ckpt, one bit wrong", damaged(flip), redone=1),
    Fault("data file cut between runs", data_cut_between, whole=words_run),
    Fault("data file replaced between runs", data_replaced_between, whole=words_run),
    Fault("data file cut while open", data_cut_while_open, ends=False, warns=False, whole=words_run),
    Fault("SIGTERM", signalled(signal.SIGTERM)),
    Fault("SIGINT", signalled(signal.SIGINT)),
    Fault("logger raises", planted("logger raises"), ends=False),
    Fault("W&B: connection refused", wandb_at("closed")),
    Fault("W&B: server silent", wandb_at("silent")),
    Fault("W&B: its process killed", wandb_killed, ends=False),
)
