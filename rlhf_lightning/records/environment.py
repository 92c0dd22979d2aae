"""Versions, command line, commit and hardware of a run. Imports no torch."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """What a run was made with: command line, versions, commit, hardware."""
    packages = ("torch", "lightning", "transformers", "tokenizers", "jsonargparse", "numpy")
    return {
        "command": shlex.join([Path(sys.executable).name, "-m", "rlhf_lightning", *sys.argv[1:]]),
        "started": now(),
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
    root = Path(__file__).resolve().parent.parent.parent
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


def now() -> str:
    """The time, as text."""
    return datetime.now(UTC).isoformat(timespec="seconds")
