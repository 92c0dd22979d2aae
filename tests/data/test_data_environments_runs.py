"""Whole runs in environments: taken up where they stopped, reported and closed."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from scripted_environments import data, ppo
from training_helpers import AtHook, fit, quiet_trainer, same, snapshot

from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.data.environments import EnvironmentDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.control.backbone import ControlBackbone
from rlhf_lightning.tasks.control import Control


def every_iteration(folder):
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)


def finished(task, *callbacks, **settings):
    """Train; rows, networks and everything else that a further iteration would depend on."""
    module = ppo(task, ControlBackbone(hidden=(6,), normalize_observations=True), critic=CriticOptions(lr=1e-2))
    collecting = EnvironmentDataModule(task, 3, 36, normalize_rewards=True, eval_episodes=3)
    rows = fit(module, collecting, *callbacks, **settings)
    state = collecting.state_dict()
    return rows.untimed(), snapshot(module), state["reward_scale"], state["episodes"]


@pytest.mark.parametrize(
    ("name", "precision"), [("Seeded-v0", "32-true"), ("Pushed-v0", "64-true"), ("Chosen-v0", "32-true")]
)
def test_resumed_run_is_bit_identical(tmp_path, name, precision):
    task = Control(name)
    whole = finished(task, every_iteration(tmp_path), max_epochs=4, precision=precision)
    checkpoint = tmp_path / "epoch=1.ckpt"
    open_episodes = torch.load(checkpoint, weights_only=True)["EnvironmentDataModule"]["episodes"]["actions"]
    assert sum(len(actions) for actions in open_episodes) > 2  # which span the interruption
    resumed = finished(task, max_epochs=4, ckpt_path=checkpoint, precision=precision)
    assert [row["iteration"] for row in whole[0]] == [0, 1, 2, 3, 4]
    assert resumed[0] == whole[0][3:]
    assert same(resumed[1], whole[1])
    assert same(resumed[2], whole[2])
    for name in ("numbers", "returns"):
        assert resumed[3][name] == whole[3][name]
    assert all(torch.equal(a, b) for a, b in zip(resumed[3]["actions"], whole[3]["actions"], strict=True))
    expected = torch.float64 if precision == "64-true" else torch.float32
    assert whole[1]["policy.trunk.0.weight"].dtype == expected


def test_rows_have_the_documented_names():
    rows = fit(ppo(eval_every=1), data(), max_epochs=2).rows
    evaluated = {"eval/score", "eval/length_mean", "eval/episodes"}
    assert {name for name in rows[0] if not name.startswith("timing/")} == {"iteration"} | evaluated
    names = {"env_steps", "objective/score", "rollout/length_mean", "rollout/episodes", "timing/rollout_seconds"}
    assert names <= set(rows[-1])
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert [row.get("env_steps") for row in rows] == [None, 36, 72]
    assert rows[-1]["rollout/logprob_gap"] < 1e-5


def test_second_run_with_the_same_data_starts_over():
    collecting = data()
    runs = [fit(ppo(), collecting, max_epochs=2).untimed() for _ in range(2)]
    assert runs[0] == runs[1]


def test_environments_are_closed_when_the_run_ends():
    collecting, closed = data(), []

    def watch(trainer, module):
        for environments in (collecting._training, collecting._heldout):
            environments.vector.close_extras = lambda **kwargs: closed.append(True)

    fit(ppo(), collecting, AtHook("on_train_end", watch), max_epochs=1)
    assert closed == [True, True]


def test_checkpoint_of_other_data_is_refused(tmp_path):
    fit(ppo(), data(), every_iteration(tmp_path), max_epochs=1)
    for settings, message in (
        ({"environments": 4}, "environments is 4, and the checkpoint has 3"),
        ({"normalize_rewards": True}, "normalize_rewards is True, unlike in the checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            fit(ppo(), data(**settings), max_epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")


def test_checkpoint_is_evaluated_as_it_was_in_training(tmp_path):
    def module():
        return ppo(backbone=ControlBackbone(hidden=(6,), normalize_observations=True), eval_every=1)

    rows = fit(module(), data(), every_iteration(tmp_path), max_epochs=2).rows
    [row] = quiet_trainer().validate(module(), data(), ckpt_path=tmp_path / "epoch=1.ckpt", verbose=False)
    assert row["eval/score"] == pytest.approx(rows[-1]["eval/score"], rel=1e-6)
