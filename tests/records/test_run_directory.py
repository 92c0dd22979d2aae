"""An earlier run is set aside whole or comes back whole, wherever its directory lies."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.run_directory import RunDirectory
from rlhf_lightning.records.run_plan import plan_run

OLD = {
    "DONE": "then\n",
    "checkpoints/last.ckpt": "weights",
    "config.yaml": "a: 1\n",
    "environment.json": "{}",
    "export/model": "weights",
    "metrics.csv": "iteration\n1\n",
}


@pytest.fixture
def old(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)
    return run_in(Path("run"))


def run_in(directory):
    for name, text in OLD.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return directory


def contents(directory):
    found = {str(p.relative_to(directory)): p for p in directory.rglob("*") if p.is_file() and p.name != ".lock"}
    return {name: path.read_text() for name, path in found.items()}


def replacing(directory):
    return RunDirectory(plan_run(directory, {"a": 2}, overwrite=True), {"a": 2})


def moving(succeed, error):
    """From now on only so many files can be moved; returns how to lift that."""
    rename, done = Path.rename, []

    def failing(self, target):
        done.append(self)
        if len(done) == succeed + 1:
            raise error
        return rename(self, target)

    patch = pytest.MonkeyPatch()
    patch.setattr(Path, "rename", failing)
    return patch.undo


def test_a_run_comes_back_whole_where_the_new_one_never_starts(old):
    new = replacing(old)
    new.set_aside()
    assert not (old / "config.yaml").exists()
    (old / "half-written").write_text("x")
    new.abandon()
    assert contents(old) == OLD


def test_a_run_that_is_replaced_leaves_nothing(old):
    new = replacing(old)
    new.set_aside()
    new.start()
    new.finish()
    assert set(contents(old)) == {"DONE", "config.yaml", "environment.json"}
    assert (old / "config.yaml").read_text() == "a: 2\n"


@pytest.mark.parametrize("succeed", range(len(OLD) + 1))
@pytest.mark.parametrize(
    ("error", "caught"),
    [(OSError(errno.EBUSY, "busy", "run/export"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_run_whose_move_fails_half_way_is_moved_back(succeed, error, caught, old):
    new = replacing(old)
    undo = moving(succeed, error)
    with pytest.raises(caught):
        new.set_aside()
    undo()
    new.abandon()
    assert contents(old) == OLD


@pytest.mark.parametrize("succeed", range(len(OLD) + 1))
def test_a_run_whose_mover_was_killed_is_replaced_or_comes_back_whole(succeed, old):
    undo = moving(succeed, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        replacing(old).set_aside()
    undo()  # killed here: nobody cleans up
    new = replacing(old)
    new.set_aside()
    new.abandon()
    assert contents(old) == OLD


@pytest.mark.parametrize("succeed", range(len(OLD) + 1))
def test_a_run_whose_way_back_was_cut_short_is_not_lost(succeed, old):
    new = replacing(old)
    new.set_aside()
    undo = moving(succeed, OSError(errno.EIO, "input/output error", "run/export"))
    with pytest.raises(UserError, match="cannot be moved back"):
        new.abandon()
    undo()
    again = replacing(old)
    again.set_aside()
    again.abandon()
    assert contents(old) == OLD


def test_a_linked_run_is_replaced_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        run_in(elsewhere)
        (elsewhere / "best").symlink_to(elsewhere / "export")
        Path("run").symlink_to(elsewhere)
        failed = replacing(Path("run"))
        failed.set_aside()
        failed.abandon()
        assert {name: text for name, text in contents(elsewhere).items() if name in OLD} == OLD
        new = replacing(Path("run"))
        new.set_aside()
        new.start()
        new.finish()
        assert set(contents(elsewhere)) == {"DONE", "config.yaml", "environment.json"}
        assert Path("run").is_symlink()
    finally:
        shutil.rmtree(elsewhere)
