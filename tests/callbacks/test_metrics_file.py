import csv
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch import Trainer

from rlhf_lightning.callbacks.metrics_file import MetricsFile
from tests.cli_fakes import ToyBackbone, ToyData, ToyIterations, ToyTask


def trainer_at(folder, *, epoch=0, step=0, rank=0):
    return SimpleNamespace(
        default_root_dir=str(folder), is_global_zero=rank == 0, fast_dev_run=0,
        current_epoch=epoch, global_step=step, max_steps=-1, max_epochs=10, loggers=[],
    )  # fmt: skip


def write(folder, rows, **at):
    callback, trainer = MetricsFile(), trainer_at(folder, **at)
    callback.on_train_start(trainer, None)
    for row in rows:
        callback.on_row(trainer, None, row)
    callback.teardown(trainer, None, "fit")
    return folder / "metrics.csv"


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_file_header_is_the_union_of_all_rows(tmp_path):
    path = write(tmp_path, [{"iteration": 1, "a": 0.5}, {"iteration": 2, "b": 2.0}, {"iteration": 3, "a": 1.5}])
    assert path.read_text() == "iteration,a,b\n1,0.5,\n2,,2\n3,1.5,\n"


def test_metrics_file_reads_back_the_same_numbers(tmp_path):
    numbers = [1 / 3, 1e-300, -0.0, 2.0**60, math.pi * 1e20, float("nan"), float("inf")]
    path = write(tmp_path, [{"step": n, "x": x} for n, x in enumerate(numbers)])
    back = [float(row["x"]) for row in read(path)]
    assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(back, numbers, strict=True))


def test_metrics_file_is_complete_after_every_row(tmp_path):
    callback, trainer = MetricsFile(), trainer_at(tmp_path)
    callback.on_train_start(trainer, None)
    for n in range(1, 4):
        callback.on_row(trainer, None, {"iteration": n, **({"late": n} if n > 1 else {})})
        assert [row["iteration"] for row in read(tmp_path / "metrics.csv")] == [str(i) for i in range(1, n + 1)]


def test_metrics_file_fresh_run_replaces_the_file(tmp_path):
    write(tmp_path, [{"iteration": 0, "a": 1.0}, {"iteration": 1, "a": 1.0}])
    assert [row["iteration"] for row in read(write(tmp_path, [{"iteration": 0, "a": 2.0}]))] == ["0"]


@pytest.mark.parametrize(("axis", "at"), [("iteration", {"epoch": 2, "step": 99}), ("step", {"epoch": 1, "step": 2})])
def test_metrics_file_resume_drops_rows_after_the_checkpoint(axis, at, tmp_path):
    write(tmp_path, [{axis: n, "a": float(n)} for n in range(5)])
    path = write(tmp_path, [{axis: 3, "a": 30.0}], **at)
    assert [(row[axis], row["a"]) for row in read(path)] == [("0", "0"), ("1", "1"), ("2", "2"), ("3", "30")]


def test_metrics_file_resume_drops_a_line_that_was_cut_off(tmp_path):
    path = write(tmp_path, [{"iteration": n, "a": 12.5} for n in range(3)])
    with open(path, "a") as file:
        file.write("2,12")
    resumed = write(tmp_path, [], epoch=2)
    assert resumed.read_text() == "iteration,a\n0,12.5\n1,12.5\n2,12.5\n"


def test_metrics_file_other_ranks_write_nothing(tmp_path):
    write(tmp_path, [{"iteration": 1, "a": 1.0}], rank=1)
    assert list(tmp_path.iterdir()) == []


def test_metrics_file_works_in_a_plain_trainer(tmp_path):
    task = ToyTask()
    trainer = Trainer(
        max_epochs=2, default_root_dir=tmp_path, callbacks=[MetricsFile()], logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(ToyIterations(task, ToyBackbone()), ToyData(task))
    assert [row["iteration"] for row in read(Path(tmp_path, "metrics.csv"))] == ["0", "1", "2"]
