"""The same command goes on from the newest whole checkpoint."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from rlhf_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from rlhf_lightning.errors import UserError
from rlhf_lightning.records import checkpoint_files
from rlhf_lightning.records.checkpoint_files import earlier_ones, is_intact, kept, newest_intact, settle
from tests.cli_runs import fit, toy

RUN = Path("runs/halved")


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.delenv("TOY_FAIL", raising=False)


def save(name, number):
    Path(name).parent.mkdir(exist_ok=True)
    AtomicCheckpointIO().save_checkpoint({"x": torch.full((50,), float(number))}, name)


def number(name):
    return AtomicCheckpointIO().load_checkpoint(name)["x"][0].item()


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((2,), 1.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_bytes(b""), Path.unlink])
def test_is_intact_finds_every_damage(damage):
    path = Path("last.ckpt")
    save(path, 1)
    assert is_intact(path)
    damage(path)
    assert not is_intact(path)


def test_flipped_bit_that_torch_does_not_notice_is_refused():
    path = Path("last.ckpt")
    save(path, 1)
    flip(path)
    assert torch.load(path, weights_only=True)["x"][0] != 1
    with pytest.raises(UserError, match=r"last\.ckpt is corrupt"):
        number(path)


@pytest.mark.parametrize("keep", [1, 2, 3, 12])
def test_kept_keeps_the_last_ones_in_order(keep):
    last = Path("folder/last.ckpt")
    for step in range(14):
        with kept(last, keep):
            save(last, step)
        expected = list(range(step, -1, -1))[:keep]
        assert [number(path) for path in (last, *earlier_ones(last.parent))] == expected
    assert {path.suffix for path in last.parent.iterdir()} == {".ckpt"}


def test_kept_drops_what_a_larger_number_kept():
    last = Path("folder/last.ckpt")
    for step in range(5):
        with kept(last, 5):
            save(last, step)
    with kept(last, 2):
        save(last, 5)
    assert sorted(path.name for path in last.parent.iterdir()) == ["last-1.ckpt", "last.ckpt"]
    assert number(last.with_name("last-1.ckpt")) == 4


def test_kept_changes_nothing_where_writing_fails():
    last = Path("folder/last.ckpt")
    for step in range(3):
        with kept(last, 2):
            save(last, step)
    with pytest.raises(UserError), kept(last, 2):
        raise UserError("the disk is full")
    assert [number(path) for path in (last, *earlier_ones(last.parent))] == [2, 1]
    assert len(list(last.parent.iterdir())) == 2


@pytest.mark.parametrize("stop", range(12))
def test_kept_and_settled_after_a_kill_are_those_before_or_those_after(stop, monkeypatch):
    last = Path("folder/last.ckpt")
    for step in range(4):
        with kept(last, 3):
            save(last, step)
    calls = []

    def deadly(function):
        def called(*args, **settings):
            if len(calls) == stop:
                raise KeyboardInterrupt  # and so does every later call: nothing is done after a kill
            calls.append(function)
            return function(*args, **settings)

        return called

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        for place, name in ((os, "replace"), (os, "link"), (Path, "unlink")):
            patch.setattr(place, name, deadly(getattr(place, name)))
        with kept(last, 3):
            save(last, 4)
    assert newest_intact(last.parent)[0] == last
    assert len({number(path) for path in (last, *earlier_ones(last.parent))}) >= 2
    settle(last, 3)
    assert [number(path) for path in (last, *earlier_ones(last.parent))] in ([3, 2, 1], [4, 3, 2])


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ({"last": 5, "last-1": 4, "last-2": 3}, [5, 4, 3]),  # nothing had begun
        ({"last": 5, "last-1": 4, "last-2": 3, "aside": 5}, [5, 4, 3]),  # the new one was still being written
        ({"last": 6, "last-1": 4, "last-2": 3, "aside": 5}, [6, 5, 4]),
        ({"last": 6, "last-2": 4, "aside": 5}, [6, 5, 4]),
        ({"last": 6, "last-1": 5, "last-2": 4}, [6, 5, 4]),
        ({"last": 1, "aside": 0}, [1, 0]),
        ({"last": 6, "last-1": 5, "last-2": 4, "last-3": 3}, [6, 5, 4]),
    ],
)
def test_settle_finishes_what_a_crash_cut_short(left, expected):
    last = Path("folder/last.ckpt")
    for name, step in left.items():
        save(last.with_name(f"{name}.ckpt"), step)
    if "aside" in left:
        last.with_name("aside.ckpt").rename(last.with_name(checkpoint_files._ASIDE))
    settle(last, 3)
    assert [number(path) for path in (last, *earlier_ones(last.parent))] == expected
    assert {path.suffix for path in last.parent.iterdir()} == {".ckpt"}


def test_newest_intact_skips_damaged_ones():
    folder = Path("folder")
    for name, step in (("last.ckpt", 5), ("last-1.ckpt", 4), ("last-2.ckpt", 3), ("last-x.ckpt", 0)):
        save(folder / name, step)
    assert newest_intact(folder) == (folder / "last.ckpt", [])
    cut(folder / "last.ckpt")
    assert newest_intact(folder) == (folder / "last-1.ckpt", [folder / "last.ckpt"])
    (folder / "last-1.ckpt").unlink()
    assert newest_intact(folder) == (folder / "last-2.ckpt", [folder / "last.ckpt"])
    cut(folder / "last-2.ckpt")
    assert newest_intact(folder) == (None, [folder / "last.ckpt", folder / "last-2.ckpt"])
    assert newest_intact(Path("nowhere")) == (None, [])


def halved(monkeypatch, *more):
    monkeypatch.setenv("TOY_FAIL", "before:6")
    assert fit(*toy("ToyIterations", "--name", "halved", *more)) == 2
    monkeypatch.delenv("TOY_FAIL")


def same_as_whole():
    assert fit(*toy("ToyIterations", "--name", "whole")) == 0
    for name in ("metrics.csv", "samples.jsonl", "export/weight.txt"):
        assert (RUN / name).read_text() == Path("runs/whole", name).read_text(), name
    names = sorted(path.name for path in Path("runs/whole/checkpoints").iterdir())
    assert sorted(path.name for path in (RUN / "checkpoints").iterdir()) == names
    for name in names:
        first, second = (torch.load(run / "checkpoints" / name) for run in (RUN, Path("runs/whole")))
        assert first == second, name


@pytest.mark.parametrize("more", [(), ("--ckpt_path", "last")])
def test_fit_goes_on_from_the_checkpoint_before_a_damaged_one(more, monkeypatch, capsys, caplog):
    halved(monkeypatch)
    cut(RUN / "checkpoints" / "last.ckpt")
    capsys.readouterr()
    assert fit(*toy("ToyIterations", "--name", "halved", *more)) == 0
    assert "resuming from iteration 4" in capsys.readouterr().out
    assert [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()] == [
        f"{RUN}/checkpoints/last.ckpt is damaged: the run continues from {RUN}/checkpoints/last-1.ckpt"
    ]
    same_as_whole()


def test_damaged_checkpoint_is_never_kept_as_the_one_before(monkeypatch):
    halved(monkeypatch)
    cut(RUN / "checkpoints" / "last.ckpt")
    monkeypatch.setenv("TOY_FAIL", "before:6")
    assert fit(*toy("ToyIterations", "--name", "halved")) == 2
    assert is_intact(RUN / "checkpoints" / "last-1.ckpt")


def test_fit_refuses_to_go_on_where_every_checkpoint_is_damaged(monkeypatch, capsys):
    halved(monkeypatch)
    for name in ("last.ckpt", "last-1.ckpt"):
        cut(RUN / "checkpoints" / name)
    capsys.readouterr()
    assert fit(*toy("ToyIterations", "--name", "halved")) == 2
    assert capsys.readouterr().err == (
        f"error: {RUN} holds an unfinished run with damaged checkpoints (last.ckpt, last-1.ckpt); "
        "pass --overwrite to start over\n"
    )
    assert fit(*toy("ToyIterations", "--name", "halved", "--overwrite")) == 0


def test_ckpt_path_last_starts_where_there_is_none(capsys):
    assert fit(*toy("ToyIterations", "--name", "halved", "--ckpt_path", "last")) == 0
    assert "starts at iteration 0" in capsys.readouterr().out


def test_number_of_checkpoints_is_an_option(monkeypatch, capsys):
    halved(monkeypatch, "--checkpoint_keep", "3")
    kept_ones = sorted(path.name for path in (RUN / "checkpoints").iterdir())
    assert kept_ones == ["best.ckpt", "last-1.ckpt", "last-2.ckpt", "last.ckpt"]
    assert fit(*toy("ToyIterations", "--name", "halved")) == 0  # it changes no number: another value may go on
    same_as_whole()
    assert fit(*toy("ToyIterations", "--name", "none", "--checkpoint_keep", "0")) == 2
    assert "checkpoint_keep is 0; expected at least 1" in capsys.readouterr().err


def test_best_checkpoint_is_made_up_for_after_a_kill_between_the_two(monkeypatch):
    link = checkpoint_files.link

    def killed(source, target):
        if target.name == "best.ckpt" and number_of(source) == 10:  # 1 + 2 + 3 + 4
            raise KeyboardInterrupt
        link(source, target)

    def number_of(path):
        return torch.load(path, weights_only=True)["state_dict"]["weight"].item()

    with monkeypatch.context() as patch:
        patch.setattr("rlhf_lightning.callbacks.checkpoints.link", killed)
        assert fit(*toy("ToyIterations", "--name", "halved")) == 130
    assert fit(*toy("ToyIterations", "--name", "halved")) == 0
    same_as_whole()


def test_fit_starts_over_a_run_that_was_killed_before_its_configuration_was_written():
    RUN.mkdir(parents=True)
    (RUN / "environment.json").write_text("{}")
    (RUN / ".config.yaml.77.tmp").write_text("half of")
    assert fit(*toy("ToyIterations", "--name", "halved")) == 0
    assert not [path for path in RUN.rglob(".*") if path.name.endswith(".tmp")]


def test_what_a_killed_process_was_writing_is_removed(monkeypatch):
    halved(monkeypatch)
    for name in ("checkpoints/.last.ckpt.77.tmp", ".metrics.csv.77.tmp"):
        (RUN / name).write_bytes(b"half of")
    assert fit(*toy("ToyIterations", "--name", "halved")) == 0
    same_as_whole()
    assert not (RUN / ".metrics.csv.77.tmp").exists()
