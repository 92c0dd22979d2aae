"""The run directory as a run writes it: an earlier run is set aside, the new one starts, and is done.

Only rank 0 changes anything, by the plan of `plan_run`, and nothing but `RunDirectory.set_aside` before training
starts. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

import yaml

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.checkpoint_files import LAST
from rlhf_lightning.records.environment import environment, now
from rlhf_lightning.records.files import remove_temporary, write_atomically
from rlhf_lightning.records.inputs import INPUTS, Input, write_inputs
from rlhf_lightning.records.locks import LOCK, check_free, locked
from rlhf_lightning.records.metrics import Description

CONFIG, ENVIRONMENT, DONE, STAGE = "config.yaml", "environment.json", "DONE", "stage.json"
STAGE_LOCK = ".stage.lock"
DESCRIPTION = "run.json"
"""What the run trains and logs; see `Description`."""
CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = Path(CHECKPOINTS) / LAST

STAGES = ("sft", "pairs", "reward", "policy")
"""The stages of a pipeline, in the order in which they run; each is a run directory of its own."""

ASIDE, HALFWAY = ".replaced", ".replacing"
"""Where an earlier run stands aside: whole, and while a part of it may be in its place.

Both lie in the directory itself, where a file can be renamed whatever is linked or mounted.
"""

KEPT = frozenset({STAGE, STAGE_LOCK, LOCK, ASIDE, HALFWAY})
"""Not part of a run: the note and the lock of a stage, the mark of the process that trains, and an earlier run."""


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
        self.inputs: list[Input] = []
        """What the run reads."""
        self.started = False
        self._prepared = self._cleared = False
        """Whether moving an earlier run has begun, and whether nothing of it is left in its place."""
        self._lock: IO[str] | None = None

    def set_aside(self) -> None:
        """Move an earlier run out of the way; it comes back if the new one never starts training.

        Raises:
            UserError: another process is training there by now, or a file cannot be moved.
        """
        if self.plan.resume_from is not None:
            return
        aside, halfway = self.path / ASIDE, self.path / HALFWAY
        if self.plan.set_aside:
            check_free(self.path)
            _remove(aside)  # of the run that is there: it has started since
            self._prepared = True
            try:
                halfway.mkdir(exist_ok=True)
                # first what could be continued from, last what makes it a run: a crash between leaves a run to replace
                self._move(self.path, halfway, first=CHECKPOINTS, last=CONFIG)
                halfway.rename(aside)
            except OSError as error:
                raise UserError(f"{error.filename} cannot be set aside ({error.strerror}); the run stays") from error
        self._prepared = self._cleared = True

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
        if resumed_at is None or not (self.path / INPUTS).exists():  # in a run that goes on they are the same
            write_inputs(self.path, self.inputs)
        (self.path / DONE).unlink(missing_ok=True)  # of a run that is to be longer
        text = yaml.safe_dump(dict(self._config), sort_keys=False, allow_unicode=True)
        write_atomically(self.path / CONFIG, text)
        self.started = True
        for earlier in (ASIDE, HALFWAY):
            _remove(self.path / earlier)

    def finish(self) -> None:
        """The run is complete."""
        write_atomically(self.path / DONE, f"{now()}\n")
        self._unlock()

    def abandon(self) -> None:
        """The run failed: if it never started training, leave everything as it was before.

        Raises:
            UserError: a file of an earlier run cannot be moved back; the message says where it is.
        """
        self._unlock()
        if self.started or not self._prepared:
            return
        try:
            check_free(self.path)
        except UserError:  # another process has started training here in the meantime
            return
        if self._cleared and self.path.is_dir():
            for entry in self.path.iterdir():
                if entry.name not in KEPT:
                    _remove(entry)
        self._move_back()
        if not self._existed:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def _move_back(self) -> None:
        """Put an earlier run back, the whole or the part of it that stands aside."""
        aside, halfway = self.path / ASIDE, self.path / HALFWAY
        try:
            if aside.is_dir() and not halfway.is_dir():
                aside.rename(halfway)
            if halfway.is_dir():
                self._move(halfway, self.path, first=CONFIG, last=CHECKPOINTS)
                halfway.rmdir()
        except OSError as error:
            reason = f"{error.filename} cannot be moved back ({error.strerror})"
            raise UserError(f"{reason}; what is missing in {self.path} is in {halfway}") from error

    def _unlock(self) -> None:
        if self._lock is not None:
            (self.path / LOCK).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    @staticmethod
    def _move(source: Path, target: Path, *, first: str, last: str) -> None:
        for entry in sorted(source.iterdir(), key=lambda entry: (entry.name == last) - (entry.name == first)):
            if entry.name not in KEPT:
                entry.rename(target / entry.name)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_environment(directory: Path) -> dict[str, Any]:
    """What `environment` was when the run started; empty where that is not known."""
    try:
        return json.loads((directory / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
