"""Files that would act if they were unpickled or imported: each would leave a file named ``sprung``."""

from __future__ import annotations

import pickle
import tarfile
from io import BytesIO
from pathlib import Path

import torch


class Trap:
    """Writes a file when it is unpickled.

    Args:
        marker: that file.
    """

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return exec, (code(self.marker),)


def code(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()\n"


def write_pickle(path: Path, marker: Path, kind: str = "pickle") -> Path:
    """A trap as a plain pickle, as ``torch.save`` packs it, or as it did until 1.5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Trap(marker)}))
    else:
        content = {"state_dict": {}, "epoch": 0, "trap": Trap(marker)}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    return path


def write_tar(path: Path, marker: Path) -> Path:
    """A shard in the layout of webdataset, with a trap under every suffix that stands for a pickle."""
    with tarfile.open(path, "w") as tar:
        for suffix in ("txt", "pyd", "pickle", "pkl", "pth", "pt"):
            content = b"hello" if suffix == "txt" else pickle.dumps(Trap(marker))
            entry = tarfile.TarInfo(f"0.{suffix}")
            entry.size = len(content)
            tar.addfile(entry, BytesIO(content))
    return path


def write_module(path: Path, marker: Path, *classes: str) -> Path:
    """A module that writes the file when it is imported, and has classes of these names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bodies = "".join(f"class {name}:\n    pass\n" for name in classes)
    path.write_text(code(marker) + bodies)
    return path
