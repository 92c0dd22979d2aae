"""A disk that is full ends a run in one line; what was complete stays."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from rlhf_lightning.callbacks.detectors.warnings_file import WarningsFile
from rlhf_lightning.callbacks.export import Export
from rlhf_lightning.callbacks.metrics_file import MetricsFile
from rlhf_lightning.callbacks.samples_file import SamplesFile
from rlhf_lightning.errors import UserError
from tests.cli_runs import fit, toy

FULL = Path("/dev/full")
SAVE = torch.save
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="a device of Linux")

SAMPLE = {"iteration": 2, "row": 0, "prompt": "a", "response": "b", "score": 1.0}


def trainer_at(folder):
    return SimpleNamespace(
        default_root_dir=str(folder), is_global_zero=True, fast_dev_run=0, current_epoch=0, global_step=0,
        max_steps=-1, max_epochs=10, loggers=[],
    )  # fmt: skip


def refused(path, call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert str(caught.value) == f"{path} cannot be written: No space left on device"


def test_metrics_that_do_not_fit_are_one_line_and_the_file_can_be_closed(tmp_path, monkeypatch):
    metrics, trainer = MetricsFile(), trainer_at(tmp_path)
    metrics.on_train_start(trainer, None)
    metrics.on_row(trainer, None, {"iteration": 1, "a": 0.5})
    full = "rlhf_lightning.callbacks.metrics_file.open"
    monkeypatch.setattr(full, lambda *_, **__: open(FULL, "a"), raising=False)  # noqa: SIM115
    refused(tmp_path / "metrics.csv", metrics.on_row, trainer, None, {"iteration": 2, "a": 0.5})
    metrics.on_exception(trainer, None, UserError())
    assert (tmp_path / "metrics.csv").read_text() == "iteration,a\n1,0.5\n"


def test_metrics_with_a_new_column_that_do_not_fit_leave_the_old_table(tmp_path, monkeypatch):
    metrics, trainer = MetricsFile(), trainer_at(tmp_path)
    metrics.on_train_start(trainer, None)
    metrics.on_row(trainer, None, {"iteration": 1, "a": 0.5})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    refused(tmp_path / "metrics.csv", metrics.on_row, trainer, None, {"iteration": 2, "b": 0.5})
    assert (tmp_path / "metrics.csv").read_text() == "iteration,a\n1,0.5\n"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_samples_that_do_not_fit_are_one_line(tmp_path):
    samples, trainer = SamplesFile(), trainer_at(tmp_path)
    samples.on_train_start(trainer, None)
    (tmp_path / "samples.jsonl").symlink_to(FULL)
    refused(tmp_path / "samples.jsonl", samples.on_samples, trainer, None, [SAMPLE])


def test_warnings_that_do_not_fit_are_one_line(tmp_path):
    warnings, trainer = WarningsFile(), trainer_at(tmp_path)
    warnings.on_train_start(trainer, None)
    (tmp_path / "warnings.jsonl").symlink_to(FULL)
    refused(tmp_path / "warnings.jsonl", warnings.add, {"iteration": 1})


def write_to_a_full_disk(folder):
    FULL.write_text("weights")


def write_in_rust(folder):
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("export", [write_to_a_full_disk, write_in_rust])
def test_export_that_does_not_fit_is_one_line_and_leaves_the_old_one(export, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "old").touch()
    with pytest.raises(UserError, match=r"/export cannot be written: .*No space left on device"):
        Export().on_train_end(trainer_at(tmp_path), SimpleNamespace(export=export))
    assert (tmp_path / "export" / "old").exists()


@pytest.mark.parametrize("name", ["metrics.csv", "samples.jsonl", "last.ckpt"])
def test_fit_ends_in_one_line_and_goes_on_when_there_is_room(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOY_FAIL", raising=False)
    monkeypatch.setattr("os.fsync", lambda _: None)

    with monkeypatch.context() as patch:
        if name == "last.ckpt":
            saved = []

            def save(state, file):
                if len(saved) == 3:
                    raise OSError(errno.ENOSPC, "No space left on device")
                saved.append(SAVE(state, file))

            patch.setattr("torch.save", save)
        else:
            module = {"metrics.csv": "callbacks.metrics_file", "samples.jsonl": "records.json_lines"}[name]
            patch.setattr(f"rlhf_lightning.{module}.open", lambda *_, **__: open(FULL, "a"), raising=False)  # noqa: SIM115
        assert fit(*toy("ToyIterations", "--name", "halved")) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"{name} cannot be written: No space left on device\n")
    assert error.count("\n") == 1
    assert fit(*toy("ToyIterations", "--name", "halved")) == 0
    assert fit(*toy("ToyIterations", "--name", "whole")) == 0
    for file in ("metrics.csv", "samples.jsonl", "export/weight.txt"):
        assert Path("runs/halved", file).read_text() == Path("runs/whole", file).read_text(), file
