"""The run directory as a run writes it: what may be started where, what is resumed, and when it is done.

Every rank reads the same directory and comes to the same plan; only rank 0 changes anything, and nothing but
`RunDirectory.set_aside` before training starts. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

import yaml

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.checkpoint_files import LAST, newest_intact
from rlhf_lightning.records.config_files import read_config
from rlhf_lightning.records.environment import environment, now
from rlhf_lightning.records.files import is_temporary, remove_temporary, write_atomically
from rlhf_lightning.records.locks import LOCK, check_free, locked
from rlhf_lightning.records.metrics import Description

CONFIG, ENVIRONMENT, DONE, STAGE = "config.yaml", "environment.json", "DONE", "stage.json"
DESCRIPTION = "run.json"
"""What the run trains and logs; see `Description`."""
CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = Path(CHECKPOINTS) / LAST

STAGES = ("sft", "pairs", "reward", "policy")
"""The stages of a pipeline, in the order in which they run; each is a run directory of its own."""

_KEPT = frozenset({STAGE, LOCK})
"""Not part of a run: the pipeline's note about the stage, and the mark of the process that trains."""

_OF_LOGGERS = frozenset({"wandb", "lightning_logs"})
"""What loggers may leave of a run that never started; W&B writes it as its process ends."""

_NOT_COMPARED = (
    "name",
    "runs_dir",
    "overwrite",
    "checkpoint_every",
    "checkpoint_keep",
    "ckpt_path",
    "weights_only",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.default_root_dir",
    "trainer.profiler",
)
"""Settings that may differ between an interrupted run and its continuation: they change no number."""


@dataclass(frozen=True)
class Plan:
    """What a new ``fit`` may do with its directory.

    Args:
        resume_from: checkpoint to continue from, None to start at the beginning.
        damaged: newer ones, which cannot be continued from.
        set_aside: the directory holds an earlier run that the new one replaces.
    """

    directory: Path
    resume_from: Path | None = None
    damaged: tuple[Path, ...] = ()
    set_aside: bool = False


