"""What several commands share: types of arguments, networks from run directories, a progress bar."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from rlhf_lightning.models.language.policy import LanguagePolicy

Item = TypeVar("Item")


def exported(path: str, *stages: str) -> str:
    """The Hugging Face folder behind a run directory, a pipeline directory, or the folder itself.

    Args:
        stages: stages of a pipeline to look into, the first that is there wins.
    """
    folder = Path(path)
    for candidate in (*(folder / stage / "export" for stage in stages), folder / "export", folder):
        if (candidate / "config.json").is_file():
            return str(candidate)
    if folder.exists():
        raise UserError(f"{path} holds no exported model; expected a finished run or a folder with config.json")
    if path.count("/") == 1 and not folder.parent.exists() and folder.parts[0] != "runs":
        return path
    raise UserError(
        f"{path} does not exist; expected a folder with a model, a hub name, or a run directory, which "
        "python -m rlhf_lightning pipeline (or fit) makes"
    )


def load_policy(path: str, *, temperature: float) -> LanguagePolicy:
    """A trained policy, on the fastest device there is."""
    import torch

    from rlhf_lightning.models.language.backbone import LanguageBackbone

    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = LanguageBackbone(checkpoint=exported(path, "policy", "sft")).policy(_no_task, temperature=temperature)
    return policy.eval().requires_grad_(False).to(device)


def _no_task() -> Any:
    raise UserError("the checkpoint has no tokenizer")


def track(items: Sequence[Item], what: str) -> Iterable[Item]:
    """Show how far a loop is, on a terminal only."""
    from rich.console import Console
    from rich.progress import track as rich_track

    return rich_track(items, what, console=Console(stderr=True), disable=not sys.stderr.isatty())


def positive(text: str) -> int:
    """An argument that counts something."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def writable(text: str) -> str:
    """An argument that names a file to write: refused before the work rather than after it."""
    target = Path(text).expanduser()
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if target.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory; expected a file to write")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {folder} is not a folder one can write to")
    return text
