import pickle

import pytest
import torch

from rlhf_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from rlhf_lightning.errors import UserError


class Opaque:
    """Anything that is no tensor and no plain container."""


def test_checkpoint_io_gives_back_what_it_saved(tmp_path):
    path = tmp_path / "new" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.arange(3), "loops": {"n": [1, 2.5, None]}}, path)
    back = AtomicCheckpointIO().load_checkpoint(path)
    assert torch.equal(back["x"], torch.arange(3))
    assert back["loops"] == {"n": [1, 2.5, None]}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("writer failed\nat 3")])
def test_checkpoint_io_failed_write_keeps_the_old_checkpoint(error, tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"n": 1}, path)

    def half_way(checkpoint, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", half_way)
    with pytest.raises(UserError, match=r"last\.ckpt cannot be written: (No space left|writer failed$)"):
        AtomicCheckpointIO().save_checkpoint({"n": 2}, path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_checkpoint_io_killed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"n": 1}, path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"n": 2}, path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"n": 1}


def damaged(kind, path):
    AtomicCheckpointIO().save_checkpoint({"x": torch.randn(100)}, path)
    whole = path.read_bytes()
    if kind == "objects":
        torch.save({"x": Opaque()}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Opaque()))
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"trainer: 3\n"}[kind])


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "objects", "pickle"])
def test_checkpoint_io_unreadable_file_is_one_line(kind, tmp_path):
    path = tmp_path / "last.ckpt"
    damaged(kind, path)
    with pytest.raises(UserError, match=r"last\.ckpt (is corrupt|cannot be read)") as caught:
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert "\n" not in str(caught.value)


def test_checkpoint_io_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")
