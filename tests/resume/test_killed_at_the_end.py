"""A run that is killed between its last checkpoint and its end, and started again."""

import json

import pytest
from lightning.pytorch.callbacks import EarlyStopping
from training_helpers import AtHook, Letters, fit, ppo, rollouts, same, snapshot, tiny

from rlhf_lightning.callbacks.checkpoints import Checkpoints
from rlhf_lightning.callbacks.metrics_file import MetricsFile
from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.reward_modeling.module import RewardModeling
from rlhf_lightning.training.optimization import Optimization


class KilledError(Exception):
    """Nobody else raises or catches it."""


def die(trainer, module):
    raise KilledError


def last(folder):
    return folder / "checkpoints" / "last.ckpt"


def stopped_early(folder, *callbacks, **settings):
    """PPO that is stopped after three of eight iterations: no score improves by 1000."""
    task = Letters()
    module = ppo(task)
    stop = EarlyStopping(monitor="objective/score", min_delta=1000, patience=2, check_on_train_epoch_end=True)
    own = (stop, MetricsFile(), *callbacks, Checkpoints())
    fit(module, rollouts(task), *own, max_epochs=8, default_root_dir=folder, **settings)
    return snapshot(module)


def test_run_that_was_stopped_early_does_not_train_on(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = stopped_early(whole)
    with pytest.raises(KilledError):
        stopped_early(killed, AtHook("on_train_end", die))
    assert same(stopped_early(killed, ckpt_path=last(killed)), expected)
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (whole, killed)]
    assert len(rows[0]) == len(rows[1]) == 1 + 4


def test_another_run_may_train_on_from_where_one_was_stopped(tmp_path):
    before = stopped_early(tmp_path / "whole")
    task = Letters()
    module = ppo(task)
    settings = {"max_epochs": 8, "default_root_dir": tmp_path / "other", "ckpt_path": last(tmp_path / "whole")}
    fit(module, rollouts(task), Checkpoints(), **settings)
    assert module.trainer.current_epoch == 8
    assert not same(snapshot(module), before)


def reward_model(folder, *callbacks, **settings):
    task = Letters(pairs=16)
    module = RewardModeling(task, tiny(), optimization=Optimization(1e-2))
    data = PreferenceDataModule(task, batch_size=4)
    fit(module, data, *callbacks, Checkpoints(), max_steps=3, max_epochs=-1, default_root_dir=folder, **settings)
    return json.loads((folder / "evaluation.json").read_text())


def test_evaluation_of_a_reward_model_is_written_all_the_same(tmp_path):
    expected = reward_model(tmp_path / "whole")
    assert expected["pairs"] > 0
    killed = tmp_path / "killed"
    with pytest.raises(KilledError):
        reward_model(killed, AtHook("on_train_end", die))
    assert not (killed / "evaluation.json").exists()
    assert reward_model(killed, ckpt_path=last(killed)) == expected
