"""The run directory as a run writes it: what may be started where, what is resumed, and when it is done.

Every rank reads the same directory and comes to the same plan; only rank 0 changes anything, and nothing but
`RunDirectory.set_aside` before training starts. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

import yaml

from rlhf_lightning.config_files import read_config
from rlhf_lightning.errors import UserError

CONFIG, ENVIRONMENT, DONE, STAGE = "config.yaml", "environment.json", "DONE", "stage.json"
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"

_KEPT = frozenset({STAGE})
"""Not part of a run: the pipeline's note about the stage."""

_NOT_COMPARED = (
    "name",
    "runs_dir",
    "overwrite",
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
        set_aside: the directory holds an earlier run that the new one replaces.
    """

    directory: Path
    resume_from: Path | None = None
    set_aside: bool = False


def plan_run(directory: Path, config: Mapping[str, Any], *, overwrite: bool) -> Plan:
    """Start, resume or refuse; reads only.

    Raises:
        UserError: the directory holds a finished run, an unfinished one with another configuration, or no run.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; expected a directory for the run (choose another --name)")
    entries = {entry.name for entry in directory.iterdir()} - _KEPT if directory.is_dir() else set()
    if not entries:
        return Plan(directory)
    if CONFIG not in entries:
        raise UserError(f"{directory} exists and holds no run ({CONFIG} is missing); choose another --name")
    if overwrite:
        return Plan(directory, set_aside=True)
    if DONE in entries:
        raise UserError(
            f"{directory} holds a finished run; pass --overwrite to replace it, or --name for another directory"
        )
    last = directory / LAST_CHECKPOINT
    if not last.is_file():
        return Plan(directory, set_aside=True)
    difference = first_difference(read_config(directory / CONFIG), config)
    if difference is not None:
        key, old, new = difference
        raise UserError(
            f"{directory} holds an unfinished run with another configuration: {key} is {old!r} there and {new!r} now; "
            "pass --overwrite to start over, or --name for another directory"
        )
    return Plan(directory, resume_from=last)


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key whose value differs, with both values; settings that change no number are not compared."""
    flat_old, flat_new = dict(_flat(old)), dict(_flat(new))
    for key in [*flat_new, *(k for k in flat_old if k not in flat_new)]:
        if any(key == skipped or key.startswith(f"{skipped}.") for skipped in _NOT_COMPARED):
            continue
        if flat_old.get(key) != flat_new.get(key):
            return key, flat_old.get(key), flat_new.get(key)
    return None


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
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

    def set_aside(self) -> None:
        """Move an earlier run out of the way; it comes back if the new one never starts training."""
        if self.plan.set_aside:
            shutil.rmtree(self._aside, ignore_errors=True)
            self._aside.mkdir()
            self._move(self.path, self._aside)

    def start(self, resumed_at: int | None = None) -> None:
        """Training starts: write the configuration and the environment, and drop the run that is replaced."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / ENVIRONMENT
        if resumed_at is not None and path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            content.setdefault("resumed", []).append({"at": resumed_at, **environment()})
        else:
            content = environment()
        write_atomically(path, json.dumps(content, indent=2) + "\n")
        text = yaml.safe_dump(dict(self._config), sort_keys=False, allow_unicode=True)
        write_atomically(self.path / CONFIG, text)
        shutil.rmtree(self._aside, ignore_errors=True)
        self.started = True

    def finish(self) -> None:
        """The run is complete."""
        write_atomically(self.path / DONE, f"{_now()}\n")

    def abandon(self) -> None:
        """The run failed: if it never started training, leave everything as it was before."""
        if self.started:
            return
        if self.plan.resume_from is None and self.path.is_dir():
            for entry in self.path.iterdir():
                if entry.name not in _KEPT:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if self._aside.is_dir():
            self._move(self._aside, self.path)
            self._aside.rmdir()
        elif not self._existed:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    @staticmethod
    def _move(source: Path, target: Path) -> None:
        for entry in source.iterdir():
            if entry.name not in _KEPT:
                entry.rename(target / entry.name)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old or the new content and nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def environment() -> dict[str, Any]:
    """What a run was made with: command line, versions, commit, hardware."""
    packages = ("torch", "lightning", "transformers", "tokenizers", "jsonargparse", "numpy")
    return {
        "command": shlex.join([Path(sys.executable).name, "-m", "rlhf_lightning", *sys.argv[1:]]),
        "started": _now(),
        "versions": {
            "rlhf_lightning": package_version(),
            "python": platform.python_version(),
            **{name: _version(name) for name in packages},
        },
        "git_commit": git_commit(),
        "hardware": {
            "machine": platform.node(),
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "gpus": _gpus(),
        },
    }


def package_version() -> str:
    """Version of this package."""
    return _version("rlhf-lightning") or "unknown"


def git_commit() -> str | None:
    """Commit of the checkout that the package runs from, ``-dirty`` where files differ; None when installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        call = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")  # never imported for this alone
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
