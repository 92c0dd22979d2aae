"""Run a stage as its own process: skip what is done, continue what was interrupted, forward signals."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.pipeline.stages import Stage, changed_files, changes, key_of
from rlhf_lightning.records.files import write_atomically
from rlhf_lightning.records.run_directory import CONFIG, DONE, STAGE


def run_stage(stage: Stage, *, overwrite: bool, otherwise: str) -> int:
    """Run one stage, unless it is done already; returns its exit status.

    Args:
        otherwise: the alternative to overwriting that the error message offers for a run of another origin.

    Raises:
        UserError: an input is missing, or the directory holds a run that this command did not make.
    """
    for name, path in stage.inputs.items():
        if not path.exists():
            raise UserError(f"{stage.name} needs {path}, which the stage {name} makes; run it first")
    key = key_of(stage)
    state = _state(stage, key)
    if state == "unchanged" and not overwrite:
        print(f"{stage.name}: unchanged, skipped", flush=True)
        return 0
    if state == "foreign" and not overwrite:
        raise UserError(
            f"{stage.directory} holds a finished run that this command did not make; pass --overwrite to make it "
            f"again, or {otherwise}"
        )
    if state not in ("unchanged", "foreign", "new"):
        print(f"{stage.name}: {state}", flush=True)
    command = _command(stage, overwrite=overwrite or state not in ("new", "continues"))
    stage.directory.mkdir(parents=True, exist_ok=True)
    if stage.command[0] != "fit":
        (stage.directory / DONE).unlink(missing_ok=True)
    _note(stage, key, done=False, replaces=_finished(stage))
    print(f"{stage.name}: {command_line(command)}", flush=True)
    status = _call([sys.executable, "-m", "rlhf_lightning", *command])
    if status == 0:
        if not (stage.directory / DONE).exists():
            write_atomically(stage.directory / DONE, "")
        _note(stage, key, done=True)
    return status


def _note(stage: Stage, key: dict[str, Any], **state: Any) -> None:
    write_atomically(stage.directory / STAGE, json.dumps({**key, **state}, indent=1) + "\n")


def _finished(stage: Stage) -> str | None:
    """What the finished run in the stage's folder left to say so, its time; None if there is none."""
    done = stage.directory / DONE
    return done.read_text(encoding="utf-8") if done.is_file() else None


def _state(stage: Stage, key: dict[str, Any]) -> str:
    """``new``, ``continues``, ``unchanged``, ``foreign`` (made by another command), or what has changed in words."""
    note, finished = stage.directory / STAGE, _finished(stage)
    if not note.is_file():
        return "new" if finished is None else "foreign"
    try:
        old = json.loads(note.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        old = {}
    begun = (stage.directory / CONFIG).exists()
    if {name: old.get(name) for name in key} != key:
        return f"{', '.join(changes(old, key))}: made again" if begun or finished is not None else "new"
    if changed := changed_files(stage, key):
        return f"{', '.join(changed)} changed: made again"
    if finished is None:
        return "continues" if begun else "new"
    return "unchanged" if old.get("done") or finished != old.get("replaces") else "made again"


def _call(command: list[str]) -> int:
    """Run a command until it ends; returns the exit status as a shell reports it. SIGTERM is forwarded."""
    process = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    try:
        status = process.wait()
        return status if status >= 0 else 128 - status
    except KeyboardInterrupt:
        _interrupt(process)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Wait for an interrupted stage. A terminal sends it Ctrl-C as well; any other sender reached this process only."""
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()


def print_commands(stages: Sequence[Stage], *, overwrite: bool) -> None:
    """Print the stages as command lines, to be run by hand or by a scheduler."""
    for stage in stages:
        print(command_line(_command(stage, overwrite=overwrite)))


def _command(stage: Stage, *, overwrite: bool) -> list[str]:
    """The stage's command; only ``fit`` has to be told to replace what is there."""
    return [*stage.command, "--overwrite"] if overwrite and stage.command[0] == "fit" else stage.command


def command_line(command: Sequence[str]) -> str:
    """A command as one types it into a shell."""
    return shlex.join(["python", "-m", "rlhf_lightning", *command])
