"""Cross-validation: what it runs, what it reads from the folds, and what it makes of it. Fits are played."""

import itertools
import json
import statistics
from pathlib import Path
from unittest import mock

import pytest

from rlhf_lightning.__main__ import main
from rlhf_lightning.pipeline import folds
from rlhf_lightning.pipeline import processes as running
from rlhf_lightning.records.inputs import Input, digest, write_inputs
from rlhf_lightning.records.runs import load_run

FOLDS = {0: (0.66, 0.61, 0.71), 1: (0.64, 0.63, 0.72), 2: (0.68, 0.60, 0.70)}
"""Held-out accuracy and loss, accuracy in training."""


@pytest.fixture(autouse=True)
def _with_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)
    Path("task.yaml").write_text("task: {class_path: Assistant}\n")
    Path("reward.yaml").write_text("model: {class_path: RewardModeling}\n")
    Path("pairs.jsonl").write_text("{}\n")


@pytest.fixture
def fits(monkeypatch):
    """Plays ``fit``; ``fits.failing`` maps a fold to its exit status, ``fits.cut`` are those that are interrupted."""

    class Played:
        def __init__(self):
            self.commands, self.failing, self.cut = [], {}, set()

        def folds(self):
            ran = [int(dict(itertools.pairwise(command))["--data.init_args.fold"]) for command in self.commands]
            self.commands.clear()
            return ran

        def __call__(self, command, *_, **__):
            ended = mock.Mock(returncode=self.played(list(command)))
            ended.poll.return_value = ended.returncode
            return ended

        def played(self, command):
            self.commands.append(command)
            options = dict(itertools.pairwise(command))
            folder, fold = Path(options["--runs_dir"]) / options["--name"], int(options["--data.init_args.fold"])
            if fold in self.failing:
                return self.failing[fold]
            if (folder / "DONE").exists():
                assert "--overwrite" in command, "fit refuses a finished directory"
            (folder / "config.yaml").write_text("model: 1")
            write_inputs(folder, [Input("data", "pairs.jsonl", digest(Path("pairs.jsonl")))])
            if fold in self.cut:
                return 143
            accuracy, loss, train = FOLDS[fold]
            evaluation = {"accuracy": accuracy, "loss": loss, "train": {"accuracy": train}}
            (folder / "evaluation.json").write_text(json.dumps(evaluation))
            (folder / "DONE").write_text("")
            return 0

    played = Played()
    monkeypatch.setattr(running, "_spawn", played)
    return played


def run(*words):
    return main(
        ["crossval", "--folds", "3", "--config", "task.yaml", "--config", "reward.yaml", "--name", "cv", *words]
    )


START = "fit --config task.yaml --config reward.yaml --runs_dir runs/cv --name fold_{0} "
HELD_OUT = "--data.init_args.folds 3 --data.init_args.fold {0}"


def test_crossval_prints_a_fit_for_each_fold_and_runs_nothing(fits, capsys):
    assert run("--print-commands", "--trainer.max_steps", "200", "--data.init_args.pairs=pairs.jsonl") == 0
    given = "--trainer.max_steps 200 --data.init_args.pairs pairs.jsonl "
    expected = ["python -m rlhf_lightning " + (START + given + HELD_OUT).format(fold) for fold in range(3)]
    assert capsys.readouterr().out.splitlines() == expected
    assert fits.commands == []
    assert not Path("runs").exists()


def test_crossval_runs_all_folds_and_writes_what_came_out(fits, capsys):
    assert run() == 0
    assert [" ".join(command) for command in fits.commands] == [(START + HELD_OUT).format(fold) for fold in range(3)]
    written = json.loads(Path("runs/cv/crossval.json").read_text())
    assert [one["fold"] for one in written["folds"]] == [0, 1, 2]
    assert written["folds"][1] == pytest.approx(
        {"fold": 1, "accuracy": 0.64, "loss": 0.63, "train_accuracy": 0.72, "gap": 0.08}
    )
    shown = capsys.readouterr().out
    assert (
        "fold_1: accuracy 64.0 %, loss 0.630, train accuracy 72.0 %, over-fitting gap 8.0 points (2 of 3 folds)"
        in shown
    )
    assert "made runs/cv/crossval.json" in shown


