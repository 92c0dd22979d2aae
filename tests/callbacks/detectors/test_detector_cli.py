"""Detectors on the command line: every policy run has them, and a configuration may replace one."""

from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from rlhf_lightning.__main__ import main
from rlhf_lightning.callbacks.detectors import (
    Detector,
    Forgetting,
    Instability,
    ModeCollapse,
    RewardHacking,
    Standstill,
)

BANDIT = ["--config", "configs/tasks/bandit.yaml", "--config", "configs/algorithms/reinforce.yaml"]


@pytest.fixture
def detectors(monkeypatch):
    """The detectors of the run that `main` starts, in the place of training."""
    found = []

    def fit(trainer, *args, **kwargs):
        found.extend(callback for callback in trainer.callbacks if isinstance(callback, Detector))
        raise SystemExit(0)

    monkeypatch.setattr(Trainer, "fit", fit)
    return found


def run(folder, *words):
    return main(["fit", *BANDIT, "--runs_dir", str(folder), "--trainer.accelerator", "cpu", *words])


def test_policy_runs_have_every_detector(tmp_path, detectors):
    assert run(tmp_path) == 0
    assert [type(one) for one in detectors] == [RewardHacking, ModeCollapse, Forgetting, Instability, Standstill]
    assert not any(one.stop for one in detectors)


def test_configuration_replaces_a_detector_by_its_short_name(tmp_path, detectors):
    words = [
        "--trainer.callbacks+=RewardHacking",
        "--trainer.callbacks.monitor=second",
        "--trainer.callbacks.stop=true",
    ]
    assert run(tmp_path, *words) == 0
    assert [type(one) for one in detectors] == [RewardHacking, ModeCollapse, Forgetting, Instability, Standstill]
    assert (detectors[0].stop, detectors[0].best_by) == (True, "eval/second")


def test_wrong_threshold_is_one_line(tmp_path, detectors, capsys):
    words = ["--trainer.callbacks+=Forgetting", "--trainer.callbacks.factor=0.5"]
    assert run(tmp_path, *words) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("Forgetting.factor is 0.5; expected above 1")
    assert not list(Path(tmp_path).iterdir())
