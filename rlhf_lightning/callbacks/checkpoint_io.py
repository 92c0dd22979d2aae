"""Checkpoint files: written whole or not at all, read without unpickling."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.checkpoint_files import is_intact
from rlhf_lightning.records.files import replace_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs to disk and renames; loads tensors and plain containers only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Replace ``path`` by the new checkpoint; a crash leaves the old one.

        Raises:
            UserError: it cannot be written, for instance because the disk is full.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, lambda file: torch.save(checkpoint, file))
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(f"checkpoint {target} cannot be written: {reason}") from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, always with ``weights_only=True``.

        Raises:
            UserError: it is missing, corrupt, or holds objects that would have to be unpickled.
        """
        if zipfile.is_zipfile(path) and not is_intact(Path(path)):
            raise UserError(f"checkpoint {path} is corrupt (a checksum does not match)")
        try:
            return super().load_checkpoint(path, map_location, weights_only=True)
        except FileNotFoundError:
            raise UserError(f"checkpoint {path} does not exist") from None
        except pickle.UnpicklingError as error:
            raise UserError(
                f"checkpoint {path} cannot be read: it is corrupt, or holds objects other than tensors and plain "
                "containers, which are never unpickled"
            ) from error
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a damaged file can raise anything while it is taken apart
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"checkpoint {path} is corrupt ({reason})") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
