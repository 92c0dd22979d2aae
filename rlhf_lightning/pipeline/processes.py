"""Run a stage as its own process: skip what is done, continue what was interrupted, forward signals."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rlhf_lightning.errors import UserError
from rlhf_lightning.pipeline.stages import Stage, changed_files, changes, key_of
from rlhf_lightning.records.files import write_atomically
from rlhf_lightning.records.inputs import digest
from rlhf_lightning.records.locks import locked
from rlhf_lightning.records.run_directory import CONFIG, DONE, STAGE, STAGE_LOCK

INTERRUPTED = frozenset({128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGKILL})
"""Exit statuses, as a shell reports them, of a stage that was ended from outside and can continue."""

GRACE = 60.0
"""Seconds that a stage may take to save and end after SIGTERM."""


class Stoppable(Protocol):
    """Something that runs."""

    def terminate(self) -> None:
        """Ask it to save and end."""

    def stop(self) -> None:
        """The same, and wait for it."""


class StageBusyError(UserError):
    """Another process is making the stage."""


class StageProcess:
    """A stage that runs as its own process.

    Args:
        note: what is kept with the stage's directory while it runs.
    """

    def __init__(self, stage: Stage, note: Mapping[str, Any], process: subprocess.Popen[bytes]) -> None:
        self.stage = stage
        self._note, self._process, self._started = note, process, time.monotonic()

    def poll(self) -> int | None:
        """Exit status as a shell reports it; None while it runs."""
        return None if self._process.poll() is None else self._ended()

    def wait(self) -> int:
        """Wait for the end, and forward SIGTERM and Ctrl-C until then; returns the exit status."""
        before = signal.signal(signal.SIGTERM, lambda number, _: self._process.send_signal(number))
        try:
            self._process.wait()
            return self._ended()
        except KeyboardInterrupt:
            self._interrupt()
            return 128 + signal.SIGINT
        finally:
            signal.signal(signal.SIGTERM, before)

    def terminate(self) -> None:
        """Ask it to save and end, by SIGTERM."""
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """Have it save and end; one that has not after `GRACE` seconds is killed."""
        self.terminate()
        try:
            self._process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._ended()

    def _ended(self) -> int:
        code = self._process.returncode
        status = code if code >= 0 else 128 - code
        if status == 0 and not (self.stage.directory / DONE).exists():
            write_atomically(self.stage.directory / DONE, "")
        seconds = round(self._note.get("seconds", 0.0) + time.monotonic() - self._started, 1)
        _write_note(self.stage, {**self._note, "done": status == 0, "status": status, "seconds": seconds})
        return status

    def _interrupt(self) -> None:
        """A terminal sends a stage Ctrl-C as well; any other sender reached this process only."""
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()


def stop_together(running: Collection[Stoppable]) -> None:
    """Stop all of them: first each is told, then each is waited for."""
    for one in running:
        one.terminate()
    for one in running:
        one.stop()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Inside, SIGTERM is what Ctrl-C is: what runs saves and stops first."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def share_of_threads(jobs: int) -> dict[str, str]:
    """The environment of each of so many processes, which share this machine's cores; what the user has set stays."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))}


def start_stage(
    stage: Stage,
    *,
    overwrite: bool = False,
    otherwise: str = "choose another --name",
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    same_code: bool = True,
) -> StageProcess | None:
    """Start one stage, or continue it; None if it is done already.

    Args:
        overwrite: make it again.
        otherwise: the alternative to overwriting that the error message offers for a run of another origin.
        log: file to which its output is appended, and that says what is done; by default both go to this process's.
        environment: further environment variables.
        same_code: a stage that another version of the package made is made again.

    Raises:
        StageBusyError: another process is making it.
        UserError: an input is missing, or the directory holds a run that this command did not make.
    """
    for name, path in stage.inputs.items():
        if not path.exists():
            raise UserError(f"{stage.name} needs {path}, which the stage {name} makes; run it first")
    key = key_of(stage)
    if not overwrite and _state(stage, key, same_code=same_code) == "unchanged":
        if log is None:
            print(f"{stage.name}: unchanged, skipped", flush=True)
        return None
    stage.directory.mkdir(parents=True, exist_ok=True)
    with _Lock(stage) as descriptors:
        state = _state(stage, key, same_code=same_code)  # again: another process may just have ended
        if state == "unchanged" and not overwrite:
            return None
        if state == "foreign" and not overwrite:
            raise UserError(
                f"{stage.directory} holds a finished run that this command did not make; pass --overwrite to make it "
                f"again, or {otherwise}"
            )
        command = _command(stage, overwrite=overwrite or state not in ("new", "continues"))
        if stage.command[0] != "fit":
            (stage.directory / DONE).unlink(missing_ok=True)
        seconds = _read_note(stage).get("seconds", 0.0) if state == "continues" else 0.0
        note = {**key, "done": False, "replaces": _finished(stage), "seconds": seconds}
        _write_note(stage, note)
        said = [] if state in ("unchanged", "foreign", "new") else [f"{stage.name}: {state}"]
        said.append(f"{stage.name}: {command_line(command)}")
        if log is None:
            print("\n".join(said), flush=True)
            return StageProcess(stage, note, _spawn(command, environment, pass_fds=descriptors))
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as output:
            print(*said, sep="\n", file=output, flush=True)
            # in a session of its own: Ctrl-C is for whoever started it, who stops it then
            streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
            process = _spawn(command, environment, pass_fds=descriptors, start_new_session=True, **streams)
        return StageProcess(stage, note, process)