def plan_run(
    directory: Path,
    config: Mapping[str, Any],
    *,
    overwrite: bool,
    read: Callable[[Path], Mapping[str, Any]] = read_config,
) -> Plan:
    """Start, resume or refuse; reads only.

    Args:
        config: the full configuration of the new run.
        read: reads the full configuration of an unfinished run from its file.

    Raises:
        UserError: the directory holds a finished run, an unfinished one with another configuration or with damaged
            checkpoints only, or no run.
    """
    try:
        os.fsencode(directory)
        str(directory).encode()
    except UnicodeEncodeError as error:
        expected = "one that file names can have here (PYTHONUTF8=1 allows all)"
        raise UserError(
            f"the run directory {str(directory)!a} has a name that cannot be written; expected {expected}"
        ) from error
    if file := next((parent for parent in directory.parents if parent.is_file()), None):
        raise UserError(f"{file} is a file; expected a folder for runs (choose another --runs_dir)")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; expected a directory for the run (choose another --name)")
    check_free(directory)
    entries = {entry.name for entry in directory.iterdir()} - _KEPT - _OF_LOGGERS if directory.is_dir() else set()
    if all(name == ENVIRONMENT or is_temporary(name) for name in entries):  # killed while it started
        return Plan(directory)
    if CONFIG not in entries:
        raise UserError(f"{directory} exists and holds no run ({CONFIG} is missing); choose another --name")
    if overwrite:
        return Plan(directory, set_aside=True)
    if DONE in entries:
        raise UserError(
            f"{directory} holds a finished run; pass --overwrite to replace it, or --name for another directory "
            "(in Python: overwrite=True, or another name)"
        )
    last, damaged = newest_intact(directory / CHECKPOINTS)
    if last is None and damaged:
        names = ", ".join(path.name for path in damaged)
        raise UserError(
            f"{directory} holds an unfinished run with damaged checkpoints ({names}); pass --overwrite to start over"
        )
    if last is None:
        return Plan(directory, set_aside=True)
    otherwise = "pass --overwrite to start over, or --name for another directory"
    try:
        difference = first_difference(read(directory / CONFIG), config)
    except UserError as error:
        reason = f"{directory} holds an unfinished run that cannot be continued: {error}"
        raise UserError(f"{reason}; {otherwise}") from error
    if difference is not None:
        key, old, new = difference
        raise UserError(
            f"{directory} holds an unfinished run with another configuration: {key} is {old!r} there and {new!r} now; "
            f"{otherwise}"
        )
    return Plan(directory, resume_from=last, damaged=tuple(damaged))


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key whose value differs, with both values; settings that change no number are not compared."""
    flat_old, flat_new = dict(flattened(old)), dict(flattened(new))
    for key in [*flat_new, *(k for k in flat_old if k not in flat_new)]:
        if any(key == skipped or key.startswith(f"{skipped}.") for skipped in _NOT_COMPARED):
            continue
        if flat_old.get(key) != flat_new.get(key):
            return key, flat_old.get(key), flat_new.get(key)
    return None


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a configuration by their dotted keys."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_name(name: str) -> str:
    """The name of a run, which always lies below the folder of all runs.

    Raises:
        UserError: it does not.
    """
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise UserError(f"--name {name!r}: expected a name such as ppo-1; --runs_dir says where runs are kept")
    return name


class RunDirectory:
    """Writes one run's directory, on rank 0.

    Args:
        plan: what `plan_run` allowed.
        config: the full configuration.
    """

    def __init__(self, plan: Plan, config: Mapping[str, Any]) -> None:
        self.plan, self.path = plan, plan.directory
        self._config = config
        self._existed = self.path.exists()
        self._aside = self.path.with_name(f".{self.path.name}.replaced")
        self.started = False
        self._lock: IO[str] | None = None

    def set_aside(self) -> None:
        """Move an earlier run out of the way; it comes back if the new one never starts training.

        Raises:
            UserError: another process is training there by now.
        """
        if self.plan.set_aside:
            check_free(self.path)
            shutil.rmtree(self._aside, ignore_errors=True)
            self._aside.mkdir()
            # first what could be continued from, last what makes it a run: a crash between leaves a run to be replaced
            self._move(self.path, self._aside, first=CHECKPOINTS, last=CONFIG)

    def start(self, description: Description | None = None, resumed_at: int | None = None, **notes: str | None) -> None:
        """Training starts: write the configuration and the environment, and drop the run that is replaced.

        Args:
            description: what the run trains and logs.
            resumed_at: iterations or steps that were complete already.
            notes: what else to keep beside the environment.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = locked(self.path)
        except UserError:
            self.started = True  # the directory is another process's: not ours to clean up
            raise
        for folder in (self.path, self.path / CHECKPOINTS):
            remove_temporary(folder)
        content = read_environment(self.path) if resumed_at is not None else {}
        if content:
            content.setdefault("resumed", []).append({"at": resumed_at, **environment()})
        else:
            content = environment()
        content |= {name: note for name, note in notes.items() if note is not None}
        write_atomically(self.path / ENVIRONMENT, json.dumps(content, indent=2) + "\n")
        if description is not None:
            write_atomically(self.path / DESCRIPTION, json.dumps(description.as_dict(), indent=1, ensure_ascii=False))
        text = yaml.safe_dump(dict(self._config), sort_keys=False, allow_unicode=True)
        write_atomically(self.path / CONFIG, text)
        shutil.rmtree(self._aside, ignore_errors=True)
        self.started = True

    def finish(self) -> None:
        """The run is complete."""
        write_atomically(self.path / DONE, f"{now()}\n")
        self._unlock()

    def abandon(self) -> None:
        """The run failed: if it never started training, leave everything as it was before."""
        self._unlock()
        if self.started:
            return
        try:
            check_free(self.path)
        except UserError:  # another process has started training here in the meantime
            return
        if self.plan.resume_from is None and self.path.is_dir():
            for entry in self.path.iterdir():
                if entry.name not in _KEPT:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if self._aside.is_dir():
            self._move(self._aside, self.path, first=CONFIG, last=CHECKPOINTS)
            self._aside.rmdir()
        elif not self._existed:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def _unlock(self) -> None:
        if self._lock is not None:
            (self.path / LOCK).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    @staticmethod
    def _move(source: Path, target: Path, *, first: str, last: str) -> None:
        for entry in sorted(source.iterdir(), key=lambda entry: (entry.name == last) - (entry.name == first)):
            if entry.name not in _KEPT:
                entry.rename(target / entry.name)


def read_environment(directory: Path) -> dict[str, Any]:
    """What `environment` was when the run started; empty where that is not known."""
    try:
        return json.loads((directory / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
