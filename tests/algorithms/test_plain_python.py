"""Training with Lightning's own defaults: its loggers, checkpoints, sanity check and validation loop."""

import csv
import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from training_helpers import Letters, Rows, fit, ppo, rollouts, tiny

from rlhf_lightning import (
    SFT,
    DemonstrationDataModule,
    PreferenceDataModule,
    RewardModeling,
    RolloutDataModule,
    UserError,
)
from rlhf_lightning.algorithms.parts.surrogates import SequenceRatio


def build(name):
    # more held-out examples than the two batches of Lightning's sanity check
    task = Letters(heldout=20)
    if name == "ppo":
        return ppo(task, minibatch_size=4, eval_every=1), rollouts(task, eval_prompts=3)
    if name == "sft":
        return SFT(task, tiny(), log_every=3), DemonstrationDataModule(task, 4)
    return RewardModeling(task, tiny(), log_every=3), PreferenceDataModule(task, batch_size=4)


@pytest.mark.parametrize(("name", "axis"), [("ppo", "iteration"), ("sft", "step"), ("reward_modeling", "step")])
def test_lightning_defaults_work(tmp_path, monkeypatch, name, axis):
    monkeypatch.chdir(tmp_path)
    module, data = build(name)
    rows = Rows()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        Trainer(max_epochs=2, accelerator="cpu", callbacks=[rows]).fit(module, data)
    assert not [w for w in warned if "sync_dist" in str(w.message) or "lr_scheduler" in str(w.message)]

    evaluated = [row[axis] for row in rows.rows if any(name.startswith("eval/") for name in row)]
    # no row from the sanity check, none twice; for passes over data, one after each pass of four steps
    assert evaluated == ([0, 1, 2] if name == "ppo" else [4, 8])
    steps = 4 if name == "ppo" else 8
    [checkpoint] = tmp_path.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    assert checkpoint.name == f"epoch=1-step={steps}.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == steps

    again, data = build(name)
    [row] = Trainer(accelerator="cpu", logger=False).validate(again, data, ckpt_path=checkpoint)
    last = next(row for row in reversed(rows.rows) if any(name.startswith("eval/") for name in row))
    assert row[axis] == last[axis]
    evaluation = {name: value for name, value in last.items() if name.startswith("eval/")}
    assert {name: row[name] for name in evaluation} == pytest.approx(evaluation, rel=1e-5, abs=1e-6)


def test_loggers_get_each_row_once(tmp_path):
    module, data = build("ppo")
    rows = fit(module, data, max_epochs=2, logger=CSVLogger(tmp_path, "run"))
    with open(tmp_path / "run" / "version_0" / "metrics.csv") as file:
        logged = list(csv.DictReader(file))
    assert [int(float(row["iteration"])) for row in logged] == [0, 1, 2]
    for row, wanted in zip(logged, rows.rows, strict=True):
        assert {name: float(value) for name, value in row.items() if value and name != "step"} == pytest.approx(wanted)


def test_lightning_callbacks_can_monitor_a_metric(tmp_path):
    module, data = build("ppo")
    best = ModelCheckpoint(tmp_path, monitor="eval/score", mode="max", save_top_k=1)
    stop = EarlyStopping("objective/kl_ref_sequence", stopping_threshold=1e9, mode="min", check_on_train_epoch_end=True)
    rows = fit(module, data, best, stop, max_epochs=3).rows
    assert [row["iteration"] for row in rows] == [0, 1]  # any KL is below the threshold: stopped after one iteration
    assert best.best_model_score.item() == pytest.approx(rows[1]["eval/score"])


def test_monitored_metric_of_supervised_training_is_the_last_one(tmp_path):
    module, data = build("sft")
    seen = ModelCheckpoint(tmp_path, "{step}", monitor="eval/loss", save_top_k=-1)
    rows = fit(module, data, seen, max_epochs=2).rows
    losses = [row["eval/loss"] for row in rows if "eval/loss" in row]
    assert [value.item() for value in seen.best_k_models.values()] == pytest.approx(losses)


def test_fast_dev_run_works(tmp_path):
    for name in ("ppo", "sft", "reward_modeling"):
        module, data = build(name)
        assert fit(module, data, fast_dev_run=True, default_root_dir=tmp_path).rows
    assert not list(tmp_path.iterdir())


def test_data_of_another_kind_is_refused_before_training():
    module, _ = build("ppo")
    with pytest.raises(UserError, match=r"PPO needs data that collects rollouts .*, got DemonstrationDataModule"):
        fit(module, DemonstrationDataModule(Letters()), max_epochs=1)


def test_budget_in_steps_is_refused_for_policy_optimizers():
    module, data = build("ppo")
    with pytest.raises(UserError, match=r"trainer\.max_epochs"):
        fit(module, data, max_steps=10)


@pytest.mark.parametrize(
    "bad",
    [
        {"ratio": SequenceRatio()},  # with λ = 0.95
        {"inner_epochs": 0},
        {"minibatch_size": 0},
        {"gamma": 1.1},
        {"lam": -0.1},
        {"entropy_coef": -1.0},
        {"stop_kl": 0.0},
        {"eval_every": 0},
    ],
)
def test_bad_arguments_are_named_in_one_line(bad):
    with pytest.raises(UserError) as error:
        ppo(Letters(), **bad)
    assert f"model.init_args.{next(iter(bad))}" in str(error.value)
    assert "\n" not in str(error.value)


def test_rollouts_without_a_reward_are_refused():
    with pytest.raises(UserError, match=r"data\.init_args\.reward is missing"):
        RolloutDataModule(Letters(gold=False))