def _spawn(command: Sequence[str], environment: Mapping[str, str] | None, **settings: Any) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "rlhf_lightning", *command]
    return subprocess.Popen(words, env={**os.environ, **(environment or {})}, **settings)


def run_stage(stage: Stage, *, overwrite: bool, otherwise: str) -> int:
    """Run one stage to its end, unless it is done already; returns its exit status. See `start_stage`."""
    process = start_stage(stage, overwrite=overwrite, otherwise=otherwise)
    return 0 if process is None else process.wait()


class _Lock:
    """The stage's lock, which its process inherits and holds as long as it lives, whatever becomes of this one."""

    def __init__(self, stage: Stage) -> None:
        try:
            self._file = locked(stage.directory, name=STAGE_LOCK)
        except UserError:
            raise StageBusyError(f"another process is making {stage.directory}; wait for it") from None

    def __enter__(self) -> tuple[int, ...]:
        return () if self._file is None else (self._file.fileno(),)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def is_done(stage: Stage, *, same_code: bool = True) -> bool:
    """Whether a stage has been made from what it would be made from now; see `start_stage`."""
    if not all(path.exists() for path in stage.inputs.values()):
        return False
    return _state(stage, key_of(stage), same_code=same_code) == "unchanged"


def failed_before(stage: Stage) -> int | None:
    """Exit status of a stage that failed by itself when it was last run; None for any other."""
    status = _read_note(stage).get("status", 0)
    return None if status == 0 or status in INTERRUPTED else status


def seconds_of(stage: Stage) -> float | None:
    """How long a stage has run in all, with its interruptions left out; None where that is not known."""
    return _read_note(stage).get("seconds")


def _write_note(stage: Stage, note: Mapping[str, Any]) -> None:
    write_atomically(stage.directory / STAGE, json.dumps(note, indent=1) + "\n")


def _read_note(stage: Stage) -> dict[str, Any]:
    try:
        return json.loads((stage.directory / STAGE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _finished(stage: Stage) -> str | None:
    """What tells a finished run in the stage's folder from an earlier one; None if there is none.

    That is the time in its ``DONE``; of a command other than ``fit`` that ended after whoever started it, what it made.
    """
    done = stage.directory / DONE
    if done.is_file():
        return done.read_text(encoding="utf-8")
    return digest(stage.makes) if stage.command[0] != "fit" and stage.makes.is_file() else None


def _state(stage: Stage, key: dict[str, Any], *, same_code: bool) -> str:
    """``new``, ``continues``, ``unchanged``, ``foreign`` (made by another command), or what has changed in words."""
    finished = _finished(stage)
    if not (stage.directory / STAGE).is_file():
        return "foreign" if (stage.directory / DONE).is_file() else "new"
    old = _read_note(stage)
    begun = (stage.directory / CONFIG).exists()
    if not same_code and finished is not None:
        key = key | {name: old.get(name) for name in ("version", "commit")}
    if {name: old.get(name) for name in key} != key:
        return f"{', '.join(changes(old, key))}: made again" if begun or finished is not None else "new"
    if changed := changed_files(stage, key):
        return f"{', '.join(changed)} changed: made again"
    if finished is None:
        return "continues" if begun else "new"
    return "unchanged" if old.get("done") or finished != old.get("replaces") else "made again"


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
