"""Configurations and runs of earlier versions, whose classes stood in other modules."""

from pathlib import Path

import pytest
import torch
import yaml

from rlhf_lightning.cli.class_paths import with_todays_classes
from rlhf_lightning.cli.introspection import import_components
from tests.cli_runs import fit

import_components()

OLD = {
    "seed_everything": 3,
    "task": {"class_path": "rlhf_lightning.Bandit"},
    "backbone": {"class_path": "rlhf_lightning.models.tabular.TabularBackbone"},
    "model": {
        "class_path": "rlhf_lightning.algorithms.a2c.A2C",
        "init_args": {
            "kl": {"class_path": "rlhf_lightning.kl_control.KLControl", "init_args": {"coef": 0.1}},
            "eval_every": 5,
        },
    },
    "data": {
        "class_path": "rlhf_lightning.data.rollouts.RolloutDataModule",
        "init_args": {"rollout_batch_size": 8, "eval_prompts": 2},
    },
    "trainer": {"accelerator": "cpu", "max_epochs": 3, "enable_progress_bar": False},
}


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)  # a slow disk would take most of the time


@pytest.mark.parametrize(
    ("old", "today"),
    [
        ("rlhf_lightning.kl_control.KLControl", "rlhf_lightning.KLControl"),
        ("rlhf_lightning.surrogates.Clip", "rlhf_lightning.Clip"),
        ("rlhf_lightning.models.backbone.LanguageBackbone", "rlhf_lightning.LanguageBackbone"),
        ("rlhf_lightning.models.architectures.JointEncoder", "rlhf_lightning.JointEncoder"),
        ("rlhf_lightning.reward_losses.BradleyTerry", "rlhf_lightning.BradleyTerry"),
        ("rlhf_lightning.baselines.MovingAverage", "rlhf_lightning.MovingAverage"),
        ("rlhf_lightning.rewards.scaling.Clip", "rlhf_lightning.rewards.scaling.ClipScores"),
        ("rlhf_lightning.losses.SigmoidLoss", "rlhf_lightning.algorithms.dpo.SigmoidLoss"),
        ("rlhf_lightning.algorithms.ppo.PPO", "rlhf_lightning.PPO"),
        ("rlhf_lightning.PPO", "rlhf_lightning.PPO"),
        ("rlhf_lightning.kl_control.Nothing", "rlhf_lightning.kl_control.Nothing"),
        ("mine.KLControl", "mine.KLControl"),
    ],
)
def test_with_todays_classes(old, today):
    content = {"a": [{"class_path": old, "init_args": {"b": {"class_path": old}}}], "c": 1}
    mapped = {"a": [{"class_path": today, "init_args": {"b": {"class_path": today}}}], "c": 1}
    assert with_todays_classes(content) == mapped


def test_class_that_is_gone_is_one_line_that_says_what_to_do(capsys):
    model = {"init_args": {"kl": {"class_path": "rlhf_lightning.kl_control.Nothing"}}}
    Path("old.yaml").write_text(yaml.safe_dump(OLD))
    Path("gone.yaml").write_text(yaml.safe_dump({"model": model}))
    assert fit("fit", "--config", "old.yaml", "--config", "gone.yaml") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: model.init_args.kl: rlhf_lightning.kl_control.Nothing cannot be imported")
    assert "name the class of this version that replaces it, or use the version that wrote the configuration" in error
    assert error.count("\n") == 1


def as_written_before(folder):
    """Turn an unfinished run into one of the version before: other class paths, fewer arguments, a critic by itself."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["class_path"] = OLD["model"]["class_path"]
    config["model"]["init_args"]["kl"]["class_path"] = "rlhf_lightning.kl_control.KLControl"
    del config["model"]["init_args"]["kl"]["init_args"]["estimator"], config["trainer"]["benchmark"]
    path.write_text(yaml.safe_dump(config))
    path = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    today, old = ("critic.network.", "reference.policy."), ("critic.", "reference.")
    for prefix, before in zip(today, old, strict=True):
        names = [name for name in checkpoint["state_dict"] if name.startswith(prefix)]
        for name in names:
            checkpoint["state_dict"][before + name.removeprefix(prefix)] = checkpoint["state_dict"].pop(name)
    assert any(name.startswith("critic.") for name in checkpoint["state_dict"])
    del checkpoint["layout"]
    torch.save(checkpoint, path)


def test_unfinished_run_of_the_version_before_is_continued(monkeypatch, capsys):
    from rlhf_lightning import A2C

    Path("old.yaml").write_text(yaml.safe_dump(OLD))
    assert fit("fit", "--config", "old.yaml", "--name", "whole") == 0

    def stop(self, *_):
        if self.current_epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(A2C, "on_train_epoch_start", stop)
        assert fit("fit", "--config", "old.yaml", "--name", "halved") == 130
    as_written_before(Path("runs/halved"))
    assert fit("fit", "--config", "old.yaml", "--name", "halved", "--model.kl.coef", "0.2") == 2
    assert "model.init_args.kl.init_args.coef is 0.1 there and 0.2 now" in capsys.readouterr().err
    assert fit("fit", "--config", "old.yaml", "--name", "halved", "--model.kl.estimator", "k2") == 2
    assert "model.init_args.kl.init_args.estimator is 'k1' there and 'k2' now" in capsys.readouterr().err
    assert fit("fit", "--config", "old.yaml", "--name", "halved") == 0
    assert "resuming from iteration 2" in capsys.readouterr().out
    whole, halved = (
        torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "halved")
    )
    assert whole.keys() == halved.keys()
    assert all(torch.equal(whole[name], halved[name]) for name in whole)


def test_unfinished_run_with_a_setting_that_is_gone_is_one_line(capsys):
    Path("old.yaml").write_text(yaml.safe_dump(OLD))
    assert fit("fit", "--config", "old.yaml", "--name", "other") == 0
    Path("runs/other/DONE").unlink()
    text = Path("runs/other/config.yaml").read_text()
    Path("runs/other/config.yaml").write_text(text.replace("eval_every", "evaluate_every"))
    capsys.readouterr()
    assert fit("fit", "--config", "old.yaml", "--name", "other") == 2
    error = capsys.readouterr().err
    assert (
        "an unfinished run with another configuration: model.init_args.evaluate_every is 5 there and None now" in error
    )
    assert "pass --overwrite to start over" in error
    assert error.count("\n") == 1