def test_crossval_means_have_student_intervals(fits):
    run()
    summary = json.loads(Path("runs/cv/crossval.json").read_text())["summary"]
    accuracies = [accuracy for accuracy, _, _ in FOLDS.values()]
    # t of 0.975 with 2 degrees of freedom is 4.302653: 0.66 ∓ 4.302653 · 0.02 / √3
    assert summary["accuracy"] == pytest.approx({"mean": 0.66, "low": 0.610317, "high": 0.709683}, abs=1e-6)
    assert statistics.stdev(accuracies) == pytest.approx(0.02)
    assert summary["gap"]["mean"] == pytest.approx((0.05 + 0.08 + 0.02) / 3)


def test_crossval_table_has_a_line_for_each_fold_the_mean_and_its_interval(fits, capsys):
    run()
    lines = [line.split() for line in capsys.readouterr().out.split("\n\n")[-2].splitlines()]
    assert lines[0] == ["fold", "accuracy", "loss", "train", "accuracy", "over-fitting", "gap"]
    assert lines[2] == ["0", "66.0", "%", "0.610", "71.0", "%", "5.0", "points"]
    assert lines[6] == ["mean", "66.0", "%", "0.613", "71.0", "%", "5.0", "points"]
    assert lines[7][:6] == ["95", "%", "61.0", "to", "71.0", "%"]


def test_crossval_reads_what_a_run_without_evaluation_logged(tmp_path):
    (tmp_path / "dpo").mkdir()
    (tmp_path / "dpo" / "metrics.csv").write_text(
        "step,dpo/loss,eval/accuracy,eval/loss\n0,,0.5,0.69\n9,0.6,0.61,0.65\n"
    )
    row = folds.fold_row(load_run(tmp_path / "dpo"))
    assert row == {"accuracy": 0.61, "loss": 0.65, "train_accuracy": None, "gap": None}
    summary = folds.summarized([row, row | {"accuracy": 0.63}])
    assert list(summary) == ["accuracy", "loss"]
    assert summary["loss"] == {"mean": 0.65, "low": 0.65, "high": 0.65}
    assert "train" not in folds.table([row, row], summary)


def test_crossval_again_skips_finished_folds_and_continues_an_interrupted_one(fits, capsys):
    fits.cut.add(1)
    assert run() == 143
    assert fits.folds() == [0, 1]
    assert not Path("runs/cv/crossval.json").exists()
    fits.cut.clear()
    capsys.readouterr()
    assert run() == 0
    assert all("--overwrite" not in command for command in fits.commands)
    assert fits.folds() == [1, 2]
    shown = capsys.readouterr().out
    assert "fold_0: unchanged, skipped" in shown
    assert "fold_1: continues" in shown


@pytest.mark.parametrize("change", [("--trainer.max_steps", "7"), ("--data.init_args.pairs", "pairs.jsonl")])
def test_crossval_trains_again_what_an_option_or_a_file_changes(fits, change):
    assert run("--data.init_args.pairs", "pairs.jsonl") == 0
    fits.folds()
    Path("pairs.jsonl").write_text("{}\n" * (2 if change[1] == "pairs.jsonl" else 1))
    words = [] if change[1] == "pairs.jsonl" else list(change)
    assert run("--data.init_args.pairs=pairs.jsonl", *words) == 0
    assert all("--overwrite" in command for command in fits.commands)
    assert fits.folds() == [0, 1, 2]


def test_crossval_overwrite_trains_all_folds_again(fits):
    run()
    fits.folds()
    assert run("--overwrite") == 0
    assert fits.folds() == [0, 1, 2]


def test_crossval_stops_at_a_fold_that_fails_with_its_status(fits, capsys):
    fits.failing[1] = 2
    assert run() == 2
    assert fits.folds() == [0, 1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--folds 1", "argument --folds: expected a whole number of at least 2, got '1'"),
        ("--folds five", "argument --folds: expected a whole number of at least 2, got 'five'"),
        ("--data.init_args.folds 4", "--data.init_args.folds is what crossval sets; give --folds K instead"),
        ("--data.init_args.fold=0", "--data.init_args.fold is what crossval sets; give --folds K instead"),
        ("--config none.yaml", "--config none.yaml: no such file"),
        ("--name ../up", "--name '../up': expected a name"),
    ],
)
def test_crossval_mistake_is_one_line(words, line, fits, capsys):
    assert run(*words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {line}")
    assert error.count("\n") == 1
    assert fits.commands == []


def test_crossval_refuses_the_directory_of_a_run(fits, capsys):
    Path("runs/cv").mkdir(parents=True)
    Path("runs/cv/config.yaml").write_text("model: 1")
    assert run() == 2
    assert "runs/cv holds a run; choose another --name for the folder of all folds" in capsys.readouterr().err
    assert fits.commands == []
